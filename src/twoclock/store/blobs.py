"""Content-addressed bytes: ``blobs/ab/<sha256>``, written whole or not at all, checked whenever they are read.

A blob's name is the hash of its content, so a blob that is there is never written again, and one that was damaged is
recognised. Only the run's writer puts blobs; :meth:`Blobs.clean` may therefore drop every half-written file it finds.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from twoclock.errors import StoreError
from twoclock.hashing import content_hash, short

__all__ = ["Blobs", "sync_folder", "write_atomically"]

_HASH = re.compile(r"[0-9a-f]{64}")


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in ``folder`` survive a power cut, where the system can."""
    if os.name == "nt":  # a folder has no file descriptor there
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes, temporary: Path) -> None:
    """Write through ``temporary``, on the same disk: readers see the old content or all of the new one."""
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what was there before is intact") from error


class Blobs:
    """The blobs of one run, under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"

    def path(self, digest: str) -> Path:
        """Where a blob lies; StoreError for what is no SHA-256 in hex."""
        if not _HASH.fullmatch(digest):
            raise StoreError(f"'{digest}' is not the name of a blob; one is 64 hexadecimal digits")
        return self.folder / digest[:2] / digest

    def put(self, data: bytes) -> str:
        """Store ``data`` and return its hash; bytes that are there already are left alone."""
        digest = content_hash(bytes(data))
        path = self.path(digest)
        with contextlib.suppress(OSError):
            if path.read_bytes() == data:
                return digest
        try:
            self.temporary.mkdir(parents=True, exist_ok=True)
            if not path.parent.exists():
                path.parent.mkdir()
                sync_folder(self.folder)
        except OSError as error:
            raise StoreError(f"cannot make the folder {path.parent}: {error.strerror or error}") from error
        write_atomically(path, data, self.temporary / f"{os.getpid()}-{secrets.token_hex(8)}")
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes of that hash; StoreError when they are missing or are not those bytes any more."""
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise StoreError(
                f"the blob {short(digest)} is missing: {path}; restore it from a copy of the run"
            ) from None
        except OSError as error:
            raise StoreError(f"the blob {short(digest)} cannot be read: {path}: {error.strerror or error}") from error
        if content_hash(data) != digest:
            raise StoreError(
                f"the blob {short(digest)} is damaged: {path} holds {len(data)} bytes of another hash; "
                "restore it from a copy of the run"
            )
        return data

    def __contains__(self, digest: str) -> bool:
        return bool(_HASH.fullmatch(digest)) and self.path(digest).is_file()

    def delete(self, digest: str) -> None:
        """Remove a blob; one that cannot be removed now, such as while Windows has it open, stays."""
        with contextlib.suppress(OSError):
            self.path(digest).unlink(missing_ok=True)

    def clean(self) -> int:
        """Remove what a killed writer left half-written; returns how many files. Only for the holder of the lock."""
        removed = 0
        if self.temporary.is_dir():
            for leftover in self.temporary.iterdir():
                leftover.unlink(missing_ok=True)
                removed += 1
        return removed
