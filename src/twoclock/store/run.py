"""A run is a folder: :class:`RunStore` makes it, guards who writes, and is what the rest of the library talks to.

::

    RUN/ledger.sqlite      the history (WAL mode): see schema.py
    RUN/blobs/ab/<sha256>  the channels' states, by the hash of their content
    RUN/config.toml        the configuration as it was given
    RUN/config.json        the same, resolved
    RUN/environment.json   Python, packages, this package's code, the machine
    RUN/run.lock           who is writing

A process that is killed leaves the last committed round: a blob is renamed into place when it is whole, a round is one
transaction, and the kernel gives the lock back.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from twoclock.errors import ConfigError, StoreError, unknown_name
from twoclock.hashing import short
from twoclock.store import audit, schema, thinning
from twoclock.store.blobs import Blobs
from twoclock.store.environment import describe_environment
from twoclock.store.folder import (
    BLOBS,
    CONFIG,
    ENVIRONMENT,
    LEDGER,
    LOCK,
    lay_out,
    migrate,
    read_json,
    refuse_used,
    require_run,
)
from twoclock.store.ledger import Ledger, head_of, snapshot_at
from twoclock.store.lock import RunLock
from twoclock.store.rollouts import KeptRollout, RolloutRow
from twoclock.store.rows import RoundRow, dumps
from twoclock.types import Conditioning, Cost, DriftRecord, Evaluation, LedgerEntry, RoundRecord, Snapshot

__all__ = ["RunStore"]


class RunStore:
    """One run's folder. Made by :meth:`create` or :meth:`open`; close it, or use it in a ``with``.

    Reading needs no lock, works while another process writes, and may be done from several threads. Every method that
    meets a damaged file raises StoreError and names it.
    """

    def __init__(self, path: Path, lock: RunLock | None, config: dict[str, Any], environment: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        """The resolved configuration."""
        self.environment = environment
        """What the run was made with; see :func:`~twoclock.store.environment.describe_environment`."""
        self._lock = lock
        self._blobs = Blobs(path / BLOBS)
        self._ledger = Ledger(path / LEDGER)
        self._idle_since = time.time()
        self._thinned: set[str] = set()
        """Kept by the writer alone: what it may not take for a state that is there."""

    # ------------------------------------------------------------------------------------------------ life of a handle

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        config: Mapping[str, Any],
        config_text: str = "",
        environment: Mapping[str, Any] | None = None,
    ) -> RunStore:
        """Make the folder of a new run and take its writer lock.

        ``environment`` is added to what :func:`~twoclock.store.environment.describe_environment` finds. A folder that
        holds anything is refused with StoreError, unless all it holds is a run that was interrupted before
        :meth:`begin` and so has no results to lose.
        """
        path = Path(path)
        files = {
            CONFIG: dumps(dict(config), "the configuration"),
            ENVIRONMENT: dumps({**describe_environment(), **(environment or {})}, "the environment"),
        }
        refuse_used(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the run folder {path}: {error.strerror or error}") from error
        lock = RunLock(path / LOCK)
        try:
            refuse_used(path)  # once more: another process may have begun the run before this one had the lock
            lay_out(path, files, config_text)
        except (sqlite3.Error, OSError) as error:
            lock.release()
            raise StoreError(f"cannot make the run {path}: {error}") from error
        except BaseException:
            lock.release()
            raise
        return cls(path, lock, json.loads(files[CONFIG]), json.loads(files[ENVIRONMENT]))

    @classmethod
    def open(cls, path: Path, *, write: bool = False) -> RunStore:
        """Open a run that exists; ``write=True`` takes the writer lock (RunLockedError when another holds it)."""
        path = Path(path)
        require_run(path)
        lock = RunLock(path / LOCK) if write else None
        try:
            ledger = Ledger(path / LEDGER)
            if ledger.check(thorough=write) < schema.LATEST:
                migrate(path, lock)
            store = cls(path, lock, read_json(path / CONFIG), read_json(path / ENVIRONMENT))
            if write:
                store._tidy()
            return store
        except BaseException:
            if lock:
                lock.release()
            raise

    def close(self) -> None:
        """Give the lock back. Reading goes on working; a second call does nothing."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tidy(self) -> None:
        """Finish what a killed writer left: half-written files, and thinned states whose blobs are still there."""
        self._blobs.clean()
        with self._ledger.reading() as db:
            self._thinned = thinning.recorded(db)
        for state in self._thinned:
            self._blobs.delete(state)

    # -------------------------------------------------------------------------------------------------------- writing

    def put_blob(self, data: bytes) -> str:
        """Store bytes; returns their hash. The same bytes are stored once; those of a thinned state bring it back."""
        self._require_writer("a blob")
        state = self._blobs.put(data)
        if state in self._thinned:  # the blob first: a kill in between leaves a thinned state, not a missing one
            with self._ledger.writing() as db:
                thinning.restored(db, state)
            self._thinned.discard(state)
        return state

    def begin(
        self,
        snapshot: Snapshot,
        entries: Sequence[LedgerEntry],
        evaluations: Sequence[Evaluation] = (),
        drift: Sequence[DriftRecord] = (),
        conditionings: Mapping[str, Conditioning] | None = None,
    ) -> None:
        """Round 0: the channels' first states, and what was measured on the untouched base."""
        self._require_writer("the start of the run")
        self._require_blobs(snapshot)
        if not 0 <= snapshot.round < snapshot.next_round:
            raise StoreError(
                f"a run begins with a snapshot of a round before the next one; got round {snapshot.round} with "
                f"next_round {snapshot.next_round}"
            )
        self._ledger.write_begin(snapshot, entries, evaluations, drift, conditionings or {})
        self._idle_since = time.time()

    def commit_round(self, record: RoundRecord) -> None:
        """Append one round, all of it or nothing; its snapshot becomes the head."""
        self._require_writer(f"round {record.round}")
        self._require_blobs(record.snapshot)
        if (record.snapshot.round, record.snapshot.next_round) != (record.round, record.round + 1):
            raise StoreError(
                f"the snapshot of round {record.round} must have round={record.round} and next_round="
                f"{record.round + 1}; got {record.snapshot.round} and {record.snapshot.next_round}"
            )
        self._ledger.write_round(record, self._idle_since)
        self._idle_since = time.time()

    def append_rollback(self, to_round: int, *, channels: Collection[str] | None = None, reason: str) -> Snapshot:
        """Make the states that round ``to_round`` left behind live again, for these channels (None: all); 0 is the
        start. Returns the new head.

        Nothing is erased and rounds keep their numbers, so a rollback is itself taken back by one to a later round.
        One ledger entry a channel that changes; where none does, nothing is written. StoreError for a round or channel
        that the run does not have, and for a state that was thinned or whose blob is missing or damaged.
        """
        self._require_writer("a rollback")
        path = self._ledger.path

        def make(db: sqlite3.Connection, head: Snapshot) -> tuple[Snapshot, list[LedgerEntry]]:
            target = snapshot_at(db, path, to_round).states
            wanted = set(head.states if channels is None else channels)
            for name in sorted(wanted):
                if name not in head.states or name not in target:
                    raise StoreError(unknown_name("channel", name, target.keys() & head.states.keys()))
            changed = sorted(name for name in wanted if head.states[name] != target[name])
            for name in changed:
                if thinned := thinning.refusal(db, self.path, target[name], to_round=to_round, channels=wanted):
                    raise thinned
                self._blobs.get(target[name])
            states = {**head.states, **{name: target[name] for name in changed}}
            cause = f"rollback to round {to_round}"
            snapshot = Snapshot(
                # Channels that stayed keep later rounds in the snapshot.
                round=to_round if states == target else head.round,
                states=states,
                next_round=head.next_round,
                cause=cause if channels is None else f"{cause} of {', '.join(sorted(wanted))}",
            )
            return snapshot, [_rollback_entry(db, head, name, target[name], cause, reason) for name in changed]

        return self._ledger.write_between("rollback", make)

    def append_consolidation(
        self, entries: Sequence[LedgerEntry], states: Mapping[str, str], *, expected: Snapshot, cause: str
    ) -> Snapshot:
        """Append a consolidation: its entries, and ``states`` (blob hashes by channel) live in the place of what these
        channels have, all of it or nothing. Without states the entries alone: one that was refused. Returns the head.

        It stands between rounds: round and phase of the entries are set here. ``expected`` is the head that it was
        worked out on; StoreError where another one is live now, for an unknown channel, and for a state without a blob.
        """
        self._require_writer("a consolidation")

        def make(db: sqlite3.Connection, head: Snapshot) -> tuple[Snapshot, list[LedgerEntry]]:
            if dict(head.states) != dict(expected.states):
                raise StoreError(f"the states of {self.path} have changed since it began; start it again")
            if unknown := [unknown_name("channel", name, head.states) for name in states if name not in head.states]:
                raise StoreError("; ".join(unknown))
            snapshot = replace(head, states={**head.states, **states}, cause=cause if states else head.cause)
            self._require_blobs(snapshot)
            return snapshot, [_between_rounds(db, head, entry) for entry in entries]

        for entry in entries:
            if entry.offered and entry.offered not in self._blobs:
                raise StoreError(f"the state {short(entry.offered)} that was offered has no blob; put the blob first")
        return self._ledger.write_between("consolidate", make)

    def thin(self, channel: str, keep: int) -> list[str]:
        """Delete the blobs of old states of ``channel``; returns their hashes, oldest first.

        Kept are the newest ``keep`` distinct states that were live, and of the proposals refused since the oldest of
        these the newest ``keep``. Never deleted: what is live, the state of the start and of each phase's last round,
        and what another channel has too. The ledger keeps every entry. To be called after every round: the work is
        that of the new states, not of the history. StoreError for an unknown channel, ConfigError for ``keep < 1``.
        """
        self._require_writer(f"the thinning of '{channel}'")
        if keep < 1:
            raise ConfigError(f"keep = {keep}: expected at least 1 state of channel '{channel}'")
        with self._ledger.reading() as db:
            known = head_of(db, self._ledger.path).states
            if channel not in known:
                raise StoreError(unknown_name("channel", channel, known))
            chosen = thinning.choose(db, channel, keep)
        if chosen:
            with self._ledger.writing() as db:
                thinning.record(db, channel, chosen)
            self._thinned |= chosen.keys()
        for state in chosen:
            self._blobs.delete(state)
        return list(chosen)

    def record_evaluations(
        self,
        evaluations: Sequence[Evaluation],
        drift: Sequence[DriftRecord] = (),
        conditionings: Mapping[str, Conditioning] | None = None,
    ) -> None:
        """Append measurements made outside a round. A handle that is open for reading takes the lock for the call."""
        with self._locked():
            self._ledger.write_evaluations(evaluations, drift, conditionings or {})

    # -------------------------------------------------------------------------------------------------------- reading

    def get_blob(self, digest: str) -> bytes:
        """The bytes of that hash, checked against it; StoreError when they are damaged, missing, or were thinned: then
        it names the round they came from and the nearest ones that were kept."""
        try:
            return self._blobs.get(digest)
        except StoreError:
            with self._ledger.reading() as db:
                thinned = thinning.refusal(db, self.path, digest)
            if thinned is None:
                raise
            raise thinned from None

    def head(self) -> Snapshot:
        """The live snapshot."""
        return self._ledger.head()

    def snapshot_at(self, round: int) -> Snapshot:
        """What was live when that round had been committed (0: the start). A rollback made later does not change it."""
        return self._ledger.snapshot_at(round)

    def rounds(self) -> list[RoundRow]:
        """The committed rounds, in order."""
        return self._ledger.rounds()

    def entries(
        self, *, channel: str | None = None, round: int | None = None, action: str | None = None
    ) -> list[LedgerEntry]:
        """The ledger, oldest first. A rollback bears the number of the last round before it."""
        return self._ledger.entries(channel, round, action)

    def evaluations(self, purpose: str | None = None) -> list[Evaluation]:
        """In the order of recording."""
        return self._ledger.evaluations(purpose)

    def drift(self) -> list[DriftRecord]:
        """In the order of recording."""
        return self._ledger.drift()

    def rollouts(self, round: int | None = None) -> Iterator[RolloutRow]:
        """What one round, or all, learned from, in the order it was graded; read a page at a time. What a search
        sampled for later rounds is not among it, until a round takes it up (``age`` above 0)."""
        return self._ledger.rollouts(round)

    def kept_rollouts(self, task: str, item_ids: Collection[str], *, since: int) -> list[KeptRollout]:
        """What searches sampled on these items of a task in rounds ``since`` and later, whole; oldest round first,
        then as it was recorded. What no tokens were kept of, in runs made by older versions, is left out."""
        return self._ledger.kept_rollouts(task, item_ids, since)

    def conditionings(self) -> dict[str, dict[str, Any]]:
        """By id: ``system`` (text or None), ``exemplars`` (pairs of user and assistant), ``delta`` (its id or None)."""
        return self._ledger.conditionings()

    def digest(self) -> str:
        """One hash over everything in the ledger but wall clock: equal for two runs of the same numbers."""
        return audit.digest(self._ledger)

    def verify(self) -> list[str]:
        """Everything wrong with the run, a sentence each; empty when it is whole."""
        return audit.verify(self._ledger, self._blobs)

    # -------------------------------------------------------------------------------------------------------- guarding

    def _require_writer(self, what: str) -> None:
        if self._lock is None or not self._lock.held:  # a forked child's handle has lost it
            raise StoreError(f"{what} cannot be written: the run {self.path} is open for reading; open it to write")

    def _require_blobs(self, snapshot: Snapshot) -> None:
        for channel, state in snapshot.states.items():
            if state not in self._blobs or state in self._thinned:
                raise StoreError(
                    f"the snapshot of round {snapshot.round} names the state {short(state) or 'nothing'} of channel "
                    f"'{channel}', which has no blob; put the blob first"
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock is not None and self._lock.held:
            yield
            return
        lock = RunLock(self.path / LOCK)
        try:
            yield
        finally:
            lock.release()


def _between_rounds(db: sqlite3.Connection, head: Snapshot, entry: LedgerEntry) -> LedgerEntry:
    """The entry with the number of the last round before it."""
    last = db.execute("SELECT phase, task FROM rounds ORDER BY round DESC LIMIT 1").fetchone()
    return replace(
        entry,
        round=head.next_round - 1,
        phase=last["phase"] if last else 0,
        task=entry.task or (last["task"] if last else ""),
    )


def _rollback_entry(
    db: sqlite3.Connection, head: Snapshot, channel: str, after: str, cause: str, reason: str
) -> LedgerEntry:
    known = db.execute("SELECT timescale FROM entries WHERE channel = ? ORDER BY seq LIMIT 1", (channel,)).fetchone()
    last = db.execute("SELECT phase, task FROM rounds ORDER BY round DESC LIMIT 1").fetchone()
    return LedgerEntry(
        round=head.next_round - 1,
        phase=last["phase"] if last else 0,
        task=last["task"] if last else "",
        channel=channel,
        timescale=known["timescale"] if known else "",
        action="rollback",
        before=head.states[channel],
        after=after,
        cause=cause,
        reason=reason,
        cost=Cost(),
    )
