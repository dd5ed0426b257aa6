"""An explanation as a value, in words' order and as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twoclock.consolidation import ConsolidationSettings
from twoclock.errors import ConfigError, unknown_name
from twoclock.explain.counting import LessonCount, Slice
from twoclock.explain.history import Event
from twoclock.explain.standing import Standing
from twoclock.gathering import RolloutSettings
from twoclock.measure.generality import Generality
from twoclock.measure.intervals import Interval
from twoclock.measure.lessons import LessonRecord
from twoclock.types import Lesson
from twoclock.watching import WatchSettings

__all__ = ["LIFE", "Explanation", "Explanations", "Origin", "Settings"]

LIFE = 100
"""Rounds up to which a lesson's expected life is counted."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What of a run's configuration decides on lessons."""

    consolidation: ConsolidationSettings = field(default_factory=ConsolidationSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    alpha: float = 0.05
    """The chance at which a trial accepts what has no effect."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a lesson came from."""

    round: int
    seq: int
    cause: str
    rollouts: tuple[str, ...] = ()
    """Named as ``round 7, item i0, seed 1``."""

    def as_dict(self) -> dict[str, Any]:
        return {"round": self.round, "seq": self.seq, "cause": self.cause, "rollouts": list(self.rollouts)}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One lesson: what it is, where it came from, the evidence, the decisions, and what would change the last one."""

    lesson: Lesson
    origin: Origin | None
    count: LessonCount
    phases: tuple[Slice, ...]
    tasks: tuple[Slice, ...]
    rounds: tuple[Slice, ...]
    events: tuple[Event, ...]
    standing: Standing
    own: LessonRecord
    """The comparisons with going without it, which consolidation goes by: whether it lasts and how widely it holds is
    read from these alone, as against another lesson it may lose and be true."""
    horizon: int
    """Rounds that ``lasts`` looks ahead."""

    @property
    def effect(self) -> Interval | None:
        """The posterior of its mean effect; None where nothing compares it."""
        return self.count.record.effect().interval() if self.count.record.steps else None

    @property
    def lasts(self) -> float | None:
        """P(it is true and stays so for ``horizon`` rounds more)."""
        return self.own.persistence().lasts(self.horizon) if self.own.steps else None

    @property
    def life(self) -> Interval | None:
        """Rounds that it stays true, at most :data:`LIFE`."""
        return self.own.persistence().life(LIFE) if self.own.steps else None

    @property
    def generality(self) -> Generality | None:
        return self.own.generality() if self.own.items else None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; what is not known is None."""
        lesson, count, wide = self.lesson, self.count, self.generality
        return {
            "lesson": lesson.id,
            "channel": lesson.channel,
            "text": lesson.text,
            "tasks": list(lesson.tasks),
            "live": lesson.live,
            "origin": self.origin.as_dict() if self.origin else None,
            "compared_with": count.compared_with,
            "effect": _interval(self.effect),
            "applied": count.beside.applied,
            "rollouts": count.rollouts,
            "helped": count.record.helped,
            "contradicted": count.record.contradicted,
            "groups": count.record.outcomes.groups,
            "against": dict(count.against),
            "beside": _interval(count.beside.effect().interval() if count.beside.steps else None),
            "horizon": self.horizon,
            "lasts": self.lasts,
            "life": _interval(self.life),
            "generality": _generality(wide) if wide else None,
            "tokens": count.tokens,
            **{
                name: [{"name": s.name, "groups": s.groups, "effect": _interval(s.effect)} for s in getattr(self, name)]
                for name in ("phases", "tasks_compared", "rounds")
            },
            "events": [event.as_dict() for event in self.events],
            "standing": self.standing.as_dict(),
        }

    @property
    def tasks_compared(self) -> tuple[Slice, ...]:
        """Under the name that does not collide with the lesson's own tasks."""
        return self.tasks


@dataclass(frozen=True, kw_only=True)
class Explanations:
    """All lessons of a run: live ones first, then by what they are worth."""

    run: str
    round: int
    """The last round that is in it."""
    lessons: tuple[Explanation, ...] = ()
    written: Mapping[int, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """By number of a ledger entry, the lessons (channel, id) that it names."""
    problem: str = ""
    """Why there are none."""

    def find(self, name: str) -> Explanation:
        """By id, by the start of one, by ``channel/id``, or by the number of a ledger entry that names one lesson, such
        as ``#12``. ConfigError for what is no lesson, and for what is several."""
        if self.problem:
            raise ConfigError(self.problem)
        if name.startswith("#"):
            return self._of_entry(name)
        channel, slash, start = name.rpartition("/")
        mine = [one for one in self.lessons if not slash or one.lesson.channel == channel]
        found = [one for one in mine if one.lesson.id == start] or [
            one for one in mine if start and one.lesson.id.startswith(start)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            told = ", ".join(f"{one.lesson.channel}/{one.lesson.id}" for one in found[:5])
            raise ConfigError(f"{len(found)} lessons begin with '{name}': {told}; give more of the id")
        problem = unknown_name("lesson", name, [one.lesson.id for one in self.lessons])
        raise ConfigError(f"{problem}. 'twoclock why {self.run}' lists them")

    def _of_entry(self, name: str) -> Explanation:
        number = int(name[1:]) if name[1:].isdecimal() else -1
        if number not in self.written:
            raise ConfigError(
                f"no ledger entry {name} of {self.run} writes a lesson; 'twoclock log {self.run} --full' shows entries"
            )
        keys = self.written[number]
        if len(keys) > 1:
            told = ", ".join(f"{channel}/{lesson}" for channel, lesson in keys[:8])
            raise ConfigError(f"the ledger entry {name} writes {len(keys)} lessons, name one of them: {told}")
        return next(one for one in self.lessons if (one.lesson.channel, one.lesson.id) == keys[0])

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "round": self.round,
            "problem": self.problem or None,
            "lessons": [one.as_dict() for one in self.lessons],
        }


def _interval(value: Interval | None) -> dict[str, Any] | None:
    return value.as_dict() if value else None


def _generality(wide: Generality) -> dict[str, Any]:
    return {
        "items": wide.items,
        "tasks": list(wide.tasks),
        "between_items": _interval(wide.between_items),
        "new_item": wide.new_item,
        "new_task": wide.new_task,
    }
