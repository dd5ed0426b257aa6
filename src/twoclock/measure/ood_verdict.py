"""What the numbers of an out-of-distribution probe say: the decision table as data, applied to figures.

Each row names a pattern that intervals must support, and what to do then. Intervals over items make a statement about
one checkpoint, those over training seeds one about the method; the table reads both. Where it departs from thresholds
on bare estimates it is to keep noise from deciding:

* transfer of at most .2 counts as specialised only if its interval stays below .7, and at least .7 as general only if
  its interval stays above .2; what lies between is undecided;
* a base at chance on a split that is no harder than ``id`` does not excuse the split: a rise could have been seen there
  and was not. On ``n+1``, which may be out of reach, it does;
* consistency has no threshold: its ceiling is the accuracy, and it is shown beside that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from twoclock.measure.intervals import Interval
from twoclock.measure.ood_cautions import OUT, UNREADABLE, Splits, at_chance, is_format, uninformative
from twoclock.measure.ood_records import SplitFigures

__all__ = ["DECISIONS", "Decision", "Finding", "decide"]

SPECIALISED_ON = ("n-1", "template")

GENERAL, PARTIAL = 0.7, 0.2
"""Transfer from which a skill counts as general, and up to which it does not count as carried over at all."""
STALE = 0.3
"""Share of stale answers from which a stated rule counts as overridden."""
MEMORY = 0.1
"""How much more the training items must have gained than new ones, at the interval's lower end."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the table that holds: what it says, why, and the numbers it rests on."""

    verdict: str
    reason: str
    action: str
    numbers: Mapping[str, Interval] = field(default_factory=dict)
    """By ``split.figure``."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        numbers = {name: interval.as_dict() for name, interval in self.numbers.items()}
        return {"verdict": self.verdict, "reason": self.reason, "action": self.action, "numbers": numbers}


Reason = tuple[str, dict[str, Interval]]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One row of the table."""

    verdict: str
    pattern: str
    """What must be seen, in words."""
    action: str
    holds: Callable[[Splits], Reason | None]
    """(the reason in words, the numbers by ``split.figure``), or None where the pattern is not there."""


def _numbers(splits: Splits, *names: str) -> dict[str, Interval]:
    """The figures called ``split.figure``, of splits that there are."""
    found = {}
    for name in names:
        split, figure = name.rsplit(".", 1)
        if split in splits:
            found[name] = splits[split].intervals[figure]
    return found


# ----------------------------------------------------------------------------------------------------------- the rows


def _judged(splits: Splits) -> list[str]:
    return [name for name in OUT if name in splits and uninformative(name, splits) is None]


def _gained(splits: Splits) -> bool:
    return splits["id"].change.low > 0


def _readable(splits: Splits) -> bool:
    return not splits["id"].unparsed_live.estimate > UNREADABLE


def _unreadable(splits: Splits) -> Reason | None:
    if _readable(splits):
        return None
    share = splits["id"].unparsed_live
    return (
        f"the live system's answers cannot be read, in distribution too (unparsed {share}); what it can do is unknown",
        _numbers(splits, "id.unparsed_base", "id.unparsed_live", "id.readable_live"),
    )


def _memorised(splits: Splits) -> Reason | None:
    # The other way round than for variants: here ID is what did not rise with SEEN.
    if "seen" not in splits or not _readable(splits) or not -splits["seen"].did.high > MEMORY:
        return None
    seen, new = splits["seen"], splits["id"]
    return (
        f"training items rose by {seen.change}, new items of the same kind by {new.change}: instances were memorised",
        _numbers(splits, "seen.change", "id.change", "seen.did", "seen.live", "id.live"),
    )


def _specialised(splits: Splits) -> Reason | None:
    if not _readable(splits) or not _gained(splits):
        return None
    failing = [name for name in _judged(splits) if name in SPECIALISED_ON and _not_carried(splits[name])]
    if not failing:
        return None
    parts = ", ".join(f"'{name}' by {splits[name].change}, transfer {splits[name].transfer}" for name in failing)
    return (
        f"in distribution it rose by {splits['id'].change}, on {parts}: a template was learned, not the procedure",
        _numbers(splits, "id.change", *(f"{n}.{f}" for n in failing for f in ("change", "did", "transfer"))),
    )


def _not_carried(split: SplitFigures) -> bool:
    return split.change.high < 0 or (split.transfer.estimate <= PARTIAL and split.transfer.high < GENERAL)


def _carried(split: SplitFigures) -> bool:
    return split.transfer.estimate >= GENERAL and split.transfer.low > PARTIAL


def _override_lost(splits: Splits) -> Reason | None:
    rule = splits.get("rule")
    if rule is None or not _readable(splits) or uninformative("rule", splits) or at_chance(rule.base, rule.chance):
        return None  # a base that never followed the rule has nothing to lose
    if not (rule.stale_live.estimate >= STALE and rule.stale_change.low > 0):
        return None
    return (
        f"told of a changed rule it answers by the old one in {rule.stale_live} of cases, up by {rule.stale_change}",
        _numbers(splits, "rule.stale_base", "rule.stale_live", "rule.stale_change", "rule.base", "rule.live"),
    )


def _no_gain(splits: Splits) -> Reason | None:
    if not _readable(splits) or _gained(splits):
        return None
    change = splits["id"].change
    what = "fell" if change.high < 0 else "did not rise for certain"
    return (
        f"in distribution the score {what}: {change}; nothing was gained that could carry over",
        _numbers(splits, "id.base", "id.live", "id.change"),
    )


def _generalises(splits: Splits) -> Reason | None:
    judged = _judged(splits)
    if not _readable(splits) or not _gained(splits) or not any(name in SPECIALISED_ON for name in judged):
        return None
    if _memorised(splits) or _override_lost(splits) or _unread(splits):
        return None
    if not all(_carried(splits[name]) for name in judged):
        return None
    parts = ", ".join(f"'{name}' {splits[name].transfer}" for name in judged)
    left = [name for name in OUT if name not in judged]
    missing = f"; not judged: {', '.join(left)}" if left else ""
    return (
        f"in distribution it rose by {splits['id'].change}, and the rise carries over: transfer {parts}{missing}",
        _numbers(splits, "id.change", *(f"{n}.{f}" for n in judged for f in ("transfer", "consistency_live"))),
    )


def _partial(splits: Splits) -> Reason | None:
    if not _readable(splits) or not _gained(splits) or _specialised(splits):
        return None
    short = [n for n in _judged(splits) if splits[n].change.high < 0 or splits[n].transfer.high < GENERAL]
    if not short:
        return None
    parts = ", ".join(f"'{name}' {splits[name].transfer}" for name in short)
    return (
        f"in distribution it rose by {splits['id'].change}, and carries over in part only: transfer {parts}",
        _numbers(splits, "id.change", *(f"{n}.{f}" for n in short for f in ("change", "did", "transfer"))),
    )


def _unread(splits: Splits) -> list[str]:
    """The declared splits of which nothing is known because their answers cannot be read."""
    return [name for name in OUT if name in splits and is_format(name, splits)]


def _undecided(splits: Splits) -> Reason | None:
    if not _readable(splits) or not _gained(splits):
        return None
    judged = _judged(splits)
    if any(row(splits) for row in (_memorised, _specialised, _override_lost, _generalises, _partial)):
        return None
    if not any(name in SPECIALISED_ON for name in judged):
        return (
            f"in distribution it rose by {splits['id'].change}, but no split that could tell a template from a skill "
            f"({' or '.join(SPECIALISED_ON)}) says anything here",
            _numbers(splits, "id.change"),
        )
    parts = ", ".join(f"'{name}' {splits[name].transfer}" for name in judged)
    numbers = _numbers(splits, "id.change", *(f"{n}.transfer" for n in judged))
    rose = f"in distribution it rose by {splits['id'].change}"
    if all(_carried(splits[name]) for name in judged):
        unread = " and ".join(f"'{name}'" for name in _unread(splits))
        return f"{rose} and carries over to {parts}; but what it can do on {unread} is not known", numbers
    return f"{rose}; the intervals of transfer are too wide to judge: {parts}", numbers


DECISIONS: tuple[Decision, ...] = (
    Decision(
        verdict="unreadable",
        pattern="more than half of the answers in distribution cannot be read",
        action="mend the answer format (a fast lesson), then probe again",
        holds=_unreadable,
    ),
    Decision(
        verdict="memorised",
        pattern="training items rise more than 10 points beyond new ones, for certain",
        action="reject the update",
        holds=_memorised,
    ),
    Decision(
        verdict="specialised",
        pattern="ID rises; on N-1 or other wording transfer is at most .2, or the score falls",
        action="keep the lesson fast, do not merge it into the weights",
        holds=_specialised,
    ),
    Decision(
        verdict="override_lost",
        pattern="stale answers to a stated rule are at least .3 and more than the base's",
        action="reject the update, or make the prompts more diverse",
        holds=_override_lost,
    ),
    Decision(
        verdict="no_gain",
        pattern="the change in distribution may be 0, or is negative",
        action="nothing to consolidate; give more data, items or steps",
        holds=_no_gain,
    ),
    Decision(
        verdict="generalises",
        pattern="ID rises, transfer is at least .7 on N-1, N+1, other wording and distractors, and all can be read",
        action="eligible for consolidation into the weights",
        holds=_generalises,
    ),
    Decision(
        verdict="partial",
        pattern="ID rises, and transfer is below .7 for certain on some split",
        action="put more variants into the training data before another slow step",
        holds=_partial,
    ),
    Decision(
        verdict="undecided",
        pattern="ID rises, and transfer allows more than one of the verdicts above, or a split cannot be read",
        action="probe with more items or over more training seeds, or mend the format of what cannot be read",
        holds=_undecided,
    ),
)
"""In order of weight: the first that holds is the headline, all that hold are findings."""


def decide(splits: Splits) -> tuple[Finding, ...]:
    """All rows that hold, the headline first; then each split that says nothing, and why. ``id`` must be among them."""
    if "id" not in splits:
        raise ValueError("a probe needs the split 'id': everything else is held against it")
    found = []
    for row in DECISIONS:
        reason = row.holds(splits)
        if reason is not None:
            found.append(Finding(verdict=row.verdict, reason=reason[0], action=row.action, numbers=reason[1]))
    for name in (*OUT, "rule"):
        why = uninformative(name, splits) if name in splits and _readable(splits) else None
        if why is not None:
            numbers = _numbers(splits, *(f"{name}.{f}" for f in ("base", "live", "change", "unparsed_live")))
            action = "choose another N, more items or a stricter format for this split"
            found.append(Finding(verdict="uninformative", reason=why, action=action, numbers=numbers))
    return tuple(found)
