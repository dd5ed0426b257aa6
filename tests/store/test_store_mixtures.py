"""Experts that were mixed in, in the ledger: by name, with the conditioning's own id, and part of the digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from store_records import make_run, rollout, round_record

from twoclock.gathering import _recalled
from twoclock.store import RunStore
from twoclock.types import Conditioning, Delta, Evidence, Group, Item

TOLD = Conditioning(system="be brief", delta=Delta("w-1", "svf", "b", None), mixture=Delta("mix-1", "svf", "b", None))


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


def test_a_mixture_comes_back_by_name(tmp_path: Path) -> None:
    run_under(tmp_path / "run", TOLD).close()
    with RunStore.open(tmp_path / "run") as store:
        assert store.conditionings()[TOLD.id]["mixture"] == "mix-1"
        (kept, *_) = store.kept_rollouts("sums", ["i"], since=1)
        assert store.verify() == []
    assert (kept.mixture, kept.delta) == ("mix-1", "w-1")
    again = _recalled(kept)
    assert (again.id, again.text_id) == (TOLD.id, TOLD.text_id)
    live = replace(TOLD, delta=None)
    assert _recalled(kept, {live.text_id: live}).mixture is live.mixture, "what can be mounted takes the name's place"


def test_two_mixtures_are_two_digests(tmp_path: Path) -> None:
    digests = set()
    for n, told in enumerate(
        (TOLD, replace(TOLD, mixture=None), replace(TOLD, mixture=Delta("mix-2", "svf", "b", None)))
    ):
        with run_under(tmp_path / str(n), told) as store:
            digests.add(store.digest())
    assert len(digests) == 3
