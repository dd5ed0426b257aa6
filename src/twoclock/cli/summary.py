"""A run's measurements as one plain object, and that object in words: what ``eval`` and the end of a run show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from twoclock.cli.output import cost_words, duration, interval_words, table

if TYPE_CHECKING:
    from twoclock.measure import TaskTable
    from twoclock.store import RunStore
    from twoclock.types import DriftRecord, Evaluation

__all__ = ["headline", "in_words", "recorded", "summarise"]

USUAL_DISCORDANCE = 0.2
"""The share of items on which two versions of a model usually differ."""
CLOCKS = ("rollout_s", "grade_s", "fast_s", "slow_s", "measure_s", "round_s")


def recorded(store: RunStore, phases: Sequence[str]) -> dict[str, Any] | None:
    """The summary of what ``eval`` measured of the states that are live now; None where a task has no such scores."""
    head = store.head()
    changes = [e for e in store.entries() if e.action in ("init", "commit", "rollback", "consolidate")]
    if changes and changes[-1].is_by_hand:
        return None  # scores bear a round, and a rollback lets a round's number stand for other states
    finals = [e for e in store.evaluations("final") if e.round == head.round]
    latest = {(e.task, e.weights, e.prompt): e for e in finals}
    if any((task, w, p) not in latest for task in phases for w in ("base", "live") for p in ("none", "learned")):
        return None
    drift = {r.prompts: r for r in store.drift() if r.round == head.round}
    return summarise(store, phases, list(latest.values()), list(drift.values()))


def summarise(
    store: RunStore, phases: Sequence[str], evaluations: Sequence[Evaluation], drift: Sequence[DriftRecord]
) -> dict[str, Any]:
    """Plain JSON. ``evaluations`` and ``drift`` are what was measured now; the rest comes from the ledger. The keys are
    documented in ``twoclock eval --help``."""
    from twoclock.measure import summarise_drift, task_tables
    from twoclock.probing.plain import plain_retention, plain_task

    tables = task_tables(evaluations)
    return {
        "run": str(store.path),
        "round": store.head().round,
        "rounds_run": store.head().next_round - 1,
        "model": store.environment.get("model"),
        "tasks": {t.task: {**plain_task(t), "power": _power(t)} for t in tables},
        "drift": [
            {
                "prompts": s.prompts,
                "live_base": s.live_base.as_dict(),
                "base_live": s.base_live.as_dict(),
                "tokens": s.tokens,
            }
            for s in summarise_drift(drift)
        ],
        "retention": plain_retention(store.evaluations(), phases, tables),
        "cost": _cost(store, evaluations),
    }


def _power(found: TaskTable) -> dict[str, Any] | None:
    """How many items show a difference between the deployed system and its next version, and how small a one these do.

    The next version is taken to differ on as many items as base and deployed do beyond what was gained, and on no fewer
    than versions of a model usually do: after a large gain all that differ differ one way, and tell nothing.
    """
    from twoclock.measure import discordance_of, items_table

    base, live = found.evaluations.get(("base", "none")), found.evaluations.get(("live", "learned"))
    if base is None or live is None:
        return None
    before, after = (dict(zip(e.item_ids, e.rewards, strict=True)) for e in (base, live))
    shared = [item for item in before if item in after]
    was, now = ([rewards[item] for item in shared] for rewards in (before, after))
    gain = abs(math.fsum(now) - math.fsum(was)) / max(len(shared), 1)
    churn = discordance_of(was, now) - gain if shared else 0.0
    discordance = max(churn, USUAL_DISCORDANCE)
    rate = math.fsum(after.values()) / len(after)
    return {
        "items": len(shared),
        "discordance": discordance,
        "discordance_measured": churn > USUAL_DISCORDANCE,
        "detectable": _detectable(len(shared), discordance),
        "table": [
            {"delta": line.delta, "paired": line.paired, "unpaired": line.unpaired, "gap": line.gap}
            for line in items_table(discordance=discordance, rate=rate)
        ],
    }


def _detectable(items: int, discordance: float) -> float | None:
    """The smallest difference that so many items show; None for too few for any. One above the share of items that are
    taken to differ has at least as many that do."""
    from twoclock.measure import detectable_difference, items_needed

    if items < 1:
        return None
    least = detectable_difference(items, discordance=discordance)
    if not math.isnan(least):
        return least
    steps = (step / 200 for step in range(math.ceil(200 * discordance), 201))
    return next((delta for delta in steps if delta > 0 and items_needed(delta, delta) <= items), None)


def _cost(store: RunStore, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    from twoclock.measure import cost_table
    from twoclock.types import Cost, total

    costs = cost_table(store.entries(), store.evaluations())
    rounds = [row.metrics for row in store.rounds()]

    def summed(name: str) -> float:
        return sum(metrics.get(name, 0.0) for metrics in rounds)

    rollouts = Cost(
        rollouts=int(summed("rollouts")),
        prompt_tokens=int(summed("prompt_tokens")),
        completion_tokens=int(summed("completion_tokens")),
        seconds=summed("rollout_s") + summed("grade_s"),
    )
    return {
        "rollouts": asdict(rollouts),
        "channels": {name: asdict(line.cost) for name, line in costs.by_channel.items()},
        "evaluations": asdict(costs.measuring),
        "this_evaluation": asdict(total(e.cost for e in evaluations)),
        "seconds": {name.removesuffix("_s"): summed(name) for name in CLOCKS},
    }


# ------------------------------------------------------------------------------------------------------------ in words


def headline(found: Mapping[str, Any]) -> str:
    """The 2×2 of each task."""
    return "\n\n".join(_task_words(name, task) for name, task in found["tasks"].items())


def in_words(found: Mapping[str, Any]) -> str:
    """Everything, for a person."""
    title = f"{found['run']} at round {found['round']}"
    if found["round"] < found["rounds_run"]:
        title += f" ({found['rounds_run']} rounds were run; a later one was rolled back)"
    return "\n\n".join([title, headline(found), _drift_words(found), _retention_words(found), _cost_words(found)])


def _task_words(name: str, task: Mapping[str, Any]) -> str:
    cells = task["cells"]
    counts = sorted({cell["n"] for cell in cells.values()})
    samples = max(cell["samples"] for cell in cells.values())
    each = f", {samples} samples each" if samples > 1 else ""
    n = " to ".join(str(count) for count in (counts if len(counts) < 2 else (counts[0], counts[-1])))
    rows = [["", "no prompt", "learned prompt"]]
    for weights, label in (("base", "base weights"), ("live", "trained weights")):
        rows.append([label, *(interval_words(cells.get(f"{weights}_{prompt}")) for prompt in ("none", "learned"))])
    lines = [
        f"{name}: held-out reward after round {task['round']} (n = {n} items{each}; 95 % intervals)",
        table(rows),
    ]
    effects = task["effects"]
    if effects:
        parts = (("weights", "slow"), ("prompt", "fast"), ("only together", "interaction"))
        words = ", ".join(f"{label} {interval_words(effects[key], signed=True)}" for label, key in parts)
        lines += [f"  gain {interval_words(effects['total'], signed=True)}", f"    from {words}"]
    return "\n".join([*lines, *_power_words(task.get("power")), *_identical_words(task["identical"])])


def _power_words(power: Mapping[str, Any] | None) -> list[str]:
    if power is None:
        return []
    share = f"{power['discordance']:.0%} of the items"
    known = f"{share} differ beyond the gain" if power["discordance_measured"] else f"taking {share} to differ"
    least = power["detectable"]
    if least is not None and least > power["discordance"]:
        known = "if all the items that differ do so the same way"
    shows = "no difference at all" if least is None else f"a difference of {least:.3f} or more"
    rows = [["items to see a difference of", *(f"{line['delta']:g}" for line in power["table"])]]
    for key, label in (("paired", "the same items"), ("unpaired", "items of each system's own")):
        rows.append([f"  {label}", *("–" if line[key] is None else f"{line[key]:,}" for line in power["table"])])
    head = f"  these {power['items']} items show {shows} (80 % power at 95 %, {known})"
    return [head, table(rows, "    ")]


def _identical_words(identical: Sequence[Sequence[str]]) -> list[str]:
    """Which cells are one measurement, and why."""
    lines = []
    groups = [set(cells) for cells in identical]
    if any({"base_none", "live_none"} <= group for group in groups):
        lines.append("  no weights are learned here: both rows are the base model, measured once")
    if any({"base_none", "base_learned"} <= group for group in groups):
        lines.append("  no prompt is learned here for this task: both columns are one measurement")
    return lines


def _drift_words(found: Mapping[str, Any]) -> str:
    if not found["drift"]:
        return "drift: not measured (the policy gives no log-probabilities of given text)"
    rows = [["prompts", "KL(live‖base)", "KL(base‖live)", "tokens"]]
    for record in found["drift"]:
        numbers = [interval_words(record[way], digits=4) for way in ("live_base", "base_live")]
        rows.append([record["prompts"], *numbers, str(record["tokens"])])
    return "drift of the weights from the base, nats a token (95 % intervals over prompts)\n" + table(rows)


def _retention_words(found: Mapping[str, Any]) -> str:
    retention = found["retention"]
    matrix = retention["matrix"]
    rows = [["after", "round", *matrix["tasks"]]]
    for row in matrix["rows"]:
        at = "–" if row["round"] is None else str(row["round"])
        rows.append([row["after"], at, *(interval_words(score) for score in row["scores"])])
    lines = ["retention: held-out reward of the deployed system (trained weights, learned prompt)", table(rows)]
    for phase in retention["phases"]:
        change = interval_words(phase["change"], signed=True)
        gain = interval_words(phase["gain"], signed=True)
        lines.append(f"  {phase['task']}: {change} since the end of its phase {phase['phase']}, {gain} since the start")
    return "\n".join(lines)


def _cost_words(found: Mapping[str, Any]) -> str:
    from twoclock.types import Cost

    cost = found["cost"]
    rows = [["rounds' rollouts", cost_words(Cost(**cost["rollouts"]))]]
    rows += [[f"channel {name}", cost_words(Cost(**spent))] for name, spent in cost["channels"].items()]
    rows.append(["evaluations", cost_words(Cost(**cost["evaluations"]))])
    rows.append(["all rounds", duration(cost["seconds"]["round"])])
    return "cost\n" + table(rows)
