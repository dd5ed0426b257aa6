"""The plots of the tables, as plotly figures. Colours of text, axes and grid are left to the page, which knows light
from dark."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from twoclock.measure import CELLS, DriftSummary, Interval
from twoclock.report.drawing import BOTH, FAST, GREY, SLOW, TASK_COLOURS, blank_figure, colours_of, error_bars, label
from twoclock.report.formats import duration, interval_text, number
from twoclock.report.tables import CELL_NAMES, CostRow, Retention, SplitRow

__all__ = ["cost_figure", "drift_figure", "retention_figure", "split_figure", "token_figure"]

CELL_COLOURS = (GREY, FAST, SLOW, BOTH)
SCALE = [[0.0, "#f5ecd9"], [0.5, "#b9d6df"], [1.0, "#5f9bc9"]]
"""Light all the way, so that dark figures stand out on each of its colours."""


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
                error_y=error_bars(scores),
                marker={"color": colour},
                name=CELL_NAMES[cell],
                text=[interval_text(score) for score in scores],
                textposition="none",
                hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            )
        )
    return blank_figure(
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
    return blank_figure(
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
    colours = colours_of(tasks)
    for prompts in sets:
        latest = {s.round: s for s in summaries if s.prompts == prompts}  # of two of one round the later one counts
        points = [latest[round] for round in sorted(latest)]
        values: list[Interval] = [getattr(point, direction) for point in points]
        colour = colours.get(prompts.removeprefix("task:"), GREY)
        traces.append(
            go.Scatter(
                x=[point.round for point in points],
                y=[value.estimate for value in values],
                error_y=error_bars(values, color=colour),
                mode="lines+markers",
                line={"color": colour, "width": 2, "dash": "dash" if prompts == "general" else "solid"},
                marker={"size": 6},
                name=label(prompts.removeprefix("task:"), 22),
                text=[interval_text(value, 3) + " prompts" for value in values],
                hovertemplate="round %{x}: %{text}<extra>%{fullData.name}</extra>",
            )
        )
    return blank_figure(
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
    return blank_figure(
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
