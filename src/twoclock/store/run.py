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
from pathlib import Path
from types import TracebackType
from typing import Any

from twoclock.errors import StoreError, unknown_name
from twoclock.hashing import short
from twoclock.store import audit, schema
from twoclock.store.blobs import Blobs, sync_folder, write_atomically
from twoclock.store.environment import describe_environment
from twoclock.store.ledger import Ledger, snapshot_at
from twoclock.store.lock import RunLock
from twoclock.store.rows import RolloutRow, RoundRow, dumps
from twoclock.types import Conditioning, Cost, DriftRecord, Evaluation, LedgerEntry, RoundRecord, Snapshot

__all__ = ["RunStore"]

LEDGER, CONFIG, CONFIG_TEXT, ENVIRONMENT, LOCK, BLOBS = (
    "ledger.sqlite", "config.json", "config.toml", "environment.json", "run.lock", "blobs",
)  # fmt: skip
OURS = {LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", CONFIG, CONFIG_TEXT, ENVIRONMENT, LOCK, BLOBS}


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
        _refuse_used(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the run folder {path}: {error.strerror or error}") from error
        lock = RunLock(path / LOCK)
        try:
            _refuse_used(path)  # once more: another process may have begun the run before this one had the lock
            _lay_out(path, files, config_text)
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
        _require_run(path)
        lock = RunLock(path / LOCK) if write else None
        try:
            ledger = Ledger(path / LEDGER)
            if ledger.check(thorough=write) < schema.LATEST:
                _migrate(path, lock)
            store = cls(path, lock, _read_json(path / CONFIG), _read_json(path / ENVIRONMENT))
            if write:
                store._blobs.clean()
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

    # -------------------------------------------------------------------------------------------------------- writing

    def put_blob(self, data: bytes) -> str:
        """Store bytes; returns their hash. The same bytes are stored once."""
        self._require_writer("a blob")
        return self._blobs.put(data)

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
        that the run does not have, and for a state whose blob is missing or damaged.
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

        return self._ledger.write_rollback(make)

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
        """The bytes of that hash, checked against it."""
        return self._blobs.get(digest)

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
        """The rollouts of one round, or of all, in the order they were graded; read a page at a time."""
        return self._ledger.rollouts(round)

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
            if state not in self._blobs:
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


def _lay_out(path: Path, files: Mapping[str, str], config_text: str) -> None:
    """Fill a new run's folder. The ledger comes last, and whole: a folder that has one has everything."""
    for name in (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm"):
        (path / name).unlink(missing_ok=True)
    blobs = Blobs(path / BLOBS)
    blobs.temporary.mkdir(parents=True, exist_ok=True)
    blobs.clean()
    contents = {name: json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n" for name, text in files.items()}
    if config_text:
        contents[CONFIG_TEXT] = config_text
    for name, text in contents.items():
        write_atomically(path / name, text.encode("utf-8", "backslashreplace"), blobs.temporary / name)
    unfinished = blobs.temporary / LEDGER
    schema.create(unfinished)
    unfinished.rename(path / LEDGER)
    sync_folder(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing from the run; restore it from a copy") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); restore it from a copy of the run") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} must hold a JSON object; it holds a {type(value).__name__}")
    return value


def _require_run(path: Path) -> None:
    if not path.exists():
        raise StoreError(f"there is no run at {path}; check the path, or start one: twoclock run CONFIG.toml")
    if not path.is_dir():
        raise StoreError(f"{path} is a file; a run is a folder that holds a {LEDGER}")
    if not (path / LEDGER).is_file():
        raise StoreError(f"the folder {path} is not a run: it holds no {LEDGER}")


def _refuse_used(path: Path) -> None:
    """StoreError unless the folder is absent, empty, or holds only a run that never began."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise StoreError(f"{path} is a file; give the name of a folder for the run")
    found = {entry.name for entry in path.iterdir()}
    if not found:
        return
    if LEDGER in found and not _never_began(path / LEDGER):
        raise StoreError(
            f"there is a run in {path} already; go on with it: twoclock resume {path}; or name another folder"
        )
    # The lock is the first file of a run: without it, a config.toml or blobs in here is somebody else's.
    if not found <= OURS or LOCK not in found:
        strange = sorted(found - OURS) or sorted(found)
        raise StoreError(
            f"the folder {path} is not empty (it holds {', '.join(strange[:3])}{', …' if len(strange) > 3 else ''}); "
            "a new run needs an empty or a new folder: name another one"
        )


def _never_began(ledger: Path) -> bool:
    try:
        return schema.check(ledger) == schema.LATEST and not Ledger(ledger).has_begun()
    except (sqlite3.Error, StoreError):
        return False  # damaged is not empty: nothing here may be thrown away


def _migrate(path: Path, lock: RunLock | None) -> None:
    """Bring an older ledger up to date; a reader takes the lock for it."""
    own = None if lock else RunLock(path / LOCK)
    try:
        schema.migrate(path / LEDGER)
    except sqlite3.Error as error:
        raise StoreError(f"the ledger {path / LEDGER} cannot be brought up to date: {error}") from error
    finally:
        if own:
            own.release()
