"""A memory beside the model in the ledger: named, with the id that it had, and part of the digest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from store_records import make_run, rollout, round_record

from twoclock.store import RunStore
from twoclock.store.soft import plain_soft, soft_of
from twoclock.types import Conditioning, Evidence, Group, Item, SoftState

SOFT = SoftState("memory-1", "neural_memory", "base", object())
TOLD = Conditioning(system="be brief", soft=SOFT)


def run_under(path: Path, told: Conditioning) -> RunStore:
    store = make_run(path)
    rollouts = tuple(replace(rollout("i", n, 0), conditioning_id=told.id) for n in (0, 1))
    evidence = Evidence(
        round=1,
        phase=0,
        task="sums",
        groups=(Group(item=Item(id="i", prompt="?"), rollouts=rollouts),),
        conditionings={told.id: told},
    )
    store.commit_round(replace(round_record(store), evidence=evidence, searched=evidence))
    return store


def test_plain_and_back_keeps_the_id() -> None:
    again = soft_of(json.loads(json.dumps(plain_soft(SOFT))))
    assert again == SOFT
    assert again is not None
    assert again.payload is None
    assert soft_of(plain_soft(None)) is None


def test_the_ledger_gives_back_what_was_read(tmp_path: Path) -> None:
    with run_under(tmp_path / "run", TOLD) as store:
        assert store.verify() == []
        assert store.conditionings()[TOLD.id]["soft"] == {"id": "memory-1", "kind": "neural_memory", "base": "base"}
        kept = store.kept_rollouts("sums", ["i"], since=1)
        assert len(kept) == 2
        for one in kept:
            assert Conditioning(system=one.system, soft=one.soft).id == one.conditioning_id == TOLD.id


def test_the_memory_is_part_of_the_digest(tmp_path: Path) -> None:
    """Under equal ids, so that it is the content itself that is compared."""
    other = replace(TOLD, soft=None)
    other.__dict__["id"] = TOLD.id
    digests = []
    for name, told in (("one", TOLD), ("same", TOLD), ("other", other)):
        with run_under(tmp_path / name, told) as store:
            digests.append(store.digest())
    assert digests[0] == digests[1] != digests[2]
