"""Why a lesson stands where it stands: what the ledger says of each lesson, the decision about it, and what would
change that. Reads, and changes nothing; loads no model.

Lessons are those of the run's teaching channels (:class:`~twoclock.contracts.Teaching`). Decisions are quoted from the
code that takes them: the rule of consolidation, the bounds of the watch, what a gate or a memory has written down.
"""

from __future__ import annotations

from twoclock.explain.counting import LessonCount, Slice
from twoclock.explain.history import Event
from twoclock.explain.reading import explain, explain_all
from twoclock.explain.records import Explanation, Explanations, Origin, Settings
from twoclock.explain.standing import Standing

__all__ = [
    "Event",
    "Explanation",
    "Explanations",
    "LessonCount",
    "Origin",
    "Settings",
    "Slice",
    "Standing",
    "explain",
    "explain_all",
]
