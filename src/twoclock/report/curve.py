"""The curve: reward over the rollouts spent on learning, and below it what became of each proposal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from twoclock.measure import Interval, score_curve
from twoclock.report.drawing import FAST, GREY, SLOW, blank_figure, colours_of, error_bars, faint, label
from twoclock.report.formats import interval_text
from twoclock.report.reading import RunData
from twoclock.report.tables import phase_label
from twoclock.types import TAKEN_BACK, LedgerEntry

__all__ = ["reward_figure"]

MARKS: Mapping[str, tuple[str, str]] = {
    "commit": ("triangle-up", "committed"),
    "reject": ("x-thin-open", "rejected"),
    "decline": ("circle-open", "declined"),
    "rollback": ("triangle-left-open", "rolled back"),
    TAKEN_BACK: ("triangle-left", "taken back"),
    "wait": ("line-ew-open", "passed over"),
    "consolidate": ("star-open", "consolidated"),
    "refuse": ("x-thin-open", "not consolidated"),
}


def reward_figure(data: RunData) -> go.Figure:
    """Training reward with its band and held-out points over rollouts spent; below, what became of each proposal."""
    spent = data.spent()
    colour = colours_of(data.tasks)
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
                    error_y=error_bars(scores, color=colour[task]),
                    mode="markers",
                    marker={"symbol": "diamond", "size": 10, "color": colour[task]},
                    name=f"{label(task, 22)}, held out",
                    text=[f"round {round}: {interval_text(score)}" for round, score in points],
                    hovertemplate="%{text}<extra>%{fullData.name}</extra>",
                )
            )
    marks = _marks(data, spent)
    channels = list(dict.fromkeys(entry.channel for entry in data.entries))
    figure = blank_figure(
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
                **band, y=[_bound(b.reward.high, b.reward) for b in bins], fill="tonexty", fillcolor=faint(colour)
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
        entries = [entry for entry in data.entries if _kind(entry) == action and entry.round in spent]
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


def _kind(entry: LedgerEntry) -> str:
    """The action, but that a rollback by the evidence inside a round is told from one by hand."""
    return TAKEN_BACK if entry.action == "rollback" and not entry.is_by_hand else entry.action


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
