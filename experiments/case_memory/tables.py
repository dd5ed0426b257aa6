"""The tables of the cells there are, as Markdown.

    python experiments/case_memory/tables.py

Scores are held-out, of the deployed memory, at the end of round 12; ± is a 95 % t interval over seeds where there are
three, and what stands in brackets behind a single seed is Wilson's over its items. ``held`` is what a round's own
comparisons say memory is worth: reward with all that was found minus reward with none of it, mean over rounds 7 to 12.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ARMS = (
    "none", "random1", "random4", "topk1", "topk2", "topk4", "topk8", "unmeasured4", "kernel1", "kernel4",
    "parametric1", "parametric4", "oracle4",
)  # fmt: skip
STUDIES = {
    "clean": ("The bank begins empty", ("docks", "reworded")),
    "stale": ("The bank begins with a wrong case for each depot", ("docks", "reworded")),
    "loud": ("Long wordings: what lies nearest is another depot", ("loud", "reworded")),
}


def cells(study: str, arm: str) -> list[dict[str, Any]]:
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((HERE / "results" / study).glob("*.json"))]
    return [cell for cell in found if cell["arm"] == arm]


def over_seeds(scores: Sequence[tuple[float, int]]) -> str:
    """(right, items) by seed, in words."""
    from twoclock.measure import t_interval, wilson

    rates = [right / n for right, n in scores]
    if len(rates) >= 3:
        found = t_interval(rates)
        return f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
    told = []
    for right, n in scores:
        one = wilson(round(right), n)
        told.append(f"{right / n:.2f} ({one.low:.2f}, {one.high:.2f})")
    return "; ".join(told)


def row(study: str, arm: str, tasks: Sequence[str]) -> list[str] | None:
    found = cells(study, arm)
    if not found:
        return None
    if arm == "oracle4":
        return [arm, str(len(found)), *(over_seeds([tuple(c["oracle"][t]) for c in found]) for t in tasks), *["–"] * 5]
    last = [c["points"][-1] for c in found]
    gains = [
        sum(g * n for g, n in late) / sum(n for _, n in late)
        for c in found
        if (late := [pair for number, pair in c["memory_gain"].items() if int(number) > 6])
    ]
    retired = [sum(c["retired"].values()) for c in found]
    stale = [c["stale_left"] for c in found if c["stale_left"] is not None]
    return [
        arm,
        str(len(found)),
        *(over_seeds([tuple(p["scores"][t]) for p in last]) for t in tasks),
        ", ".join(f"{sum(c['rewards'][-4:]) / 4:.2f}" for c in found),
        ", ".join(f"{g:+.2f}" for g in gains) or "–",
        ", ".join(str(p["entries"]) for p in last),
        ", ".join(map(str, retired)) + (f"; {', '.join(map(str, stale))} of 48 stale left" if stale else ""),
        f"{sum(p['tokens'] for p in last) / len(last):,.0f}",
    ]


def table(study: str) -> str:
    title, tasks = STUDIES[study]
    rows = [found for arm in ARMS if (found := row(study, arm, tasks))]
    if not rows:
        return ""
    heads = ["arm", "seeds", *(f"held-out, {t}" for t in tasks), "training reward, rounds 9-12", "held", "entries",
             "retired", "tokens"]  # fmt: skip
    lines = [f"### {title} (`{study}`)", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def growth() -> str:
    """Reward against the number of cases."""
    rows = []
    for arm in ARMS:
        for c in cells("clean", arm):
            points = [p for p in c["points"] if p["round"]]
            if arm not in ("none", "oracle4"):
                told = [f"{p['entries']}: {p['scores']['docks'][0] / p['scores']['docks'][1]:.2f}" for p in points]
                rows.append(f"| {arm} | {c['seed']} | {' | '.join(told)} |")
    heads = "| arm | seed | round 4 | round 8 | round 12 |\n|---|---|---|---|---|"
    return "\n".join(["### Cases in the bank: held-out score, `clean`", heads, *rows]) if rows else ""


def late(cell: dict[str, Any]) -> float:
    """The reward of the rounds' own rollouts, rounds 9 to 12."""
    return sum(cell["rewards"][-4:]) / 4


def learned_against_nearest() -> str:
    """The network's choice minus the nearest case, one case shown, on the same study and seed."""
    from scipy.stats import binomtest

    from twoclock.measure import t_interval

    rows, online, held = [], [], []
    for study, (_, tasks) in STUDIES.items():
        nearest = {c["seed"]: c for c in cells(study, "topk1")}
        for cell in cells(study, "parametric1"):
            other = nearest.get(cell["seed"])
            if other is None:
                continue
            ends = [c["points"][-1]["scores"][tasks[0]] for c in (cell, other)]
            held.append(ends[0][0] / ends[0][1] - ends[1][0] / ends[1][1])
            online.append(late(cell) - late(other))
            rows.append(f"| {study} | {cell['seed']} | {online[-1]:+.3f} | {held[-1]:+.3f} |")
    if len(rows) < 3:
        return ""
    told = []
    for values in (online, held):
        found, won = t_interval(values), sum(v > 0 for v in values)
        p = binomtest(won, sum(v != 0 for v in values), alternative="greater").pvalue
        told.append(f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}], {won} of {len(values)}, p = {p:.3f}")
    heads = "| study | seed | training reward, rounds 9-12 | held-out |\n|---|---|---|---|"
    whole = f"| all, sign test | {len(rows)} | {told[0]} | {told[1]} |"
    return "\n".join(["### The learned network minus the nearest case, one case shown", heads, *rows, whole])


def main() -> None:
    print(
        "\n\n".join(
            part for part in [*(table(study) for study in STUDIES), learned_against_nearest(), growth()] if part
        )
    )


if __name__ == "__main__":
    main()
