"""Learning curves of recorded runs: what sample efficiency, asymptotes and plasticity are read off."""

from __future__ import annotations

from collections.abc import Sequence

from twoclock.measure import Cell, LearningCurve, Spent, learning_curve
from twoclock.store import RunStore
from twoclock.types import LedgerEntry

__all__ = ["run_curve", "spent_by_round"]


def run_curve(store: RunStore, task: str, *, start: str, cell: Cell = ("live", "learned")) -> LearningCurve:
    """A run's curve on one of its tasks, for :func:`~twoclock.measure.sample_efficiency` and
    :func:`~twoclock.measure.fit_asymptote`: its recorded evaluations of one cell against all that learning had spent
    until then. ``start`` names the arm, such as the method; the seed is the run's own.

    A run evaluates at the end of each phase, and in between with ``[measure] every``. ValueError for fewer than two
    evaluations.
    """
    seed = int(store.config.get("run", {}).get("seed", 0))
    return learning_curve(store.evaluations(), spent_by_round(store), task, start=start, seed=seed, cell=cell)


def spent_by_round(store: RunStore) -> list[Spent]:
    """What each round spent on learning: its own rollouts, and what the channels' proposals and trials took."""
    by_round: dict[int, list[LedgerEntry]] = {}
    for entry in store.entries():
        by_round.setdefault(entry.round, []).append(entry)
    return [_spent(store, row.round, dict(row.metrics), by_round.get(row.round, [])) for row in store.rounds()]


def _spent(store: RunStore, round: int, metrics: dict[str, float], entries: Sequence[LedgerEntry]) -> Spent:
    read = metrics["prompt_tokens"] + metrics["completion_tokens"] + metrics.get("watch_tokens", 0.0)
    return Spent(
        round=round,
        problems=len({row.item_id for row in store.rollouts(round)}),
        rollouts=int(metrics["rollouts"] + metrics.get("watch_rollouts", 0))
        + sum(entry.cost.rollouts for entry in entries),
        tokens=int(read) + sum(entry.cost.tokens for entry in entries),
        dead_groups=metrics["dead_groups"],
    )
