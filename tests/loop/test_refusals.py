"""A change that a trial has refused is not tried again while nothing of it has moved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from loop_world import World, solver
from test_watching import Versions

from twoclock.allocate import GateConfig
from twoclock.gathering import RolloutSettings
from twoclock.store import RunStore

CHANCES = {None: 0.5, "good": 0.5, "poison": 0.5, "other poison": 0.5}


def world(moves: dict[int, int], rounds: int) -> World:
    """Prompts without any effect, each held to a trial."""
    return World(
        policy=solver(lambda c: CHANCES[c.system]),
        channels={},
        made={"versions": Versions(moves)},
        allocator="fixed",
        options={},
        gates=GateConfig(fast="paired", trial_items=24, alpha=0.05),
        rollouts=RolloutSettings(items=2, per_item=2),
        phases=(("largest", rounds),),
    )


def test_the_same_change_is_refused_without_another_trial(tmp_path: Path) -> None:
    moves = dict.fromkeys(range(1, 9), 1) | {5: 2}
    world(moves, 8).play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        found = store.entries(channel="versions", action="reject")
        tried = [e.round for e in found if "trial_p" in e.metrics]
        assert tried == [1, 5], "the change of round 5 is another one, and has a trial of its own"
        again = [e for e in found if "refused_in" in e.metrics]
        assert [e.round for e in again] == [2, 3, 4, 6, 7, 8]
        assert all(e.cost.rollouts == 0 and "unchanged since round 1" in e.reason for e in again)


def test_a_resumed_run_remembers_what_was_refused(tmp_path: Path) -> None:
    moves = dict.fromkeys(range(1, 9), 1)
    world(moves, 8).play(tmp_path / "whole")
    world(moves, 8).play(tmp_path / "cut", until=3)
    world(moves, 8).play(tmp_path / "cut")
    with RunStore.open(tmp_path / "whole") as one, RunStore.open(tmp_path / "cut") as other:
        assert one.digest() == other.digest()


def test_on_another_task_it_is_another_change(tmp_path: Path) -> None:
    both = replace(world(dict.fromkeys(range(1, 5), 1), 2), phases=(("largest", 2), ("smallest", 2)))
    both.play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        tried = [e.round for e in store.entries(channel="versions", action="reject") if "trial_p" in e.metrics]
        assert tried == [1, 3]
