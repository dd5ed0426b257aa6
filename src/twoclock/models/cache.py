"""The user's model cache: where it is, one writer at a time, and nothing half-made ever visible in it.

A *prepared folder* is built in a temporary folder beside its final place, recorded in its ``twoclock.json`` (every
file with size and SHA-256), synced to the disk and moved into place by one rename. A process that is killed leaves only
a temporary folder, which the next writer of the same name removes: it holds the lock, so nobody else can be using it.

Layout: ``models/<name>/`` prepared folders, ``locks/`` one file a name, ``hashes.json`` and ``precision.json`` answers
that would be slow to find again. Knows nothing of models: what is inside a folder is the builder's business.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twoclock.errors import ModelError

__all__ = [
    "Progress",
    "cache_root",
    "damage",
    "ensure_folder",
    "exclusive",
    "file_sha256",
    "prepared_folders",
    "read_json",
    "read_record",
    "remembered_sha256",
    "write_json",
]

Progress = Callable[[str], None]
"""Told what is going on, in sentences; for a person who waits."""

RECORD = "twoclock.json"
RECORD_FORMAT = 1
LOCK_TIMEOUT_S = 3600.0
REMEMBERED_HASHES = 500


def cache_root(cache_dir: Path | str | None = None) -> Path:
    """The cache folder: the argument, else ``TWOCLOCK_CACHE``, else ``XDG_CACHE_HOME/twoclock``, else
    ``~/.cache/twoclock``. It is not created here."""
    if cache_dir is not None:
        chosen = Path(cache_dir)
    elif os.environ.get("TWOCLOCK_CACHE"):
        chosen = Path(os.environ["TWOCLOCK_CACHE"])
    elif os.environ.get("XDG_CACHE_HOME"):
        chosen = Path(os.environ["XDG_CACHE_HOME"]) / "twoclock"
    else:
        chosen = Path.home() / ".cache" / "twoclock"
    return chosen.expanduser().absolute()


# ------------------------------------------------------------------------------------------------------------ locking

if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(fd: int) -> None:
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextlib.contextmanager
def exclusive(lock: Path, what: str, progress: Progress, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold ``lock`` alone among all processes and threads; says so once when it has to wait.

    The operating system frees the lock when its holder dies, so a killed process blocks nobody. Raises ModelError
    after ``timeout_s``.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+b") as handle:
        began = time.monotonic()
        told = False
        while not _try_lock(handle.fileno()):
            if not told:
                progress(f"another process is preparing {what}; waiting for it")
                told = True
            if time.monotonic() - began > timeout_s:
                raise ModelError(
                    f"waited {timeout_s:.0f} s for another process that is preparing {what} and holds {lock}; "
                    "end that process, or set TWOCLOCK_CACHE to another folder"
                )
            time.sleep(0.1)
        try:
            yield
        finally:
            _unlock(handle.fileno())


# --------------------------------------------------------------------------------------------------- prepared folders


def ensure_folder(
    root: Path,
    name: str,
    build: Callable[[Path, Path], Mapping[str, Any]],
    *,
    what: str,
    need_bytes: int,
    progress: Progress,
    verify: bool = False,
) -> Path:
    """The folder ``models/name``, built unless it is there and whole.

    ``build(scratch, out)`` fills ``out`` and returns facts for the record; ``scratch`` is thrown away. ``need_bytes``
    is what both take on the disk together. ``verify`` compares every file's SHA-256, not only its size. Raises
    ModelError where the disk is full or the cache cannot be written.
    """
    final = root / "models" / name
    if damage(final, full=verify) is None:
        return final
    with _disk_errors(root, what, need_bytes):
        final.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(root / "locks" / f"{name}.lock", what, progress):
            problem = damage(final, full=verify)  # another process may have built it while this one waited
            if problem is None:
                return final
            if final.exists():
                progress(f"the cached copy of {what} is damaged ({problem}); making it again")
            _remove_leftovers(final)
            _require_space(root, what, need_bytes)
            scratch = Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=final.parent))
            try:
                out = scratch / "out"
                out.mkdir()
                facts = build(scratch, out)
                _write_record(out, facts)
                _sync_tree(out)
                _move_into_place(out, final, scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return final


def damage(folder: Path, *, full: bool = False) -> str | None:
    """What is wrong with a prepared folder in a few words; ``None`` where it is whole. ``full`` reads every byte."""
    if not folder.is_dir():
        return "it is not there"
    record = read_json(folder / RECORD)
    if record is None or record.get("format") != RECORD_FORMAT or not isinstance(record.get("files"), dict):
        return f"{RECORD} is missing or unreadable"
    for file, facts in record["files"].items():
        path = folder / file
        if not path.is_file():
            return f"{file} is missing"
        size = path.stat().st_size
        if size != facts["size"]:
            return f"{file} has {size:,} bytes instead of {facts['size']:,}"
        if full and file_sha256(path) != facts["sha256"]:
            return f"the content of {file} has changed"
    return None


def read_record(folder: Path) -> dict[str, Any]:
    """The ``twoclock.json`` of a prepared folder; empty where there is none."""
    return read_json(folder / RECORD) or {}


def prepared_folders(cache_dir: Path | str | None = None) -> list[dict[str, Any]]:
    """One mapping a prepared model: ``path``, ``title``, ``bytes``, ``base_hash``, ``problem`` (None where whole)."""
    models = cache_root(cache_dir) / "models"
    found = []
    for folder in sorted(models.glob("[!.]*")) if models.is_dir() else []:
        record = read_record(folder)
        found.append(
            {
                "path": str(folder),
                "title": record.get("title", folder.name),
                "bytes": sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) if folder.is_dir() else 0,
                "base_hash": record.get("base_hash", ""),
                "problem": damage(folder),
            }
        )
    return found


def _write_record(out: Path, facts: Mapping[str, Any]) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(out.iterdir())
        if path.name != RECORD
    }
    text = json.dumps({"format": RECORD_FORMAT, **facts, "files": files}, indent=2, sort_keys=True)
    (out / RECORD).write_text(text + "\n", encoding="utf-8")


def _remove_leftovers(final: Path) -> None:
    for leftover in final.parent.glob(f".tmp-{final.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _move_into_place(out: Path, final: Path, scratch: Path) -> None:
    if final.exists():
        final.rename(scratch / "damaged")  # a folder cannot be renamed onto one that has files
    out.rename(final)
    _sync(final.parent)


def _sync_tree(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o644)
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if path.is_dir() and sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -------------------------------------------------------------------------------------------------------- a full disk


def _require_space(root: Path, what: str, need_bytes: int) -> None:
    free = shutil.disk_usage(root).free
    if free < need_bytes:
        raise OSError(errno.ENOSPC, f"{free / 1e6:,.0f} MB are free")


@contextlib.contextmanager
def _disk_errors(root: Path, what: str, need_bytes: int) -> Iterator[None]:
    """Turn a full or unwritable disk into a ModelError that says how much is needed, where, and the way out."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        # safetensors raises its own error type, with the operating system's number in the text
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
        if full:
            detail = getattr(error, "strerror", None) or error
            raise ModelError(
                f"the disk is full: preparing {what} needs about {need_bytes / 1e6:,.0f} MB in {root} ({detail}); free "
                "some space there, or move the cache: export TWOCLOCK_CACHE=/a/folder/with/space"
            ) from error
        if isinstance(error, PermissionError) or getattr(error, "errno", None) in (errno.EROFS, errno.ENOTDIR):
            raise ModelError(
                f"the cache folder {root} cannot be written ({error}); "
                "choose another: export TWOCLOCK_CACHE=/a/folder/you/own"
            ) from error
        raise


# ---------------------------------------------------------------------------------------------- hashes and small JSON


def file_sha256(path: Path) -> str:
    """SHA-256 in hex of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def remembered_sha256(path: Path, root: Path) -> str:
    """:func:`file_sha256`, remembered in the cache for as long as path, size and time of change stay the same."""
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    known = read_json(root / "hashes.json") or {}
    if isinstance(known.get(key), str):
        return str(known[key])
    digest = file_sha256(path)
    if time.time_ns() - status.st_mtime_ns > 2_000_000_000:  # a file just written may change again within one tick
        kept = dict(list(known.items())[-(REMEMBERED_HASHES - 1) :])
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            write_json(root / "hashes.json", {**kept, key: digest})
    return digest


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; ``None`` where there is none or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temp = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as handle:
            json.dump(value, handle, indent=1)
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
