"""The shape of a memory file: its numbered migrations, and how a connection to it is opened.

Three tables are the truth and only ever grow: ``events`` (with ``touches``, which entries each concerns), ``episodes``
and ``readings`` (with ``outcomes``). ``entries``, ``effects``, ``undone`` and the word table follow from the events and
can be made anew from them; ``vectors`` is what an encoder made of the keys, and can be too. The base tables use plain
types alone, so that PostgreSQL takes the same ones (``docs/memory_postgres.sql``); the word table is SQLite's.

A migration is never edited after it has been released. SQLite's ``user_version`` holds the number of the last one
applied, ``application_id`` says that the file is ours.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from twoclock.errors import StoreError

__all__ = ["APPLICATION_ID", "GROWING", "LATEST", "MIGRATIONS", "Migration", "open_file"]

APPLICATION_ID = 0x32636C6D
"""``2clm`` in ASCII, in the header of every memory file."""

BUSY_SECONDS = 60.0
"""How long a connection waits for another process's write before it gives up."""


@dataclass(frozen=True)
class Migration:
    """One step of the schema; all its statements are applied in one transaction."""

    number: int
    name: str
    statements: tuple[str, ...]


GROWING = ("events", "touches", "episodes", "readings", "outcomes")
"""Tables whose rows stay as they were written, whoever opens the file with whatever tool."""

_STAY = tuple(
    f"CREATE TRIGGER {table}_{name} BEFORE {name.upper()} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'the history of a memory only grows'); END"
    for table in GROWING
    for name in ("update", "delete")
)

MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        1,
        "entries as what their events make of them",
        (
            """CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)""",
            """CREATE TABLE events (
                seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, at REAL NOT NULL, actor TEXT NOT NULL,
                action TEXT NOT NULL, payload TEXT NOT NULL, target INTEGER REFERENCES events (seq))""",
            "CREATE INDEX events_target ON events (target) WHERE target IS NOT NULL",
            "CREATE INDEX events_action ON events (action)",
            """CREATE TABLE touches (
                entry TEXT NOT NULL, seq INTEGER NOT NULL REFERENCES events (seq), PRIMARY KEY (entry, seq))""",
            "CREATE INDEX touches_seq ON touches (seq)",
            """CREATE TABLE episodes (
                name TEXT PRIMARY KEY, payload TEXT NOT NULL, hash TEXT NOT NULL, at REAL NOT NULL)""",
            """CREATE TABLE readings (
                number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, at REAL NOT NULL,
                query TEXT NOT NULL, scope TEXT NOT NULL, shown TEXT NOT NULL, held TEXT NOT NULL)""",
            """CREATE TABLE outcomes (
                reading TEXT NOT NULL REFERENCES readings (id), seq INTEGER NOT NULL REFERENCES events (seq),
                PRIMARY KEY (reading, seq))""",
            "CREATE TABLE undone (seq INTEGER PRIMARY KEY REFERENCES events (seq))",
            """CREATE TABLE entries (
                number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
                key TEXT NOT NULL, text TEXT NOT NULL, scope_agent TEXT NOT NULL, scope_user TEXT NOT NULL,
                scope_task TEXT NOT NULL, scope_session TEXT NOT NULL, trust TEXT NOT NULL, reward REAL,
                created REAL NOT NULL, expires REAL, body TEXT NOT NULL, provenance TEXT NOT NULL, seen TEXT NOT NULL,
                replaces TEXT, live INTEGER NOT NULL, reason TEXT NOT NULL, replaced_by TEXT, adds INTEGER NOT NULL)""",
            "CREATE INDEX entries_live ON entries (id) WHERE live = 1",
            """CREATE TABLE effects (
                entry TEXT PRIMARY KEY, shown INTEGER NOT NULL, shown_sum REAL NOT NULL, shown_squares REAL NOT NULL,
                held INTEGER NOT NULL, held_sum REAL NOT NULL, held_squares REAL NOT NULL)""",
            """CREATE TABLE vectors (
                entry TEXT NOT NULL, encoder TEXT NOT NULL, dimension INTEGER NOT NULL, vector BLOB NOT NULL,
                PRIMARY KEY (entry, encoder))""",
            # Letters and digits of every script, without accents; names in code stay whole.
            """CREATE VIRTUAL TABLE entries_words USING fts5 (
                key, text, content='entries', content_rowid='number',
                tokenize="unicode61 remove_diacritics 2 tokenchars '_'")""",
            *_STAY,
        ),
    ),
)

LATEST = MIGRATIONS[-1].number


def open_file(path: Path, *, create: bool) -> sqlite3.Connection:
    """A connection in autocommit mode to a memory file of the latest shape; ``create`` makes it where there is none.

    Raises StoreError for a file that is missing, damaged, not ours, or newer than this code. Several processes may do
    this at once.
    """
    if not path.exists() and not create:
        raise StoreError(f"there is no memory at {path}; name another file, or let it be made (create=True)")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise StoreError(
            f"{path} cannot be a memory file: {'it is' if path.is_dir() else 'its folder is not'} a folder"
        )
    mode = "rwc" if create else "rw"
    try:
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise StoreError(f"the memory {path} cannot be opened ({error}); may you write there?") from error
    try:
        _prepare(db, path)
    except sqlite3.Error as error:
        db.close()
        raise StoreError(
            f"the memory {path} cannot be used ({error}); it is no SQLite file, is damaged, or may not be written"
        ) from error
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.row_factory = sqlite3.Row
    db.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    version = _version(db, path)
    _write_ahead(db)
    # FULL: a write returns when it is on the disk, so that a power cut loses nothing that was acknowledged.
    db.execute("PRAGMA synchronous = FULL")
    if version < LATEST:
        db.execute("BEGIN IMMEDIATE")
        try:
            _migrate(db, _version(db, path))
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The schema version, 0 for a file with nothing in it."""
    application = int(db.execute("PRAGMA application_id").fetchone()[0])
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    tables = int(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if (application, version, tables) != (0, 0, 0) and application != APPLICATION_ID:
        raise StoreError(f"{path} is an SQLite file, but not a twoclock memory; name another file")
    if version > LATEST:
        raise StoreError(
            f"the memory {path} has schema version {version}, this twoclock knows versions up to {LATEST}; a newer "
            "twoclock wrote it: pip install --upgrade twoclock"
        )
    return version


def _write_ahead(db: sqlite3.Connection) -> None:
    """WAL mode, which stays with the file. Where two processes turn it on at once SQLite does not wait, so we do."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _migrate(db: sqlite3.Connection, version: int) -> None:
    for migration in MIGRATIONS:
        if migration.number > version:
            db.execute(
                "CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, at REAL)"
            )
            for statement in migration.statements:
                db.execute(statement)
            db.execute("INSERT INTO migrations VALUES (?, ?, ?)", (migration.number, migration.name, time.time()))
            db.execute(f"PRAGMA user_version = {migration.number}")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
