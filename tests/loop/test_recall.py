"""Memory is asked about each item wherever an item is at hand: in rounds, searches, evaluations and probes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loop_world import World, solver
from recalling import RECALL, REMEMBERED, Remembering, remembers

from tiny_world import MEASURE, SAMPLING, tiny_task
from twoclock.evaluation import Evaluator
from twoclock.gathering import Gathered, Gathering, RolloutSettings
from twoclock.probing import ProbeSettings
from twoclock.probing.context import ProbeContext
from twoclock.store import KeptRollout, RunStore
from twoclock.tasks import Stream
from twoclock.types import Completion, Conditioning, Delta, Grade, Recall

BRIEF = Conditioning(system="Be brief.")


def gathering(**settings: Any) -> Gathering:
    stream = Stream([("largest", 4)], {"largest": tiny_task()})
    return Gathering(solver(lambda _: 0.5), stream, RolloutSettings(items=3, per_item=4, **settings), SAMPLING, 5)


def gather(world: Gathering, conditionings: Any, kept: Any = (), number: int = 3) -> Gathered:
    task, items = world.stream.tasks["largest"], world.items(number)
    taken = world.take_up(number, items, conditionings, lambda *_: list(kept))
    requests, completions = world.sample(number, items, conditionings, taken)
    return world.grade(number, task, items, requests, completions, taken)


def kept(item_id: str, told: Conditioning) -> KeptRollout:
    """A rollout that a search in round 2 has kept, under these words and some weights."""
    under = replace(told, delta=Delta("old", "recalled", "", None))
    return KeptRollout(
        round=2,
        item_id=item_id,
        conditioning_id=under.id,
        system=told.system,
        exemplars=told.exemplars,
        notes=told.notes,
        recalled=told.recalled,
        delta="old",
        seed=0,
        completion=Completion(tokens=(1, 2), logprobs=(-0.5, -0.25), text="7", finish="stop", prompt_tokens=9),
        grade=Grade(reward=1.0),
    )


# -------------------------------------------------------------------------------------------------------------- a round


def test_a_round_asks_about_each_item() -> None:
    world = gathering(prompts_per_item=2)
    found = gather(world, (BRIEF.join(REMEMBERED), REMEMBERED))
    for group in found.groups:
        told = RECALL.ask(group.item)
        under = [found.conditionings[r.conditioning_id] for r in group.rollouts]
        assert under == [BRIEF.join(told)] * 2 + [told] * 2
    assert all(not c.recall for _, c, _ in world.policy.asked)  # type: ignore[attr-defined]
    assert len({r.conditioning_id for g in found.groups for r in g.rollouts}) == 6


def test_kept_rollouts_are_taken_up_where_memory_says_the_same() -> None:
    world = gathering(reuse=True)
    first, second, third = world.items(3)
    told = {item.id: RECALL.ask(item) for item in (first, second, third)}
    rows = [
        kept(first.id, told[first.id]),
        kept(first.id, Conditioning()),  # before anything was remembered
        kept(second.id, remembers("another")(second)),
        kept(second.id, replace(told[second.id], recalled=("another entry",))),
        kept(third.id, told[first.id]),  # what memory says of another item
        kept(third.id, told[third.id]),
    ]
    found = gather(world, (REMEMBERED,), rows)
    assert [sum(r.age > 0 for r in g.rollouts) for g in found.groups] == [1, 0, 1]
    assert (found.reused, found.cost.rollouts) == (2, 10)
    old = [r for g in found.groups for r in g.rollouts if r.age]
    assert [r.conditioning_id for r in old] == [rows[0].conditioning_id, rows[5].conditioning_id]
    for rollout, item in zip(old, (first, third), strict=True):
        recalled = found.conditionings[rollout.conditioning_id]
        assert (recalled.id, recalled.text_id) == (rollout.conditioning_id, told[item.id].id)


def test_memory_never_shows_an_item_its_own_answer() -> None:
    """As with exemplars of a prompt: the first that does not show it stands in its place, or no prompt at all."""
    world = gathering(prompts_per_item=2)
    items = world.items(3)
    copying = Recall("copies", lambda item: Conditioning(exemplars=((items[0].prompt, "7"),)))
    shows, delta = Conditioning(recall=(copying,)), Delta("now", "lora", "", None)
    found = gather(world, (shows, BRIEF))
    assert [found.conditionings[r.conditioning_id] for r in found.groups[0].rollouts] == [BRIEF] * 4
    clean = [found.conditionings[r.conditioning_id] for r in found.groups[1].rollouts]
    assert clean == [Conditioning(exemplars=((items[0].prompt, "7"),))] * 2 + [BRIEF] * 2
    nothing = gather(world, (replace(shows, delta=delta), replace(shows, delta=delta)))
    assert {r.conditioning_id for r in nothing.groups[0].rollouts} == {Conditioning(delta=delta).id}


# ------------------------------------------------------------------------------------------------------- measurements


def test_an_evaluation_asks_about_each_held_out_item_and_is_named_by_the_question() -> None:
    policy, task = solver(lambda c: 1.0 if c.notes else 0.0), tiny_task()
    evaluator = Evaluator(policy, {"largest": task}, MEASURE, SAMPLING, 0)
    found = evaluator.cell(1, "largest", ("live", "learned"), REMEMBERED, "phase")
    assert found.conditioning_id == REMEMBERED.id
    assert set(found.rewards) == {1.0}
    items = evaluator.heldout("largest")
    assert [c for _, c, _ in policy.asked] == [RECALL.ask(item) for item in items]


def test_a_probe_asks_about_each_item() -> None:
    policy, task = solver(lambda c: 1.0 if c.notes else 0.0), tiny_task()
    session: Any = SimpleNamespace(
        parts=SimpleNamespace(sampling=SAMPLING), store=SimpleNamespace(head=lambda: None), policy=policy
    )
    context = ProbeContext(session, ProbeSettings(), print)
    items = task.split("heldout")[:3]
    groups = context.roll(task, items, BRIEF.join(REMEMBERED), purpose="test", samples=2)
    assert {reward for g in groups for reward in g.rewards} == {1.0}
    told = [BRIEF.join(RECALL.ask(item)) for item in items]
    assert [{r.conditioning_id for r in g.rollouts} for g in groups] == [{c.id} for c in told]
    bare = context.roll(task, items, BRIEF, purpose="test", samples=2)
    assert [r.seed for g in bare for r in g.rollouts] == [r.seed for g in groups for r in g.rollouts]


# ----------------------------------------------------------------------------------------------------------- whole runs


def world(channel: Any, **rollouts: Any) -> World:
    return World(
        policy=solver(lambda c: 0.5),
        channels={},
        made={"memory": channel},
        allocator="fixed",
        options={},
        rollouts=RolloutSettings(items=2, per_item=4, **rollouts),
        measure=replace(MEASURE, drift_every=0),
        phases=(("largest", 3), ("smallest", 2)),
    )


@pytest.mark.parametrize(("learns", "reused"), [(False, [0, 4, 4, 0, 4]), (True, [0, 0, 0, 0, 0])])
def test_what_a_search_kept_is_taken_up_until_memory_changes(learns: bool, reused: list[int], tmp_path: Path) -> None:
    """Two rollouts of each of the next two items are kept; none across the end of a phase."""
    path = tmp_path / "run"
    world(Remembering(learns=learns), reuse=True).play(path)
    with RunStore.open(path) as store:
        assert [int(row.metrics["reused"]) for row in store.rounds()] == reused
        rows, known = list(store.rollouts()), store.conditionings()
        kept = store.kept_rollouts("largest", [r.item_id for r in rows], since=1)
        assert store.verify() == []
        evaluations = store.evaluations()
    assert kept
    for row in [*rows, *kept]:
        told = known[row.conditioning_id]
        assert told["recall"] == []
        assert told["recalled"] == [told["notes"][0].replace(" on ", " of ")]
        assert told["notes"][0].endswith(row.item_id)
    assert {tuple(known[e.conditioning_id]["recall"]) for e in evaluations if e.prompt == "learned"} == (
        {(f"note {n}",) for n in (0, 3, 5)} if learns else {("note",)}
    )


def test_in_pieces_a_run_with_memory_is_the_run_in_one(tmp_path: Path) -> None:
    world(Remembering(learns=True), reuse=True).play(tmp_path / "one")
    for until in (0, 2, 3, None):
        world(Remembering(learns=True), reuse=True).play(tmp_path / "pieces", until=until)
    with RunStore.open(tmp_path / "one") as one, RunStore.open(tmp_path / "pieces") as pieces:
        assert one.digest() == pieces.digest()


def test_a_round_of_no_learned_prompt_asks_nobody(tmp_path: Path) -> None:
    made = world(Remembering(), under="none")
    made.play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        assert {row.conditioning_id for row in store.rollouts()} == {Conditioning().id}
