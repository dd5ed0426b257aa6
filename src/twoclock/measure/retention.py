"""What a stream of tasks left behind: the matrix of scores (phase × task) and the numbers that continual learning takes
from it.

Row ``i`` of R is the system after phase i, row 0 the untouched start; column ``j`` is the task of phase j, counted from
1 as in the papers. Scores lie in [0, 1], higher is better; every metric is in the same unit. Formulas differ between
papers and code bases under the same names, so each function states its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from twoclock.measure.statistics import Interval, constant_interval, mean_interval, unknown
from twoclock.seeding import child_seed

__all__ = [
    "RetentionSummary",
    "ScoreMatrix",
    "anytime_average",
    "backward_transfer",
    "final_average",
    "forgetting",
    "forward_transfer",
    "summarise_retention",
]

Array = npt.NDArray[np.float64]

RESAMPLES = 4_000


# ------------------------------------------------------------------------------------- the metrics, R of (..., T+1, T)


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


def forgetting(scores: Array) -> Array:
    """F = (1/(T-1)) Σ_{j<T} (max_{0<=l<T} R[l, j] - R[T, j]), in [-1, 1], positive is loss: against the best a task
    ever was (RWalk, arXiv:1801.10112). The maximum begins at the untouched start, l = 0, because a language model can
    lose what it never had to learn. F >= -BWT always. Rows where a task was not measured are left out of the maximum;
    its own phase must have been. NaN for one task."""
    count = _check(scores)
    if count < 2:
        return np.full(scores.shape[:-2], np.nan)
    best = np.fmax.reduce(scores[..., :-1, :-1], axis=-2)
    best = np.where(np.isnan(_diagonal(scores)[..., :-1]), np.nan, best)
    return np.asarray((best - scores[..., -1, :-1]).mean(axis=-1))


def forward_transfer(scores: Array) -> Array:
    """FWT = (1/(T-1)) Σ_{j>=2} (R[j-1, j] - R[0, j]), in [-1, 1], higher is better: what earlier tasks gave to a task
    before it was trained (GEM). The reference is the untouched start, not a random initialisation. NaN for one task."""
    count = _check(scores)
    if count < 2:
        return np.full(scores.shape[:-2], np.nan)
    before = np.stack([scores[..., j, j] for j in range(1, count)], axis=-1)  # row j-1 of column j, from 1
    return np.asarray((before - scores[..., 0, 1:]).mean(axis=-1))


def _diagonal(scores: Array) -> Array:
    """R[j, j]: each task right after its own phase; shape (..., T)."""
    return np.stack([scores[..., j + 1, j] for j in range(scores.shape[-1])], axis=-1)


# ------------------------------------------------------------------------------------------------ with their intervals


@dataclass(frozen=True, kw_only=True)
class ScoreMatrix:
    """The scores of each item behind R. A cell that was not measured is None."""

    tasks: tuple[str, ...]
    """The task of each phase: the columns. A task may come twice."""
    rounds: tuple[int, ...]
    """The round at whose end each row was measured; row 0 is the start."""
    rewards: tuple[tuple[Mapping[str, float] | None, ...], ...]
    """For each row and column the reward of each item by its id."""

    def column(self, j: int) -> Array:
        """Rewards (rows, items) of column ``j``, counted from 0, on the items that all its measured cells share;
        NaN in rows that were not measured."""
        cells = [row[j] for row in self.rewards]
        measured = [cell for cell in cells if cell is not None]
        shared = [item for item in measured[0] if all(item in cell for cell in measured)] if measured else []
        if measured and not shared:
            raise ValueError(f"the evaluations of '{self.tasks[j]}' have no item in common; they cannot be compared")
        return np.array(
            [[cell[item] if cell is not None else np.nan for item in shared] for cell in cells], dtype=np.float64
        )

    @property
    def means(self) -> Array:
        """R itself: (rows, tasks), NaN where nothing was measured."""
        columns = [self.column(j) for j in range(len(self.tasks))]
        means = [column.mean(axis=1) if column.size else np.full(len(column), np.nan) for column in columns]
        return np.stack(means, axis=1) if means else np.zeros((len(self.rounds), 0))

    def cell(self, i: int, j: int, level: float = 0.95, seed: int = 0) -> Interval:
        """One cell with its interval over its own items; unknown where nothing was measured."""
        rewards = self.rewards[i][j]
        if rewards is None:
            return unknown(0, level)
        return mean_interval(list(rewards.values()), level, seed, bounds=(0, 1))


@dataclass(frozen=True, kw_only=True)
class RetentionSummary:
    """The metrics over the phases that are finished; unknown (NaN) where a cell they need was not measured, or where
    they need two finished phases. The intervals are over items (n counts those of all tasks), not over task orders or
    training seeds; forgetting's maximum makes its interval lean upwards a little."""

    phases: int
    final_average: Interval
    anytime_average: Interval
    backward_transfer: Interval
    forgetting: Interval
    forward_transfer: Interval


def summarise_retention(matrix: ScoreMatrix, level: float = 0.95, seed: int = 0) -> RetentionSummary:
    """All metrics, each with a percentile bootstrap of items within their tasks; rows stay paired."""
    phases = min(len(matrix.rounds) - 1, len(matrix.tasks))
    columns = [matrix.column(j)[: phases + 1] for j in range(phases)]
    items = sum(column.shape[1] for column in columns)
    if phases < 1 or any(column.shape[1] == 0 for column in columns):
        none = unknown(0, level)
        return RetentionSummary(
            phases=max(phases, 0), final_average=none, anytime_average=none, backward_transfer=none, forgetting=none,
            forward_transfer=none,
        )  # fmt: skip
    exact = np.stack([column.mean(axis=1) for column in columns], axis=-1)
    drawn = np.stack([_resampled(column, seed, j) for j, column in enumerate(columns)], axis=-1)

    def interval(metric: Callable[[Array], Array], least: float) -> Interval:
        estimate = float(metric(exact))
        if np.isnan(estimate):
            return unknown(0, level)
        if all(_is_constant(column) for column in columns):
            # No resample can differ; the smallest task says how much of a population might.
            smallest = min(column.shape[1] for column in columns)
            return replace(constant_interval(estimate, smallest, level, (least, 1.0)), n=items)
        low, high = np.quantile(metric(drawn), [(1 - level) / 2, (1 + level) / 2])
        return Interval(estimate, float(low), float(high), items, level, "bootstrap of items within tasks")

    return RetentionSummary(
        phases=phases,
        final_average=interval(final_average, 0.0),
        anytime_average=interval(anytime_average, 0.0),
        backward_transfer=interval(backward_transfer, -1.0),
        forgetting=interval(forgetting, -1.0),
        forward_transfer=interval(forward_transfer, -1.0),
    )


def _is_constant(column: Array) -> bool:
    return bool(((column == column[:, :1]) | np.isnan(column)).all())


def _resampled(column: Array, seed: int, index: int) -> Array:
    """Row means of bootstrap samples of the items: (resamples, rows)."""
    n = column.shape[1]
    generator = np.random.default_rng(child_seed("measure.retention", seed, index))
    chunk = max(1, 1_000_000 // n)
    counts: Sequence[Array] = [
        generator.multinomial(n, np.full(n, 1 / n), size=min(chunk, RESAMPLES - start)) @ column.T / n
        for start in range(0, RESAMPLES, chunk)
    ]
    return np.concatenate(counts)
