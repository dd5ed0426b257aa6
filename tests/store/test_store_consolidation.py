"""A consolidation in the ledger: several channels at once, between rounds, and gone back from like any other change."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from store_records import CHANNELS, make_run, round_record, state

from twoclock.errors import StoreError
from twoclock.store import RunStore
from twoclock.store.ledger import Ledger
from twoclock.types import Cost, LedgerEntry, Snapshot, Write


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with make_run(tmp_path / "run", rounds=3) as made:
        yield made


def entry(channel: str, head: Snapshot, after: str, action: str = "consolidate") -> LedgerEntry:
    return LedgerEntry(
        round=0,
        channel=channel,
        timescale=CHANNELS[channel],
        action=action,  # type: ignore[arg-type]
        before=head.states[channel],
        after=after,
        cause="consolidation k",
        reason="kept",
        cost=Cost(rollouts=5),
        writes=(Write(text="say it shorter", kind="consolidate", lesson="l1"),),
    )


def consolidated(store: RunStore) -> Snapshot:
    head = store.head()
    states = {name: store.put_blob(state(name, 99)) for name in CHANNELS}
    return store.append_consolidation(
        [entry(name, head, states[name]) for name in CHANNELS], states, expected=head, cause="consolidation k"
    )


def test_both_channels_change_at_once_between_rounds(store: RunStore) -> None:
    before = store.head()
    head = consolidated(store)
    assert head == store.head()
    assert (head.round, head.next_round, head.cause) == (3, 4, "consolidation k")
    assert all(store.get_blob(head.states[name]) == state(name, 99) for name in CHANNELS)
    entries = store.entries(action="consolidate")
    assert [(e.channel, e.round, e.task) for e in entries] == [("prompts", 3, "sums"), ("lora", 3, "sums")]
    assert all(e.is_by_hand for e in entries)
    assert store.snapshot_at(3) == before  # what round 3 itself left behind
    assert store.verify() == []
    store.commit_round(round_record(store))
    assert store.snapshot_at(4).states["prompts"] == head.states["prompts"]
    assert store.verify() == []


def test_a_rollback_to_the_last_round_takes_it_back(store: RunStore) -> None:
    before = store.head()
    consolidated(store)
    assert store.append_rollback(3, reason="no").states == before.states
    assert store.verify() == []


def test_one_that_was_refused_leaves_its_entry_and_nothing_else(store: RunStore) -> None:
    head = store.head()
    kept = entry("lora", head, head.states["lora"], action="refuse")
    assert store.append_consolidation([kept], {}, expected=head, cause="consolidation k") == head
    assert store.head() == head
    (found,) = store.entries(action="refuse")
    assert (found.round, found.before, found.after, found.cost.rollouts) == (3, found.after, found.before, 5)
    assert not found.is_by_hand
    assert store.verify() == []


def test_what_was_worked_out_on_other_states_is_refused(store: RunStore) -> None:
    old = store.head()
    store.commit_round(round_record(store))
    digest = store.digest()
    states = {"lora": store.put_blob(b"new")}
    with pytest.raises(StoreError, match="have changed since"):
        store.append_consolidation([entry("lora", old, states["lora"])], states, expected=old, cause="c")
    head = store.head()
    with pytest.raises(StoreError, match="unknown channel 'loro'; did you mean 'lora'"):
        store.append_consolidation([], {"loro": states["lora"]}, expected=head, cause="c")
    with pytest.raises(StoreError, match="has no blob; put the blob first"):
        store.append_consolidation([entry("lora", head, "0" * 64)], {"lora": "0" * 64}, expected=head, cause="c")
    assert store.digest() == digest


def test_a_reader_consolidates_nothing(store: RunStore) -> None:
    head = store.head()
    with RunStore.open(store.path) as reader, pytest.raises(StoreError, match="open for reading"):
        reader.append_consolidation([], {}, expected=head, cause="c")


def test_it_is_all_or_nothing(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before, digest = store.head(), store.digest()

    def broken(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Ledger, "_add_snapshot", broken)
    with pytest.raises(StoreError, match="nothing of this write was kept"):
        consolidated(store)
    assert (store.head(), store.digest()) == (before, digest)


def test_killed_inside_the_transaction(tmp_path: Path) -> None:
    make_run(tmp_path / "run", rounds=2).close()
    child = os.fork()
    if child == 0:
        with RunStore.open(tmp_path / "run", write=True) as mine:
            Ledger._add_snapshot = lambda *_: os.kill(os.getpid(), 9)  # type: ignore[method-assign, assignment]
            consolidated(mine)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 9
    with RunStore.open(tmp_path / "run", write=True) as found:
        assert found.head() == found.snapshot_at(2)
        assert found.entries(action="consolidate") == []
        assert found.verify() == []
        head = consolidated(found)
        assert found.head() == head


def test_verify_finds_a_refusal_that_changed_something(store: RunStore) -> None:
    consolidated(store)
    with closing(sqlite3.connect(store.path / "ledger.sqlite")) as db, db:
        db.execute("UPDATE entries SET action = 'refuse' WHERE action = 'consolidate' AND channel = 'lora'")
    assert any("must not" in problem for problem in store.verify())
