"""When a split of an out-of-distribution probe says nothing of the skill, and what a sceptic would ask of the rest."""

from __future__ import annotations

from collections.abc import Mapping

from twoclock.measure.intervals import Interval
from twoclock.measure.ood_records import SplitFigures

__all__ = ["OUT", "UNREADABLE", "Splits", "at_chance", "cautions", "is_format", "uninformative"]

OUT = ("n-1", "n+1", "template", "distractor")
"""The splits that a general skill must carry over to: the declared family of comparisons."""
CEILING = 0.9
"""Base accuracy above which a split has no room to show a rise."""
UNREADABLE = 0.5
"""Share of unreadable answers in distribution beyond which nothing else is judged."""
UNREADABLE_MORE = 0.2
"""Share by which a split's answers may be less readable than those in distribution before it says nothing of skill."""
CUT_OFF = 0.01
"""Share of answers at the token limit that may pass without a word."""
ITEMS = 314
"""Pairs that show a change of a gap of 10 points (discordance .2, 80 % power)."""
VALUES_P = 0.01

Splits = Mapping[str, SplitFigures]


def uninformative(name: str, splits: Splits) -> str | None:
    """Why a split says nothing of the skill here; ``None`` where it does."""
    split = splits[name]
    if is_format(name, splits):
        return (
            f"on '{name}' {split.unparsed_live.estimate:.0%} of the answers cannot be read, against "
            f"{splits['id'].unparsed_live.estimate:.0%} in distribution: that is format, not skill"
        )
    if split.judged == 0:
        return f"'{name}' has no item on which overlooking the change gives another answer"
    if split.base.estimate > CEILING and not split.change.high < 0:
        return f"on '{name}' the base is right on {split.base.estimate:.0%} already: there is no room to rise; move N"
    if name == "n+1" and at_chance(split.base, split.chance) and at_chance(split.live, split.chance):
        return f"on '{name}' base and live system are both at chance ({split.chance:.2f}): it may be out of reach"
    return None


def is_format(name: str, splits: Splits) -> bool:
    """Whether so many more answers than in distribution cannot be read that the score says nothing of the skill."""
    return splits[name].unparsed_live.estimate - splits["id"].unparsed_live.estimate > UNREADABLE_MORE


def at_chance(score: Interval, chance: float | None) -> bool:
    return chance is not None and score.low <= chance


def cautions(splits: Splits) -> tuple[str, ...]:
    """What a sceptic would ask about: small n, no pairs, values that differ, cut-off answers, a base without format."""
    said = []
    few = {name: split.judged for name, split in splits.items() if name in OUT and 0 < split.judged < ITEMS}
    if few:
        said.append(f"few items: {_listed(few, 'd')}; {ITEMS} show a change of the gap of 10 points")
    loose = [name for name, split in splits.items() if name in OUT and not split.paired]
    if loose:
        names = ", ".join(f"'{name}'" for name in loose)
        said.append(f"without partners: {names}; their gaps compare two samples, and there is no consistency")
    for name, split in splits.items():
        if split.values is not None and split.values.p < VALUES_P:
            said.append(
                f"the numbers in '{name}' are distributed differently than in 'id' (KS distance "
                f"{split.values.distance:.2f}, p = {split.values.p:.1g}): part of its gap may be their size"
            )
    cut = {
        name: most
        for name, split in splits.items()
        if (most := max(split.truncated_base.estimate, split.truncated_live.estimate)) > CUT_OFF
    }
    if cut:
        said.append(f"answers cut off at the token limit, of base or live system: {_listed(cut, '.0%')}; raise it")
    if splits["id"].unparsed_base.estimate > UNREADABLE:
        said.append(
            f"{splits['id'].unparsed_base.estimate:.0%} of the base's answers in distribution cannot be read: part of "
            "the gain is the format"
        )
    return tuple(said)


def _listed(numbers: Mapping[str, float], form: str) -> str:
    return ", ".join(f"'{name}' {value:{form}}" for name, value in numbers.items())
