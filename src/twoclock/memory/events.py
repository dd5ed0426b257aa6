"""What happened to a memory, and what an entry is after it: a left fold over the events that are not undone.

An entry's state follows from its own events alone, in their order. So taking back any write, not only the last, leaves
exactly what would stand if it had never been made, and undoing an undo brings it back. Pure functions of records; where
events stand is :mod:`twoclock.memory.tables`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal

from twoclock.memory.entries import entry_of, merged
from twoclock.memory.records import Effect, Entry

__all__ = ["ACTIONS", "Action", "Event", "Kept", "fold", "folded", "live_events", "step"]

Action = Literal["add", "edit", "retire", "expire", "quarantine", "effect", "refuse", "undo"]
ACTIONS: tuple[Action, ...] = ("add", "edit", "retire", "expire", "quarantine", "effect", "refuse", "undo")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One write. The payload by action::

    add         entry                     the entry, as plain JSON
    edit        entry, old                the new version, and the id of the one that it replaces
    retire      reasons                   why, by entry id
    expire      entry_id, at
    quarantine  entry_id, reason
    effect      reading, value, shown, held
    refuse      entry, reason             nothing was written
    undo                                  ``target`` is the event that it takes back
    """

    seq: int
    """Its place in the history, from 1; later events have higher ones."""
    id: str
    """A hash of it and of the event before."""
    at: float
    """Seconds since the epoch."""
    actor: str
    """Who did it, in the writer's own words."""
    action: Action
    entries: tuple[str, ...] = ()
    """The ids of the entries whose state may depend on it."""
    payload: Mapping[str, Any] = field(default_factory=dict)
    target: int | None = None
    undone: bool = False


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a store holds of one entry."""

    entry: Entry
    """As it is now: provenance merged, expiry and trust as they were last set."""
    live: bool = True
    """False once it is retired, or another version has replaced it."""
    reason: str = ""
    """Why it is not live."""
    replaced_by: str | None = None
    adds: int = 1
    """How often it was written: above 1 they were duplicates."""
    effect: Effect = field(default_factory=Effect)


def step(kept: Kept | None, event: Event, entry_id: str) -> Kept | None:
    """The state of one entry after one more event; None is that there is no such entry. What happens to an entry that
    is not there happens to nothing."""
    payload = event.payload
    if event.action in ("add", "edit") and (entry := entry_of(payload["entry"])).id == entry_id:
        if kept is None:
            return Kept(entry=entry)
        return replace(
            kept, entry=merged(kept.entry, entry), adds=kept.adds + 1, live=True, reason="", replaced_by=None
        )
    if kept is None:
        return None
    if event.action == "edit":
        new = entry_of(payload["entry"]).id
        return replace(kept, live=False, reason=f"replaced by {new}", replaced_by=new)
    if event.action == "retire":
        return replace(kept, live=False, reason=payload["reasons"][entry_id], replaced_by=None)
    if event.action == "expire":
        return replace(kept, entry=replace(kept.entry, expires=payload["at"]))
    if event.action == "quarantine":
        return replace(kept, entry=replace(kept.entry, trust="quarantined"))
    if event.action == "effect":
        return replace(kept, effect=kept.effect.add(payload["value"], shown=entry_id in payload["shown"]))
    return kept


def fold(events: Iterable[Event], entry_id: str) -> Kept | None:
    """The state of one entry after its events, which must be those not undone, oldest first."""
    none: Kept | None = None
    return reduce(lambda kept, event: step(kept, event, entry_id), events, none)


def live_events(events: Iterable[Event]) -> list[Event]:
    """Those that are in force: of the undos too, whichever are not undone themselves. ``events`` is a whole history,
    or its beginning; what each event's ``undone`` says is not asked."""
    given = sorted(events, key=lambda event: event.seq)
    taken_back: set[int] = set()
    # An undo is younger than what it takes back, so from the youngest on each one's own standing is known.
    for event in reversed(given):
        if event.target is not None and event.seq not in taken_back:
            taken_back.add(event.target)
    return [event for event in given if event.seq not in taken_back and event.action != "undo"]


def folded(history: Iterable[Event]) -> dict[str, Kept]:
    """Every entry's state after a history, from nothing but its events."""
    own: dict[str, list[Event]] = {}
    for event in live_events(history):
        for entry_id in event.entries:
            own.setdefault(entry_id, []).append(event)
    states = {name: fold(events, name) for name, events in own.items()}
    return {name: kept for name, kept in states.items() if kept is not None}
