"""The shape of ``ledger.sqlite``: its numbered migrations and how a connection to it is opened.

A migration is never edited after it has been released: what it made stands in users' run folders. A change of shape is
a new row at the end of :data:`MIGRATIONS`. SQLite's ``user_version`` holds the number of the last one applied and
``application_id`` says that the file is ours; the table ``migrations`` says when each was applied.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from twoclock.errors import StoreError

__all__ = ["APPLICATION_ID", "LATEST", "MIGRATIONS", "Migration", "check", "connect", "migrate", "transaction"]

APPLICATION_ID = 0x32636C6B
"""``2clk`` in ASCII, in the header of every ledger file."""

BUSY_SECONDS = 30.0
"""How long a connection waits for another one's transaction before it gives up."""


@dataclass(frozen=True)
class Migration:
    """One step of the schema; all its statements are applied in one transaction."""

    number: int
    name: str
    statements: tuple[str, ...]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        1,
        "the history of a run",
        (
            """CREATE TABLE snapshots (
                id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, round INTEGER NOT NULL,
                states TEXT NOT NULL, next_round INTEGER NOT NULL, cause TEXT NOT NULL,
                entry_seq INTEGER NOT NULL, at REAL NOT NULL)""",
            "CREATE INDEX snapshots_round ON snapshots (round, kind)",
            """CREATE TABLE rounds (
                round INTEGER PRIMARY KEY, phase INTEGER NOT NULL, task TEXT NOT NULL, metrics TEXT NOT NULL,
                started REAL NOT NULL, at REAL NOT NULL)""",
            """CREATE TABLE entries (
                seq INTEGER PRIMARY KEY AUTOINCREMENT, round INTEGER NOT NULL, phase INTEGER NOT NULL,
                task TEXT NOT NULL, channel TEXT NOT NULL, timescale TEXT NOT NULL, action TEXT NOT NULL,
                before TEXT NOT NULL, after TEXT NOT NULL, offered TEXT NOT NULL, cause TEXT NOT NULL,
                reason TEXT NOT NULL, cost TEXT NOT NULL, writes TEXT NOT NULL, metrics TEXT NOT NULL,
                at REAL NOT NULL)""",
            "CREATE INDEX entries_round ON entries (round)",
            """CREATE TABLE items (
                task TEXT NOT NULL, item_id TEXT NOT NULL, prompt TEXT NOT NULL, reference TEXT,
                PRIMARY KEY (task, item_id)) WITHOUT ROWID""",
            """CREATE TABLE rollouts (
                id INTEGER PRIMARY KEY AUTOINCREMENT, round INTEGER NOT NULL, task TEXT NOT NULL,
                item_id TEXT NOT NULL, conditioning_id TEXT NOT NULL, seed INTEGER NOT NULL, text TEXT NOT NULL,
                reward REAL NOT NULL, feedback TEXT NOT NULL, failure TEXT, finish TEXT NOT NULL,
                prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, mean_logprob REAL)""",
            "CREATE INDEX rollouts_round ON rollouts (round)",
            """CREATE TABLE conditionings (
                id TEXT PRIMARY KEY, system TEXT, exemplars TEXT NOT NULL, delta TEXT) WITHOUT ROWID""",
            """CREATE TABLE evaluations (
                id INTEGER PRIMARY KEY AUTOINCREMENT, round INTEGER NOT NULL, task TEXT NOT NULL,
                weights TEXT NOT NULL, prompt TEXT NOT NULL, item_ids TEXT NOT NULL, rewards TEXT NOT NULL,
                samples INTEGER NOT NULL, conditioning_id TEXT NOT NULL, cost TEXT NOT NULL, purpose TEXT NOT NULL,
                at REAL NOT NULL)""",
            """CREATE TABLE drift (
                id INTEGER PRIMARY KEY AUTOINCREMENT, round INTEGER NOT NULL, prompts TEXT NOT NULL,
                live_base REAL NOT NULL, base_live REAL NOT NULL, per_prompt_live_base TEXT NOT NULL,
                per_prompt_base_live TEXT NOT NULL, tokens INTEGER NOT NULL, at REAL NOT NULL)""",
        ),
    ),
    Migration(
        2,
        "rollouts token by token, and those of searches",
        (
            "ALTER TABLE rollouts ADD COLUMN purpose TEXT NOT NULL DEFAULT 'round'",
            "ALTER TABLE rollouts ADD COLUMN age INTEGER NOT NULL DEFAULT 0",
            "ALTER TABLE rollouts ADD COLUMN error TEXT",
            "ALTER TABLE rollouts ADD COLUMN tokens BLOB",
            "ALTER TABLE rollouts ADD COLUMN logprobs BLOB",
            "CREATE INDEX rollouts_item ON rollouts (task, item_id, purpose, round)",
        ),
    ),
    Migration(
        3,
        "states that were thinned",
        (
            """CREATE TABLE thinned (
                hash TEXT PRIMARY KEY, channel TEXT NOT NULL, round INTEGER NOT NULL, at REAL NOT NULL)
                WITHOUT ROWID""",
            # Thinning walks a channel's states from the newest and stops at the first that is gone.
            "CREATE INDEX entries_moved ON entries (channel) WHERE before <> after",
            "CREATE INDEX entries_refused ON entries (channel) WHERE offered <> '' AND offered <> after",
            "CREATE INDEX entries_after ON entries (after) WHERE before <> after",
            "CREATE INDEX entries_offered ON entries (offered) WHERE offered <> ''",
            "CREATE INDEX rounds_phase ON rounds (phase, round)",
        ),
    ),
    Migration(
        4,
        "what memory showed",
        tuple(
            f"ALTER TABLE conditionings ADD COLUMN {name} TEXT NOT NULL DEFAULT '[]'"
            for name in ("notes", "recall", "recalled")
        ),
    ),
    Migration(
        5,
        "shifts of the logits",
        ("ALTER TABLE conditionings ADD COLUMN shifts TEXT NOT NULL DEFAULT '[]'",),
    ),
    Migration(
        6,
        "memories beside the model",
        ("ALTER TABLE conditionings ADD COLUMN soft TEXT NOT NULL DEFAULT '{}'",),
    ),
    Migration(
        7,
        "mixtures of experts",
        ("ALTER TABLE conditionings ADD COLUMN mixture TEXT",),
    ),
)

LATEST = MIGRATIONS[-1].number


def _uri(path: Path, query: str) -> str:
    return f"{path.absolute().as_uri()}?{query}"


def _prepare(db: sqlite3.Connection) -> sqlite3.Connection:
    db.row_factory = sqlite3.Row
    db.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    return db


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """A connection in autocommit mode; a reader's cannot write. Raises ``sqlite3.Error`` as SQLite does."""
    if write:
        writer = _prepare(sqlite3.connect(_uri(path, "mode=rw"), uri=True, isolation_level=None))
        writer.execute("PRAGMA journal_mode = WAL")
        # FULL: a commit returns when it is on the disk, so a power cut loses no round that was reported as done.
        writer.execute("PRAGMA synchronous = FULL")
        return writer
    reader: sqlite3.Connection | None = None
    try:
        reader = _prepare(sqlite3.connect(_uri(path, "mode=ro"), uri=True, isolation_level=None))
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return reader
    except sqlite3.OperationalError:
        if reader is not None:
            reader.close()
        if _has_log(path):
            raise
    # A run on a read-only medium: WAL mode wants to make its side files there. Without a log to be read beside it the
    # file is whole by itself, and may be read as the unchanging thing it is.
    return _prepare(sqlite3.connect(_uri(path, "mode=ro&immutable=1"), uri=True, isolation_level=None))


def _has_log(path: Path) -> bool:
    """Whether part of the ledger may still stand in its write-ahead log; readers leave an empty one behind."""
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


@contextmanager
def transaction(path: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    """One transaction on a connection of its own: all of it or nothing.

    A connection a transaction keeps threads and forked processes apart; opening one costs a fraction of a millisecond,
    a round takes seconds.
    """
    with closing(connect(path, write=write)) as db:
        db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            yield db
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


def create(path: Path) -> None:
    """Make an empty ledger of the latest shape; the file must not exist."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    migrate(path)


def check(path: Path) -> int:
    """The schema version of a ledger file; StoreError when it is empty, not ours, damaged or newer than this code."""
    has_log = _has_log(path)
    size = path.stat().st_size
    if size == 0:
        raise StoreError(f"the ledger {path} is empty (0 bytes): the file was cut off; restore it from a copy")
    with open(path, "rb") as file:
        page_bytes = int.from_bytes(file.read(18)[16:18], "big") or 1
    # SQLite reads a page that was cut off as if zeros followed. Beside a log such a page is an interrupted copy from
    # the log, which SQLite repairs; without one it is damage.
    if not has_log and size % (65536 if page_bytes == 1 else page_bytes):
        raise StoreError(
            f"the ledger {path} is damaged or was cut off (in the middle of a page): restore it from a copy"
        )
    with closing(connect(path, write=False)) as db:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID or version < 1:
        raise StoreError(f"{path} is an SQLite file, but not a twoclock ledger; name the folder of a run")
    if version > LATEST:
        raise StoreError(
            f"the ledger {path} has schema version {version}, this twoclock knows versions up to {LATEST}; "
            "a newer twoclock wrote it: pip install --upgrade twoclock"
        )
    return version


def migrate(path: Path) -> None:
    """Apply the migrations that the file has not seen yet, each in one transaction."""
    with closing(connect(path, write=True)) as db:
        for migration in MIGRATIONS:
            if migration.number <= int(db.execute("PRAGMA user_version").fetchone()[0]):
                continue
            db.execute("BEGIN IMMEDIATE")
            try:
                db.execute(
                    "CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, at REAL)"
                )
                for statement in migration.statements:
                    db.execute(statement)
                db.execute("INSERT INTO migrations VALUES (?, ?, ?)", (migration.number, migration.name, time.time()))
                db.execute(f"PRAGMA user_version = {migration.number}")
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
