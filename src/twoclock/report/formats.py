"""How numbers look on the page: each with its interval and its count, signs on differences, a dash for the unknown."""

from __future__ import annotations

import math
import time

from markupsafe import Markup

from twoclock.measure import Interval
from twoclock.types import Cost

__all__ = ["amount", "count", "cost_words", "duration", "interval", "interval_text", "number", "when"]

DASH = "–"
MINUS = "−"


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number with that many decimals; ``–`` for None and NaN. Small ones that are not 0 keep two digits."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        shown = f"{value:+.2g}" if sign else f"{value:.2g}"
    else:
        shown = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return shown.replace("-", MINUS, 1) if shown.startswith("-") else shown


def interval_text(value: Interval, digits: int = 2, *, sign: bool = False, n: bool = True) -> str:
    """``0.61 [0.52, 0.69] n = 120`` in plain text."""
    if not value.is_known:
        return "not measured"
    parts = [number(value.estimate, digits, sign=sign), _bounds(value, digits, sign)]
    return " ".join(part for part in [*parts, f"n = {value.n}" if n else ""] if part)


def interval(value: Interval | None, digits: int = 2, *, sign: bool = False, n: bool = True) -> Markup:
    """The same in HTML, with the method of the interval as its title."""
    if value is None or not value.is_known:
        return Markup('<span class="none">not measured</span>')
    html = Markup('<span class="value">{}</span>').format(number(value.estimate, digits, sign=sign))
    if bounds := _bounds(value, digits, sign):
        html += Markup(' <span class="ci" title="{:.0%} interval: {}">{}</span>').format(
            value.level, value.method, bounds
        )
    return html + (Markup(' <span class="n">n = {}</span>').format(value.n) if n else Markup(""))


def _bounds(value: Interval, digits: int, sign: bool) -> str:
    if math.isnan(value.low) or math.isnan(value.high):
        return ""
    return f"[{number(value.low, digits, sign=sign)}, {number(value.high, digits, sign=sign)}]"


def count(value: float | None) -> str:
    """A whole number with separators; ``–`` for what was not counted."""
    return DASH if value is None else f"{round(value):,}"


def amount(value: float) -> str:
    """A metric, whatever it measures: whole numbers as such, others with four digits."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", MINUS)
    return f"{value:.4g}".replace("-", MINUS, 1)


def duration(seconds: float | None) -> str:
    """``0.35 s``, ``8.4 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds is None or math.isnan(seconds):
        return DASH
    if 0 < seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def when(start: float | None, end: float | None = None) -> str:
    """Seconds since the epoch as a date and time in UTC; with ``end`` a span, the day said once."""
    if not start:
        return DASH
    first = time.strftime("%Y-%m-%d %H:%M", time.gmtime(start))
    if end is None:
        return f"{first} UTC"
    last = time.strftime("%Y-%m-%d %H:%M", time.gmtime(end))
    return f"{first} to {last[11:] if last[:10] == first[:10] else last} UTC"


def cost_words(cost: Cost) -> str:
    """What one entry cost, in words; only what is not 0."""
    parts = [
        (cost.rollouts, "rollout"),
        (cost.tokens, "token"),
        (cost.optimizer_steps, "optimizer step"),
        (cost.reflector_calls, "reflector call"),
    ]
    words = [f"{value:,} {name}{'' if value == 1 else 's'}" for value, name in parts if value]
    return ", ".join([*words, duration(cost.seconds)] if cost.seconds else words) or "nothing"
