"""The numbers that continual learning takes from the scores of a stream of tasks: formulas on arrays, nothing else.

Row ``i`` of R is the system after phase i, row 0 the untouched start; column ``j`` is the task of phase j, counted from
1 as in the papers. Scores lie in [0, 1], higher is better; every metric is in the same unit. Formulas differ between
papers and code bases under the same names, and one public library computes the opposite sign of what its text says: so
each function states its own, and ``METRICS`` says it once more for tables and glossaries. All take arrays of shape
(..., T + 1, T), so that a whole bootstrap is one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "METRICS",
    "MetricDefinition",
    "anytime_average",
    "backward_transfer",
    "base_forgetting",
    "final_average",
    "forgetting",
    "forward_transfer",
    "forward_transfer_alone",
    "intransigence",
    "worst_case",
]

Array = npt.NDArray[np.float64]


def _check(scores: Array) -> int:
    if scores.ndim < 2 or scores.shape[-2] != scores.shape[-1] + 1 or scores.shape[-1] == 0:
        raise ValueError(f"scores need T + 1 rows (the start and T phases) by T tasks; got shape {scores.shape}")
    return int(scores.shape[-1])


def final_average(scores: Array) -> Array:
    """ACC = (1/T) Σ_j R[T, j], in [0, 1], higher is better: the system at the end, over all tasks. It hides forgetting
    where later tasks are easier."""
    _check(scores)
    return np.asarray(scores[..., -1, :].mean(axis=-1))


def anytime_average(scores: Array) -> Array:
    """AAA = (1/T) Σ_i (1/i) Σ_{j<=i} R[i, j], in [0, 1], higher is better: over the whole life, on the tasks met so
    far."""
    count = _check(scores)
    rows = [scores[..., i, :i].mean(axis=-1) for i in range(1, count + 1)]
    return np.asarray(np.mean(rows, axis=0))


def backward_transfer(scores: Array) -> Array:
    """BWT = (1/(T-1)) Σ_{j<T} (R[T, j] - R[j, j]), in [-1, 1], negative is loss: what learning later tasks did to
    earlier ones (GEM, arXiv:1706.08840). NaN for one task."""
    count = _check(scores)
    if count < 2:
        return np.full(scores.shape[:-2], np.nan)
    return np.asarray((scores[..., -1, :-1] - _diagonal(scores)[..., :-1]).mean(axis=-1))


def forgetting(scores: Array, first_row: int = 0) -> Array:
    """F = (1/(T-1)) Σ_{j<T} (max_{l0<=l<T} R[l, j] - R[T, j]), in [-1, 1], positive is loss: against the best a task
    ever was (RWalk, arXiv:1801.10112). The maximum begins at the untouched start, l0 = 0, because a language model can
    lose what it never had to learn; ``first_row=1`` is the paper's own. F >= -BWT always. Rows where a task was not
    measured are left out of the maximum; its own phase must have been. NaN for one task."""
    count = _check(scores)
    if first_row not in (0, 1):
        raise ValueError(f"the maximum begins at the start (0) or after the first phase (1); got {first_row}")
    if count < 2:
        return np.full(scores.shape[:-2], np.nan)
    best = np.fmax.reduce(scores[..., first_row:-1, :-1], axis=-2)
    best = np.where(np.isnan(_diagonal(scores)[..., :-1]), np.nan, best)
    return np.asarray((best - scores[..., -1, :-1]).mean(axis=-1))


def forward_transfer(scores: Array) -> Array:
    """FWT = (1/(T-1)) Σ_{j>=2} (R[j-1, j] - R[0, j]), in [-1, 1], higher is better: what earlier tasks gave to a task
    before it was trained (GEM). The reference is the untouched start, b_j = R[0, j], not a random initialisation. NaN
    for one task."""
    count = _check(scores)
    if count < 2:
        return np.full(scores.shape[:-2], np.nan)
    before = np.stack([scores[..., j, j] for j in range(1, count)], axis=-1)  # row j-1 of column j, from 1
    return np.asarray((before - scores[..., 0, 1:]).mean(axis=-1))


def forward_transfer_alone(scores: Array, alone: Array) -> Array:
    """FWT = (1/T) Σ_j (R[j, j] - S_j), in [-1, 1], higher is better: a task after its phase in the stream against S_j,
    the same budget on that task alone from the base (SAPT, arXiv:2401.08295). ``alone`` has shape (..., T)."""
    return np.asarray((_diagonal(scores) - _references(scores, alone)).mean(axis=-1))


def intransigence(scores: Array, joint: Array) -> Array:
    """I = (1/T) Σ_j (S*_j - R[j, j]), in [-1, 1], positive is loss: what the stream could not learn that training on
    all tasks at once can, S*_j (RWalk). ``joint`` has shape (..., T)."""
    return np.asarray((_references(scores, joint) - _diagonal(scores)).mean(axis=-1))


def base_forgetting(start: Array, now: Array) -> Array:
    """BF = mean over suites of (R[0, s] - R[T, s]), in [-1, 1], positive is loss: on suites that were never trained on,
    what users call "it got dumber". Both of shape (..., suites)."""
    if start.shape != now.shape or start.ndim == 0 or start.shape[-1] == 0:
        raise ValueError(f"each suite needs a score at the start and now; got shapes {start.shape} and {now.shape}")
    return np.asarray((start - now).mean(axis=-1))


def worst_case(scores: Array, ends: Sequence[int]) -> Array:
    """WC = (1/k) R[now, k] + (1 - 1/k) minACC, minACC = (1/(k-1)) Σ_{i<k} min_{n > t_i} R[n, i], in [0, 1], higher is
    better: the last task now, and the earlier ones at their worst ever since (arXiv:2205.13452). It sees the dip right
    after a switch that recovers, if somebody measured inside the phases.

    ``scores`` has shape (..., rows, tasks) with a row each time that something was measured, NaN where a task was not;
    ``ends`` has for each finished phase the row at its end, t_i. NaN for one phase, or where an earlier task was never
    measured again."""
    count = len(ends)
    rows, tasks = scores.shape[-2:]
    if not 0 < count <= tasks or list(ends) != sorted(set(ends)) or not 0 <= ends[0] <= ends[-1] < rows:
        raise ValueError(f"ends are rising rows, one a phase, of {rows} rows and {tasks} tasks; got {list(ends)}")
    if count < 2:
        return np.full(scores.shape[:-2], np.nan)
    worst = [np.fmin.reduce(scores[..., end + 1 :, i], axis=-1, initial=np.nan) for i, end in enumerate(ends[:-1])]
    last = scores[..., ends[-1] :, count - 1]
    now = np.asarray(last[..., -1])
    for row in range(last.shape[-1] - 2, -1, -1):
        now = np.where(np.isnan(now), last[..., row], now)
    return np.asarray(now / count + (1 - 1 / count) * np.mean(worst, axis=0))


def _references(scores: Array, others: Array) -> Array:
    count = _check(scores)
    if others.shape[-1:] != (count,):
        raise ValueError(f"one reference score a task is needed, {count} of them; got shape {others.shape}")
    return others


def _diagonal(scores: Array) -> Array:
    """R[j, j]: each task right after its own phase; shape (..., T)."""
    return np.stack([scores[..., j + 1, j] for j in range(scores.shape[-1])], axis=-1)


# -------------------------------------------------------------------------------------------- what they mean, in words


@dataclass(frozen=True, kw_only=True)
class MetricDefinition:
    """One metric for a glossary; the unit of all is that of the score."""

    name: str
    """As in the records: a field or a function of that name."""
    symbol: str
    formula: str
    better: Literal["higher", "lower"]
    least: float
    most: float
    source: str


METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        name="final_average", symbol="ACC", better="higher", least=0, most=1, source="GEM, arXiv:1706.08840",
        formula="(1/T) Σ_j R[T,j]",
    ),
    MetricDefinition(
        name="anytime_average", symbol="AAA", better="higher", least=0, most=1, source="average anytime accuracy",
        formula="(1/T) Σ_i (1/i) Σ_{j≤i} R[i,j]",
    ),
    MetricDefinition(
        name="backward_transfer", symbol="BWT", better="higher", least=-1, most=1, source="GEM, arXiv:1706.08840",
        formula="(1/(T-1)) Σ_{j<T} (R[T,j] - R[j,j])",
    ),
    MetricDefinition(
        name="forgetting", symbol="F", better="lower", least=-1, most=1,
        source="RWalk, arXiv:1801.10112, with the maximum begun at the untouched start",
        formula="(1/(T-1)) Σ_{j<T} (max_{0≤l<T} R[l,j] - R[T,j])",
    ),
    MetricDefinition(
        name="forgetting_since_first", symbol="F₁", better="lower", least=-1, most=1, source="RWalk, arXiv:1801.10112",
        formula="(1/(T-1)) Σ_{j<T} (max_{1≤l<T} R[l,j] - R[T,j])",
    ),
    MetricDefinition(
        name="forward_transfer", symbol="FWT", better="higher", least=-1, most=1,
        source="GEM, arXiv:1706.08840, with b_j = R[0,j]", formula="(1/(T-1)) Σ_{j≥2} (R[j-1,j] - R[0,j])",
    ),
    MetricDefinition(
        name="forward_transfer_alone", symbol="FWT (SAPT)", better="higher", least=-1, most=1,
        source="SAPT, arXiv:2401.08295", formula="(1/T) Σ_j (R[j,j] - S_j), S_j: task j alone on the same budget",
    ),
    MetricDefinition(
        name="intransigence", symbol="I", better="lower", least=-1, most=1, source="RWalk, arXiv:1801.10112",
        formula="(1/T) Σ_j (S*_j - R[j,j]), S*_j: trained on all tasks at once",
    ),
    MetricDefinition(
        name="base_forgetting", symbol="BF", better="lower", least=-1, most=1, source="twoclock",
        formula="mean over suites s of (R[0,s] - R[T,s])",
    ),
    MetricDefinition(
        name="worst_case", symbol="WC", better="higher", least=0, most=1, source="arXiv:2205.13452",
        formula="(1/k) R[now,k] + (1 - 1/k) (1/(k-1)) Σ_{i<k} min_{n>t_i} R[n,i]",
    ),
)  # fmt: skip
