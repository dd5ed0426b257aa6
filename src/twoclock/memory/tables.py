"""Every statement that a memory file is read and written with, in typed records; the transaction is the caller's.

Writing is appending an event (:func:`append`, :func:`undo`); the derived tables are brought up to date in the same
transaction, from the events alone.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from twoclock.errors import StoreError
from twoclock.hashing import canonical_json, content_hash
from twoclock.memory.events import Action, Event, Kept, fold, step
from twoclock.memory.records import Effect, Entry, Scope

__all__ = ["ReadingRow"]

Vector = npt.NDArray[np.float32]

CHUNK = 500
"""Ids in one statement; SQLite allows 999 parameters in its older builds."""

_ENTRY = (
    "id, kind, key, text, scope_agent, scope_user, scope_task, scope_session, trust, reward, created, expires, body, "
    "provenance, seen, replaces, live, reason, replaced_by, adds"
)
# What does not name an entry, and so may be another thing after another event.
_CHANGING = (
    "trust", "reward", "created", "expires", "provenance", "seen", "live", "reason", "replaced_by", "adds",
)  # fmt: skip
_EFFECT = "shown, shown_sum, shown_squares, held, held_sum, held_squares"
_KEPT = f"SELECT {', '.join('e.' + name for name in _ENTRY.split(', '))}, {_EFFECT} FROM entries e "
_KEPT += "LEFT JOIN effects f ON f.entry = e.id"


@dataclass(frozen=True, kw_only=True)
class ReadingRow:
    """A read that was handed out; ``shown`` and ``held`` are entry ids."""

    id: str
    at: float
    query: str
    scope: Mapping[str, str]
    shown: tuple[str, ...]
    held: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------------- events


def append(
    db: sqlite3.Connection,
    action: Action,
    entries: Iterable[str],
    payload: Mapping[str, Any],
    *,
    actor: str,
    at: float,
    target: int | None = None,
) -> Event:
    """One more event, and the state of the entries that it touches after it."""
    touched = tuple(sorted(set(entries)))
    plain = canonical_json(dict(payload))
    last = db.execute("SELECT id FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    event_id = _named("" if last is None else last["id"], at, actor, action, plain, target, touched)
    values = (event_id, at, actor, action, plain, target)
    # RETURNING would be shorter; the libraries that older systems ship do not have it.
    db.execute("INSERT INTO events (id, at, actor, action, payload, target) VALUES (?, ?, ?, ?, ?, ?)", values)
    seq = int(db.execute("SELECT seq FROM events WHERE id = ?", (event_id,)).fetchone()[0])
    db.executemany("INSERT INTO touches (entry, seq) VALUES (?, ?)", [(entry, seq) for entry in touched])
    event = Event(
        seq=seq, id=event_id, at=at, actor=actor, action=action, entries=touched, payload=payload, target=target
    )
    if action != "undo":
        for entry_id in touched:
            _set(db, entry_id, step(kept(db, entry_id), event, entry_id))
    return event


def _named(
    last: str, at: float, actor: str, action: str, payload: str, target: int | None, entries: Sequence[str]
) -> str:
    """An event's id: a hash of it and of the one before, so that no part of a history can change unnoticed."""
    return content_hash([last, float(at), actor, action, payload, target, list(entries)])[:16]


def broken_links(db: sqlite3.Connection) -> list[int]:
    """The events that are not what their ids say, or whose predecessor is another than it was."""
    touched: dict[int, list[str]] = {}
    for row in db.execute("SELECT seq, entry FROM touches ORDER BY seq, entry"):
        touched.setdefault(row["seq"], []).append(row["entry"])
    found, last = [], ""
    for row in db.execute("SELECT * FROM events ORDER BY seq"):
        told = (row["at"], row["actor"], row["action"], row["payload"], row["target"], touched.get(row["seq"], []))
        if _named(last, *told) != row["id"]:
            found.append(row["seq"])
        last = row["id"]
    return found


def undo(db: sqlite3.Connection, target: Event, *, actor: str, at: float) -> Event:
    """Take back one event, which is in force; what it did to undone events and to entries is brought up to date."""
    event = append(db, "undo", _reach(db, target), {}, actor=actor, at=at, target=target.seq)
    _settle(db, target.seq)
    for entry_id in event.entries:
        _set(db, entry_id, fold(_in_force(db, entry_id), entry_id))
    return event


def _reach(db: sqlite3.Connection, event: Event) -> tuple[str, ...]:
    """The entries that an event touches; an undo touches those of what it takes back."""
    while event.target is not None:
        event = event_at(db, event.target)
    return event.entries


def _settle(db: sqlite3.Connection, seq: int) -> None:
    """Whether an event is in force follows from the undos of it that are: set that, and so on down its targets."""
    while True:
        taken_back = db.execute(
            "SELECT 1 FROM events u WHERE u.target = ? AND u.seq NOT IN (SELECT seq FROM undone) LIMIT 1", (seq,)
        ).fetchone()
        was = db.execute("SELECT 1 FROM undone WHERE seq = ?", (seq,)).fetchone()
        if bool(taken_back) == bool(was):
            return
        statement = "INSERT INTO undone (seq) VALUES (?)" if taken_back else "DELETE FROM undone WHERE seq = ?"
        db.execute(statement, (seq,))
        target = event_at(db, seq).target
        if target is None:
            return
        seq = target


def _in_force(db: sqlite3.Connection, entry_id: str) -> Iterator[Event]:
    found = db.execute(
        "SELECT e.* FROM touches t JOIN events e ON e.seq = t.seq WHERE t.entry = ? AND e.action <> 'undo' "
        "AND e.seq NOT IN (SELECT seq FROM undone) ORDER BY e.seq",
        (entry_id,),
    ).fetchall()
    return (_event(row, (entry_id,), False) for row in found)


def _event(row: sqlite3.Row, entries: tuple[str, ...], undone: bool) -> Event:
    try:
        payload = json.loads(row["payload"])
    except ValueError:
        raise StoreError(
            f"event {row['seq']} of this memory is damaged: its payload is no JSON; restore a copy"
        ) from None
    return Event(
        seq=row["seq"],
        id=row["id"],
        at=row["at"],
        actor=row["actor"],
        action=row["action"],
        entries=entries,
        payload=payload,
        target=row["target"],
        undone=undone,
    )


def event_at(db: sqlite3.Connection, which: int | str) -> Event:
    """One event by its place or its id. Raises StoreError where there is none."""
    column = "seq" if isinstance(which, int) else "id"
    row = db.execute(f"SELECT * FROM events WHERE {column} = ?", (which,)).fetchone()
    if row is None:
        raise StoreError(f"there is no event {which!r} in this memory; it has {last_seq(db)} events")
    return next(_with_entries(db, [row]))


def events(db: sqlite3.Connection, *, after: int = 0, upto: int | None = None, entry: str | None = None) -> list[Event]:
    """The history in order: what came after one event, up to another, of one entry or of all."""
    where, values = "seq > ?", [after]
    if upto is not None:
        where, values = f"{where} AND seq <= ?", [*values, upto]
    if entry is not None:
        where, values = f"{where} AND seq IN (SELECT seq FROM touches WHERE entry = ?)", [*values, cast(int, entry)]
    return list(_with_entries(db, db.execute(f"SELECT * FROM events WHERE {where} ORDER BY seq", values).fetchall()))


def _with_entries(db: sqlite3.Connection, rows: Sequence[sqlite3.Row]) -> Iterator[Event]:
    if not rows:
        return
    first, last = rows[0]["seq"], rows[-1]["seq"]
    touched: dict[int, list[str]] = {}
    for row in db.execute(
        "SELECT seq, entry FROM touches WHERE seq BETWEEN ? AND ? ORDER BY seq, entry", (first, last)
    ):
        touched.setdefault(row["seq"], []).append(row["entry"])
    gone = {row["seq"] for row in db.execute("SELECT seq FROM undone WHERE seq BETWEEN ? AND ?", (first, last))}
    for row in rows:
        yield _event(row, tuple(touched.get(row["seq"], ())), row["seq"] in gone)


def last_seq(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])


def changed_since(db: sqlite3.Connection, seq: int) -> list[str]:
    """The entries whose words, standing or expiry may have changed after an event."""
    found = db.execute(
        "SELECT DISTINCT t.entry FROM touches t JOIN events e ON e.seq = t.seq WHERE t.seq > ? "
        "AND e.action <> 'effect' ORDER BY t.entry",
        (seq,),
    )
    return [row["entry"] for row in found]


# ------------------------------------------------------------------------------------------------------ derived tables


def _set(db: sqlite3.Connection, entry_id: str, now: Kept | None) -> None:
    """The row of one entry, its words and its effect, as they are now."""
    row = db.execute("SELECT number, key, text FROM entries WHERE id = ?", (entry_id,)).fetchone()
    if now is None:
        if row is not None:
            db.execute(
                "INSERT INTO entries_words (entries_words, rowid, key, text) VALUES ('delete', ?, ?, ?)", tuple(row)
            )
            db.execute("DELETE FROM entries WHERE id = ?", (entry_id,))
        db.execute("DELETE FROM effects WHERE entry = ?", (entry_id,))
        return
    values = _values(now)
    if row is None:
        db.execute(f"INSERT INTO entries ({_ENTRY}) VALUES ({_marks(values)})", values)
        number = db.execute("SELECT number FROM entries WHERE id = ?", (entry_id,)).fetchone()[0]
        words = (number, now.entry.key, now.entry.text)
        db.execute("INSERT INTO entries_words (rowid, key, text) VALUES (?, ?, ?)", words)
    else:
        by_name = dict(zip(_ENTRY.split(", "), values, strict=True))
        sets = ", ".join(f"{name} = ?" for name in _CHANGING)
        db.execute(f"UPDATE entries SET {sets} WHERE id = ?", (*(by_name[name] for name in _CHANGING), entry_id))
    if now.effect == Effect():
        db.execute("DELETE FROM effects WHERE entry = ?", (entry_id,))
    else:
        sums = tuple(getattr(now.effect, name) for name in _EFFECT.split(", "))
        db.execute("DELETE FROM effects WHERE entry = ?", (entry_id,))
        db.execute(f"INSERT INTO effects (entry, {_EFFECT}) VALUES (?, ?, ?, ?, ?, ?, ?)", (entry_id, *sums))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" for _ in values)


def _values(now: Kept) -> tuple[Any, ...]:
    entry, scope = now.entry, now.entry.scope
    return (
        entry.id, entry.kind, entry.key, entry.text, scope.agent, scope.user, scope.task, scope.session, entry.trust,
        entry.reward, entry.created, entry.expires, canonical_json(dict(entry.body)),
        canonical_json(list(entry.provenance)), canonical_json(list(entry.seen)), entry.replaces, int(now.live),
        now.reason, now.replaced_by, now.adds,
    )  # fmt: skip


def _entry(row: sqlite3.Row) -> Entry:
    names = ("agent", "user", "task", "session")
    return Entry(
        kind=row["kind"],
        key=row["key"],
        text=row["text"],
        scope=Scope(**{name: row[f"scope_{name}"] for name in names}),
        trust=row["trust"],
        reward=row["reward"],
        created=row["created"],
        expires=row["expires"],
        body=json.loads(row["body"]),
        provenance=tuple(json.loads(row["provenance"])),
        seen=tuple(json.loads(row["seen"])),
        replaces=row["replaces"],
    )


def _kept(row: sqlite3.Row) -> Kept:
    effect = Effect() if row["shown"] is None else Effect(**{name: row[name] for name in _EFFECT.split(", ")})
    return Kept(
        entry=_entry(row),
        live=bool(row["live"]),
        reason=row["reason"],
        replaced_by=row["replaced_by"],
        adds=row["adds"],
        effect=effect,
    )


def kept(db: sqlite3.Connection, entry_id: str) -> Kept | None:
    row = db.execute(f"{_KEPT} WHERE e.id = ?", (entry_id,)).fetchone()
    return None if row is None else _kept(row)


def kept_many(db: sqlite3.Connection, entry_ids: Sequence[str]) -> dict[str, Kept]:
    """Those of the ids that are there."""
    found: dict[str, Kept] = {}
    for start in range(0, len(entry_ids), CHUNK):
        part = entry_ids[start : start + CHUNK]
        for row in db.execute(f"{_KEPT} WHERE e.id IN ({_marks(part)})", tuple(part)):
            found[row["id"]] = _kept(row)
    return found


def entries(db: sqlite3.Connection, entry_ids: Sequence[str]) -> dict[str, Entry]:
    """Those of the ids that are there, as they are now."""
    found: dict[str, Entry] = {}
    for start in range(0, len(entry_ids), CHUNK):
        part = entry_ids[start : start + CHUNK]
        for row in db.execute(f"SELECT {_ENTRY} FROM entries WHERE id IN ({_marks(part)})", tuple(part)):
            found[row["id"]] = _entry(row)
    return found


def all_kept(
    db: sqlite3.Connection,
    *,
    live_only: bool,
    measured: bool = False,
    reader: Scope | None = None,
    kinds: Sequence[str] | None = None,
    match: str | None = None,
) -> Iterator[Kept]:
    """Entries by age, then id: those that a reader may see, of some kinds, with some words; with ``measured`` also what
    is not live, if it was ever measured."""
    live = "(e.live = 1 OR f.entry IS NOT NULL)" if measured else "e.live = 1"
    where = [live if live_only else "1 = 1"]
    values: list[Any] = []
    if reader is not None:
        for name in ("agent", "user", "task", "session"):
            where.append(f"e.scope_{name} IN ('', ?)")
            values.append(getattr(reader, name))
    if kinds is not None:
        where.append(f"e.kind IN ({_marks(kinds)})")
        values += kinds
    if match is not None:
        where.append("e.number IN (SELECT rowid FROM entries_words WHERE entries_words MATCH ?)")
        values.append(match)
    query = f"{_KEPT} WHERE {' AND '.join(where)} ORDER BY e.created, e.id"
    return map(_kept, db.execute(query, tuple(values)))


def count_live(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM entries WHERE live = 1").fetchone()[0])


def search_rows(db: sqlite3.Connection, encoder: str | None, entry_ids: Sequence[str] | None) -> Iterator[sqlite3.Row]:
    """What an index needs of live entries (None: of all): id, kind, key, text, scope, trust, expiry, and the vector of
    one encoder where it made one."""
    names = "e.id, e.kind, e.key, e.text, e.scope_agent, e.scope_user, e.scope_task, e.scope_session, e.trust, "
    query = f"SELECT {names} e.expires, v.vector FROM entries e LEFT JOIN vectors v ON v.entry = e.id "
    query += "AND v.encoder = ? WHERE e.live = 1"
    if entry_ids is None:
        yield from db.execute(query, (encoder,))
        return
    for start in range(0, len(entry_ids), CHUNK):
        part = entry_ids[start : start + CHUNK]
        yield from db.execute(f"{query} AND e.id IN ({_marks(part)})", (encoder, *part))


def rebuild(db: sqlite3.Connection) -> None:
    """Make the derived tables anew from the events."""
    db.execute("DELETE FROM undone")
    db.execute("DELETE FROM effects")
    db.execute("DELETE FROM entries")
    db.execute("INSERT INTO entries_words (entries_words) VALUES ('delete-all')")
    for row in db.execute("SELECT seq, target FROM events WHERE target IS NOT NULL ORDER BY seq DESC").fetchall():
        if not db.execute("SELECT 1 FROM undone WHERE seq = ?", (row["seq"],)).fetchone():
            db.execute("INSERT INTO undone (seq) VALUES (?) ON CONFLICT DO NOTHING", (row["target"],))
    for row in db.execute("SELECT DISTINCT entry FROM touches ORDER BY entry").fetchall():
        _set(db, row["entry"], fold(_in_force(db, row["entry"]), row["entry"]))


def damage(db: sqlite3.Connection) -> list[str]:
    """What SQLite itself finds wrong with the file and with the word table."""
    found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
    try:
        db.execute("INSERT INTO entries_words (entries_words, rank) VALUES ('integrity-check', 1)")
    except sqlite3.DatabaseError as error:
        found.append(f"the word table does not agree with the entries ({error})")
    return found


# -------------------------------------------------------------------------------------------------- episodes, readings


def episode(db: sqlite3.Connection, name: str) -> sqlite3.Row | None:
    return cast("sqlite3.Row | None", db.execute("SELECT * FROM episodes WHERE name = ?", (name,)).fetchone())


def episodes(db: sqlite3.Connection) -> list[sqlite3.Row]:
    return db.execute("SELECT * FROM episodes ORDER BY at, name").fetchall()


def add_episode(db: sqlite3.Connection, name: str, payload: str, digest: str, at: float) -> None:
    db.execute("INSERT INTO episodes (name, payload, hash, at) VALUES (?, ?, ?, ?)", (name, payload, digest, at))


def next_reading(db: sqlite3.Connection) -> int:
    return 1 + int(db.execute("SELECT coalesce(max(number), 0) FROM readings").fetchone()[0])


def add_reading(db: sqlite3.Connection, row: ReadingRow) -> None:
    told = [canonical_json(part) for part in (dict(row.scope), list(row.shown), list(row.held))]
    db.execute(
        "INSERT INTO readings (id, at, query, scope, shown, held) VALUES (?, ?, ?, ?, ?, ?)",
        (row.id, row.at, row.query, *told),
    )


def reading(db: sqlite3.Connection, reading_id: str) -> ReadingRow | None:
    row = db.execute("SELECT * FROM readings WHERE id = ?", (reading_id,)).fetchone()
    if row is None:
        return None
    shown, held = (tuple(json.loads(row[name])) for name in ("shown", "held"))
    scope = json.loads(row["scope"])
    return ReadingRow(id=row["id"], at=row["at"], query=row["query"], scope=scope, shown=shown, held=held)


def credited_by(db: sqlite3.Connection, reading_id: str) -> int | None:
    """The event in force that credits a reading, by its place."""
    row = db.execute(
        "SELECT seq FROM outcomes WHERE reading = ? AND seq NOT IN (SELECT seq FROM undone) LIMIT 1", (reading_id,)
    ).fetchone()
    return None if row is None else int(row["seq"])


def add_outcome(db: sqlite3.Connection, reading_id: str, seq: int) -> None:
    db.execute("INSERT INTO outcomes (reading, seq) VALUES (?, ?)", (reading_id, seq))


# ------------------------------------------------------------------------------------------------------------- vectors


def meta(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row["value"])


def set_meta(db: sqlite3.Connection, name: str, value: str) -> None:
    db.execute(
        "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )


def add_vectors(db: sqlite3.Connection, encoder: str, vectors: Mapping[str, Vector]) -> None:
    values = [(entry, encoder, len(v), np.ascontiguousarray(v, dtype="<f4").tobytes()) for entry, v in vectors.items()]
    db.executemany(
        "INSERT INTO vectors (entry, encoder, dimension, vector) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", values
    )


def vector_of(blob: bytes, dimension: int, entry_id: str) -> Vector:
    """A stored vector. Raises StoreError for another length."""
    if len(blob) != 4 * dimension:
        raise StoreError(
            f"the vector of entry {entry_id} has {len(blob) // 4} dimensions, its encoder makes {dimension}; type "
            "store.reembed()"
        )
    return np.frombuffer(blob, dtype="<f4").astype(np.float32)


def unembedded(db: sqlite3.Connection, encoder: str) -> list[tuple[str, str]]:
    """Live entries that an encoder made no vector of, as (id, key)."""
    found = db.execute(
        "SELECT id, key FROM entries WHERE live = 1 AND NOT EXISTS "
        "(SELECT 1 FROM vectors v WHERE v.entry = entries.id AND v.encoder = ?) ORDER BY id",
        (encoder,),
    )
    return [(row["id"], row["key"]) for row in found]


def drop_other_vectors(db: sqlite3.Connection, encoder: str) -> None:
    db.execute("DELETE FROM vectors WHERE encoder <> ?", (encoder,))


# ------------------------------------------------------------------------------------------------------------- counting


def counts(db: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """How many, by table and by kind, trust, standing and action."""

    def grouped(query: str) -> dict[str, int]:
        return {str(row[0]): int(row[1]) for row in db.execute(query)}

    tables = ("events", "undone", "episodes", "readings", "vectors", "effects")
    return {
        "kind": grouped("SELECT kind, count(*) FROM entries WHERE live = 1 GROUP BY kind ORDER BY kind"),
        "trust": grouped("SELECT trust, count(*) FROM entries WHERE live = 1 GROUP BY trust ORDER BY trust"),
        "standing": grouped(
            "SELECT CASE live WHEN 1 THEN 'live' ELSE 'retired' END, count(*) FROM entries GROUP BY live ORDER BY 1"
        ),
        "action": grouped("SELECT action, count(*) FROM events GROUP BY action ORDER BY action"),
        "rows": {name: int(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in tables},
        "duplicates": {"adds": int(db.execute("SELECT coalesce(sum(adds - 1), 0) FROM entries").fetchone()[0])},
    }
