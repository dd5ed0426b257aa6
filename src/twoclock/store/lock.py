"""The writer's lock of a run: one process at a time, released by the kernel however that process ends.

The file stays; who holds it is written into it for the message that the next one gets. Readers take no lock.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import weakref
from pathlib import Path

from twoclock.errors import RunLockedError, StoreError

__all__ = ["RunLock"]

_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _lock(fd: int) -> None:
    """Take the lock or raise ``BlockingIOError`` at once."""
    if sys.platform == "win32":
        import msvcrt

        # Windows hides a locked region from readers, so the byte that is locked lies far behind the text.
        os.lseek(fd, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
        finally:
            os.lseek(fd, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class RunLock:
    """The lock on ``path``, held from construction to :meth:`release`.

    Raises RunLockedError, with the holder's process, host and time, when it is held: by another process, or by another
    handle of this one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(f"cannot write in the run folder {path.parent}: {error.strerror or error}") from error
        try:
            _lock(self._fd)
        except BlockingIOError:
            holder = os.read(self._fd, 4096)
            os.close(self._fd)
            self._fd = -1
            raise RunLockedError(self._refusal(holder)) from None
        except OSError as error:
            os.close(self._fd)
            self._fd = -1
            raise StoreError(
                f"the file system of {path.parent} cannot lock files ({error.strerror or error}); "
                "keep runs on a local disk"
            ) from error
        self._write({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
        _held.add(self)

    def _write(self, holder: dict[str, object] | None) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        if holder is not None:
            os.write(self._fd, json.dumps(holder).encode())

    def _refusal(self, holder: bytes) -> str:
        run = self.path.parent
        advice = "wait for it to end or stop it; reading the run (status, log, report) needs no lock"
        try:
            known = json.loads(holder)
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(known["since"]))
            return f"process {known['pid']} on host {known['host']} is at work on the run {run} since {since}; {advice}"
        except (ValueError, KeyError, TypeError):  # between taking the lock and writing the name
            return f"another process is at work on the run {run}; {advice}"

    @property
    def held(self) -> bool:
        """False after :meth:`release`, and in a forked child."""
        return self._fd >= 0

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._fd >= 0:
            self._write(None)
            os.close(self._fd)
            self._fd = -1
            _held.discard(self)

    def _forget(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _after_fork() -> None:
    # A forked child shares the open file, and with it the lock: it would keep the run locked after its parent died.
    for lock in list(_held):
        lock._forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
