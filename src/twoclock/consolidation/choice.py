"""Which lessons may move to the weights: by hand, or by what the run has measured of them.

Evidence costs nothing: it is read from the groups that learning rolled out anyway. A lesson's effect is known where a
group has rollouts of one item with it and without it, all else alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twoclock.consolidation.settings import ConsolidationSettings
from twoclock.contracts import Channel, Teaching
from twoclock.errors import ConfigError, unknown_name
from twoclock.measure.lessons import LessonRecord
from twoclock.store import RunStore
from twoclock.types import Conditioning, Lesson

__all__ = ["Choice", "LessonEvidence", "Rule", "choose", "lasting_rule", "lesson_evidence"]


@dataclass(frozen=True, kw_only=True)
class LessonEvidence:
    """What the run says of one lesson."""

    record: LessonRecord
    """Its graded applications; a step is a round."""
    since: int
    """The first round that wrote it; 0 where it was there from the start."""
    age: int
    """Rounds since then."""

    @property
    def rounds(self) -> int:
        """Rounds in which it was compared with going without."""
        return len(self.record.steps)


Rule = Callable[[Lesson, LessonEvidence, ConsolidationSettings], str | None]
"""Why a lesson is not to be moved, or None."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A lesson, and whether it is to be moved."""

    lesson: Lesson
    evidence: LessonEvidence | None
    accepted: bool
    reason: str

    def as_dict(self) -> dict[str, Any]:
        found = self.evidence
        effect = found.record.effect().interval() if found and found.rounds else None
        return {
            "lesson": self.lesson.id,
            "channel": self.lesson.channel,
            "text": self.lesson.text,
            "tasks": list(self.lesson.tasks),
            "accepted": self.accepted,
            "reason": self.reason,
            "age": found.age if found else None,
            "rounds": found.rounds if found else None,
            "groups": found.record.outcomes.groups if found else None,
            "effect": effect.as_dict() if effect else None,
        }


def choose(
    lessons: Sequence[Lesson],
    evidence: Mapping[str, LessonEvidence],
    settings: ConsolidationSettings,
    *,
    asked: Collection[str] | None = None,
    rule: Rule | None = None,
) -> list[Choice]:
    """A choice for every live lesson, those that are to be moved first. Pure.

    ``asked`` are the ids of those that are named by hand: whatever the evidence, as verification measures what they are
    worth. Without it the evidence decides, by ``rule``. Raises ConfigError for an id that is no live lesson.
    """
    known = {lesson.id: lesson for lesson in lessons}
    if unknown := [unknown_name("lesson", name, known) for name in asked or () if name not in known]:
        raise ConfigError(unknown)
    if idle := [name for name in asked or () if not known[name].live]:
        raise ConfigError([f"the lesson '{name}' is not live: what is not shown cannot be distilled" for name in idle])
    choices = []
    for lesson in (one for one in lessons if one.live):
        found = evidence.get(lesson.id)
        if asked is not None:
            reason: str | None = None if lesson.id in asked else "it was not asked for"
        elif found is None:
            reason = "nothing is recorded of it"
        else:
            reason = (rule or lasting_rule)(lesson, found, settings)
        told = reason or ("it was asked for" if asked is not None else _praise(found, settings))
        choices.append(Choice(lesson=lesson, evidence=found, accepted=reason is None, reason=told))
    return sorted(choices, key=lambda choice: not choice.accepted)


def lasting_rule(lesson: Lesson, found: LessonEvidence, settings: ConsolidationSettings) -> str | None:
    """Old enough, compared often enough, of an effect above 0, and likely to stay true."""
    record = found.record
    if not found.rounds:
        return (
            "nothing compares it with going without it: no group had rollouts with it and with nothing in its place "
            "(raise [rollouts] prompts_per_item until the empty prompt is among them), or name it with --lesson"
        )
    if found.age < settings.min_age:
        return f"too young: {found.age} of {settings.min_age} rounds"
    if found.rounds < settings.min_rounds:
        return f"compared in {found.rounds} of {settings.min_rounds} rounds"
    effect = record.effect().interval(1 - 2 * settings.alpha)
    if not effect.low > 0:
        told = f"{effect.estimate:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]"
        return f"its effect is not above 0: {told} in {record.outcomes.groups} groups"
    chance = record.persistence().lasts(settings.horizon)
    if chance < settings.lasting:
        return (
            f"it may not last: {chance:.0%} that it stays true for {settings.horizon} rounds more, "
            f"{settings.lasting:.0%} are needed"
        )
    return None


def _praise(found: LessonEvidence | None, settings: ConsolidationSettings) -> str:
    assert found is not None
    effect = found.record.effect().interval(1 - 2 * settings.alpha)
    chance = found.record.persistence().lasts(settings.horizon)
    return (
        f"{effect.estimate:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}] in {found.rounds} rounds; "
        f"{chance:.0%} that it stays true for {settings.horizon} rounds more"
    )


# ----------------------------------------------------------------------------------------------- what the ledger says


def lesson_evidence(
    store: RunStore, name: str, channel: Channel[Any], state: Any, lessons: Sequence[Lesson], tasks: Collection[str]
) -> dict[str, LessonEvidence]:
    """By id what the run's groups say of each lesson of the channel ``name``. ``tasks`` are those of the stream."""
    assert isinstance(channel, Teaching)
    last = store.head().next_round - 1
    written: dict[str, int] = {}
    for entry in store.entries(channel=name):
        for write in entry.writes if entry.action in ("init", "commit") else ():
            written.setdefault(write.lesson, entry.round)
    marks = {lesson.id: _marks(channel, state, lesson, tasks) for lesson in lessons if lesson.live}
    records = {key: LessonRecord(lesson=key) for key in marks}
    told = store.conditionings()
    for (number, task, item), rows in _groups(store).items():
        for key, mark in marks.items():
            arms = mark(task, [(told[c], reward) for c, reward in rows if c in told])
            if arms[0] and arms[1]:
                records[key] = records[key].update(*arms, item=item, task=task, step=number)
    found = {}
    for lesson in lessons:
        if lesson.id in records:
            since = written.get(lesson.id, int(lesson.since))
            found[lesson.id] = LessonEvidence(record=records[lesson.id], since=since, age=max(0, last - since))
    return found


def _groups(store: RunStore) -> dict[tuple[int, str, str], list[tuple[str, float]]]:
    """By (round, task, item) the (conditioning, reward) of each rollout of that round itself."""
    tasks = {row.round: row.task for row in store.rounds()}
    groups: dict[tuple[int, str, str], list[tuple[str, float]]] = {}
    for row in store.rollouts():
        if row.age == 0 and row.failure is None and row.round in tasks:
            key = (row.round, tasks[row.round], row.item_id)
            groups.setdefault(key, []).append((row.conditioning_id, row.reward))
    return groups


Told = Mapping[str, Any]
Arms = tuple[list[float], list[float]]
Mark = Callable[[str, Sequence[tuple[Told, float]]], Arms]
"""(task, a group's conditionings as the ledger has them, with rewards) → (rewards with the lesson, without it)."""


def _marks(channel: Any, state: Any, lesson: Lesson, tasks: Collection[str]) -> Mark:
    own = {task: channel.condition(state, task) for task in tasks}
    if any(conditioning.recall for conditioning in own.values()):
        return lambda task, rows: _split(rows, lambda told: lesson.id in told["recalled"])
    rest = {task: channel.condition(channel.without(state, [lesson.id]), task) for task in tasks}

    def arms(task: str, rows: Sequence[tuple[Told, float]]) -> Arms:
        if task not in own or own[task].id == rest[task].id:
            return [], []
        with_it = [(told, reward) for told, reward in rows if _has(told, own[task], rest[task])]
        # Only what says the same but for the lesson tells what the lesson does.
        bare = [_without(told, own[task], rest[task]) for told, _ in with_it]
        return [reward for _, reward in with_it], [reward for told, reward in rows if _text(told) in bare]

    return arms


def _split(rows: Sequence[tuple[Told, float]], shown: Callable[[Told], bool]) -> Arms:
    return [r for told, r in rows if shown(told)], [r for told, r in rows if not shown(told)]


def _text(told: Told) -> tuple[Any, ...]:
    return told["system"], [tuple(turn) for turn in told["exemplars"]], list(told["notes"]), told["delta"]


def _has(told: Told, own: Conditioning, rest: Conditioning) -> bool:
    system, exemplars, _, _ = _text(told)
    if own.system != rest.system and system != own.system:
        return False
    return own.exemplars == rest.exemplars or _place(exemplars, own.exemplars) is not None


def _without(told: Told, own: Conditioning, rest: Conditioning) -> tuple[Any, ...]:
    system, exemplars, notes, delta = _text(told)
    if own.exemplars != rest.exemplars:
        at = _place(exemplars, own.exemplars) or 0
        exemplars = [*exemplars[:at], *rest.exemplars, *exemplars[at + len(own.exemplars) :]]
    return rest.system if own.system != rest.system else system, exemplars, notes, delta


def _place(exemplars: Sequence[tuple[str, str]], part: Sequence[tuple[str, str]]) -> int | None:
    """Where ``part`` stands in the exemplars."""
    length = len(part)
    return next((n for n in range(len(exemplars) - length + 1) if list(exemplars[n : n + length]) == list(part)), None)
