"""How much of each task's gain lives in the weights and how much in the prompt, measured on the live states."""

from __future__ import annotations

from typing import Any

from twoclock.evaluation import CELLS
from twoclock.measure import task_tables
from twoclock.probing.context import ProbeContext
from twoclock.probing.meter import OutOfBudgetError
from twoclock.probing.plain import plain_task
from twoclock.probing.settings import Estimate
from twoclock.types import Evaluation

__all__ = ["estimate", "measure", "obstacle"]


def obstacle(context: ProbeContext) -> str | None:
    return None


def estimate(context: ProbeContext) -> Estimate:
    total = Estimate()
    for task in context.tasks:
        total += context.estimate(_rollouts(context, task))
    return total


def measure(context: ProbeContext) -> dict[str, Any]:
    """``tasks``: for each its cells, effects, shares and internalisation. What the run has recorded of the same items
    under the same conditioning is taken, as its id covers the weights, and costs nothing."""
    tasks: dict[str, Any] = {}
    stopped = None
    for task in context.tasks:
        try:
            evaluations = context.evaluator.cells(
                context.head.round,
                context.parts.channels,
                context.states,
                tasks=[task],
                cells=CELLS,
                purpose="final",
                known=_known(context, task),
                progress=context.say,
            )
        except OutOfBudgetError as error:
            stopped = f"{len(tasks)} of {len(context.tasks)} tasks were measured: {error}"
            break
        table = task_tables(evaluations)[0]
        inside = table.split.internalisation if table.split else None
        tasks[task] = {**plain_task(table), "internalisation": inside.as_dict() if inside else None}
    return {"tasks": tasks, "stopped": stopped}


def _known(context: ProbeContext, task: str) -> list[Evaluation]:
    items = {item.id for item in context.evaluator.heldout(task)}
    samples = context.parts.evaluation.samples
    return [e for e in context.recorded if e.task == task and e.samples == samples and set(e.item_ids) == items]


def _rollouts(context: ProbeContext, task: str) -> int:
    known = {e.conditioning_id for e in _known(context, task)}
    wanted = {context.conditioning(task, cell).id for cell in CELLS} - known
    return len(wanted) * len(context.evaluator.heldout(task)) * context.parts.evaluation.samples
