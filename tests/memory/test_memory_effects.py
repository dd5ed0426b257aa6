"""The measured effect: worked by hand, against SciPy's own Welch test, and calibrated by simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import ttest_ind

from twoclock.memory.effects import Difference, Estimate, Prior, difference, estimate, fit_prior, pool_priors, verdict
from twoclock.memory.records import Effect, Entry
from twoclock.seeding import child_seed


def rng_for(name: str) -> np.random.Generator:
    return np.random.default_rng(child_seed(name, 0))


def effect_of(shown: Sequence[float], held: Sequence[float]) -> Effect:
    effect = Effect()
    for value in shown:
        effect = effect.add(float(value), shown=True)
    for value in held:
        effect = effect.add(float(value), shown=False)
    return effect


def coins(shown: int, rights: int, held: int, held_rights: int) -> Effect:
    """An effect of 0/1 outcomes, from counts."""
    return Effect(
        shown=shown,
        shown_sum=rights,
        shown_squares=rights,
        held=held,
        held_sum=held_rights,
        held_squares=held_rights,
    )


# ---------------------------------------------------------------------------------------------------- one entry alone


def test_the_interval_is_welchs() -> None:
    rng = rng_for("welch")
    for shown, held in ((5, 3), (40, 7), (200, 25)):
        a, b = rng.random(shown), rng.random(held) * 0.3
        found = difference(effect_of(a, b))
        theirs = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        assert found.estimate == pytest.approx(a.mean() - b.mean())
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
        assert (found.shown, found.held, found.level) == (shown, held, 0.95)


def test_a_case_worked_by_hand() -> None:
    # Shown 1, 0, 1, 0: mean .5, variance 1/3. Held 0, 0, 0, 1: mean .25, variance 1/4. The error is √(1/12 + 1/16).
    found = difference(coins(4, 2, 4, 1))
    error = math.sqrt(1 / 12 + 1 / 16)
    freedom = (1 / 12 + 1 / 16) ** 2 / ((1 / 12) ** 2 / 3 + (1 / 16) ** 2 / 3)
    assert freedom == pytest.approx(5.88)
    assert found.estimate == pytest.approx(0.25)
    assert (found.high - found.low) / 2 / error == pytest.approx(2.459, abs=2e-3)  # t at 5.88 degrees of freedom


def test_nothing_is_bounded_before_both_arms_have_two() -> None:
    for effect in (Effect(), coins(1, 1, 0, 0), coins(50, 50, 1, 0), coins(0, 0, 3, 1)):
        found = difference(effect)
        assert (found.low, found.high) == (-math.inf, math.inf)
        assert verdict(effect) == "unknown"
    assert difference(Effect()).estimate is None


def test_three_against_three_prove_nothing_however_clear_they_look() -> None:
    found = difference(coins(3, 3, 3, 0))
    assert found.estimate == 1.0
    assert found.low < 0.5
    # (n + 1) / (n + 2)² for either arm.
    assert difference(coins(10, 10, 10, 10)).high == pytest.approx(2.1009 * math.sqrt(2 * 11 / 144 / 10), abs=1e-3)


def test_outcomes_far_from_zero_leave_no_rounding_behind() -> None:
    """Sums of 0.1 are not exact; a variance of rounding errors would make an interval of no width."""
    effect = effect_of([0.1] * 1000, [0.1] * 1000)
    assert difference(effect).high - difference(effect).low > 1e-3


def test_coverage_of_the_interval_for_rewards_of_0_and_1() -> None:
    """At least 93 % of intervals that claim 95 % cover, from few reads to many, near the edges and away from them."""
    rng = rng_for("coverage")
    for shown, held, p, q in ((8, 4, 0.5, 0.5), (20, 5, 0.9, 0.6), (60, 12, 0.3, 0.1), (90, 10, 0.95, 0.95)):
        covered = 0
        for _ in range(1000):
            rights, held_rights = int(rng.binomial(shown, p)), int(rng.binomial(held, q))
            found = difference(coins(shown, rights, held, held_rights))
            covered += found.low <= p - q <= found.high
        assert covered / 1000 >= 0.93 - 2 * math.sqrt(0.07 * 0.93 / 1000), (shown, held, p, q)


def false_alarms(looks: str, name: str, count: int = 300) -> float:
    """The share of entries of no effect that are called helpful or harmful at some time over 300 reads, a look a
    read."""
    rng = rng_for(name)
    wrong = 0
    for _ in range(count):
        effect = Effect()
        for _ in range(300):
            effect = effect.add(float(rng.random() < 0.5), shown=bool(rng.random() > 0.2))
            found = difference(effect, looks=looks)  # type: ignore[arg-type]
            if found.low > 0 or found.high < 0:
                wrong += 1
                break
    return wrong / count


def test_looking_at_every_read_needs_the_interval_that_allows_it() -> None:
    assert false_alarms("any", "anytime") <= 0.05
    assert false_alarms("one", "peeking", count=100) > 0.15, "if peeking were harmless, this would be for nothing"


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.95; got 95"):
        difference(coins(4, 2, 4, 1), level=95)
    with pytest.raises(ValueError, match="'one' or 'any'; got 'some'"):
        difference(coins(4, 2, 4, 1), looks="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"0 or more; got -0\.1"):
        verdict(coins(4, 2, 4, 1), worth=-0.1)


# ------------------------------------------------------------------------------------------------------------ the pool


def planted(count: int, name: str, *, hold_out: float = 0.2) -> tuple[list[float], list[Effect]]:
    """Entries whose true effects are known: 30 % harmful, 30 % without effect, 40 % helpful; 0/1 outcomes; reads
    from none to 150."""
    rng = rng_for(name)
    truths, effects = [], []
    for _ in range(count):
        truth = float(rng.choice([-0.3, 0.0, 0.3], p=[0.3, 0.3, 0.4]))
        reads = int(rng.integers(0, 150))
        held = int(rng.binomial(reads, hold_out))
        effects.append(
            coins(reads - held, int(rng.binomial(reads - held, 0.45 + truth)), held, int(rng.binomial(held, 0.45)))
        )
        truths.append(truth)
    return truths, effects


def test_the_prior_finds_the_spread_that_was_planted() -> None:
    truths, effects = planted(400, "pool")
    prior = fit_prior(effects)
    assert prior.mean == pytest.approx(float(np.mean(truths)), abs=0.04)
    assert prior.spread == pytest.approx(float(np.std(truths)), abs=0.04)
    # p (1 - p) of the four arms, four fifths of the reads being shown.
    shown = 0.3 * 0.15 * 0.85 + 0.3 * 0.45 * 0.55 + 0.4 * 0.75 * 0.25
    assert prior.variance == pytest.approx(0.8 * shown + 0.2 * 0.45 * 0.55, abs=0.01)
    assert 300 < prior.entries <= 400


def test_the_prior_of_little_is_the_one_of_nothing() -> None:
    assert fit_prior([]) == Prior()
    assert fit_prior([Effect()] * 50) == Prior()
    one = fit_prior([coins(30, 15, 30, 15)])
    assert one.spread == pytest.approx(Prior().spread, abs=0.03)
    assert one.entries == 1


def test_many_entries_of_one_read_do_not_pretend_to_know_the_spread() -> None:
    """Differences of single outcomes scatter by chance alone: read as they stand, they would say that no entry can
    differ from any other."""
    prior = fit_prior([coins(1, 1, 1, 1)] * 100 + [coins(1, 1, 1, 0)] * 5 + [coins(1, 0, 1, 1)] * 5)
    assert prior.spread > 0.15


def test_streams_where_nothing_ever_differs_divide_by_nothing() -> None:
    for rights in (0, 1):
        effects = [coins(40, 40 * rights, 10, 10 * rights)] * 30
        prior = fit_prior(effects)
        assert abs(prior.mean) < 1e-9
        assert math.isfinite(prior.spread)
        assert prior.spread > 0
        own = estimate(effects[0], prior)
        assert abs(own.value) < 1e-9
        assert own.helps == pytest.approx(0.5)


def test_the_shrunken_estimate_as_an_equation() -> None:
    prior = Prior(mean=0.1, spread=0.2, error=0.0, variance=0.25, entries=9)
    # Arms of 50 with outcomes of variance .25: drawn to the pool's .25 they stay what they are, but for n - 1.
    effect = coins(50, 30, 50, 20)
    own = ((50 * 0.24 + 8 * 0.25) / 57 / 50) * 2
    weight = 0.04 / (0.04 + own)
    assert estimate(effect, prior).value == pytest.approx(0.1 + weight * (0.2 - 0.1))
    assert estimate(effect, prior).spread == pytest.approx(math.sqrt(weight * own))
    unread = estimate(Effect(), prior)
    assert (unread.value, unread.spread) == (pytest.approx(0.1), pytest.approx(0.2))


def test_shrinking_comes_nearer_to_the_truth_than_the_plain_difference() -> None:
    truths, effects = planted(400, "shrinking")
    prior = fit_prior(effects)
    measured = [(t, e) for t, e in zip(truths, effects, strict=True) if e.difference is not None]
    shrunken = np.mean([(estimate(e, prior).value - t) ** 2 for t, e in measured])
    plain = np.mean([((e.difference or 0.0) - t) ** 2 for t, e in measured])
    assert shrunken < 0.7 * plain


def test_the_probability_that_it_helps_is_one() -> None:
    """Among entries that are said to help with a probability of about p, about p do; half of those without effect
    count as helping."""
    truths, effects = planted(1500, "calibration")
    prior = fit_prior(effects)
    said = np.array([estimate(e, prior).helps for e in effects])
    true = np.array([1.0 if t > 0 else 0.5 if t == 0 else 0.0 for t in truths])
    for low, high in ((0.0, 0.1), (0.1, 0.35), (0.35, 0.65), (0.65, 0.9), (0.9, 1.0)):
        bin_ = (said >= low) & (said < high)
        assert bin_.sum() > 20
        assert true[bin_].mean() == pytest.approx(said[bin_].mean(), abs=0.15), (low, high)


def test_the_credible_interval_covers() -> None:
    truths, effects = planted(1500, "credible")
    prior = fit_prior(effects)
    inside = [low <= t <= high for t, e in zip(truths, effects, strict=True) for low, high in [_interval(e, prior)]]
    assert 0.92 <= float(np.mean(inside)) <= 0.99


def _interval(effect: Effect, prior: Prior) -> tuple[float, float]:
    return estimate(effect, prior).interval()


def test_the_promise_is_the_mean_of_what_is_above_0() -> None:
    rng = rng_for("promise")
    for value, spread in ((0.0, 0.25), (0.3, 0.1), (-0.2, 0.2), (0.05, 0.01)):
        draws = rng.normal(value, spread, 200_000)
        assert Estimate(value=value, spread=spread).promise == pytest.approx(np.maximum(draws, 0).mean(), abs=2e-3)
    assert Estimate(value=0.0, spread=1.0).promise == pytest.approx(1 / math.sqrt(2 * math.pi))


def test_the_pool_of_what_came_once_and_the_pool_of_what_came_again() -> None:
    once = [Entry(kind="note", key="k", text=f"o{n}", provenance=("e", "e")) for n in range(10)]
    again = [Entry(kind="note", key="k", text=f"a{n}", provenance=("e", "f")) for n in range(10)]
    effects = {e.id: coins(300, 150, 300, 150) for e in once} | {e.id: coins(300, 240, 300, 150) for e in again[:-1]}
    priors = pool_priors([*once, *again], effects)
    assert {priors[e.id] for e in once} == {fit_prior(effects[e.id] for e in once)}
    assert {priors[e.id] for e in again} == {fit_prior(effects[e.id] for e in again[:-1])}
    assert priors[again[-1].id].mean > 0.2 > 0.02 > abs(priors[once[0].id].mean)
    assert pool_priors([], effects) == {}


# --------------------------------------------------------------------------------------------------------- the verdict


def test_the_four_verdicts() -> None:
    assert verdict(coins(100, 80, 50, 20)) == "helps"
    assert verdict(coins(100, 20, 50, 30)) == "harms"
    assert verdict(coins(4000, 2000, 4000, 2000)) == "useless"
    assert verdict(coins(20, 11, 10, 5)) == "unknown"
    assert verdict(coins(4000, 2000, 4000, 2000), worth=0.0) == "unknown"


def test_error_rates_of_the_verdict_at_one_look() -> None:
    """Of 2000 entries without effect at most 2.5 % are called harmful and as many helpful; of those that do harm,
    most are found."""
    rng = rng_for("verdicts")

    def calls(truth: float, name: str) -> float:
        return float(
            np.mean(
                [
                    verdict(coins(120, int(rng.binomial(120, 0.5 + truth)), 30, int(rng.binomial(30, 0.5)))) == name
                    for _ in range(2000)
                ]
            )
        )

    tolerance = 3 * math.sqrt(0.025 * 0.975 / 2000)
    assert calls(0.0, "harms") <= 0.025 + tolerance
    assert calls(0.0, "helps") <= 0.025 + tolerance
    assert calls(0.2, "harms") <= 0.001
    assert calls(-0.3, "harms") > 0.8


def test_false_harms_in_a_pool() -> None:
    """Of the entries that the pool's estimate calls harmful none in forty helps, and fewer are without effect than of
    those that the entries' own intervals call so, at about as many finds."""
    truths, effects = planted(1500, "false harms")
    prior = fit_prior(effects)
    pooled = np.array([t for t, e in zip(truths, effects, strict=True) if verdict(e, prior=prior) == "harms"])
    alone = np.array([t for t, e in zip(truths, effects, strict=True) if verdict(e) == "harms"])
    assert np.mean(pooled > 0) <= 0.025
    assert np.mean(pooled >= 0) <= 0.05
    assert np.mean(pooled >= 0) < np.mean(alone >= 0)
    assert len(pooled) > 0.85 * len(alone) > 100


def test_what_was_never_measured_is_unknown_whatever_the_pool_says() -> None:
    bad = Prior(mean=-0.5, spread=0.01, error=0.0, variance=0.25, entries=500)
    assert verdict(Effect(), prior=bad) == "unknown"
    assert verdict(coins(9, 0, 0, 0), prior=bad) == "unknown"


def test_outcomes_that_are_no_numbers_never_get_in() -> None:
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="finite number"):
            Effect().add(value, shown=True)


def test_records_are_values() -> None:
    assert difference(coins(4, 2, 4, 1)) == difference(coins(4, 2, 4, 1))
    assert isinstance(difference(Effect()), Difference)
    assert estimate(Effect()) == Estimate(value=0.0, spread=math.hypot(Prior().spread, Prior().error))
