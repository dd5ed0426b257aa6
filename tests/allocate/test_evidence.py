"""The allocator 'evidence': what it makes of a history, situation by situation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from twoclock.allocate import EvidenceAllocator, EvidenceConfig, build_allocator
from twoclock.allocate.beliefs import believe, fell
from twoclock.allocate.signals import signals
from twoclock.errors import ConfigError
from twoclock.types import (
    Completion,
    Conditioning,
    Evidence,
    Grade,
    Group,
    Item,
    Plan,
    Rollout,
    Timescale,
)

CLOCKS = {"lora": Timescale.SLOW, "prompts": Timescale.FAST}
LIVE, OTHER = Conditioning(system="live"), Conditioning(system="other")


def seen(
    rewards: list[list[float]],
    others: list[list[float]] | None = None,
    *,
    round: int = 1,
    task: str = "t",
    age: int = 0,
) -> Evidence:
    """A round: for each item the rewards under what is deployed, and under one alternative."""
    groups = []
    for n, mine in enumerate(rewards):
        item = Item(id=str(n), prompt=str(n))
        rows = [(LIVE, r) for r in mine] + [(OTHER, r) for r in (others[n] if others else [])]
        groups.append(
            Group(
                item=item,
                rollouts=tuple(
                    Rollout(
                        item_id=item.id,
                        conditioning_id=c.id,
                        seed=k,
                        completion=Completion(tokens=(1,), logprobs=(), text="", finish="stop", prompt_tokens=1),
                        grade=Grade(reward=r),
                        age=age,
                    )
                    for k, (c, r) in enumerate(rows)
                ),
            )
        )
    return Evidence(
        round=round,
        phase=0,
        task=task,
        groups=tuple(groups),
        conditionings={c.id: c for c in (LIVE, OTHER)},
        deployed={str(n): LIVE.id for n in range(len(rewards))},
    )


def past(
    number: int, reward: float, *, task: str = "t", error: float = 0.05, room: float = 0.3, **outcomes: Any
) -> Any:
    """A past round. ``prompts="won" | "lost" | "pool"``, ``lora="commit" | "reject"``."""
    found: dict[str, Any] = {}
    if kind := outcomes.get("prompts"):
        metrics = {"trial_p": 0.01, "trial_gain": 0.4, "changes_deployed": float(kind == "won")}
        action = "reject" if kind == "lost" else "commit"
        found["prompts"] = {"action": action, "metrics": metrics, "rollouts": 200, "tokens": 9000, "trained_tokens": 0}
    if kind := outcomes.get("lora"):
        found["lora"] = {"action": kind, "metrics": {}, "rollouts": 0, "tokens": 0, "trained_tokens": 2000}
    return {
        "round": number,
        "phase": 0,
        "task": task,
        "proposed": list(found),
        "outcomes": found,
        "signals": {"deployed": reward, "deployed_se": error, "room_slow": room, "items": 8.0},
        "taken_back": list(outcomes.get("taken_back", ())),
    }


def plan(history: list[Mapping[str, Any]], now: Evidence, **options: Any) -> Plan:
    return build_allocator("evidence", options).plan(now, CLOCKS, history)


def asked(found: Plan) -> list[str]:
    return [a.channel for a in found.assignments]


HALF = [[1.0, 0.0, 1.0, 0.0]] * 8
NONE = [[0.0] * 4] * 8
ALL = [[1.0] * 4] * 8


# ------------------------------------------------------------------------------------------------------------ signals


def test_signals_of_a_round_worked_by_hand() -> None:
    found = signals(seen([[1, 0], [1, 1], [0, 0], [0, 1]], [[1, 1], [1, 1], [1, 0], [0, 0]]))
    assert found["deployed"] == pytest.approx((0.5 + 1 + 0 + 0.5) / 4)
    assert found["alive"] == 0.5
    assert found["dead"] == found["solved"] == 0.25
    assert found["room_slow"] == pytest.approx((0.5 + 0.5) / 4)
    assert found["room_fast"] == pytest.approx((0.5 + 0 + 0.5 - 0.5) / 4)
    gaps = [0.5, 0.0, 0.5, -0.5]
    assert found["room_fast_se"] == pytest.approx(np.std(gaps, ddof=1) / 2)


def test_rollouts_of_earlier_rounds_say_nothing_of_now() -> None:
    assert signals(seen(HALF, age=1)) == {}


def test_equal_rewards_are_no_certainty() -> None:
    assert signals(seen(NONE))["deployed_se"] > 0.05
    assert signals(seen([[0.0]] * 64))["deployed_se"] < signals(seen([[0.0]] * 4))["deployed_se"]


# ------------------------------------------------------------------------------------------------------------- beliefs


def test_a_task_and_a_fall_begin_a_regime() -> None:
    history = [past(1, 0.8), past(2, 0.82), past(3, 0.79), past(4, 0.1), past(5, 0.12)]
    found = believe(history, "t", {"deployed": 0.1, "deployed_se": 0.05}, CLOCKS)
    assert (found.start, found.changed_outside, found.rounds) == (4, True, 2)
    assert "fell from 0.80 to 0.10" in found.why
    found = believe(history, "u", {"deployed": 0.1, "deployed_se": 0.05}, CLOCKS)
    assert (found.start, found.changed_outside, found.why) == (6, False, "the task changed to 'u'")


def test_noise_seldom_begins_a_regime() -> None:
    rng = np.random.default_rng(0)
    begun = 0
    for _ in range(200):
        history = []
        for number in range(40):
            items = rng.random((8, 8)) < 0.5
            means = items.mean(1)
            history.append(past(number + 1, float(means.mean()), error=float(means.std(ddof=1) / math.sqrt(8))))
        begun += believe(history, "t", {}, CLOCKS).changed_outside
    assert begun / 200 <= 0.15


@pytest.mark.parametrize(("level", "now", "expected"), [(0.8, 0.2, True), (0.8, 0.75, False), (0.2, 0.8, False)])
def test_a_fall_is_large_and_sure(level: float, now: float, expected: bool) -> None:
    assert fell(level, 0.02, now, 0.02, 3.5) is expected


def test_the_slope_is_least_squares_with_a_level_of_its_own_after_each_prompt() -> None:
    """Two segments of equal slope with a jump between them: a line through all would be far too steep."""
    history = [
        past(n, 0.2 + 0.01 * (n - 1), lora="commit", **({"prompts": "won"} if n == 6 else {})) for n in range(1, 7)
    ]
    history += [past(n, 0.6 + 0.01 * (n - 1), lora="commit") for n in range(7, 13)]
    slope = believe(history, "t", {}, CLOCKS).slope
    mean, deviation = slope.posterior(0.0, 1e6)
    assert mean == pytest.approx(0.01)
    x = np.arange(6.0)
    assert deviation == pytest.approx(0.05 / math.sqrt(2 * ((x - x.mean()) ** 2).sum()))


def test_the_slopes_posterior_is_the_normal_one() -> None:
    rng = np.random.default_rng(1)
    x, y = np.arange(20.0), 0.01 * np.arange(20.0) + rng.normal(0, 0.05, 20)
    history = [past(n + 1, float(y[n]), lora="commit") for n in range(20)]
    mean, deviation = believe(history, "t", {}, CLOCKS).slope.posterior(0.02, 0.01)
    weight = 1 / 0.05**2
    grid = np.linspace(-0.1, 0.1, 20001)
    centred = y - y.mean()
    log = -0.5 * weight * ((centred[None] - grid[:, None] * (x - x.mean())[None]) ** 2).sum(1)
    log += -0.5 * ((grid - 0.02) / 0.01) ** 2
    density = np.exp(log - log.max())
    density /= density.sum()
    assert mean == pytest.approx(float((grid * density).sum()), abs=1e-6)
    assert deviation == pytest.approx(math.sqrt(float((grid**2 * density).sum()) - mean**2), rel=1e-3)


# --------------------------------------------------------------------------------------------------------- the decision


def test_the_fast_clock_goes_first() -> None:
    found = plan([], seen(HALF))
    assert asked(found) == ["prompts"]
    assert "the fast clock goes first" in dict(found.passed)["lora"]


def test_the_weights_learn_once_a_prompt_has_settled() -> None:
    found = plan([past(1, 0.1, prompts="won")], seen(HALF, round=2))
    assert asked(found) == ["lora"]
    assert "a search has just paid" in dict(found.passed)["prompts"]


def test_two_searches_in_vain_let_the_weights_in() -> None:
    one = plan([past(1, 0.5, prompts="lost")], seen(HALF, round=2))
    assert asked(one) == ["prompts"], "no pause while the weights wait"
    both = plan([past(1, 0.5, prompts="lost"), past(2, 0.5, prompts="lost")], seen(HALF, round=3))
    assert asked(both) == ["lora"]


def test_searches_in_vain_wait_twice_as_long_each_time() -> None:
    history = [past(1, 0.5, prompts="lost"), past(2, 0.5, prompts="lost")]
    waited = []
    for number in range(3, 120):
        found = plan(history, seen(HALF, round=number))
        again = "prompts" in asked(found)
        history.append(past(number, 0.5, **({"prompts": "lost"} if again else {})))
        if again:
            waited.append(number)
    assert np.diff([2, *waited]).tolist() == [8, 16, 32, 64][: len(waited)]


def test_each_lost_trial_makes_the_next_one_stricter() -> None:
    alphas = []
    history: list[Mapping[str, Any]] = []
    for number in range(1, 200):
        found = plan(history, seen(HALF, round=number), longest=1)
        assigned = [a for a in found.assignments if a.channel == "prompts"]
        history.append(past(number, 0.5, **({"prompts": "lost"} if assigned else {})))
        alphas += [a.budget.alpha for a in assigned]
    assert alphas[:3] == pytest.approx([0.05 * 6 / (math.pi * k) ** 2 for k in (1, 2, 3)])
    assert sum(a for a in alphas if a is not None) < 0.05


def test_what_is_solved_is_not_paid_for() -> None:
    found = plan([past(1, 0.1, prompts="won")], seen(ALL, round=2))
    assert asked(found) == []
    assert all("solved" in reason for _, reason in found.passed)


def test_where_no_answers_differ_the_weights_are_left_alone() -> None:
    history = [past(n, 0.0, room=0.0, prompts="lost") for n in (1, 2)]
    found = plan(history, seen(NONE, round=3))
    assert "lora" not in asked(found)
    assert "no gradient" in dict(found.passed)["lora"]


def test_steps_that_lead_nowhere_end() -> None:
    rng = np.random.default_rng(2)
    stopped = []
    for _ in range(40):
        history = [past(1, 0.5, prompts="lost"), past(2, 0.5, prompts="lost")]
        for number in range(3, 80):
            if "lora" not in asked(plan(history, seen(HALF, round=number))):
                stopped.append(number)
                break
            history.append(past(number, 0.5 + rng.normal(0, 0.05), lora="commit"))
    assert len(stopped) == 40
    assert np.median(stopped) <= 50


def test_steps_that_lead_somewhere_go_on() -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        history = [past(1, 0.2, prompts="lost"), past(2, 0.2, prompts="lost")]
        for number in range(3, 50):
            right = round(20 * (0.2 + 0.01 * number))
            rewards = [[1.0] * right + [0.0] * (20 - right)] * 8
            found = plan(history, seen(rewards, round=number))
            assert "lora" in asked(found), found.passed
            history.append(past(number, 0.2 + 0.01 * number + rng.normal(0, 0.05), lora="commit"))


def test_after_a_fall_the_fast_clock_goes_first_again() -> None:
    history = [past(1, 0.3, prompts="won"), *(past(n, 0.8, lora="commit") for n in range(2, 8))]
    found = plan(history, seen(NONE, round=8))
    assert asked(found) == ["prompts"]
    assert "the reward fell" in found.assignments[0].reason


def test_a_version_that_was_taken_back_is_not_tried_again_at_once() -> None:
    history = [past(1, 0.5, prompts="lost"), past(2, 0.5, prompts="lost"), past(3, 0.5, taken_back=["lora"])]
    found = plan(history, seen(HALF, round=4))
    assert "lora" not in asked(found)
    assert "taken back" in dict(found.passed)["lora"]


def test_a_memory_costs_nothing_and_is_always_asked() -> None:
    clocks = {"cases": Timescale.FAST, "lora": Timescale.SLOW}
    row = past(1, 0.5)
    row["proposed"] = ["cases"]
    row["outcomes"] = {"cases": {"action": "commit", "metrics": {}, "rollouts": 0, "tokens": 0, "trained_tokens": 0}}
    found = EvidenceAllocator().plan(seen(HALF, round=2), clocks, [row])
    assert asked(found) == ["cases", "lora"]


def test_a_memory_learns_between_the_searches_of_a_schedule_too() -> None:
    clocks = {"cases": Timescale.FAST, "prompts": Timescale.FAST, "lora": Timescale.SLOW}
    allocator = build_allocator("alternate", {"slow_steps": 4, "warmstart": 0})
    history: list[Mapping[str, Any]] = []
    turns: dict[str, list[int]] = {name: [] for name in clocks}
    for number in range(1, 14):
        found = allocator.plan(seen(HALF, round=number), clocks, history)
        row = past(number, 0.5, prompts="won", lora="commit")
        row["outcomes"]["cases"] = {**row["outcomes"]["prompts"], "rollouts": 0, "tokens": 0}
        names = [a.channel for a in found.assignments]
        history.append({**row, "proposed": names, "outcomes": {n: row["outcomes"][n] for n in names}})
        for name in names:
            turns[name].append(number)
    assert turns["prompts"] == [1, 5, 9, 13]
    assert turns["cases"] == turns["lora"] == list(range(1, 14))


def test_every_mistake_in_its_options_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        EvidenceConfig(worth=0, horizon=0, alpha=1.5, patience=0)
    assert len(caught.value.problems) == 4
