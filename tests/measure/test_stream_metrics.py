"""The rest of the stream's metrics on a matrix worked by hand, their signs, and intervals that do not cry wolf."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from twoclock import measure
from twoclock.measure import (
    METRICS,
    RetentionSummary,
    ScoreMatrix,
    base_forgetting,
    forgetting,
    forward_transfer_alone,
    intransigence,
    stream_worst_case,
    suite_forgetting,
    summarise_references,
    summarise_retention,
    worst_case,
    worst_case_interval,
)
from twoclock.types import Evaluation

BY_HAND = np.array(
    [
        [0.9, 0.2, 0.3],  # the start
        [0.8, 0.3, 0.1],
        [0.7, 0.8, 0.4],
        [0.6, 0.9, 0.7],  # after the third phase
    ]
)


def test_by_hand() -> None:
    assert forgetting(BY_HAND) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)
    assert forgetting(BY_HAND, first_row=1) == pytest.approx(((0.8 - 0.6) + (0.8 - 0.9)) / 2)
    alone, joint = np.array([0.7, 0.9, 0.7]), np.array([0.9, 0.9, 0.8])
    assert forward_transfer_alone(BY_HAND, alone) == pytest.approx((0.1 - 0.1 + 0.0) / 3)
    assert intransigence(BY_HAND, joint) == pytest.approx((0.1 + 0.1 + 0.1) / 3)
    assert base_forgetting(np.array([0.8, 0.5]), np.array([0.6, 0.6])) == pytest.approx(0.05)


def test_the_worst_case_by_hand() -> None:
    # WC = R[now, 3] / 3 + 2/3 · mean(min after phase 1 of task 1, min after phase 2 of task 2)
    assert worst_case(BY_HAND, [1, 2, 3]) == pytest.approx(0.7 / 3 + (2 / 3) * (0.6 + 0.9) / 2)
    with_dip = np.insert(BY_HAND, 2, [0.1, np.nan, np.nan], axis=0)  # measured right after the switch to task 2
    assert worst_case(with_dip, [1, 3, 4]) == pytest.approx(0.7 / 3 + (2 / 3) * (0.1 + 0.9) / 2)
    after = np.vstack([BY_HAND, [0.6, 0.9, np.nan]])  # the last task was not measured again
    assert worst_case(after, [1, 2, 3]) == pytest.approx(worst_case(BY_HAND, [1, 2, 3]))
    assert np.isnan(worst_case(BY_HAND, [1]))
    unseen = BY_HAND.copy()
    unseen[2:, 0] = np.nan
    assert np.isnan(worst_case(unseen, [1, 2, 3]))


matrices = st.integers(2, 4).flatmap(
    lambda t: arrays(np.float64, (t + 1, t), elements=st.floats(0, 1, allow_subnormal=False))
)


@given(matrices)
def test_the_start_can_only_add_to_forgetting(scores: np.ndarray) -> None:
    assert forgetting(scores) >= forgetting(scores, first_row=1) - 1e-12
    assert forgetting(scores, first_row=1) >= -measure.backward_transfer(scores) - 1e-12
    ends = list(range(1, scores.shape[1] + 1))
    assert -1e-12 <= worst_case(scores, ends) <= 1 + 1e-12
    assert worst_case(scores, ends) <= measure.final_average(scores) + 1e-12


METRIC_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "forgetting_since_first": partial(forgetting, first_row=1),
    "forward_transfer_alone": lambda scores: forward_transfer_alone(scores, np.full(3, 0.5)),
    "intransigence": lambda scores: intransigence(scores, np.full(3, 0.5)),
    "base_forgetting": lambda scores: base_forgetting(scores[0], scores[-1]),
    "worst_case": lambda scores: worst_case(scores, [1, 2, 3]),
}


@pytest.mark.parametrize("definition", METRICS, ids=lambda d: d.name)
def test_each_metric_has_the_sign_and_range_that_its_definition_says(definition: measure.MetricDefinition) -> None:
    metric = METRIC_FUNCTIONS.get(definition.name) or getattr(measure, definition.name)
    assert definition.formula
    assert definition.symbol
    rng = np.random.default_rng(0)
    values = [float(metric((rng.random((4, 3)) < 0.5).astype(float))) for _ in range(300)]
    assert definition.least <= min(values) < max(values) <= definition.most
    # Good news: what decides the metric gets better, and so must the metric.
    better = BY_HAND.copy()
    if definition.name == "forward_transfer":
        better[1, 1] += 0.1  # the second task, before its own phase
    elif definition.name in ("forward_transfer_alone", "intransigence"):
        better[2, 1] += 0.1  # the second task, after its own phase
    else:
        better[-1] += 0.05  # everything, at the end
    moved = float(metric(better)) - float(metric(BY_HAND))
    assert moved > 0 if definition.better == "higher" else moved < 0


def test_every_field_of_a_summary_is_defined() -> None:
    names = {definition.name for definition in METRICS}
    assert {field.name for field in fields(RetentionSummary)} - {"phases"} <= names


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forgetting(BY_HAND, first_row=2), "begins at the start"),
        (lambda: forward_transfer_alone(BY_HAND, np.zeros(2)), r"3 of them; got shape \(2,\)"),
        (lambda: base_forgetting(np.zeros(2), np.zeros(3)), "at the start and now"),
        (lambda: worst_case(BY_HAND, [2, 1]), r"rising rows.*got \[2, 1\]"),
        (lambda: worst_case(BY_HAND, [1, 2, 4]), "of 4 rows"),
        (lambda: worst_case(BY_HAND, []), r"got \[\]"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ----------------------------------------------------------------------------------------------------------- intervals


def draw(scores: np.ndarray, items: int, seed: int, spread: float = 0.0) -> ScoreMatrix:
    """Items answered at random at the rates ``scores``; with ``spread`` some items are easier than others."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(0, spread, (scores.shape[1], items))
    rewards = tuple(
        tuple(
            {f"{j}-{k}": float(rng.random() < np.clip(rate + ease[j, k], 0, 1)) for k in range(items)}
            for j, rate in enumerate(row)
        )
        for row in scores
    )
    tasks = tuple(f"task {j}" for j in range(scores.shape[1]))
    return ScoreMatrix(tasks=tasks, rounds=tuple(range(len(scores))), rewards=rewards)


def test_planted_forgetting_is_found_and_covered() -> None:
    planted = np.array([[0.1, 0.1, 0.1], [0.8, 0.1, 0.1], [0.6, 0.8, 0.1], [0.5, 0.7, 0.8]])
    truth, hits, found = 0.2, 0, 0
    for seed in range(120):
        summary = summarise_retention(draw(planted, 100, seed), seed=seed)
        hits += summary.forgetting.low <= truth <= summary.forgetting.high
        found += summary.forgetting.low > 0
    assert hits / 120 >= 0.92  # the correction never covers too little
    assert found / 120 > 0.95


def test_where_nothing_is_forgotten_the_estimate_leans_and_the_interval_does_not() -> None:
    flat = np.full((5, 4), 0.6)
    summaries = [summarise_retention(draw(flat, 60, seed), seed=seed) for seed in range(200)]
    assert np.mean([s.forgetting.estimate for s in summaries]) > 0.03  # the best of four noisy scores
    assert np.mean([s.forgetting.excludes_zero for s in summaries]) <= 0.06
    assert np.mean([s.forgetting_since_first.excludes_zero for s in summaries]) <= 0.06
    for summary in summaries[:20]:
        assert summary.forgetting.low <= summary.forgetting.estimate <= summary.forgetting.high


def test_references_are_compared_item_by_item() -> None:
    matrix = ScoreMatrix(
        tasks=("sums", "gcd"),
        rounds=(0, 5, 10),
        rewards=(
            ({"a": 0.0, "b": 0.0}, {"x": 0.0, "y": 0.0}),
            ({"a": 1.0, "b": 0.0}, {"x": 0.0, "y": 0.0}),
            ({"a": 1.0, "b": 0.0}, {"x": 1.0, "y": 1.0}),
        ),
    )
    alone = {"sums": {"a": 1.0, "b": 1.0}, "gcd": {"x": 0.0, "y": 1.0, "z": 1.0}}
    found = summarise_references(matrix, alone=alone, joint=alone)
    assert found.forward_transfer_alone.estimate == pytest.approx((-0.5 + 0.5) / 2)
    assert found.intransigence.estimate == pytest.approx(0.0)
    assert found.forward_transfer_alone.n == 4
    assert not summarise_references(matrix).intransigence.is_known
    assert not summarise_references(matrix, alone={"sums": {"a": 1.0}}).forward_transfer_alone.is_known
    with pytest.raises(ValueError, match="'sums' have no item in common"):
        summarise_references(matrix, alone={"sums": {"q": 1.0}, "gcd": {"x": 1.0}})


def test_the_worst_case_has_an_interval_that_holds() -> None:
    truth, rows = 0.5 * 0.8 + 0.5 * 0.3, np.array([[0.1, 0.1], [0.7, 0.1], [0.3, 0.5], [0.6, 0.8]])
    hits = 0
    for seed in range(100):
        found = worst_case_interval(draw(rows, 80, seed), [1, 3], seed=seed)
        assert found.low <= found.estimate <= found.high
        hits += found.low <= truth <= found.high
    assert hits >= 92
    assert not worst_case_interval(draw(rows, 80, 0), [1]).is_known


# --------------------------------------------------------------------------------------------------- from evaluations


def ev(round: int, task: str, cell: tuple[str, str], rewards: list[float], purpose: str = "phase") -> Evaluation:
    return Evaluation(
        round=round,
        task=task,
        weights=cell[0],  # type: ignore[arg-type]
        prompt=cell[1],  # type: ignore[arg-type]
        item_ids=tuple(f"{task}-{i}" for i in range(len(rewards))),
        rewards=tuple(rewards),
        samples=1,
        conditioning_id="c",
        purpose=purpose,
    )


BASE, LIVE = ("base", "none"), ("live", "learned")


def test_suites_are_compared_with_the_untouched_base() -> None:
    evaluations = [
        ev(0, "chat", BASE, [1.0, 1.0, 0.0, 1.0]),
        ev(0, "code", BASE, [1.0, 0.0]),
        ev(9, "chat", LIVE, [1.0, 0.0, 0.0, 0.0]),
        ev(9, "code", LIVE, [1.0, 1.0]),
    ]
    found = suite_forgetting(evaluations, ["chat", "code"])
    assert found.estimate == pytest.approx((0.5 - 0.5) / 2)
    assert suite_forgetting(evaluations, ["chat"]).estimate == pytest.approx(0.5)
    assert found.n == 6
    assert not suite_forgetting(evaluations, ["chat", "maths"]).is_known
    assert not suite_forgetting(evaluations, []).is_known


def test_probes_show_the_dip_that_phase_ends_hide() -> None:
    right, wrong = [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]
    ends = [
        ev(0, "sums", BASE, wrong), ev(0, "gcd", BASE, wrong),
        ev(5, "sums", LIVE, right), ev(5, "gcd", LIVE, wrong),
        ev(9, "sums", LIVE, right), ev(9, "gcd", LIVE, right),
    ]  # fmt: skip
    assert stream_worst_case(ends).estimate == 1.0
    dip = ev(6, "sums", LIVE, wrong, "probe")
    assert stream_worst_case([*ends, dip]).estimate == pytest.approx(0.5)
    assert not stream_worst_case(ends[:4]).is_known
    assert not stream_worst_case([]).is_known
