"""Whether what was learned carries over: base and live system on the same variants of each task, and the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError, DataError, MissingExtraError
from twoclock.measure.ood import probe
from twoclock.probing.context import ProbeContext
from twoclock.probing.meter import OutOfBudgetError
from twoclock.probing.settings import Estimate
from twoclock.tasks import VARIANTS, VariantSuite, build_variants
from twoclock.tasks.variants import COUNT
from twoclock.types import Conditioning

__all__ = ["estimate", "measure", "obstacle"]

ORDER = ("id", "n-1", "template", "distractor", "n+1", "rule", "seen")
"""What is measured first where a budget may run out: what the verdict rests on."""


def obstacle(context: ProbeContext) -> str | None:
    """Only where no task has variants; what single tasks lack is said with the results."""
    problems = [problem for task in context.tasks if (problem := _problem(context, task))]
    return "; ".join(problems) if len(problems) == len(context.tasks) else None


def _problem(context: ProbeContext, task: str) -> str | None:
    try:
        suite_of(context, task)
    except (ConfigError, DataError, MissingExtraError) as error:
        return str(error)
    return None


def suite_of(context: ProbeContext, task: str) -> VariantSuite:
    """The variants of a task, built once: seen are the training items that the run has rolled out."""
    cache: dict[str, VariantSuite] = context.__dict__.setdefault("_suites", {})
    if task not in cache:
        spec = context.parts.config.tasks[task]
        train = {item.id for item in context.parts.tasks[task].split("train")}
        learned = {row.item_id for row in context.store.rollouts() if row.task == task} & train
        cache[task] = build_variants(
            spec,
            name=task,
            seed=context.parts.seed,
            base_dir=Path(context.parts.config.base_dir),
            count=context.settings.items or COUNT,
            n_parameter=context.settings.n_parameter,
            rewordings=context.settings.rewordings,
            files=context.settings.files,
            seen=learned,
        )
    return cache[task]


def close(context: ProbeContext) -> None:
    """Ends the graders' child processes."""
    for suite in context.__dict__.get("_suites", {}).values():
        suite.close()


def estimate(context: ProbeContext) -> Estimate:
    total = Estimate()
    for task in context.tasks:
        if _problem(context, task) is None:
            items = sum(len(variant.items) for variant in suite_of(context, task).values())
            total += context.estimate(2 * items * context.settings.samples)
    return total


def measure(context: ProbeContext) -> dict[str, Any]:
    """``tasks``: for each the report, notes and how much was measured; ``not_probed``: the tasks without variants."""
    tasks: dict[str, Any] = {}
    missing: dict[str, str] = {}
    stopped: list[str] = []
    for task in context.tasks:
        if problem := _problem(context, task):
            missing[task] = problem
            continue
        found, why = _one_task(context, task)
        if found is not None:
            tasks[task] = found
        if why:
            stopped.append(f"{task}: {why}")
            break
    return {"tasks": tasks, "not_probed": missing, "stopped": "; ".join(stopped) or None}


def _one_task(context: ProbeContext, task: str) -> tuple[dict[str, Any] | None, str | None]:
    suite = suite_of(context, task)
    order = [variant for variant in ORDER if variant in suite]
    live = context.conditioning(task, ("live", "learned"))
    rows: dict[str, list[dict[str, Any]]] = {"base": [], "live": []}
    done: list[str] = []
    stopped = None
    for variant in order:
        context.say(f"ood: {task}, {variant}, base and live on {len(suite[variant].items)} items")
        cost = 2 * len(suite[variant].items) * context.settings.samples
        if not context.meter.fits(cost):
            stopped = (
                f"{len(done)} of {len(order)} variants were measured: the next one takes {cost} rollouts and "
                f"{context.meter.left} are left of {context.meter.budget}"
            )
            break
        try:
            pair = {who: _answers(context, suite, variant, c) for who, c in (("base", Conditioning()), ("live", live))}
        except OutOfBudgetError as error:  # pragma: no cover - a policy that samples more than it is asked for
            stopped = f"{len(done)} of {len(order)} variants were measured: {error}"
            break
        for who, answers in pair.items():
            rows[who] += answers
        done.append(variant)
    if "id" not in done:
        return None, stopped
    report = probe(rows["base"], rows["live"], seed=context.seed)
    return {
        "report": report.as_dict(),
        "same_system": live.is_identity,
        "measured": [v for v in VARIANTS if v in done],
        "left_out": [v for v in order if v not in done],
        "samples": context.settings.samples,
        "notes": list(suite.notes),
    }, stopped


def _answers(
    context: ProbeContext, suite: VariantSuite, variant: str, conditioning: Conditioning
) -> list[dict[str, Any]]:
    task = suite[variant]
    groups = context.roll(task, task.split("heldout"), conditioning, purpose=f"ood {variant}")
    return task.rows(groups)
