"""Writes are watched, and taken back by what their rounds say of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_world import World, solver

from tiny_world import MEASURE
from twoclock.allocate import GateConfig
from twoclock.errors import ConfigError
from twoclock.gathering import RolloutSettings
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng
from twoclock.store import RunStore
from twoclock.types import (
    Budget,
    Completion,
    Conditioning,
    Cost,
    Declined,
    Delta,
    Evidence,
    Grade,
    Group,
    Item,
    PolicyCard,
    Proposal,
    Rollout,
    Timescale,
)
from twoclock.watching import WEIGHED, Watch, WatchSettings, bounds, weighed_differences

TEXTS = {0: None, 1: "good", 2: "poison", 3: "other poison"}
CHANCES = {None: 0.5, "good": 0.9, "poison": 0.1, "other poison": 0.0}


class Versions:
    """A fast channel whose state is a number, moved as ``moves`` say (round → number)."""

    name = "versions"
    timescale = Timescale.FAST

    def __init__(self, moves: dict[int, int]) -> None:
        self.moves = moves

    def init(self, card: PolicyCard, seed: int) -> int:
        return 0

    def propose(
        self, bench: Any, state: int, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[int] | Declined:
        if evidence.round not in self.moves:
            return Declined(channel=self.name, reason="not yet")
        return Proposal(channel=self.name, state=self.moves[evidence.round], cause="it is time", cost=Cost())

    def condition(self, state: int, task: str) -> Conditioning:
        return Conditioning(system=TEXTS[state])

    def alternatives(self, state: int, task: str, count: int, seed: int) -> tuple[Conditioning, ...]:
        return (self.condition(state, task),)

    def dump(self, state: int) -> bytes:
        return str(state).encode()

    def load(self, blob: bytes) -> int:
        return int(blob)


def run(moves: dict[int, int], rounds: int, folder: Path, **settings: Any) -> World:
    return World(
        policy=solver(lambda c: CHANCES[c.system]),
        channels={},
        made={"versions": Versions(moves)},
        allocator="fixed",
        options={},
        rollouts=RolloutSettings(items=8, per_item=8, prompts_per_item=2),
        watch=WatchSettings(**{"fast": True, **settings}),
        phases=(("largest", rounds),),
    )


def test_poison_is_taken_back_and_what_helps_is_kept(tmp_path: Path) -> None:
    world = run({3: 1, 8: 2}, 14, tmp_path)
    loop = world.play(tmp_path / "run")
    assert loop.states == {"versions": 1}
    with RunStore.open(tmp_path / "run") as store:
        back = store.entries(action="rollback")
        assert len(back) == 1
        assert 9 <= back[0].round <= 10, "64 rollouts a round: within two of them"
        assert back[0].cause == "taken back: its effect is negative"
        assert back[0].metrics["watch_mean"] < -0.4
        assert store.snapshot_at(back[0].round).states == store.snapshot_at(7).states
        assert store.verify() == []
        assert not loop.watcher.open


def test_without_a_watch_the_poison_stays(tmp_path: Path) -> None:
    world = run({3: 1, 8: 2}, 14, tmp_path, fast=False)
    assert world.play(tmp_path / "run").states == {"versions": 2}


def test_a_second_poison_is_held_against_what_was_before_the_first(tmp_path: Path) -> None:
    loop = run({3: 1, 8: 2, 9: 3}, 16, tmp_path).play(tmp_path / "run")
    assert loop.states == {"versions": 1}


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    whole = run({3: 1, 8: 2}, 14, tmp_path)
    whole.play(tmp_path / "whole")
    for stop in (4, 8, 9):
        run({3: 1, 8: 2}, 14, tmp_path).play(tmp_path / f"cut{stop}", until=stop)
        run({3: 1, 8: 2}, 14, tmp_path).play(tmp_path / f"cut{stop}")
        with RunStore.open(tmp_path / "whole") as one, RunStore.open(tmp_path / f"cut{stop}") as other:
            assert one.digest() == other.digest()


def test_a_rollback_by_hand_ends_every_watch(tmp_path: Path) -> None:
    world = run({3: 1, 8: 2}, 14, tmp_path)
    world.play(tmp_path / "run", until=8)
    with RunStore.open(tmp_path / "run", write=True) as store:
        store.append_rollback(8, reason="test") if store.head().round != 8 else store.append_rollback(2, reason="test")
    again = run({3: 1, 8: 2}, 9, tmp_path).play(tmp_path / "run")
    assert again.states == {"versions": 0}
    with RunStore.open(tmp_path / "run") as store:
        assert [e.is_by_hand for e in store.entries(action="rollback")] == [True]
        assert store.verify() == []


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_write_that_does_nothing_is_seldom_taken_for_harmful(scale: float) -> None:
    rng = np.random.default_rng(0)
    weighed = WEIGHED if scale < 1 else {}
    crossed = 0
    for _ in range(400):
        watch = Watch(since=1)
        for _ in range(60):
            watch = watch.add((scale * rng.choice([-1.0, 0.0, 0.5, 1.0, -0.5], size=8)).tolist())
            low, high = bounds(watch, 0.05, **weighed)
            if low > 0 or high < 0:
                crossed += 1
                break
    assert crossed / 400 <= 0.07


def test_bounds_narrow_and_cover() -> None:
    rng = np.random.default_rng(1)
    watch = Watch(since=1)
    assert bounds(watch, 0.05) == (-math.inf, math.inf)
    widths = []
    for _ in range(40):
        watch = watch.add((0.3 + rng.choice([-0.5, 0.5], size=8)).tolist())
        low, high = bounds(watch, 0.05)
        widths.append(high - low)
    assert low <= 0.3 <= high
    assert widths[-1] < widths[10] < widths[2]


class Tabled:
    """A model of three answers whose log-probabilities are those of a table by version."""

    def __init__(self, live: Sequence[float], anchor: Sequence[float]) -> None:
        self.tables = {None: anchor, "live": live}

    def logprobs_under(
        self, prompts: Any, completions: Any, conditionings: Any, *, temperature: float = 1.0
    ) -> list[list[list[float]]]:
        return [
            [[math.log(self.tables[c.delta.id if c.delta else None][tokens[0]])] for tokens in completions]
            for c in conditionings
        ]


def test_weighing_gives_the_exact_difference_in_the_mean() -> None:
    """Over all pairs of answers with their chances: J(live) − J(anchor), for rewards of three answers."""
    live, anchor, rewards = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [1.0, 0.0, 0.5]
    item, told = Item(id="i", prompt="?"), Conditioning()
    delta = Delta("live", "table", "base", None)
    found = 0.0
    for pair in itertools.product(range(3), repeat=2):
        rollouts = tuple(
            Rollout(
                item_id="i",
                conditioning_id=told.id,
                seed=n,
                completion=Completion(tokens=(y,), logprobs=(), text=str(y), finish="stop", prompt_tokens=1),
                grade=Grade(reward=rewards[y]),
            )
            for n, y in enumerate(pair)
        )
        seen = Evidence(
            round=1, phase=0, task="t", groups=(Group(item=item, rollouts=rollouts),), conditionings={told.id: told}
        )
        chance = live[pair[0]] * live[pair[1]]
        model: Any = Tabled(live, anchor)
        found += chance * sum(weighed_differences(model, seen, delta, None))
    exact = sum((p - q) * r for p, q, r in zip(live, anchor, rewards, strict=True))
    assert found == pytest.approx(exact, abs=1e-12)


def test_the_same_weights_differ_by_nothing() -> None:
    item, told = Item(id="i", prompt="?"), Conditioning()
    rollouts = tuple(
        Rollout(
            item_id="i",
            conditioning_id=told.id,
            seed=n,
            completion=Completion(tokens=(n,), logprobs=(), text="", finish="stop", prompt_tokens=1),
            grade=Grade(reward=float(n)),
        )
        for n in range(2)
    )
    seen = Evidence(
        round=1, phase=0, task="t", groups=(Group(item=item, rollouts=rollouts),), conditionings={told.id: told}
    )
    model: Any = Tabled([0.5, 0.3, 0.2], [0.5, 0.3, 0.2])
    assert weighed_differences(model, seen, None, None) == [0.0]
    aged = replace(seen, groups=(Group(item=item, rollouts=tuple(replace(r, age=1) for r in rollouts)),))
    assert weighed_differences(model, aged, None, None) == []


def test_every_mistake_in_the_settings_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        WatchSettings(alpha=2.0, probation=-1, sentinel_items=4)
    assert len(caught.value.problems) == 4


class Weights(Versions):
    """A slow channel in name: its versions are deltas that the script tells apart."""

    name = "weights"
    timescale = Timescale.SLOW

    def condition(self, state: int, task: str) -> Conditioning:
        return Conditioning(delta=Delta(f"v{state}", "table", "base", None) if state else None)


def sentinel_world(chances: dict[tuple[str, int], float], **settings: Any) -> World:
    """Two rounds of ``largest``, six of ``smallest``; version 1 of the weights is committed in round 4."""

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        version = int(conditioning.delta.id[1:]) if conditioning.delta else 0
        task = "largest" if "largest" in prompt else "smallest"
        return "7" if child_rng("sentinel", seed, prompt).random() < chances[task, version] else "\x00"

    policy = ScriptedPolicy(script, name="versions")
    policy._card = replace(policy.card, trainable=True, base_hash="base")
    return World(
        policy=policy,
        channels={},
        made={"weights": Weights({4: 1})},
        allocator="fixed",
        options={},
        gates=GateConfig(slow="accept"),
        measure=replace(MEASURE, drift_every=0),
        rollouts=RolloutSettings(items=4, per_item=4),
        watch=WatchSettings(**{"slow": True, "sentinel_items": 16, "sentinel_every": 2, **settings}),
        phases=(("largest", 2), ("smallest", 6)),
    )


def test_a_version_that_broke_an_earlier_task_is_taken_back(tmp_path: Path) -> None:
    broken = {("largest", 0): 0.9, ("largest", 1): 0.1, ("smallest", 0): 0.5, ("smallest", 1): 0.9}
    loop = sentinel_world(broken).play(tmp_path / "run")
    assert loop.states == {"weights": 0}
    with RunStore.open(tmp_path / "run") as store:
        (back,) = store.entries(action="rollback")
        assert back.round == 6, "the second look after round 4"
        assert back.cause == "taken back: it broke what 'largest' had"
        assert back.metrics["sentinel_mean"] < -0.4
        assert next(r for r in store.rounds() if r.round == 6).metrics["watch_rollouts"] == 32
        assert store.verify() == []


def test_a_version_that_broke_nothing_stays(tmp_path: Path) -> None:
    kept = {("largest", 0): 0.9, ("largest", 1): 0.9, ("smallest", 0): 0.5, ("smallest", 1): 0.9}
    assert sentinel_world(kept).play(tmp_path / "kept").states == {"weights": 1}
    little = {**kept, ("largest", 1): 0.5}
    assert sentinel_world(little, sentinel_margin=0.9).play(tmp_path / "little").states == {"weights": 1}


def test_nothing_spoke_for_it_within_its_probation(tmp_path: Path) -> None:
    same = dict.fromkeys([(task, n) for task in ("largest", "smallest") for n in (0, 1)], 0.5)
    loop = sentinel_world(same, sentinel_items=0, probation=3).play(tmp_path / "run")
    assert loop.states == {"weights": 0}
    with RunStore.open(tmp_path / "run") as store:
        (back,) = store.entries(action="rollback")
        assert (back.round, back.cause) == (7, "taken back: nothing spoke for it within 3 rounds")


def test_a_task_that_returns_is_a_sentinel_of_its_own(tmp_path: Path) -> None:
    """Weights that were learned on another task meanwhile, and do harm here, are given up in the first round."""
    broken = {("largest", 0): 0.9, ("largest", 1): 0.1, ("smallest", 0): 0.5, ("smallest", 1): 0.9}
    world = replace(
        sentinel_world(broken, sentinel_every=100), phases=(("largest", 2), ("smallest", 4), ("largest", 2))
    )
    assert world.play(tmp_path / "run").states == {"weights": 0}
    with RunStore.open(tmp_path / "run") as store:
        (back,) = store.entries(action="rollback")
        assert (back.round, back.cause) == (7, "taken back: it broke what 'largest' had")
