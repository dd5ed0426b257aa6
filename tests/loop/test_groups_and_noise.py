"""Two laws of the loop's statistics: groups are keyed by item id across conditionings, and noise is not learned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from loop_world import World, solver

from tiny_world import MEASURE
from twoclock.allocate import GateConfig
from twoclock.evaluation import conditioning_of
from twoclock.gathering import RolloutSettings
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng
from twoclock.store import RunStore
from twoclock.types import Conditioning, Declined, Evidence, Grade, Item, Snapshot, SplitName, Timescale

SEARCHES = 120


class Listener:
    """A channel that learns nothing and remembers what evidence it was shown."""

    name = "listener"
    timescale = Timescale.FAST

    def __init__(self) -> None:
        self.heard: list[Evidence] = []

    def init(self, card: Any, seed: int) -> None:
        return None

    def condition(self, state: None, task: str) -> Conditioning:
        return Conditioning()

    def dump(self, state: None) -> bytes:
        return b"nothing"

    def load(self, blob: bytes) -> None:
        return None

    def propose(self, bench: Any, state: None, evidence: Evidence, budget: Any, seed: int) -> Declined:
        self.heard.append(evidence)
        return Declined(channel=self.name, reason="it only listens")


class Twins:
    """A task in which every prompt stands twice, with different right answers: only the id tells the items apart."""

    name = "twins"
    description = "The same question, two answers."

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return tuple(
            Item(id=f"{name}-{n}", prompt=f"{name} question {n // 2}", reference=str(n % 2)) for n in range(12)
        )

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [Grade(reward=float(text == i.reference)) for i, text in zip(items, texts, strict=True)]


def seven(chance: float) -> ScriptedPolicy:
    return solver(lambda c: chance)


@pytest.mark.parametrize(("per_item", "prompts"), [(4, 1), (4, 2), (6, 3), (8, 4)])
def test_a_group_is_one_items_across_several_conditionings(per_item: int, prompts: int, tmp_path: Path) -> None:
    listener = Listener()
    world = World(
        policy=seven(0.5),
        channels={"prompts": {"pool_size": 4}},
        made={"listener": listener},
        rollouts=RolloutSettings(items=5, per_item=per_item, prompts_per_item=prompts),
        allocator="fixed",
        options={},
        phases=(("largest", 4),),
    )
    world.play(tmp_path / "run")
    assert len(listener.heard) == 4
    for evidence in listener.heard:
        assert len(evidence.groups) == len({g.item.id for g in evidence.groups}) == 5
        for group in evidence.groups:
            assert len(group.rollouts) == per_item
            assert {r.item_id for r in group.rollouts} == {group.item.id}
            assert len({r.seed for r in group.rollouts}) == per_item, "no two rollouts share their luck"
            ids = Counter(r.conditioning_id for r in group.rollouts)
            assert ids.keys() <= evidence.conditionings.keys()
            assert max(ids.values()) <= per_item // len(ids) + per_item // prompts
    # Once the pool has filled, groups do compare as many conditionings as they were asked to.
    assert len(listener.heard[-1].conditionings) == prompts
    with RunStore.open(tmp_path / "run") as store:
        rows = list(store.rollouts(4))
        by_item = defaultdict(set)
        for row in rows:
            by_item[row.item_id].add(row.conditioning_id)
        assert len(rows) == 5 * per_item
        for group in listener.heard[-1].groups:
            # A prompt that shows the item with its answer makes room for one that does not.
            offered = listener.heard[-1].conditionings.values()
            shown = sum(any(q == group.item.prompt for q, _ in c.exemplars) for c in offered)
            assert len(by_item[group.item.id]) == prompts - shown


def test_items_with_one_prompt_stay_two_groups(tmp_path: Path) -> None:
    listener = Listener()
    policy = ScriptedPolicy(lambda prompt, conditioning, seed: str(seed % 2))
    world = World(
        policy=policy,
        channels={},
        made={"listener": listener},
        tasks={"twins": Twins()},
        phases=(("twins", 1),),
        rollouts=RolloutSettings(items=12, per_item=6),
        allocator="fixed",
        options={},
    )
    world.play(tmp_path / "run")
    (evidence,) = listener.heard
    assert len(evidence.groups) == 12
    assert len({g.item.prompt for g in evidence.groups}) == 6
    for group in evidence.groups:
        right = [r.completion.text == group.item.reference for r in group.rollouts]
        assert [r.reward == 1.0 for r in group.rollouts] == right
        assert len(right) == 6


# ------------------------------------------------------------------------------------------------------------ noise


class Watch:
    """Counts rounds that left another prompt deployed."""

    def __init__(self) -> None:
        self.states: list[Mapping[str, str]] = []

    def step(self, round: int, step: str) -> None:
        return None

    def committed(self, round: int, metrics: Mapping[str, float], snapshot: Snapshot) -> None:
        self.states.append(snapshot.states)


def changes(gate: Any, path: Path) -> int:
    """How often the deployed prompt changed in 120 searches on rewards that no prompt influences: each prompt flips
    coins of its own, so that differences are all noise."""

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        return "7" if child_rng("flip", seed, prompt, conditioning.id).random() < 0.5 else "\x00"

    watch = Watch()
    world = World(
        policy=ScriptedPolicy(script),
        channels={"prompts": {}},
        gates=GateConfig(fast=gate, trial_items=40),
        allocator="fixed",
        options={"fast_rollouts": 60},
        phases=(("largest", SEARCHES),),
        measure=MEASURE.__class__(heldout_items=2, drift_every=0),
        rollouts=RolloutSettings(items=4, per_item=2),
    )
    loop = world.play(path, watch)
    with RunStore.open(path) as store:
        offers = [e for e in store.entries(channel="prompts") if e.round and e.action != "decline"]
        assert len(offers) > 0.9 * SEARCHES, "these are to be searches, not refusals to search"
        start = store.snapshot_at(0).states
        channel = loop.channels["prompts"]
        deployed = [
            conditioning_of({"prompts": channel}, {"prompts": channel.load(store.get_blob(s["prompts"]))}, "largest").id
            for s in (start, *watch.states)
        ]
    return sum(before != after for before, after in pairwise(deployed))


def test_coin_flips_seldom_change_what_is_deployed(tmp_path: Path) -> None:
    assert changes("paired", tmp_path / "run") <= 0.10 * SEARCHES


def test_without_the_trial_coin_flips_would_be_learned(tmp_path: Path) -> None:
    """What the law above guards against is real: the best of some noisy scores is nearly always better by luck."""
    assert changes("accept", tmp_path / "run") >= 0.40 * SEARCHES
