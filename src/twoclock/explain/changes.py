"""What would change where a live lesson stands: the rules it is held to, and how far each is from turning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from twoclock.consolidation import ConsolidationSettings, LessonEvidence, choose
from twoclock.explain.counting import LessonCount
from twoclock.explain.forecast import MOST_ROUNDS, comparisons_needed, groups_needed, rounds_until
from twoclock.explain.history import Event
from twoclock.explain.watches import WatchSpan
from twoclock.gathering import RolloutSettings
from twoclock.measure.intervals import Interval
from twoclock.types import LedgerEntry, Lesson
from twoclock.watching import Watch, WatchSettings, bounds

__all__ = [
    "Case",
    "Rules",
    "against_harm",
    "counted",
    "decides",
    "decides_harm",
    "forgets",
    "harms",
    "held_back",
    "more",
    "moves",
    "watched",
    "would_tell",
]


class Rules(Protocol):
    """What of a run's configuration decides on lessons; see :class:`~twoclock.explain.Settings`."""

    @property
    def consolidation(self) -> ConsolidationSettings: ...

    @property
    def watch(self) -> WatchSettings: ...

    @property
    def rollouts(self) -> RolloutSettings: ...

    @property
    def alpha(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that is known of one lesson when it is decided on."""

    lesson: Lesson
    count: LessonCount
    evidence: LessonEvidence
    events: Sequence[Event]
    rules: Rules
    slow: bool
    """Whether the run has a slow channel that it could move to."""
    remembered: bool
    """Whether it is an entry of a memory."""
    watch: WatchSpan | None
    moved: LedgerEntry | None
    """The consolidation that took it in, if the weights that it made are part of the live ones."""

    @property
    def is_own(self) -> bool:
        """Whether its effect was measured against going without it, and not against another lesson alone."""
        return self.remembered or bool(self.count.alone.steps)

    @property
    def level(self) -> float:
        """Of the intervals that consolidation looks at: one side of it errs with ``alpha``."""
        return 1 - 2 * self.rules.consolidation.alpha

    @property
    def effect(self) -> Interval:
        return self.count.record.effect().interval(self.level)


def would_tell(case: Case) -> list[str]:
    """Settings without which the ledger cannot compare it with going without it."""
    if case.count.alone.steps:
        return []
    rollouts, found = case.rules.rollouts, []
    if rollouts.prompts_per_item < 2:
        without = "one entry held out" if case.remembered else "another prompt or none"
        found.append(
            f"[rollouts] prompts_per_item is {rollouts.prompts_per_item}: with 2 or more, groups also hold rollouts "
            f"with {without}, and would tell what it does"
        )
    elif case.count.beside.applied and not case.remembered:
        found.append(
            f"[rollouts] prompts_per_item is {rollouts.prompts_per_item}, and no group had rollouts that go without "
            "it, all else alike: with more, the empty prompt comes up as well"
        )
    if not case.remembered and not case.rules.watch.fast and not case.count.beside.steps:
        found.append(
            "[watch] fast is false: with true, a change of what is deployed is held against what stood before it, and "
            "taken back where it does harm"
        )
    return found


def decides(case: Case) -> list[str]:
    """How many more groups until the interval lies to one side of 0."""
    if case.effect.excludes_zero:
        return []
    needed = groups_needed(case.count.record, case.level)
    if needed is None:
        return ["as measured it does next to nothing: no number of groups in sight would decide"]
    side = "above" if case.effect.estimate > 0 else "below"
    return [f"{more(needed, 'group')} like those measured would put the interval {side} 0"]


def moves(case: Case) -> list[str]:
    """When the rule of consolidation would let it go."""
    if not case.slow:
        return ["with a slow channel, such as [channels.lora], consolidation could take it in"]
    reason = choose([case.lesson], {case.lesson.id: case.evidence}, case.rules.consolidation)[0].reason
    difference = case.evidence.record.outcomes.difference
    if difference is None or difference <= 0:
        return [f"for the weights: {reason}"]
    count = rounds_until(case.lesson, case.evidence, case.rules.consolidation, effect=difference)
    if count is None:
        return [f"for the weights: {reason}; {MOST_ROUNDS} more rounds like those measured would not change that"]
    return [f"for the weights: {reason}; {more(count, 'round')} like those measured would make it a candidate"]


def held_back(case: Case) -> list[str]:
    """What would make a candidate none: rounds in which it does nothing, or turns against."""
    found, settings = [], case.rules.consolidation
    difference = case.evidence.record.outcomes.difference or 0.0
    for told, effect in (("without any effect", 0.0), ("in which it does as much harm", -difference)):
        count = rounds_until(case.lesson, case.evidence, settings, effect=effect)
        if count is not None:
            found.append(f"{more(count, 'round')} {told} would hold it back")
    return found


def against_harm(case: Case) -> list[str]:
    if case.remembered or case.watch is not None:
        return []
    if case.rules.watch.fast:
        return ["its watch is over: 'twoclock rollback' takes it back, or a search that finds better replaces it"]
    return [
        "[watch] fast is false: with true, a change that does harm is taken back; now 'twoclock rollback' is the way"
    ]


def _seen(case: Case) -> Watch:
    """The groups as a watch would have counted them, one comparison each."""
    total = case.count.record.outcomes
    each = total.weight / max(1, total.groups)
    return Watch(since=0, count=total.groups, total=total.weighted / each, squares=total.squares / each)


def harms(case: Case) -> bool:
    """Whether a watch over these groups would take it back: its bounds hold at every look, as one looks after each."""
    seen = _seen(case)
    return seen.count > 0 and bounds(seen, case.rules.watch.alpha)[1] < 0


def decides_harm(case: Case) -> list[str]:
    seen = _seen(case)
    needed = comparisons_needed(seen, case.rules.watch.alpha)
    if case.remembered or needed is None or needed <= seen.count:
        return []
    return [f"{more(needed - seen.count, 'group')} like those measured would be proof of harm at every look"]


def watched(case: Case) -> list[str]:
    """Where the watch that holds it stands."""
    if case.watch is None:
        return []
    watch, alpha = case.watch.watch, case.rules.watch.alpha
    low, high = bounds(watch, alpha)
    if watch.count < 2:
        return [f"watched since round {case.watch.opened}: nothing is counted yet"]
    needed = comparisons_needed(watch, alpha)
    told = f"watched since round {case.watch.opened}: {watch.mean:+.2f} [{low:+.2f}, {high:+.2f}] against the state "
    told += (
        f"before round {watch.since}, {counted(watch.count, 'comparison')}; taken back when the upper end is below 0"
    )
    if needed is not None and needed > watch.count:
        way = "proven" if watch.mean > 0 else "taken back"
        told += f", at this mean {way} after {more(needed - watch.count, 'comparison')}"
    return [told]


def forgets(case: Case) -> list[str]:
    if not case.remembered:
        return []
    return [
        "its memory retires it at once where it is measured to do harm, by its own reads and beside the others', and "
        "where [channels] max_entries has no room for the least useful"
    ]


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def more(number: int, what: str) -> str:
    return f"{number:,} more {what}{'' if number == 1 else 's'}"
