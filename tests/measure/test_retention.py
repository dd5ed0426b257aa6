"""The continual-learning metrics on a matrix worked by hand, their identities, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from twoclock.measure import (
    ScoreMatrix,
    anytime_average,
    backward_transfer,
    final_average,
    forgetting,
    forward_transfer,
    summarise_retention,
)

BY_HAND = np.array(
    [
        [0.1, 0.2, 0.3],  # the start
        [0.9, 0.3, 0.1],
        [0.7, 0.8, 0.4],
        [0.6, 0.9, 0.7],  # after the third phase
    ]
)


def test_three_tasks_by_hand() -> None:
    assert final_average(BY_HAND) == pytest.approx((0.6 + 0.9 + 0.7) / 3)
    assert anytime_average(BY_HAND) == pytest.approx((0.9 + (0.7 + 0.8) / 2 + (0.6 + 0.9 + 0.7) / 3) / 3)
    assert backward_transfer(BY_HAND) == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
    assert forgetting(BY_HAND) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)
    assert forward_transfer(BY_HAND) == pytest.approx(((0.3 - 0.2) + (0.4 - 0.3)) / 2)


def test_what_was_there_before_training_can_be_forgotten() -> None:
    scores = BY_HAND.copy()
    scores[0, 0] = 1.0
    assert forgetting(scores) == pytest.approx(((1.0 - 0.6) + (0.8 - 0.9)) / 2)
    assert backward_transfer(scores) == backward_transfer(BY_HAND)


@given(
    st.integers(2, 5).flatmap(lambda t: arrays(np.float64, (t + 1, t), elements=st.floats(0, 1, allow_subnormal=False)))
)
def test_identities(scores: np.ndarray) -> None:
    assert forgetting(scores) >= -backward_transfer(scores) - 1e-12
    assert final_average(scores) == pytest.approx(scores[-1].mean())
    kept = scores.copy()
    kept[-1] = np.max(scores, axis=0)  # nothing lost against any time
    assert forgetting(kept) <= 1e-12
    assert backward_transfer(kept) >= -1e-12
    batch = np.stack([scores, kept])
    for metric in (final_average, anytime_average, backward_transfer, forgetting, forward_transfer):
        assert metric(batch) == pytest.approx([float(metric(scores)), float(metric(kept))])


def test_one_task_has_no_transfer() -> None:
    scores = np.array([[0.2], [0.8]])
    assert final_average(scores) == anytime_average(scores) == pytest.approx(0.8)
    assert np.isnan(backward_transfer(scores))
    assert np.isnan(forgetting(scores))
    assert np.isnan(forward_transfer(scores))


@pytest.mark.parametrize("shape", [(3, 3), (1, 0), (4,), (2, 3)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="T \\+ 1 rows"):
        final_average(np.zeros(shape))


def binary_matrix(scores: np.ndarray, items: int, missing: tuple[tuple[int, int], ...] = ()) -> ScoreMatrix:
    """Every item right or wrong so that the means are ``scores`` exactly."""
    rewards = tuple(
        tuple(
            None if (i, j) in missing else {f"t{j}-{k}": float(k < round(score * items)) for k in range(items)}
            for j, score in enumerate(row)
        )
        for i, row in enumerate(scores)
    )
    tasks = tuple(f"task {j}" for j in range(scores.shape[1]))
    return ScoreMatrix(tasks=tasks, rounds=tuple(range(0, 10 * len(scores), 10)), rewards=rewards)


def test_a_summary_carries_estimates_counts_and_intervals() -> None:
    matrix = binary_matrix(BY_HAND, 100)
    assert matrix.means == pytest.approx(BY_HAND)
    summary = summarise_retention(matrix, seed=1)
    assert summary == summarise_retention(matrix, seed=1)
    for name, metric in (
        ("final_average", final_average),
        ("anytime_average", anytime_average),
        ("backward_transfer", backward_transfer),
        ("forgetting", forgetting),
        ("forward_transfer", forward_transfer),
    ):
        interval = getattr(summary, name)
        assert interval.estimate == pytest.approx(metric(BY_HAND))
        assert interval.low < interval.estimate < interval.high
        assert interval.n == 300
    # Three independent tasks of 100 items: the standard error of the mean of means.
    error = np.sqrt(sum(p * (1 - p) / 100 for p in BY_HAND[-1])) / 3
    width = summary.final_average.high - summary.final_average.low
    assert width == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert matrix.cell(3, 1).estimate == pytest.approx(0.9)
    assert matrix.cell(3, 1).method == "wilson"


def test_an_unfinished_stream_is_measured_as_far_as_it_went() -> None:
    whole = binary_matrix(BY_HAND, 50)
    part = ScoreMatrix(tasks=whole.tasks, rounds=whole.rounds[:3], rewards=whole.rewards[:3])
    summary = summarise_retention(part)
    assert summary.phases == 2
    assert summary.final_average.estimate == pytest.approx((0.7 + 0.8) / 2)
    assert summary.backward_transfer.estimate == pytest.approx(0.7 - 0.9)
    start = ScoreMatrix(tasks=whole.tasks, rounds=(0,), rewards=whole.rewards[:1])
    assert summarise_retention(start).phases == 0
    assert not summarise_retention(start).final_average.is_known
    empty = ScoreMatrix(tasks=(), rounds=(), rewards=())
    assert summarise_retention(empty).phases == 0
    assert empty.means.shape == (0, 0)


def test_only_metrics_that_need_a_missing_cell_are_unknown() -> None:
    # Later tasks were not measured before their phase: no forward transfer, everything else stands.
    unseen = tuple((i, j) for j in range(3) for i in range(0, j + 1))
    summary = summarise_retention(binary_matrix(BY_HAND, 50, missing=unseen))
    assert not summary.forward_transfer.is_known
    assert summary.forgetting.estimate == pytest.approx(forgetting(BY_HAND))
    assert summary.anytime_average.estimate == pytest.approx(anytime_average(BY_HAND))
    gap = summarise_retention(binary_matrix(BY_HAND, 50, missing=((1, 0),)))
    assert not gap.forgetting.is_known
    assert not gap.backward_transfer.is_known


def test_scores_are_compared_on_the_items_they_share() -> None:
    rewards = (({"a": 0.0, "b": 0.0, "c": 1.0},), ({"b": 1.0, "a": 0.0},))
    matrix = ScoreMatrix(tasks=("sums",), rounds=(0, 5), rewards=rewards)
    assert matrix.means.tolist() == [[0.0], [0.5]]
    assert matrix.cell(0, 0).n == 3
    strange = ScoreMatrix(tasks=("sums",), rounds=(0, 5), rewards=(({"a": 0.0},), ({"z": 1.0},)))
    with pytest.raises(ValueError, match="'sums' have no item in common"):
        summarise_retention(strange)


def test_a_perfect_score_is_not_certain() -> None:
    matrix = binary_matrix(np.ones((3, 2)), 20)
    summary = summarise_retention(matrix)
    assert summary.final_average.estimate == 1
    assert summary.final_average.low == pytest.approx(0.025 ** (1 / 20))
    assert summary.backward_transfer.low < 0 < summary.backward_transfer.high


def test_a_task_that_never_varied_is_not_certain_either() -> None:
    """Task 2 was wrong on all items before its phase, so no resample has forward transfer; task 1 does vary."""
    scores = np.array([[0.0, 0.0], [0.9, 0.0], [0.7, 0.9]])
    summary = summarise_retention(binary_matrix(scores, 40))
    share = 1 - 0.025 ** (1 / 40)  # of the population that may be otherwise, by Clopper and Pearson at 40 of 40
    assert summary.forward_transfer.estimate == 0.0
    assert (summary.forward_transfer.low, summary.forward_transfer.high) == pytest.approx((-share, share))
    assert summary.forward_transfer.n == 80
    # Nothing else of task 2 enters backward transfer, whose interval is the bootstrap's of task 1 alone.
    rng = np.random.default_rng(0)
    losses = [0.0] * 28 + [-1.0] * 8 + [0.0] * 4
    means = rng.choice(losses, (20_000, 40)).mean(axis=1)
    assert (summary.backward_transfer.low, summary.backward_transfer.high) == pytest.approx(
        tuple(np.quantile(means, [0.025, 0.975])), abs=0.03
    )
    # Half of the final average comes from a task that is perfect at the end, and it is not certain to be.
    perfect = summarise_retention(binary_matrix(np.array([[0.0, 0.1], [0.9, 0.2], [0.7, 1.0]]), 40)).final_average
    alone = 1.96 * np.sqrt(0.7 * 0.3 / 40) / 2
    assert perfect.low == pytest.approx(0.85 - np.hypot(alone, share / 2), abs=0.01)
    assert perfect.high == pytest.approx(0.85 + alone, abs=0.01)


def test_forgetting_of_a_stream_that_never_varied_is_not_certain() -> None:
    """Both rows of the earlier task alike on every item, and the later one noisy: nothing was seen to be forgotten."""
    summary = summarise_retention(binary_matrix(np.array([[0.0, 0.2], [1.0, 0.4], [1.0, 0.9]]), 30))
    share = 1 - 0.025 ** (1 / 30)
    assert summary.forgetting.estimate == 0.0
    assert summary.forgetting.low <= -share
    assert summary.forgetting.high >= share


def test_nearly_saturated_streams_are_covered() -> None:
    """Tasks at .98: with 30 items most streams show no failure at all, where a plain bootstrap has no width."""
    truth = np.array([[0.02, 0.02], [0.98, 0.02], [0.9, 0.98]])
    wanted = {"final_average": 0.94, "backward_transfer": -0.08, "forward_transfer": 0.0}
    hits = dict.fromkeys(wanted, 0)
    for trial in range(150):
        rng = np.random.default_rng([7, trial])
        rows = tuple(
            tuple({f"{j}-{k}": float(rng.random() < p) for k in range(30)} for j, p in enumerate(row)) for row in truth
        )
        summary = summarise_retention(ScoreMatrix(tasks=("a", "b"), rounds=(0, 1, 2), rewards=rows), seed=trial)
        for name, value in wanted.items():
            found = getattr(summary, name)
            hits[name] += found.low <= value <= found.high
    assert all(count / 150 >= 0.93 for count in hits.values()), hits
