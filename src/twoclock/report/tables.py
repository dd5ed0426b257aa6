"""The page's tables as plain rows: what the template prints and what the figures draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from twoclock.measure import (
    Cell,
    Interval,
    RetentionSummary,
    ScoreMatrix,
    TaskRetention,
    TaskTable,
    cost_table,
    score_matrix,
    summarise_retention,
    task_retention,
    task_tables,
)
from twoclock.report.reading import PhaseSpan, RunData
from twoclock.types import Cost, total

__all__ = ["CELL_NAMES", "CostRow", "Retention", "SplitRow", "cost_rows", "phase_label", "retention", "split_rows"]

CELL_NAMES: Mapping[Cell, str] = {
    ("base", "none"): "base weights, no prompt",
    ("base", "learned"): "base weights, learned prompt",
    ("live", "none"): "trained weights, no prompt",
    ("live", "learned"): "trained weights, learned prompt",
}


# ------------------------------------------------------------------------------------------------- where it was written


@dataclass(frozen=True, kw_only=True)
class SplitRow:
    """One task's 2×2, and what is missing of it."""

    task: str
    table: TaskTable | None
    """None where the task was never evaluated."""
    missing: tuple[str, ...]
    """The cells that were not measured, in words."""

    def cell(self, weights: str, prompt: str) -> Interval | None:
        found = self.table.cells.items() if self.table else ()
        return next((score for cell, score in found if cell == (weights, prompt)), None)

    def same(self, *pairs: tuple[Cell, Cell]) -> bool:
        """Whether each pair of cells is one and the same system, so that their difference is 0 and no estimate."""
        found = {cell: e.conditioning_id for cell, e in self.table.evaluations.items()} if self.table else {}
        return all(a in found and found[a] == found.get(b) for a, b in pairs)

    @property
    def same_weights(self) -> bool:
        """Nothing was written to the weights."""
        return self.same((("base", "none"), ("live", "none")), (("base", "learned"), ("live", "learned")))

    @property
    def same_prompt(self) -> bool:
        """Nothing was written to the prompt."""
        return self.same((("base", "none"), ("base", "learned")), (("live", "none"), ("live", "learned")))

    @property
    def base(self) -> Interval | None:
        return self.cell("base", "none")

    @property
    def deployed(self) -> Interval | None:
        return self.cell("live", "learned")


def split_rows(data: RunData) -> list[SplitRow]:
    """One row a task of the run, in the order of the stream, each as it was evaluated last."""
    found = {table.task: table for table in task_tables(data.evaluations)}
    rows = []
    for task in data.tasks:
        table = found.get(task)
        missing = [name for cell, name in CELL_NAMES.items() if table is None or cell not in table.cells]
        rows.append(SplitRow(task=task, table=table, missing=tuple(missing)))
    return rows


# ------------------------------------------------------------------------------------------------------- what it broke


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The matrix of scores with its labels, and what continual learning takes from it."""

    matrix: ScoreMatrix | None = None
    rows: tuple[str, ...] = ()
    cells: tuple[tuple[Interval, ...], ...] = ()
    tasks: tuple[TaskRetention, ...] = ()
    summary: RetentionSummary | None = None
    problem: str = ""
    """Why there is no matrix."""


def phase_label(phase: PhaseSpan) -> str:
    return f"phase {phase.index + 1}: {phase.task}"


def retention(data: RunData) -> Retention:
    """From the evaluations at the phases' ends."""
    if all(evaluation.purpose != "phase" for evaluation in data.evaluations):
        return Retention(problem="No phase's end was evaluated, so there is nothing to compare.")
    phases = [phase.task for phase in data.phases] or None
    try:
        matrix = score_matrix(data.evaluations, phases)
        summary = summarise_retention(matrix)
        tasks = task_retention(data.evaluations, phases)
    except ValueError as problem:  # evaluations that cannot be compared: said on the page, which shows the rest
        return Retention(problem=f"The evaluations do not make a matrix: {problem}.")
    labels = ["start"] + [f"after phase {i}: {task}" for i, task in enumerate(matrix.tasks, 1)]
    return Retention(
        matrix=matrix,
        rows=tuple(f"{labels[i]} (round {round})" for i, round in enumerate(matrix.rounds)),
        cells=tuple(tuple(matrix.cell(i, j) for j in range(len(matrix.tasks))) for i in range(len(matrix.rounds))),
        tasks=tuple(tasks),
        summary=summary,
    )


# --------------------------------------------------------------------------------------------------------- what it cost


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """One line of the bill."""

    name: str
    cost: Cost
    note: str = ""
    clock: str = ""
    """Whose it is; empty for what both clocks share."""
    timed_only: bool = False
    """Only its seconds were recorded."""
    is_total: bool = False


def cost_rows(data: RunData) -> list[CostRow]:
    """Training rollouts, each channel by its clock, measuring; last the total."""
    bill = cost_table(data.entries, data.evaluations)
    rows = [
        CostRow(
            name="training rollouts",
            cost=total(data.round_costs.values()),
            note=f"{len(data.rounds)} rounds; both clocks learn from them",
        )
    ]
    for clock in bill.by_clock:
        lines = [
            (name, line)
            for name, line in bill.by_channel.items()
            if next(entry.timescale for entry in data.entries if entry.channel == name) == clock
        ]
        rows += [
            CostRow(name=f"{clock or 'no'} clock: {name}", cost=line.cost, clock=clock, note=_actions(line.actions))
            for name, line in lines
        ]
    rows.append(
        CostRow(name="held-out evaluation", cost=bill.measuring, note=f"{bill.evaluations} cells; nothing is learned")
    )
    if data.drift and (rest := _other_measuring(data)) > 0:
        rows.append(
            CostRow(
                name="drift measurement", cost=Cost(seconds=rest), note="only its time is recorded", timed_only=True
            )
        )
    return [*rows, CostRow(name="total", cost=total(row.cost for row in rows), is_total=True)]


def _actions(actions: Mapping[str, int]) -> str:
    words = {"commit": "committed", "reject": "rejected", "decline": "declined", "rollback": "rolled back"}
    words |= {"consolidate": "consolidated", "refuse": "not consolidated"}
    return ", ".join(f"{actions[name]} {word}" for name, word in words.items() if actions.get(name)) or "never asked"


def _other_measuring(data: RunData) -> float:
    """Seconds of the rounds' measuring that no evaluation bears: drift."""
    measured = math.fsum(row.metrics.get("measure_s", 0.0) for row in data.rounds)
    borne = math.fsum(e.cost.seconds for e in data.evaluations if e.purpose != "final" and e.round > 0)
    return max(0.0, measured - borne)
