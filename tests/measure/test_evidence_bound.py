"""Bets that hold at every look: by hand, against the product they stand for, and never beaten by noise for long."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from twoclock.measure import DIFFERENCES, REWARDS, Bets, paired_permutation_p
from twoclock.measure.evidence_bound import STAKES
from twoclock.seeding import child_seed

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]


def test_one_win_by_hand() -> None:
    """One difference of 1 against "at most 0" multiplies the share g staked by 1 + g; a loss by 1 - g."""
    won = Bets().update([1.0])
    assert math.exp(won.log_wealth()) == pytest.approx(1 + STAKES.mean())
    assert math.exp(won.log_wealth(below=True)) == pytest.approx(1 - STAKES.mean())
    assert Bets().update([0.0, 0.0]).log_wealth() == pytest.approx(0)
    assert Bets().log_wealth() == 0
    assert Bets().p_value() == 1
    assert (Bets().lower(), Bets().upper()) == DIFFERENCES


@pytest.mark.parametrize("seed", range(5))
def test_the_wealth_is_the_product_of_every_stake(seed: int) -> None:
    generator = np.random.default_rng(child_seed("test.bets", seed))
    values, mean = generator.uniform(-1, 1, size=30), float(generator.uniform(-0.9, 0.9))
    wealth = np.ones(len(STAKES))
    for x in values:
        wealth *= 1 + STAKES / (1 + mean) * (x - mean)  # on the original scale the stake is λ = g/(m + 1)
    bets = Bets().update(generator.permutation(values))
    assert bets.log_wealth(mean) == pytest.approx(math.log(wealth.mean()), abs=1e-9)
    mirrored = Bets().update(-values)
    assert bets.log_wealth(mean, below=True) == pytest.approx(mirrored.log_wealth(-mean), abs=1e-9)


def test_the_bounds_are_where_the_wealth_reaches_its_mark() -> None:
    bets = Bets().update([1.0] * 30 + [0.0] * 40 + [-1.0] * 6)
    for alpha in (0.01, 0.05, 0.2):
        low, high = bets.lower(alpha), bets.upper(alpha)
        assert low < bets.mean < high
        assert bets.log_wealth(low) == pytest.approx(math.log(1 / alpha), abs=1e-6)
        assert bets.log_wealth(high, below=True) == pytest.approx(math.log(1 / alpha), abs=1e-6)
        assert bets.rejects(0.0, alpha) == (low > 0)
        assert bets.interval(1 - 2 * alpha).low == pytest.approx(low)
    wide, narrow = bets.interval(0.99), bets.interval(0.8)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert bets.interval().low == bets.lower(0.025)


def ever(
    draw: Draw, sims: int, rounds: int, per: int, stop: Callable[[Bets], bool], bounds: tuple[float, float]
) -> float:
    """The share of histories in which a look after some round stops."""
    stopped = 0
    for s in range(sims):
        generator = np.random.default_rng(child_seed("test.looks", s))
        bets = Bets(bounds)
        for _ in range(rounds):
            bets = bets.update(draw(generator, per))
            if stop(bets):
                stopped += 1
                break
    return stopped / sims


NOISE: dict[str, Draw] = {
    "two coins": lambda g, n: g.integers(0, 2, size=n) - g.integers(0, 2, size=n).astype(float),
    "rare failures": lambda g, n: (g.random(n) < 0.02).astype(float) - (g.random(n) < 0.02),
    "rare large gains": lambda g, n: np.where(g.random(n) < 0.1, 0.9, -0.1),
    "rare large losses": lambda g, n: np.where(g.random(n) < 0.1, -0.9, 0.1),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_ever_taken_for_a_gain_in_at_most_alpha(name: str) -> None:
    found = ever(NOISE[name], 300, 30, 8, lambda b: b.rejects(0.0, 0.1), DIFFERENCES)
    assert found <= 0.1 + 3 * math.sqrt(0.09 / 300)


def test_a_test_for_one_look_does_not_hold_at_many() -> None:
    """The control: the same looks with a p-value that was made for one."""
    hits = 0
    for s in range(150):
        generator = np.random.default_rng(child_seed("test.control", s))
        values = NOISE["two coins"](generator, 240)
        hits += any(
            paired_permutation_p((values[:n] + 1) / 2, np.full(n, 0.5), resamples=10) <= 0.1 for n in range(16, 241, 8)
        )
    assert hits / 150 > 0.25


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.9])
def test_the_interval_covers_a_reward_at_all_looks_together(rate: float) -> None:
    def missed(bets: Bets) -> bool:  # the interval at 90 % leaves out what is rejected at 5 % from either side
        return bets.rejects(rate, 0.05) or bets.rejects(rate, 0.05, below=True)

    assert ever(lambda g, n: (g.random(n) < rate).astype(float), 200, 20, 10, missed, REWARDS) <= 0.1 + 3 * 0.0212


def test_a_true_gain_is_found_about_as_soon_as_a_planned_test_would() -> None:
    """A gain of .2 between rates .5 and .7: 155 pairs are planned for 80 % power, two-sided at 5 %."""

    def draw(g: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
        return (g.random(n) < 0.7).astype(float) - (g.random(n) < 0.5)

    assert ever(draw, 100, 20, 8, lambda b: b.rejects(0.0, 0.05), DIFFERENCES) > 0.5
    assert ever(draw, 60, 40, 8, lambda b: b.rejects(0.0, 0.05), DIFFERENCES) > 0.9
    tight = Bets(REWARDS).update([1.0, 0.0] * 2000).interval()
    assert tight.high - tight.low < 0.1


def test_values_are_kept_by_count_and_come_back_from_json() -> None:
    bets = Bets().update([1, 0, 0]).update([]).update([-1.0, 0.5])
    assert bets.n == 5
    assert bets.mean == pytest.approx(0.1)
    assert bets.counts == ((-1.0, 1), (0.0, 2), (0.5, 1), (1.0, 1))
    assert Bets.from_dict(json.loads(json.dumps(bets.as_dict(), allow_nan=False))) == bets
    assert Bets().update([0.5, -1, 0]).update([0, 1]) == bets
    assert math.isnan(Bets().mean)


def test_extremes_are_finite_or_said_to_be_infinite() -> None:
    lost, won = Bets().update([-1.0] * 500), Bets().update([1.0] * 500)
    assert lost.p_value() == 1
    assert lost.lower() == -1
    assert lost.upper() < -0.9
    assert won.lower() > 0.9
    assert won.upper() == 1
    assert won.log_wealth(-1.0) == math.inf
    assert lost.log_wealth(-1.0) == 0
    assert won.p_value() < 1e-100


def test_mistakes_are_named() -> None:
    for bad in (1.5, math.nan, -math.inf):
        with pytest.raises(ValueError, match=r"values lie in \[-1, 1\]"):
            Bets().update([0.0, bad])
    with pytest.raises(ValueError, match="the lower one first"):
        Bets((1.0, 0.0))
    with pytest.raises(ValueError, match="lies there too"):
        Bets().log_wealth(2.0)
    for alpha in (0.0, 1.0, 5.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Bets().rejects(0.0, alpha)
    with pytest.raises(ValueError, match=r"expected what Bets\.as_dict gives"):
        Bets.from_dict({"counts": []})
    with pytest.raises(ValueError, match="a count is 1 or more"):
        Bets.from_dict({"bounds": [0, 1], "counts": [[0.5, 0]]})
