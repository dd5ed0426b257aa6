"""One clock after the other, played round by round as the loop does: which rounds each clock has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from twoclock.allocate import PhasedAllocator, PhasedConfig, build_allocator
from twoclock.errors import ConfigError
from twoclock.types import Evidence, Plan, Timescale

BOTH = {"lora": Timescale.SLOW, "prompts": Timescale.FAST}


def play(lengths: Sequence[int], channels: dict[str, Timescale] | None = None, **options: Any) -> list[Plan]:
    """The plans of a stream with phases of these lengths; each is asked of a new allocator, as a resumed run does."""
    history: list[dict[str, Any]] = []
    plans = []
    for phase, length in enumerate(lengths):
        for _ in range(length):
            evidence = Evidence(round=len(history) + 1, phase=phase, task="t", groups=(), conditionings={})
            plan = build_allocator("phased", options).plan(evidence, channels or BOTH, tuple(history))
            plans.append(plan)
            names = [a.channel for a in plan.assignments]
            history.append({"round": evidence.round, "phase": phase, "proposed": names})
    return plans


def rounds_of(channel: str, plans: list[Plan]) -> list[int]:
    return [n for n, plan in enumerate(plans, 1) if channel in {a.channel for a in plan.assignments}]


def reasons_of(plans: list[Plan]) -> list[str]:
    return [a.reason for plan in plans for a in plan.assignments]


def test_prompts_first() -> None:
    plans = play([16], first="fast", rounds=8)
    assert rounds_of("prompts", plans) == [1, 7]
    assert rounds_of("lora", plans) == list(range(9, 17))
    assert all(len(plan.assignments) <= 1 for plan in plans)
    assert reasons_of(plans)[:3] == [
        "search 1 of the fast stretch",
        "search 2 of the fast stretch",
        "round 1 of the slow stretch",
    ]


def test_weights_first() -> None:
    plans = play([16], first="slow", rounds=8)
    assert rounds_of("lora", plans) == list(range(1, 9))
    assert rounds_of("prompts", plans) == [9, 15]


def test_each_phase_begins_anew_with_its_own_number() -> None:
    plans = play([6, 10], first="fast", rounds=[2, 4], every=3)
    assert rounds_of("prompts", plans) == [1, 7, 10]
    assert rounds_of("lora", plans) == [3, 4, 5, 6, *range(11, 17)]


def test_one_number_and_the_last_one_count_for_every_phase_after() -> None:
    one = rounds_of("lora", play([4, 4, 4], first="slow", rounds=2))
    assert one == [1, 2, 5, 6, 9, 10]
    assert rounds_of("lora", play([4, 4, 4], first="slow", rounds=[2])) == one
    assert rounds_of("lora", play([4, 4, 4], first="slow", rounds=[1, 3])) == [1, 5, 6, 7, 9, 10, 11]


def test_over_the_whole_run_there_is_one_change_of_clocks() -> None:
    plans = play([4, 6], first="fast", rounds=6, per_phase=False, every=2)
    assert rounds_of("prompts", plans) == [1, 3, 5]
    assert rounds_of("lora", plans) == [7, 8, 9, 10]


@pytest.mark.parametrize("every", [1, 2, 5, 9])
@pytest.mark.parametrize("first", ["fast", "slow"])
@pytest.mark.parametrize("rounds", [1, 4, 9])
def test_stretches_and_searches_by_their_definition(first: str, rounds: int, every: int) -> None:
    length = 12
    head, tail = list(range(1, rounds + 1)), list(range(rounds + 1, length + 1))
    fast, slow = (head, tail) if first == "fast" else (tail, head)
    plans = play([length], first=first, rounds=rounds, every=every)
    assert rounds_of("lora", plans) == slow
    assert rounds_of("prompts", plans) == fast[::every]


def test_a_clock_without_channels_leaves_its_stretch_empty() -> None:
    plans = play([6], {"prompts": Timescale.FAST}, first="slow", rounds=3, every=1)
    assert rounds_of("prompts", plans) == [4, 5, 6]
    assert rounds_of("lora", play([6], {"lora": Timescale.SLOW}, first="slow", rounds=3)) == [1, 2, 3]


def test_the_defaults_are_six_rounds_of_prompts() -> None:
    assert PhasedAllocator().config == PhasedConfig(first="fast", rounds=6, per_phase=True, every=6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first": "fst"}, "first = 'fst'"),
        ({"rounds": 0}, r"rounds = \[0\]: expected at least 1"),
        ({"rounds": []}, r"rounds = \[\]: expected at least 1"),
        ({"rounds": [8, 0]}, r"rounds = \[8, 0\]: expected at least 1"),
        ({"every": 0}, "every = 0"),
        ({"rounds": [3, 4], "per_phase": False}, "give one number"),
        ({"share": 0.5}, "unknown option 'share'"),
        ({"rounds": "half"}, "rounds"),
    ],
)
def test_mistakes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_allocator("phased", options)


def test_a_config_made_in_python_is_checked_too() -> None:
    with pytest.raises(ConfigError) as caught:
        PhasedConfig(first="fsat", every=0)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 2
    assert "did you mean 'fast'" in caught.value.problems[0]
