"""The value of a trial: by hand, against simulated trials, and never bought where it cannot change anything."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from twoclock.measure import NormalPosterior, best_trial, posterior_gain, value_of_trial
from twoclock.seeding import child_seed


def test_precisions_add_by_hand() -> None:
    """N(0, ¼²) and .3 ± ¼: half of each, so N(.15, ¼²/2)."""
    found = posterior_gain(NormalPosterior(0.0, 0.25), 0.3, 0.25, n=12)
    assert found.mean == pytest.approx(0.15)
    assert found.sd == pytest.approx(0.25 / math.sqrt(2))
    assert found.n == 12
    assert posterior_gain(NormalPosterior(0.1, 0.0), 5.0, 0.1) == NormalPosterior(0.1, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_posterior_is_bayes_rule_by_quadrature(seed: int) -> None:
    generator = np.random.default_rng(child_seed("test.bayes", seed))
    m, s, estimate, error = generator.normal(0, 0.3), *generator.uniform(0.05, 0.5, size=1), generator.normal(), 0.2

    def joint(x: float) -> float:
        return float(stats.norm.pdf(x, m, s) * stats.norm.pdf(estimate, x, error))

    whole, mean = (
        integrate.quad(lambda x, k=k: x**k * joint(x), -5, 5, points=[m, estimate], limit=300)[0] for k in (0, 1)
    )
    found = posterior_gain(NormalPosterior(float(m), float(s)), float(estimate), error)
    assert found.mean == pytest.approx(mean / whole, rel=1e-6)


def test_a_gain_known_to_be_even_by_hand() -> None:
    """m = 0, s = .3, σ = 1, n = 16: s̃ = .09/√(.09 + .0625), and the trial is worth s̃/√(2π) a use."""
    moved = 0.09 / math.sqrt(0.09 + 1 / 16)
    found = value_of_trial(NormalPosterior(0.0, 0.3), 16, sd=1.0, cost_per_item=0.01, uses=100)
    assert found.information == pytest.approx(100 * moved / math.sqrt(2 * math.pi))
    assert found.cost == pytest.approx(0.16)
    assert found.net == pytest.approx(found.information - 0.16)
    assert found.p_changes == pytest.approx(0.5)
    assert found.worth_it


@pytest.mark.parametrize(("m", "s", "sd", "n"), [(0.0, 0.25, 0.7, 24), (0.1, 0.2, 1.0, 8), (-0.15, 0.1, 0.5, 48)])
def test_the_closed_form_is_what_simulated_trials_bring(m: float, s: float, sd: float, n: int) -> None:
    generator = np.random.default_rng(child_seed("test.trials", n))
    true = generator.normal(m, s, size=200_000)
    seen = generator.normal(true, sd / math.sqrt(n))
    weight = s**2 / (s**2 + sd**2 / n)
    then = m + weight * (seen - m)
    gained = np.where(then > 0, true, 0.0) - max(m, 0.0) * 0 - (true if m > 0 else 0.0)
    found = value_of_trial(NormalPosterior(m, s), n, sd=sd, cost_per_item=0.0)
    assert found.information == pytest.approx(gained.mean(), abs=4 * gained.std() / math.sqrt(len(gained)))
    assert found.p_changes == pytest.approx(np.mean((then > 0) != (m > 0)), abs=0.005)


def test_information_grows_with_items_up_to_knowing_and_is_never_negative() -> None:
    gain = NormalPosterior(0.05, 0.2)
    values = [value_of_trial(gain, n, sd=0.8, cost_per_item=0).information for n in (0, 1, 4, 16, 64, 10**6)]
    assert values == sorted(values)
    assert values[0] == 0
    z = -0.05 / 0.2
    assert values[-1] == pytest.approx(0.2 * (stats.norm.pdf(z) + z * stats.norm.cdf(z)), rel=1e-3)
    far = value_of_trial(NormalPosterior(50.0, 0.1), 100, sd=1.0, cost_per_item=0.001, uses=1e6)
    assert 0 <= far.information < 1e-12
    assert not far.worth_it


def test_the_best_trial_is_the_best_of_all_sizes_and_none_where_none_pays() -> None:
    gain = NormalPosterior(0.02, 0.15)
    best = best_trial(gain, sd=0.7, cost_per_item=0.02, uses=200, most_items=100)
    nets = [value_of_trial(gain, n, sd=0.7, cost_per_item=0.02, uses=200).net for n in range(101)]
    assert best.items == int(np.argmax(nets))
    assert 5 < best.items < 100
    sure = best_trial(NormalPosterior(0.9, 0.05), sd=0.7, cost_per_item=0.02, uses=200, most_items=100)
    assert (sure.items, sure.net, sure.worth_it) == (0, 0.0, False)
    assert best_trial(gain, sd=0.7, cost_per_item=10, uses=1, most_items=50).items == 0
    assert best_trial(gain, sd=0.7, cost_per_item=0.02, uses=200, most_items=3, least_items=8).items == 0


def test_probabilities_and_intervals_of_a_normal() -> None:
    found = NormalPosterior(0.1, 0.05, 7)
    assert found.p_above() == pytest.approx(stats.norm.sf(0, 0.1, 0.05))
    assert found.p_above(0.1) == pytest.approx(0.5)
    assert (found.interval().low, found.interval().n) == (pytest.approx(0.1 - 1.96 * 0.05, abs=1e-4), 7)
    assert NormalPosterior(0.1, 0.0).p_above() == 1.0
    assert NormalPosterior(0.0, 0.0).p_above() == 0.0


def test_mistakes_are_named() -> None:
    gain = NormalPosterior(0.0, 0.1)
    for kwargs, name in (
        ({"sd": -1.0}, "sd"),
        ({"cost_per_item": math.nan}, "cost_per_item"),
        ({"uses": -2.0}, "uses"),
    ):
        with pytest.raises(ValueError, match=f"{name} is a finite number"):
            value_of_trial(gain, 5, **{"sd": 1.0, "cost_per_item": 0.1, **kwargs})
    with pytest.raises(ValueError, match="items is a finite number"):
        value_of_trial(gain, -5, sd=1.0, cost_per_item=0.1)
    for estimate, error in ((math.nan, 0.1), (0.1, 0.0), (0.1, math.inf)):
        with pytest.raises(ValueError, match="a standard error above 0"):
            posterior_gain(gain, estimate, error)
    with pytest.raises(ValueError, match="a posterior has a finite mean"):
        NormalPosterior(math.nan, 0.1)
    with pytest.raises(ValueError, match="at least 1 item"):
        best_trial(gain, sd=1, cost_per_item=0, uses=1, most_items=5, least_items=0)
