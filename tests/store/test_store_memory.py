"""What memory showed, in the ledger: rollouts and evaluations name it, and ledgers from before know of none."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from store_records import begin, conditioning, evaluation, make_run, rollout, round_record, searched

from twoclock.errors import StoreError
from twoclock.store import RunStore, schema
from twoclock.store.lock import RunLock
from twoclock.types import Conditioning, Delta, Evidence, Group, Item, Recall

TOLD = Conditioning(
    system="be brief",
    exemplars=(("1+1", "2"),),
    notes=("first note: ä", "a second\nof two lines"),
    recalled=("entry-1", "entry-2"),
    delta=Delta("weights-3", "lora", "base", None),
)
ASKS = Conditioning(recall=(Recall("cases-7", lambda item: TOLD), Recall("lessons-2", lambda item: TOLD)))


def evidence_under(number: int, told: Conditioning) -> Evidence:
    group = Group(
        item=Item(id="i", prompt="?"),
        rollouts=tuple(replace(rollout("i", n, 0), conditioning_id=told.id) for n in (0, 1)),
    )
    return Evidence(round=number, phase=0, task="sums", groups=(group,), conditionings={told.id: told})


def run_with_memory(path: Path, told: Conditioning = TOLD, asks: Conditioning = ASKS) -> RunStore:
    store = make_run(path)
    record = replace(
        round_record(store),
        evidence=evidence_under(1, told),
        searched=evidence_under(1, told),
        evaluations=(evaluation(1, conditioning_id=asks.id),),
        evaluated={asks.id: asks},
    )
    store.commit_round(record)
    return store


# ---------------------------------------------------------------------------------------------------------- round trip


def test_what_was_shown_and_what_was_asked_come_back(tmp_path: Path) -> None:
    run_with_memory(tmp_path / "run").close()
    read = RunStore.open(tmp_path / "run")
    assert read.verify() == []
    assert read.conditionings() == {
        TOLD.id: {
            "system": "be brief",
            "exemplars": [["1+1", "2"]],
            "notes": ["first note: ä", "a second\nof two lines"],
            "recall": [],
            "recalled": ["entry-1", "entry-2"],
            "delta": "weights-3",
            "shifts": [],
            "soft": {},
            "mixture": None,
        },
        ASKS.id: {
            "system": None,
            "exemplars": [],
            "notes": [],
            "recall": ["cases-7", "lessons-2"],
            "recalled": [],
            "delta": None,
            "shifts": [],
            "soft": {},
            "mixture": None,
        },
    }
    assert {row.conditioning_id for row in read.rollouts()} == {TOLD.id}
    assert read.evaluations()[-1].conditioning_id == ASKS.id


def test_kept_rollouts_say_what_they_were_shown(tmp_path: Path) -> None:
    store = run_with_memory(tmp_path / "run")
    for one in store.kept_rollouts("sums", ["i"], since=1):
        assert (one.system, one.exemplars, one.delta) == (TOLD.system, TOLD.exemplars, "weights-3")
        assert (one.notes, one.recalled) == (TOLD.notes, TOLD.recalled)
        again = Conditioning(
            system=one.system, exemplars=one.exemplars, notes=one.notes, recalled=one.recalled, delta=TOLD.delta
        )
        assert again.id == one.conditioning_id == TOLD.id
    assert len(store.kept_rollouts("sums", ["i"], since=1)) == 2


@pytest.mark.parametrize("part", ["notes", "recalled", "recall"])
def test_memory_is_part_of_the_digest(tmp_path: Path, part: str) -> None:
    """Under equal ids, so that it is the text itself that is compared."""
    other_told, other_asks = TOLD, ASKS
    if part == "recall":
        other_asks = replace(ASKS, recall=ASKS.recall[:1])
        other_asks.__dict__["id"] = ASKS.id
    else:
        other_told = replace(TOLD, **{part: ("something else",)})
        other_told.__dict__["id"] = TOLD.id
    one, same, other = (
        run_with_memory(tmp_path / "one"),
        run_with_memory(tmp_path / "same"),
        run_with_memory(tmp_path / "other", other_told, other_asks),
    )
    assert one.digest() == same.digest() != other.digest()


def test_a_note_that_no_utf8_has_comes_back_as_it_was(tmp_path: Path) -> None:
    told = Conditioning(notes=("half \ud83d of a face",))
    told.__dict__["id"] = "odd"
    store = run_with_memory(tmp_path / "run", told)
    assert store.conditionings()["odd"]["notes"] == list(told.notes)
    assert store.kept_rollouts("sums", ["i"], since=1)[0].notes == told.notes
    assert store.verify() == []


# ------------------------------------------------------------------------------------------------------- older ledgers


def tables(db: sqlite3.Connection) -> Iterator[tuple[str, list[str]]]:
    """(table, its columns) of what migrations before the fourth have made."""
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        if name not in ("migrations", "sqlite_sequence"):
            yield name, [row[1] for row in db.execute(f"PRAGMA table_info({name})")]


def make_older(run: Path, version: int) -> None:
    """The run's ledger in the shape of that version: made by the statements of then, with the rows of now."""
    path, old = run / "ledger.sqlite", run / "older.sqlite"
    with closing(sqlite3.connect(old, isolation_level=None)) as db:
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute("CREATE TABLE migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, at REAL)")
        for migration in schema.MIGRATIONS[:version]:
            for statement in migration.statements:
                db.execute(statement)
            db.execute("INSERT INTO migrations VALUES (?, ?, 0.0)", (migration.number, migration.name))
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("ATTACH ? AS now", (str(path),))
        for table, columns in tables(db):
            names = ", ".join(columns)
            db.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM now.{table}")
        db.execute("DETACH now")
    for side in ("-wal", "-shm"):
        (run / f"ledger.sqlite{side}").unlink(missing_ok=True)
    old.replace(path)


def columns_of(run: Path, table: str) -> set[str]:
    with closing(sqlite3.connect(run / "ledger.sqlite")) as db:
        return {row[1] for row in db.execute(f"PRAGMA table_info({table})")}


def older_run(path: Path, rounds: int, version: int = 3) -> str:
    """A run of that many rounds and a search, in the shape of that version; its digest."""
    with make_run(path, rounds - 1) as store:
        later = searched(rounds, rollout("later", 0, 2), rollout("later", 1, 3))
        store.commit_round(replace(round_record(store), searched=later))
        digest = store.digest()
    make_older(path, version)
    assert columns_of(path, "conditionings").isdisjoint({"notes", "recall", "recalled"}) is (version < 4)
    return digest


@pytest.mark.parametrize("write", [True, False], ids=["to write", "to read"])
def test_a_ledger_of_the_third_shape_is_brought_up_to_date_and_is_what_it_was(tmp_path: Path, write: bool) -> None:
    before = older_run(tmp_path / "run", 3)
    assert schema.check(tmp_path / "run" / "ledger.sqlite") == 3
    with RunStore.open(tmp_path / "run", write=write) as store:
        assert schema.check(tmp_path / "run" / "ledger.sqlite") == schema.LATEST == 7
        assert (store.digest(), store.verify()) == (before, [])
        assert store.conditionings()[conditioning(2).id] == {
            "system": "system 2",
            "exemplars": [["1+1", "2"]],
            "notes": [],
            "recall": [],
            "recalled": [],
            "delta": None,
            "shifts": [],
            "soft": {},
            "mixture": None,
        }
        first, second = store.kept_rollouts("sums", ["later"], since=1)
        assert (first.system, second.system) == ("system 2", "system 3")
        assert (first.notes, first.recalled) == ((), ())
        assert first.completion == rollout("later", 0, 2).completion
    with closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite")) as db:
        assert db.execute("SELECT number, name FROM migrations ORDER BY number").fetchall() == [
            (m.number, m.name) for m in schema.MIGRATIONS
        ]


def test_a_run_begun_in_the_third_shape_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    older_run(tmp_path / "old", 2)
    older_run(tmp_path / "new", 2, version=4)
    digests = []
    for name in ("old", "new"):
        with RunStore.open(tmp_path / name, write=True) as store:
            assert store.head().next_round == 3
            store.commit_round(replace(round_record(store), evidence=evidence_under(3, TOLD)))
            store.append_rollback(1, reason="test")
            store.commit_round(round_record(store))
            store.thin("lora", 1)
            assert store.verify() == []
            digests.append(store.digest())
            assert store.conditionings()[TOLD.id]["notes"] == list(TOLD.notes)
    assert digests[0] == digests[1]


def test_a_run_that_had_not_begun_in_the_third_shape_begins(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", config={"seed": 1}).close()
    make_older(tmp_path / "run", 3)
    with RunStore.open(tmp_path / "run", write=True) as store:
        begin(store)
        assert store.head().next_round == 1


def test_a_conditioning_known_from_before_keeps_what_was_said_of_it(tmp_path: Path) -> None:
    """The same id is the same content: without memory it has the id that it always had."""
    older_run(tmp_path / "run", 2)
    with RunStore.open(tmp_path / "run", write=True) as store:
        before = store.conditionings()
        record = round_record(store)
        store.commit_round(replace(record, evidence=evidence_under(3, conditioning(2))))
        assert store.conditionings() == before
    assert conditioning(2).id == "ce52b506c753a1f5"


def test_while_another_writes_an_older_ledger_is_not_changed_under_it(tmp_path: Path) -> None:
    older_run(tmp_path / "run", 2)
    lock = RunLock(tmp_path / "run" / "run.lock")
    try:
        with pytest.raises(StoreError, match="is at work on the run"):
            RunStore.open(tmp_path / "run")
        assert schema.check(tmp_path / "run" / "ledger.sqlite") == 3
    finally:
        lock.release()
    assert RunStore.open(tmp_path / "run").head().round == 2
