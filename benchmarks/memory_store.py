"""The memory store: how fast it searches, whether kill -9 loses anything, and mem0 at the same work, in one run.

    python benchmarks/memory_store.py            # a page of figures
    python benchmarks/memory_store.py --json     # and, as the last line, one JSON object

``p50_ms`` and ``p99_ms`` are of hybrid searches (12 words and a vector of 384 dimensions, 10 results) over 100,000
entries in a file, warm. ``lost`` counts writes that returned and are not there, after 8 writers and 8 readers were
killed at random for a minute; what the store's own check finds counts too. ``mem0`` needs ``pip install mem0ai``, or
``--mem0-python`` with the interpreter of an environment that has it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from memory_workload import DrawnEncoder, Texts, user_of

from twoclock.memory.records import Entry, Scope
from twoclock.memory.store import MemoryStore

ENTRIES, SEARCHES = 100_000, 500
PEER_ENTRIES, PEER_SEARCHES = 2_000, 100
WRITERS, READERS = 8, 8
FOLDER = Path(__file__).parent


def spread(taken: list[float]) -> dict[str, float]:
    """Milliseconds: median, 99th percentile, mean."""
    return {
        "p50_ms": statistics.median(taken) * 1e3,
        "p99_ms": float(np.percentile(taken, 99)) * 1e3,
        "mean_ms": statistics.fmean(taken) * 1e3,
    }


# -------------------------------------------------------------------------------------------------------------- search


def search(folder: Path, entries: int, searches: int) -> dict[str, Any]:
    """A file of ``entries``, opened anew and searched by readers who see 60 % of it."""
    made = Texts()
    keys, texts = made.some(entries, 8, 20), made.some(entries, 8, 20)
    path, encoder = folder / "search.sqlite", DrawnEncoder()
    start = time.perf_counter()
    with MemoryStore.open(path, encoder=encoder) as store:
        for first in range(0, entries, 10_000):
            store.add_many(
                [
                    Entry(kind="case", key=keys[n], text=texts[n], scope=Scope(user=user_of(n)), created=1.0 + n)
                    for n in range(first, min(first + 10_000, entries))
                ],
                actor="benchmark",
            )
    filled = time.perf_counter() - start
    with MemoryStore.open(path, encoder=encoder) as store:
        start = time.perf_counter()
        store.search("warm up", k=10)
        cold = time.perf_counter() - start
        asked = [(query, Scope(user=user_of(2 * n + 1))) for n, query in enumerate(made.queries(searches))]
        wall, held = [], []
        for query, reader in asked:
            start, busy = time.perf_counter(), time.thread_time()
            store.search(query, scope=reader, k=10)
            wall.append(time.perf_counter() - start)
            held.append(time.thread_time() - busy)
        # The parts, of what the index does.
        index = store._index._index
        assert index is not None
        parts: dict[str, list[float]] = {"words": [], "cosines": []}
        for query, reader in asked:
            start = time.perf_counter()
            index.search(query, scope=reader, k=10, now=0.0)
            parts["words"].append(time.perf_counter() - start)
            vector = encoder.encode([query])[0]
            start = time.perf_counter()
            index.search("", scope=reader, k=10, now=0.0, vector=vector)
            parts["cosines"].append(time.perf_counter() - start)
    return {
        **spread(wall),
        "processor": spread(held),
        "of_which": {name: spread(taken) for name, taken in parts.items()},
        "entries": entries,
        "searches": searches,
        "dimensions": encoder.dimension,
        "fill_seconds": filled,
        "first_search_seconds": cold,
        "file_mib": path.stat().st_size / 2**20,
    }


def _taken(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ---------------------------------------------------------------------------------------------------------- durability


def _write(path: Path, writer: int, out: int) -> None:
    store = MemoryStore.open(path)
    n = 0
    while True:
        entry = Entry(kind="note", key=f"door {writer} {n}", text=f"lesson {n} of {writer}", created=1.0)
        os.write(out, f"{store.add(entry, actor=str(writer)).entry_id}\n".encode())
        if n % 10 == 9:
            store.undo(store.retire(entry.id, "x", actor=str(writer)), actor=str(writer))
            store.outcome(store.read("door lesson", hold_out=0.5), 1.0)
        n += 1


def _read(path: Path, out: int) -> None:
    store = MemoryStore.open(path)
    seen: set[str] = set()
    while True:
        found = {entry.id for entry in store.entries(include_retired=True)}
        store.search("lesson door", k=50)
        os.write(out, b"".join(b"lost\n" for _ in seen - found) or b"seen\n")
        seen = found


def durability(folder: Path, seconds: float) -> dict[str, Any]:
    """Kill a process every tenth of a second or so, and start another in its place."""
    path, rng, fork = folder / "kill.sqlite", random.Random(0), multiprocessing.get_context("fork")
    out, into = os.pipe()
    os.set_blocking(out, False)

    def started(n: int, number: int) -> Any:
        given = (path, number, into) if n < WRITERS else (path, into)
        process = fork.Process(target=_write if n < WRITERS else _read, args=given, daemon=True)
        process.start()
        return process

    processes = [started(n, n) for n in range(WRITERS + READERS)]
    told, kills, deadline = b"", 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(rng.uniform(0.05, 0.15))
        victim = rng.randrange(len(processes))
        os.kill(processes[victim].pid, signal.SIGKILL)
        processes[victim].join()
        kills += 1
        processes[victim] = started(victim, WRITERS + READERS + kills)
        told += _drained(out)
    for process in processes:
        process.kill()
        process.join()
    lines = (told + _drained(out)).decode().split()
    acknowledged = {line for line in lines if line not in ("lost", "seen")}
    with MemoryStore.open(path, create=False) as store:
        problems = store.check()
        kept = {entry.id for entry in store.entries(include_retired=True)}
    lost = len(acknowledged - kept) + lines.count("lost")
    return {
        "lost": lost + len(problems),
        "acknowledged": len(acknowledged),
        "unacknowledged_kept": len(kept - acknowledged),
        "problems": problems,
        "kills": kills,
        "reads": lines.count("seen"),
        "writers": WRITERS,
        "readers": READERS,
        "seconds": seconds,
    }


def _drained(pipe: int) -> bytes:
    found = b""
    while True:
        try:
            found += os.read(pipe, 1 << 16)
        except BlockingIOError:
            return found


# ---------------------------------------------------------------------------------------------------------------- mem0


def peer(folder: Path, entries: int, searches: int, python: str) -> dict[str, Any]:
    """Adds one by one, each durable when it returns, then searches, of the same texts with the same vectors."""
    made = Texts()
    keys, asked = made.some(entries, 8, 20), made.queries(searches)
    user = Scope(user="user")
    with MemoryStore.open(folder / "ours.sqlite", encoder=DrawnEncoder()) as store:
        adds = [
            _taken(lambda key=key: store.add(Entry(kind="note", key=key, text="", scope=user), actor="benchmark"))
            for key in keys
        ]
        store.search("warm up", scope=user)
        found = 0
        searched = []
        for query in asked:
            start = time.perf_counter()
            found += len(store.search(query, scope=user, k=10))
            searched.append(time.perf_counter() - start)
    ours = {"add": spread(adds), "search": spread(searched), "found": found}
    command = [python, str(FOLDER / "memory_peer.py"), str(entries), str(searches), str(folder / "mem0")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"entries": entries, "searches": searches, "ours": ours, "mem0": None, "why_not": reason}
    theirs = json.loads(done.stdout.strip().splitlines()[-1])
    mem0 = {"add": spread(theirs.pop("add_s")), "search": spread(theirs.pop("search_s")), **theirs}
    ratio = {name: mem0[name]["p50_ms"] / ours[name]["p50_ms"] for name in ("add", "search")}
    return {"entries": entries, "searches": searches, "ours": ours, "mem0": mem0, "ratio": ratio}


# -------------------------------------------------------------------------------------------------------------- output

KEYS = ("p50_ms", "p99_ms", "lost", "mem0")


def show(found: dict[str, Any]) -> str:
    """A few lines for people."""
    lines = []
    if one := found.get("search"):
        lines.append(
            f"search: p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms over {one['entries']} entries × "
            f"{one['dimensions']} dimensions (processor time p50 {one['processor']['p50_ms']:.1f} ms; words alone "
            f"{one['of_which']['words']['p50_ms']:.1f}, cosines alone {one['of_which']['cosines']['p50_ms']:.1f})"
        )
        lines.append(
            f"  filled in {one['fill_seconds']:.0f} s, first search {one['first_search_seconds']:.1f} s, file "
            f"{one['file_mib']:.0f} MiB"
        )
    if one := found.get("durability"):
        lines.append(
            f"lost: {one['lost']} of {one['acknowledged']} acknowledged writes, {one['kills']} kills in "
            f"{one['seconds']:.0f} s among {one['writers']} writers and {one['readers']} readers"
        )
    if one := found.get("mem0"):
        lines.append(f"side by side, {one['entries']} entries, {one['searches']} searches:")
        for name in ("ours", "mem0"):
            side = one[name]
            if side is None:
                lines.append(f"  mem0 did not run: {one['why_not']}")
            else:
                told = (
                    f"{part} p50 {side[part]['p50_ms']:7.2f} ms  p99 {side[part]['p99_ms']:7.2f}"
                    for part in ("add", "search")
                )
                lines.append(f"  {name:<6} {'   '.join(told)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--only", action="append", choices=KEYS, help="measure this alone; may be given several times")
    parser.add_argument("--entries", type=int, default=ENTRIES, help=f"in the searched file (default: {ENTRIES})")
    parser.add_argument("--seconds", type=float, default=60.0, help="of killing (default: 60)")
    parser.add_argument("--peer-entries", type=int, default=PEER_ENTRIES, help=f"beside mem0 (default: {PEER_ENTRIES})")
    parser.add_argument("--mem0-python", default=sys.executable, help="an interpreter that has mem0ai")
    chosen = parser.parse_args()
    wanted = set(chosen.only or KEYS)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="memory_store") as name:
        folder = Path(name)
        if wanted & {"p50_ms", "p99_ms"}:
            found["search"] = search(folder, chosen.entries, SEARCHES)
            found |= {key: found["search"][key] for key in ("p50_ms", "p99_ms") if key in wanted}
        if "lost" in wanted:
            found["durability"] = durability(folder, chosen.seconds)
            found["lost"] = found["durability"]["lost"]
        if "mem0" in wanted:
            found["mem0"] = peer(folder, chosen.peer_entries, PEER_SEARCHES, chosen.mem0_python)
    print(show(found))
    if chosen.json:
        about = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "twoclock": importlib.metadata.version("twoclock"),
            "cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
        }
        print(json.dumps({**found, "machine": about}))


if __name__ == "__main__":
    main()
