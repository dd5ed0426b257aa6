"""Where a lesson stands, in one sentence, and what would change it.

The sentence quotes who decides: of a live lesson the rule of consolidation and the watch that holds it, of one that is
not live the last entry of the ledger about it. Only the numbers of what would change it are worked out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from twoclock.consolidation import ConsolidationSettings, LessonEvidence, choose
from twoclock.explain.counting import LessonCount
from twoclock.explain.forecast import MOST_ROUNDS, comparisons_needed, groups_needed, items_needed, rounds_until
from twoclock.explain.history import Event
from twoclock.explain.watches import WatchSpan
from twoclock.gathering import RolloutSettings
from twoclock.measure.intervals import Interval
from twoclock.types import LedgerEntry, Lesson
from twoclock.watching import Watch, WatchSettings, bounds

__all__ = ["Case", "Kind", "Standing", "stand"]

Kind = Literal[
    "candidate", "fast", "unproven", "harmful", "weights", "taken back", "rolled back", "replaced", "beside", "retired",
    "refused",
]  # fmt: skip

HARMFUL = "measured harmful"
"""How the reason begins that a memory retires a harmful entry with."""


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
class Standing:
    """The decision that holds now."""

    kind: Kind
    """``candidate`` for the weights; ``fast``: stays fast; ``unproven``; ``harmful`` and live; ``weights``: it is in
    them; ``taken back`` by evidence, ``rolled back`` by hand; ``replaced`` or kept ``beside`` what is deployed;
    ``retired``; ``refused``."""
    sentence: str
    changes: tuple[str, ...] = ()
    """What would change it, a sentence each."""

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "sentence": self.sentence, "changes": list(self.changes)}


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


def stand(case: Case) -> Standing:
    """The decision that holds now, and what would change it."""
    return _live(case) if case.lesson.live else _idle(case)


# ------------------------------------------------------------------------------------------------------ live lessons


def _live(case: Case) -> Standing:
    choice = choose([case.lesson], {case.lesson.id: case.evidence}, case.rules.consolidation)[0]
    about = [*_watched(case), *_memory(case)]
    if choice.accepted and case.slow:
        sentence = f"candidate for the weights: {choice.reason}; 'twoclock consolidate' tries to move it"
        return Standing(kind="candidate", sentence=sentence, changes=(*_held_back(case), *about))
    trial = _won_trial(case)
    kind: Kind = "fast" if trial else "unproven"
    start = f"stays fast: {trial}; since then" if trial else "stays fast, unproven:"
    if not case.count.record.steps:
        changes = (*_would_tell(case), *about)
        return Standing(kind=kind, sentence=f"{start} {_nothing_compares(case)}", changes=changes)
    effect, told = case.effect, _told(case)
    changes = (*_decides(case), *_moves(case), *about, *_would_tell(case))
    if effect.low > 0:
        return Standing(kind="fast", sentence=f"stays fast: {told}", changes=changes)
    if effect.high >= 0:
        return Standing(kind=kind, sentence=f"{start} {told}, which does not tell it from nothing", changes=changes)
    if not case.is_own:
        better = "a search deploys the best of what stood in its place, where that wins a trial"
        return Standing(kind=kind, sentence=f"{start} {told}", changes=(better, *changes))
    if case.remembered or not _harms(case):
        sentence = f"{start} {told}: it looks harmful, and too few groups say so to one who looks after each round"
        return Standing(kind=kind, sentence=sentence, changes=(*_decides_harm(case), *changes))
    return Standing(kind="harmful", sentence=f"does harm, and is live: {told}", changes=(*_harm(case), *about))


def _seen(case: Case) -> Watch:
    """The groups as a watch would have counted them, one comparison each."""
    total = case.count.record.outcomes
    each = total.weight / max(1, total.groups)
    return Watch(since=0, count=total.groups, total=total.weighted / each, squares=total.squares / each)


def _harms(case: Case) -> bool:
    """Whether a watch over these groups would take it back: its bounds hold at every look, as one looks after each."""
    seen = _seen(case)
    return seen.count > 0 and bounds(seen, case.rules.watch.alpha)[1] < 0


def _decides_harm(case: Case) -> list[str]:
    seen = _seen(case)
    needed = comparisons_needed(seen, case.rules.watch.alpha)
    if case.remembered or needed is None or needed <= seen.count:
        return []
    return [f"{_more(needed - seen.count, 'group')} like those measured would be proof of harm at every look"]


def _won_trial(case: Case) -> str:
    """The trial that it was deployed by; empty where there was none."""
    last = next((event for event in reversed(case.events) if event.what in ("deployed", "came back", *OVER)), None)
    if last is None or last.what != "deployed" or "trial_p" not in last.numbers:
        return ""
    return f"it won its trial in round {last.round} ({last.reason})"


def _told(case: Case) -> str:
    effect = case.effect
    return (
        f"{effect.estimate:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}] ({effect.level:.0%}) of reward against "
        f"{case.count.compared_with}, in {_count(case.count.record.outcomes.groups, 'group')}"
    )


def _nothing_compares(case: Case) -> str:
    applied = case.count.beside.applied
    if not applied:
        return "no rollout in the ledger has it yet"
    return f"it was in {_count(applied, 'group')}, and none of them has rollouts without it"


def _would_tell(case: Case) -> list[str]:
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


def _decides(case: Case) -> list[str]:
    """How many more groups until the interval lies to one side of 0."""
    if case.effect.excludes_zero:
        return []
    needed = groups_needed(case.count.record, case.level)
    if needed is None:
        return ["as measured it does next to nothing: no number of groups in sight would decide"]
    side = "above" if case.effect.estimate > 0 else "below"
    return [f"{_more(needed, 'group')} like those measured would put the interval {side} 0"]


def _moves(case: Case) -> list[str]:
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
    return [f"for the weights: {reason}; {_more(count, 'round')} like those measured would make it a candidate"]


def _held_back(case: Case) -> list[str]:
    """What would make a candidate none: rounds in which it does nothing, or turns against."""
    found, settings = [], case.rules.consolidation
    difference = case.evidence.record.outcomes.difference or 0.0
    for told, effect in (("without any effect", 0.0), ("in which it does as much harm", -difference)):
        count = rounds_until(case.lesson, case.evidence, settings, effect=effect)
        if count is not None:
            found.append(f"{_more(count, 'round')} {told} would hold it back")
    return found


def _harm(case: Case) -> list[str]:
    if case.remembered or case.watch is not None:
        return []
    if case.rules.watch.fast:
        return ["its watch is over: 'twoclock rollback' takes it back, or a search that finds better replaces it"]
    return [
        "[watch] fast is false: with true, a change that does harm is taken back; now 'twoclock rollback' is the way"
    ]


def _watched(case: Case) -> list[str]:
    """Where the watch that holds it stands."""
    if case.watch is None:
        return []
    watch, alpha = case.watch.watch, case.rules.watch.alpha
    low, high = bounds(watch, alpha)
    if watch.count < 2:
        return [f"watched since round {case.watch.opened}: nothing is counted yet"]
    needed = comparisons_needed(watch, alpha)
    told = f"watched since round {case.watch.opened}: {watch.mean:+.2f} [{low:+.2f}, {high:+.2f}] against the state "
    told += f"before round {watch.since}, {_count(watch.count, 'comparison')}; taken back when the upper end is below 0"
    if needed is not None and needed > watch.count:
        way = "proven" if watch.mean > 0 else "taken back"
        told += f", at this mean {way} after {_more(needed - watch.count, 'comparison')}"
    return [told]


def _memory(case: Case) -> list[str]:
    if not case.remembered:
        return []
    return [
        "its memory retires it at once where it is measured to do harm, by its own reads and beside the others', and "
        "where [channels] max_entries has no room for the least useful"
    ]


# ------------------------------------------------------------------------------------------------- lessons not live


OVER: Mapping[str, Kind] = {
    "taken back": "taken back", "rolled back": "rolled back", "replaced": "replaced", "kept beside": "beside",
    "retired": "retired", "refused": "refused", "consolidated": "retired",
}  # fmt: skip


def _idle(case: Case) -> Standing:
    last = next((event for event in reversed(case.events) if event.what in OVER), None)
    if last is None:
        return Standing(kind="beside", sentence="is kept and not deployed", changes=(_search(case),))
    kind = OVER[last.what]
    when = f"in round {last.round}"
    if last.what == "consolidated":
        return _consolidated(case, last)
    if kind == "retired" and last.reason.startswith(HARMFUL):
        kind = "taken back"
    sentence = {
        "taken back": f"taken back by its evidence {when}: {last.reason}",
        "rolled back": f"rolled back by hand {when}: {last.reason}",
        "replaced": f"no longer deployed since round {last.round}: {last.reason}",
        "beside": f"kept beside what is deployed since round {last.round}: {last.reason}",
        "retired": f"retired {when}: {last.reason}",
        "refused": f"refused {when}: {last.reason}",
    }[kind]
    return Standing(kind=kind, sentence=sentence, changes=tuple(_comes_back(case, kind, last)))


def _consolidated(case: Case, last: Event) -> Standing:
    if case.moved is None:
        return Standing(
            kind="retired",
            sentence=f"retired in round {last.round} when the weights had taken it in, which are no longer live",
            changes=(_search(case),),
        )
    return Standing(
        kind="weights",
        sentence=f"in the weights of '{case.moved.channel}' since round {last.round}: {case.moved.reason}",
        changes=(f"'twoclock rollback' to a round up to {last.round} brings it back and takes it out of the weights",),
    )


def _comes_back(case: Case, kind: Kind, last: Event) -> list[str]:
    if case.remembered:
        return ["the same text learned again would be a new entry of memory, with nothing held against it"]
    found = []
    gain, p, items = (last.numbers.get(name) for name in ("trial_gain", "trial_p", "trial_items"))
    if kind == "refused" and gain is not None and p is not None and items is not None:
        needed = items_needed(gain, p, items, case.rules.alpha)
        if gain <= 0:
            found.append(
                "its trial was lost outright: only on other weights or beside other lessons would it be another"
            )
        elif needed is not None and needed > items:
            found.append(f"at the gain of its trial, about {needed} trial items would decide; it had {items:.0f}")
    if kind == "refused":
        found.append("unchanged it is not tried again; where weights or other channels have moved it has a new trial")
    else:
        found.append(_search(case))
    return found


def _search(case: Case) -> str:
    if case.remembered:
        return "the same text learned again would be a new entry of memory, with nothing held against it"
    return "a search that scores it best offers it again, and it must win a trial to be deployed"


# ----------------------------------------------------------------------------------------------------------- words


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _more(number: int, what: str) -> str:
    return f"{number:,} more {what}{'' if number == 1 else 's'}"
