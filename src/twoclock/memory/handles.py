"""What a store gives back for a write and for a read, and the bound that it is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoclock.errors import ConfigError
from twoclock.memory.records import Hit

__all__ = ["MemoryBudget", "Reading", "Receipt"]


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """A bound on the entries that live. A write that would pass it retires what is measured least useful
    (:func:`twoclock.memory.eviction.evict`) in the same transaction, down to ``entries × (1 − slack)``, so that not
    every write has to choose."""

    entries: int
    slack: float = 0.05

    def __post_init__(self) -> None:
        if not isinstance(self.entries, int) or self.entries < 1 or not 0.0 <= self.slack < 1.0:
            raise ConfigError(
                f"a budget is a number of entries, 1 or more, with a slack in [0, 1); got entries={self.entries!r}, "
                f"slack={self.slack!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a write."""

    seq: int
    """The event that it was recorded as: what :meth:`MemoryStore.undo` takes."""
    entry_id: str
    action: Literal["added", "merged", "refused"]
    """``merged``: it was there already and gained this one's provenance. ``refused``: nothing was written."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one read found: the hits to show, and those that it held out at random to measure what showing is worth."""

    id: str
    """Names it to :meth:`MemoryStore.outcome`, in any process."""
    query: str
    shown: tuple[Hit, ...]
    held: tuple[Hit, ...]
