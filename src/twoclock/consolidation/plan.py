"""What a consolidation would do: which lessons, into which weights, judged on what, at what cost. Loads no model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from twoclock.consolidation.choice import Choice, Rule, choose, lesson_evidence
from twoclock.consolidation.savings import ITEMS, REPEATS
from twoclock.consolidation.settings import ConsolidationSettings
from twoclock.contracts import Channel, Distilling, Interactive, TaskStream, Teaching
from twoclock.errors import ConfigError, UnsupportedError, unknown_name
from twoclock.evaluation import conditioning_of
from twoclock.hashing import content_hash
from twoclock.store import RunStore
from twoclock.types import LedgerEntry, Lesson, Snapshot, Timescale

__all__ = ["CAUSE", "ConsolidationPlan", "plan_consolidation", "slow_channel"]

CAUSE = "consolidation"
"""How the cause of each entry of a consolidation begins; the plan's key follows."""

CHOOSING = ("min_age", "min_rounds", "horizon", "lasting", "at_phase_ends")
"""Settings that say which lessons: a plan that has chosen the same ones is the same without them."""


@dataclass(frozen=True, kw_only=True)
class ConsolidationPlan:
    """One consolidation, worked out on ``head``."""

    channel: str
    """The fast channel whose lessons are moved."""
    slow: str
    choices: tuple[Choice, ...]
    """Every live lesson of the channel, those that are to be moved first."""
    tasks: tuple[str, ...]
    """Tasks of the stream on which one of them speaks."""
    others: tuple[str, ...]
    """The other tasks of the stream, on which nothing may be lost."""
    settings: ConsolidationSettings
    head: Snapshot
    key: str
    """A hash of lessons, weights and settings: where it is the same, so would be what comes out."""
    rollouts: int
    """At most so many are sampled."""
    seconds: float | None
    """What that takes at the speed of the run's own rounds; None where it has none."""
    tried: LedgerEntry | None
    """The entry of the same plan that was refused before."""

    @property
    def lessons(self) -> tuple[Lesson, ...]:
        """Those that are to be moved."""
        return tuple(choice.lesson for choice in self.choices if choice.accepted)

    def as_dict(self) -> dict[str, Any]:
        return {
            "channel": self.channel,
            "slow": self.slow,
            "lessons": [choice.as_dict() for choice in self.choices],
            "tasks": list(self.tasks),
            "others": list(self.others),
            "settings": asdict(self.settings),
            "key": self.key,
            "rollouts": self.rollouts,
            "seconds": self.seconds,
            "tried": {"round": self.tried.round, "reason": self.tried.reason} if self.tried else None,
        }


def plan_consolidation(
    store: RunStore,
    stream: TaskStream,
    channels: Mapping[str, Channel[Any]],
    states: Mapping[str, Any],
    settings: ConsolidationSettings,
    *,
    seed: int,
    lessons: Collection[str] | None = None,
    channel: str | None = None,
    rule: Rule | None = None,
) -> ConsolidationPlan:
    """``lessons`` are ids that are named by hand; without them the evidence decides, by ``rule``. Raises ConfigError
    where there is nothing to plan: no slow channel, no channel that has lessons, no live lesson, an unknown name; and
    UnsupportedError for lessons of tasks that are played over several turns."""
    slow = slow_channel(channels)
    name = channel or _fast_channel(channels, states, lessons or ())
    if name not in channels:
        raise ConfigError(unknown_name("channel", name, channels))
    teacher = channels[name]
    if not isinstance(teacher, Teaching) or teacher.timescale is not Timescale.FAST:
        raise ConfigError(f"channel '{name}' has no lessons that could be moved; those that do: {_teachers(channels)}")
    known = teacher.lessons(states[name])
    if not any(lesson.live for lesson in known):
        raise ConfigError(f"channel '{name}' has no live lesson: there is nothing to consolidate yet")
    order = list(dict.fromkeys(phase.task for phase in stream.phases))
    found = lesson_evidence(store, name, teacher, states[name], known, order)
    choices = [
        _speaking(choice, teacher, states[name], order)
        for choice in choose(known, found, settings, asked=lessons, rule=rule)
    ]
    chosen = [choice.lesson.id for choice in choices if choice.accepted]
    after = {**states, name: teacher.without(states[name], chosen)} if chosen else dict(states)
    tasks = [t for t in order if conditioning_of(channels, states, t).id != conditioning_of(channels, after, t).id]
    for task in tasks:
        if isinstance(stream.tasks[task], Interactive):
            raise UnsupportedError(
                f"task '{task}' is played over several turns, and such transcripts cannot be distilled: name lessons "
                "of other tasks with --lesson"
            )
    others = [task for task in order if task not in tasks]
    head = store.head()
    key = _key(name, chosen, head.states[slow], settings, seed)
    rollouts = _rollouts(settings, stream, tasks, others, len(chosen))
    pace = _pace(store)
    return ConsolidationPlan(
        channel=name,
        slow=slow,
        choices=tuple(sorted(choices, key=lambda choice: not choice.accepted)),
        tasks=tuple(tasks),
        others=tuple(others),
        settings=settings,
        head=head,
        key=key,
        rollouts=rollouts,
        seconds=None if pace is None else rollouts * pace,
        tried=_tried(store, slow, key),
    )


def slow_channel(channels: Mapping[str, Channel[Any]]) -> str:
    """The one that lessons are moved into. Raises ConfigError where there is none."""
    slow = [name for name, channel in channels.items() if channel.timescale is Timescale.SLOW]
    able = [name for name in slow if isinstance(channels[name], Distilling)]
    if not slow:
        raise ConfigError(
            "the run has no slow channel, so there are no weights that lessons could move to: start a run with one, "
            "such as [channels.lora]"
        )
    if len(able) != 1:
        told = ", ".join(able or slow)
        raise ConfigError(
            f"consolidation needs one slow channel that can distil; got {len(able)} that can, of channels {told}"
        )
    return able[0]


def _teachers(channels: Mapping[str, Channel[Any]]) -> str:
    names = [n for n, c in channels.items() if isinstance(c, Teaching) and c.timescale is Timescale.FAST]
    return ", ".join(names) or "none in this run"


def _fast_channel(channels: Mapping[str, Channel[Any]], states: Mapping[str, Any], wanted: Collection[str]) -> str:
    """The channel that has the lessons that are asked for, or else the only one that has live ones."""
    having: dict[str, set[str]] = {}
    for name, channel in channels.items():
        if isinstance(channel, Teaching) and channel.timescale is Timescale.FAST:
            having[name] = {lesson.id for lesson in channel.lessons(states[name]) if lesson.live or wanted}
    if not having:
        raise ConfigError("the run has no channel with lessons, such as prompts: there is nothing to consolidate")
    full = {name: ids for name, ids in having.items() if ids}
    if not full:
        raise ConfigError(f"no lesson is live yet in {', '.join(having)}: there is nothing to consolidate")
    if wanted:
        full = {name: ids for name, ids in having.items() if set(wanted) <= ids}
        if not full:
            every = sorted(set[str]().union(*having.values()))
            unknown = [one for one in wanted if one not in every]
            told = [unknown_name("lesson", one, every) for one in unknown]
            raise ConfigError(told or "the lessons belong to several channels: name those of one at a time")
    if len(full) > 1:
        raise ConfigError(f"several channels have lessons, name one with --channel: {', '.join(full)}")
    return next(iter(full))


def _speaking(choice: Choice, teacher: Any, state: Any, tasks: Collection[str]) -> Choice:
    """A lesson that no task of the stream is told cannot be measured."""
    if not choice.accepted:
        return choice
    bare = teacher.without(state, [choice.lesson.id])
    if any(teacher.condition(state, task).id != teacher.condition(bare, task).id for task in tasks):
        return choice
    return replace(choice, accepted=False, reason="it is shown on no task of the stream")


def _key(channel: str, lessons: Collection[str], weights: str, settings: ConsolidationSettings, seed: int) -> str:
    plain = {name: value for name, value in asdict(settings).items() if name not in CHOOSING}
    return content_hash([channel, sorted(lessons), weights, plain, seed])[:16]


def _tried(store: RunStore, slow: str, key: str) -> LedgerEntry | None:
    entries = store.entries(channel=slow, action="refuse")
    return next((e for e in reversed(entries) if e.cause.startswith(f"{CAUSE} {key}")), None)


def _rollouts(
    settings: ConsolidationSettings, stream: TaskStream, tasks: Collection[str], others: Collection[str], lessons: int
) -> int:
    if not tasks:
        return 0

    def there(task: str, split: Any, wanted: int) -> int:
        return min(wanted, len(stream.tasks[task].split(split)))

    trial = sum(there(t, "trial", settings.trial_items) for t in tasks) * settings.trial_samples
    sentinel = sum(there(t, "trial", settings.sentinel_items) for t in others) * settings.trial_samples
    each = sum(there(t, "train", settings.items) for t in tasks)
    each += sum(there(t, "train", settings.anchors) for t in others)
    distilling = (settings.rounds + 1) * (each * settings.samples + settings.general_anchors)
    return trial * (2 + lessons) + 2 * sentinel + distilling + 2 * ITEMS * (REPEATS + 1)


def _pace(store: RunStore) -> float | None:
    """Seconds a rollout in the run's rounds."""
    rows = [row.metrics for row in store.rounds()]
    seconds = math.fsum(m.get("rollout_s", 0.0) for m in rows)
    rollouts = math.fsum(m.get("rollouts", 0.0) for m in rows)
    return seconds / rollouts if rollouts and seconds else None
