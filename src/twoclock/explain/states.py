"""The lessons of a run's past states, each loaded once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twoclock.contracts import Channel, Remembering, Teaching
from twoclock.errors import StoreError
from twoclock.store import RunStore
from twoclock.types import Lesson

__all__ = ["States"]

KEPT = 256
"""States held at once; a history is walked in order, so older ones are seldom asked for again."""


class States:
    """Lessons by the hash of a state; None where the state was thinned, or is of no channel that teaches."""

    def __init__(self, store: RunStore, channels: Mapping[str, Channel[Any]]) -> None:
        self.store = store
        self.channels: dict[str, Any] = {n: c for n, c in channels.items() if isinstance(c, Teaching)}
        self._known: dict[tuple[str, str], dict[str, Lesson] | None] = {}
        self._sources: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}

    def remembers(self, channel: str) -> bool:
        """Whether the channel's ledger entries name every lesson that they add or drop: a memory's do."""
        return isinstance(self.channels[channel], Remembering)

    def load(self, channel: str, digest: str) -> Any:
        """The state itself. StoreError where it is not there any more."""
        return self.channels[channel].load(self.store.get_blob(digest))

    def lessons(self, channel: str, digest: str) -> dict[str, Lesson] | None:
        """By id; empty for the state before the first."""
        if not digest:
            return {}
        key = (channel, digest)
        if key not in self._known:
            if len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            try:
                found = self.channels[channel].lessons(self.load(channel, digest))
                self._known[key] = {lesson.id: lesson for lesson in found}
            except StoreError:
                self._known[key] = None
        return self._known[key]

    def live(self, channel: str, digest: str) -> tuple[Lesson, ...]:
        """Those of the live state, which must be there: StoreError where it is not."""
        found: tuple[Lesson, ...] = self.channels[channel].lessons(self.load(channel, digest))
        return found

    def provenance(self, channel: str, digest: str, lesson: str) -> tuple[str, ...]:
        """The rollouts that an entry of memory says it came from."""
        owner = self.channels[channel]
        if not isinstance(owner, Remembering):
            return ()
        if (channel, digest) not in self._sources:
            try:
                entries = owner.bank(self.load(channel, digest)).entries
                self._sources[channel, digest] = {entry.id: entry.provenance for entry in entries}
            except StoreError:
                self._sources[channel, digest] = {}
        return self._sources[channel, digest].get(lesson, ())
