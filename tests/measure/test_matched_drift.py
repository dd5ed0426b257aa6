"""Drift at matched reward: read off by hand, planted reductions recovered, and refusals."""

from __future__ import annotations

import pytest

from twoclock.measure import drift_at, matched_drift
from twoclock.seeding import child_rng


def test_drift_is_read_on_the_straight_line_at_the_first_crossing() -> None:
    curve = [(0.0, 0.0), (0.4, 0.1), (0.8, 0.3), (0.5, 0.9), (0.9, 1.0)]
    assert drift_at(curve, 0.6) == pytest.approx(0.2)
    assert drift_at(curve, 0.4) == pytest.approx(0.1)
    assert drift_at(curve, 0.85) == pytest.approx(0.9875)
    assert drift_at(curve, 0.95) is None
    assert drift_at([(0.5, 0.0)], 0.3) == 0.0
    assert drift_at([], 0.3) is None
    with pytest.raises(ValueError, match="are numbers"):
        drift_at([(0.1, float("nan"))], 0.05)


def noisy(slope: float, seed: int, name: str) -> list[tuple[float, float]]:
    """Drift grows as slope × score, with a tenth of noise."""
    rng = child_rng("matched", name, seed)
    return [(s / 10, slope * s / 10 * (1 + 0.1 * rng.uniform(-1, 1))) for s in range(11)]


def test_a_planted_reduction_is_recovered() -> None:
    arm = {seed: noisy(0.3, seed, "arm") for seed in range(6)}
    than = {seed: noisy(1.0, seed, "than") for seed in range(6)}
    found = matched_drift(arm, than, 0.55)
    assert found.reduction.estimate == pytest.approx(0.7, abs=0.05)
    assert found.reduction.low < found.reduction.estimate < found.reduction.high
    assert found.reduction.excludes_zero
    assert found.reduction.seeds == 6


def test_an_arm_against_itself_shows_nothing() -> None:
    arm = {seed: noisy(0.5, seed, "arm") for seed in range(6)}
    than = {seed: noisy(0.5, seed, "than") for seed in range(6)}
    assert not matched_drift(arm, than, 0.55).reduction.excludes_zero


def test_no_reduction_is_above_one() -> None:
    """Two seeds that differ widely give an interval of the ratio that reaches below 0; a drift does not."""
    arm = {0: [(0.5, 0.0)], 1: [(0.5, 0.4)], 2: [(0.5, 0.0)]}
    than = {0: [(0.5, 0.9)], 1: [(0.5, 1.1)], 2: [(0.5, 1.0)]}
    found = matched_drift(arm, than, 0.5).reduction
    assert found.low < found.estimate < found.high == 1.0


def test_what_is_refused() -> None:
    low = {0: [(0.1, 0.0), (0.2, 0.1)], 1: [(0.1, 0.0), (0.2, 0.1)]}
    high = {seed: noisy(1.0, seed, "than") for seed in range(2)}
    assert not matched_drift(low, high, 0.5).reduction.is_known
    assert "no seed in which both arms reach 0.5" in matched_drift(low, high, 0.5).reduction.method
    still = {seed: [(0.9, 0.0)] for seed in range(2)}
    assert "has not moved" in matched_drift(high, still, 0.5).reduction.method
    one = matched_drift({0: high[0]}, {0: high[1]}, 0.5).reduction
    assert one.is_known
    assert one.low != one.low  # one seed has no interval
