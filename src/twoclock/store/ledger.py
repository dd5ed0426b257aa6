"""The ledger of one run: every read and write of ``ledger.sqlite``, in typed records.

Append-only: nothing that was written is changed; only a record of thinned states (thinning.py) may be taken back. Each
write is one transaction; SQLite's own errors leave this module as StoreError. Who may write, and when, is decided by
:mod:`twoclock.store.run`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from twoclock.errors import StoreError
from twoclock.store import rollouts, rows, schema
from twoclock.store.rollouts import KeptRollout, RolloutRow
from twoclock.store.rows import RoundRow
from twoclock.types import (
    Conditioning,
    DriftRecord,
    Evaluation,
    Evidence,
    LedgerEntry,
    RoundRecord,
    Snapshot,
)

__all__ = ["Ledger"]

RecordT = TypeVar("RecordT")

PAGE_ROWS = 1000
"""Rollouts read at a time: a report over a long run never holds them all."""


def _insert(db: sqlite3.Connection, table: str, columns: str, values: Iterable[Sequence[Any]], verb: str = "") -> None:
    marks = ", ".join("?" for _ in columns.split(","))
    db.executemany(f"INSERT {verb} INTO {table} ({columns}) VALUES ({marks})", values)


class Ledger:
    """Reads and writes ``ledger.sqlite`` at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # -------------------------------------------------------------------------------------------------- transactions

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the ledger, also while a writer writes."""
        try:
            with schema.transaction(self.path, write=False) as db:
                yield db
        except sqlite3.Error as error:
            raise StoreError(
                f"the ledger {self.path} cannot be read ({error}); it is damaged or was cut off: restore it from a copy"
            ) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, all of it or nothing."""
        try:
            with schema.transaction(self.path, write=True) as db:
                yield db
        except (sqlite3.Error, OverflowError) as error:
            raise StoreError(
                f"the ledger {self.path} cannot be written ({error}); nothing of this write was kept, "
                "all that was committed before is intact"
            ) from error

    def check(self, *, thorough: bool) -> int:
        """The schema version; StoreError when the file cannot be used. ``thorough`` reads all of it."""
        try:
            version = schema.check(self.path)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the ledger {self.path} is no usable SQLite file ({error}); it is damaged or was cut off: "
                "restore it from a copy"
            ) from error
        if thorough:
            with self.reading() as db:
                found = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
            if found != ["ok"]:
                raise StoreError(f"the ledger {self.path} is damaged ({'; '.join(found)}): restore it from a copy")
        return version

    # -------------------------------------------------------------------------------------------------------- writing

    def write_begin(
        self,
        snapshot: Snapshot,
        entries: Sequence[LedgerEntry],
        evaluations: Iterable[Evaluation],
        drift: Iterable[DriftRecord],
        conditionings: Mapping[str, Conditioning],
    ) -> None:
        with self.writing() as db:
            if db.execute("SELECT 1 FROM snapshots LIMIT 1").fetchone():
                raise StoreError(f"the run {self.path.parent} has begun already; a run begins once")
            self._add(db, entries, evaluations, drift, conditionings)
            self._add_snapshot(db, "begin", snapshot)

    def write_round(self, record: RoundRecord, started: float) -> None:
        where = f"round {record.round}"
        with self.writing() as db:
            head = head_of(db, self.path)
            if record.round != head.next_round:
                raise StoreError(f"{where} cannot be committed: the next round of this run is {head.next_round}")
            values = (
                record.round, record.phase, rows.text(record.task), rows.metrics_json(record.metrics, where), started,
                time.time(),
            )  # fmt: skip
            _insert(db, "rounds", "round, phase, task, metrics, started, at", [values])
            self._add(db, record.entries, record.evaluations, record.drift, record.evaluated)
            if record.evidence is not None:
                self._add_rollouts(db, record.evidence, "round")
            if record.searched is not None:
                self._add_rollouts(db, record.searched, "search")
            self._add_snapshot(db, "round", record.snapshot)

    def write_between(
        self, kind: str, make: Callable[[sqlite3.Connection, Snapshot], tuple[Snapshot, Sequence[LedgerEntry]]]
    ) -> Snapshot:
        """Append what ``make`` says of the head, read in the same transaction; without entries nothing is written."""
        with self.writing() as db:
            head = head_of(db, self.path)
            snapshot, entries = make(db, head)
            if not entries:
                return head
            self._add(db, entries, (), (), {})
            self._add_snapshot(db, kind, snapshot)
            return snapshot

    def write_evaluations(
        self,
        evaluations: Iterable[Evaluation],
        drift: Iterable[DriftRecord],
        conditionings: Mapping[str, Conditioning],
    ) -> None:
        with self.writing() as db:
            self._add(db, (), evaluations, drift, conditionings)

    def _add(
        self,
        db: sqlite3.Connection,
        entries: Iterable[LedgerEntry],
        evaluations: Iterable[Evaluation],
        drift: Iterable[DriftRecord],
        conditionings: Mapping[str, Conditioning],
    ) -> None:
        at = time.time()
        _insert(
            db,
            "entries",
            "round, phase, task, channel, timescale, action, before, after, offered, cause, reason, cost, writes, "
            "metrics, at",
            (rows.entry_values(entry, at) for entry in entries),
        )
        _insert(
            db,
            "evaluations",
            "round, task, weights, prompt, item_ids, rewards, samples, conditioning_id, cost, purpose, at",
            (rows.evaluation_values(evaluation, at) for evaluation in evaluations),
        )
        _insert(
            db,
            "drift",
            "round, prompts, live_base, base_live, per_prompt_live_base, per_prompt_base_live, tokens, at",
            (rows.drift_values(record, at) for record in drift),
        )
        self._add_conditionings(db, conditionings)

    def _add_conditionings(self, db: sqlite3.Connection, conditionings: Mapping[str, Conditioning]) -> None:
        values = (rows.conditioning_values(key, conditioning) for key, conditioning in conditionings.items())
        _insert(
            db,
            "conditionings",
            "id, system, exemplars, delta, notes, recall, recalled, shifts, soft, mixture",
            values,
            "OR IGNORE",
        )

    def _add_rollouts(self, db: sqlite3.Connection, evidence: Evidence, purpose: str) -> None:
        sampled_under = {rollout.conditioning_id for rollout in evidence.rollouts}
        if purpose == "search" and (unlisted := sorted(sampled_under - evidence.conditionings.keys())):
            raise StoreError(
                f"the searched rollouts of round {evidence.round} were sampled under the conditioning {unlisted[0]}, "
                "which their evidence does not list; without it they could not be learned from"
            )
        self._add_conditionings(db, evidence.conditionings)
        items = (
            tuple(None if part is None else rows.text(part) for part in (evidence.task, i.id, i.prompt, i.reference))
            for i in (group.item for group in evidence.groups)
        )
        _insert(db, "items", "task, item_id, prompt, reference", items, "OR IGNORE")
        values = (rollouts.rollout_values(evidence, rollout, purpose) for rollout in evidence.rollouts)
        _insert(db, "rollouts", rollouts.COLUMNS, values)

    def _add_snapshot(self, db: sqlite3.Connection, kind: str, snapshot: Snapshot) -> None:
        seq = db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()[0]
        states = rows.dumps(dict(snapshot.states), "the snapshot's states")
        values = (kind, snapshot.round, states, snapshot.next_round, rows.text(snapshot.cause), seq, time.time())
        _insert(db, "snapshots", "kind, round, states, next_round, cause, entry_seq, at", [values])

    # -------------------------------------------------------------------------------------------------------- reading

    def has_begun(self) -> bool:
        with self.reading() as db:
            return db.execute("SELECT 1 FROM snapshots LIMIT 1").fetchone() is not None

    def head(self) -> Snapshot:
        with self.reading() as db:
            return head_of(db, self.path)

    def snapshot_at(self, round: int) -> Snapshot:
        with self.reading() as db:
            return snapshot_at(db, self.path, round)

    def rounds(self) -> list[RoundRow]:
        return self._all("SELECT * FROM rounds ORDER BY round", (), rows.round_of)

    def entries(self, channel: str | None, round: int | None, action: str | None) -> list[LedgerEntry]:
        wanted = {"channel": channel, "round": round, "action": action}
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given) or "1"
        return self._all(f"SELECT * FROM entries WHERE {where} ORDER BY seq", tuple(given.values()), rows.entry_of)

    def evaluations(self, purpose: str | None) -> list[Evaluation]:
        query = "SELECT * FROM evaluations WHERE ? IS NULL OR purpose = ? ORDER BY id"
        return self._all(query, (purpose, purpose), rows.evaluation_of)

    def drift(self) -> list[DriftRecord]:
        return self._all("SELECT * FROM drift ORDER BY id", (), rows.drift_of)

    def rollouts(self, round: int | None) -> Iterator[RolloutRow]:
        last = 0
        while True:
            with self.reading() as db:
                page = rollouts.rows_after(db, last, round, PAGE_ROWS)
            if not page:
                return
            yield from map(rollouts.rollout_of, page)
            last = page[-1]["id"]

    def kept_rollouts(self, task: str, item_ids: Collection[str], since: int) -> list[KeptRollout]:
        with self.reading() as db:
            return rollouts.kept(db, task, item_ids, since)

    def conditionings(self) -> dict[str, dict[str, Any]]:
        with self.reading() as db:
            found = db.execute("SELECT * FROM conditionings ORDER BY id").fetchall()
        return {row["id"]: rows.conditioning_of(row) for row in found}

    def _all(self, query: str, values: Sequence[Any], record_of: Callable[[sqlite3.Row], RecordT]) -> list[RecordT]:
        with self.reading() as db:
            return [record_of(row) for row in db.execute(query, values)]


def head_of(db: sqlite3.Connection, path: Path) -> Snapshot:
    """The live snapshot; StoreError where the run never began."""
    row = db.execute("SELECT * FROM snapshots ORDER BY id DESC LIMIT 1").fetchone()
    if row is None:
        raise StoreError(
            f"the run {path.parent} has no snapshot: it was interrupted before it began and holds no results; "
            "start it again with the command that made it"
        )
    return rows.snapshot_of(row)


def snapshot_at(db: sqlite3.Connection, path: Path, round: int) -> Snapshot:
    """What the round itself left behind; StoreError, with the rounds that there are, when it was never committed."""
    head = head_of(db, path)
    own = "SELECT * FROM snapshots WHERE round = ? AND kind IN ('begin', 'round') LIMIT 1"
    row = db.execute(own, (round,)).fetchone()
    if row is None:
        last = head.next_round - 1
        existing = "only round 0, the untouched start" if last == 0 else f"rounds 0 (the untouched start) to {last}"
        raise StoreError(f"there is no round {round} in the run {path.parent}; it has {existing}")
    return rows.snapshot_of(row)
