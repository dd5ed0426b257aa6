"""The folder of a run: what lies in it, how it is made, and what is refused to be taken for one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twoclock.errors import StoreError
from twoclock.store import schema
from twoclock.store.blobs import Blobs, sync_folder, write_atomically
from twoclock.store.ledger import Ledger
from twoclock.store.lock import RunLock

__all__ = ["lay_out", "migrate", "read_json", "refuse_used", "require_run"]

LEDGER, CONFIG, CONFIG_TEXT, ENVIRONMENT, LOCK, BLOBS = (
    "ledger.sqlite", "config.json", "config.toml", "environment.json", "run.lock", "blobs",
)  # fmt: skip
OURS = {LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", CONFIG, CONFIG_TEXT, ENVIRONMENT, LOCK, BLOBS}


def lay_out(path: Path, files: Mapping[str, str], config_text: str) -> None:
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


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the run; StoreError when it is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing from the run; restore it from a copy") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); restore it from a copy of the run") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} must hold a JSON object; it holds a {type(value).__name__}")
    return value


def require_run(path: Path) -> None:
    """StoreError unless ``path`` is a run's folder."""
    if not path.exists():
        raise StoreError(f"there is no run at {path}; check the path, or start one: twoclock run CONFIG.toml")
    if not path.is_dir():
        raise StoreError(f"{path} is a file; a run is a folder that holds a {LEDGER}")
    if not (path / LEDGER).is_file():
        raise StoreError(f"the folder {path} is not a run: it holds no {LEDGER}")


def refuse_used(path: Path) -> None:
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
        schema.check(ledger)
        return not Ledger(ledger).has_begun()
    except (sqlite3.Error, StoreError):
        return False  # damaged is not empty: nothing here may be thrown away


def migrate(path: Path, lock: RunLock | None) -> None:
    """Bring an older ledger up to date; a reader takes the lock for it."""
    own = None if lock else RunLock(path / LOCK)
    try:
        schema.migrate(path / LEDGER)
    except sqlite3.Error as error:
        raise StoreError(f"the ledger {path / LEDGER} cannot be brought up to date: {error}") from error
    finally:
        if own:
            own.release()
