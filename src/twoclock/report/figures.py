"""The plots, as plotly figures. Colours of text, axes and grid are left to the page, which knows light from dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from twoclock.measure import CELLS, DriftSummary, Interval, score_curve
from twoclock.report.formats import duration, interval_text, number
from twoclock.report.reading import RunData
from twoclock.report.tables import CELL_NAMES, CostRow, Retention, SplitRow, phase_label

__all__ = ["cost_figure", "drift_figure", "label", "retention_figure", "reward_figure", "split_figure", "token_figure"]

# All readable on white and on near-black. A colour means one thing on the page: a clock, both clocks, or a task.
FAST, SLOW, BOTH, GREY = "#d9822b", "#3a80d2", "#2f9e77", "#8a919c"
TASK_COLOURS = ("#8f6fd1", "#1f9bb0", "#cf4f62", "#a3812c", "#b75fa8", "#6b8e3d")

CELL_COLOURS = (GREY, FAST, SLOW, BOTH)
SCALE = [[0.0, "#f5ecd9"], [0.5, "#b9d6df"], [1.0, "#5f9bc9"]]
"""Light all the way, so that dark figures stand out on each of its colours."""

MARKS: Mapping[str, tuple[str, str]] = {
    "commit": ("triangle-up", "committed"),
    "reject": ("x-thin-open", "rejected"),
    "decline": ("circle-open", "declined"),
    "rollback": ("triangle-left-open", "rolled back"),
}


def label(text: str, limit: int = 40) -> str:
    """Text as plotly should print it: its labels know some HTML, and names come from the user."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _colour_of(tasks: Sequence[str]) -> dict[str, str]:
    return {task: TASK_COLOURS[i % len(TASK_COLOURS)] for i, task in enumerate(tasks)}


def _faint(colour: str, alpha: float = 0.18) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _error(values: Sequence[Interval], **style: Any) -> dict[str, Any]:
    """Error bars; none where an interval has no bounds."""

    def arm(ends: tuple[float, float]) -> float:
        return 0.0 if math.isnan(ends[0]) or math.isnan(ends[1]) else abs(ends[1] - ends[0])

    return {
        "type": "data",
        "symmetric": False,
        "array": [arm((value.estimate, value.high)) for value in values],
        "arrayminus": [arm((value.low, value.estimate)) for value in values],
        "thickness": 1.2,
        "width": 3,
        **style,
    }


def _figure(traces: Sequence[Any], height: int, **layout: Any) -> go.Figure:
    figure = go.Figure(data=list(traces))
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 48, "r": 12, "t": 34, "b": 44},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
        **layout,
    )
    return figure


# ----------------------------------------------------------------------------------------------------- what was learned


def reward_figure(data: RunData) -> go.Figure:
    """Training reward with its band and held-out points over rollouts spent; below, what became of each proposal."""
    spent = data.spent()
    colour = _colour_of(data.tasks)
    traces: list[Any] = []
    for task in data.tasks:
        traces += _training(data, task, colour[task], spent)
        points = [(round, score) for round, score in score_curve(
            data.evaluations, task, purposes=("phase", "probe", "final")) if round in spent]  # fmt: skip
        if points:
            scores = [score for _, score in points]
            traces.append(
                go.Scatter(
                    x=[spent[round] for round, _ in points],
                    y=[score.estimate for score in scores],
                    error_y=_error(scores, color=colour[task]),
                    mode="markers",
                    marker={"symbol": "diamond", "size": 10, "color": colour[task]},
                    name=f"{label(task, 22)}, held out",
                    text=[f"round {round}: {interval_text(score)}" for round, score in points],
                    hovertemplate="%{text}<extra>%{fullData.name}</extra>",
                )
            )
    marks = _marks(data, spent)
    channels = list(dict.fromkeys(entry.channel for entry in data.entries))
    figure = _figure(
        [*traces, *marks],
        440 + 18 * len(channels),
        xaxis={"title": {"text": "rollouts spent on learning"}, "anchor": "y2", "rangemode": "tozero"},
        yaxis={"title": {"text": "reward"}, "range": [-0.03, 1.05], "domain": [0.3, 1] if marks else [0, 1]},
    )
    if marks:
        rows = [label(name, 14) for name in reversed(channels)]
        figure.update_layout(
            yaxis2={
                "domain": [0, 0.22],
                "type": "category",
                "categoryorder": "array",
                "categoryarray": rows,
                "range": [-0.6, len(rows) - 0.4],
                "automargin": True,
            }
        )
    _switches(figure, data, spent)
    return figure


def _training(data: RunData, task: str, colour: str, spent: Mapping[int, int]) -> list[Any]:
    """A band and a line for each phase of the task; one entry in the legend for all of them."""
    traces: list[Any] = []
    for phase in [phase for phase in data.phases if phase.task == task]:
        bins = [b for b in data.bins if b.phase == phase.index]
        if not bins:
            continue
        x = [spent[b.last] for b in bins]
        band = {"x": x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        texts = [
            f"round{'s' if b.first != b.last else ''} {b.first}{f'–{b.last}' if b.first != b.last else ''}: "
            f"{interval_text(b.reward)} items, {b.rollouts} rollouts"
            for b in bins
        ]
        traces += [
            go.Scatter(**band, y=[_bound(b.reward.low, b.reward) for b in bins]),
            go.Scatter(
                **band, y=[_bound(b.reward.high, b.reward) for b in bins], fill="tonexty", fillcolor=_faint(colour)
            ),
            go.Scatter(
                x=x,
                y=[b.reward.estimate for b in bins],
                mode="lines+markers" if len(bins) < 60 else "lines",
                line={"color": colour, "width": 2},
                marker={"size": 4},
                name=f"{label(task, 22)}, training",
                legendgroup=f"training {task}",
                showlegend=not any(trace.legendgroup == f"training {task}" for trace in traces),
                text=texts,
                hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            ),
        ]
    return traces


def _bound(end: float, value: Interval) -> float:
    return value.estimate if math.isnan(end) else end


def _marks(data: RunData, spent: Mapping[int, int]) -> list[Any]:
    """One mark an entry of the ledger, on the row of its channel; entries of the start are no learning."""
    traces = []
    for action, (symbol, word) in MARKS.items():
        entries = [entry for entry in data.entries if entry.action == action and entry.round in spent]
        if not entries:
            continue
        fast = [entry.timescale == "fast" for entry in entries]
        traces.append(
            go.Scatter(
                x=[spent[entry.round] for entry in entries],
                y=[label(entry.channel, 14) for entry in entries],
                yaxis="y2",
                mode="markers",
                marker={
                    "symbol": symbol,
                    "size": 9 if action == "commit" else 7,
                    "color": [FAST if is_fast else SLOW for is_fast in fast] if action == "commit" else GREY,
                    "line": {"width": 1.5 if action != "commit" else 0, "color": GREY},
                },
                name=word,
                text=[f"round {entry.round}, {entry.timescale} clock: {label(entry.reason, 90)}" for entry in entries],
                hovertemplate=f"%{{text}}<extra>{word}</extra>",
            )
        )
    return traces


def _switches(figure: go.Figure, data: RunData, spent: Mapping[int, int]) -> None:
    for phase in data.phases:
        if phase.first is None:
            continue
        x = spent.get(phase.first - 1, 0)
        if phase.index > 0:
            figure.add_shape(
                type="line", xref="x", yref="paper", x0=x, x1=x, y0=0, y1=1,
                line={"color": GREY, "width": 1, "dash": "dot"},
            )  # fmt: skip
        if len(data.phases) <= 6:
            figure.add_annotation(
                x=x, xref="x", y=1.05, yref="y", yanchor="top", xanchor="left", showarrow=False,
                text=label(phase_label(phase), 20), font={"size": 11},
            )  # fmt: skip


# ------------------------------------------------------------------------------------------------- where it was written


def split_figure(rows: Sequence[SplitRow]) -> go.Figure:
    """The four cells of each task as bars with error bars."""
    traces = []
    tasks = [row for row in rows if row.table is not None]
    for cell, colour in zip(CELLS, CELL_COLOURS, strict=True):
        found = [(row.task, row.table.cells[cell]) for row in tasks if row.table and cell in row.table.cells]
        scores = [score for _, score in found]
        traces.append(
            go.Bar(
                x=[label(task, 24) for task, _ in found],
                y=[score.estimate for score in scores],
                error_y=_error(scores),
                marker={"color": colour},
                name=CELL_NAMES[cell],
                text=[interval_text(score) for score in scores],
                textposition="none",
                hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            )
        )
    return _figure(
        traces,
        360,
        barmode="group",
        bargap=0.3,
        xaxis={"type": "category", "automargin": True, "showgrid": False},
        yaxis={"title": {"text": "held-out reward"}, "range": [0, 1.02]},
    )


# ------------------------------------------------------------------------------------------------------- what it broke


def retention_figure(table: Retention) -> go.Figure:
    """R as a heatmap, its cells written in."""
    assert table.matrix is not None
    tasks = [f"{i}. {label(task, 18)}" for i, task in enumerate(table.matrix.tasks, 1)]
    wide = len(tasks) > 5

    def words(value: Interval) -> str:
        if not value.is_known:
            return "–"
        bounds = "" if wide else f"<br>[{number(value.low)}, {number(value.high)}]"
        return f"{number(value.estimate)}{bounds}"

    heat = go.Heatmap(
        z=[[value.estimate if value.is_known else None for value in row] for row in table.cells],
        x=tasks,
        y=[_broken(row) for row in table.rows],
        text=[[words(value) for value in row] for row in table.cells],
        customdata=[[interval_text(value) for value in row] for row in table.cells],
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
    return _figure(
        [heat],
        90 + 62 * len(table.rows),
        xaxis={"side": "top", "type": "category", "automargin": True, "showgrid": False},
        yaxis={"autorange": "reversed", "type": "category", "automargin": True, "showgrid": False},
    )


def _broken(row: str) -> str:
    """A row's label on two lines: phones are narrow."""
    head, _, tail = row.partition(" (")
    first, _, task = head.partition(": ")
    return "<br>".join(label(text, 22) for text in (first, task, tail.rstrip(")")) if text)


def drift_figure(summaries: Sequence[DriftSummary], direction: str, tasks: Sequence[str]) -> go.Figure:
    """One direction (``live_base`` or ``base_live``) over rounds, a line each prompt set."""
    sets = list(dict.fromkeys(summary.prompts for summary in summaries))
    traces = []
    colours = _colour_of(tasks)
    for prompts in sets:
        latest = {s.round: s for s in summaries if s.prompts == prompts}  # of two of one round the later one counts
        points = [latest[round] for round in sorted(latest)]
        values: list[Interval] = [getattr(point, direction) for point in points]
        colour = colours.get(prompts.removeprefix("task:"), GREY)
        traces.append(
            go.Scatter(
                x=[point.round for point in points],
                y=[value.estimate for value in values],
                error_y=_error(values, color=colour),
                mode="lines+markers",
                line={"color": colour, "width": 2, "dash": "dash" if prompts == "general" else "solid"},
                marker={"size": 6},
                name=label(prompts.removeprefix("task:"), 22),
                text=[interval_text(value, 3) + " prompts" for value in values],
                hovertemplate="round %{x}: %{text}<extra>%{fullData.name}</extra>",
            )
        )
    return _figure(
        traces,
        320,
        showlegend=True,
        xaxis={"title": {"text": "round"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "nats a token"}, "rangemode": "tozero"},
    )


# --------------------------------------------------------------------------------------------------------- what it cost


def _bars(
    rows: Sequence[CostRow],
    parts: Sequence[tuple[str, str | Sequence[str], Sequence[float], Sequence[str]]],
    title: str,
) -> go.Figure:
    names = [label(row.name, 24) for row in rows]
    traces = [
        go.Bar(
            y=names,
            x=list(values),
            orientation="h",
            marker={"color": colour},
            name=name,
            text=list(texts),
            textposition="none",
            hovertemplate="%{y}: %{text}<extra>%{fullData.name}</extra>",
        )
        for name, colour, values, texts in parts
    ]
    return _figure(
        traces,
        120 + 34 * len(rows),
        barmode="stack",
        showlegend=len(parts) > 1,
        xaxis={"title": {"text": title}, "rangemode": "tozero"},
        yaxis={"type": "category", "autorange": "reversed", "automargin": True},
    )


def cost_figure(rows: Sequence[CostRow]) -> go.Figure:
    """Seconds by who spent them."""
    rows = [row for row in rows if not row.is_total]
    seconds = [row.cost.seconds for row in rows]
    colours = [{"fast": FAST, "slow": SLOW}.get(row.clock, GREY) for row in rows]
    return _bars(rows, [("seconds", colours, seconds, [duration(value) for value in seconds])], "seconds")


def token_figure(rows: Sequence[CostRow]) -> go.Figure:
    """Tokens read, written and trained by who spent them."""
    rows = [row for row in rows if not row.is_total and not row.timed_only]
    kinds = (("read", "prompt_tokens", GREY), ("written", "completion_tokens", TASK_COLOURS[1]),
             ("trained", "trained_tokens", TASK_COLOURS[0]))  # fmt: skip
    parts = []
    for name, field, colour in kinds:
        values = [getattr(row.cost, field) for row in rows]
        parts.append((name, colour, values, [f"{value:,} tokens {name}" for value in values]))
    return _bars(rows, parts, "tokens")
