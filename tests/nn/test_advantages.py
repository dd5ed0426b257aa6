"""Advantages of whole batches by hand, and the penalty of running long."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from twoclock.nn.advantages import advantages, soft_overlong_penalty  # noqa: E402
from twoclock.nn.objective_table import OBJECTIVES, Objective  # noqa: E402

STD, CENTRED, ALONE, BATCH = (OBJECTIVES[name] for name in ("grpo", "dr_grpo", "rloo", "reinforce"))
GROUPS = [[1.0, 0.0, 0.0, 0.0], [0.5, 0.5], [1.0], [0.0, 1.0]]


def test_each_kind_by_hand() -> None:
    # First group: mean 1/4, unbiased variance (9/16 + 3/16) / 3 = 1/4. Last: mean 1/2, variance 1/2.
    root = math.sqrt(0.5)
    worked = [[1.5, -0.5, -0.5, -0.5], [0.0, 0.0], [0.0], [-0.5 / root, 0.5 / root]]
    assert [a for g in advantages(STD, GROUPS, eps=0.0) for a in g] == pytest.approx([a for g in worked for a in g])
    assert advantages(CENTRED, GROUPS) == [[0.75, -0.25, -0.25, -0.25], [0.0, 0.0], [0.0], [-0.5, 0.5]]
    # 1 − 0; 0 − 1/3 three times; in pairs the difference.
    third = -1 / 3
    assert advantages(ALONE, GROUPS) == [[1.0, third, third, third], [0.0, 0.0], [0.0], [-1.0, 1.0]]


def test_batch_holds_each_rollout_against_all_others() -> None:
    # Nine rollouts, 4 in all: a 1 stands against 3/8, a 0.5 against 3.5/8, a 0 against 4/8.
    one, half, nothing = 1 - 3 / 8, 0.5 - 3.5 / 8, -4 / 8
    expected = [[one, nothing, nothing, nothing], [half, half], [one], [nothing, one]]
    assert advantages(BATCH, GROUPS) == [pytest.approx(row) for row in expected]


def test_the_epsilon_stands_beside_the_deviation() -> None:
    # Deviation 1/sqrt(2): with ε as large, the advantage is half of what it would be.
    (row,) = advantages(STD, [[0.0, 1.0]], eps=math.sqrt(0.5))
    assert row == pytest.approx([-math.sqrt(0.5) / 2, math.sqrt(0.5) / 2])


@pytest.mark.parametrize("objective", [STD, CENTRED, ALONE])
@pytest.mark.parametrize("group", [[], [0.7], [0.1] * 7, [1.0] * 3, [-0.0, 0.0]])
def test_dead_groups_give_exact_zeros(objective: Objective, group: list[float]) -> None:
    row, live = advantages(objective, [group, [0.0, 1.0]])
    assert row == [0.0] * len(group)
    assert all(math.copysign(1.0, a) == 1.0 for a in row)
    assert 0.0 not in live


def test_dead_groups_have_a_gradient_by_batch_and_dead_batches_none() -> None:
    assert advantages(BATCH, [[1.0, 1.0], [0.0, 0.0]]) == [pytest.approx([2 / 3] * 2), pytest.approx([-2 / 3] * 2)]
    assert advantages(BATCH, [[0.1] * 3, [0.1] * 4]) == [[0.0] * 3, [0.0] * 4]
    assert advantages(BATCH, [[0.7]]) == [[0.0]]
    assert advantages(BATCH, []) == []
    assert advantages(BATCH, [[], [1.0, 0.0], []]) == [[], [1.0, -1.0], []]


@pytest.mark.parametrize("objective", [STD, CENTRED, ALONE, BATCH])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_no_numbers_are_refused(objective: Objective, bad: float) -> None:
    with pytest.raises(ValueError, match="rollout 2 of group 1"):
        advantages(objective, [[0.0, 1.0], [0.5, 0.5, bad]])


# Eighths add up without rounding, so that only the divisions round.
rewards = st.integers(0, 8).map(lambda n: n / 8)
batches = st.lists(st.lists(rewards, max_size=6), max_size=5)


@pytest.mark.parametrize("kind", ["std", "centred", "leave_one_out", "batch"])
@given(data=st.data(), groups=batches)
def test_the_order_of_rollouts_and_of_groups_changes_nothing(
    kind: str, data: st.DataObject, groups: list[list[float]]
) -> None:
    objective = dataclasses.replace(STD, advantage=kind)  # type: ignore[arg-type]
    order = data.draw(st.permutations(range(len(groups))))
    inner = [data.draw(st.permutations(range(len(g)))) for g in groups]
    plain = advantages(objective, groups)
    moved = advantages(objective, [[groups[g][i] for i in inner[g]] for g in order])
    for row, g in zip(moved, order, strict=True):
        assert row == pytest.approx([plain[g][i] for i in inner[g]], rel=1e-12, abs=1e-12)


@given(group=st.lists(rewards, min_size=2, max_size=9))
def test_leave_one_out_is_the_centred_one_enlarged(group: list[float]) -> None:
    count = len(group)
    (left,), (centred,) = advantages(ALONE, [group]), advantages(CENTRED, [group])
    assert left == pytest.approx([count / (count - 1) * a for a in centred], rel=1e-12, abs=1e-12)
    assert left == [pytest.approx(r - (sum(group) - r) / (count - 1), abs=1e-12) for r in group]
    assert advantages(BATCH, [group]) == [left]


@given(groups=batches)
def test_advantages_sum_to_nothing(groups: list[list[float]]) -> None:
    for objective in (STD, CENTRED, ALONE):
        assert all(sum(row) == pytest.approx(0.0, abs=1e-9) for row in advantages(objective, groups))
    assert sum(a for row in advantages(BATCH, groups) for a in row) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("length", "penalty"),
    # Published setting: 20480 with a buffer of 4096, so the line runs from 16384.
    [(0, 0.0), (16384, 0.0), (16385, -1 / 4096), (17408, -0.25), (18432, -0.5), (20480, -1.0), (20481, -1.0)],
)
def test_the_penalty_of_running_long(length: int, penalty: float) -> None:
    assert soft_overlong_penalty(length, max_tokens=20480, buffer=4096) == penalty


def test_the_penalty_without_a_buffer_is_a_step() -> None:
    assert [soft_overlong_penalty(n, max_tokens=4, buffer=0) for n in (3, 4, 5)] == [0.0, 0.0, -1.0]
    assert [soft_overlong_penalty(n, max_tokens=4, buffer=4) for n in (0, 1, 4)] == [0.0, -0.25, -1.0]


@pytest.mark.parametrize(("length", "most", "buffer"), [(3, 4, 5), (3, 4, -1), (-1, 4, 2)])
def test_a_penalty_that_makes_no_sense_is_refused(length: int, most: int, buffer: int) -> None:
    with pytest.raises(ValueError, match="got"):
        soft_overlong_penalty(length, max_tokens=most, buffer=buffer)
