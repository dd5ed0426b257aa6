"""Tables and figures of the cells there are, each beside what was published (arXiv:2605.12484).

    python experiments/fast_slow_training/figures.py                  # tables as Markdown
    python experiments/fast_slow_training/figures.py --html OUT.html  # the same with the figures

Scores to reach were stated before any cell was run: ``TARGETS``. Scores are of the deployed system (trained weights
under the learned prompt) on held-out items; what evaluations cost is not counted as learning.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ARMS = ("base", "prompt_only", "rl_only", "rl_kl", "prompt_then_rl", "rl_then_prompt", "fst", "fst_distill")
TARGETS = {"find": 0.8, "zero": 0.5, "flow": 0.6, "largest": 0.6}
PUBLISHED = {
    "problems": "1.4 to 3.0",
    "drift": "up to 0.70, mostly 0.45 to 0.55",
}
STREAM = ("find", "zero", "flow")
COLOURS = {
    "prompt_only": "#7a7a7a",
    "rl_only": "#c44e52",
    "fst": "#2a6fb0",
    "fst_distill": "#8172b2",
    "rl_kl": "#dd8452",
    "prompt_then_rl": "#55a868",
    "rl_then_prompt": "#937860",
}


def cells(study: str) -> list[dict[str, Any]]:
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((HERE / "results" / study).glob("*.json"))]
    return sorted(found, key=lambda c: (c["task"] or "", ARMS.index(c["arm"]), c["seed"]))


def score(point: Mapping[str, Any], task: str, cell: str = "learned") -> float:
    """The rate in one cell; at the start the base stands for all."""
    there = point["scores"][task]
    right, n = there.get(cell) or there["base"]
    return float(right) / float(n)


def curve_of(cell: Mapping[str, Any], task: str) -> Any:
    """The deployed score against what had been spent."""
    from twoclock.measure import CurvePoint, LearningCurve

    points = [
        CurvePoint(
            problems=p["problems"],
            rollouts=p["rollouts"],
            tokens=p["tokens"],
            score=score(p, task),
            n=next(iter(p["scores"][task].values()))[1],
        )
        for p in cell["points"]
        if task in p["scores"]
    ]
    return LearningCurve(task=task, start=cell["arm"], seed=cell["seed"], points=tuple(points))


def drift_of(cell: Mapping[str, Any], task: str, direction: int = 0) -> list[tuple[float, float]]:
    """(score, KL(live‖base) of the weights on the task's prompts) at each evaluation."""
    at = [(score(p, task), p["drift"].get(f"task:{task}")) for p in cell["points"] if task in p["scores"]]
    return [(s, d[direction]) for s, d in at if d is not None]


# -------------------------------------------------------------------------------------------------------------- tables


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def over_seeds(values: Sequence[float]) -> str:
    """Mean with its t interval over seeds from three on; else the values."""
    from twoclock.measure import t_interval

    if len(values) < 3:
        return ", ".join(f"{v:.2f}" for v in values)
    found = t_interval(values)
    return f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"


def ends(single: Sequence[Mapping[str, Any]]) -> str:
    """Where each arm stands at the end."""
    rows = []
    for task in TARGETS:
        mine = [c for c in single if c["task"] == task]
        if not mine:
            continue
        starts = {c["seed"]: score(c["points"][0], task) for c in mine}
        rows.append(
            [task, "base (null)", str(len(starts)), over_seeds(list(starts.values())), "–", "0", "0", "0", "0", "–"]
        )
        for arm in ARMS:
            some = [c for c in mine if c["arm"] == arm]
            if some:
                last = [c["points"][-1] for c in some]
                rows.append(
                    [
                        task,
                        arm,
                        str(len(some)),
                        over_seeds([score(p, task) for p in last]),
                        over_seeds([score(p, task, "none") for p in last]),
                        over_seeds([drift_of(c, task)[-1][1] for c in some]),
                        *(f"{sum(p[k] for p in last) / len(last):,.0f}" for k in ("problems", "rollouts", "tokens")),
                        over_seeds([sum(c["dead_groups"]) / len(c["dead_groups"]) for c in some]),
                    ]
                )
    heads = ["task", "arm", "seeds", "deployed", "without the prompt", "KL(live‖base), task prompts", "problems",
             "rollouts", "tokens", "dead groups"]  # fmt: skip
    return table(heads, rows)


def efficiencies(single: Sequence[Mapping[str, Any]]) -> str:
    """Three ratios an arm against rl_only, by running maximum as published, on the seeds that both have."""
    from twoclock.measure import sample_efficiency

    rows = []
    for task, target in TARGETS.items():
        by_arm = {
            arm: {c["seed"]: curve_of(c, task) for c in single if c["task"] == task and c["arm"] == arm} for arm in ARMS
        }
        for arm in ARMS:
            shared = sorted(set(by_arm[arm]) & set(by_arm["rl_only"]))
            if arm == "rl_only" or not shared:
                continue
            found = sample_efficiency(
                [by_arm[arm][s] for s in shared], [by_arm["rl_only"][s] for s in shared], target
            ).running_max
            one = found["problems"]
            rows.append(
                [
                    task,
                    f"{target:g}",
                    arm,
                    str(len(shared)),
                    *(_ratio(found[axis]) for axis in ("problems", "rollouts", "tokens")),
                    f"{one.arm.reached}/{one.arm.runs}, {one.than.reached}/{one.than.runs}",
                    PUBLISHED["problems"] if arm == "fst" else "–",
                ]
            )
    heads = ["task", "score", "arm", "seeds", "problems", "rollouts", "tokens", "reached: arm, rl_only",
             "published (problems)"]  # fmt: skip
    return table(heads, rows)


def _ratio(found: Any) -> str:
    """How many times sooner; ≥ where rl_only never got there, so that the truth is further from 1."""
    ratio = found.ratio
    if not ratio.is_known:
        return "not reached"
    sign = "≥ " if found.is_censored and found.arm.reached > found.than.reached else ""
    sign = "≤ " if found.is_censored and found.arm.reached < found.than.reached else sign
    bounds = "" if ratio.low != ratio.low else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{sign}{ratio.estimate:.2f}{bounds}"


def drifts(single: Sequence[Mapping[str, Any]]) -> str:
    """The share of rl_only's drift that an arm saves where both score the same."""
    from twoclock.measure import matched_drift

    rows = []
    for task, target in TARGETS.items():
        for direction, name in ((0, "KL(live‖base)"), (1, "KL(base‖live)")):
            by_arm = {
                arm: {c["seed"]: drift_of(c, task, direction) for c in single if c["task"] == task and c["arm"] == arm}
                for arm in ARMS
            }
            for arm in ARMS:
                if arm in ("rl_only", "prompt_only") or not by_arm[arm] or not by_arm["rl_only"]:
                    continue
                found = matched_drift(by_arm[arm], by_arm["rl_only"], target)
                reduction = found.reduction
                words = reduction.method if not reduction.is_known else (
                    f"{reduction.estimate:+.2f}"
                    + ("" if reduction.low != reduction.low else f" [{reduction.low:+.2f}, {reduction.high:+.2f}]")
                )  # fmt: skip
                show = [", ".join("–" if v is None else f"{v:.3f}" for _, v in sorted(side.items()))
                        for side in (found.arm, found.than)]  # fmt: skip
                rows.append([task, name, f"{target:g}", arm, *show, words, PUBLISHED["drift"] if arm == "fst" else "–"])
    heads = ["task", "direction", "at score", "arm", "arm, by seed", "rl_only, by seed", "reduction", "published"]
    return table(heads, rows)


def plasticity(found: Sequence[Mapping[str, Any]]) -> str:
    """The second task, learned by plain RL from where each arm's weights ended on the first."""
    rows = []
    for arm in ARMS:
        mine = [c for c in found if c["arm"] == arm]
        if not mine:
            continue
        task = next(iter(mine[0]["points"][0]["scores"]))
        curves = [[score(p, task) for p in c["points"]] for c in mine]
        rows.append(
            [
                mine[0]["task"],
                arm,
                str(len(mine)),
                task,
                *(over_seeds([part(curve) for curve in curves]) for part in (_first, _mean, _last)),
                over_seeds([_mean(c["dead_groups"]) for c in mine]),
                "; ".join(" ".join(f"{v:.2f}" for v in curve) for curve in curves),
            ]
        )
    heads = ["learned before", "by", "seeds", "learns", "first", "mean of the curve", "last", "dead groups", "by seed"]
    return table(heads, rows)


def _first(values: Sequence[float]) -> float:
    return values[0]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _last(values: Sequence[float]) -> float:
    return values[-1]


def stream(found: Sequence[Mapping[str, Any]]) -> str:
    """Three phases: the score of each task at the end of its own phase and at the end of all, deployed and without any
    prompt; the drift at the end; and the mean over phases of the mean score on the tasks met so far."""
    rows = []
    for arm in ARMS:
        mine = [c for c in found if c["arm"] == arm]
        if not mine:
            continue
        row = [arm, str(len(mine))]
        for phase, task in enumerate(STREAM, 1):
            own = [_at(c, phase) for c in mine]
            end = [_at(c, len(STREAM)) for c in mine]
            row.append(over_seeds([score(p, task) for p in own]))
            row.append(over_seeds([score(p, task) for p in end]))
            row.append(over_seeds([score(p, task, "none") for p in end]))
        row.append(over_seeds([_anytime(c) for c in mine]))
        row.append(over_seeds([c["points"][-1]["drift"]["general"][0] for c in mine]))
        rows.append(row)
    heads = ["arm", "seeds"]
    for task in STREAM:
        heads += [f"{task}: own phase", "end", "end, no prompt"]
    return table([*heads, "anytime", "KL(live‖base), general"], rows)


def _at(cell: Mapping[str, Any], phase: int) -> Mapping[str, Any]:
    """The point at the end of a phase, counted from 1."""
    rounds = cell["points"][-1]["round"] // len(STREAM)
    return next(p for p in cell["points"] if p["round"] == phase * rounds)


def _anytime(cell: Mapping[str, Any]) -> float:
    met = [[score(_at(cell, n), task) for task in STREAM[:n]] for n in range(1, len(STREAM) + 1)]
    return _mean([_mean(scores) for scores in met])


def words() -> str:
    parts = []
    single = cells("single")
    if single:
        parts += ["### One task", ends(single), "### How many times sooner than rl_only", efficiencies(single),
                  "### Drift at matched reward", drifts(single)]  # fmt: skip
    if early := cells("early"):
        parts += ["### The first 8 rounds, evaluated after each", ends(early), efficiencies(early), drifts(early)]
    if found := cells("plasticity"):
        parts += ["### Another task afterwards, by plain reinforcement learning", plasticity(found)]
    if found := cells("stream"):
        parts += ["### Three phases", stream(found)]
    return "\n".join(parts) if parts else "no cell has been run yet: see run.py"


# ------------------------------------------------------------------------------------------------------------- figures


def figures() -> list[Any]:
    """Learning curves a task (problems, rollouts), and score against drift: one thin line a seed."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    single = cells("single")
    drawn = []
    for task in TARGETS:
        mine = [c for c in single if c["task"] == task]
        if not mine:
            continue
        figure = make_subplots(rows=1, cols=3, subplot_titles=("by problems", "by rollouts", "by drift of the weights"))
        named: set[str] = set()
        for c in mine:
            curve, drift = curve_of(c, task), drift_of(c, task)
            columns = [
                ([p.problems for p in curve.points], curve.scores),
                ([p.rollouts for p in curve.points], curve.scores),
                ([d for _, d in drift], [s for s, _ in drift]),
            ]
            for column, (x, y) in enumerate(columns, 1):
                line = go.Scatter(
                    x=list(x),
                    y=list(y),
                    name=c["arm"],
                    legendgroup=c["arm"],
                    showlegend=c["arm"] not in named,
                    line={"color": COLOURS.get(c["arm"], "#222222"), "width": 1.5},
                    mode="lines+markers",
                    marker={"size": 4},
                )
                figure.add_trace(line, row=1, col=column)
                named.add(c["arm"])
        figure.add_hline(y=TARGETS[task], line={"dash": "dot", "color": "#999999"})
        figure.update_yaxes(range=[-0.02, 1.02])
        figure.update_layout(
            title=f"{task}: deployed held-out score, a line a seed", height=360, template="plotly_white"
        )
        drawn.append(figure)
    return [*drawn, *([_published()] if cells("early") else []), *([_stream()] if cells("stream") else [])]


def _published() -> Any:
    """Our ratios beside the published range: how many times sooner in problems, and the share of KL saved."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    from twoclock.measure import matched_drift, sample_efficiency

    figure = make_subplots(rows=1, cols=2, subplot_titles=("sooner than RL, in problems", "KL saved at equal score"))
    for task in ("find", "zero", "flow"):
        source = cells("early") if task == "find" else cells("single")
        arms = {a: {c["seed"]: c for c in source if c["task"] == task and c["arm"] == a} for a in ("fst", "rl_only")}
        shared = sorted(set(arms["fst"]) & set(arms["rl_only"]))
        if not shared:
            continue
        ours, theirs = ([curve_of(arms[a][s], task) for s in shared] for a in ("fst", "rl_only"))
        sooner = sample_efficiency(ours, theirs, TARGETS[task]).running_max["problems"].ratio
        side = {a: {s: drift_of(c, task) for s, c in by_seed.items()} for a, by_seed in arms.items()}
        saved = matched_drift(side["fst"], side["rl_only"], TARGETS[task]).reduction
        for column, found in enumerate((sooner, saved), 1):
            if found.is_known:
                error = {"array": [found.high - found.estimate], "arrayminus": [found.estimate - found.low]}
                point = go.Scatter(
                    x=[task],
                    y=[found.estimate],
                    error_y={"symmetric": False, **error},
                    mode="markers",
                    marker={"color": COLOURS["fst"], "size": 9},
                    showlegend=False,
                )
                figure.add_trace(point, row=1, col=column)
    for column, (low, high) in enumerate(((1.4, 3.0), (0.45, 0.70)), 1):
        figure.add_hrect(y0=low, y1=high, fillcolor="#999999", opacity=0.25, line_width=0, row=1, col=column,
                         annotation_text="published", annotation_position="top right")  # fmt: skip
    figure.update_yaxes(type="log", row=1, col=1)
    figure.update_yaxes(range=[-1.5, 1.05], row=1, col=2)
    return figure.update_layout(
        title="Fast-Slow Training against RL alone: ours (95 % over seeds) and published", height=360,
        template="plotly_white",
    )  # fmt: skip


def _stream() -> Any:
    """All three tasks through the three phases: deployed, and without any prompt (dotted)."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    found = cells("stream")
    figure = make_subplots(rows=1, cols=len(STREAM), subplot_titles=STREAM)
    named: set[str] = set()
    for c in found:
        for column, task in enumerate(STREAM, 1):
            for cell, dash in (("learned", "solid"), ("none", "dot")):
                line = go.Scatter(
                    x=[p["round"] for p in c["points"]],
                    y=[score(p, task, cell) for p in c["points"]],
                    name=c["arm"],
                    legendgroup=c["arm"],
                    showlegend=c["arm"] not in named,
                    line={"color": COLOURS.get(c["arm"], "#222222"), "width": 1.5, "dash": dash},
                    mode="lines",
                )
                figure.add_trace(line, row=1, col=column)
                named.add(c["arm"])
    for phase in (1, 2):
        figure.add_vline(x=12 * phase, line={"dash": "dot", "color": "#999999"})
    figure.update_yaxes(range=[-0.02, 1.02])
    return figure.update_layout(
        title="Three phases of 12 rounds: find, zero, flow; a line a seed, dotted without the prompt", height=360,
        template="plotly_white",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", type=Path)
    args = parser.parse_args()
    text = words()
    if args.html is None:
        print(text)
        return
    drawn = figures()
    pieces = [f.to_html(full_html=False, include_plotlyjs=n == 0) for n, f in enumerate(drawn)]
    style = "<style>body{font:15px sans-serif;max-width:1200px;margin:2em auto}pre{overflow:auto}</style>"
    args.html.write_text(
        f"<!doctype html><meta charset='utf-8'><title>Fast-Slow Training</title>{style}{''.join(pieces)}"
        f"<pre>{text}</pre>",
        encoding="utf-8",
    )
    print(args.html)


if __name__ == "__main__":
    main()
