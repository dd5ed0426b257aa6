"""What a run's own rollouts say of each lesson, in one pass over the ledger.

Inside a group the item, the round and the weights are the same. Two comparisons are counted. *Alone*: against rollouts
under what says the same but for the lesson, which is its effect. *Beside*: against every rollout of the group without
it, whatever stood in its place; a prompt that was only ever held against another prompt has no other evidence. What a
search sampled in an earlier round, and what could not be graded, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twoclock.explain.matching import Key, Parts
from twoclock.measure.intervals import Interval
from twoclock.measure.lessons import LessonRecord, Outcomes
from twoclock.store import RolloutRow, RoundRow

__all__ = ["LessonCount", "Slice", "Sources", "count_lessons"]

MOST_SOURCES = 8
"""Rollouts named as the origin of a lesson."""

Sources = Mapping[tuple[str, str], Collection[Key]]
"""(question, answer) of an exemplar → the lessons that show it."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The comparisons of one round, phase or task."""

    name: str
    groups: int
    weight: float
    effect: Interval


@dataclass(frozen=True, kw_only=True)
class LessonCount:
    """One lesson's graded applications. A step of the records is a round."""

    alone: LessonRecord
    """Against what says the same but for the lesson."""
    beside: LessonRecord
    """Against all that stood in its place; ``applied`` counts every group that the lesson was in."""
    rollouts: int = 0
    """Rollouts that had it."""
    against: Mapping[str, int] = field(default_factory=dict)
    """What stood in its place: lesson ids, ``going without it`` or ``something else``, with the number of groups."""
    tokens: float | None = None
    """Its price: prompt tokens that it adds to a read, over the groups of ``alone``; None where there are none."""
    sources: tuple[str, ...] = ()
    """Rollouts whose answers its exemplars are."""

    @property
    def record(self) -> LessonRecord:
        """What the effect is read from: ``alone`` where it was ever compared so, else ``beside``."""
        return self.alone if self.alone.steps else self.beside

    @property
    def compared_with(self) -> str:
        if self.alone.steps:
            return "going without it"
        return "what stood in its place" if self.beside.steps else "nothing"

    def slices(self, rounds: Mapping[int, RoundRow], by: str) -> tuple[Slice, ...]:
        """The comparisons by ``round``, ``phase`` or ``task``."""
        parts: dict[str, Outcomes] = {}
        for number, outcomes in sorted(self.record.steps.items()):
            row = rounds[number]
            name = {"round": f"{number}", "phase": f"{row.phase + 1}: {row.task}", "task": row.task}[by]
            parts[name] = parts.get(name, Outcomes()) + outcomes
        return tuple(_slice(name, outcomes) for name, outcomes in parts.items())


def _slice(name: str, outcomes: Outcomes) -> Slice:
    effect = LessonRecord(lesson="", steps={0: outcomes}).effect().interval()
    return Slice(name=name, groups=outcomes.groups, weight=outcomes.weight, effect=effect)


@dataclass
class _Sum:
    """A lesson's count while it grows."""

    count: LessonCount
    token_differences: list[float] = field(default_factory=list)


def count_lessons(
    keys: Iterable[Key], parts: Mapping[str, Parts], rows: Iterable[RolloutRow], *, last: int, sources: Sources
) -> dict[Key, LessonCount]:
    """By lesson. ``parts`` are the recorded conditionings by id, ``last`` the last round that counts."""
    sums = {key: _Sum(_nothing(key)) for key in keys}
    for number, task, group in _groups(rows, last):
        item = group[0].item_id
        known = [row for row in group if row.conditioning_id in parts]
        for key in {k for row in known for k in parts[row.conditioning_id].lessons} & sums.keys():
            _add(sums[key], key, known, parts, number, task, item)
        for row in group:
            for key in sources.get((row.prompt, row.text.strip()), ()):
                if key in sums and len(sums[key].count.sources) < MOST_SOURCES:
                    told = f"round {row.round}, item {row.item_id}, seed {row.seed}"
                    sums[key].count = replace(sums[key].count, sources=(*sums[key].count.sources, told))
    return {key: replace(one.count, tokens=_mean_or_none(one.token_differences)) for key, one in sums.items()}


def _nothing(key: Key) -> LessonCount:
    return LessonCount(alone=LessonRecord(lesson=key[1]), beside=LessonRecord(lesson=key[1]))


def _groups(rows: Iterable[RolloutRow], last: int) -> Iterator[tuple[int, str, list[RolloutRow]]]:
    """(round, task, rollouts of one item), of rounds up to ``last``."""
    current: dict[tuple[str, str], list[RolloutRow]] = {}
    number = -1
    for row in rows:
        if row.round > last:
            break
        if row.round != number:
            yield from ((number, task, group) for (task, _), group in current.items())
            current, number = {}, row.round
        if row.age == 0 and row.failure is None:
            current.setdefault((row.task, row.item_id), []).append(row)
    yield from ((number, task, group) for (task, _), group in current.items())


def _add(
    into: _Sum, key: Key, group: Sequence[RolloutRow], parts: Mapping[str, Parts], number: int, task: str, item: str
) -> None:
    shown = [row for row in group if key in parts[row.conditioning_id].lessons]
    others = [row for row in group if key not in parts[row.conditioning_id].lessons]
    there = {parts[row.conditioning_id].features for row in others}
    bare = {features for row in shown if (features := parts[row.conditioning_id].without(key)) in there}
    place: dict[str, Any] = {"item": item, "task": task, "step": number}
    count = into.count
    against = dict(count.against)
    names = {_name(key, parts[row.conditioning_id], parts[row.conditioning_id].features in bare) for row in others}
    for name in names:
        against[name] = against.get(name, 0) + 1
    count = replace(
        count,
        beside=count.beside.update([r.reward for r in shown], [r.reward for r in others], **place),
        rollouts=count.rollouts + len(shown),
        against=against,
    )
    if bare:
        with_it = [row for row in shown if parts[row.conditioning_id].without(key) in bare]
        without = [row for row in others if parts[row.conditioning_id].features in bare]
        rewards = [row.reward for row in with_it], [row.reward for row in without]
        count = replace(count, alone=count.alone.update(*rewards, **place))
        into.token_differences.append(_tokens(with_it) - _tokens(without))
    into.count = count


def _name(key: Key, parts: Parts, alone: bool) -> str:
    """What stood in the lesson's place."""
    if alone:
        return "going without it"
    same = sorted(lesson for channel, lesson in parts.lessons if channel == key[0])
    return same[0] if len(same) == 1 else "something else"


def _tokens(rows: Sequence[RolloutRow]) -> float:
    return math.fsum(row.prompt_tokens for row in rows) / len(rows)


def _mean_or_none(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
