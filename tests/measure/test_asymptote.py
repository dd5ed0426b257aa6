"""The four-parameter fit: what is planted is found and covered, and what a run has not shown is not said."""

from __future__ import annotations

import numpy as np
import pytest
from learning_curves import curve

from twoclock.measure import AsymptoteFit, LearningCurve, NoAsymptote, fit_asymptote

LOW, HIGH, MID, STEEP = 0.1, 0.6, 1000.0, 2.0
KNEE = MID * (2 + 3**0.5) ** (1 / STEEP)


def truth(spent: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(LOW + (HIGH - LOW) / (1 + (MID / spent) ** STEEP))


def run(end: float, seed: int, points: int = 20, n: int = 500) -> LearningCurve:
    every = int(end / (points - 1))
    rng = np.random.default_rng([3, seed])
    return curve([float(rng.binomial(n, p) / n) for p in truth(np.arange(points) * every)], every=every, n=n, seed=seed)


def test_without_noise_all_four_are_found() -> None:
    clean = curve(list(truth(np.arange(30) * 200.0)), every=200)
    found = fit_asymptote(clean)
    assert isinstance(found, AsymptoteFit)
    assert found.asymptote.estimate == pytest.approx(HIGH, abs=1e-4)
    assert found.start.estimate == pytest.approx(LOW, abs=1e-4)
    assert found.midpoint.estimate == pytest.approx(MID, rel=1e-3)
    assert found.steepness.estimate == pytest.approx(STEEP, rel=1e-3)
    assert found.knee == pytest.approx(KNEE, rel=1e-3)
    assert found.at([0.0, MID]) == pytest.approx([LOW, (LOW + HIGH) / 2], abs=1e-3)
    assert found.residual < 1e-4
    assert str(found).startswith("0.60 [0.60, 0.60] (n=30) of one run; its knee at 1,9")
    in_rollouts = fit_asymptote(clean, "rollouts")
    assert isinstance(in_rollouts, AsymptoteFit)
    assert in_rollouts.midpoint.estimate == pytest.approx(16 * MID, rel=1e-3)


def test_the_knee_is_where_the_curve_bends_most() -> None:
    logs = np.linspace(np.log(50), np.log(50_000), 20_001)
    bend = np.gradient(np.gradient(truth(np.exp(logs)), logs), logs)
    assert np.exp(logs[bend[100:-100].argmin() + 100]) == pytest.approx(KNEE, rel=0.01)


def test_the_interval_covers_what_it_says() -> None:
    found = [fit_asymptote(run(5 * KNEE, seed)) for seed in range(40)]
    fits = [fit for fit in found if isinstance(fit, AsymptoteFit)]
    assert len(fits) >= 37
    hits = sum(not fit.asymptote.excludes(HIGH) for fit in fits)
    assert hits / len(fits) >= 0.875  # 40 runs: two standard errors below .95
    for fit in fits:
        assert fit.asymptote.low < fit.asymptote.estimate < fit.asymptote.high
        assert fit.start.low < fit.start.estimate < fit.start.high
        assert fit.midpoint.low < fit.midpoint.estimate < fit.midpoint.high
        assert (fit.asymptote.n, fit.asymptote.seeds) == (20, 1)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_run_that_stops_before_the_knee_is_refused(share: float) -> None:
    found = [fit_asymptote(run(share * KNEE, seed)) for seed in range(25)]
    refused = [fit for fit in found if isinstance(fit, NoAsymptote)]
    assert len(refused) >= 24
    assert any("before the knee" in fit.reason or "too early" in fit.reason for fit in refused)


def test_a_straight_line_is_refused() -> None:
    found = fit_asymptote(curve([0.1 + 0.02 * i for i in range(20)]))
    assert isinstance(found, NoAsymptote)
    assert "stops" in found.reason
    assert str(found) == f"no asymptote: {found.reason}"


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([0.1, 0.3, 0.5, 0.55, 0.56, 0.57], "6 points; four parameters"),
        ([0.5, 0.52, 0.48, 0.51, 0.49, 0.5, 0.52, 0.47, 0.5, 0.51], "does not rise"),
        ([0.9, 0.7, 0.5, 0.4, 0.35, 0.32, 0.31, 0.3, 0.3, 0.3], "does not rise"),
        ([0.5] * 12, "does not rise"),
    ],
)
def test_curves_without_an_asymptote_are_refused(scores: list[float], reason: str) -> None:
    found = fit_asymptote(curve(scores))
    assert isinstance(found, NoAsymptote)
    assert reason in found.reason
    assert found.points == len(scores)


def test_noise_at_the_start_can_be_left_out() -> None:
    scores = list(truth(np.arange(30) * 200.0))
    spoilt = curve([0.55, 0.5, *scores[2:]], every=200)
    found = fit_asymptote(spoilt, skip=2)
    assert isinstance(found, AsymptoteFit)
    assert found.asymptote.estimate == pytest.approx(HIGH, abs=1e-3)
    assert found.asymptote.n == 28
    with pytest.raises(ValueError, match="skip counts points"):
        fit_asymptote(spoilt, skip=-1)
    assert isinstance(fit_asymptote(spoilt, skip=40), NoAsymptote)
