"""A whole run on both clocks, end to end, on a real if tiny model: what the ledger says is complete and repeatable."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_world import ALTERNATE, BOTH, ROLLOUTS, Steps, World, solver

from tiny_world import MEASURE, tiny_task
from twoclock.allocate import GateConfig
from twoclock.evaluation import conditioning_of
from twoclock.gathering import RolloutSettings
from twoclock.loop import STEPS
from twoclock.models.plain import plain_logits
from twoclock.nn.lowrank import mounted
from twoclock.store import RunStore
from twoclock.types import Conditioning


@pytest.fixture(scope="module")
def finished(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    World(policy=tiny).play(path)
    return path


def test_the_ledger_explains_every_change(finished: Path) -> None:
    with RunStore.open(finished) as store:
        assert store.verify() == []
        entries = store.entries()
        assert [e.action for e in entries if e.round == 0] == ["init"] * len(BOTH)
        commits = [e for e in entries if e.action == "commit"]
        assert {e.channel for e in commits} == set(BOTH), "both clocks were to learn something here"
        for entry in entries:
            assert entry.cause
            assert entry.reason
            assert (entry.before == entry.after) == (entry.action in ("decline", "reject"))
            assert all(math.isfinite(value) for value in entry.metrics.values())
        for entry in commits:
            assert entry.writes
            assert entry.offered == entry.after
            assert entry.cost.seconds > 0
            spent = entry.cost.rollouts if entry.timescale == "fast" else entry.cost.optimizer_steps
            assert spent > 0
        # Snapshots are what the entries lead to, and every state named can be loaded.
        for row in store.rounds():
            for digest in store.snapshot_at(row.round).states.values():
                assert store.get_blob(digest)
        assert store.head() == store.snapshot_at(6)


def test_what_was_measured_is_complete(finished: Path, tiny: Any) -> None:
    with RunStore.open(finished) as store:
        evaluations, known = store.evaluations("phase"), store.conditionings()
        cells = {(e.round, e.task, e.weights, e.prompt) for e in evaluations}
        for task in ("largest", "smallest"):
            assert {(0, task, "base", "none"), (0, task, "live", "learned")} <= cells
            assert {(r, task, "live", p) for r in (3, 6) for p in ("none", "learned")} <= cells
        assert {e.conditioning_id for e in evaluations} <= known.keys()
        assert {r.conditioning_id for r in store.rollouts()} <= known.keys()
        drift = store.drift()
        assert {d.round for d in drift} == {0, 2, 3, 4, 6}
        assert {d.prompts for d in drift} == {"general", "task:largest", "task:smallest"}
        assert all(d.live_base == d.base_live == 0.0 for d in drift if d.round == 0)
        assert all(d.live_base > 0.0 and d.base_live > 0.0 for d in drift if d.round == 6)
        for row in store.rounds():
            assert row.metrics["rollouts"] == ROLLOUTS.items * ROLLOUTS.per_item
            assert row.metrics["round_s"] > 0


def test_the_slow_clock_learns(finished: Path, tiny: Any, tmp_path: Path) -> None:
    """Printable first characters become commoner, by the weights alone: the sign of the gradient is right."""
    measure = MEASURE.__class__(heldout_items=12, samples=16, drift_every=0)
    world = World(policy=tiny, channels={"lora": {}}, measure=measure, rollouts=RolloutSettings(items=8, per_item=8))
    world.play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        scores = {(e.round, e.task, e.weights): sum(e.rewards) / len(e.rewards) for e in store.evaluations()}
    for task in ("largest", "smallest"):
        assert scores[6, task, "live"] > scores[0, task, "base"] + 0.15


def test_the_fast_clock_learns(tmp_path: Path) -> None:
    """A planted model that is right with exemplars: found, judged by the paired gate, deployed, seen in the score."""
    policy = solver(lambda c: 0.9 if c.exemplars else 0.1)
    measure = MEASURE.__class__(heldout_items=12, samples=8, drift_every=0)
    options = {"warmstart": 0, "slow_steps": 1, "fast_rollouts": 60, "search_on_switch": True}
    world = World(
        policy=policy, channels={"prompts": {}}, options=options, gates=GateConfig(trial_items=24), measure=measure
    )
    loop = world.play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        assert store.verify() == []
        for task in ("largest", "smallest"):
            assert conditioning_of(loop.channels, loop.states, task).exemplars
        scores = {(e.round, e.task, e.prompt): sum(e.rewards) / len(e.rewards) for e in store.evaluations()}
        assert scores[6, "smallest", "learned"] > 0.8 > 0.25 > scores[6, "smallest", "none"]
        assert scores[6, "largest", "learned"] > 0.8, "what was learned first is kept while the second is learned"
        accepted = store.entries(action="commit")
        assert any("p = " in e.reason for e in accepted)


def test_two_runs_of_one_seed_are_one(finished: Path, tiny: Any, tmp_path: Path) -> None:
    World(policy=tiny).play(tmp_path / "again")
    World(policy=tiny, seed=1).play(tmp_path / "other")
    with (
        RunStore.open(finished) as one,
        RunStore.open(tmp_path / "again") as two,
        RunStore.open(tmp_path / "other") as three,
    ):
        assert one.digest() == two.digest()
        assert one.digest() != three.digest()
        assert one.head() == two.head()


def test_a_run_in_pieces_is_the_run_in_one(finished: Path, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "pieces"
    for until in (0, 1, 1, 4, None):
        World(policy=tiny).play(path, until=until)
        if until is not None:
            with RunStore.open(path) as store:
                assert store.head().next_round == until + 1
    with RunStore.open(finished) as one, RunStore.open(path) as two:
        assert one.digest() == two.digest()


def test_the_seven_steps_are_told_in_order(tmp_path: Path) -> None:
    steps = Steps()
    world = World(policy=solver(lambda c: 0.5), channels={"null": {}}, phases=(("largest", 2),))
    world.play(tmp_path / "run", steps)
    assert steps.seen == [(n, step) for n in (1, 2) for step in (*STEPS, "committed")]


def test_null_changes_nothing_over_a_whole_run(tiny: Any, tmp_path: Path) -> None:
    world = World(policy=tiny, channels={"null": {}}, options={"warmstart": 0, "slow_steps": 1})
    with RunStore.create(tmp_path / "run", config={}) as store:
        loop = world.loop(store)
        loop.begin()
        loop.run()
        evaluations = store.evaluations()
        base = {e.task: e for e in evaluations if (e.round, e.weights, e.prompt) == (0, "base", "none")}
        for evaluation in evaluations:
            assert evaluation.rewards == base[evaluation.task].rewards
            assert evaluation.item_ids == base[evaluation.task].item_ids
            assert evaluation.conditioning_id == Conditioning().id
        assert {e.round for e in evaluations} == {0, 3, 6}
        assert all(d.per_prompt_live_base == d.per_prompt_base_live == (0.0, 0.0) for d in store.drift())
        assert {e.action for e in store.entries()} == {"init", "decline"}
        assert len(store.entries(action="decline")) == 6
        # Measured afresh, not looked up: still the base's numbers.
        for task in base:
            fresh = loop.evaluator.cell(
                6, task, ("live", "learned"), conditioning_of(loop.channels, loop.states, task), ""
            )
            assert fresh.rewards == base[task].rewards


def test_rollback_to_the_start_gives_the_bases_numbers(finished: Path, tiny: Any, tmp_path: Path) -> None:
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    world = World(policy=tiny)
    with RunStore.open(path, write=True) as store:
        base = {e.task: e.rewards for e in store.evaluations() if (e.round, e.weights, e.prompt) == (0, "base", "none")}
        store.append_rollback(0, reason="test")
        loop = world.loop(store)
        loop.restore()
        for task in base:
            deployed = conditioning_of(loop.channels, loop.states, task)
            assert deployed.is_identity
            fresh = world.loop(store).evaluator.cell(6, task, ("live", "learned"), deployed, "final")
            assert fresh.rewards == base[task]
        assert store.verify() == []


def test_rollback_of_the_fast_clock_leaves_the_slow_one(finished: Path, tiny: Any, tmp_path: Path) -> None:
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    with RunStore.open(path, write=True) as store:
        before, start = store.head(), store.snapshot_at(0)
        assert before.states["prompts"] != start.states["prompts"]
        head = store.append_rollback(0, channels=["prompts"], reason="test")
        assert head.states == {"lora": before.states["lora"], "prompts": start.states["prompts"]}
        loop = World(policy=tiny).loop(store)
        loop.restore()
        deployed = conditioning_of(loop.channels, loop.states, "largest")
        assert not deployed.exemplars
        assert deployed.delta is not None
        assert store.verify() == []


def test_a_run_goes_on_after_a_rollback_with_new_round_numbers(tiny: Any, tmp_path: Path) -> None:
    world, path = World(policy=tiny), tmp_path / "run"
    world.play(path, until=4)
    with RunStore.open(path, write=True) as store:
        at_two = dict(store.snapshot_at(2).states)
        head = store.append_rollback(2, reason="round 3 went wrong")
        assert (head.round, head.next_round, dict(head.states)) == (2, 5, at_two)
    world.play(path)
    with RunStore.open(path) as store:
        assert [r.round for r in store.rounds()] == [1, 2, 3, 4, 5, 6]
        assert store.verify() == []
        fifth = {e.channel: e for e in store.entries(round=5)}
        assert fifth["lora"].before == at_two["lora"], "round 5 continues from what round 2 left"
        assert {e.action for e in store.entries(round=4)} >= {"rollback"}


def test_logits_come_back_bit_for_bit(finished: Path, tiny: Any, tmp_path: Path) -> None:
    """Through the whole loop: the base's logits at the start, others after learning, the base's after rollback."""
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    linears = {n: m for n, m in tiny.model.named_modules() if isinstance(m, torch.nn.Linear)}

    def logits(store: RunStore) -> torch.Tensor:
        loop = World(policy=tiny).loop(store)
        loop.restore()
        deployed = conditioning_of(loop.channels, loop.states, "smallest")
        with torch.no_grad(), mounted(linears, deployed.delta.payload if deployed.delta else None):
            return plain_logits(tiny.model, tiny.render("2 + 2 = ?", deployed))

    with torch.no_grad():
        base = plain_logits(tiny.model, tiny.render("2 + 2 = ?", Conditioning()))
    with RunStore.open(path, write=True) as store:
        learned = logits(store)
        assert learned.shape != base.shape or not torch.equal(learned, base)
        store.append_rollback(0, reason="test")
        assert torch.equal(logits(store), base)
        store.append_rollback(6, reason="after all")
        assert torch.equal(logits(store), learned)


def test_options_and_order_of_the_run_do_not_leak(tiny: Any, tmp_path: Path) -> None:
    """The policy has served other runs in between: its caches change nothing."""
    world = World(policy=tiny, phases=(("largest", 2),), options={**ALTERNATE, "slow_steps": 1})
    world.play(tmp_path / "one")
    World(policy=tiny, seed=5).play(tmp_path / "between", until=2)
    world.play(tmp_path / "two")
    with RunStore.open(tmp_path / "one") as one, RunStore.open(tmp_path / "two") as two:
        assert one.digest() == two.digest()


def test_the_tiny_task_is_what_it_says() -> None:
    task = tiny_task()
    rewards = [g.reward for g in task.grade(task.split("train")[:4], ["7", "\x00", "", "é"])]
    assert rewards == [1.0, 0.0, 0.0, 0.0]
