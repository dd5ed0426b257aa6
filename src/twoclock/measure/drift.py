"""Kullback–Leibler divergences from numbers: of two categoricals exactly, from samples, and the summary of the drift.

KL(p‖q) = Σ p log(p/q) is in nats, 0 for equal distributions and positive otherwise. Write which distribution the
samples come from: ``live‖base`` takes them from the live model, ``base‖live`` from the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import Interval, mean_interval
from twoclock.types import DriftRecord

__all__ = ["DriftSummary", "KlEstimates", "categorical_kl", "kl_estimates", "summarise_drift"]

Array = npt.NDArray[np.float64]


def categorical_kl(logp: npt.ArrayLike, logq: npt.ArrayLike) -> Array:
    """KL(p‖q) over the last axis, exactly. Log-probabilities or logits of shape (..., V); returns (...) in nats.

    Both are normalised here, so equal inputs give exactly 0. Infinite where p has mass and q has none.
    """
    p, q = _log_softmax(np.asarray(logp, dtype=np.float64)), _log_softmax(np.asarray(logq, dtype=np.float64))
    if p.shape != q.shape:
        raise ValueError(f"both distributions must have one shape; got {p.shape} and {q.shape}")
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
    # The sum is not negative in exact arithmetic; rounding may leave it an ulp below.
    return np.asarray(np.maximum(terms.sum(axis=-1), 0.0))


def _log_softmax(logits: Array) -> Array:
    peak = logits.max(axis=-1, keepdims=True)
    if not np.isfinite(peak).all():
        raise ValueError("logits need a finite maximum: NaN, +inf or a row of -inf was given")
    shifted = logits - peak
    with np.errstate(divide="ignore"):
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


@dataclass(frozen=True, eq=False)
class KlEstimates:
    """Three estimators of KL(q‖p) from samples of q, one value a sample (Schulman, "Approximating KL divergence").

    With r = p/q: k1 = -log r and k3 = r - 1 - log r are unbiased, k2 = ½ (log r)² is biased but never negative. k1 is
    the noisiest: at a KL of .0009 its sd is 47 times its mean, that of k3 1.7 times. The samples must come from q: of
    samples from another policy all three say something else.
    """

    k1: Array
    k2: Array
    k3: Array


def kl_estimates(logq: npt.ArrayLike, logp: npt.ArrayLike) -> KlEstimates:
    """From the log-probabilities, in nats, of samples drawn from q: under q and under the reference p; same shape."""
    q, p = np.asarray(logq, dtype=np.float64), np.asarray(logp, dtype=np.float64)
    if q.shape != p.shape:
        raise ValueError(f"one log-probability a sample under each distribution is needed; got {q.shape} and {p.shape}")
    log_r = p - q
    return KlEstimates(k1=-log_r, k2=0.5 * log_r**2, k3=np.expm1(log_r) - log_r)


@dataclass(frozen=True, kw_only=True)
class DriftSummary:
    """One drift measurement with its uncertainty over prompts, in nats a token."""

    round: int
    prompts: str
    live_base: Interval
    """KL(live‖base), the mean over prompts of each prompt's own mean: every prompt weighs the same, however long its
    continuation. ``estimate_drift`` gives the figure in which every token does."""
    base_live: Interval
    tokens: int


def summarise_drift(records: Sequence[DriftRecord], level: float = 0.95, seed: int = 0) -> list[DriftSummary]:
    """One summary a record, in their order; the intervals are bootstraps over prompts."""
    return [
        DriftSummary(
            round=record.round,
            prompts=record.prompts,
            live_base=_over_prompts(record.per_prompt_live_base, level, seed),
            base_live=_over_prompts(record.per_prompt_base_live, level, seed),
            tokens=record.tokens,
        )
        for record in records
    ]


def _over_prompts(values: Sequence[float], level: float, seed: int) -> Interval:
    if values and not any(values):
        # Exact sums over the vocabulary: zeros mean equal distributions, not the luck of a sample.
        return Interval(0.0, 0.0, 0.0, len(values), level, "exact")
    return mean_interval(values, level, seed)
