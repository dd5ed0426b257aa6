"""The memory that many processes share: one SQLite file, written by appending events, read by hybrid search.

A write is on the disk when it returns, and any write can be taken back exactly (:meth:`MemoryStore.undo`): afterwards
searches, scores and :meth:`MemoryStore.fingerprint` are those of a store in which it was never made. Reading is a
handle: :meth:`MemoryStore.read` shows what it found but for what a coin holds out, and :meth:`MemoryStore.outcome`
credits both sides, which is how each entry's effect is measured.

What stands in the file: :mod:`twoclock.memory.schema`; what is guaranteed: ``docs/memory.md``.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from twoclock.errors import ConfigError, StoreError
from twoclock.hashing import canonical_json, content_hash
from twoclock.memory import schema, tables
from twoclock.memory.bank import Bank, Policy
from twoclock.memory.effects import Prior, pool_priors
from twoclock.memory.encoders import Encoder
from twoclock.memory.entries import (
    effect_to_json,
    entry_to_json,
    repeated,
    require_outcome,
    require_proper,
    scope_to_json,
)
from twoclock.memory.events import Event, Kept, folded
from twoclock.memory.handles import MemoryBudget, Reading, Receipt
from twoclock.memory.index import require_kinds
from twoclock.memory.live_index import LiveIndex
from twoclock.memory.records import Effect, Entry, Hit, Kind, Scope
from twoclock.memory.words import words_of
from twoclock.seeding import child_rng

__all__ = ["MemoryStore"]

EMBED_ROWS = 256
"""Keys that are embedded before their vectors are written down."""


class MemoryStore:
    """Made by :meth:`open`; a context manager. Safe for threads, and after a fork."""

    def __init__(
        self, path: Path, encoder: Encoder | None, budget: MemoryBudget | None, clock: Callable[[], float]
    ) -> None:
        self.path, self.encoder, self.budget = path, encoder, budget
        self._clock = clock
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._pid = 0
        self._closed = False
        self._file: tuple[int, int] | None = None
        self._abandoned: list[sqlite3.Connection | None] = []
        self._index = LiveIndex(encoder)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: Encoder | None = None,
        create: bool = True,
        budget: MemoryBudget | None = None,
        reembed: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> MemoryStore:
        """The memory in a file, which ``create`` makes where there is none.

        ``encoder`` embeds keys and queries; without one only words are searched. A file keeps the vectors of one
        encoder: opened with another, it raises StoreError, unless ``reembed`` has it embed everything anew. ``clock``
        gives the time in seconds. Raises StoreError for a file that is missing, damaged, no memory, or newer than this
        code.
        """
        if str(path) == ":memory:":
            raise ConfigError("a memory store is a file; for entries that stand in memory alone use a Bank")
        if encoder is not None and not isinstance(encoder, Encoder):
            raise ConfigError(f"encoder is {encoder!r:.60}; give an encoder, such as build_encoder('hashing')")
        store = cls(Path(path), encoder, budget, clock)
        with store._lock:
            store._connection(create=create)
        try:
            if reembed:
                store.reembed()
            elif encoder is not None:
                with store._reading() as db:
                    store._index.require_encoder(db)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        with self._lock:
            if self._db is not None and self._pid == os.getpid():
                self._db.close()
            self._db, self._closed = None, True

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------------- transactions

    def _connection(self, *, create: bool = False) -> sqlite3.Connection:
        if self._closed:
            raise StoreError(f"the memory {self.path} was closed; open it anew")
        if self._db is None or self._pid != os.getpid():
            # SQLite's connections must not cross a fork; the parent's is left to the parent.
            self._abandoned.append(self._db)
            self._db, self._pid = schema.open_file(self.path, create=create), os.getpid()
            self._file = _identity(self.path)
            self._index.forget()
        elif self._file != _identity(self.path):
            raise StoreError(
                f"the memory {self.path} was moved, deleted or replaced while it was open; what is written now would "
                "be lost: open it anew"
            )
        return self._db

    @contextmanager
    def _transaction(self, begin: str, told: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                db = self._connection()
                if db.in_transaction:
                    raise StoreError("a memory cannot be written or read from within one of its own writes")
                try:
                    db.execute(begin)
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    _roll_back(db)
                    raise
            except (sqlite3.Error, OverflowError) as error:
                raise StoreError(f"the memory {self.path} cannot be {told} ({error}); nothing was written") from error

    def _reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """One consistent view, also while others write."""
        return self._transaction("BEGIN", "read")

    def _writing(self) -> AbstractContextManager[sqlite3.Connection]:
        """One transaction, all of it or nothing. It takes the write lock at its start: what it reads is what it
        changes."""
        return self._transaction("BEGIN IMMEDIATE", "written")

    # -------------------------------------------------------------------------------------------------------- writing

    def add(self, entry: Entry, *, actor: str, writer: Scope | None = None, across: bool = False) -> Receipt:
        """Keep an entry; see :meth:`add_many`."""
        return self.add_many([entry], actor=actor, writer=writer, across=across)[0]

    def add_many(
        self, entries: Iterable[Entry], *, actor: str, writer: Scope | None = None, across: bool = False
    ) -> list[Receipt]:
        """Keep entries, all in one transaction, an event each.

        One that is there already is not kept twice: its provenance is added. One that merely repeats what it was shown
        (``Entry.seen``) is refused, and the refusal recorded. ``created`` 0 is set to now. Where ``writer`` is given,
        the scope of whoever writes, entries of any other scope raise ConfigError, unless ``across`` says that this is
        meant; so do improper entries. Then nothing is written.
        """
        now = self._clock()
        if isinstance(entries, Entry):
            raise ConfigError("add_many takes several entries; write add(entry) or add_many([entry])")
        given = [require_proper(entry) for entry in entries]
        for entry in given:
            _require_scope(entry.scope, writer, across, "written")
        stamped = [entry if entry.created else replace(entry, created=now) for entry in given]
        vectors = self._index.encode({entry.id: entry.key for entry in stamped})
        with self._writing() as db:
            self._index.keep(db, vectors)
            receipts = [self._add(db, entry, _actor(actor), now) for entry in stamped]
            self._bound(db, now)
            return receipts

    def _add(self, db: sqlite3.Connection, entry: Entry, actor: str, now: float) -> Receipt:
        payload: dict[str, Any] = {"entry": entry_to_json(entry)}
        if reason := self._refusal(db, entry):
            event = tables.append(db, "refuse", (), {**payload, "reason": reason}, actor=actor, at=now)
            return Receipt(seq=event.seq, entry_id=entry.id, action="refused", reason=reason)
        there = tables.kept(db, entry.id)
        event = tables.append(db, "add", [entry.id], payload, actor=actor, at=now)
        action: Literal["added", "merged"] = "merged" if there and there.live else "added"
        return Receipt(seq=event.seq, entry_id=entry.id, action=action)

    def _refusal(self, db: sqlite3.Connection, entry: Entry) -> str | None:
        """Also of what has been retired since it was shown: an echo of it is an echo still."""
        return repeated(entry, (kept.entry for kept in tables.kept_many(db, entry.seen).values()))

    def edit(
        self,
        entry_id: str,
        *,
        actor: str,
        key: str | None = None,
        text: str | None = None,
        writer: Scope | None = None,
        across: bool = False,
    ) -> Receipt:
        """A new version of an entry, which replaces the old one; both stay in the history. Raises ConfigError where
        nothing would change, or for an entry that is not live."""
        now = self._clock()
        with self._reading() as db:
            (kept,) = self._live(db, [entry_id], writer, across, "edited")
        old = kept.entry
        new = replace(
            old,
            key=old.key if key is None else key,
            text=old.text if text is None else text,
            created=now,
            replaces=entry_id,
        )
        if (new.key, new.text) == (old.key, old.text):
            raise ConfigError(f"nothing would change: give another key or text than those of entry {entry_id}")
        require_proper(new)
        vectors = self._index.encode({new.id: new.key})
        with self._writing() as db:
            self._live(db, [entry_id], writer, across, "edited")
            self._index.keep(db, vectors)
            payload = {"entry": entry_to_json(new), "old": entry_id}
            event = tables.append(db, "edit", [new.id, entry_id], payload, actor=_actor(actor), at=now)
            return Receipt(seq=event.seq, entry_id=new.id, action="added")

    def retire(
        self,
        entry_ids: str | Iterable[str] | Mapping[str, str],
        reason: str = "",
        *,
        actor: str,
        writer: Scope | None = None,
        across: bool = False,
    ) -> Event:
        """Show entries no more; their history stays. A mapping gives each its own reason. Raises ConfigError for one
        that is not live, and for none."""
        ids = [entry_ids] if isinstance(entry_ids, str) else list(entry_ids)
        own = dict(entry_ids) if isinstance(entry_ids, Mapping) else {}
        reasons = {name: _text(own.get(name, reason), "reason") for name in ids}
        if not reasons:
            raise ConfigError("retire takes one entry's id or several; got none")
        return self._change("retire", ids, {"reasons": reasons}, actor, writer, across)

    def expire(
        self, entry_id: str, at: float | None = None, *, actor: str, writer: Scope | None = None, across: bool = False
    ) -> Event:
        """Show an entry no more from a time on; None is now."""
        when = self._clock() if at is None else at
        if not isinstance(when, int | float) or isinstance(when, bool) or when != when or abs(when) == float("inf"):
            raise ConfigError(f"an entry expires at a finite time in seconds; got {at!r}")
        return self._change("expire", [entry_id], {"entry_id": entry_id, "at": float(when)}, actor, writer, across)

    def quarantine(
        self, entry_id: str, reason: str, *, actor: str, writer: Scope | None = None, across: bool = False
    ) -> Event:
        """Keep an entry and never show it; :meth:`undo` is the way back."""
        payload = {"entry_id": entry_id, "reason": _text(reason, "reason")}
        return self._change("quarantine", [entry_id], payload, actor, writer, across)

    def _change(
        self,
        action: Literal["retire", "expire", "quarantine"],
        ids: Sequence[str],
        payload: Mapping[str, Any],
        actor: str,
        writer: Scope | None,
        across: bool,
    ) -> Event:
        with self._writing() as db:
            self._live(db, ids, writer, across, f"changed ({action})")
            return tables.append(db, action, ids, payload, actor=_actor(actor), at=self._clock())

    def _live(
        self, db: sqlite3.Connection, ids: Sequence[str], writer: Scope | None, across: bool, what: str
    ) -> list[Kept]:
        """The entries, which must be live and the writer's. Of what a writer may not see not even that it is there is
        told."""
        found = tables.kept_many(db, ids)
        for name in ids:
            kept = found.get(name)
            if kept is None or not (writer is None or across or writer.may_read(kept.entry.scope)):
                raise ConfigError(f"there is no entry {name!r:.60} in {self.path}")
            if not kept.live:
                raise ConfigError(f"the entry {name} is not live any more: {kept.reason or 'it was retired'}")
            _require_scope(kept.entry.scope, writer, across, what)
        return [found[name] for name in ids]

    def undo(self, event: int | str | Event, *, actor: str) -> Event:
        """Take back a write, whichever it is: an event, its place or its id. An undo can be undone too. Raises
        StoreError where there is no such event, ConfigError for one that is taken back already or wrote nothing."""
        which = event.seq if isinstance(event, Event) else event
        if not isinstance(which, int | str) or isinstance(which, bool):
            raise ConfigError(f"undo takes an event, its place (a number) or its id; got {which!r:.60}")
        with self._writing() as db:
            target = tables.event_at(db, which)
            if target.undone:
                raise ConfigError(
                    f"event {target.seq} ({target.action}) is undone already; undo its undo to bring it back"
                )
            if target.action == "refuse":
                raise ConfigError(f"event {target.seq} is a refusal: it wrote nothing that could be undone")
            done = tables.undo(db, target, actor=_actor(actor), at=self._clock())
            self._bound(db, self._clock())
            return done

    # ---------------------------------------------------------------------------------------------------------- bounds

    def enforce(self, policy: Policy, *, actor: str, now: float | None = None) -> dict[str, str]:
        """Retire what a policy would forget: ``policy(entries, effects, now)`` gives ids, or reasons by id. One
        transaction; what was retired, with the reasons."""
        when = self._clock() if now is None else now
        with self._writing() as db:
            return self._enforce(db, policy, when, _actor(actor))

    def _enforce(self, db: sqlite3.Connection, policy: Policy, now: float, actor: str) -> dict[str, str]:
        live = {kept.entry.id: kept for kept in tables.all_kept(db, live_only=True)}
        measured = {name: kept.effect for name, kept in live.items() if kept.effect != Effect()}
        chosen = policy([kept.entry for kept in live.values()], measured, now)
        if not isinstance(chosen, Mapping):
            told = list(chosen) if isinstance(chosen, Iterable) and not isinstance(chosen, str) else [chosen]
            chosen = {name if isinstance(name, str) else repr(name): "the policy would forget it" for name in told}
        why = {name: _text(reason, "a policy's reason") for name, reason in chosen.items()}
        if unknown := sorted(set(why) - set(live)):
            raise ConfigError(
                f"the policy would retire {unknown[0]:.60}, which is no live entry of this memory; a policy gives "
                "entry ids, or a mapping of ids to reasons"
            )
        if why:
            tables.append(db, "retire", why, {"reasons": why}, actor=actor, at=now)
        return why

    def _bound(self, db: sqlite3.Connection, now: float) -> None:
        if self.budget is None or tables.count_live(db) <= self.budget.entries:
            return
        from twoclock.memory.eviction import evict

        least, priors = max(1, int(self.budget.entries * (1.0 - self.budget.slack))), self._priors(db)
        self._enforce(db, lambda entries, effects, when: evict(entries, effects, when, least, priors), now, "budget")

    # -------------------------------------------------------------------------------------------------------- reading

    def get(self, entry_id: str, *, scope: Scope | None = None) -> Entry | None:
        """An entry, retired or not; None where there is none, or the reader may not see it. ``scope`` None is the
        owner of the file, who may see all; so everywhere but in :meth:`search` and :meth:`read`."""
        state = self.state(entry_id, scope=scope)
        return None if state is None else state.entry

    def state(self, entry_id: str, *, scope: Scope | None = None) -> Kept | None:
        """What is known of an entry: whether it is live, why not, how often it was written, its measured effect."""
        with self._reading() as db:
            kept: Kept | None = tables.kept(db, entry_id)
        return kept if kept and (scope is None or scope.may_read(kept.entry.scope)) else None

    def entries(
        self,
        *,
        scope: Scope | None = None,
        kinds: Collection[Kind] | None = None,
        containing: str | None = None,
        include_retired: bool = False,
    ) -> list[Entry]:
        """Entries by age: those with all words of ``containing`` in key or text, expired and quarantined ones too."""
        match = None
        if containing is not None:
            words = [word for word in _text(containing, "containing").split() if words_of(word)]
            if not words:
                raise ConfigError(f"containing={containing!r} has no word in it")
            # Quoted, so that no text is taken for a query's syntax.
            match = " ".join('"' + word.replace('"', '""').replace("\0", " ") + '"' for word in words)
        require_kinds(kinds)
        chosen = None if kinds is None else list(kinds)
        with self._reading() as db:
            found = tables.all_kept(db, live_only=not include_retired, reader=scope, kinds=chosen, match=match)
            return [kept.entry for kept in found]

    def effects(self) -> dict[str, Effect]:
        """What was measured of live entries, by id; those that nobody measured are left out."""
        with self._reading() as db:
            kept = list(tables.all_kept(db, live_only=True))
        return {one.entry.id: one.effect for one in kept if one.effect != Effect()}

    def priors(self) -> dict[str, Prior]:
        """How effects lie among the entries of each one's kind (:func:`twoclock.memory.effects.pool_priors`), by id, of
        live entries and all that were ever measured: what was dropped for doing nothing tells of the next like it."""
        with self._reading() as db:
            return self._priors(db)

    def _priors(self, db: sqlite3.Connection) -> dict[str, Prior]:
        known = {kept.entry.id: kept for kept in tables.all_kept(db, live_only=True, measured=True)}
        return pool_priors((k.entry for k in known.values()), {name: k.effect for name, k in known.items()})

    def history(self, entry_id: str) -> list[Event]:
        """Everything that was done to an entry, undone writes and undos too, oldest first."""
        with self._reading() as db:
            return tables.events(db, entry=entry_id)

    def versions(self, entry_id: str) -> list[Entry]:
        """The entry and what it replaced before, newest first."""
        found: list[Entry] = []
        with self._reading() as db:
            name: str | None = entry_id
            while name is not None and (kept := tables.kept(db, name)) is not None:
                found.append(kept.entry)
                name = kept.entry.replaces
        return found

    def events(self, *, after: int = 0) -> list[Event]:
        """The whole history, or what came after one event, oldest first."""
        with self._reading() as db:
            return tables.events(db, after=after)

    def search(
        self,
        query: str,
        *,
        scope: Scope | None = None,
        k: int = 5,
        kinds: Collection[Kind] | None = None,
        now: float | None = None,
        candidates: int = 100,
    ) -> list[Hit]:
        """The ``k`` best entries that a reader of ``scope`` (None: of nobody's, who sees what is open to all) may see,
        best first. What is ranked, and errors: :meth:`twoclock.memory.index.Index.search`."""
        when = self._clock() if now is None else now
        asked: dict[str, Any] = {"scope": scope or Scope(), "k": k, "kinds": kinds, "now": when}
        with self._lock:
            while True:
                with self._reading() as db:
                    if not (missing := self._index.refresh(db)):
                        found = self._index.search(query, candidates=candidates, **asked)
                        entries = tables.entries(db, [one.id for one in found])
                        break
                self._embed(missing)
        return [
            Hit(entry=entries[one.id], score=one.score, similarity=one.similarity, lexical=one.lexical) for one in found
        ]

    def read(
        self,
        query: str,
        *,
        scope: Scope | None = None,
        k: int = 5,
        kinds: Collection[Kind] | None = None,
        hold_out: float = 0.1,
        choose: Callable[[Sequence[Hit]], Mapping[str, float]] | None = None,
        seed: int | None = None,
        now: float | None = None,
        candidates: int = 100,
    ) -> Reading:
        """:meth:`search`, with each found entry held out by a coin of its own (heads with probability ``hold_out``).

        What is held out is not replaced by the next best: the effect that is measured is that of showing the entry or
        not. The coins follow from ``seed``, the number of reads so far and the entry; None draws a seed. The reading is
        kept, so that any process may report its outcome. ``choose`` gives each hit that may be shown a ``hold_out`` of
        its own (:meth:`twoclock.memory.showing.Showing.hold_outs`); what it does not name is left out and not credited.
        """
        if not isinstance(hold_out, int | float) or not 0.0 <= hold_out <= 1.0:
            raise ConfigError(f"hold_out is a probability in [0, 1]; got {hold_out!r}")
        drawn = secrets.randbits(62) if seed is None else seed
        reader = scope or Scope()
        hits = self.search(query, scope=reader, k=k, kinds=kinds, now=now, candidates=candidates)
        chances = dict.fromkeys((hit.entry.id for hit in hits), hold_out) if choose is None else dict(choose(hits))
        if not all(0.0 <= chance <= 1.0 for chance in chances.values()):
            raise ConfigError(f"choose gives probabilities in [0, 1]; got {chances!r:.200}")
        hits = [hit for hit in hits if hit.entry.id in chances]
        with self._writing() as db:
            number = tables.next_reading(db)
            out = {
                hit.entry.id
                for hit in hits
                if child_rng("memory hold-out", drawn, number, hit.entry.id).random() < chances[hit.entry.id]
            }
            reading = Reading(
                id=secrets.token_hex(8),
                query=query,
                shown=tuple(hit for hit in hits if hit.entry.id not in out),
                held=tuple(hit for hit in hits if hit.entry.id in out),
            )
            tables.add_reading(
                db,
                tables.ReadingRow(
                    id=reading.id,
                    at=self._clock(),
                    query=query,
                    scope=scope_to_json(reader),
                    shown=tuple(hit.entry.id for hit in reading.shown),
                    held=tuple(hit.entry.id for hit in reading.held),
                ),
            )
        return reading

    def outcome(self, reading: Reading | str, reward: float, *, baseline: float = 0.0, actor: str = "outcome") -> Event:
        """What an episode that was shown a reading earned: credits ``reward − baseline`` to each entry that it showed
        and to each that it held out. Raises ConfigError for an unknown reading, one that is credited already, and a
        reward that is no finite number."""
        reading_id = reading.id if isinstance(reading, Reading) else reading
        value = require_outcome(require_outcome(reward) - require_outcome(baseline))
        with self._writing() as db:
            row = tables.reading(db, reading_id) if isinstance(reading_id, str) else None
            if row is None:
                raise ConfigError(f"there is no reading {reading_id!r:.60} in {self.path}; read() gives its id")
            if (seq := tables.credited_by(db, reading_id)) is not None:
                raise ConfigError(f"the reading {reading_id} was credited by event {seq}; undo that to credit it anew")
            payload = {"reading": row.id, "value": value, "shown": list(row.shown), "held": list(row.held)}
            event = tables.append(db, "effect", [*row.shown, *row.held], payload, actor=_actor(actor), at=self._clock())
            tables.add_outcome(db, row.id, event.seq)
            return event

    # -------------------------------------------------------------------------------------------------------- episodes

    def add_episode(self, name: str, payload: Mapping[str, Any] | Sequence[Any]) -> str:
        """Keep a raw episode, which never changes, under the name that provenance gives it; its content hash. Raises
        ConfigError for what is no plain JSON, and where another episode has the name."""
        if not _text(name, "the episode's name"):
            raise ConfigError("an episode needs a name: provenance refers to it by that")
        try:
            plain = canonical_json(payload)
            plain.encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"the episode {name!r} must be plain JSON: {error}") from None
        digest = content_hash(plain)
        with self._writing() as db:
            there = tables.episode(db, name)
            if there is None:
                tables.add_episode(db, name, plain, digest, self._clock())
            elif there["hash"] != digest:
                raise ConfigError(
                    f"there is another episode named {name!r}; episodes never change: choose another name"
                )
        return digest

    def episode(self, name: str) -> Any:
        """A raw episode. Raises StoreError where there is none."""
        with self._reading() as db:
            row = tables.episode(db, name)
        if row is None:
            raise StoreError(f"there is no episode {name!r} in {self.path}")
        return json.loads(row["payload"])

    # --------------------------------------------------------------------------------------------------------- vectors

    def _embed(self, keys: Mapping[str, str]) -> None:
        """Make and keep the vectors of keys, some at a time; the file is not held while the encoder works."""
        for start in range(0, len(keys), EMBED_ROWS):
            vectors = self._index.encode(dict(list(keys.items())[start : start + EMBED_ROWS]))
            with self._writing() as db:
                self._index.keep(db, vectors)
            self._index.supply(vectors)

    def reembed(self) -> int:
        """Embed every live key with this store's encoder and drop the vectors of another; how many were made. Others
        go on with theirs until it is done."""
        if self.encoder is None:
            raise ConfigError("this store was opened without an encoder; open it with the one to embed with")
        with self._reading() as db:
            missing = tables.unembedded(db, self.encoder.id)
        for start in range(0, len(missing), EMBED_ROWS):
            vectors = self._index.encode(dict(missing[start : start + EMBED_ROWS]))
            with self._writing() as db:
                tables.add_vectors(db, self.encoder.id, vectors)
        with self._writing() as db:
            self._index.adopt(db)
            self._index.forget()
        return len(missing)

    # ------------------------------------------------------------------------------------------------------- integrity

    def at(self, event: int | str | Event) -> Bank:
        """The memory as it was right after an event: live entries and their effects, as a value to read and search."""
        which = event.seq if isinstance(event, Event) else event
        with self._reading() as db:
            seq = tables.event_at(db, which).seq if which != 0 else 0
            past = tables.events(db, upto=seq)
        kept = [one for one in folded(past).values() if one.live]
        kept.sort(key=lambda one: (one.entry.created, one.entry.id))
        effects = {one.entry.id: one.effect for one in kept if one.effect != Effect()}
        return Bank(tuple(one.entry for one in kept), effects)

    def check(self) -> list[str]:
        """What is wrong with the file, as sentences; none where all is well. Reads all of it: every event must be what
        its id says and follow the one that it did, the derived tables what the events make of them, and every episode
        what its hash says."""
        with self._writing() as db:
            found: list[str] = tables.damage(db)
            for seq in tables.broken_links(db):
                found.append(f"event {seq} is not what was written: restore the file from a copy")
            expected = folded(tables.events(db))
            actual = {kept.entry.id: kept for kept in tables.all_kept(db, live_only=False)}
            episodes = tables.episodes(db)
        for name in sorted(expected.keys() | actual.keys()):
            if expected.get(name) != actual.get(name):
                found.append(f"the entry {name} is not what its events make of it; type store.rebuild()")
        found += [
            f"the episode {row['name']!r} is not what its hash says"
            for row in episodes
            if content_hash(row["payload"]) != row["hash"]
        ]
        return found

    def rebuild(self) -> None:
        """Make everything that follows from the events anew; nothing of the history changes."""
        with self._writing() as db:
            tables.rebuild(db)
            self._index.forget()

    def fingerprint(self) -> str:
        """A hash of all entries, live or not, with their effects: equal where the same writes are in force."""
        with self._reading() as db:
            kept = sorted(tables.all_kept(db, live_only=False), key=lambda one: one.entry.id)
        told = [
            [entry_to_json(k.entry), k.live, k.reason, k.replaced_by, k.adds, effect_to_json(k.effect)] for k in kept
        ]
        return content_hash(told)

    def stats(self) -> dict[str, Any]:
        """Counts by ``kind``, ``trust``, ``standing``, ``action``; ``rows`` of tables, ``duplicates``, ``bytes``."""
        with self._reading() as db:
            counts: dict[str, Any] = dict(tables.counts(db))
        files = [self.path.with_name(self.path.name + tail) for tail in ("", "-wal")]
        return {**counts, "bytes": sum(file.stat().st_size for file in files if file.exists())}


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file the path names now; None where there is none."""
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_dev, told.st_ino


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")


def _require_scope(scope: Scope, writer: Scope | None, across: bool, what: str) -> None:
    if writer is not None and writer != scope and not across:
        raise ConfigError(
            f"an entry of scope {scope_to_json(scope)} would be {what} by {scope_to_json(writer)}; give the entry the "
            "writer's scope, or say across=True where this is meant"
        )


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{what} is a text; got {value!r:.60}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"{what} has half a character in it (a lone surrogate): {value!r:.60}") from None
    return value


def _actor(actor: Any) -> str:
    if not _text(actor, "actor"):
        raise ConfigError("say who writes: actor='...'")
    return str(actor)
