"""What a round's own rollouts say to the allocator: numbers that cost nothing more, kept with the round's metrics.

Of each item the rollouts under what is deployed are told apart from those under an alternative. A group of one item
then shows two kinds of room (rewards in [0, 1], means over items):

- ``room_fast``: what the best *one* alternative of the round earns above what is deployed, on the items that have both.
  It is what a switch would bring, measured, and not what a search could find: that only a search can tell.
- ``room_slow``: the reward missing on items whose answers under what is deployed differ in reward. There a policy
  gradient has something to compare. Items that all fail have none, whatever is missing; neither have those all solved.

The number of rounds is what an allocator adds these up over; see :mod:`twoclock.allocate.beliefs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from twoclock.types import Evidence, Group

__all__ = ["PREFIX", "signals", "signals_of"]

PREFIX = "signal_"
"""How a signal is named among a round's metrics."""

LEAST_SHARE = 0.5
"""An alternative is compared where at least this share of the items has rollouts under it."""


def signals(evidence: Evidence) -> dict[str, float]:
    """Of one round: ``deployed`` (mean reward of what is deployed) and ``deployed_se`` (standard error over items),
    ``items``, ``alive``, ``dead`` and ``solved`` (shares of items under what is deployed), ``room_slow``, and, where an
    alternative was compared, ``room_fast`` with ``room_fast_se``. Empty where nothing was rolled out."""
    rows = [(group, _mine(group, evidence)) for group in evidence.groups]
    rows = [(group, mine) for group, mine in rows if mine]
    if not rows:
        return {}
    means = [math.fsum(mine) / len(mine) for _, mine in rows]
    # One answer shows no variance: the item's own group, under whatever prompts, says whether there is any.
    alive = [len(set(mine)) > 1 if len(mine) > 1 else 0 < group.mean_reward < 1 for group, mine in rows]
    count = len(rows)
    found = {
        "items": float(count),
        "deployed": math.fsum(means) / count,
        "deployed_se": _error(means),
        "alive": sum(alive) / count,
        "dead": sum(not a and m <= 0 for a, m in zip(alive, means, strict=True)) / count,
        "solved": sum(not a and m >= 1 for a, m in zip(alive, means, strict=True)) / count,
        "room_slow": math.fsum(1 - m for a, m in zip(alive, means, strict=True) if a) / count,
    }
    return found | _best_alternative(evidence, rows)


def signals_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """The signals among a committed round's metrics."""
    return {name.removeprefix(PREFIX): value for name, value in metrics.items() if name.startswith(PREFIX)}


def _mine(group: Group, evidence: Evidence) -> list[float]:
    """The fresh rewards of what is deployed; of all of the group where nobody said what is."""
    told = evidence.deployed.get(group.item.id)
    return [r.reward for r in group.rollouts if r.age == 0 and told in (None, r.conditioning_id)]


def _best_alternative(evidence: Evidence, rows: list[tuple[Group, list[float]]]) -> dict[str, float]:
    differences: dict[str, list[float]] = {}
    for group, mine in rows:
        others: dict[str, list[float]] = {}
        for rollout in group.rollouts:
            if rollout.age == 0 and rollout.conditioning_id != evidence.deployed.get(group.item.id):
                text = evidence.conditionings[rollout.conditioning_id].text_id
                others.setdefault(text, []).append(rollout.reward)
        for text, rewards in others.items():
            gap = math.fsum(rewards) / len(rewards) - math.fsum(mine) / len(mine)
            differences.setdefault(text, []).append(gap)
    compared = [gaps for gaps in differences.values() if len(gaps) >= max(2, LEAST_SHARE * len(rows))]
    if not compared or not evidence.deployed:
        return {}
    best = max(compared, key=lambda gaps: math.fsum(gaps) / len(gaps))
    return {"room_fast": math.fsum(best) / len(best), "room_fast_se": _error(best)}


def _error(values: list[float]) -> float:
    """The standard error of a mean; where all values are equal, that of a mean with one value more at each end of
    [0, 1], without which eight equal rewards would be a certainty."""
    count = len(values)
    mean = math.fsum(values) / count
    spread = math.fsum((v - mean) ** 2 for v in values)
    if spread > 0 and count > 1:
        return math.sqrt(spread / (count - 1) / count)
    padded = [*values, 0.0, 1.0]
    mean = math.fsum(padded) / len(padded)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in padded) / (len(padded) - 1) / len(padded))
