"""Sample sizes against published figures and simulation, pass@k against enumeration, and clusters."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from twoclock.measure import (
    chance_at_k,
    clopper_pearson,
    cluster_difference,
    cluster_mean,
    cluster_ratio,
    detectable_difference,
    discordance_of,
    geometric_ratio,
    iqm,
    items_needed,
    items_needed_for_gap,
    items_needed_unpaired,
    items_table,
    mean_interval,
    paired_bootstrap_p,
    paired_difference,
    pass_at_k,
    pass_at_k_interval,
    pass_power_k,
    t_interval,
    wilson,
)

# --------------------------------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (19, 20), (20, 20), (64, 120)])
def test_clopper_pearson_is_the_textbooks(k: int, n: int, level: float) -> None:
    ours, theirs = clopper_pearson(k, n, level), stats.binomtest(k, n).proportion_ci(level, method="exact")
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=1e-12), pytest.approx(theirs.high, abs=1e-12))
    assert ours.low <= ours.estimate <= ours.high


@pytest.mark.parametrize(
    ("n", "p", "wilsons", "exact"),
    [(20, 0.95, 0.925, 0.984), (30, 0.95, 0.939, 0.984), (100, 0.95, 0.966, 0.983), (500, 0.95, 0.950, 0.960)],
)
def test_coverage_is_the_published_one(n: int, p: float, wilsons: float, exact: float) -> None:
    weights = stats.binom.pmf(np.arange(n + 1), n, p)
    for interval, published in ((wilson, wilsons), (clopper_pearson, exact)):
        covers = [not interval(k, n).excludes(p) for k in range(n + 1)]
        assert float(np.dot(weights, covers)) == pytest.approx(published, abs=0.001)


def test_ten_thousand_simulated_evaluations_are_covered() -> None:
    draws = np.random.default_rng(0).binomial(30, 0.8, 10_000)
    by_count = {k: not wilson(int(k), 30).excludes(0.8) for k in set(draws.tolist())}
    assert np.mean([by_count[k] for k in draws.tolist()]) == pytest.approx(0.95, abs=0.02)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="got 6 of 5"):
        clopper_pearson(6, 5)
    assert not clopper_pearson(0, 0).is_known


# ------------------------------------------------------------------------------------------------------------ clusters


def clustered(rng: np.random.Generator, clusters: int, size: int, icc: float = 0.2) -> tuple[np.ndarray, list[int]]:
    shared = rng.normal(0, math.sqrt(icc), clusters).repeat(size)
    return shared + rng.normal(0, math.sqrt(1 - icc), clusters * size), np.repeat(np.arange(clusters), size).tolist()


def test_clusters_taken_for_items_raise_false_alarms() -> None:
    runs, naive, honest = 300, 0, 0
    for run in range(runs):
        values, names = clustered(np.random.default_rng([1, run]), 50, 10)
        naive += paired_difference(values, np.zeros(500), seed=run, resamples=1000).excludes_zero
        honest += cluster_difference(values, np.zeros(500), names, seed=run, resamples=1000).excludes_zero
    assert naive / runs > 0.15
    assert honest / runs <= 0.08


def test_few_clusters_get_wider_intervals_not_false_ones() -> None:
    runs = 400
    alarms = 0
    for run in range(runs):
        values, names = clustered(np.random.default_rng([2, run]), 10, 10)
        alarms += cluster_mean(values, names, seed=run, resamples=2000).excludes_zero
    assert alarms / runs <= 0.08  # 10 % for plain percentiles


def test_p_values_are_uniform_where_nothing_differs() -> None:
    found = []
    for run in range(300):
        values, names = clustered(np.random.default_rng([3, run]), 50, 4)
        found.append(paired_bootstrap_p(values, np.zeros(200), run, "two-sided", clusters=names, resamples=800))
    assert stats.kstest(found, "uniform").pvalue > 0.01
    single = [
        paired_bootstrap_p(*np.random.default_rng([4, run]).random((2, 60)), run, "greater", resamples=800)
        for run in range(300)
    ]
    assert stats.kstest(single, "uniform").pvalue > 0.01


def test_clusters_by_hand() -> None:
    values, names = [1.0, 0.0, 1.0, 1.0, 0.0], ["a", "a", "b", "b", "b"]
    found = cluster_mean(values, names)
    assert (found.estimate, found.n) == (pytest.approx(0.6), 2)
    assert found.low == pytest.approx(0.5)  # both draws are the first cluster
    assert found.high == pytest.approx(2 / 3)
    assert "5 items" in found.method
    own = cluster_mean(values, list("abcde"), seed=1)
    assert own.n == 5
    ratio = cluster_ratio([4.0, 2.0, 0.0], [8, 2, 10], ["p", "q", "r"])
    assert ratio.estimate == pytest.approx(6 / 20)
    assert (ratio.low, ratio.high) == (0.0, 1.0)
    assert cluster_mean([1.0, 1.0, 1.0], list("abc"), bounds=(0, 1)).low == pytest.approx(0.025 ** (1 / 3))
    assert math.isnan(cluster_mean(values, ["a"] * 5).low)
    assert cluster_mean([], []).n == 0
    assert cluster_mean(values, names, seed=3) == cluster_mean(values, names, seed=3)


def test_bad_clusters_and_tests_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values and 1 names"):
        cluster_mean([1.0, 0.0], ["a"])
    with pytest.raises(ValueError, match="a weight is above 0; element 1 is 0"):
        cluster_ratio([1.0, 0.0], [1.0, 0.0], ["a", "b"])
    with pytest.raises(ValueError, match="2 values and 1 weights"):
        cluster_ratio([1.0, 0.0], [1.0], ["a", "b"])
    with pytest.raises(ValueError, match="alternative is"):
        paired_bootstrap_p([1.0], [0.0], alternative="more")  # type: ignore[arg-type]
    assert paired_bootstrap_p([1.0, 0.5], [1.0, 0.5]) == 1.0
    assert paired_bootstrap_p([1.0, 0.5], [0.0, 0.1], clusters=["a", "a"]) == 1.0  # one cluster shows nothing


# --------------------------------------------------------------------------------------------------------------- power


def test_the_published_numbers_of_items() -> None:
    assert items_needed(0.05, 0.2) == 626
    assert [items_needed_for_gap(delta, 0.2) for delta in (0.05, 0.1, 0.15)] == [1256, 314, 140]
    assert items_needed_unpaired(0.05, 0.5) == 1565  # two proportions, .50 against .55
    assert items_needed_unpaired(-0.05, 0.55) == 1565


def test_that_many_items_of_each_give_that_power() -> None:
    rng, n = np.random.default_rng(3), items_needed_unpaired(0.1, 0.6)
    a, b = rng.binomial(n, 0.6, 4000) / n, rng.binomial(n, 0.7, 4000) / n
    pooled = (a + b) / 2
    seen = np.abs(a - b) / np.sqrt(2 * pooled * (1 - pooled) / n) > 1.96
    assert seen.mean() == pytest.approx(0.8, abs=0.03)
    m = items_needed_for_gap(0.1, 0.2)
    moves = rng.choice([1, -1, 0], p=[0.15, 0.05, 0.8], size=(2000, m)) - rng.choice(
        [1, -1, 0], p=[0.1, 0.1, 0.8], size=(2000, m)
    )
    z = moves.mean(axis=1) / (moves.std(axis=1) / math.sqrt(m))
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.035)


@pytest.mark.parametrize("n", [50, 314, 1256, 20_000])
def test_the_smallest_difference_is_the_inverse(n: int) -> None:
    for found, needed in (
        (detectable_difference(n, discordance=0.2), lambda d: items_needed(d, 0.2)),
        (detectable_difference(n, rate=0.3), lambda d: items_needed_unpaired(d, 0.3)),
        (detectable_difference(n, rate=0.9), lambda d: items_needed_unpaired(-d, 0.9)),
    ):
        assert needed(found) <= n < needed(found * 0.99)


def test_too_few_items_show_nothing() -> None:
    assert math.isnan(detectable_difference(5, discordance=0.1))
    for wrong in ({}, {"discordance": 0.2, "rate": 0.5}):
        with pytest.raises(ValueError, match="either discordance"):
            detectable_difference(100, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1 item"):
        detectable_difference(0, rate=0.5)


def test_the_table_says_what_cannot_be_seen() -> None:
    small, large = items_table([0.05, 0.3], discordance=0.2, rate=0.9)
    assert (small.paired, small.gap) == (626, 1256)
    assert small.unpaired == items_needed_unpaired(-0.05, 0.9)
    assert large.paired is None  # two systems that differ on a fifth of the items cannot be 30 points apart
    assert large.unpaired == items_needed_unpaired(-0.3, 0.9)
    assert [line.delta for line in items_table()] == [0.02, 0.05, 0.1]


def test_discordance_is_measured() -> None:
    assert discordance_of([1, 1, 0, 0], [1, 0, 0, 1]) == 0.5
    assert discordance_of([0.5, 1.0], [1.0, 1.0]) == pytest.approx(0.125)
    assert math.isnan(discordance_of([], []))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (items_needed_unpaired, {"delta": 0.3, "rate": 0.9}, "negative delta"),
        (items_needed_unpaired, {"delta": 0.0}, "two different rates"),
        (items_needed_unpaired, {"delta": 0.1, "power": 0}, "power lies"),
        (items_needed_for_gap, {"delta": 0.0, "discordance": 0.2}, "delta other than 0"),
        (items_needed_for_gap, {"delta": 0.1, "discordance": 1.2}, "discordance=1.2"),
        (items_needed_for_gap, {"delta": 0.1, "discordance": 0.2, "level": 95}, "confidence level"),
    ],
)
def test_impossible_plans_are_refused(function: Any, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(**arguments)


# -------------------------------------------------------------------------------------------------------------- pass@k


def by_enumeration(n: int, c: int, k: int) -> tuple[float, float]:
    draws = list(itertools.combinations(range(n), k))
    return (
        float(np.mean([any(i < c for i in draw) for draw in draws])),
        float(np.mean([all(i < c for i in draw) for draw in draws])),
    )


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_enumeration(n: int) -> None:
    for k in range(1, n + 1):
        some, every = zip(*(by_enumeration(n, c, k) for c in range(n + 1)), strict=True)
        assert pass_at_k(n, np.arange(n + 1), k) == pytest.approx(some)
        assert pass_power_k(n, np.arange(n + 1), k) == pytest.approx(every)


def test_pass_at_k_grows_and_pass_power_k_falls() -> None:
    counts = np.arange(33)
    at = np.array([pass_at_k(32, counts, k) for k in range(1, 33)])
    power = np.array([pass_power_k(32, counts, k) for k in range(1, 33)])
    assert (np.diff(at, axis=0) >= -1e-12).all()
    assert (np.diff(power, axis=0) <= 1e-12).all()
    assert at[0] == pytest.approx(power[0])
    assert at[0] == pytest.approx(counts / 32)


def test_many_samples_do_not_overflow_and_the_plug_in_is_too_low() -> None:
    assert 0.9 < float(pass_at_k(4000, 12, 1000)) < 1
    # Averaged over what 16 samples can show, the estimator is right and the plug-in is not.
    n, k, p = 16, 8, 0.06
    weights, counts = stats.binom.pmf(np.arange(n + 1), n, p), np.arange(n + 1)
    assert np.dot(weights, pass_at_k(n, counts, k)) == pytest.approx(1 - (1 - p) ** k)
    assert np.dot(weights, 1 - (1 - counts / n) ** k) < 1 - (1 - p) ** k - 0.02


def test_pass_at_k_has_an_interval_and_a_chance_level() -> None:
    found = pass_at_k_interval(8, [0, 1, 8, 3, 4, 0, 2, 8], 4, seed=1)
    assert found.n == 8
    assert found.low < found.estimate < found.high
    assert pass_at_k_interval(4, [0] * 30, 2).high > 0  # never right in 30 items is not never
    assert chance_at_k(0.25, 8) == pytest.approx(1 - 0.75**8)
    assert not pass_at_k_interval(4, [], 2).is_known
    with pytest.raises(ValueError, match="whole numbers are needed"):
        pass_at_k_interval(4, [0.5, 2.0], 2)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(4, 2, 5), "k=5 of n=4"),
        (lambda: pass_at_k(4, [5], 2), "between 0 and 4"),
        (lambda: pass_at_k(4, 0.5, 2), "whole numbers"),
        (lambda: chance_at_k(1.5, 2), "chance in"),
    ],
)
def test_impossible_samples_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------------------------------------------------- over seeds


def test_figures_over_seeds_say_how_many() -> None:
    table = np.random.default_rng(1).random((4, 6))
    found = iqm(table, seed=2)
    assert found.estimate == pytest.approx(stats.trim_mean(table, 0.25, axis=None))
    assert (found.n, found.seeds) == (24, 4)
    assert found == iqm(table, seed=2)
    assert found.low < found.estimate < found.high
    assert str(t_interval([0.5, 0.6, 0.7])).endswith("(n=3, 3 seeds)")
    assert mean_interval([0.1, 0.4]).seeds == 1
    assert t_interval([0.1, 0.9, 0.1], bounds=(0, 1)).low == 0
    assert iqm(table, seed=2).as_dict()["seeds"] == 4
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\)"):
        iqm(np.zeros((2, 2, 2)))
    assert math.isnan(iqm(table[:1]).low)


def test_tasks_keep_their_weight_in_the_resamples() -> None:
    """Two tasks far apart, no spread within: resampling runs within tasks leaves nothing to vary."""
    table = np.array([[0.1, 0.9]] * 6)
    found = iqm(table)
    assert found.low == found.high == pytest.approx(0.5)


def test_geometric_ratios() -> None:
    found = geometric_ratio([2.0, 8.0, 4.0], [1.0, 2.0, 2.0])
    logs = np.log([2.0, 4.0, 2.0])
    half = 4.302652729911275 * logs.std(ddof=1) / math.sqrt(3)
    assert found.estimate == pytest.approx(math.exp(logs.mean()))
    assert (found.low, found.high) == (
        pytest.approx(math.exp(logs.mean() - half)),
        pytest.approx(math.exp(logs.mean() + half)),
    )
    rng = np.random.default_rng(1)
    x, y = rng.lognormal(1, 0.3, 6), rng.lognormal(0, 0.6, 9)
    welch = stats.ttest_ind(np.log(x), np.log(y), equal_var=False).confidence_interval()
    unpaired = geometric_ratio(x, y, paired=False)
    assert (unpaired.low, unpaired.high) == (pytest.approx(math.exp(welch.low)), pytest.approx(math.exp(welch.high)))
    with pytest.raises(ValueError, match="above 0; got 0"):
        geometric_ratio([0.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="got 2 above and 1 below"):
        geometric_ratio([1.0, 1.0], [1.0])
    assert not geometric_ratio([], []).is_known
    assert math.isnan(geometric_ratio([2.0], [1.0]).low)
