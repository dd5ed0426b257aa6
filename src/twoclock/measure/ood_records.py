"""The records of an out-of-distribution probe: one answer an item and system, and the figures of one split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import Interval, mean_interval
from twoclock.seeding import child_seed

__all__ = ["Answer", "Settings", "SplitFigures", "ValueShift", "answers_of"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one system answered on one item: shares of its samples, in [0, 1]."""

    variant: str
    item: str
    partner: str | None
    """The ``id`` item with the same base problem; its own id for items of ``id``."""
    right: float
    stale: float | None = None
    """Answered as if what was removed, added or ruled were not so; ``None`` where that is right too, or not known."""
    tempted: float | None = None
    """Answered as if the distractor counted."""
    parsed: float = 1.0
    truncated: float = 0.0
    tokens: float = 0.0
    """Mean length of the answers."""
    samples: int = 1
    telling: bool = True
    """Whether overlooking the change gives another answer."""
    chance: float | None = None
    """What guessing scores on this split."""
    values: Sequence[float] = ()

    def __post_init__(self) -> None:
        for name in ("right", "stale", "tempted", "parsed", "truncated"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"'{name}' is a share of the samples of item {self.item}, from 0 to 1; got {value!r}")


def answers_of(rows: Sequence[Answer | Mapping[str, Any]]) -> dict[str, dict[str, Answer]]:
    """The answers by variant and item. Takes the plain rows of a variant task too. ValueError for an item twice."""
    found: dict[str, dict[str, Answer]] = {}
    for row in rows:
        answer = row if isinstance(row, Answer) else Answer(**row)
        split = found.setdefault(answer.variant, {})
        if answer.item in split:
            raise ValueError(f"item {answer.item} of '{answer.variant}' stands twice; give one row an item and system")
        split[answer.item] = answer
    return found


@dataclass(frozen=True)
class Settings:
    """How intervals are made."""

    level: float = 0.95
    seed: int = 0
    resamples: int = 10_000

    def mean(self, values: Array, what: str, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
        seed = child_seed("ood", self.seed, what)
        return mean_interval(values, self.level, seed, resamples=self.resamples, bounds=bounds)


@dataclass(frozen=True)
class ValueShift:
    """Whether the numbers in the problems have another distribution than those of ``id``: Kolmogorov–Smirnov."""

    distance: float
    p: float
    n: tuple[int, int]
    """How many numbers: of this split, of ``id``."""


@dataclass(frozen=True, kw_only=True)
class SplitFigures:
    """All figures of one split; those that do not apply are unknown. The skill figures are of the ``judged`` items:
    those on which overlooking the change gives another answer. The format figures are of all items."""

    variant: str
    items: int
    judged: int
    paired: bool
    chance: float | None
    base: Interval
    live: Interval
    change: Interval
    headroom: Interval
    gap_base: Interval
    gap_live: Interval
    did: Interval
    transfer: Interval
    consistency_base: Interval
    consistency_live: Interval
    limem_base: Interval
    limem_live: Interval
    limem_excess: Interval
    """Of the live system: LiMem above what independent answers of the same accuracy have."""
    stale_base: Interval
    stale_live: Interval
    stale_change: Interval
    tempted_base: Interval
    tempted_live: Interval
    unparsed_base: Interval
    unparsed_live: Interval
    readable_live: Interval
    """Right answers of the live system among those that could be read."""
    truncated_base: Interval
    truncated_live: Interval
    tokens_base: Interval
    tokens_live: Interval
    p: float = math.nan
    """Of DiD = 0, two-sided; by sign flips of pairs, by permutation where there are none."""
    p_holm: float = math.nan
    """The same after Holm's correction over the probe's declared splits."""
    values: ValueShift | None = None
    """Of the split as it was built."""

    @property
    def intervals(self) -> dict[str, Interval]:
        """The figures by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Interval)}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; every figure carries its n, seeds and interval."""
        plain: dict[str, Any] = {
            "variant": self.variant,
            "items": self.items,
            "judged": self.judged,
            "paired": self.paired,
            "chance": self.chance,
            "p": None if math.isnan(self.p) else self.p,
            "p_holm": None if math.isnan(self.p_holm) else self.p_holm,
            "figures": {name: interval.as_dict() for name, interval in self.intervals.items()},
        }
        if self.values is not None:
            plain["values"] = {"distance": self.values.distance, "p": self.values.p, "n": list(self.values.n)}
        return plain
