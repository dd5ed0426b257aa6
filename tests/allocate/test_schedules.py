"""Who learns when: the fixed and the alternating allocator, played round by round as the loop does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from twoclock.allocate import (
    ALLOCATORS,
    AlternateAllocator,
    AlternateConfig,
    FixedAllocator,
    FixedConfig,
    build_allocator,
)
from twoclock.contracts import Allocator
from twoclock.errors import ConfigError
from twoclock.types import Budget, Evidence, Plan, Timescale

BOTH = {"prompts": Timescale.FAST, "lora": Timescale.SLOW}


def play(
    allocator: Allocator,
    rounds: int,
    channels: Mapping[str, Timescale] = BOTH,
    phase_of: Mapping[int, int] | None = None,
) -> list[Plan]:
    history: list[dict[str, Any]] = []
    plans = []
    for n in range(1, rounds + 1):
        phase = (phase_of or {}).get(n, history[-1]["phase"] if history else 0)
        evidence = Evidence(round=n, phase=phase, task="t", groups=(), conditionings={})
        frozen = tuple(dict(past) for past in history)
        plan = allocator.plan(evidence, channels, history)
        assert allocator.plan(evidence, channels, history) == plan
        assert tuple(history) == frozen
        plans.append(plan)
        history.append({"round": n, "phase": phase, "proposed": [a.channel for a in plan.assignments]})
    return plans


def rounds_of(channel: str, plans: list[Plan]) -> list[int]:
    return [n for n, plan in enumerate(plans, 1) if channel in {a.channel for a in plan.assignments}]


def alternate(**options: Any) -> AlternateAllocator:
    return AlternateAllocator(AlternateConfig(**options))


def test_the_published_interleaving() -> None:
    plans = play(alternate(slow_steps=6, warmstart=6), 30)
    assert rounds_of("prompts", plans) == [6, 12, 18, 24, 30]
    assert rounds_of("lora", plans) == list(range(1, 31))
    assert plans[0].assignments[0].reason == "each round"
    assert plans[5].assignments[0].reason == "the warm-start of 6 slow rounds is over"
    assert plans[11].assignments[0].reason == "6 slow rounds since the last search"


def test_the_search_goes_before_the_rounds_own_gradient_step() -> None:
    plans = play(alternate(), 6)
    assert [a.channel for a in plans[5].assignments] == ["prompts", "lora"]


@pytest.mark.parametrize(
    ("slow_steps", "warmstart", "expected"),
    [(6, 0, [1, 7, 13]), (6, 1, [1, 7, 13]), (3, 8, [8, 11, 14]), (1, 0, list(range(1, 15))), (4, 20, [])],
)
def test_other_periods(slow_steps: int, warmstart: int, expected: list[int]) -> None:
    assert rounds_of("prompts", play(alternate(slow_steps=slow_steps, warmstart=warmstart), 14)) == expected


def test_a_change_of_phase_searches_only_where_asked_and_counts_from_there() -> None:
    switch = {1: 0, 9: 1}
    assert rounds_of("prompts", play(alternate(), 20, phase_of=switch)) == [6, 12, 18]
    assert rounds_of("prompts", play(alternate(search_on_switch=True), 20, phase_of=switch)) == [6, 9, 15]
    plans = play(alternate(search_on_switch=True), 9, phase_of=switch)
    assert plans[8].assignments[0].reason == "the phase has changed"


def test_only_slow_rounds_count_and_without_slow_channels_all_do() -> None:
    fast_only = {"prompts": Timescale.FAST}
    assert rounds_of("prompts", play(alternate(slow_steps=3, warmstart=2), 9, fast_only)) == [2, 5, 8]
    history = [{"round": n, "phase": 0, "proposed": ["lora"] if n > 3 else []} for n in range(1, 8)]
    evidence = Evidence(round=8, phase=0, task="t", groups=(), conditionings={})
    plan = alternate(warmstart=6).plan(evidence, BOTH, history)  # 4 slow rounds and this one
    assert [a.channel for a in plan.assignments] == ["lora"]
    plan = alternate(warmstart=5).plan(evidence, BOTH, history)
    assert [a.channel for a in plan.assignments] == ["prompts", "lora"]


def test_slow_channels_alone_learn_each_round() -> None:
    assert rounds_of("lora", play(alternate(), 5, {"lora": Timescale.SLOW})) == [1, 2, 3, 4, 5]


def test_fixed_periods() -> None:
    allocator = FixedAllocator(FixedConfig(every={"prompts": 3, "null": 0}))
    plans = play(allocator, 7, {**BOTH, "null": Timescale.FAST})
    assert rounds_of("prompts", plans) == [3, 6]
    assert rounds_of("lora", plans) == [1, 2, 3, 4, 5, 6, 7]
    assert rounds_of("null", plans) == []
    assert [a.channel for a in plans[2].assignments] == ["prompts", "lora"]
    assert plans[2].assignments[0].reason == "every 3 rounds"


def test_fixed_refuses_a_channel_that_is_not_in_the_run() -> None:
    with pytest.raises(ConfigError, match="'promts'; did you mean 'prompts'"):
        play(FixedAllocator(FixedConfig(every={"promts": 3})), 1)


@pytest.mark.parametrize("name", sorted(ALLOCATORS))
def test_budgets_follow_the_clock(name: str) -> None:
    options = {"fast_rollouts": 99, "fast_tokens": 5000, "slow_rollouts": 7, "drift": 0.2}
    if name == "alternate":
        options["warmstart"] = 0
    plans = play(build_allocator(name, options), 12)  # enough rounds for each clock to have its turn
    budgets = {a.channel: a.budget for plan in plans for a in plan.assignments}
    assert replace(budgets["prompts"], alpha=None) == Budget(rollouts=99, tokens=5000)
    assert budgets["lora"] == Budget(rollouts=7, drift=0.2)


def test_bad_options_are_told_all_at_once() -> None:
    with pytest.raises(ConfigError, match="unknown allocator 'alternat'; did you mean 'alternate'"):
        build_allocator("alternat", {})
    with pytest.raises(ConfigError) as caught:
        build_allocator("alternate", {"slow_steps": 0, "warmstart": -1, "drift": float("nan"), "slowsteps": 3})
    assert len(caught.value.problems) == 4
    assert "did you mean 'slow_steps'" in str(caught.value)
    with pytest.raises(ConfigError, match=r"every\.prompts = -1"):
        build_allocator("fixed", {"every": {"prompts": -1}})
    with pytest.raises(ConfigError, match=r"every\.prompts = 'often'"):
        build_allocator("fixed", {"every": {"prompts": "often"}})
