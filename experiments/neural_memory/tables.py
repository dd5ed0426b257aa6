"""The tables of the cells there are, and the picture.

    python experiments/neural_memory/tables.py                   # Markdown
    python experiments/neural_memory/tables.py --html OUT.html   # the curves over length as well
    python experiments/neural_memory/tables.py --png OUT.png     # the same as a picture (needs matplotlib)

Intervals are 95 % by Student's t over seeds; a cell that diverged counts as 0 (as chance, where nothing was learned).
Text is in bits a byte over the last eighth of a text of that length: less is better.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import ARMS, MAIN
from data import TASKS

from twoclock.measure import Interval, t_interval

HERE = Path(__file__).parent
LENGTHS = ("1", "4", "16", "64")
PUBLISHED = {
    "linear": "mag-linear",
    "no convolution": "mag-no-conv",
    "no momentum": "mag-no-momentum",
    "no weight decay": "mag-no-forgetting",
    "no persistent memory": "mag-no-persistent",
}
"""Rows of the paper's Table 5 and our arms; there the base is LMM, with long-context scores beside."""
PAPER = {"linear": 85.34, "no convolution": 90.28, "no momentum": 87.12, "no weight decay": 85.60}
PAPER |= {"no persistent memory": 92.49}
PAPER_BASE = 92.68
COLOURS = {
    "mac": "#1b6ca8",
    "mag": "#2a9d8f",
    "mal": "#8172b2",
    "lmm": "#c98b1b",
    "delta": "#c44e52",
    "window": "#999999",
    "full": "#333333",
}

Cells = dict[tuple[str, str], list[dict[str, Any]]]


def cells(folder: Path) -> Cells:
    """(task, arm) -> its cells, by seed."""
    found: Cells = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        found[cell["task"], cell["arm"]].append(cell)
    return found


def score(cell: dict[str, Any], times: str, control: str | None = None) -> float | None:
    """None where the cell was not tested so."""
    if "diverged" in cell:
        return 0.0
    tests = cell["tests"] if control is None else cell["tests"].get(control, {})
    if times not in tests:
        return None
    value = tests[times]["score"]
    if value is None:
        return 0.0
    return -value if cell["task"] == "text" else float(value)


def over_seeds(found: Sequence[dict[str, Any]], times: str, control: str | None = None) -> Interval | None:
    values = [v for c in found if (v := score(c, times, control)) is not None]
    return t_interval(values) if values else None


def shown(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    if interval.n < 2:
        return f"{interval.estimate:.2f} (one seed)"
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def main_table(found: Cells, task: str, arms: Sequence[str]) -> list[str]:
    rows = []
    for arm in arms:
        mine = found.get((task, arm))
        if not mine:
            continue
        states = {json.dumps(c["bytes"]) for c in mine if "bytes" in c}
        kept = " / ".join(f"{b / 1024:.0f}" for b in json.loads(min(states)).values()) if states else "–"
        diverged = sum("diverged" in c for c in mine)
        note = f", {diverged} diverged" if diverged else ""
        scores = " | ".join(shown(over_seeds(mine, times)) for times in LENGTHS)
        rates = ", ".join(f"{rate:g}" for rate in sorted({c["rate"] for c in mine}))
        rows.append(f"| {arm} | {scores} | {kept} | {mine[0]['parameters']:,} | {rates} | {len(mine)}{note} |")
    if not rows:
        return []
    length = next(c["setting"]["length"] for (t, _), cs in found.items() if t == task for c in cs)
    head = " | ".join(f"{int(t) * length}" for t in LENGTHS)
    return [
        f"| arm | {head} | state KiB at {length} / {4 * length} | parameters | learning rate | seeds |",
        "|" + "---|" * (len(LENGTHS) + 5),
        *rows,
    ]


def control_table(found: Cells, task: str) -> list[str]:
    """The memory's worth: as trained, silent, and another text's; at the lengths of the controls."""
    rows = []
    for arm in ARMS:
        mine = [c for c in found.get((task, arm), []) if "other" in c.get("tests", {})]
        if not mine:
            continue
        parts = [
            shown(over_seeds(mine, times, control))
            for times in ("1", "4", "16")
            for control in (None, "zeroed", "other")
        ]
        rows.append(f"| {arm} | {' | '.join(parts)} |")
    if not rows:
        return []
    head = " | ".join(f"{n}L {what}" for n in ("", 4, 16) for what in ("own", "zeroed", "another's"))
    return [f"| arm | {head} |", "|" + "---|" * 10, *rows]


def ablation_table(found: Cells, task: str = "mqar") -> list[str]:
    """Ours (mag less one part) beside the paper's (LMM less one part, long-context score)."""
    if (task, "mag") not in found or not any((task, arm) in found for arm in PUBLISHED.values()):
        return []
    rows = [f"| whole | {' | '.join(shown(over_seeds(found[task, 'mag'], t)) for t in LENGTHS)} | {PAPER_BASE} |"]
    for name, arm in PUBLISHED.items():
        if mine := found.get((task, arm)):
            rows.append(f"| {name} | {' | '.join(shown(over_seeds(mine, t)) for t in LENGTHS)} | {PAPER[name]} |")
    head = " | ".join(f"{t}L" for t in LENGTHS)
    return [f"| mag | {head} | paper, LMM |", "|" + "---|" * 6, *rows]


def markdown(found: Cells) -> str:
    parts: list[str] = []
    for task in TASKS:
        if table := main_table(found, task, [*MAIN, *(a for a in ARMS if a not in MAIN)]):
            parts += [f"### {task}", *table, ""]
        if table := control_table(found, task):
            parts += [f"The memory's worth, {task}:", "", *table, ""]
    if table := ablation_table(found):
        parts += ["### Ablations, mqar", *table, ""]
    return "\n".join(parts) if parts else "no cells yet; type: python experiments/neural_memory/run.py --queue"


def curves(found: Cells, task: str) -> dict[str, list[tuple[int, Interval]]]:
    """arm -> (length, score) for the picture."""
    out = {}
    for arm in MAIN:
        if mine := found.get((task, arm)):
            length = mine[0]["setting"]["length"]
            points = [(int(t) * length, i) for t in LENGTHS if (i := over_seeds(mine, t)) is not None]
            out[arm] = points
    return out


def html(found: Cells, path: Path) -> None:
    import plotly.graph_objects as go

    pieces = []
    for task in TASKS:
        lines = curves(found, task)
        if not lines:
            continue
        figure = go.Figure()
        for arm, points in lines.items():
            figure.add_trace(
                go.Scatter(
                    x=[n for n, _ in points],
                    y=[i.estimate for _, i in points],
                    error_y={
                        "type": "data",
                        "symmetric": False,
                        "array": [max(0.0, i.high - i.estimate) for _, i in points],
                        "arrayminus": [max(0.0, i.estimate - i.low) for _, i in points],
                    },
                    name=arm,
                    line={"color": COLOURS[arm]},
                )
            )
        figure.update_xaxes(type="log", title="tokens")
        figure.update_layout(title=task, height=420, template="plotly_white")
        pieces.append(figure.to_html(full_html=False, include_plotlyjs=not pieces))
    path.write_text("<!doctype html><meta charset='utf-8'>" + "".join(pieces), encoding="utf-8")


def png(found: Cells, path: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise SystemExit("a picture needs matplotlib; type: pip install matplotlib, or use --html") from None
    tasks = [task for task in TASKS if curves(found, task)]
    figure, axes = plt.subplots(1, max(1, len(tasks)), figsize=(4.2 * max(1, len(tasks)), 3.6), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=False):
        for arm, points in curves(found, task).items():
            x = [n for n, _ in points]
            axis.plot(x, [i.estimate for _, i in points], marker="o", markersize=3, color=COLOURS[arm], label=arm)
            known = [(n, i) for n, i in points if i.n > 1]
            axis.fill_between(
                [n for n, _ in known],
                [i.low for _, i in known],
                [i.high for _, i in known],
                color=COLOURS[arm],
                alpha=0.12,
                linewidth=0,
            )
        axis.set_xscale("log", base=2)
        axis.set_xlabel("tokens")
        axis.set_title(task)
        if task != "text":
            axis.set_ylim(-0.03, 1.03)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the cells are")
    parser.add_argument("--html", type=Path)
    parser.add_argument("--png", type=Path)
    given = parser.parse_args(arguments)
    found = cells(given.out)
    print(markdown(found))
    if given.html:
        html(found, given.html)
    if given.png:
        png(found, given.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
