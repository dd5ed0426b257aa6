"""The tables of the cells, as Markdown: ``python experiments/svf/tables.py > experiments/svf/tables.md``.

*Score* is held out, of the task that was trained. *Retention* is the change of score on the two tasks that were not,
averaged. *Drift* is KL(live‖base) in nats a token on the general prompts. *Carried over* is, for tasks with variants,
the share of what was gained on the task that is gained on its variants too. Intervals are Student's over seeds; a claim
is held where the interval of the paired difference over seeds lies on its side of 0, not held where it lies on the
other, and else open.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twoclock.measure.statistics import t_interval

HERE = Path(__file__).parent
ARMS = ("svf", "svf_all", "lora1", "lora8", "lora16", "full")
TASKS = ("find", "largest", "first")
Row = dict[str, Any]
Cells = dict[tuple[str, str], dict[int, Row]]


def cells() -> Cells:
    found: Cells = {}
    for path in sorted((HERE / "results").glob("*-seed*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault((row["task"], row["arm"]), {})[row["seed"]] = row
    return found


def score(row: Row, task: str | None = None, weights: str = "live") -> float:
    right, count = row["scores"][f"{task or row['task']}/{weights}"]
    return float(right / count)


def gain(row: Row) -> float:
    return score(row) - score(row, weights="base")


def retention(row: Row) -> float:
    """The mean change on the tasks that were not trained."""
    others = [t for t in TASKS if t != row["task"]]
    return math.fsum(score(row, t) - score(row, t, "base") for t in others) / len(others)


def drift(row: Row) -> float:
    return float(row["drift"]["general"][0])


def carried(row: Row) -> float | None:
    """Gain on the variants over gain on the task, from the OOD probe; None where there is none to speak of."""
    splits = (row.get("ood") or {}).get("splits", {})
    own = splits.get("id", {}).get("change", {}).get("estimate")
    others = [s["change"]["estimate"] for n, s in splits.items() if n not in ("id", "seen") and s.get("change")]
    if not own or own <= 0.05 or not others:
        return None
    return math.fsum(others) / len(others) / float(own)


def told(values: Sequence[float | None], digits: int = 2) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean = math.fsum(known) / len(known)
    if len(known) < 2 or len(set(known)) == 1:
        return f"{mean:.{digits}f}"
    interval = t_interval(known)
    return f"{mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def main() -> None:
    found = cells()
    heads = "task | arm | seeds | trained numbers | score | base | mean reward | retention | drift | carried over"
    print(f"| {heads} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for task in TASKS:
        for arm in ARMS:
            rows = list(found.get((task, arm), {}).values())
            if rows:
                base = told([score(r, weights="base") for r in rows])
                online = told([math.fsum(r["rewards"]) / len(r["rewards"]) for r in rows])
                print(
                    f"| {task} | {arm} | {len(rows)} | {rows[0]['parameters']:,} | {told([score(r) for r in rows])} | "
                    f"{base} | {online} | {told([retention(r) for r in rows])} | {told([drift(r) for r in rows], 3)} | "
                    f"{told([carried(r) for r in rows])} |"
                )
    print("\n| claim (Transformer², arXiv:2501.06252) | difference over seeds and tasks | pairs | held? |")
    print("|---|---|---|---|")
    for text, one, other, figure, sign in CLAIMS:
        print(claim(found, text, one, other, figure, sign))
    composed()


CLAIMS: tuple[tuple[str, str, str, Callable[[Row], float], int], ...] = (
    ("fewer parameters than LoRA of rank 16", "svf", "lora16", lambda r: float(r["parameters"]), -1),
    ("fewer parameters than LoRA of rank 1", "svf", "lora1", lambda r: float(r["parameters"]), -1),
    ("a better score than LoRA of rank 16", "svf", "lora16", score, 1),
    ("a better score than LoRA of rank 8", "svf", "lora8", score, 1),
    ("a better score than LoRA of rank 1", "svf", "lora1", score, 1),
    ("a better score than all weights", "svf", "full", score, 1),
    ("all linear layers score better than MLP layers", "svf_all", "svf", score, 1),
    ("less is lost on other tasks than with LoRA of rank 16", "svf", "lora16", retention, 1),
    ("less drift than LoRA of rank 16", "svf", "lora16", drift, -1),
)


def claim(found: Cells, text: str, one: str, other: str, figure: Callable[[Row], float], sign: int) -> str:
    """One line. Pairs share task and seed; a seed's figure is the mean over the tasks it has in both arms."""
    by_seed: dict[int, list[float]] = {}
    for task in TASKS:
        mine, theirs = found.get((task, one), {}), found.get((task, other), {})
        for seed in mine.keys() & theirs.keys():
            by_seed.setdefault(seed, []).append(figure(mine[seed]) - figure(theirs[seed]))
    pairs = sum(map(len, by_seed.values()))
    means = [math.fsum(v) / len(v) for v in by_seed.values()]
    if not means:
        return f"| {text} | – | 0 | not measured |"
    digits = 0 if abs(means[0]) > 100 else 3
    same = len(set(means)) == 1
    if same and len(means) > 1 and means[0]:
        verdict = "held" if means[0] * sign > 0 else "not held"
    elif len(means) < 3:
        verdict = "open (under 3 seeds)"
    else:
        interval = t_interval(means)
        low, high = (interval.low, interval.high) if sign > 0 else (-interval.high, -interval.low)
        verdict = "held" if low > 0 else "not held" if high < 0 else "open"
    return f"| {text} | {told(means, digits)} | {pairs} | {verdict} |"


def composed() -> None:
    """What experts do to one another, from the cells of mixing.py."""
    rows = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((HERE / "results").glob("mixing-*.json"))]
    if not rows:
        print("\nComposition is not measured yet (mixing.py).")
        return
    columns = list(dict.fromkeys(column for row in rows for column in next(iter(row["scores"].values()))))
    print("\n| task | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for task in TASKS:
        values = [told([row["scores"][task].get(column) for row in rows]) for column in columns]
        print(f"| {task} | " + " | ".join(values) + " |")
    print("\n| way | interference, mean over tasks | error against the exact sum | seeds |")
    print("|---|---|---|---|")
    for way in rows[0]["interference"]:
        each = [math.fsum(row["interference"][way].values()) / len(row["interference"][way]) for row in rows]
        print(f"| {way} | {told(each)} | {told([row['error'].get(way) for row in rows], 3)} | {len(rows)} |")
    print("\n| unseen task | base | best single expert (oracle) | cem | cem by layer | prompt | seeds |")
    print("|---|---|---|---|---|---|---|")
    for name in rows[0]["unseen"]:
        here = [row["unseen"][name] for row in rows]
        ways = [told([one["scores"][way] for one in here]) for way in ("base", "cem", "cem by layer", "prompt")]
        oracle = told([one["oracle"] for one in here])
        print(f"| {name} | {ways[0]} | {oracle} | {' | '.join(ways[1:])} | {len(here)} |")


if __name__ == "__main__":
    main()
