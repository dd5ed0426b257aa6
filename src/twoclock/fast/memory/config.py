"""What every memory channel can be told: what it keeps, what it shows, how that is found, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoclock.errors import ConfigError, unknown_name

__all__ = ["MemoryConfig"]

RETRIEVALS = ("topk", "random", "kernel", "parametric")
SCOPES = ("task", "stream")
SHOWN = ("notes", "exemplars")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """``[channels.cases]`` and its siblings."""

    k: int = 4
    """Entries shown for an item, at most. 0 shows none, which is no memory."""
    max_entries: int = 512
    """The bank never holds more; what goes is what was measured least useful."""
    scope: Literal["task", "stream"] = "task"
    """Whether an entry is shown on the task alone that it was learned on, or on the whole stream."""
    encoder: str = "none"
    """What similarity is measured with beside shared words (BM25): ``minilm``, ``wordllama``, ``hashing`` or ``none``.
    ``hashing`` needs no package; where items share much wording it finds less than words alone."""
    retrieval: Literal["topk", "random", "kernel", "parametric"] = "topk"
    """Which of the found entries are shown: the nearest, any, or those with the highest learned value."""
    temperature: float = 0.1
    """Of the softmax over learned values by which half of a round's comparisons draw what they show; 0: none do. What
    is deployed takes the best."""
    candidates: int = 32
    """Entries that a search finds, of which ``k`` are shown."""
    show: Literal["notes", "exemplars"] = "notes"
    """As delimited notes before the item, or successes as turns of a conversation."""
    max_chars: int = 600
    """Of one entry as it is shown; what is cut is marked."""
    hold_all: float = 0.25
    """Where a round compares, the chance that all of an item's entries are held out, which says what memory is worth as
    a whole; else one of them is, which says what that one is worth beside the others."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: expected at least {least}"
            for name, least in (("k", 0), ("max_entries", 1), ("candidates", 1), ("max_chars", 16), ("temperature", 0))
            if getattr(self, name) < least
        ]
        problems += [
            unknown_name(name, getattr(self, name), known)
            for name, known in (("retrieval", RETRIEVALS), ("scope", SCOPES), ("show", SHOWN))
            if getattr(self, name) not in known
        ]
        if not 0 <= self.hold_all <= 1:
            problems.append(f"hold_all = {self.hold_all}: expected a chance from 0 to 1")
        if self.candidates < self.k:
            problems.append(f"candidates = {self.candidates}: fewer than k = {self.k} can never fill what is shown")
        if problems:
            raise ConfigError(problems)
