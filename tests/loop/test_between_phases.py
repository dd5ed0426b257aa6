"""What a run does between its phases: consolidation is asked there, once, and before whatever comes next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loop_world import World, solver
from test_watching import CHANCES, Versions

from twoclock.gathering import RolloutSettings
from twoclock.loop import Loop
from twoclock.store import RunStore
from twoclock.types import Cost, LedgerEntry
from twoclock.watching import WatchSettings


def world() -> World:
    return World(
        policy=solver(lambda c: CHANCES[c.system]),
        channels={},
        made={"versions": Versions({2: 1})},
        allocator="fixed",
        options={},
        rollouts=RolloutSettings(items=4, per_item=4, prompts_per_item=2),
        watch=WatchSettings(fast=True),
        phases=(("largest", 3), ("smallest", 2)),
    )


def play(path: Path, *, move: bool, until: int | None = None) -> tuple[Loop, list[int]]:
    """Rounds that were over when consolidation was asked. ``move`` retires the prompt the first time."""
    asked: list[int] = []
    store = RunStore.open(path, write=True) if path.exists() else RunStore.create(path, config={})
    with store:
        loop = world().loop(store)

        def consolidate(states: Mapping[str, Any]) -> Mapping[str, Any] | None:
            head = store.head()
            asked.append(head.next_round - 1)
            if not move or states["versions"] == 0:
                return None
            after = {"versions": store.put_blob(b"0")}
            entry = LedgerEntry(
                round=head.next_round - 1,
                channel="versions",
                timescale="fast",
                action="consolidate",
                before=head.states["versions"],
                after=after["versions"],
                cause="test",
                reason="test",
                cost=Cost(),
            )
            store.append_consolidation([entry], after, expected=head, cause="test")
            return {"versions": 0}

        loop._consolidate = consolidate
        if store.entries():
            loop.restore()
        else:
            loop.begin()
        loop.run(until)
    return loop, asked


def test_it_is_asked_between_phases_and_at_the_end(tmp_path: Path) -> None:
    loop, asked = play(tmp_path / "run", move=False)
    assert asked == [3, 5]
    assert loop.states == {"versions": 1}


def test_what_it_moved_is_live_in_the_next_round_and_ends_the_watches(tmp_path: Path) -> None:
    loop, asked = play(tmp_path / "run", move=True)
    assert loop.states == {"versions": 0}
    assert asked == [3, 5]
    assert not loop.watcher.open
    with RunStore.open(tmp_path / "run") as store:
        assert store.snapshot_at(3).states != store.snapshot_at(4).states
        assert store.verify() == []


def test_a_run_that_stopped_before_it_does_it_when_taken_up(tmp_path: Path) -> None:
    _, asked = play(tmp_path / "run", move=True, until=3)
    assert asked == []
    loop, asked = play(tmp_path / "run", move=True)
    assert asked == [3, 5]
    assert loop.states == {"versions": 0}


def test_after_a_rollback_by_hand_it_keeps_out(tmp_path: Path) -> None:
    play(tmp_path / "run", move=True, until=3)
    with RunStore.open(tmp_path / "run", write=True) as store:
        store.append_rollback(1, reason="test")
    _, asked = play(tmp_path / "run", move=True)
    assert asked == [5]
