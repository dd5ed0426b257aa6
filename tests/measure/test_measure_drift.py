"""The exact divergence against an independent one; the estimators against the exact one; summaries with intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from twoclock.measure import categorical_kl, kl_estimates, summarise_drift
from twoclock.types import DriftRecord


def pair(shift: float, size: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, size)
    return special.log_softmax(logits), special.log_softmax(logits + shift * rng.normal(0, 1, size))


def test_the_exact_divergence_is_the_textbooks() -> None:
    p, q = pair(0.7)
    expected = float(np.sum(special.rel_entr(np.exp(p), np.exp(q))))
    assert categorical_kl(p, q) == pytest.approx(expected, rel=1e-12)
    assert categorical_kl(p + 3.0, q - 5.0) == pytest.approx(expected, rel=1e-9)  # logits serve as well
    assert categorical_kl(np.log([0.5, 0.5]), np.log([0.9, 0.1])) == pytest.approx(0.5 * np.log(0.25 / 0.09))


def test_equal_distributions_diverge_by_nothing_at_all() -> None:
    logits = np.random.default_rng(1).normal(0, 5, (7, 200)).astype(np.float32)
    assert (categorical_kl(logits, logits) == 0.0).all()
    assert (categorical_kl(logits, logits + np.float32(1e-6)) >= 0.0).all()


def test_mass_where_there_is_none_is_infinite() -> None:
    with np.errstate(divide="ignore"):
        some, none = np.log([0.5, 0.5]), np.log([1.0, 0.0])
    assert categorical_kl(some, none) == np.inf
    assert categorical_kl(none, some) == pytest.approx(np.log(2))


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [-np.inf, -np.inf], [np.inf, 0.0]])
def test_logits_that_are_none_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite maximum"):
        categorical_kl(bad, [0.0, 0.0])
    with pytest.raises(ValueError, match="one shape"):
        categorical_kl([0.0, 0.0, 0.0], [0.0, 0.0])


@pytest.mark.parametrize("shift", [0.05, 0.3, 0.8])
def test_k1_and_k3_are_unbiased_and_k3_is_calmer(shift: float) -> None:
    q, p = pair(shift)
    exact, draws = float(categorical_kl(q, p)), 200_000
    samples = np.random.default_rng(2).choice(len(q), size=draws, p=np.exp(q))
    found = kl_estimates(q[samples], p[samples])
    for estimate in (found.k1, found.k3):
        assert abs(estimate.mean() - exact) < 3.5 * estimate.std() / np.sqrt(draws)
    assert (found.k3 >= 0).all()
    assert (found.k2 >= 0).all()
    assert found.k3.std() < found.k1.std()


def test_samples_from_the_wrong_policy_are_not_the_divergence() -> None:
    q, p = pair(0.8)
    exact = float(categorical_kl(q, p))
    samples = np.random.default_rng(2).choice(len(q), size=200_000, p=np.exp(p))
    wrong = kl_estimates(q[samples], p[samples]).k3
    assert abs(wrong.mean() - exact) > 20 * wrong.std() / np.sqrt(len(wrong))


def test_estimators_by_hand() -> None:
    found = kl_estimates(np.log([0.5, 0.25]), np.log([0.25, 0.5]))
    assert found.k1 == pytest.approx([np.log(2), -np.log(2)])
    assert found.k2 == pytest.approx([0.5 * np.log(2) ** 2] * 2)
    assert found.k3 == pytest.approx([0.5 - 1 + np.log(2), 2 - 1 - np.log(2)])
    with pytest.raises(ValueError, match="under each distribution"):
        kl_estimates([0.0], [0.0, 0.0])


def record(live_base: tuple[float, ...], base_live: tuple[float, ...]) -> DriftRecord:
    return DriftRecord(
        round=4,
        prompts="general",
        live_base=0.3,
        base_live=0.2,
        per_prompt_live_base=live_base,
        per_prompt_base_live=base_live,
        tokens=640,
    )


def test_a_summary_has_both_directions_with_intervals_over_prompts() -> None:
    rng = np.random.default_rng(3)
    one, two = tuple(rng.gamma(2, 0.1, 64)), tuple(rng.gamma(2, 0.2, 64))
    (summary,) = summarise_drift([record(one, two)], seed=1)
    assert (summary.round, summary.prompts, summary.tokens) == (4, "general", 640)
    assert (summary.live_base.n, summary.live_base.estimate) == (64, pytest.approx(np.mean(one)))
    assert summary.live_base.low < summary.live_base.estimate < summary.live_base.high
    assert summary.base_live.estimate == pytest.approx(np.mean(two))


def test_no_drift_is_exactly_none() -> None:
    (summary,) = summarise_drift([record((0.0, 0.0, 0.0), ())])
    assert (summary.live_base.estimate, summary.live_base.low, summary.live_base.high) == (0.0, 0.0, 0.0)
    assert not summary.base_live.is_known
