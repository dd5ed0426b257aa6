"""No scope tells anything of another: random scopes, entries, writes and queries, and the ways round the fence."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from twoclock.errors import ConfigError
from twoclock.memory.encoders import HashingEncoder
from twoclock.memory.records import Entry, Scope
from twoclock.memory.store import MemoryStore
from twoclock.seeding import child_rng

ENCODER = HashingEncoder(32)
WORDS = ["red", "blue", "door", "key", "hall", "push", "pull", "look", "open", "locked", "lamp", "SECRET"]
NOTE = Entry(kind="note", key="the red door", text="push it", scope=Scope(user="a"), created=1.0)


def some_scope(rng: random.Random) -> Scope:
    values = {name: rng.choice(["", "", "a", "b"]) for name in ("agent", "user", "task", "session")}
    # An id that looks like an empty or a wild one is an id like any other.
    return Scope(
        **(values if rng.random() < 0.9 else {**values, "user": rng.choice(["*", "%", " ", "A", "a' OR 1=1"])})
    )


def some_entry(rng: random.Random) -> Entry:
    key, text = (" ".join(rng.choices(WORDS, k=rng.randint(1, most))) for most in (5, 9))
    return Entry(kind="note", key=key, text=text, scope=some_scope(rng), created=float(rng.randint(1, 9)))


@pytest.mark.parametrize("seed", range(4))
def test_a_reader_sees_and_is_told_only_what_is_its_own(tmp_path: Path, seed: int) -> None:
    """Every way to read gives a reader what a store gives that holds the reader's entries alone: the same entries in
    the same order with the same scores, whatever else is written, retired and undone beside them."""
    rng = child_rng("scopes", seed)
    entries = [some_entry(rng) for _ in range(60)]
    readers = [some_scope(rng) for _ in range(8)]
    with MemoryStore.open(tmp_path / "all.sqlite", encoder=ENCODER, clock=lambda: 50.0) as store:
        store.add_many(entries, actor="me")
        for n, reader in enumerate(readers):
            own = [e for e in entries if reader.may_read(e.scope)]
            others = [e for e in entries if not reader.may_read(e.scope)]
            with MemoryStore.open(tmp_path / f"{n}.sqlite", encoder=ENCODER, clock=lambda: 50.0) as alone:
                alone.add_many(own, actor="me")
                for _ in range(4):
                    query = " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))
                    hits = store.search(query, scope=reader, k=40, candidates=rng.choice([3, 100]))
                    assert all(reader.may_read(hit.entry.scope) for hit in hits)
                    assert store.search(query, scope=reader, k=5) == alone.search(query, scope=reader, k=5)
                    reading = store.read(query, scope=reader, k=40, hold_out=0.5, seed=n)
                    assert all(reader.may_read(hit.entry.scope) for hit in (*reading.shown, *reading.held))
                assert store.entries(scope=reader) == alone.entries(scope=reader)
                assert store.entries(scope=reader, containing="SECRET") == alone.entries(containing="SECRET")
            for entry in others[:5]:
                assert store.get(entry.id, scope=reader) is None
            if others:
                gone = rng.choice(others)
                before = store.search("door key", scope=reader, k=40)
                event = store.retire(gone.id, "x", actor="me")
                assert store.search("door key", scope=reader, k=40) == before
                store.undo(event, actor="me")
                assert store.search("door key", scope=reader, k=40) == before
        assert store.check() == []


def test_a_writer_writes_into_no_other_scope_without_saying_so(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path / "m.sqlite", clock=lambda: 50.0) as store:
        for other in (Scope(), Scope(user="b"), Scope(user="a", session="s")):
            with pytest.raises(ConfigError, match="say across=True"):
                store.add_many([NOTE, replace(NOTE, scope=other)], actor="me", writer=Scope(user="a"))
        assert store.entries() == []
        store.add(NOTE, actor="me", writer=Scope(user="a"))
        store.add(replace(NOTE, scope=Scope()), actor="me", writer=Scope(user="a"), across=True)
        # What the writer may read, but is open to all, is not the writer's to change.
        shared = replace(NOTE, scope=Scope()).id
        with pytest.raises(ConfigError, match="say across=True"):
            store.retire(shared, "x", actor="me", writer=Scope(user="a"))


def test_of_what_a_writer_may_not_see_not_even_that_it_is_there_is_told(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path / "m.sqlite", clock=lambda: 50.0) as store:
        store.add(NOTE, actor="me")
        stranger = Scope(user="b")
        told = set()
        for name in (NOTE.id, "0123456789abcdef"):
            for act in (
                lambda name: store.edit(name, text="x", actor="me", writer=stranger),
                lambda name: store.retire(name, "x", actor="me", writer=stranger),
                lambda name: store.expire(name, actor="me", writer=stranger),
                lambda name: store.quarantine(name, "x", actor="me", writer=stranger),
            ):
                with pytest.raises(ConfigError) as caught:
                    act(name)
                told.add(str(caught.value).replace(name, "ID"))
        assert told == {f"there is no entry 'ID' in {store.path}"}
        assert len(store.events()) == 1


def test_the_same_lesson_in_two_scopes_is_two_entries(tmp_path: Path) -> None:
    """A duplicate in another scope is no duplicate: being told so would tell what stands there."""
    with MemoryStore.open(tmp_path / "m.sqlite") as store:
        store.add(NOTE, actor="me")
        assert store.add(replace(NOTE, scope=Scope(user="b")), actor="me").action == "added"
        assert len(store.entries()) == 2
