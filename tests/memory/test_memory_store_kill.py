"""Many processes on one file, and kill -9 among them: what a write returned from is there, and nothing is corrupt."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from twoclock.memory.records import Entry
from twoclock.memory.store import MemoryStore
from twoclock.seeding import child_rng

FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def note(writer: int, n: int) -> Entry:
    return Entry(kind="note", key=f"door {writer} {n}", text=f"lesson {n} of {writer}", created=1.0)


def writes(path: Path, writer: int, out: int) -> None:
    """Write for ever; an id goes out when its write has returned."""
    store = MemoryStore.open(path)
    n = 0
    while True:
        receipt = store.add(note(writer, n), actor=str(writer))
        os.write(out, f"{receipt.entry_id}\n".encode())
        if n % 5 == 4:
            event = store.retire(receipt.entry_id, "x", actor=str(writer))
            store.undo(event, actor=str(writer))
        if n % 7 == 6:
            store.outcome(store.read(f"door {writer}", hold_out=0.5), 1.0)
        n += 1


def reads(path: Path, out: int) -> None:
    """Read for ever; what was seen once must be seen again."""
    store = MemoryStore.open(path)
    seen: set[str] = set()
    while True:
        found = {entry.id for entry in store.entries(include_retired=True)}
        hits = store.search("lesson door", k=50)
        if not seen <= found or len(hits) < min(len(seen), 1):
            os.write(out, b"lost\n")
        seen = found


def started(target: object, *arguments: object) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
    process.start()
    return process


def test_kill_9_among_eight_writers_and_eight_readers(tmp_path: Path) -> None:
    path = tmp_path / "memory.sqlite"
    rng = random.Random(child_rng("kill", 0).random())
    out, into = os.pipe()
    processes = [started(writes, path, n, into) for n in range(8)] + [started(reads, path, into) for _ in range(8)]
    deadline = time.monotonic() + 4.0
    next_writer, told = 8, b""
    os.set_blocking(out, False)
    try:
        while time.monotonic() < deadline:
            time.sleep(rng.uniform(0.05, 0.15))
            victim = rng.randrange(len(processes))
            os.kill(processes[victim].pid or 0, signal.SIGKILL)
            processes[victim].join()
            reader = victim >= 8
            processes[victim] = started(reads, path, into) if reader else started(writes, path, next_writer, into)
            next_writer += 1
            told += drained(out)
    finally:
        for process in processes:
            process.kill()
            process.join()
    told += drained(out)
    acknowledged = told.decode().split()
    assert "lost" not in acknowledged
    assert len(acknowledged) >= 30
    with MemoryStore.open(path, create=False) as store:
        assert store.check() == []
        kept = {entry.id for entry in store.entries(include_retired=True)}
        assert set(acknowledged) <= kept
        # A write that was killed before it returned may stand or not; of each writer at most one can.
        assert len(kept - set(acknowledged)) <= next_writer
        before = store.fingerprint()
        store.rebuild()
        assert store.fingerprint() == before


def drained(pipe: int) -> bytes:
    found = b""
    while True:
        try:
            part = os.read(pipe, 65536)
        except BlockingIOError:
            return found
        if not part:
            return found
        found += part


def test_a_file_that_many_make_at_once_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "memory.sqlite"

    def make(n: int) -> None:
        with MemoryStore.open(path) as store:
            store.add(note(n, 0), actor=str(n))

    processes = [started(make, n) for n in range(8)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    with MemoryStore.open(path, create=False) as store:
        assert len(store.entries()) == 8
        assert store.check() == []


def test_a_store_goes_on_on_both_sides_of_a_fork(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path / "memory.sqlite") as store:
        store.add(note(0, 0), actor="parent")
        store.search("door")

        def child() -> None:
            assert len(store.search("door")) == 1
            store.add(note(1, 0), actor="child")

        process = started(child)
        process.join(60)
        assert process.exitcode == 0
        store.add(note(2, 0), actor="parent")
        assert len(store.search("door")) == 3
        assert store.check() == []
