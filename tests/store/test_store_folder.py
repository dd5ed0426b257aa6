"""What a user does wrong with run folders, and what other processes do: each its own clear error, nothing lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from store_records import begin, make_run, round_record

from twoclock.errors import NumericsError, RunLockedError, StoreError
from twoclock.hashing import content_hash
from twoclock.store import RunStore, schema

HOLD = """
import sys, time
from pathlib import Path
from twoclock.store import RunStore
store = RunStore.open(Path(sys.argv[1]), write=True)
print("held", flush=True)
time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """A process that holds the writer lock of the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# ------------------------------------------------------------------------------------------------------- making a run


def test_a_folder_with_a_run_is_refused_and_kept(tmp_path: Path) -> None:
    with make_run(tmp_path / "run", rounds=1) as store:
        before = store.digest()
    with pytest.raises(StoreError, match=r"there is a run in .* already; go on with it: twoclock resume"):
        RunStore.create(tmp_path / "run", config={"seed": 2})
    store = RunStore.open(tmp_path / "run")
    assert (store.digest(), store.config) == (before, {"seed": 1})


@pytest.mark.parametrize("name", ["notes.txt", "config.toml", "config.json"])
def test_a_folder_with_someone_elses_file_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(StoreError, match=rf"is not empty \(it holds {name}\)"):
        RunStore.create(tmp_path, config={}, config_text="x")
    assert (tmp_path / name).read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_an_empty_folder_and_missing_parents_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunStore.create(tmp_path / "empty", config={}).close()
    RunStore.create(tmp_path / "a" / "b" / "ünï cöde %20?#", config={}).close()
    assert RunStore.open(tmp_path / "a" / "b" / "ünï cöde %20?#").config == {}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(StoreError, match="is a file; give the name of a folder"):
        RunStore.create(tmp_path / "run", config={})
    with pytest.raises(StoreError, match="cannot make the run folder"):
        RunStore.create(tmp_path / "run" / "below", config={})
    with pytest.raises(StoreError, match="is a file; a run is a folder"):
        RunStore.open(tmp_path / "run")


def test_a_run_that_never_began_is_made_anew(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", config={"seed": 1}).close()
    store = RunStore.create(tmp_path / "run", config={"seed": 2})
    begin(store)
    store.commit_round(round_record(store))
    assert (store.config, store.verify()) == ({"seed": 2}, [])


def test_a_run_that_another_is_just_beginning_is_left_alone(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", config={"seed": 1})
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} "):
        RunStore.create(tmp_path / "run", config={"seed": 2})
    begin(store)
    assert RunStore.open(tmp_path / "run").config == {"seed": 1}


def test_a_configuration_that_is_no_json_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the configuration is not plain JSON"):
        RunStore.create(tmp_path / "run", config={"model": tmp_path})
    with pytest.raises(NumericsError, match="the configuration holds NaN"):
        RunStore.create(tmp_path / "run", config={"rate": float("nan")})
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------ opening a run


def test_a_missing_run_and_a_strange_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no run at .*nowhere; check the path, or start one: twoclock run"):
        RunStore.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"is not a run: it holds no ledger\.sqlite"):
        RunStore.open(tmp_path, write=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: data[:100], "damaged or was cut off"),
        (lambda data: data[: len(data) // 2 // 4096 * 4096], "damaged or was cut off"),
        (lambda data: data[:-1000], "damaged or was cut off"),
        (lambda data: b"not a database, " * 300, "damaged or was cut off"),
    ],
)
def test_a_damaged_ledger_is_named(tmp_path: Path, damage: object, says: str, write: bool) -> None:
    make_run(tmp_path / "run", rounds=3).close()
    file = tmp_path / "run" / "ledger.sqlite"
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(StoreError, match=rf"ledger\.sqlite .*{says}"):
        RunStore.open(tmp_path / "run", write=write)


def test_a_writer_finds_damage_in_the_middle(tmp_path: Path) -> None:
    make_run(tmp_path / "run", rounds=3).close()
    file = tmp_path / "run" / "ledger.sqlite"
    with closing(sqlite3.connect(file)) as db:  # not the pages of the schema, without which nobody can open the file
        pages = [
            row[0] for row in db.execute("SELECT rootpage FROM sqlite_master WHERE name IN ('rounds', 'rollouts')")
        ]
    data = bytearray(file.read_bytes())
    for page in pages:
        data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"ledger\.sqlite"):
        RunStore.open(tmp_path / "run", write=True)
    reader = RunStore.open(tmp_path / "run")
    with pytest.raises(StoreError, match=r"ledger\.sqlite"):
        reader.digest()


def test_another_programs_sqlite_file_is_no_run(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "ledger.sqlite")
    db.execute("CREATE TABLE cats (name)")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="not a twoclock ledger"):
        RunStore.open(tmp_path)


def test_a_newer_schema_is_left_to_a_newer_program(tmp_path: Path) -> None:
    make_run(tmp_path / "run").close()
    db = sqlite3.connect(tmp_path / "run" / "ledger.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match=r"schema version 99, .* pip install --upgrade twoclock"):
        RunStore.open(tmp_path / "run", write=True)


@pytest.mark.parametrize("name", ["config.json", "environment.json"])
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_damaged_side_file_is_named(tmp_path: Path, name: str, content: str | None) -> None:
    make_run(tmp_path / "run").close()
    file = tmp_path / "run" / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(StoreError, match=name):
        RunStore.open(tmp_path / "run", write=True)
    file.write_text("{}")
    RunStore.open(tmp_path / "run", write=True).close()  # the refusal gave the lock back


def test_a_commit_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    make_run(tmp_path / "run").close()
    with schema.transaction(tmp_path / "run" / "ledger.sqlite", write=True) as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_a_run_on_a_read_only_medium_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_run(tmp_path / "run", rounds=2) as store:
        before = store.digest()
    real = sqlite3.connect

    def read_only(database: str, **more: object) -> sqlite3.Connection:
        if "immutable" not in database:  # what SQLite says when it cannot make its side files
            database = (tmp_path / "nowhere").as_uri() + "?mode=ro"
        return real(database, **more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr("twoclock.store.schema.sqlite3.connect", read_only)
    assert RunStore.open(tmp_path / "run").digest() == before


def test_released_migrations_are_never_edited() -> None:
    released = {
        1: "acb543e5ba2cbf6e",
        2: "eef8ffa1c810104a",
        3: "91cf9ab7da112226",
        4: "0db524d8e03054ad",
        5: "ac27c051a736966c",
        6: "10b8f85e603940e2",
        7: "40becc351aa3c5d3",
    }
    hashes = {m.number: content_hash([m.name, *m.statements])[:16] for m in schema.MIGRATIONS}
    assert hashes == released


def test_an_older_ledger_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_run(tmp_path / "run", rounds=2) as store:
        before = store.digest()
    number = schema.LATEST + 1
    later = schema.Migration(number, "notes", ("CREATE TABLE notes (text TEXT)",))
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, later))
    monkeypatch.setattr(schema, "LATEST", number)
    store = RunStore.open(tmp_path / "run")
    assert (schema.check(tmp_path / "run" / "ledger.sqlite"), store.digest()) == (number, before)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_run(tmp_path / "run", rounds=1) as store:
        before = store.digest()
    latest = schema.LATEST
    broken = schema.Migration(latest + 1, "broken", ("CREATE TABLE notes (text TEXT)", "CREATE TABLE rounds (x)"))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        patch.setattr(schema, "LATEST", latest + 1)
        with pytest.raises(StoreError, match="cannot be brought up to date"):
            RunStore.open(tmp_path / "run", write=True)
    store = RunStore.open(tmp_path / "run", write=True)
    assert (schema.check(tmp_path / "run" / "ledger.sqlite"), store.digest()) == (latest, before)


# ---------------------------------------------------------------------------------------------------------- the lock


def test_a_second_process_is_refused_and_told_who_works(tmp_path: Path) -> None:
    with make_run(tmp_path / "run", rounds=1) as store:
        record = round_record(store)
    process = hold(tmp_path / "run")
    try:
        with pytest.raises(
            RunLockedError, match=rf"process {process.pid} on host .* at work on the run .* since 20\d\d-"
        ):
            RunStore.open(tmp_path / "run", write=True)
        reader = RunStore.open(tmp_path / "run")
        with pytest.raises(RunLockedError, match=str(process.pid)):
            reader.record_evaluations([])
        assert reader.head().next_round == 2
    finally:
        end(process)
    with RunStore.open(tmp_path / "run", write=True) as store:  # a killed process holds nothing
        store.commit_round(record)


def test_two_handles_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} "):
        RunStore.open(tmp_path / "run", write=True)
    store.close()
    store.close()
    RunStore.open(tmp_path / "run", write=True).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_keeps_the_lock_nor_writes(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    child = os.fork()
    if child == 0:
        try:
            store.put_blob(b"x")
        except StoreError:
            signal.pause()  # outlives the parent's handle
        os._exit(1)
    try:
        store.put_blob(b"the parent still writes")
        store.close()
        RunStore.open(tmp_path / "run", write=True).close()
        assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it was refused, and waits
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# -------------------------------------------------------------------------------------------------------------- blobs


def test_blobs_are_stored_once_and_checked(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    name = store.put_blob(b"\x00" * 1000)
    file = tmp_path / "run" / "blobs" / name[:2] / name
    stamp = file.stat().st_mtime_ns
    assert store.put_blob(b"\x00" * 1000) == name
    assert file.stat().st_mtime_ns == stamp
    assert store.get_blob(store.put_blob(b"")) == b""
    file.write_bytes(b"\x00" * 999 + b"\x01")
    with pytest.raises(StoreError, match=f"blob {name[:12]} is damaged"):
        store.get_blob(name)
    with pytest.raises(StoreError, match="blob 000000000000 is missing"):
        store.get_blob("0" * 64)
    with pytest.raises(StoreError, match="is not the name of a blob"):
        store.get_blob("../../config.json")


def test_orphans_of_a_killed_writer_are_cleaned_by_the_next(tmp_path: Path) -> None:
    make_run(tmp_path / "run").close()
    orphan = tmp_path / "run" / "blobs" / "tmp" / "123-abc"
    orphan.write_bytes(b"half a blob")
    RunStore.open(tmp_path / "run").head()
    assert orphan.exists()
    RunStore.open(tmp_path / "run", write=True).close()
    assert not orphan.exists()


def test_a_blob_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_run(tmp_path / "run")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StoreError, match="No space left on device"):
            store.put_blob(b"much")
    assert list((tmp_path / "run" / "blobs" / "tmp").iterdir()) == []
    assert store.get_blob(store.put_blob(b"much")) == b"much"
