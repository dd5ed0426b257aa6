"""Known answers, an independent implementation as oracle, and coverage and false-positive rates by simulation."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from twoclock.measure import (
    Interval,
    iqm,
    items_needed,
    mean_interval,
    paired_difference,
    paired_permutation_p,
    t_interval,
    wilson,
)
from twoclock.measure.intervals import expanded_tails, expanded_z


def test_an_interval_prints_with_its_count() -> None:
    assert str(Interval(0.5333, 0.474, 0.5949, 120)) == "0.53 [0.47, 0.59] (n=120)"
    assert str(mean_interval([])) == "– [–, –] (n=0)"
    assert json.loads(json.dumps(mean_interval([]).as_dict(), allow_nan=False))["low"] is None


# ------------------------------------------------------------------------------------------------------- one proportion


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (64, 120), (999, 1000)])
def test_wilson_is_the_textbooks(k: int, n: int, level: float) -> None:
    ours, theirs = wilson(k, n, level), stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=1e-12), pytest.approx(theirs.high, abs=1e-12))
    assert 0 <= ours.low <= ours.estimate == k / n <= ours.high <= 1
    assert ours.low < ours.high


def test_wilson_covers_what_it_says() -> None:
    n, p = 30, 0.8
    covered = sum(
        stats.binom.pmf(k, n, p) for k in range(n + 1) if wilson(k, n).low <= p <= wilson(k, n).high
    )  # the sum over all outcomes: no simulation needed
    assert covered == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(k, n)


def test_a_level_is_a_share() -> None:
    for wrong in (0, 1, 95):
        with pytest.raises(ValueError, match="confidence level"):
            mean_interval([0.5, 0.7], level=wrong)


# --------------------------------------------------------------------------------------------------------------- means


def test_binary_values_get_wilson_and_others_the_bootstrap() -> None:
    assert mean_interval([1, 0, 0, 1]) == wilson(2, 4)
    assert mean_interval([1, 0, 0, 0.5]).method == "BCa bootstrap"


@pytest.mark.parametrize("shape", ["beta", "lognormal", "steps"])
def test_the_bootstrap_agrees_with_scipys(shape: str) -> None:
    rng = np.random.default_rng(5)
    values = {
        "beta": rng.beta(1.2, 0.6, 80),
        "lognormal": rng.lognormal(0, 1, 60),
        "steps": rng.integers(0, 5, 100) / 4,
    }[shape]
    ours = mean_interval(values, seed=1)
    # The same quantiles; ours are those of a slightly higher level, for what a bootstrap of so few leaves out.
    level = 1 - 2 * expanded_tails(0.95, len(values))[0]
    assert 0.95 < level < 0.963
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", confidence_level=level, rng=rng
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.estimate == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_expanded_quantiles_by_hand() -> None:
    """Student's t at 9 degrees of freedom is 2.2622, and a resample of 10 spreads by √(9/10) too little."""
    assert expanded_z(0.95, 10) == pytest.approx(2.262157 * (10 / 9) ** 0.5)
    low, high = expanded_tails(0.95, 10)
    assert (low, low + high) == (pytest.approx(stats.norm.cdf(-2.262157 * (10 / 9) ** 0.5)), pytest.approx(1.0))
    assert expanded_tails(0.9, 100_000)[0] == pytest.approx(0.05, abs=1e-4)
    assert expanded_z(0.95, 1) == expanded_z(0.95, 2)


@pytest.mark.parametrize(("n", "least"), [(8, 0.9), (12, 0.92), (24, 0.92)])
def test_the_bootstrap_of_few_covers_nearly_what_it_says(n: int, least: float) -> None:
    """Skewed values and rare differences, as drift on a dozen prompts and gaps of two dozen items have them."""
    rng, runs = np.random.default_rng(n), 400
    skewed = [mean_interval(rng.gamma(2, 0.1, n), seed=i, resamples=1000) for i in range(runs)]
    assert np.mean([found.low <= 0.2 <= found.high for found in skewed]) >= least
    pairs = [rng.binomial(1, 0.5, n) - rng.binomial(1, 0.3, n) for _ in range(runs)]
    gaps = [mean_interval(values, seed=i, resamples=1000, bounds=(-1, 1)) for i, values in enumerate(pairs)]
    assert np.mean([found.low <= 0.2 <= found.high for found in gaps]) >= least


def test_the_bootstrap_covers_what_it_says() -> None:
    rng, hits, runs = np.random.default_rng(3), 0, 400
    for run in range(runs):
        interval = mean_interval(rng.beta(0.6, 1.2, 100), seed=run, resamples=800)
        hits += interval.low <= 1 / 3 <= interval.high
    assert hits / runs == pytest.approx(0.95, abs=0.035)  # 3 standard errors


def test_a_seed_fixes_the_interval_and_only_the_interval() -> None:
    values = np.linspace(0, 1, 37) ** 2
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4)
    other = mean_interval(values, seed=5)
    assert other != mean_interval(values, seed=4)
    assert other.estimate == mean_interval(values, seed=4).estimate


def test_many_items_are_resampled_in_bounded_memory() -> None:
    values = np.random.default_rng(0).random(50_000)
    interval = mean_interval(values, resamples=200)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.15)


def test_few_and_constant_values_claim_no_more_than_they_know() -> None:
    assert mean_interval([]).n == 0
    assert not mean_interval([]).is_known
    one = mean_interval([0.4])
    assert (one.estimate, one.n) == (0.4, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    same = mean_interval([0.5] * 10, bounds=(0, 1))
    share = 1 - 0.025**0.1
    assert (same.low, same.high) == (pytest.approx(0.5 - 0.5 * share), pytest.approx(0.5 + 0.5 * share))
    unbounded = mean_interval([3.5, 3.5])
    assert (unbounded.low, unbounded.high) == (3.5, 3.5)


@pytest.mark.parametrize("wrong", [[0.1, float("nan")], [float("inf")]])
def test_values_that_are_no_numbers_are_refused(wrong: Sequence[float]) -> None:
    with pytest.raises(ValueError, match="must be finite; element"):
        mean_interval(wrong)


def test_a_table_is_no_sample() -> None:
    with pytest.raises(ValueError, match=r"one sequence of numbers; got an array of shape \(2, 2\)"):
        mean_interval(np.zeros((2, 2)))


def test_t_interval_by_hand() -> None:
    interval = t_interval([0.5, 0.6, 0.7])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # the 97.5 % quantile at 2 degrees of freedom
    assert (interval.low, interval.high) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    assert math.isnan(t_interval([0.5]).low)
    assert t_interval([0.5]).estimate == 0.5
    assert not t_interval([]).is_known


def test_iqm_is_the_trimmed_mean() -> None:
    rng = np.random.default_rng(2)
    for n in (1, 3, 4, 9, 40):
        values = rng.random(n)
        interval = iqm(values, seed=1)
        assert interval.estimate == pytest.approx(stats.trim_mean(values, 0.25))
        assert interval == iqm(values, seed=1) or n == 1
    assert interval.low < interval.estimate < interval.high


def test_scores_that_are_none_are_named() -> None:
    with pytest.raises(ValueError, match="finite numbers; got nan"):
        iqm([0.5, math.nan])
    with pytest.raises(ValueError, match=r"\(runs, tasks\); got an array of shape \(1, 1, 1\)"):
        iqm(np.zeros((1, 1, 1)))


# --------------------------------------------------------------------------------------------------------- two systems


def test_a_paired_difference_is_a_minus_b() -> None:
    a, b = [1.0, 1.0, 0.5, 0.75], [0.0, 0.5, 0.5, 0.25]
    interval = paired_difference(a, b)
    assert interval.estimate == pytest.approx(0.5)
    assert interval.n == 4
    assert paired_difference(b, a).estimate == -interval.estimate


def test_pairing_removes_what_items_share() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(200)
    a, b = np.clip(hard + 0.05, 0, 1), np.clip(hard + rng.normal(0, 0.01, 200), 0, 1)
    interval = paired_difference(a, b)
    assert interval.excludes_zero
    assert interval.high - interval.low < 0.01


def test_differences_are_never_taken_for_proportions() -> None:
    interval = paired_difference([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0])
    assert interval.method == "BCa bootstrap"
    same = paired_difference([1.0] * 50, [1.0] * 50)
    assert same.estimate == 0
    assert same.low == -same.high < 0  # 50 items without a difference leave room for rare ones, on both sides
    assert math.isnan(paired_difference([0.5], [2.0]).low)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="same items in the same order; got 2 and 3"):
        paired_difference([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_permutation_p([1, 0], [1, 0, 1])


def brute_force_p(a: np.ndarray, b: np.ndarray, alternative: str) -> float:
    differences = a - b
    sums = [float(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    observed = float(differences.sum())
    extreme = {
        "greater": lambda s: s >= observed - 1e-9,
        "less": lambda s: s <= observed + 1e-9,
        "two-sided": lambda s: abs(s) >= abs(observed) - 1e-9,
    }[alternative]
    return float(np.mean([extreme(s) for s in sums]))


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
@pytest.mark.parametrize("kind", ["binary", "quarters", "reals"])
def test_small_samples_are_tested_exactly(kind: str, alternative: str) -> None:
    rng = np.random.default_rng(11)
    for _ in range(4):
        a, b = rng.random(9), rng.random(9)
        if kind != "reals":
            steps = 1 if kind == "binary" else 4
            a, b = np.round(a * steps) / steps, np.round(b * steps) / steps
        p = paired_permutation_p(a, b, alternative=alternative)  # type: ignore[arg-type]
        assert p == pytest.approx(brute_force_p(a, b, alternative))


def test_large_binary_samples_are_mcnemars_exact_test() -> None:
    a, b = [1.0] * 30 + [0.0] * 18 + [1.0] * 500, [0.0] * 30 + [1.0] * 18 + [1.0] * 500
    expected = stats.binomtest(30, 48, alternative="greater").pvalue
    assert paired_permutation_p(a, b) == pytest.approx(expected)
    expected = stats.binomtest(30, 48).pvalue
    assert paired_permutation_p(a, b, alternative="two-sided") == pytest.approx(expected)


def test_large_samples_agree_with_scipys_permutations() -> None:
    rng = np.random.default_rng(4)
    a = rng.random(60)
    b = np.clip(a - rng.normal(0.04, 0.2, 60), 0, 1)
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        alternative="greater",
        n_resamples=4000,
        rng=rng,
    ).pvalue
    assert 0.005 < theirs < 0.5
    assert paired_permutation_p(a, b, seed=1) == pytest.approx(theirs, abs=0.025)


def test_a_random_test_never_claims_certainty() -> None:
    a = np.linspace(0.5, 1.0, 40)
    assert paired_permutation_p(a, np.zeros(40), resamples=99) == pytest.approx(1 / 100)


def test_no_difference_is_no_evidence() -> None:
    assert paired_permutation_p([0.5, 1.0], [0.5, 1.0]) == 1.0
    assert paired_permutation_p([], []) == 1.0
    assert paired_permutation_p(np.ones(40), np.zeros(40)) == pytest.approx(2.0**-40)
    with pytest.raises(ValueError, match="alternative is"):
        paired_permutation_p([1], [0], alternative="bigger")  # type: ignore[arg-type]


def test_the_p_value_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(8)
    found = [paired_permutation_p(rng.random(40), rng.random(40), seed=i, resamples=400) for i in range(300)]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert 0 < np.mean(np.array(found) <= 0.05) < 0.09


@pytest.mark.parametrize(
    ("discordance", "delta", "items"),
    [
        (0.1, 0.02, 1960),
        (0.1, 0.05, 312),
        (0.2, 0.02, 3923),
        (0.2, 0.05, 626),
        (0.2, 0.1, 155),
        (0.3, 0.02, 5885),
        (0.3, 0.05, 940),
        (0.3, 0.1, 234),
    ],
)
def test_items_needed_are_the_published_ones(discordance: float, delta: float, items: int) -> None:
    assert items_needed(delta, discordance) == pytest.approx(items, abs=1)
    assert (items_needed(0.05, 0.2), items_needed(-0.05, 0.2)) == (626, 626)


def test_that_many_items_give_that_power() -> None:
    n, rng = items_needed(0.1, 0.2), np.random.default_rng(6)
    draws = rng.multinomial(n, [0.15, 0.05, 0.8], size=2000)
    power = np.mean([stats.binomtest(int(w), int(w + m)).pvalue < 0.05 for w, m, _ in draws])
    assert power == pytest.approx(0.8, abs=0.05)  # the exact test is a little conservative


@pytest.mark.parametrize("wrong", [{"delta": 0}, {"delta": 0.3}, {"power": 1.0}, {"discordance": 1.5}])
def test_items_needed_refuses_what_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"needed|power"):
        items_needed(**{"delta": 0.05, "discordance": 0.2, **wrong})
