"""How verbs speak: answers on standard output, everything else on standard error; JSON, plain tables, units."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from twoclock.types import Cost

__all__ = [
    "clean",
    "cost_words",
    "duration",
    "interval_words",
    "json_option",
    "one_line",
    "run_argument",
    "say",
    "set_option",
    "show",
    "show_json",
    "table",
]

CONTROL = re.compile(
    r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal would obey, colours aside: a model may write escape sequences."""

run_argument = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=VALUE",
    help="Override a setting, such as --set recipe=rl_only or --set stream.0.rounds=4; may be repeated.",
)


def clean(text: str) -> str:
    """Text with control characters (line ends and tabs aside) as visible escapes."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def one_line(text: str, width: int = 100) -> str:
    """Text on one line of at most ``width`` characters."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def show(text: str = "") -> None:
    """To standard output: what was asked for."""
    click.echo(clean(text))


def say(text: str) -> None:
    """To standard error: progress and notes."""
    click.echo(clean(text), err=True)


def show_json(value: Any) -> None:
    """Plain ASCII JSON, so that any pipe can carry it."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Left-aligned columns, two spaces apart; a short row leaves its last columns empty."""
    count = max((len(row) for row in rows), default=0)
    widths = [max(len(row[place]) for row in rows if place < len(row)) for place in range(count)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows)
    return "\n".join(f"{indent}{line}" for line in lines)


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``1 h 02 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def cost_words(cost: Cost) -> str:
    """What is not 0 of a cost, in words."""
    counts = (
        (cost.rollouts, "rollout"),
        (cost.tokens, "token"),
        (cost.trained_tokens, "trained token"),
        (cost.optimizer_steps, "optimizer step"),
        (cost.reflector_calls, "reflector call"),
    )
    parts = [f"{count:,} {what}{'' if count == 1 else 's'}" for count, what in counts if count]
    return ", ".join([*parts, duration(cost.seconds)] if cost.seconds else parts) or "nothing"


def interval_words(interval: dict[str, Any] | None, digits: int = 2, signed: bool = False) -> str:
    """``0.52 [0.43, 0.61]`` from an interval's plain form; unknown numbers are ``–``."""
    if interval is None or interval["estimate"] is None:
        return "–"
    if interval["method"] in ("identical", "exact"):
        return "none" if signed else "0 exactly"

    def number(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return "–"
        text = f"{value:{'+' if signed else ''}.{digits}f}"
        return text.lstrip("+-") if float(text) == 0 else text

    return f"{number(interval['estimate'])} [{number(interval['low'])}, {number(interval['high'])}]"
