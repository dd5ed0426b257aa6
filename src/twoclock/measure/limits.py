"""Limits that a measured number is held to, such as by a pipeline: within, beyond, or not decided by these data.

A limit is a claim about the truth, so it is held against the interval and not against the estimate: an estimate just
below a limit with an interval across it has shown nothing. What to do when nothing is decided is the caller's choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from twoclock.measure.intervals import Interval

__all__ = ["LimitCheck", "LimitVerdict", "check_limit"]

LimitVerdict = Literal["within", "beyond", "undecided", "unknown"]


@dataclass(frozen=True, kw_only=True)
class LimitCheck:
    """One number against the most that it may be."""

    name: str
    value: Interval
    limit: float
    verdict: LimitVerdict
    """``within``: the whole interval is at most the limit; ``beyond``: the whole interval is above it; ``undecided``:
    the limit lies inside, more items would tell; ``unknown``: there is no number."""

    def __str__(self) -> str:
        words = {
            "within": f"{self.name} is at most {self.limit:g}",
            "beyond": f"{self.name} is above {self.limit:g}",
            "undecided": f"whether {self.name} is at most {self.limit:g} is not decided",
            "unknown": f"{self.name} was not measured",
        }
        return f"{words[self.verdict]}: {self.value}" if self.verdict != "unknown" else words["unknown"]


def check_limit(name: str, value: Interval, most: float) -> LimitCheck:
    """Hold one number, of which less is better, to a limit."""
    if not math.isfinite(most):
        raise ValueError(f"the limit of {name} is a finite number; got {most}")
    verdict: LimitVerdict
    if not value.is_known:
        verdict = "unknown"
    elif value.high <= most:
        verdict = "within"
    else:
        verdict = "beyond" if value.low > most else "undecided"
    return LimitCheck(name=name, value=value, limit=most, verdict=verdict)
