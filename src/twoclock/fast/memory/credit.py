"""What a round's evidence says of entries: the reward where one was shown against where it alone was held out.

Within a group the item, the round and the weights are the same, and what was held out was drawn at random, so a
difference of means is the effect of showing. It is the *marginal* effect, beside what else was shown: of two entries
that say the same neither has one, and one of them can go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from twoclock.types import Evidence, Group

__all__ = ["contrasts", "recalled_in", "whole_effect"]

Shown = frozenset[str]


def recalled_in(evidence: Evidence, group: Group) -> dict[Shown, list[float]]:
    """The rewards of a group by the set of entries that the rollouts were shown."""
    found: dict[Shown, list[float]] = {}
    for rollout in group.rollouts:
        told = frozenset(evidence.conditionings[rollout.conditioning_id].recalled)
        found.setdefault(told, []).append(rollout.reward)
    return found


def contrasts(evidence: Evidence) -> Iterator[tuple[str, float]]:
    """(entry id, mean reward with it minus mean reward without it): one for each two sets of a group that differ by
    that entry alone. Sets that differ by more say nothing of any one entry."""
    for group in evidence.groups:
        by_set = recalled_in(evidence, group)
        for larger, with_it in by_set.items():
            for entry_id in sorted(larger):
                without = by_set.get(larger - {entry_id})
                if without:
                    yield entry_id, _mean(with_it) - _mean(without)


def whole_effect(evidence: Evidence) -> tuple[float, int]:
    """The mean over groups of the reward with all that was found minus the reward with none of it, and how many groups
    have both. NaN without any."""
    differences = []
    for group in evidence.groups:
        by_set = recalled_in(evidence, group)
        largest = max(by_set, key=len)
        if largest and frozenset() in by_set:
            differences.append(_mean(by_set[largest]) - _mean(by_set[frozenset()]))
    return (_mean(differences) if differences else math.nan), len(differences)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
