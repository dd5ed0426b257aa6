"""The tables of the cells in ``results``: for each environment and policy the first seed in full, then all seeds.

    python experiments/reflexion/tables.py > experiments/reflexion/tables.md

Arms are read with ``trial_report``, which refuses to print a curve without the arm of plain retries.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from twoclock.agent.trial_report import compare, trial_report
from twoclock.agent.trial_table import TrialTable, auc, auc_by_item, cumulative
from twoclock.measure.pairs import cluster_difference

HERE = Path(__file__).parent
_SEED = re.compile(r"-seed(\d+)$")
WINDOWS = ("retries", "window0", "window1", "window2", "reflexion", "window8")
RIVALS = ("token-matched", "shuffled", "last_attempt", "compressed")


def cells() -> dict[tuple[str, str], dict[int, dict[str, TrialTable]]]:
    """By (environment, policy), then by seed, the arms."""
    found: dict[tuple[str, str], dict[int, dict[str, TrialTable]]] = {}
    for path in sorted((HERE / "results").glob("*.json")):
        table = TrialTable.from_dict(json.loads(path.read_text(encoding="utf-8"))["table"])
        seed = int(_SEED.search(path.stem)[1])  # type: ignore[index]
        policy = "scripted" if table.policy in ("explorer", "programmer", "placebo") else table.policy
        found.setdefault((table.task, policy), {}).setdefault(seed, {})[table.arm] = table
    return found


def across(seeds: dict[int, dict[str, TrialTable]]) -> list[str]:
    """Every arm over all seeds against plain retries, and Reflexion against its other controls. An item that several
    seeds share is one unit of the intervals; tests are by seed."""
    ordered = [arms for _, arms in sorted(seeds.items())]
    names = [name for name in ordered[0] if all(name in arms for arms in ordered)]
    pairs = [(name, "retries") for name in names if name != "retries" and not name.startswith("window")]
    pairs += [("reflexion", other) for other in names if "reflexion" in names and other in RIVALS]
    lines = [
        "| arm | against | AUC by seed | AUC difference [95 %] | p(t2) by seed | p(t3) by seed |",
        "| --- " * 6 + "|",
    ]
    for name, other in pairs:
        mine, theirs = ([auc_by_item(arms[key]) for arms in ordered] for key in (name, other))
        units = [item for arms in ordered for item in arms[name].items]
        gain = cluster_difference([v for part in mine for v in part], [v for part in theirs for v in part], units)
        tests = [compare(arms[name], arms[other]).p for arms in ordered]
        cells = [
            " ".join(f"{auc(arms[name]):.3f}" for arms in ordered),
            f"{gain.estimate:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
            *(" ".join(f"{p[t - 1]:.1g}" for p in tests) for t in (2, 3)),
        ]
        lines.append(f"| {name} | {other} | {' | '.join(cells)} |")
    return lines


def windows(arms: dict[str, TrialTable]) -> list[str]:
    """The sweep of Ω against plain retries."""
    control = arms["retries"]
    lines = ["| Ω | " + " | ".join(f"t{t}" for t in range(1, control.trials + 1)) + " | AUC | AUC − retries [95 %] |"]
    lines.append("| --- " * (control.trials + 3) + "|")
    for name in WINDOWS:
        if name in arms and name != "retries":
            size = "3" if name == "reflexion" else name.removeprefix("window")
            gain = compare(arms[name], control).auc
            said = f"{gain.estimate:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            lines.append(
                f"| {size} | {' | '.join(map(str, cumulative(arms[name])))} | {auc(arms[name]):.3f} | {said} |"
            )
    zero = arms.get("window0")
    if zero is not None:
        same = zero.solved == control.solved and zero.tokens == control.tokens
        lines += [
            "",
            f"Ω = 0 is {'exactly' if same else 'NOT'} the arm of plain retries: outcomes and tokens, item by item.",
        ]
    return lines


def main() -> None:
    for (task, policy), seeds in cells().items():
        complete = {seed: arms for seed, arms in seeds.items() if "retries" in arms}
        print(f"## {task}, {policy} policy\n")
        for seed, arms in sorted(complete.items())[:1]:
            print(f"### Seed {seed}\n")
            shown = {name: table for name, table in arms.items() if not name.startswith("window")}
            print(trial_report(dict(sorted(shown.items(), key=lambda pair: pair[0] != "retries"))))
            if any(name.startswith("window") for name in arms):
                print("\n".join(["", f"### The window, seed {seed}", "", *windows(arms)]))
        if len(complete) > 1:
            print("\n".join(["", f"### Seeds {', '.join(map(str, sorted(complete)))}", "", *across(complete)]))
        print()


if __name__ == "__main__":
    main()
