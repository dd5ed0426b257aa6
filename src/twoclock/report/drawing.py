"""What all figures share: their colours, their labels, their error bars, and the empty figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from twoclock.measure import Interval

__all__ = ["blank_figure", "BOTH", "FAST", "GREY", "SLOW", "TASK_COLOURS", "colours_of", "error_bars", "faint", "label"]

# All readable on white and on near-black. A colour means one thing on the page: a clock, both clocks, or a task.
FAST, SLOW, BOTH, GREY = "#d9822b", "#3a80d2", "#2f9e77", "#8a919c"
TASK_COLOURS = ("#8f6fd1", "#1f9bb0", "#cf4f62", "#a3812c", "#b75fa8", "#6b8e3d")


def label(text: str, limit: int = 40) -> str:
    """Text as plotly should print it: its labels know some HTML, and names come from the user."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def colours_of(tasks: Sequence[str]) -> dict[str, str]:
    return {task: TASK_COLOURS[i % len(TASK_COLOURS)] for i, task in enumerate(tasks)}


def faint(colour: str, alpha: float = 0.18) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def error_bars(values: Sequence[Interval], **style: Any) -> dict[str, Any]:
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


def blank_figure(traces: Sequence[Any], height: int, **layout: Any) -> go.Figure:
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
