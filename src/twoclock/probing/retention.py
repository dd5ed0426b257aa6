"""What a stream left behind: the recorded matrix with its metrics, and measured now, beyond the noise, item by item.

The matrix costs nothing: it stands in the run. Measured afresh are the *null pair* of each finished phase (the state at
its end and the state now, both with other random numbers than the recorded evaluation), because an unchanged model that
answers by chance loses items too; and the suites that no phase trained on, base against now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twoclock.measure import (
    RetentionSummary,
    forgotten_items,
    score_matrix,
    stream_worst_case,
    suite_forgetting,
)
from twoclock.probing.context import ProbeContext
from twoclock.probing.meter import OutOfBudgetError
from twoclock.probing.plain import plain_retention
from twoclock.probing.settings import Estimate
from twoclock.types import Evaluation, Item

__all__ = ["estimate", "measure", "obstacle"]


def obstacle(context: ProbeContext) -> str | None:
    if not any(e.purpose == "phase" for e in context.recorded):
        return "the run has recorded no evaluation"
    return None


def estimate(context: ProbeContext) -> Estimate:
    pairs = sum(2 * len(items) * _samples(context) for _, _, _, items in _finished(context))
    suites = sum(2 * len(context.parts.tasks[task].split("heldout")[: _count(context)]) for task in _suites(context))
    return context.estimate(pairs + suites * context.settings.samples)


def measure(context: ProbeContext) -> dict[str, Any]:
    """The recorded figures, ``items`` and ``base_forgetting``; see ``docs/probes.md``."""
    phases, recorded = context.phases, context.recorded
    found = plain_retention(recorded, phases)
    known = found["summary"]
    summary = {name: known.get(name) for name in RetentionSummary.__dataclass_fields__ if name != "phases"}
    result: dict[str, Any] = {
        "matrix": found["matrix"],
        "phases": found["phases"],
        "summary": summary,
        "worst_case": stream_worst_case(recorded, phases).as_dict(),
        "finished_phases": len(found["phases"]),
        "planned_phases": len(phases),
        "is_current": _is_current(context),
        "items": [],
        "base_forgetting": None,
        "suites": [],
        "unmeasured_suites": _suites(context),
        "stopped": None,
    }
    try:
        for row in _finished(context):
            result["items"].append(_churn(context, *row))
        result["base_forgetting"], result["suites"] = _measure_suites(context)
        result["unmeasured_suites"] = []
    except OutOfBudgetError as error:
        done = f"{len(result['items'])} of {len(_finished(context))} phases were compared item by item"
        result["stopped"] = f"{done}: {error}"
    return result


def _is_current(context: ProbeContext) -> bool:
    """Whether the matrix ends with the states that are live now: not after a rollback, nor inside a phase."""
    rounds = score_matrix(context.recorded, context.phases).rounds
    return bool(rounds) and dict(context.store.snapshot_at(rounds[-1]).states) == dict(context.head.states)


def _samples(context: ProbeContext) -> int:
    return context.parts.evaluation.samples


def _count(context: ProbeContext) -> int:
    return context.settings.items or context.parts.evaluation.heldout_items


def _finished(context: ProbeContext) -> list[tuple[int, str, int, tuple[Item, ...]]]:
    """(phase from 0, task, the round at its end, items) of each finished phase of a task that was asked for."""
    matrix = score_matrix(context.recorded, context.phases)
    rows = []
    for j in range(min(len(matrix.tasks), len(matrix.rounds) - 1)):
        task, rewards = matrix.tasks[j], matrix.rewards[j + 1][j]
        if rewards is None or task not in context.tasks:
            continue
        items = tuple(i for i in context.parts.tasks[task].split("heldout") if i.id in rewards)
        if items:
            rows.append((j, task, matrix.rounds[j + 1], items[: _count(context)]))
    return rows


def _churn(context: ProbeContext, phase: int, task: str, round: int, items: Sequence[Item]) -> dict[str, Any]:
    """Items lost and gained since the end of one phase, beside what the same state loses against itself."""
    context.say(f"retention: {task}, the state after phase {phase + 1} against the state now, and against itself")
    snapshot = context.store.snapshot_at(round)
    before = score_matrix(context.recorded, context.phases).rewards[phase + 1][phase]
    assert before is not None
    again = _rewards(context, task, items, context.states_at(snapshot), f"null {phase}")
    now = _rewards(context, task, items, context.states, f"now {phase}")
    found = forgotten_items(before, now, again, seed=context.seed)
    named = ("lost", "gained", "change", "null_lost", "excess")
    return {
        "task": task,
        "phase": phase + 1,
        "round": round,
        "items": found.items,
        "samples": _samples(context),
        "same_state": dict(snapshot.states) == dict(context.head.states),
        **{name: getattr(found, name).as_dict() for name in named},
    }


def _rewards(
    context: ProbeContext, task: str, items: Sequence[Item], states: Mapping[str, Any], purpose: str
) -> dict[str, float]:
    conditioning = context.conditioning(task, ("live", "learned"), states)
    groups = context.roll(
        context.parts.tasks[task], items, conditioning, purpose=f"retention {purpose}", samples=_samples(context)
    )
    return {group.item.id: group.mean_reward for group in groups}


def _suites(context: ProbeContext) -> list[str]:
    """Tasks of the configuration that no phase trains on: what tells whether the model 'got dumber'."""
    asked = context.settings.tasks
    return [name for name in context.parts.tasks if name not in context.phases and (not asked or name in asked)]


def _measure_suites(context: ProbeContext) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """(BF, each suite's own), base and live on the same items with the same random numbers."""
    evaluations: list[Evaluation] = []
    suites = _suites(context)
    for task in suites:
        context.say(f"retention: {task}, which no phase trains on, base against now")
        items = context.parts.tasks[task].split("heldout")[: _count(context)]
        for round, weights, prompt in ((0, "base", "none"), (context.head.round, "live", "learned")):
            conditioning = context.conditioning(task, (weights, prompt))  # type: ignore[arg-type]
            groups = context.roll(context.parts.tasks[task], items, conditioning, purpose="suite")
            evaluations.append(
                Evaluation(
                    round=round,
                    task=task,
                    weights=weights,  # type: ignore[arg-type]
                    prompt=prompt,  # type: ignore[arg-type]
                    item_ids=tuple(group.item.id for group in groups),
                    rewards=tuple(group.mean_reward for group in groups),
                    samples=context.settings.samples,
                    conditioning_id=conditioning.id,
                )
            )
    if not suites:
        return None, []
    each = [{"task": t, "loss": suite_forgetting(evaluations, [t]).as_dict()} for t in suites]
    return suite_forgetting(evaluations, suites).as_dict(), each
