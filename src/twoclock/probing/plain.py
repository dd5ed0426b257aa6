"""Measured tables as plain JSON, in one form for ``eval`` and for probes: a task's 2×2, and what a stream left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from twoclock.measure import (
    Interval,
    ScoreMatrix,
    TaskTable,
    TwoByTwo,
    score_matrix,
    summarise_retention,
    task_retention,
)
from twoclock.types import Evaluation

__all__ = ["EFFECTS", "plain_retention", "plain_task"]

NO_WEIGHTS = (("live_learned", "base_learned"), ("live_none", "base_none"))
NO_PROMPT = (("live_learned", "live_none"), ("base_learned", "base_none"))
EFFECTS = {
    "slow": ((("live_none", "base_none"),),),
    "fast": ((("base_learned", "base_none"),),),
    "interaction": (NO_WEIGHTS, NO_PROMPT),
    "total": ((("live_learned", "base_none"),),),
    "residual_use": ((("live_learned", "live_none"),),),
}
"""Each effect with the ways in which it is 0 by construction: all these pairs of cells are one measurement."""


def plain_task(found: TaskTable) -> dict[str, Any]:
    """``round``, ``cells``, ``effects``, ``shares`` and which cells are ``identical``: one measurement."""
    named = {"_".join(cell): evaluation for cell, evaluation in found.evaluations.items()}
    same: dict[str, list[str]] = {}
    for name, evaluation in named.items():
        same.setdefault(evaluation.conditioning_id, []).append(name)
    split = found.split
    effects = {name: _effect(split, name, list(same.values())) for name in EFFECTS} if split else None
    return {
        "round": found.round,
        "cells": {
            "_".join(cell): {**interval.as_dict(), "samples": found.evaluations[cell].samples}
            for cell, interval in found.cells.items()
        },
        "effects": effects,
        "shares": {k: _share(v, effects[k]) for k, v in split.shares.items()}
        if split and split.shares and effects
        else None,
        "identical": [cells for cells in same.values() if len(cells) > 1],
    }


def _effect(split: TwoByTwo, name: str, identical: Sequence[Sequence[str]]) -> dict[str, Any]:
    """An effect's plain form; between cells that are one measurement it is 0 exactly, whatever the sample."""
    plain = getattr(split, name).as_dict()
    for way in EFFECTS[name]:
        if all(any(one in cells and other in cells for cells in identical) for one, other in way):
            plain |= {"estimate": 0.0, "low": 0.0, "high": 0.0, "method": "identical"}
    return dict(plain)


def _share(share: Interval, effect: Mapping[str, Any]) -> dict[str, Any]:
    """A share's plain form; of an effect that is 0 by construction it is 0 too."""
    exact = {"estimate": 0.0, "low": 0.0, "high": 0.0, "method": "identical"}
    return {**share.as_dict(), **(exact if effect["method"] == "identical" else {})}


def plain_retention(
    evaluations: Sequence[Evaluation], phases: Sequence[str], now: Sequence[TaskTable] = ()
) -> dict[str, Any]:
    """``matrix`` (a row for the start, each phase's end, and ``now`` where it was measured apart), ``phases`` and
    ``summary`` with what of it is known."""
    matrix = score_matrix(evaluations, phases)
    summary = summarise_retention(matrix)
    return {
        "matrix": {"tasks": list(matrix.tasks), "rows": [*_rows(matrix), *_now(matrix.tasks, now)]},
        "phases": [
            {
                "phase": r.phase,
                "task": r.task,
                **{name: getattr(r, name).as_dict() for name in ("start", "learned", "now", "gain", "change")},
            }
            for r in task_retention(evaluations, phases)
        ],
        "summary": {
            f.name: getattr(summary, f.name).as_dict()
            for f in fields(summary)
            if f.name != "phases" and getattr(summary, f.name).is_known
        },
    }


def _rows(matrix: ScoreMatrix) -> list[dict[str, Any]]:
    rows = []
    for i, round in enumerate(matrix.rounds):
        after = "start" if i == 0 else f"phase {i} ({matrix.tasks[i - 1]})"
        cells = [_known(matrix.cell(i, j)) for j in range(len(matrix.tasks))]
        rows.append({"after": after, "round": round, "scores": cells})
    return rows


def _now(tasks: Sequence[str], tables: Sequence[TaskTable]) -> list[dict[str, Any]]:
    if not tables:
        return []
    deployed = {t.task: t.cells.get(("live", "learned")) for t in tables}
    return [{"after": "now", "round": tables[0].round, "scores": [_known(deployed.get(task)) for task in tasks]}]


def _known(interval: Interval | None) -> dict[str, Any] | None:
    return interval.as_dict() if interval is not None and interval.is_known else None
