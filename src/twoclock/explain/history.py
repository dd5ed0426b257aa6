"""What happened to each lesson, in order: who wrote it, what was decided about it, in which round and why.

The ledger names the lessons that a proposal writes. What it does to others (a prompt that another one replaces, all
that a rollback brings back) is the difference of the two states, and is worked out from them where they are small; a
memory's entries name every change of theirs, so its states are compared at rollbacks alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twoclock.explain.states import States
from twoclock.explain.watches import WatchSpan, watch_spans
from twoclock.store import RoundRow
from twoclock.types import LedgerEntry, Lesson

__all__ = ["Event", "History", "read_history"]

TRIAL = (
    "trial_gain",
    "trial_p",
    "trial_items",
    "trial_live",
    "trial_offered",
    "refused_in",
    "watch_mean",
    "watch_count",
)
"""Numbers of an entry that speak of its lessons."""

Where = Mapping[str, frozenset[str]]
"""By lesson id the tasks that it is live on; a lesson that is kept and not live has none."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened to a lesson."""

    round: int
    what: str
    """``begun with``, ``written``, ``deployed``, ``kept beside``, ``refused``, ``challenged``, ``replaced``,
    ``watched``, ``proven``, ``unwatched``, ``taken back``, ``rolled back``, ``came back``, ``retired``,
    ``consolidated`` or ``not consolidated``."""
    reason: str
    cause: str = ""
    task: str = ""
    seq: int = 0
    """The ledger's entry; 0 where it is no entry's."""
    numbers: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**{n: getattr(self, n) for n in ("round", "what", "reason", "cause", "task", "seq")},
                "numbers": dict(self.numbers)}  # fmt: skip


@dataclass
class History:
    """All lessons of a run, with their events, oldest first."""

    lessons: dict[tuple[str, str], Lesson] = field(default_factory=dict)
    """By channel and id, as the newest state that has them says."""
    events: dict[tuple[str, str], list[Event]] = field(default_factory=dict)
    moved: dict[tuple[str, str], LedgerEntry] = field(default_factory=dict)
    """The entry of the slow channel that took the lesson in, newest."""
    watches: dict[tuple[str, str], WatchSpan] = field(default_factory=dict)
    """The watches that are under way, by lesson."""
    homes: dict[tuple[str, str], str] = field(default_factory=dict)
    """A state that has the lesson."""

    def add(self, key: tuple[str, str], event: Event) -> None:
        """Both channels of a consolidation have an entry of it: it is told once."""
        known = self.events.setdefault(key, [])
        if not (known and known[-1].what == event.what == "consolidated" and known[-1].cause == event.cause):
            known.append(event)


def read_history(
    states: States, entries: Sequence[LedgerEntry], rounds: Sequence[RoundRow], head: Mapping[str, str]
) -> History:
    """``head`` has by channel the hash of the live state."""
    history = History()
    live: dict[str, list[tuple[int, Where]]] = {name: [] for name in states.channels}
    for entry in entries:
        if entry.channel in states.channels:
            for key, event in _events(states, entry):
                history.add(key, event)
            _remember(history, states, entry)
            if not states.remembers(entry.channel) and entry.before != entry.after:
                live[entry.channel].append((entry.round, _where(states, entry.channel, entry.after) or {}))
        elif entry.action in ("consolidate", "refuse"):
            for key, event in _moves(states, entry, history.lessons):
                history.add(key, event)
                if entry.action == "consolidate":
                    history.moved[key] = entry
    for name in states.channels:
        for lesson in states.live(name, head[name]) if name in head else ():
            history.lessons[name, lesson.id] = lesson
            history.homes[name, lesson.id] = head[name]
    _add_watches(history, entries, rounds, live)
    for key in history.lessons:
        history.events.setdefault(key, [])
    # Inside a round the look at the watches comes before what the round writes.
    for events in history.events.values():
        events.sort(key=lambda event: event.round)
    return history


def _where(states: States, channel: str, digest: str) -> Where | None:
    found = states.lessons(channel, digest)
    if found is None:
        return None
    return {k: frozenset(lesson.tasks) if lesson.live else frozenset() for k, lesson in found.items()}


def _remember(history: History, states: States, entry: LedgerEntry) -> None:
    """The lessons that the entry names or that its states have, each from the newest state at hand."""
    named = {write.lesson: write for write in entry.writes if write.lesson}
    small = not states.remembers(entry.channel)
    if small:
        for digest in dict.fromkeys((entry.before, entry.offered, entry.after)):
            for lesson in (states.lessons(entry.channel, digest) or {}).values() if digest else ():
                history.lessons[entry.channel, lesson.id] = _idle(lesson)
                history.homes[entry.channel, lesson.id] = digest
        found = states.lessons(entry.channel, entry.offered or entry.after)
        if found is not None:
            return  # a name that no state has is no lesson, such as that of the empty prompt
    for key, write in named.items():
        if write.kind == "retire":  # one that came and went in the same round was never a lesson
            continue
        lesson = Lesson(id=key, channel=entry.channel, text=write.text, tasks=(entry.task or "*",), live=False)
        history.lessons.setdefault((entry.channel, key), lesson)
        history.homes.setdefault((entry.channel, key), entry.after)
    if not small and entry.action == "init":
        for lesson in (states.lessons(entry.channel, entry.after) or {}).values():
            history.lessons[entry.channel, lesson.id] = _idle(lesson)
            history.homes[entry.channel, lesson.id] = entry.after


def _idle(lesson: Lesson) -> Lesson:
    """As of the past: whether it is live is for the live state to say."""
    return Lesson(**{**{n: getattr(lesson, n) for n in lesson.__dataclass_fields__}, "live": False})


# ------------------------------------------------------------------------------------------------------ what happened


def _events(states: States, entry: LedgerEntry) -> Iterator[tuple[tuple[str, str], Event]]:
    """What an entry of a teaching channel did, by lesson."""
    channel = entry.channel
    memory = states.remembers(channel)
    named = {write.lesson: write for write in entry.writes if write.lesson}
    compared = not memory or entry.action in ("init", "rollback", "consolidate")
    before = _where(states, channel, entry.before) if compared else None
    after = _where(states, channel, entry.after) if compared else None
    if before is None or after is None:
        for key, write in named.items():
            if told := _by_name(entry, write.kind):
                reason = write.text if memory and write.kind == "retire" else entry.reason
                yield (channel, key), _event(entry, told, reason)
        return
    offered = _where(states, channel, entry.offered) if entry.offered and not memory else None
    for key in dict.fromkeys([*named, *before, *after]):
        if found := _change(entry, key, named, before, after, offered or {}):
            yield (channel, key), found


def _by_name(entry: LedgerEntry, kind: str) -> str | None:
    """What happened to a lesson, from the ledger's words alone."""
    if entry.action == "reject":
        return None if kind == "retire" else "refused"
    if entry.action == "commit":
        return {"retire": "retired", "pool": "kept beside"}.get(kind, "written")
    return "consolidated" if entry.action == "consolidate" else None


def _change(
    entry: LedgerEntry, key: str, named: Mapping[str, Any], before: Where, after: Where, offered: Where
) -> Event | None:
    """What the entry did to one lesson: from the states before and after, and the one that was offered."""
    nothing: frozenset[str] = frozenset()
    was, now, wished = (where.get(key, nothing) for where in (before, after, offered))
    gained = now - was
    if entry.action == "init":
        return _event(entry, "begun with" if now else "kept beside", entry.reason) if key in after else None
    if entry.action == "rollback":
        if was - now or (key in before and key not in after):
            return _event(entry, "rolled back" if entry.is_by_hand else "taken back", entry.reason)
        back = bool(gained) or (key in after and key not in before)
        return _event(entry, "came back", f"{entry.cause}: {entry.reason}") if back else None
    if entry.action == "consolidate":
        return (
            _event(entry, "consolidated", entry.reason) if was - now or (key in before and key not in after) else None
        )
    refused = entry.action == "reject" or (entry.action == "commit" and entry.offered not in ("", entry.after))
    if refused and wished - now and not wished & was:
        return _event(entry, "refused", entry.reason)
    if refused and was - wished and (wished_for := _gains(offered, before)):
        return _event(entry, "challenged", f"{', '.join(wished_for)} was to take its place: {entry.reason}")
    if entry.action == "reject":
        return _event(entry, "refused", entry.reason) if key in named and key not in before else None
    if gained:
        return _event(entry, "deployed", entry.reason)
    if was - now:
        taken = ", ".join(_gains(after, before)) or "no prompt"
        return _event(entry, "replaced", f"{taken} stands in its place: {entry.reason}")
    if key in after and key not in before:
        return _event(entry, "kept beside", entry.reason)
    if key in before and key not in after:
        return _event(entry, "retired", entry.reason)
    return None


def _gains(after: Where, before: Where) -> list[str]:
    """The lessons that are live somewhere after and were not before."""
    return sorted(key for key, tasks in after.items() if tasks - before.get(key, frozenset()))


def _event(entry: LedgerEntry, what: str, reason: str) -> Event:
    return Event(
        round=entry.round,
        what=what,
        reason=reason,
        cause=entry.cause,
        task=entry.task,
        seq=entry.seq,
        numbers={name: entry.metrics[name] for name in TRIAL if name in entry.metrics},
    )


def _moves(
    states: States, entry: LedgerEntry, lessons: Mapping[tuple[str, str], Lesson]
) -> Iterator[tuple[tuple[str, str], Event]]:
    """What a slow channel's consolidation says of the lessons that it names."""
    for write in entry.writes:
        owners = [key for key in lessons if key[1] == write.lesson]
        told = [key for key in owners if f"of '{key[0]}'" in entry.cause]
        for key in told or owners:
            if entry.action == "refuse":
                yield key, _event(entry, "not consolidated", entry.reason)
            else:
                yield key, _event(entry, "consolidated", f"into '{entry.channel}': {entry.reason}")


# -------------------------------------------------------------------------------------------------------- the watches


def _add_watches(
    history: History,
    entries: Sequence[LedgerEntry],
    rounds: Sequence[RoundRow],
    live: Mapping[str, Sequence[tuple[int, Where]]],
) -> None:
    for span in watch_spans(rounds, entries):
        if span.channel not in live:
            continue
        for key in _live_at(live[span.channel], span.opened, span.task):
            lesson = (span.channel, key)
            history.add(lesson, Event(round=span.opened, what="watched", task=span.task, reason=span.began))
            if span.closed is None:
                history.watches[lesson] = span
            elif span.outcome != "taken back":  # that is an entry of the ledger
                history.add(lesson, Event(round=span.closed, what=span.outcome, task=span.task, reason=span.told))


def _live_at(changes: Sequence[tuple[int, Where]], round: int, task: str) -> list[str]:
    """The lessons that were live on a task when the round had been committed."""
    state: Where = {}
    for number, where in changes:
        if number <= round:
            state = where
    return [key for key, tasks in state.items() if task in tasks or "*" in tasks]
