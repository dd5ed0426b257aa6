"""Shifts of the logits in the ledger: named in full, with the ids that they had, and part of the digest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from store_records import make_run, rollout, round_record

from twoclock.errors import StoreError
from twoclock.store import RunStore
from twoclock.store.shifts import plain_shifts, shifts_of
from twoclock.types import Conditioning, Delta, Evidence, Group, Item, Shift, SideModel

EXPERT = Delta("expert-1", "lora", "base", object())
SMALL = SideModel(weights="w" * 64, source="/models/small", delta=EXPERT)
SHIFTS = (
    Shift(expert=EXPERT, anti=None, alpha=0.5, name="terse"),
    Shift(expert=SMALL, anti=replace(SMALL, delta=None), alpha=(1.0, 0.25), plausible=0.1, mapped=True),
)
TOLD = Conditioning(system="be brief", shifts=SHIFTS)


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


def test_plain_and_back_keeps_every_id() -> None:
    plain = json.loads(json.dumps(plain_shifts(SHIFTS)))
    again = shifts_of(plain)
    assert again == SHIFTS
    assert [s.id for s in again] == [s.id for s in SHIFTS]
    assert [s.name for s in again] == ["terse", ""]
    assert plain_shifts(again) == plain
    assert again[0].expert.payload is None  # type: ignore[union-attr]
    assert shifts_of([]) == ()


def test_the_ledger_gives_back_what_was_shifted(tmp_path: Path) -> None:
    with run_under(tmp_path / "run", TOLD) as store:
        assert store.verify() == []
        found = store.conditionings()[TOLD.id]
        assert shifts_of(found["shifts"]) == SHIFTS
        assert found["shifts"][0] == {
            "expert": {"delta": "expert-1", "kind": "lora", "base": "base"},
            "anti": {},
            "alpha": [0.5],
            "plausible": 0.0,
            "mapped": False,
            "name": "terse",
        }
        for kept in store.kept_rollouts("sums", ["i"], since=1):
            assert Conditioning(system=kept.system, shifts=kept.shifts).id == kept.conditioning_id == TOLD.id


def test_shifts_are_part_of_the_digest(tmp_path: Path) -> None:
    """Under equal ids, so that it is the content itself that is compared."""
    other = replace(TOLD, shifts=SHIFTS[:1])
    other.__dict__["id"] = TOLD.id
    digests = []
    for name, told in (("one", TOLD), ("same", TOLD), ("other", other)):
        with run_under(tmp_path / name, told) as store:
            digests.append(store.digest())
    assert digests[0] == digests[1] != digests[2]


def test_a_name_that_has_no_utf8_is_refused_or_kept(tmp_path: Path) -> None:
    told = Conditioning(shifts=(replace(SHIFTS[0], name="half \ud83d"),))
    try:
        with run_under(tmp_path / "run", told) as store:
            assert store.verify() == []
    except StoreError as problem:
        pytest.fail(f"a name should not lose a round: {problem}")
