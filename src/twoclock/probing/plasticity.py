"""How well the weights still learn: one task, trained from the live slow state and from the base, on the same budget.

Each arm is a run of its own, in a temporary folder, with the probed run's configuration and the probe task as its whole
stream: the same channels, allocator, gates and seeds. Only the slow channels' first states differ. A drift budget holds
both arms to the same distance from the base, so a live state that has used much of it has less left: how many
proposals were rejected stands beside the ratio.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from twoclock.build import Session, build_parts
from twoclock.config import RunConfig, from_plain
from twoclock.loop import Loop
from twoclock.measure import Interval, LearningCurve, learning_curve, plasticity_ratio
from twoclock.probing.context import ProbeContext
from twoclock.probing.curves import spent_by_round
from twoclock.probing.meter import OutOfBudgetError
from twoclock.probing.settings import Estimate
from twoclock.store import RunStore
from twoclock.tasks import Stream
from twoclock.types import Cost, Evaluation, total

__all__ = ["estimate", "measure", "obstacle"]

MOST_ROUNDS = 12
ARMS = ("live", "base")


def probe_task(context: ProbeContext) -> str | None:
    """The task asked for, else the first one that the run has and no phase trains on."""
    asked = [task for task in context.settings.tasks if task in context.parts.tasks]
    free = [name for name in context.parts.tasks if name not in context.phases]
    return next(iter([*[t for t in asked if t in free], *asked] if asked else free), None)


def obstacle(context: ProbeContext) -> str | None:
    if not context.slow:
        return "the run has no slow channel: its weights are the base's, and learn as the base does"
    task = context.phases[0]
    if context.conditioning(task, ("live", "none")).is_identity:
        return "the live weights are the base's: nothing that could have been lost has been written to them"
    if probe_task(context) is None:
        return (
            "the run has trained on every task that it has; add one that it has not, such as --set "
            "tasks.fresh.source=family --set tasks.fresh.family=lookup, or name one with --task to see how it learns "
            "that again"
        )
    return None


def estimate(context: ProbeContext) -> Estimate:
    task = probe_task(context)
    assert task is not None
    rounds, points = _spans(context)
    settings, evaluation = context.parts.rollouts, context.parts.evaluation
    heldout = min(_heldout(context), len(context.parts.tasks[task].split("heldout"))) * evaluation.samples
    own = sum(entry.cost.rollouts for entry in context.store.entries())
    per_round = settings.items * settings.per_item + own / max(len(context.store.rounds()), 1)
    one = round(rounds * per_round) + (points + 2) * heldout
    total = context.estimate(len(ARMS) * len(context.settings.seeds) * one)
    timed = [row.metrics["round_s"] - row.metrics.get("measure_s", 0.0) for row in context.store.rounds()
             if "round_s" in row.metrics]  # fmt: skip
    if timed and total.seconds is not None:
        arms = len(ARMS) * len(context.settings.seeds)
        measured = context.estimate(arms * (points + 2) * heldout).seconds or 0.0
        training = arms * rounds * sum(timed) / len(timed)
        total = Estimate(rollouts=total.rollouts, tokens=total.tokens, seconds=training + measured)
    return total


def _heldout(context: ProbeContext) -> int:
    return context.settings.items or context.parts.evaluation.heldout_items


def _spans(context: ProbeContext) -> tuple[int, int]:
    """(rounds, evaluations on the way)."""
    shortest = min(phase.rounds for phase in context.parts.stream.phases)
    rounds = context.settings.rounds or min(shortest, MOST_ROUNDS)
    return rounds, min(context.settings.points, rounds)


def measure(context: ProbeContext) -> dict[str, Any]:
    """The ratio with its interval over seeds, both arms' curves, dead groups and rejections; see ``docs/probes.md``."""
    task = probe_task(context)
    assert task is not None
    curves: dict[str, list[LearningCurve]] = {arm: [] for arm in ARMS}
    rejected: dict[str, int] = dict.fromkeys(ARMS, 0)
    proposed: dict[str, int] = dict.fromkeys(ARMS, 0)
    stopped = None
    for seed in context.settings.seeds:
        pair: dict[str, LearningCurve] = {}
        counts: dict[str, tuple[int, int]] = {}
        try:
            for arm in ARMS:
                context.say(f"plasticity: training {task} from {arm}, seed {seed}")
                pair[arm], counts[arm] = _arm(context, task, seed, arm)
        except OutOfBudgetError as error:
            stopped = f"{len(curves['base'])} of {len(context.settings.seeds)} seeds were trained: {error}"
            break
        for arm in ARMS:  # of both or of none: the seeds are pairs
            curves[arm].append(pair[arm])
            proposed[arm] += counts[arm][0]
            rejected[arm] += counts[arm][1]
    rounds, _ = _spans(context)
    result: dict[str, Any] = {
        "task": task,
        "trained_before": task in context.begun,
        "rounds": rounds,
        "seeds": [curve.seed for curve in curves["base"]],
        "curves": [_plain(curve) for arm in ARMS for curve in curves[arm]],
        "proposed": proposed,
        "rejected": rejected,
        "stopped": stopped,
        "ratio": None,
    }
    return {**result, **_ratio(curves)} if curves["base"] else result


def _ratio(curves: dict[str, list[LearningCurve]]) -> dict[str, Any]:
    # Arms may differ in what their fast channels' trials took, so all are compared up to where the shortest one ends.
    end = min(float(curve.along("rollouts")[-1]) for arm in ARMS for curve in curves[arm])
    found = plasticity_ratio(curves["live"], curves["base"], axis="rollouts", budget=end)
    named = ("ratio", "area", "area_against", "first", "first_against", "dead_groups", "dead_groups_against")
    return {
        "axis": found.axis,
        "budget": found.budget,
        **{name: getattr(found, name).as_dict() for name in named},
        "ratio_note": _why_unbounded(found.ratio),
        "is_loss": found.is_loss,
        "may_be_exploration": found.may_be_exploration,
        "too_hard": found.too_hard,
    }


def _why_unbounded(ratio: Interval) -> str | None:
    """Why a ratio has no interval, for a person; None where it has one."""
    if not math.isnan(ratio.low):
        return None
    if not ratio.is_known:
        return "from the base nothing was learned at all, so there is nothing to compare with"
    if ratio.n < 2:
        return "it takes at least two training seeds"
    return "over these seeds the base's own mean score cannot be told from 0; more seeds would help"


def _plain(curve: LearningCurve) -> dict[str, Any]:
    return {
        "start": curve.start,
        "seed": curve.seed,
        "dead_groups": curve.dead_groups,
        "points": [
            {"problems": p.problems, "rollouts": p.rollouts, "tokens": p.tokens, "score": p.score, "n": p.n}
            for p in curve.points
        ],
    }


# ----------------------------------------------------------------------------------------------------------- one arm


def _arm(context: ProbeContext, task: str, seed: int, arm: str) -> tuple[LearningCurve, tuple[int, int]]:
    """One training run in a folder that is thrown away: its curve, and (proposals, rejections) of its slow channels."""
    config = _config(context, task, seed)
    with tempfile.TemporaryDirectory(prefix="twoclock-probe-") as folder:
        parts = build_parts(config)
        # The run's own tasks: another seed would split them otherwise, and let what was trained on into the held-out.
        parts.tasks = context.parts.tasks
        parts.stream = Stream([(phase.task, phase.rounds) for phase in config.stream], parts.tasks)
        store = RunStore.create(Path(folder) / "arm", config=config.plain(), environment={})
        with store:
            session = Session(store, parts)
            session.__dict__["policy"] = context.policy
            loop = session.loop()
            try:
                loop.begin({name: context.states[name] for name in context.slow} if arm == "live" else None)
                for end in _ends(context):
                    loop.run(until=end)
                    if end < parts.stream.num_rounds:  # at the end of the phase the loop has evaluated
                        store.record_evaluations(_on_the_way(loop, task, end))
            finally:
                trained = total(entry.cost for entry in store.entries())
                context.meter.add(Cost(trained_tokens=trained.trained_tokens, optimizer_steps=trained.optimizer_steps))
            curve = learning_curve(store.evaluations(), spent_by_round(store), task, start=arm, seed=seed)
            offers = [e for e in store.entries() if e.timescale == "slow" and e.action in ("commit", "reject")]
    return curve, (len(offers), sum(e.action == "reject" for e in offers))


def _config(context: ProbeContext, task: str, seed: int) -> RunConfig:
    """The run's configuration with the probe task as its whole stream, one phase: allocators may act on a switch."""
    plain = context.parts.config.plain()
    plain["stream"] = [{"task": task, "rounds": _spans(context)[0]}]
    plain["run"] = {**plain["run"], "seed": seed}
    plain["measure"] = {**plain["measure"], "heldout_items": _heldout(context), "drift_every": 0, "every": 0}
    return from_plain(plain, "the configuration of the probe task")


def _ends(context: ProbeContext) -> list[int]:
    """The rounds after which an arm is evaluated."""
    rounds, points = _spans(context)
    return [rounds * (i + 1) // points for i in range(points)]


def _on_the_way(loop: Loop, task: str, round: int) -> list[Evaluation]:
    """The deployed cell as it stands inside the phase."""
    return loop.evaluator.cells(
        round, loop.channels, loop.states, tasks=[task], cells=[("live", "learned")], purpose="probe"
    )
