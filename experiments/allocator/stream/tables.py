"""The tables of the stream's cells, as Markdown: ``python experiments/allocator/stream/tables.py > .../tables.md``.

*Online* is the mean reward of what is deployed, over all rounds, on the items that each round reads: nothing is paid
for twice. *Regret* is the oracle's online reward minus the arm's, seed by seed. *Forgetting* is the best held-out score
of a task at the end of a phase minus its score at the end of the run, the mean over tasks, both as deployed.
*Rounds to recover*: after a flip, the first round of the phase whose reward reaches 0.6, counting from 1; a phase that
never does counts with its length. Intervals are Student's over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twoclock.measure.statistics import t_interval

HERE = Path(__file__).parent
ARMS = ("null", "slow_only", "fast_only", "fst", "bandit", "evidence_v1", "evidence_v2", "evidence", "oracle")
RECOVERED = 0.6


def cells() -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted((HERE / "results").glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(row["arm"], {})[row["seed"]] = row
    return found


def online(row: dict[str, Any]) -> float:
    return math.fsum(row["online"]) / len(row["online"])


def by_phase(row: dict[str, Any]) -> list[list[float]]:
    phases = sorted(set(row["phases"]))
    return [[r for r, p in zip(row["online"], row["phases"], strict=True) if p == phase] for phase in phases]


def recovery(row: dict[str, Any]) -> float:
    """Rounds, the mean over the flips (every phase but the first)."""
    lengths = []
    for rewards in by_phase(row)[1:]:
        reached = [n for n, reward in enumerate(rewards, 1) if reward >= RECOVERED]
        lengths.append(reached[0] if reached else len(rewards))
    return sum(lengths) / len(lengths)


def forgetting(row: dict[str, Any]) -> float:
    scores: dict[str, list[float]] = {}
    for _, task, weights, prompt, right, count in row["scores"]:
        if weights == "live" and prompt == "learned":
            scores.setdefault(task, []).append(right / count)
    return math.fsum(max(s) - s[-1] for s in scores.values()) / len(scores)


def drift(row: dict[str, Any]) -> float:
    return next(live for number, name, live, _ in reversed(row["drift"]) if name == "general")


def told(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return "–"
    mean = math.fsum(values) / len(values)
    if len(values) < 2 or len(set(values)) == 1:
        return f"{mean:.{digits}f}"
    interval = t_interval(values)
    return f"{mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def main() -> None:
    found = cells()
    oracle = found.get("oracle", {})
    print("| arm | seeds | online reward | regret to the oracle | forgetting | rounds to recover | drift, general | "
          "thousand tokens |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for arm in ARMS:
        rows = found.get(arm)
        if not rows:
            continue
        regret = [online(oracle[s]) - online(r) for s, r in rows.items() if s in oracle]
        values = list(rows.values())
        print(
            f"| {arm} | {len(rows)} | {told([online(r) for r in values])} | {told(regret)} | "
            f"{told([forgetting(r) for r in values])} | {told([recovery(r) for r in values], 1)} | "
            f"{told([drift(r) for r in values], 3)} | {sum(r['tokens'] for r in values) / len(rows) / 1000:,.0f} |"
        )
    print()
    print("| arm | seed | phase 1: first | phase 2: last | phase 3: first | phase 4: last |")
    print("|---|---|---|---|---|---|")
    for arm in ARMS:
        for seed, row in sorted(found.get(arm, {}).items()):
            parts = [" ".join(f"{r:.2f}".lstrip("0") for r in phase) for phase in by_phase(row)]
            print(f"| {arm} | {seed} | {' | '.join(parts)} |")


if __name__ == "__main__":
    main()
