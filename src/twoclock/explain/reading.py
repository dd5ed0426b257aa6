"""From a run's folder to explanations: what is read, once, and in which order.

A run may be going on while it is read. Head and history are read until they belong together, and rounds that were
committed later are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from twoclock.consolidation import LessonEvidence
from twoclock.contracts import Channel
from twoclock.explain.changes import Case
from twoclock.explain.counting import LessonCount, count_lessons
from twoclock.explain.history import History, read_history
from twoclock.explain.matching import Key, Matcher
from twoclock.explain.records import Explanation, Explanations, Origin, Settings
from twoclock.explain.standing import stand
from twoclock.explain.states import States
from twoclock.store import RoundRow, RunStore
from twoclock.types import LedgerEntry, Lesson, Snapshot

__all__ = ["explain", "explain_all"]

ATTEMPTS = 5
BEGINNINGS = ("begun with", "written", "deployed", "kept beside", "refused", "came back")
"""Events that a lesson can come into the ledger with."""
ORDER = ("candidate", "harmful", "fast", "unproven", "weights")


def explain(
    store: RunStore, channels: Mapping[str, Channel[Any]], lesson: str, *, settings: Settings | None = None
) -> Explanation:
    """One lesson, by its id or by what :meth:`~twoclock.explain.Explanations.find` takes. ConfigError for an unknown or
    ambiguous one."""
    return explain_all(store, channels, settings=settings).find(lesson)


def explain_all(
    store: RunStore, channels: Mapping[str, Channel[Any]], *, settings: Settings | None = None
) -> Explanations:
    """Every lesson that the run has had. ``channels`` are the run's own by name; those that do not teach are left out.

    Reads alone, also while another process writes. Raises StoreError for a run that never began or is damaged.
    """
    rules = settings or Settings()
    head, entries, rounds = _steady(store)
    last = head.next_round - 1
    run = str(store.path)
    states = States(store, channels)
    if not states.channels:
        return Explanations(run=run, round=last, problem=_nobody_teaches(run, head))
    history = read_history(states, entries, rounds, head.states)
    counts = _counts(store, history, last)
    slow = any(entry.timescale == "slow" for entry in entries)
    written, by_round = _first_written(entries), {row.round: row for row in rounds}
    explanations = [
        _explanation(key, states, history, counts[key], head, entries, written, by_round, rules, slow)
        for key in history.lessons
    ]
    return Explanations(
        run=run, round=last, lessons=tuple(sorted(explanations, key=_rank)), written=_written(entries, history)
    )


def _nobody_teaches(run: str, head: Snapshot) -> str:
    there = ", ".join(head.states) or "none"
    return (
        f"no channel of {run} has lessons; its channels: {there}. Lessons are what channels such as prompts, cases and "
        "reflections write: add one, such as [channels.prompts]"
    )


def _steady(store: RunStore) -> tuple[Snapshot, list[LedgerEntry], list[RoundRow]]:
    """The head, and the entries and rounds that led to it."""
    for _ in range(ATTEMPTS):
        head = store.head()
        entries, rounds = store.entries(), store.rounds()
        if store.head() == head:
            break
    last = head.next_round - 1
    return head, [entry for entry in entries if entry.round <= last], [row for row in rounds if row.round <= last]


def _counts(store: RunStore, history: History, last: int) -> dict[Key, LessonCount]:
    matcher = Matcher(list(history.lessons.values()))
    parts = {key: matcher.parts(told) for key, told in store.conditionings().items()}
    sources: dict[tuple[str, str], list[Key]] = {}
    for key, lesson in history.lessons.items():
        for question, answer in lesson.says.exemplars if lesson.says else ():
            sources.setdefault((question, answer.strip()), []).append(key)
    return count_lessons(history.lessons, parts, store.rollouts(), last=last, sources=sources)


def _explanation(
    key: Key,
    states: States,
    history: History,
    count: LessonCount,
    head: Snapshot,
    entries: Sequence[LedgerEntry],
    written: Mapping[Key, int],
    rounds: Mapping[int, RoundRow],
    rules: Settings,
    slow: bool,
) -> Explanation:
    lesson, events = history.lessons[key], tuple(history.events.get(key, ()))
    remembered = states.remembers(key[0])
    evidence = _evidence(lesson, count, written.get(key), head.next_round - 1, remembered)
    case = Case(
        lesson=lesson,
        count=count,
        evidence=evidence,
        events=events,
        rules=rules,
        slow=slow,
        remembered=remembered,
        watch=history.watches.get(key),
        moved=_still_there(history.moved.get(key), entries, head),
    )
    return Explanation(
        lesson=lesson,
        origin=_origin(key, states, history, count, events),
        count=count,
        phases=count.slices(rounds, "phase"),
        tasks=count.slices(rounds, "task"),
        rounds=count.slices(rounds, "round"),
        events=events,
        standing=stand(case),
        own=evidence.record,
        horizon=rules.consolidation.horizon,
    )


def _evidence(lesson: Lesson, count: LessonCount, since: int | None, last: int, remembered: bool) -> LessonEvidence:
    """What consolidation goes by: of a prompt the comparison with going without it, of an entry of memory that with
    every rollout that was not shown it."""
    began = int(lesson.since) if since is None else since
    record = count.beside if remembered else count.alone
    return LessonEvidence(record=record, since=began, age=max(0, last - began))


def _first_written(entries: Sequence[LedgerEntry]) -> dict[Key, int]:
    """The first round that wrote each lesson."""
    found: dict[Key, int] = {}
    for entry in entries:
        for write in entry.writes if entry.action in ("init", "commit") else ():
            found.setdefault((entry.channel, write.lesson), entry.round)
    return found


def _origin(key: Key, states: States, history: History, count: LessonCount, events: Sequence[Any]) -> Origin | None:
    first = next((event for event in events if event.what in BEGINNINGS), None)
    if first is None:
        return None
    named = states.provenance(key[0], history.homes.get(key, ""), key[1])
    return Origin(round=first.round, seq=first.seq, cause=first.cause, rollouts=named or count.sources)


def _still_there(moved: LedgerEntry | None, entries: Sequence[LedgerEntry], head: Snapshot) -> LedgerEntry | None:
    """The consolidation, if the weights that are live were trained on from those that it made."""
    if moved is None:
        return None
    state = head.states.get(moved.channel, "")
    for entry in reversed([e for e in entries if e.channel == moved.channel]):
        if entry.after == state and entry.before != state and entry.action in ("commit", "consolidate"):
            if entry.seq == moved.seq:
                return moved
            state = entry.before
    return None


def _written(entries: Sequence[LedgerEntry], history: History) -> dict[int, tuple[Key, ...]]:
    found: dict[int, tuple[Key, ...]] = {}
    for entry in entries:
        ids: Collection[str] = dict.fromkeys(write.lesson for write in entry.writes if write.lesson)
        own = [(entry.channel, name) for name in ids if (entry.channel, name) in history.lessons]
        keys = own or [key for name in ids for key in history.lessons if key[1] == name]
        if keys:
            found[entry.seq] = tuple(keys)
    return found


def _rank(one: Explanation) -> tuple[bool, int, float, str]:
    kind = one.standing.kind
    place = ORDER.index(kind) if kind in ORDER else len(ORDER)
    return not one.lesson.live, place, -(one.effect.estimate if one.effect else 0.0), one.lesson.id
