"""Kill -9 at any moment leaves the last committed round, and going on gives the ledger of an uninterrupted run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_records import CHANNELS, make_run, state

from twoclock.hashing import content_hash
from twoclock.store import RunStore

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_records import CHANNELS, begin, round_record
from twoclock.errors import StoreError
from twoclock.store import RunStore

path, last, keep = Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
try:
    with RunStore.open(path) as store:
        store.head()
    store = RunStore.open(path, write=True)
except StoreError:
    store = RunStore.create(path, config={"seed": 1}, config_text="seed = 1\\n")
print("up", flush=True)
try:
    store.head()
except StoreError:
    begin(store)
while store.head().next_round <= last:
    store.commit_round(round_record(store))
    print(store.head().round, flush=True)
    for channel in CHANNELS if keep else ():
        store.thin(channel, keep)
"""


def start(path: Path, last: int, keep: int = 0) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), here, str(last), str(keep)], stdout=subprocess.PIPE, text=True
    )


def blobs_on_disk(store: RunStore) -> set[str]:
    return {file.name for file in (store.path / "blobs").glob("[0-9a-f]?/*")}


@pytest.mark.parametrize("keep", [0, 2])
def test_a_writer_killed_at_random_loses_at_most_the_round_under_way(tmp_path: Path, keep: int) -> None:
    path, rng, reported = tmp_path / "run", random.Random(7), 0
    killed_at = []
    for attempt in range(14):
        process = start(path, last=10_000, keep=keep)
        assert process.stdout is not None
        if attempt:  # the first one is killed somewhere in its start
            assert process.stdout.readline() == "up\n"
        time.sleep(rng.uniform(0.02, 0.15))
        process.kill()
        lines = [line for line in process.communicate()[0].split() if line.isdigit()]
        reported = max([reported, *map(int, lines)])
        if not (path / "ledger.sqlite").exists():
            continue
        store = RunStore.open(path)
        if len(store.entries()) == 0:
            continue
        head, rows = store.head(), store.rounds()
        assert store.verify() == []
        assert [row.round for row in rows] == list(range(1, head.next_round))
        # What was reported as committed is there; at most one more finished without being reported.
        assert reported <= head.round <= reported + 1
        reported = head.round
        assert len(list(store.rollouts())) == 8 * head.round
        killed_at.append(head.round)
    assert killed_at[-1] > 3
    assert len(set(killed_at)) > 5
    with RunStore.open(path, write=True) as store:
        assert list((path / "blobs" / "tmp").iterdir()) == []
    whole = make_run(tmp_path / "whole", rounds=killed_at[-1])
    assert RunStore.open(path).digest() == whole.digest()
    if keep:
        with RunStore.open(path, write=True) as store:
            for channel in CHANNELS:
                whole.thin(channel, keep)
                store.thin(channel, keep)
            named = {h for e in store.entries() for h in (e.after, e.offered) if h}
            assert blobs_on_disk(store) & named == blobs_on_disk(whole)
            assert store.verify() == []


def test_a_kill_between_any_two_system_calls_of_a_commit_is_safe(tmp_path: Path) -> None:
    """The same, aimed: the writer ends itself at the n-th sync or rename, for every n that one round has."""
    template = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_records import round_record
from twoclock.store import RunStore, blobs, rollouts, rows
store = RunStore.open(Path(sys.argv[1]), write=True)
left = int(sys.argv[3])
def deadly(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return real(*args, **kwargs)
    return call
places = ((os, "fsync"), (os, "replace"), (rollouts, "rollout_values"), (rows, "entry_values"), (rows, "dumps"))
for module, name in places:
    setattr(module, name, deadly(getattr(module, name)))
store.commit_round(round_record(store))
"""
    path = tmp_path / "run"
    make_run(path, rounds=1).close()
    before = RunStore.open(path).digest()
    here, count = str(Path(__file__).parent), 0
    for fuse in (*range(0, 12, 2), *range(12, 60, 4), 1000):
        done = subprocess.run([sys.executable, "-c", template, str(path), here, str(fuse)], check=False)
        store = RunStore.open(path)
        assert store.verify() == []
        if done.returncode == 0:
            break
        assert done.returncode == -9
        assert store.digest() == before
        count += 1
    assert count > 8
    assert store.head().round == 2
    assert store.digest() == make_run(tmp_path / "whole", rounds=2).digest()


def test_the_writer_ends_by_itself_when_it_is_left_alone(tmp_path: Path) -> None:
    process = start(tmp_path / "run", last=3)
    output = process.communicate(timeout=60)[0].split()
    assert (process.returncode, output) == (0, ["up", "1", "2", "3"])
    assert RunStore.open(tmp_path / "run").digest() == make_run(tmp_path / "whole", rounds=3).digest()
    assert os.path.exists(tmp_path / "run" / "run.lock")


THINNER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_records import state
from twoclock.store import RunStore, thinning
store = RunStore.open(Path(sys.argv[1]), write=True)
left = int(sys.argv[3])
def deadly(real):
    def call(*args, **kwargs):
        strike()
        result = real(*args, **kwargs)
        strike()
        return result
    return call
def strike():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
for module, name in ((thinning, "record"), (thinning, "restored"), (Path, "unlink"), (os, "fsync"), (os, "replace")):
    setattr(module, name, deadly(getattr(module, name)))
store.thin("lora", 1)
store.put_blob(state("lora", 2))
"""


def test_a_kill_between_any_two_system_calls_of_thinning_is_safe(tmp_path: Path) -> None:
    """Between the record and each deletion, and between a state's coming back and the end of its record."""
    path, here = tmp_path / "run", str(Path(__file__).parent)
    with make_run(path, rounds=6) as store:
        before, gone = store.digest(), {content_hash(state("lora", n)) for n in range(1, 6)}
        kept, back = blobs_on_disk(store) - gone, content_hash(state("lora", 2))
    seen = set()
    for fuse in range(100):
        done = subprocess.run([sys.executable, "-c", THINNER, str(path), here, str(fuse)], check=False)
        reader = RunStore.open(path)
        assert (reader.verify(), reader.digest()) == ([], before)
        seen.add(len(blobs_on_disk(reader) & gone))
        if done.returncode == 0:
            break
        assert done.returncode == -9
        with RunStore.open(path, write=True) as store:  # finishes what was recorded, and nothing else
            left = blobs_on_disk(store)
            assert kept <= left
            assert left in (kept | gone, kept, kept | {back})
            assert store.verify() == []
            for number in range(1, 6):  # as it was, for the next kill
                store.put_blob(state("lora", number))
            assert blobs_on_disk(store) == kept | gone
    assert fuse > 10
    assert seen >= {0, 1, 2, 3, 4, 5}
    assert blobs_on_disk(RunStore.open(path)) == kept | {back}
