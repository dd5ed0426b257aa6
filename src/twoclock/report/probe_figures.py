"""The plots of a probe's results, as plotly figures, from the plain form in which the probe's file has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from twoclock.measure import Interval
from twoclock.probe_file import interval_of
from twoclock.report.drawing import BOTH, FAST, GREY, SLOW, TASK_COLOURS, blank_figure, error_bars, faint, label
from twoclock.report.figures import SCALE
from twoclock.report.formats import interval_text, number

__all__ = ["PROMPTING", "probe_drawings"]

Plain = Mapping[str, Any]

PROMPTING = {"none": "weights alone", "both": "both prompted", "live": "deployed"}
"""How a drift record's conditioning is called where there is little room."""
LIVE, BASE = BOTH, GREY
EFFECTS = (("slow", "weights", SLOW), ("fast", "prompt", FAST), ("interaction", "only together", TASK_COLOURS[0]),
           ("total", "= gain", BOTH))  # fmt: skip
CELLS = (("base_none", "base, no prompt", GREY), ("base_learned", "base, learned prompt", FAST),
         ("live_none", "trained, no prompt", SLOW), ("live_learned", "trained, learned prompt", BOTH))  # fmt: skip


def probe_drawings(results: Mapping[str, Plain]) -> dict[str, go.Figure]:
    """The figures by the names that the page asks for them; those with nothing to draw in are left out."""
    drawn: dict[str, go.Figure] = {}
    if records := results.get("drift", {}).get("records"):
        for key in ("live_base", "base_live"):
            drawn[f"probe_drift_{key}"] = _drift(records, key)
    if retention := results.get("retention"):
        if retention["matrix"]["rows"]:
            drawn["probe_matrix"] = _matrix(retention["matrix"])
        if retention["items"]:
            drawn["probe_items"] = _items(retention["items"])
    plasticity = results.get("plasticity")
    if plasticity and plasticity["curves"]:
        drawn["probe_plasticity"] = _curves(plasticity)
    for i, (_, task) in enumerate(results.get("ood", {}).get("tasks", {}).items()):
        drawn[f"probe_ood_scores_{i}"] = _scores(task)
        if len(task["measured"]) > 1:
            drawn[f"probe_ood_gaps_{i}"] = _gaps(task)
    tasks = results.get("decomposition", {}).get("tasks", {})
    if tasks:
        drawn["probe_cells"] = _grouped(
            [(word, colour, [(name, task["cells"].get(key)) for name, task in tasks.items()])
             for key, word, colour in CELLS], "held-out reward", [0, 1.02])  # fmt: skip
    if any(task["effects"] for task in tasks.values()):
        drawn["probe_effects"] = _grouped(
            [(word, colour, [(name, task["effects"][key]) for name, task in tasks.items() if task["effects"]])
             for key, word, colour in EFFECTS], "change of reward", None)  # fmt: skip
    return drawn


def _points(
    names: Sequence[str], values: Sequence[Interval], name: str, colour: str, *, digits: int = 2, **style: Any
) -> go.Scatter:
    return go.Scatter(
        x=list(names),
        y=[value.estimate if value.is_known else None for value in values],
        error_y=error_bars(values, color=colour),
        mode="markers",
        marker={"size": 8, "color": colour, **style},
        name=name,
        text=[interval_text(value, digits) for value in values],
        hovertemplate="%{x}: %{text}<extra>%{fullData.name}</extra>",
    )


def _drift(records: Sequence[Plain], key: str) -> go.Figure:
    """Exact as a bar, the unbiased estimators as marks on it, for each prompt set and conditioning, from above."""
    names = [f"{label(r['prompts'].removeprefix('task:'), 16)}, {PROMPTING[r['prompting']]}" for r in records]
    exact = [interval_of(record[key]["per_token"]) for record in records]
    traces: list[Any] = [
        go.Bar(
            y=names,
            x=[value.estimate for value in exact],
            orientation="h",
            error_x=error_bars(exact, color=GREY),
            marker={"color": faint(SLOW, 0.55)},
            name="exact",
            text=[interval_text(value, 4) + " prompts" for value in exact],
            textposition="none",
            hovertemplate="%{text}<extra>exact</extra>",
        )
    ]
    for estimator, symbol, colour in (("k1", "circle-open", TASK_COLOURS[2]), ("k3", "x-thin-open", TASK_COLOURS[1])):
        values = [interval_of(record[key]["estimates"].get(estimator, {}).get("per_token")) for record in records]
        if any(value.is_known for value in values):
            traces.append(
                go.Scatter(
                    y=names,
                    x=[value.estimate if value.is_known else None for value in values],
                    mode="markers",
                    marker={"symbol": symbol, "size": 9, "color": colour, "line": {"width": 2, "color": colour}},
                    name=estimator,
                    text=[interval_text(value, 4) for value in values],
                    hovertemplate=f"%{{text}}<extra>{estimator}</extra>",
                )
            )
    return blank_figure(
        traces,
        110 + 30 * len(records),
        showlegend=True,
        xaxis={"title": {"text": "nats a token"}, "rangemode": "tozero"},
        yaxis={"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False},
    )


def _matrix(matrix: Plain) -> go.Figure:
    tasks = [f"{i}. {label(task, 18)}" for i, task in enumerate(matrix["tasks"], 1)]
    cells = [[interval_of(score) for score in row["scores"]] for row in matrix["rows"]]
    wide = len(tasks) > 5

    def words(value: Interval) -> str:
        if not value.is_known:
            return "–"
        return number(value.estimate) + ("" if wide else f"<br>[{number(value.low)}, {number(value.high)}]")

    heat = go.Heatmap(
        z=[[value.estimate if value.is_known else None for value in row] for row in cells],
        x=tasks,
        y=[label(row["after"].replace(" (", ": ").rstrip(")"), 26) for row in matrix["rows"]],
        text=[[words(value) for value in row] for row in cells],
        customdata=[[interval_text(value) for value in row] for row in cells],
        texttemplate="%{text}",
        textfont={"color": "#14202c"},
        hovertemplate="%{y}, task %{x}: %{customdata}<extra></extra>",
        zmin=0,
        zmax=1,
        colorscale=SCALE,
        xgap=2,
        ygap=2,
        showscale=False,
    )
    return blank_figure(
        [heat],
        90 + 62 * len(cells),
        xaxis={"side": "top", "type": "category", "automargin": True, "showgrid": False},
        yaxis={"autorange": "reversed", "type": "category", "automargin": True, "showgrid": False},
    )


def _items(rows: Sequence[Plain]) -> go.Figure:
    series = (("lost", "lost", TASK_COLOURS[2]), ("null_lost", "lost by chance alone", GREY),
              ("gained", "gained", BOTH), ("excess", "lost beyond chance", TASK_COLOURS[0]))  # fmt: skip
    return _grouped(
        [(word, colour, [(f"{row['task']}, phase {row['phase']}", row[key]) for row in rows])
         for key, word, colour in series], "share of the items", None)  # fmt: skip


def _curves(result: Plain) -> go.Figure:
    """Each seed as a thin line, the mean over seeds as a thick one; the ratio stands in the plot."""
    traces: list[Any] = []
    for arm, colour, word in (("base", BASE, "from the base"), ("live", LIVE, "from the live weights")):
        curves = [curve for curve in result["curves"] if curve["start"] == arm]
        for curve in curves:
            traces.append(
                go.Scatter(
                    x=[point["rollouts"] for point in curve["points"]],
                    y=[point["score"] for point in curve["points"]],
                    mode="lines",
                    line={"color": colour, "width": 1, "dash": "dot"},
                    showlegend=False,
                    hovertemplate=f"seed {curve['seed']}: %{{y:.2f}}<extra>{word}</extra>",
                )
            )
        if curves and len({len(curve["points"]) for curve in curves}) == 1:
            points = list(zip(*[curve["points"] for curve in curves], strict=True))
            traces.append(
                go.Scatter(
                    x=[math.fsum(p["rollouts"] for p in at) / len(at) for at in points],
                    y=[math.fsum(p["score"] for p in at) / len(at) for at in points],
                    mode="lines+markers",
                    line={"color": colour, "width": 3},
                    name=f"{word}, mean of {len(curves)} seeds",
                    hovertemplate="%{y:.2f}<extra>%{fullData.name}</extra>",
                )
            )
    figure = blank_figure(
        traces,
        360,
        xaxis={"title": {"text": "rollouts spent on the probe task"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "held-out reward"}, "range": [0, 1.02]},
    )
    ratio = interval_of(result["ratio"])
    if ratio.is_known:
        text = f"ratio {number(ratio.estimate)} [{number(ratio.low)}, {number(ratio.high)}], {ratio.n} seeds"
        figure.add_annotation(x=0.02, y=0.97, xref="paper", yref="paper", showarrow=False, text=text, xanchor="left")
    return figure


def _scores(task: Plain) -> go.Figure:
    splits = task["report"]["splits"]
    return _grouped(
        [(word, colour, [(name, splits[name]["figures"][key]) for name in task["measured"]])
         for key, word, colour in (("base", "base", BASE), ("live", "live", LIVE))],
        "share right", [0, 1.02])  # fmt: skip


def _gaps(task: Plain) -> go.Figure:
    """The gap to ``id`` of each system, and how it changed, paired."""
    splits = task["report"]["splits"]
    names = [name for name in task["measured"] if name != "id"]
    traces = []
    series = (("gap_base", "gap of the base", BASE), ("gap_live", "gap of the live system", LIVE),
              ("did", "what learning did to it (DiD)", TASK_COLOURS[2]))  # fmt: skip
    for key, word, colour in series:
        traces.append(_points(names, [interval_of(splits[name]["figures"][key]) for name in names], word, colour))
    figure = blank_figure(
        traces,
        340,
        scattermode="group",
        xaxis={"type": "category", "automargin": True, "showgrid": False},
        yaxis={"title": {"text": "score on id − score here"}},
    )
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    return figure


def _grouped(
    series: Sequence[tuple[str, str, Sequence[tuple[str, Plain | None]]]], title: str, span: list[float] | None
) -> go.Figure:
    """Bars with error bars, one group a name."""
    traces = []
    for word, colour, pairs in series:
        known = [(name, interval_of(plain)) for name, plain in pairs]
        values = [value for _, value in known]
        traces.append(
            go.Bar(
                x=[label(name, 24) for name, _ in known],
                y=[value.estimate if value.is_known else None for value in values],
                error_y=error_bars(values),
                marker={"color": colour},
                name=word,
                text=[interval_text(value) for value in values],
                textposition="none",
                hovertemplate="%{x}: %{text}<extra>%{fullData.name}</extra>",
            )
        )
    return blank_figure(
        traces,
        360,
        barmode="group",
        bargap=0.3,
        xaxis={"type": "category", "automargin": True, "showgrid": False},
        yaxis={"title": {"text": title}, **({"range": span} if span else {})},
    )
