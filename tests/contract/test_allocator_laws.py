"""The laws of allocators and gates, run over every one in the tables.

Promises: a plan is a pure function of its arguments; it names each channel at most once and no other; budgets are those
of the channel's clock; fast channels act before slow ones. A gate changes nothing, judges alike when asked again, and
answers a proposal whose numbers are none with a rejection.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from contract_world import lived, logits, model_bits, same_bits

from tiny_world import channel_names, gather, make_channel, tiny_bench, tiny_task
from twoclock.allocate import ALLOCATORS, GATES, GateConfig, build_allocator, gate_for
from twoclock.errors import ConfigError
from twoclock.types import Budget, Conditioning, Cost, Evidence, Proposal, Timescale

CLOCKS = {name: make_channel(name).timescale for name in channel_names()}
TASK = tiny_task()


def evidence(round: int, phase: int = 0) -> Evidence:
    return Evidence(round=round, phase=phase, task="t", groups=(), conditionings={})


def play(name: str, clocks: dict[str, Timescale], rounds: int = 24, **options: Any) -> list[Any]:
    """The plans of a run in which every channel that is asked proposes."""
    allocator = build_allocator(name, options)
    history: list[dict[str, Any]] = []
    plans = []
    for number in range(1, rounds + 1):
        phase = number // 9
        plan = allocator.plan(evidence(number, phase), clocks, history)
        again = build_allocator(name, options).plan(evidence(number, phase), dict(clocks), [dict(h) for h in history])
        assert plan == again, "a plan must follow from its arguments, not from what the object saw before"
        plans.append(plan)
        history.append({"round": number, "phase": phase, "proposed": [a.channel for a in plan.assignments]})
    return plans


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize("only", [None, Timescale.FAST, Timescale.SLOW])
def test_plans_are_pure_and_name_what_there_is(name: str, only: Timescale | None) -> None:
    clocks = {channel: clock for channel, clock in CLOCKS.items() if only in (None, clock)}
    limits = {"fast_rollouts": 50, "slow_rollouts": 7, "drift": 0.25}
    plans = play(name, clocks, **limits)
    asked = {a.channel for plan in plans for a in plan.assignments}
    assert asked == set(clocks), "every channel has its turn some time"
    for plan in plans:
        order = [a.channel for a in plan.assignments]
        assert len(set(order)) == len(order)
        assert [clocks[c] for c in order] == sorted((clocks[c] for c in order), key=lambda c: c is Timescale.SLOW)
        for assignment in plan.assignments:
            slow = clocks[assignment.channel] is Timescale.SLOW
            assert replace(assignment.budget, alpha=None) == (
                Budget(rollouts=7, drift=0.25) if slow else Budget(rollouts=50)
            )
            assert assignment.reason


@pytest.mark.parametrize("name", ALLOCATORS)
def test_a_run_without_channels_has_empty_plans(name: str) -> None:
    assert all(plan.assignments == () for plan in play(name, {}, rounds=4))


@pytest.mark.parametrize("name", ALLOCATORS)
def test_every_mistake_in_the_options_is_told(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_allocator(name, {"fast_rollouts": -1, "drift": float("nan"), "slow_tokns": 3})
    text = str(caught.value)
    assert all(part in text for part in ("fast_rollouts = -1", "drift = nan", "slow_tokens"))


@pytest.fixture(params=["prompts", "lora"])
def offer(request: pytest.FixtureRequest, tiny: Any) -> tuple[Any, Any, Proposal[Any]]:
    """(channel, live state, a proposal): real ones, of either clock."""
    channel = make_channel(request.param)
    live = lived(channel, tiny, TASK, rounds=1)
    then = lived(channel, tiny, TASK, rounds=3)
    return channel, live, Proposal(channel=channel.name, state=then, cause="test", cost=Cost(), metrics={"loss": 1.0})


@pytest.mark.parametrize("gate", GATES)
def test_judging_changes_nothing_and_is_repeatable(gate: Any, offer: Any, tiny: Any) -> None:
    channel, live, proposal = offer
    budget = Budget(drift=0.1)
    judge = gate_for(channel.timescale, GateConfig(fast=gate, slow=gate, trial_items=16))
    seen = gather(tiny, TASK)
    before = channel.dump(live), channel.dump(proposal.state), model_bits(tiny), logits(tiny, Conditioning())
    verdicts = [judge.judge(tiny_bench(tiny, TASK), channel, live, proposal, seen, budget, 3) for _ in range(2)]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].reason
    assert (channel.dump(live), channel.dump(proposal.state), model_bits(tiny)) == before[:3]
    assert same_bits(logits(tiny, Conditioning()), before[3])


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_rejected(gate: Any, value: float, offer: Any, tiny: Any) -> None:
    channel, live, proposal = offer
    bad = replace(proposal, metrics={"loss": value})
    judge = gate_for(channel.timescale, GateConfig(fast=gate, slow=gate))
    verdict = judge.judge(tiny_bench(tiny, TASK), channel, live, bad, gather(tiny, TASK), Budget(drift=1.0), 3)
    assert not verdict.accepted
    assert "loss" in verdict.reason


@pytest.mark.parametrize("gate", ["paired", "drift"])
def test_a_gate_stays_inside_its_bench(gate: Any, offer: Any, tiny: Any) -> None:
    channel, live, proposal = offer
    judge = gate_for(channel.timescale, GateConfig(fast=gate, slow=gate, trial_items=16))
    for rollouts in (0, 5, 11, 40):
        bench = tiny_bench(tiny, TASK, budget=Budget(rollouts=rollouts))
        verdict = judge.judge(bench, channel, live, proposal, gather(tiny, TASK), Budget(drift=0.1), 3)
        assert bench.spent.rollouts <= rollouts
        assert verdict.reason
