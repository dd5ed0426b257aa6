"""Drawing disjoint train, trial and held-out splits from a generator, and what to say when it has too few items."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from twoclock.errors import ConfigError, unknown_name
from twoclock.hashing import canonical_json
from twoclock.seeding import child_seed
from twoclock.types import SplitName

__all__ = ["DRAW_ORDER", "SPLITS", "SplitSizes", "check_sizes", "dealt", "draw_splits"]

T = TypeVar("T")

SPLITS: tuple[SplitName, ...] = ("train", "trial", "heldout")

DRAW_ORDER: tuple[SplitName, ...] = ("heldout", "trial", "train")
"""Held-out items are drawn first, so that they stay the same when more training data is asked for."""


@dataclass(frozen=True, kw_only=True)
class SplitSizes:
    """How many items each split gets."""

    train: int = 512
    trial: int = 64
    heldout: int = 128

    def __post_init__(self) -> None:
        problems = check_sizes({name: getattr(self, name) for name in SPLITS})
        if problems:
            raise ConfigError(problems)

    def of(self, split: SplitName) -> int:
        count: int = getattr(self, split)
        return count

    @property
    def total(self) -> int:
        return self.train + self.trial + self.heldout

    def __str__(self) -> str:
        return f"train = {self.train}, trial = {self.trial}, heldout = {self.heldout}"


def check_sizes(sizes: Any) -> list[str]:
    """What is wrong with a ``size`` mapping; empty when nothing is."""
    if not isinstance(sizes, Mapping):
        return [f"size must be a table such as {{ {SplitSizes()} }}; got {sizes!r}"]
    problems = [unknown_name("split in size", str(name), SPLITS) for name in sizes if name not in SPLITS]
    for name in SPLITS:
        count = sizes.get(name, 1)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            problems.append(f"size.{name} must be a whole number of at least 1; got {count!r}")
    return problems


def dealt(rows: Sequence[Mapping[str, Any]], split: SplitName, seed: int) -> list[Mapping[str, Any]]:
    """The rows of a split, for a handful of rows that are listed one by one. A row that names its ``split`` stands
    there; the others are dealt out in a seeded order, of every four one to the held-out and one to the trial split."""
    own = [row for row in rows if row.get("split") == split]
    free = [row for row in rows if row.get("split") is None]
    order = sorted(range(len(free)), key=lambda i: (child_seed("dealt", seed, canonical_json(dict(free[i]))), i))
    places = (2, 3) if split == DRAW_ORDER[2] else (DRAW_ORDER.index(split),)
    return [*own, *(free[i] for rank, i in enumerate(order) if rank % 4 in places)]


def draw_splits(
    what: str, sizes: SplitSizes, draw: Callable[[SplitName, int], T | None], key: Callable[[T], Hashable]
) -> dict[SplitName, list[T]]:
    """Draw until every split has its count of items whose keys stand in no split yet.

    ``draw(split, index)`` gives the index-th candidate of a split's own stream, or ``None`` where that seed makes none.
    Raises ConfigError when the candidates run dry: after 100 + 8 times the distinct ones found, all in a row old.
    """
    seen: set[Hashable] = set()
    drawn: dict[SplitName, list[T]] = {}
    attempts = 0
    for split in DRAW_ORDER:
        picked: list[T] = []
        index = misses = 0
        while len(picked) < sizes.of(split):
            candidate = draw(split, index)
            index += 1
            attempts += 1
            if candidate is None or key(candidate) in seen:
                misses += 1
                if misses > 100 + 8 * len(seen):
                    raise ConfigError(_too_few(what, sizes, len(seen), attempts))
                continue
            misses = 0
            seen.add(key(candidate))
            picked.append(candidate)
        drawn[split] = picked
    return drawn


def _too_few(what: str, sizes: SplitSizes, found: int, attempts: int) -> str:
    text = (
        f"{what} gave only {found} distinct items in {attempts} draws, but {sizes} ask for {sizes.total} "
        "(no item may stand in two splits)"
    )
    # Nine tenths, so that drawing does not have to wait for the very last item of the space.
    room = found if found < 10 else found * 9 // 10
    if room < 3:
        return f"{text}; widen its config: there are too few items for three splits"
    share = {name: max(1, sizes.of(name) * room // sizes.total) for name in SPLITS}
    while sum(share.values()) > room:
        share[max(SPLITS, key=lambda name: share[name])] -= 1
    return f"{text}; sizes that fit: size = {{ {SplitSizes(**share)} }}; or widen its config"
