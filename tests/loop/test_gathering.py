"""What a round rolls out: upcoming items, rollouts taken up again from a search, dead groups replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loop_world import ALTERNATE, ROLLOUTS, World, solver

from tiny_world import MEASURE, SAMPLING, open_tiny, tiny_task
from twoclock.allocate import GateConfig
from twoclock.errors import ConfigError
from twoclock.gathering import Gathered, Gathering, RolloutSettings
from twoclock.seeding import child_rng
from twoclock.store import KeptRollout, RunStore
from twoclock.tasks import Stream
from twoclock.types import (
    Budget,
    Completion,
    Conditioning,
    Cost,
    Delta,
    Evidence,
    Grade,
    Proposal,
    Timescale,
    Write,
)

PROMPTS = (Conditioning(), Conditioning(system="One."), Conditioning(system="Two."))


def gathering(chance: float = 0.5, **settings: Any) -> Gathering:
    tasks = {"largest": tiny_task(), "smallest": tiny_task("smallest", want="smallest")}
    stream = Stream([("largest", 4), ("smallest", 2), ("largest", 3)], tasks)
    chosen = RolloutSettings(**{"items": 3, "per_item": 4, **settings})
    return Gathering(solver(lambda _: chance), stream, chosen, SAMPLING, 5)


def gather(world: Gathering, number: int, conditionings: Any, kept: Any = ()) -> Gathered:
    task = world.stream.tasks[world.stream.phase(number).task]
    items = world.items(number)
    taken = world.take_up(number, items, conditionings, lambda *_: list(kept))
    requests, completions = world.sample(number, items, conditionings, taken)
    first = world.grade(number, task, items, requests, completions, taken)
    return world.replace_dead(number, task, items, conditionings, first)


def kept(item_id: str, text: Conditioning, *, round: int = 2, seed: int = 0) -> KeptRollout:
    """A rollout that a search has kept, under the prompt and some weights."""
    under = Conditioning(system=text.system, exemplars=text.exemplars, delta=Delta("old", "recalled", "", None))
    completion = Completion(tokens=(1, 2), logprobs=(-0.5, -0.25), text=f"7 by {seed}", finish="stop", prompt_tokens=9)
    return KeptRollout(
        round=round,
        item_id=item_id,
        conditioning_id=under.id,
        system=text.system,
        exemplars=text.exemplars,
        delta="old",
        seed=seed,
        completion=completion,
        grade=Grade(reward=1.0),
    )


# ------------------------------------------------------------------------------------------------------------- upcoming


def test_upcoming_items_are_those_that_the_next_rounds_read() -> None:
    world = gathering()
    following = [*world.items(2), *world.items(3), *world.items(4)]
    assert list(world.upcoming(1, 7)) == following[:7]
    assert list(world.upcoming(1, 100)) == following  # the phase ends there
    assert world.upcoming(4, 5) == ()
    assert not {i.id for i in world.upcoming(1, 100)} & {i.id for i in world.items(1)}


# ---------------------------------------------------------------------------------------------------------------- reuse


def test_kept_rollouts_take_the_places_of_new_ones() -> None:
    world = gathering(reuse=True, prompts_per_item=2)
    items = world.items(3)
    rows = [kept(items[0].id, PROMPTS[1], seed=1), kept(items[0].id, PROMPTS[1], seed=2), kept(items[1].id, PROMPTS[0])]
    plain, reusing = gather(world, 3, PROMPTS[:2]), gather(world, 3, PROMPTS[:2], rows)
    assert (reusing.reused, reusing.cost.rollouts) == (3, 9)
    assert [len(g.rollouts) for g in reusing.groups] == [4, 4, 4]
    assert plain.groups[2] == reusing.groups[2]
    old = [r for g in reusing.groups for r in g.rollouts if r.age]
    assert {r.age for r in old} == {1}
    assert [r.completion.text for r in old] == ["7 by 2", "7 by 1", "7 by 0"]
    recalled = reusing.conditionings[rows[0].conditioning_id]
    assert recalled.id == rows[0].conditioning_id
    assert recalled.text_id == PROMPTS[1].text_id
    # What is sampled beside them keeps its own random numbers.
    fresh = {r.seed for g in reusing.groups for r in g.rollouts if not r.age}
    assert fresh < {r.seed for g in plain.groups for r in g.rollouts}


@pytest.mark.parametrize(
    "changes",
    [
        {"item_id": "another"},
        {"system": "Three."},
        {"round": 3},
        {"completion": Completion(tokens=(1, 2), logprobs=(), text="7", finish="stop", prompt_tokens=9)},
        {"completion": Completion(tokens=(), logprobs=(), text="", finish="error", prompt_tokens=9, error="lost")},
    ],
    ids=["of another item", "under another prompt", "of this round", "without log-probabilities", "failed"],
)
def test_what_cannot_be_learned_from_is_left(changes: dict[str, Any]) -> None:
    world = gathering(reuse=True)
    row = replace(kept(world.items(3)[0].id, PROMPTS[0]), **changes)
    found = gather(world, 3, PROMPTS[:1], [row])
    assert (found.reused, found.cost.rollouts) == (0, 12)


def test_a_kept_rollout_is_used_once() -> None:
    """24 of the 48 training items a batch: each item comes up in every second round."""
    world = gathering(reuse=True, items=24)
    again = next(item for item in world.items(4) if item in world.items(2))
    assert gather(world, 4, PROMPTS[:1], [kept(again.id, PROMPTS[0], round=2)]).reused == 1
    assert gather(world, 4, PROMPTS[:1], [kept(again.id, PROMPTS[0], round=1)]).reused == 0


def test_an_item_is_never_rolled_out_under_its_own_answer() -> None:
    world = gathering(prompts_per_item=2, reuse=True)
    items = world.items(3)
    shown = Conditioning(exemplars=((items[0].prompt, "7"), ("another?", "8")))
    for prompts, instead in (((shown, PROMPTS[1]), PROMPTS[1]), ((shown, shown), Conditioning())):
        found = gather(world, 3, prompts, [kept(items[0].id, shown)])
        assert found.reused == 0
        ids = {g.item.id: [r.conditioning_id for r in g.rollouts] for g in found.groups}
        assert ids[items[0].id] == [instead.id] * 2 + [(instead if prompts[1] is shown else PROMPTS[1]).id] * 2
        assert ids[items[1].id][:2] == [shown.id] * 2
        assert len({r.seed for r in found.groups[0].rollouts}) == 4


def test_without_reuse_nothing_is_looked_for() -> None:
    world = gathering()

    def looked(*_: Any) -> Any:
        raise AssertionError("the keeper was asked")

    assert world.take_up(3, world.items(3), PROMPTS[:1], looked) == {}


def test_a_group_may_be_taken_up_whole() -> None:
    world = gathering(reuse=True)
    rows = [kept(item.id, PROMPTS[0], seed=n) for item in world.items(3) for n in range(6)]
    found = gather(world, 3, PROMPTS[:1], rows)
    assert (found.reused, found.cost.rollouts) == (12, 0)
    assert all(len(g.rollouts) == 4 for g in found.groups)


# ----------------------------------------------------------------------------------------------------- dynamic sampling


def test_dead_groups_are_replaced_by_groups_of_other_items() -> None:
    plain, dynamic = gathering(0.25, items=6), gathering(0.25, items=6, dynamic=8)
    before, after = gather(plain, 2, PROMPTS[:1]), gather(dynamic, 2, PROMPTS[:1])
    assert before.dead_groups > 0
    assert len(after.groups) == 6
    assert not any(g.is_dead for g in after.groups)
    assert [g for g in before.groups if not g.is_dead] == after.groups[: 6 - before.dead_groups]
    assert len({g.item.id for g in after.groups}) == 6
    # The price is told: what was sampled, and how much of it was dead.
    assert after.cost.rollouts == 4 * after.sampled_groups > before.cost.rollouts
    assert after.dead_groups > before.dead_groups


def test_the_limit_of_dynamic_sampling_holds() -> None:
    hopeless = gather(gathering(0.0, dynamic=2), 1, PROMPTS[:1])
    assert (hopeless.sampled_groups, hopeless.dead_groups) == (9, 9)
    assert [g.item for g in hopeless.groups] == list(gathering().items(1))


def test_dynamic_sampling_ends_with_the_items() -> None:
    assert gather(gathering(0.0, items=24, dynamic=5), 1, PROMPTS[:1]).sampled_groups == 48


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"per_item": 6, "prompts_per_item": 4}, "must divide by prompts_per_item"),
        ({"under": "non"}, "did you mean 'none'"),
        ({"under": "none", "reuse": True}, "prompts_per_item must be 1 and reuse false"),
        ({"max_age": 0, "dynamic": -1}, "expected at least"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RolloutSettings(**settings)


def test_seeds_of_dynamic_batches_differ_by_round() -> None:
    draws = {child_rng("dynamic", 5, number, batch).random() for number in range(5) for batch in range(5)}
    assert len(draws) == 25


# ---------------------------------------------------------------------------------------------------------- in the loop


def test_a_search_feeds_the_rounds_that_follow(tiny_folder: Path, tmp_path: Path) -> None:
    """Rounds 1 and 4 search on what rounds 2, 3 and 5, 6 read; those learn from what the search has rolled out."""
    world = World(
        policy=open_tiny(tiny_folder),
        channels={"lora": {"objective": "cispo"}, "prompts": {"window": "ahead"}},
        options={**ALTERNATE, "slow_steps": 3},
        rollouts=replace(ROLLOUTS, reuse=True),
    )
    world.play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        rounds = {row.round: row.metrics for row in store.rounds()}
        searched = [e.round for e in store.entries(channel="prompts") if e.action in ("commit", "reject", "decline")]
        assert [e.cost.rollouts > 0 for e in store.entries(channel="prompts", round=1)] == [True]
        rows = list(store.rollouts())
    assert searched[0] == 1
    assert rounds[1]["reused"] == 0
    assert rounds[2]["reused"] > 0
    for number, metrics in rounds.items():
        mine = [row for row in rows if row.round == number]
        assert len(mine) == 16
        assert metrics["rollouts"] == 16 - metrics["reused"]
        assert sum(row.age > 0 for row in mine) == metrics["reused"]
    ages = {(row.round, row.age) for row in rows if row.age}
    assert all(number - age in searched for number, age in ages)


class Shouting:
    """A fast channel with states (volume, notes): a volume speaks, notes do not."""

    name = "shouting"
    timescale = Timescale.FAST

    def init(self, card: Any, seed: int) -> Any:
        return (0, 0)

    def condition(self, state: Any, task: str) -> Conditioning:
        return Conditioning(system="!" * state[0]) if state[0] else Conditioning()

    def propose(self, bench: Any, state: Any, evidence: Evidence, budget: Budget, seed: int) -> Any:
        write = Write(text="louder", kind="system")
        return Proposal(channel=self.name, state=(state[0] + 1, 0), cause="always", cost=Cost(), writes=(write,))

    def dump(self, state: Any) -> bytes:
        return bytes(state)

    def load(self, blob: bytes) -> Any:
        return tuple(blob)


class Insistent(Shouting):
    """Offers a change of what is deployed, and beside it one that changes nothing but its own notes."""

    def propose(self, bench: Any, state: Any, evidence: Evidence, budget: Budget, seed: int) -> Any:
        offer = super().propose(bench, state, evidence, budget, seed)
        return replace(offer, fallback=self.beside)

    beside: Any = (0, 7)


@pytest.mark.parametrize(("beside", "kept"), [((0, 7), True), ((5, 7), False)], ids=["silent", "speaking"])
def test_what_stands_beside_a_refused_offer_is_kept_where_it_is_silent(beside: Any, kept: bool, tmp_path: Path) -> None:
    channel = Insistent()
    channel.beside = beside
    world = World(
        policy=solver(lambda c: 0.5),
        channels={},
        made={"shouting": channel},
        allocator="fixed",
        options={},
        gates=GateConfig(fast="paired", trial_items=8),
        rollouts=RolloutSettings(items=2, per_item=2),
        measure=replace(MEASURE, drift_every=0),
        phases=(("largest", 1),),
    )
    loop = world.play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        (entry,) = store.entries(round=1)
    assert entry.action == ("commit" if kept else "reject")
    assert loop.states["shouting"] == (beside if kept else (0, 0))
    if kept:
        assert "whose change was refused" in entry.reason
        assert [w.kind for w in entry.writes] == ["pool"]
