"""What a stream of tasks left behind: the matrix of scores (phase × task), and the metrics with their intervals.

The formulas stand in ``stream_metrics``; here they meet the items behind each score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import Interval, constant_interval, expanded_tails, mean_interval, unknown
from twoclock.measure.stream_metrics import (
    anytime_average,
    backward_transfer,
    final_average,
    forgetting,
    forward_transfer,
    worst_case,
)
from twoclock.seeding import child_seed

__all__ = [
    "ReferenceSummary",
    "RetentionSummary",
    "ScoreMatrix",
    "mean_over_tasks",
    "summarise_references",
    "summarise_retention",
    "worst_case_interval",
]

Array = npt.NDArray[np.float64]

RESAMPLES = 4_000
ROUNDING = 1e-12
"""Sums of the same rewards in another order differ by less."""


def _forgetting_since_first(scores: Array) -> Array:
    return forgetting(scores, first_row=1)


LINEAR: Mapping[str, Callable[[Array], Array]] = {
    "final_average": final_average,
    "anytime_average": anytime_average,
    "backward_transfer": backward_transfer,
    "forward_transfer": forward_transfer,
}
LARGEST: Mapping[str, Callable[[Array], Array]] = {
    "forgetting": forgetting,
    "forgetting_since_first": _forgetting_since_first,
}
"""Metrics with a maximum over rows, which noise makes larger."""


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
    training seeds. Definitions: ``METRICS``."""

    phases: int
    final_average: Interval
    anytime_average: Interval
    backward_transfer: Interval
    forgetting: Interval
    forgetting_since_first: Interval
    """Against the best since the first phase, as the paper has it; ``forgetting`` begins at the untouched start."""
    forward_transfer: Interval


def summarise_retention(matrix: ScoreMatrix, level: float = 0.95, seed: int = 0) -> RetentionSummary:
    """All metrics, each with a bootstrap of items within their tasks; rows stay paired."""
    phases = min(len(matrix.rounds) - 1, len(matrix.tasks))
    columns = [matrix.column(j)[: phases + 1] for j in range(phases)]
    empty = phases < 1 or any(column.shape[1] == 0 for column in columns)
    sample = _Sample(columns, seed)
    found = {}
    for name, metric in LINEAR.items():
        least = 0.0 if metric in (final_average, anytime_average) else -1.0
        found[name] = unknown(0, level) if empty else sample.interval(metric, (least, 1.0), level)
    for name, metric in LARGEST.items():
        found[name] = unknown(0, level) if empty else sample.interval(metric, (-1.0, 1.0), level, of_maxima=True)
    return RetentionSummary(phases=max(phases, 0), **found)


@dataclass(frozen=True, eq=False)
class _Sample:
    """The items of each task, (rows, items) each, and their bootstrap within tasks."""

    columns: Sequence[Array]
    seed: int

    @cached_property
    def exact(self) -> Array:
        return np.stack([column.mean(axis=1) for column in self.columns], axis=-1)

    @cached_property
    def drawn(self) -> Array:
        return np.stack([_resampled(column, self.seed, j) for j, column in enumerate(self.columns)], axis=-1)

    def interval(
        self,
        metric: Callable[[Array], Array],
        bounds: tuple[float, float],
        level: float,
        *,
        of_maxima: bool = False,
    ) -> Interval:
        """A metric of (..., rows, tasks). A mean takes percentiles.

        One ``of_maxima`` f is larger on noise than on the truth, but f(R̂) - f(R) <= f(R̂ - R) as maxima are
        subadditive, and f(R̂ - R) can be resampled: its quantiles give bounds that hold, and that are exact where
        nothing was forgotten at all, which is where false alarms would come from.
        """
        items = sum(column.shape[1] for column in self.columns)
        estimate = float(metric(self.exact))
        if np.isnan(estimate):
            return unknown(0, level)
        fewest = min(column.shape[1] for column in self.columns)
        tails = expanded_tails(level, fewest)  # the smallest task is the least certain part
        if of_maxima:
            moves = (self.drawn - self.exact, self.exact - self.drawn)
            over, under = (max(float(np.quantile(metric(move), tails[1])), 0.0) for move in moves)
            low, high = estimate - over, estimate + under
            method = "bootstrap of items within tasks, corrected for the maximum"
        else:
            low, high = (float(end) for end in np.quantile(metric(self.drawn), tails))
            low, high = _and_what_never_varied(estimate, low, high, self._never_varied(metric, level))
            method = "bootstrap of items within tasks"
        if all(_is_constant(column) for column in self.columns) or high - low < ROUNDING:
            # No resample differs; the smallest task says how much of a population might.
            return replace(constant_interval(estimate, fewest, level, bounds), n=items)
        return Interval(estimate, max(low, bounds[0]), min(high, bounds[1]), items, level, method)

    def _never_varied(self, metric: Callable[[Array], Array], level: float) -> list[tuple[float, float]]:
        """How far down and up the part of each task may lie whose items all add the same to a linear metric. A
        bootstrap takes such a task for certain, and 40 of 40 items alike are not."""
        found = []
        for j, column in enumerate(self.columns):
            rows, items = column.shape

            def of_task(means: Array, j: int = j) -> Array:
                """The metric of scores that are 0 on all other tasks, from the rows (n, rows) of this one."""
                scores = np.zeros((len(means), self.exact.shape[0], self.exact.shape[1]))
                scores[..., j] = means
                return metric(scores)

            parts = of_task(column.T)
            if np.isnan(parts).any() or np.ptp(parts) > ROUNDING:
                continue
            weights = of_task(np.where(np.isnan(column[:, 0]), np.nan, 0.0) + np.eye(rows))
            weights = weights[~np.isnan(weights)]
            ends = float(weights[weights < 0].sum()), float(weights[weights > 0].sum())
            part = constant_interval(float(parts[0]), items, level, ends)
            found.append((part.estimate - part.low, part.high - part.estimate))
        return found


def _and_what_never_varied(
    estimate: float, low: float, high: float, more: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Independent parts of a sum: the distances to their limits add up as standard errors do (Zou and Donner 2008)."""
    down, up = (math.hypot(*distances) for distances in zip((estimate - low, high - estimate), *more, strict=True))
    return estimate - down, estimate + up


def _is_constant(column: Array) -> bool:
    return bool(((column == column[:, :1]) | np.isnan(column)).all())


def _resampled(column: Array, seed: int, index: int) -> Array:
    """Row means of bootstrap samples of the items: (resamples, rows)."""
    n = column.shape[1]
    generator = np.random.default_rng(child_seed("measure.retention", seed, index))
    chunk, means = max(1, 1_000_000 // n), []
    for start in range(0, RESAMPLES, chunk):
        count = min(chunk, RESAMPLES - start)
        drawn = generator.integers(0, n, size=(count, n)) + np.arange(count)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        means.append(times @ column.T / n)
    return np.concatenate(means)


# ---------------------------------------------------------------------------------------- against other runs, and dips


@dataclass(frozen=True, kw_only=True)
class ReferenceSummary:
    """What the stream gave against runs that learned otherwise; unknown where such a run was not given."""

    forward_transfer_alone: Interval
    intransigence: Interval


def summarise_references(
    matrix: ScoreMatrix,
    *,
    alone: Mapping[str, Mapping[str, float]] | None = None,
    joint: Mapping[str, Mapping[str, float]] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> ReferenceSummary:
    """``alone`` has for each task the reward of each item after the same budget on that task alone, ``joint`` after
    training on all tasks at once. Compared on the items that both measured."""
    phases = min(len(matrix.rounds) - 1, len(matrix.tasks))

    def against(others: Mapping[str, Mapping[str, float]] | None, sign: float) -> Interval:
        if others is None or phases < 1:
            return unknown(0, level)
        learned = [(matrix.tasks[j], matrix.rewards[j + 1][j]) for j in range(phases)]
        differences = []
        for task, rewards in learned:
            if rewards is None or task not in others:
                return unknown(0, level)
            differences.append(_item_differences(task, rewards, others[task]) * sign)
        return mean_over_tasks(differences, level, seed)

    return ReferenceSummary(forward_transfer_alone=against(alone, 1.0), intransigence=against(joint, -1.0))


def _item_differences(task: str, a: Mapping[str, float], b: Mapping[str, float]) -> Array:
    items = [item for item in a if item in b]
    if not items:
        raise ValueError(f"the evaluations of '{task}' have no item in common; they cannot be compared")
    return np.array([a[item] - b[item] for item in items], dtype=np.float64)


def mean_over_tasks(differences: Sequence[Array], level: float = 0.95, seed: int = 0) -> Interval:
    """The mean over tasks of each one's mean difference of rewards, one number an item, in [-1, 1]; every task weighs
    the same, items are resampled within their tasks. ``n`` counts all items."""
    if not differences or any(len(values) == 0 for values in differences):
        return unknown(0, level)

    def mean(scores: Array) -> Array:
        return np.asarray(scores[..., 0, :].mean(axis=-1))

    return _Sample([values[None, :] for values in differences], seed).interval(mean, (-1.0, 1.0), level)


def worst_case_interval(matrix: ScoreMatrix, ends: Sequence[int], level: float = 0.95, seed: int = 0) -> Interval:
    """:func:`worst_case` of a matrix with a row each time that something was measured, ``ends`` as there. Unknown for
    one phase, or where an earlier task was never measured again."""
    columns = [matrix.column(j) for j in range(len(ends))]
    if len(ends) < 2 or any(column.shape[1] == 0 for column in columns):
        return unknown(0, level)

    def badness(scores: Array) -> Array:
        return -worst_case(scores, ends)

    found = _Sample(columns, seed).interval(badness, (-1.0, 0.0), level, of_maxima=True)
    return replace(found, estimate=-found.estimate, low=-found.high, high=-found.low)
