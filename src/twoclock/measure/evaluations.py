"""From a run's evaluations to the tables that people read: the 2×2 of each task, the retention matrix, score curves.

Evaluations are taken in the order of recording, and of two of the same cell the later one counts. "Now" is the round
that was evaluated last, which after a rollback is not the highest one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twoclock.measure.decompose import CELLS, Cell, TwoByTwo, two_by_two
from twoclock.measure.intervals import Interval, mean_interval, unknown
from twoclock.measure.pairs import paired_difference
from twoclock.measure.retention import ScoreMatrix, mean_over_tasks, worst_case_interval
from twoclock.types import Evaluation

__all__ = [
    "TaskRetention",
    "TaskTable",
    "suite_forgetting",
    "score_curve",
    "score_matrix",
    "stream_worst_case",
    "task_retention",
    "task_tables",
]

FULL = ("phase", "final")
"""The purposes whose evaluations measure all cells; probes measure the deployed one on fewer items."""
BASE: Cell = ("base", "none")
DEPLOYED: Cell = ("live", "learned")


@dataclass(frozen=True, kw_only=True)
class TaskTable:
    """One task's 2×2 at the end of one round."""

    task: str
    round: int
    cells: Mapping[Cell, Interval]
    """The cells that were measured, each over its own items."""
    evaluations: Mapping[Cell, Evaluation]
    """Where each cell's score comes from: with its samples, conditioning and cost."""
    split: TwoByTwo | None
    """The decomposition on the items that the four cells share; None if one is missing or they share none."""


@dataclass(frozen=True, kw_only=True)
class TaskRetention:
    """What became of one phase's task, on the items that the two scores of each difference share."""

    task: str
    phase: int
    """From 1."""
    start: Interval
    """Before the first round."""
    learned: Interval
    """At the end of its own phase."""
    now: Interval
    round: int | None
    """The round of ``now``."""
    gain: Interval
    """now - start."""
    change: Interval
    """now - learned; negative is forgetting."""


def _score(evaluation: Evaluation, level: float, seed: int) -> Interval:
    return mean_interval(evaluation.rewards, level, seed, bounds=(0, 1))


def _by_item(evaluation: Evaluation) -> dict[str, float]:
    return dict(zip(evaluation.item_ids, evaluation.rewards, strict=True))


def _shared(evaluations: Sequence[Evaluation]) -> list[list[float]]:
    """Each one's rewards on the items that all have, in the first one's order."""
    rewards = [_by_item(evaluation) for evaluation in evaluations]
    items = [item for item in rewards[0] if all(item in other for other in rewards)]
    return [[other[item] for item in items] for other in rewards]


def _last(evaluations: Sequence[Evaluation], task: str, cell: Cell, round: int | None = None) -> Evaluation | None:
    for evaluation in reversed(evaluations):
        if (evaluation.task, evaluation.weights, evaluation.prompt) == (task, *cell) and round in (
            None,
            evaluation.round,
        ):
            return evaluation
    return None


def _tasks(evaluations: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(evaluation.task for evaluation in evaluations))


def task_tables(
    evaluations: Sequence[Evaluation],
    round: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    *,
    purposes: Collection[str] = FULL,
) -> list[TaskTable]:
    """One table a task, in the order in which tasks first appear; tasks that the round did not measure are left out.

    ``round`` None takes for each task the round it was evaluated at last. The base without a prompt never changes, so
    where the round did not measure that cell again, its last measurement stands in.
    """
    full = [evaluation for evaluation in evaluations if evaluation.purpose in purposes]
    tables = []
    for task in _tasks(full):
        of_task = [evaluation for evaluation in full if evaluation.task == task]
        at = of_task[-1].round if round is None else round
        if all(evaluation.round != at for evaluation in of_task):
            continue
        found = {cell: _last(of_task, task, cell, at) for cell in CELLS}
        found[BASE] = found[BASE] or _last(of_task, task, BASE)
        known = {cell: evaluation for cell, evaluation in found.items() if evaluation is not None}
        tables.append(_table(task, at, known, level, seed))
    return tables


def _table(task: str, round: int, known: Mapping[Cell, Evaluation], level: float, seed: int) -> TaskTable:
    split = None
    if len(known) == len(CELLS):
        shared = _shared([known[cell] for cell in CELLS])
        if shared[0]:
            split = two_by_two(dict(zip(CELLS, shared, strict=True)), level, seed)
    return TaskTable(
        task=task,
        round=round,
        cells={cell: _score(evaluation, level, seed) for cell, evaluation in known.items()},
        evaluations=dict(known),
        split=split,
    )


def score_matrix(
    evaluations: Sequence[Evaluation], phases: Sequence[str] | None = None, cell: Cell = DEPLOYED
) -> ScoreMatrix:
    """R from the evaluations at the phases' ends, of one cell: the deployed system unless said otherwise.

    ``phases`` names the task of each phase; None takes the tasks in the order in which they first appear, which is
    right unless a task comes twice. In row 0 nothing has been learned, so there the untouched base may stand in for
    any cell. A phase that is not finished has no row yet. ValueError when there are more rows than phases.
    """
    ends = [evaluation for evaluation in evaluations if evaluation.purpose == "phase"]
    tasks = tuple(_tasks(ends) if phases is None else phases)
    rounds = tuple(sorted({evaluation.round for evaluation in ends}))
    if len(rounds) > len(tasks) + 1:
        raise ValueError(
            f"{len(rounds) - 1} phases were measured, but only {len(tasks)} tasks are known: {', '.join(tasks)}; "
            "name the task of each phase"
        )

    def rewards(row: int, task: str) -> dict[str, float] | None:
        found = _last(ends, task, cell, rounds[row])
        if found is None and row == 0:
            found = _last(ends, task, BASE, rounds[row])
        return _by_item(found) if found else None

    return ScoreMatrix(
        tasks=tasks,
        rounds=rounds,
        rewards=tuple(tuple(rewards(row, task) for task in tasks) for row in range(len(rounds))),
    )


def task_retention(
    evaluations: Sequence[Evaluation],
    phases: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
    *,
    cell: Cell = DEPLOYED,
) -> list[TaskRetention]:
    """For each finished phase its task's score at the start, at the phase's end and now, with paired differences."""
    matrix = score_matrix(evaluations, phases, cell)
    full = [evaluation for evaluation in evaluations if evaluation.purpose in FULL]
    result = []
    for j in range(min(len(matrix.tasks), len(matrix.rounds) - 1)):
        task = matrix.tasks[j]
        now = _last(full, task, cell)
        latest = _by_item(now) if now else None
        result.append(
            TaskRetention(
                task=task,
                phase=j + 1,
                start=matrix.cell(0, j, level, seed),
                learned=matrix.cell(j + 1, j, level, seed),
                now=_score(now, level, seed) if now else unknown(0, level),
                round=now.round if now else None,
                gain=_paired(latest, matrix.rewards[0][j], level, seed),
                change=_paired(latest, matrix.rewards[j + 1][j], level, seed),
            )
        )
    return result


def _paired(after: Mapping[str, float] | None, before: Mapping[str, float] | None, level: float, seed: int) -> Interval:
    if after is None or before is None:
        return unknown(0, level)
    items = [item for item in before if item in after]
    return paired_difference([after[item] for item in items], [before[item] for item in items], level, seed)


def suite_forgetting(
    evaluations: Sequence[Evaluation],
    suites: Sequence[str],
    level: float = 0.95,
    seed: int = 0,
    *,
    cell: Cell = DEPLOYED,
) -> Interval:
    """BF, the mean over suites that no phase trained on of the score at the start minus now; positive is loss. Unknown
    where a suite was not measured at both ends. Within a suite the items are paired, each suite weighs the same."""
    full = [evaluation for evaluation in evaluations if evaluation.purpose in FULL]
    differences = []
    for suite in suites:
        start = _last(full, suite, cell, 0) or _last(full, suite, BASE, 0)
        now = _last(full, suite, cell)
        if start is None or now is None:
            return unknown(0, level)
        was, has = _shared([start, now])
        differences.append(np.asarray(was, dtype=np.float64) - np.asarray(has, dtype=np.float64))
    return mean_over_tasks(differences, level, seed)


def stream_worst_case(
    evaluations: Sequence[Evaluation],
    phases: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
    *,
    cell: Cell = DEPLOYED,
) -> Interval:
    """WC from all evaluations of one cell, the probes inside the phases included: without any it sees the phases' ends
    alone, and no dip between them. Unknown before the second phase has
    ended, and for streams in which a task comes twice: its phases share one column."""
    wanted = [evaluation for evaluation in evaluations if evaluation.purpose in ("phase", "probe")]
    by_phase = score_matrix(evaluations, phases, cell)
    tasks = by_phase.tasks[: len(by_phase.rounds) - 1] if by_phase.rounds else ()
    rounds = tuple(sorted({evaluation.round for evaluation in wanted}))
    if len(set(tasks)) < len(tasks) or len(tasks) < 2:
        return unknown(0, level)

    def rewards(round: int, task: str) -> dict[str, float] | None:
        found = _last(wanted, task, cell, round)
        return _by_item(found) if found else None

    life = ScoreMatrix(
        tasks=tasks, rounds=rounds, rewards=tuple(tuple(rewards(round, task) for task in tasks) for round in rounds)
    )
    ends = [rounds.index(round) for round in by_phase.rounds[1:]]
    return worst_case_interval(life, ends, level, seed)


def score_curve(
    evaluations: Sequence[Evaluation],
    task: str,
    cell: Cell = DEPLOYED,
    level: float = 0.95,
    seed: int = 0,
    *,
    purposes: Collection[str] = ("phase", "probe"),
) -> list[tuple[int, Interval]]:
    """The cell's score at each round where it was measured, in order of rounds; at the start the base stands in."""
    wanted = [evaluation for evaluation in evaluations if evaluation.purpose in purposes and evaluation.task == task]
    curve = []
    for round in sorted({evaluation.round for evaluation in wanted}):
        found = _last(wanted, task, cell, round)
        if found is None and round == 0:
            found = _last(wanted, task, BASE, round)
        if found:
            curve.append((round, _score(found, level, seed)))
    return curve
