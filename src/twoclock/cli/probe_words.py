"""A probe's results in words: every figure with its interval, its n and its seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from twoclock.cli.output import cost_words, table
from twoclock.types import Cost

__all__ = ["figure", "in_words"]

Plain = Mapping[str, Any]

PROMPTING = {"none": "weights alone", "both": "both under the prompt", "live": "deployed – untouched base"}
SPLIT_FIGURES = (("base", False), ("live", False), ("change", True), ("did", True), ("transfer", False))


def figure(plain: Plain | None, digits: int = 2, signed: bool = False, n: bool = True) -> str:
    """``0.52 [0.43, 0.61] n=120``, or ``3 seeds`` where training runs were counted; ``–`` for the unknown."""
    if plain is None or plain["estimate"] is None:
        return "–"
    if plain["method"] in ("identical", "exact"):
        return "0 exactly"

    def number(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return "–"
        text = f"{value:{'+' if signed else ''}.{digits}f}"
        return text.lstrip("+-") if float(text) == 0 else text

    seeds = plain.get("seeds", 1)
    # Where the seeds themselves are what is counted, once is enough.
    count = (
        f"n={plain['n']}"
        if seeds <= 1
        else f"{seeds} seeds"
        if seeds == plain["n"]
        else f"n={plain['n']}, {seeds} seeds"
    )
    count = f" {count}" if n else ""
    return f"{number(plain['estimate'])} [{number(plain['low'])}, {number(plain['high'])}]{count}"


def in_words(found: Plain) -> str:
    """Everything, for a person."""
    parts = [
        f"{found['run']} at round {found['round']}: one training run, probed with 95 % intervals (n counts items or "
        "prompts)"
    ]
    words = {
        "drift": _drift,
        "retention": _retention,
        "plasticity": _plasticity,
        "ood": _ood,
        "decomposition": _decomposition,
    }
    for name, result in found["results"].items():
        lines = [words[name](result)]
        if result["stopped"]:
            lines.append(f"  PARTIAL, the budget ran out: {result['stopped']}")
        parts.append("\n".join(lines))
    parts += [f"{name}: not probed; {why}" for name, why in found["not_probed"].items()]
    cost = Cost(**found["cost"])
    parts.append(f"cost: {'' if cost.rollouts else '0 rollouts, '}{cost_words(cost)}")
    if not found["run_unchanged"]:
        parts.append(
            "note: another process wrote to the run meanwhile; these figures are of the states and records of round "
            f"{found['round']}"
        )
    return "\n\n".join(parts)


def _drift(result: Plain) -> str:
    exact = [["prompts", "conditioning", "direction", "nats a token", "nats a sequence"]]
    sampled = [["prompts", "conditioning", "direction", "k1", "k2 (biased)", "k3"]]
    notes = []
    for record in result["records"]:
        for key, direction in (("live_base", "KL(live‖base)"), ("base_live", "KL(base‖live)")):
            way = record[key]
            head = [record["prompts"], PROMPTING[record["prompting"]], direction]
            exact.append([*head, figure(way["per_token"], 4), figure(way["per_sequence"], 2)])
            if way["estimates"]:
                found = (way["estimates"][k] for k in ("k1", "k2", "k3"))
                sampled.append([*head, *(figure(e["per_token"], 4, n=False) for e in found)])
            notes += sorted({e["suspect"] for e in way["estimates"].values() if e["suspect"]})
    how = f"temperature {result['temperature']:g}, up to {result['max_new_tokens']} tokens"
    lines = [f"drift from the base, exact over the vocabulary ({how})", table(exact)]
    if len(sampled) > 1:
        lines += ["  estimated from the same samples, nats a token (n as above)", table(sampled)]
    return "\n".join([*lines, *(f"  suspect: {note}" for note in dict.fromkeys(notes))])


def _retention(result: Plain) -> str:
    matrix = result["matrix"]
    rows = [["after", "round", *matrix["tasks"]]]
    rows += [[row["after"], str(row["round"]), *(figure(s) for s in row["scores"])] for row in matrix["rows"]]
    lines = ["retention: held-out reward of the deployed system", table(rows)]
    if not result["is_current"]:
        lines.append("  the last row is not of the states that are live now (a rollback, or a phase under way)")
    named = (
        ("forgetting", "forgetting (loss is positive)"),
        ("backward_transfer", "backward transfer (loss is negative)"),
        ("forward_transfer", "forward transfer"),
        ("final_average", "final average"),
    )
    summary = [[label, figure(result["summary"].get(name), signed=name != "final_average")] for name, label in named]
    summary.append(["worst case", figure(result["worst_case"])])
    if result["base_forgetting"] is not None:
        summary.append(["base forgetting (loss is positive)", figure(result["base_forgetting"], signed=True)])
        summary += [[f"  {suite['task']}", figure(suite["loss"], signed=True)] for suite in result["suites"]]
    elif result["unmeasured_suites"]:
        names = ", ".join(result["unmeasured_suites"])
        summary.append(["base forgetting", f"not measured, as the budget ran out: {names}"])
    else:
        summary.append(["base forgetting", "no suite: every task of the run is trained on"])
    lines.append(table(summary))
    if result["items"]:
        rows = [["items, since the end of its phase", "lost", "gained", "lost by chance alone", "beyond chance", ""]]
        for row in result["items"]:
            control = "the same state: a control" if row["same_state"] else ""
            cells = [figure(row[name], signed=name == "excess") for name in ("lost", "gained", "null_lost", "excess")]
            rows.append([f"{row['task']} (phase {row['phase']})", *cells, control])
        lines.append(table(rows))
    return "\n".join(lines)


def _plasticity(result: Plain) -> str:
    head = f"plasticity: {result['task']}, {result['rounds']} rounds from the live weights and from the base"
    if result["ratio"] is None:
        return f"{head}\n  no seed was trained to the end"
    rows = [["", "from live", "from base"]]
    for name, label in (("area", "mean score on the way"), ("first", "first score"), ("dead_groups", "dead groups")):
        rows.append([label, figure(result[name]), figure(result[f"{name}_against"])])
    counts = [f"{result['rejected'][arm]} of {result['proposed'][arm]}" for arm in ("live", "base")]
    rows.append(["slow proposals rejected", *counts])
    lines = [head, f"  ratio {figure(result['ratio'])} (below 1 is loss; intervals over training seeds)", table(rows)]
    if result["ratio_note"]:
        lines.append(f"  the ratio has no interval: {result['ratio_note']}")
    if result["too_hard"]:
        lines.append(
            "  nearly all groups were dead in both arms: the task is too hard for either, the ratio says little"
        )
    elif result["may_be_exploration"]:
        lines.append("  nearly all groups from live were dead: what they lost may be exploration, not plasticity")
    if result["trained_before"]:
        lines.append("  the run has trained on this task: the ratio holds what it knew, not plasticity alone")
    return "\n".join(lines)


def _ood(result: Plain) -> str:
    lines: list[str] = []
    for name, task in result["tasks"].items():
        lines += _ood_task(name, task)
    lines += [f"ood: {name} has no variants: {why}" for name, why in result["not_probed"].items()]
    return "\n".join(lines or ["ood: nothing was measured"])


def _ood_task(name: str, task: Plain) -> list[str]:
    report = task["report"]
    rows = [["variant", "base", "live", "change", "gap against id (DiD)", "transfer", "p (Holm)"]]
    for variant in task["measured"]:
        split = report["splits"][variant]
        cells = [figure(split["figures"][key], signed=signed) for key, signed in SPLIT_FIGURES]
        p = split["p_holm"]
        rows.append([variant, *cells, "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"])
    lines = [f"ood: {name}: {_spaced(report['verdict'])}", table(rows)]
    if task["same_system"]:
        lines.append("  the live system is the untouched base: every difference is 0 by construction")
    lines += [f"  {_spaced(f['verdict'])}: {f['reason']}; {f['action']}" for f in report["findings"]]
    lines += [f"  caution: {text}" for text in report["cautions"]]
    return [*lines, *(f"  note: {text}" for text in task["notes"])]


def _spaced(verdict: str) -> str:
    """A verdict's name as words."""
    return verdict.replace("_", " ")


def _decomposition(result: Plain) -> str:
    lines: list[str] = ["decomposition: held-out reward by weights × prompt"]
    for name, task in result["tasks"].items():
        cells = task["cells"]
        rows: list[Sequence[str]] = [[name, "no prompt", "learned prompt"]]
        for weights, label in (("base", "base weights"), ("live", "trained weights")):
            rows.append([label, *(figure(cells.get(f"{weights}_{prompt}")) for prompt in ("none", "learned"))])
        lines.append(table(rows))
        if task["effects"]:
            parts = (("slow", "weights"), ("fast", "prompt"), ("interaction", "only together"), ("total", "= gain"))
            shares = task["shares"] or {}
            rows = [["", "effect", "share of the gain (same n)"]]
            rows += [[w, figure(task["effects"][k], signed=True), figure(shares.get(k), n=False)] for k, w in parts]
            lines.append(table(rows))
            if not shares:
                lines.append("  no shares: the interval of the gain includes 0")
    return "\n".join(lines)
