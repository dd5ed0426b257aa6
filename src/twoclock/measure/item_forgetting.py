"""Forgetting item by item: what the average hides, and what sampling noise fakes.

ΔA = P(0→1) - P(1→0): an update that loses as many items as it gains leaves the average where it was. But an unchanged
policy that answers by chance loses items too: 14 % with one sample an item, 4 % with 32. So the same checkpoint is
evaluated twice, the *null pair*, and only what goes beyond it is forgetting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import Interval, mean_interval, unknown
from twoclock.measure.pairs import paired_difference

__all__ = ["ItemForgetting", "forgotten_items", "guessing_ceiling", "guessing_floor"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ItemForgetting:
    """Transitions of the same items from before to after; an item counts as right when more than half of its samples
    are. ``n`` of the intervals counts items."""

    lost: Interval
    """P(1→0), the share of items that were right and are wrong now."""
    gained: Interval
    """P(0→1)."""
    change: Interval
    """gained - lost = the change of the share that is right."""
    null_lost: Interval
    """P(1→0) between two evaluations of the checkpoint before; unknown without a second one."""
    excess: Interval
    """lost - null_lost, paired by item: forgetting beyond the noise, positive is loss; unknown without a null pair."""
    by_guessing: float
    """P(1→0) that guessing among ``choices`` alone would give, by :func:`guessing_floor`; 0 for free answers."""
    by_guessing_most: float
    """By :func:`guessing_ceiling`."""
    corrected: Interval
    """lost - by_guessing. Forgetting that guessing cannot explain lies above ``by_guessing_most`` - ``by_guessing``."""
    items: int


def guessing_floor(before: float, after: float, choices: int) -> float:
    """P(1→0) by guessing alone, of items that are known or guessed uniformly among ``choices``, where what is known
    before and after is independent: (1 - p₀)(1 - p₁)/(k - 1) at rates p₀ and p₁ (after arXiv:2510.17776)."""
    _check_guessing(before, after, choices)
    # No more can be lost by guessing than was right: below chance the formula would promise that.
    return min((1 - before) * (1 - after) / (choices - 1), before, 1 - after)


def guessing_ceiling(before: float, after: float, choices: int) -> float:
    """The same where what was not known before is not known after either, as in a model that has hardly changed:
    min(1 - p₀, 1 - p₁)/k, up to k times the floor. Guessing cannot explain more than this."""
    _check_guessing(before, after, choices)
    return min(min(1 - before, 1 - after) / choices, before, 1 - after)


def _check_guessing(before: float, after: float, choices: int) -> None:
    if choices < 2:
        raise ValueError(f"guessing is among at least 2 choices; got {choices}")
    if not (0 <= before <= 1 and 0 <= after <= 1):
        raise ValueError(f"rates lie in [0, 1]; got {before} and {after}")


def forgotten_items(
    before: Mapping[str, float],
    after: Mapping[str, float],
    again: Mapping[str, float] | None = None,
    *,
    choices: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> ItemForgetting:
    """Rewards of each item by its id, one number an item (the mean over its samples). ``again`` is a second evaluation
    of the checkpoint ``before`` with other sampling seeds and as many samples; ``choices`` the number of answers to
    choose from. Only items that all have are compared; ValueError when there is none."""
    given = [before, after, *([again] if again is not None else [])]
    items = [item for item in before if all(item in other for other in given)]
    if not items:
        raise ValueError("the evaluations have no item in common; forgetting compares an item with itself")
    was, now = _right(before, items), _right(after, items)
    lost, gained = was * (1 - now), (1 - was) * now
    rates = float(was.mean()), float(now.mean())
    floor = 0.0 if choices is None else guessing_floor(*rates, choices)
    share_lost = mean_interval(lost, level, seed, bounds=(0, 1))
    if again is None:
        null_lost, excess = unknown(0, level), unknown(0, level)
    else:
        fake = was * (1 - _right(again, items))
        null_lost = mean_interval(fake, level, seed, bounds=(0, 1))
        excess = paired_difference(lost, fake, level, seed)
    return ItemForgetting(
        lost=share_lost,
        gained=mean_interval(gained, level, seed, bounds=(0, 1)),
        change=paired_difference(now, was, level, seed),
        null_lost=null_lost,
        excess=excess,
        by_guessing=floor,
        by_guessing_most=0.0 if choices is None else guessing_ceiling(*rates, choices),
        corrected=Interval(
            share_lost.estimate - floor, share_lost.low - floor, share_lost.high - floor, len(items), level,
            share_lost.method,
        ),
        items=len(items),
    )  # fmt: skip


def _right(rewards: Mapping[str, float], items: Sequence[str]) -> Array:
    values = [rewards[item] for item in items]
    wrong = next(
        (i for i, value in zip(items, values, strict=True) if not (math.isfinite(value) and 0 <= value <= 1)), None
    )
    if wrong is not None:
        raise ValueError(f"a reward lies in [0, 1]; item '{wrong}' has {rewards[wrong]}")
    return np.array([float(value > 0.5) for value in values])
