"""What a consolidation saves: prompt tokens, and the time that an answer takes, before and after in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twoclock.contracts import Policy, Trainable
from twoclock.seeding import child_seed
from twoclock.types import Conditioning, Item, Request, Sampling

__all__ = ["Savings", "savings"]

ITEMS, REPEATS = 8, 3


@dataclass(frozen=True, kw_only=True)
class Savings:
    """Means over the same items."""

    items: int
    tokens_before: float
    """Prompt tokens an item."""
    tokens_after: float
    seconds_before: float
    """From a request to its whole answer, one at a time, with whatever the policy keeps between calls."""
    seconds_after: float

    @property
    def tokens(self) -> float:
        return self.tokens_before - self.tokens_after

    @property
    def speedup(self) -> float:
        """Before over after: above 1 is faster now."""
        return self.seconds_before / self.seconds_after

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tokens": self.tokens, "speedup": self.speedup}


def savings(
    policy: Policy,
    items: Sequence[Item],
    before: Conditioning,
    after: Conditioning,
    sampling: Sampling,
    seed: int,
) -> Savings:
    """Answers the same items one at a time on both sides by turns, ``REPEATS`` times, with the same random numbers; the
    time is the median of the repeats' means."""
    assert isinstance(policy, Trainable)
    some = items[:ITEMS]
    sides = [[c.for_item(item) for item in some] for c in (before, after)]
    tokens = [sum(policy.prompt_tokens(i.prompt, c) for i, c in zip(some, s, strict=True)) / len(some) for s in sides]
    times: list[list[float]] = [[], []]
    for repeat in range(-1, REPEATS):  # the first one warms up what the policy keeps
        for side, told in enumerate(sides):
            began = time.perf_counter()
            for item, conditioning in zip(some, told, strict=True):
                seeds = (child_seed("consolidate.savings", seed, item.id, max(repeat, 0)),)
                policy.sample([Request(prompt=item.prompt, conditioning=conditioning, seeds=seeds)], sampling)
            if repeat >= 0:
                times[side].append((time.perf_counter() - began) / len(some))
    return Savings(
        items=len(some),
        tokens_before=tokens[0],
        tokens_after=tokens[1],
        seconds_before=statistics.median(times[0]),
        seconds_after=statistics.median(times[1]),
    )
