"""The store: what is written stays, what is undone never was, a reading is credited once; and what users get wrong."""

from __future__ import annotations

import math
import random
import re
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twoclock.errors import ConfigError, StoreError
from twoclock.memory.bank import Bank
from twoclock.memory.encoders import HashingEncoder
from twoclock.memory.handles import MemoryBudget, Receipt
from twoclock.memory.records import Effect, Entry, Scope
from twoclock.memory.schema import GROWING, LATEST
from twoclock.memory.store import MemoryStore
from twoclock.memory.words import words_of
from twoclock.seeding import child_rng

RED = Entry(kind="note", key="the red door", text="it is locked; take the key from the hall", provenance=("r1",))
BLUE = Entry(kind="case", key="the blue door", text="push it", reward=1.0, body={"answer": "push"}, created=5.0)
MINE = Entry(kind="reflection", key="the red door", text="look twice", scope=Scope(user="me"))
ENCODER = HashingEncoder(64)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def opened(path: Path, **options: object) -> MemoryStore:
    return MemoryStore.open(path, **{"clock": Clock(), **options})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with opened(tmp_path / "memory.sqlite", encoder=ENCODER) as one:
        yield one
        assert one.check() == []


def answers(store: MemoryStore | Bank, reader: Scope | None = None) -> list[object]:
    """Everything that reading tells: hits with every score."""
    queries = ("the red door", "key hall", "push", "something else entirely")
    extra = {"encoder": ENCODER} if isinstance(store, Bank) else {}
    return [store.search(q, scope=reader, k=9, now=now, **extra) for q in queries for now in (0.0, 100.0, 1e9)]  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- writing


def test_what_is_added_is_found_by_this_and_by_another_process(store: MemoryStore) -> None:
    receipt = store.add(RED, actor="me")
    assert receipt == Receipt(seq=1, entry_id=RED.id, action="added")
    store.add(BLUE, actor="me")
    assert store.get(RED.id) == replace(RED, created=100.0)
    assert store.get(BLUE.id) == BLUE
    with opened(store.path, encoder=ENCODER) as other:
        assert other.entries() == [BLUE, replace(RED, created=100.0)]
        (first, *_) = other.search("red doors")
        assert (first.entry.id, first.lexical is not None) == (RED.id, True)
        assert first.similarity == pytest.approx(float(ENCODER.encode(["red doors"])[0] @ ENCODER.encode([RED.key])[0]))
        store.add(MINE, actor="me")
        assert {hit.entry.id for hit in other.search("door look", scope=Scope(user="me"), k=9)} == {
            RED.id,
            BLUE.id,
            MINE.id,
        }
        store.retire(RED.id, "wrong", actor="me")
        assert RED.id not in {hit.entry.id for hit in other.search("red door", k=9)}


def test_the_same_lesson_twice_is_one_entry(store: MemoryStore) -> None:
    store.add(BLUE, actor="me")
    again = replace(BLUE, provenance=("r7",), reward=0.0, trust="self", created=50.0)
    assert store.add(again, actor="me").action == "merged"
    state = store.state(BLUE.id)
    assert state is not None
    assert (state.entry, state.adds) == (replace(BLUE, provenance=("r7",)), 2)
    store.undo(1, actor="me")
    assert store.get(BLUE.id) == again


def test_an_edit_is_a_new_version_and_the_old_one_stays_in_the_history(store: MemoryStore) -> None:
    store.add(RED, actor="me")
    new = store.edit(RED.id, text="it is open", actor="editor").entry_id
    assert [e.text for e in store.versions(new)] == ["it is open", RED.text]
    assert [(e.action, e.actor) for e in store.history(RED.id)] == [("add", "me"), ("edit", "editor")]
    old = store.state(RED.id)
    assert old is not None
    assert (old.live, old.replaced_by, old.reason) == (False, new, f"replaced by {new}")
    assert [hit.entry.id for hit in store.search("red door")] == [new]
    with pytest.raises(ConfigError, match="is not live any more: replaced by"):
        store.edit(RED.id, text="again", actor="me")
    with pytest.raises(ConfigError, match="nothing would change"):
        store.edit(new, text="it is open", actor="me")
    store.undo(store.history(new)[0], actor="me")
    assert [hit.entry.id for hit in store.search("red door")] == [RED.id]
    assert store.get(new) is None


def test_expiry_quarantine_retirement_and_revival(store: MemoryStore) -> None:
    store.add_many([RED, BLUE, MINE], actor="me")
    store.expire(RED.id, 150.0, actor="me")
    assert [RED.id in {h.entry.id for h in store.search("red door", now=now)} for now in (149.0, 150.0)] == [
        True,
        False,
    ]
    quarantined = store.quarantine(BLUE.id, "smells of injection", actor="guard")
    assert BLUE.id not in {h.entry.id for h in store.search("blue door")}
    assert store.add(replace(BLUE, provenance=("r9",)), actor="me").action == "merged"
    assert BLUE.id not in {h.entry.id for h in store.search("blue door")}
    store.undo(quarantined, actor="me")
    assert BLUE.id in {h.entry.id for h in store.search("blue door")}
    store.retire({BLUE.id: "stale", RED.id: "wrong"}, actor="me")
    assert [store.state(name).reason for name in (BLUE.id, RED.id)] == ["stale", "wrong"]  # type: ignore[union-attr]
    assert store.entries() == [replace(MINE, created=100.0)]
    assert len(store.entries(include_retired=True)) == 3
    assert store.add(BLUE, actor="me").action == "added"
    assert BLUE.id in {h.entry.id for h in store.search("blue door")}


def test_an_echo_of_what_was_shown_is_refused_and_the_refusal_kept(store: MemoryStore) -> None:
    store.add(RED, actor="me")
    echo = Entry(kind="reflection", key="a door", text=f"I learned: {RED.text}", seen=(RED.id,))
    receipt = store.add(echo, actor="agent")
    assert receipt.action == "refused"
    assert "repeats the entry" in receipt.reason
    assert store.get(echo.id) is None
    (event,) = store.events(after=1)
    assert (event.action, event.actor, event.payload["entry"]["text"]) == ("refuse", "agent", echo.text)
    assert store.stats()["action"] == {"add": 1, "refuse": 1}
    with pytest.raises(ConfigError, match="is a refusal"):
        store.undo(event, actor="me")
    # Of what has been retired since, it is an echo still.
    store.retire(RED.id, "x", actor="me")
    assert store.add(echo, actor="agent").action == "refused"


def test_an_improper_entry_writes_nothing_of_its_batch(store: MemoryStore) -> None:
    with pytest.raises(ConfigError, match="a reward must lie in"):
        store.add_many([RED, replace(BLUE, reward=math.nan)], actor="me")
    with pytest.raises(ConfigError, match=r"write add\(entry\)"):
        store.add_many(RED, actor="me")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="say who writes"):
        store.add(RED, actor="")
    with pytest.raises(ConfigError, match="lone surrogate"):
        store.add(RED, actor="\ud800")
    assert store.events() == []
    assert store.add_many([], actor="me") == []


# ---------------------------------------------------------------------------------------------------------------- undo


def test_undo_of_any_write_and_of_undos(store: MemoryStore) -> None:
    empty = store.fingerprint()
    store.add(RED, actor="me")
    one, told = store.fingerprint(), answers(store)
    second = store.add(BLUE, actor="me").seq
    both = store.fingerprint()
    first_undo = store.undo(second, actor="me")
    assert (store.fingerprint(), answers(store)) == (one, told)
    with pytest.raises(ConfigError, match="is undone already"):
        store.undo(second, actor="me")
    redo = store.undo(first_undo, actor="me")
    assert store.fingerprint() == both
    again = store.undo(second, actor="me")
    assert store.fingerprint() == one
    # The first undo is in force once more, and so holds the write back beside the last one.
    store.undo(redo, actor="me")
    store.undo(again, actor="me")
    assert store.fingerprint() == one
    store.undo(first_undo.id, actor="me")
    assert store.fingerprint() == both
    store.undo(1, actor="me")
    store.undo(second, actor="me")
    assert store.fingerprint() == empty
    assert answers(store) == [[]] * 12
    for wrong in (99, "nothing", 1 << 70):
        with pytest.raises(StoreError):
            store.undo(wrong, actor="me")
    with pytest.raises(ConfigError, match="undo takes an event"):
        store.undo(None, actor="me")  # type: ignore[arg-type]


WORDS = ["red", "blue", "door", "key", "hall", "push", "pull", "look", "open", "locked", "twice", "never", "lamp"]


def some_entry(rng: random.Random) -> Entry:
    scope = rng.choice([Scope(), Scope(), Scope(user="me"), Scope(user="them")])
    key, text = (" ".join(rng.choices(WORDS, k=rng.randint(1, most))) for most in (4, 9))
    return Entry(kind=rng.choice(["note", "case"]), key=key, text=text, scope=scope, created=float(rng.randint(1, 99)))


def some_writes(rng: random.Random, count: int) -> list[tuple[str, ...] | tuple[object, ...]]:
    """Writes that each can be made whether or not the others were: by entry, not by what stands."""
    entries = [some_entry(rng) for _ in range(6)]
    writes: list[tuple[object, ...]] = [("add", entry) for entry in entries]
    for n in range(count):
        entry = rng.choice(entries)
        kind = rng.choice(["add", "expire", "quarantine", "credit", "fresh", "credit"])
        given = {"add": replace(entry, provenance=(f"r{n}",)), "fresh": some_entry(rng)}.get(kind, entry)
        writes.append((kind, given, rng.randint(1, 200), rng.random(), rng.random() < 0.6))
    return writes


def write(store: MemoryStore, what: tuple[object, ...]) -> int:
    kind, entry, *more = what
    assert isinstance(entry, Entry)
    if kind in ("add", "fresh"):
        return store.add(entry, actor="me").seq
    if kind == "expire":
        return store.expire(entry.id, float(more[0]), actor="me").seq  # type: ignore[arg-type]
    if kind == "quarantine":
        return store.quarantine(entry.id, "x", actor="me").seq
    reading = store.read(entry.key, scope=entry.scope, k=3, hold_out=0.5, seed=int(more[0]))  # type: ignore[call-overload]
    return store.outcome(reading, float(more[1])).seq  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_what_was_undone_was_never_written(tmp_path: Path, seed: int) -> None:
    """Random writes, some of them undone (and some undos undone, and so on) in random order, against a store that was
    given the others alone: the same state, answers and scores, and the same again when all is made anew."""
    rng = child_rng("undo", seed)
    writes = [w for w in some_writes(rng, 25) if w[0] != "credit"]
    with (
        opened(tmp_path / "a.sqlite", encoder=ENCODER) as store,
        opened(tmp_path / "b.sqlite", encoder=ENCODER) as model,
    ):
        events = [write(store, what) for what in writes]
        # The first six entries stay, as later writes are about them; which others go is drawn.
        for n in rng.sample(range(6, len(writes)), 12):
            event = events[n]
            for turn in range(rng.choice([1, 1, 2, 3])):
                event = store.undo(event, actor="me").seq
                if turn == 0:
                    answers(store)
        undone = {event.seq for event in store.events() if event.undone}
        for n, what in enumerate(writes):
            if events[n] not in undone:
                write(model, what)
        same_as(store, model)
        store.rebuild()
        same_as(store, model)
    with (
        opened(tmp_path / "a.sqlite", encoder=ENCODER) as anew,
        opened(tmp_path / "b.sqlite", encoder=ENCODER) as model,
    ):
        same_as(anew, model)


def same_as(store: MemoryStore, model: MemoryStore) -> None:
    assert store.check() == []
    assert store.fingerprint() == model.fingerprint()
    for reader in (None, Scope(user="me"), Scope(user="them", task="t")):
        assert answers(store, reader) == answers(model, reader)
    assert store.entries(include_retired=True) == model.entries(include_retired=True)


@pytest.mark.parametrize("seed", range(4))
def test_every_past_can_be_read_and_undoing_back_to_it_is_the_same(tmp_path: Path, seed: int) -> None:
    """All writes, outcomes too: `at` gives each moment as it was, and taking back all that came later restores it."""
    rng = child_rng("at", seed)
    with opened(tmp_path / "a.sqlite", encoder=ENCODER) as store:
        moments = []
        for what in some_writes(rng, 14):
            seq = write(store, what)
            if seq > 6 and rng.random() < 0.3:
                seq = store.undo(rng.choice([e for e in store.events(after=6) if not e.undone]), actor="me").seq
            moments.append((seq, store.fingerprint(), answers(store), store.effects()))
        for seq, _, told, effects in moments:
            then = store.at(seq)
            assert answers(then) == told
            assert then.effects == effects
        assert store.at(0) == Bank()
        for (seq, fingerprint, told, _), (after, *_) in zip(moments[-2::-1], moments[:0:-1], strict=True):
            for later in range(after, seq, -1):
                (event,) = [e for e in store.events(after=later - 1) if e.seq == later]
                if not event.undone:
                    store.undo(event, actor="me")
            assert (store.fingerprint(), answers(store)) == (fingerprint, told)
        assert store.check() == []


# ------------------------------------------------------------------------------------------------------------- reading


def test_a_reading_is_credited_once_by_any_process(store: MemoryStore) -> None:
    store.add_many([RED, BLUE], actor="me")
    reading = store.read("door", hold_out=0.5, seed=1)
    assert {h.entry.id for h in (*reading.shown, *reading.held)} == {RED.id, BLUE.id}
    with opened(store.path) as other:
        event = other.outcome(reading.id, 1.0, baseline=0.25)
    assert event.payload["value"] == 0.75
    shown = {h.entry.id for h in reading.shown}
    for name in (RED.id, BLUE.id):
        assert store.effects()[name] == Effect().add(0.75, shown=name in shown)
    with pytest.raises(ConfigError, match=f"was credited by event {event.seq}"):
        store.outcome(reading, 0.0)
    store.undo(event, actor="me")
    assert store.effects() == {}
    store.outcome(reading, 0.0)
    assert store.effects()[RED.id].shown + store.effects()[RED.id].held == 1


def test_each_entry_is_held_out_by_its_own_coin(store: MemoryStore) -> None:
    store.add_many([replace(RED, key=f"door number {n}") for n in range(4)], actor="me")
    held: dict[str, int] = {}
    pairs = 0
    for _ in range(160):
        reading = store.read("door", hold_out=0.3, seed=5)
        pairs += len(reading.held) >= 2
        for hit in reading.held:
            held[hit.entry.id] = held.get(hit.entry.id, 0) + 1
    # 160 coins: 0.3 ± 4 standard deviations; two of four are out together with probability .3483, not .3.
    assert all(abs(count / 160 - 0.3) < 0.145 for count in held.values())
    assert len(held) == 4
    assert abs(pairs / 160 - 0.3483) < 0.151
    assert store.read("door", hold_out=0.0, seed=1).held == ()
    assert store.read("door", hold_out=1.0).shown == ()
    assert store.read("nothing of the kind", kinds=["skill"]).shown == ()


def test_what_is_no_outcome_credits_nothing(store: MemoryStore) -> None:
    store.add(RED, actor="me")
    reading = store.read("door", seed=0)
    for reward in (math.nan, math.inf, "1", None, True):
        with pytest.raises(ConfigError, match="an outcome is a reward"):
            store.outcome(reading, reward)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="an outcome is a reward"):
        store.outcome(reading, 1.0, baseline=math.nan)
    for unknown in ("nothing", 7, None):
        with pytest.raises(ConfigError, match="there is no reading"):
            store.outcome(unknown, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hold_out is a probability"):
        store.read("door", hold_out=1.5)
    assert store.effects() == {}


def test_listing_by_words_takes_no_text_for_syntax(store: MemoryStore) -> None:
    store.add_many([RED, BLUE, MINE], actor="me")
    assert store.entries(containing="hall KEY") == [replace(RED, created=100.0)]
    assert {e.id for e in store.entries(containing="door", scope=Scope())} == {RED.id, BLUE.id}
    assert {e.id for e in store.entries(kinds=["case", "note"])} == {RED.id, BLUE.id}
    for odd in ('"', "door AND", 'NEAR("x" y)', "key:door", "door*", "a\0b", "-door", "(", "^door", "{key}: door"):
        if words_of(odd):
            store.entries(containing=odd)
        else:
            with pytest.raises(ConfigError, match="has no word in it"):
                store.entries(containing=odd)
    assert store.entries(containing="NOT") == []
    with pytest.raises(ConfigError, match="write kinds="):
        store.entries(kinds="note")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown kind of entry 'lesson'"):
        store.entries(kinds=["lesson"])  # type: ignore[list-item]


# ------------------------------------------------------------------------------------------------------------ episodes


def test_episodes_never_change(store: MemoryStore) -> None:
    digest = store.add_episode("r1", {"turns": ["a", "b"], "reward": 0.5})
    assert store.add_episode("r1", {"reward": 0.5, "turns": ["a", "b"]}) == digest
    assert store.episode("r1") == {"turns": ["a", "b"], "reward": 0.5}
    with pytest.raises(ConfigError, match="episodes never change"):
        store.add_episode("r1", {})
    with pytest.raises(ConfigError, match="must be plain JSON"):
        store.add_episode("r2", {"x": math.nan})
    with pytest.raises(ConfigError, match="an episode needs a name"):
        store.add_episode("", {})
    with pytest.raises(StoreError, match="there is no episode 'r2'"):
        store.episode("r2")


# -------------------------------------------------------------------------------------------------------------- bounds


def test_the_budget_is_never_passed(tmp_path: Path) -> None:
    clock = Clock()
    with MemoryStore.open(tmp_path / "m.sqlite", budget=MemoryBudget(entries=10, slack=0.2), clock=clock) as store:
        for n in range(40):
            clock.now += 1
            store.add(Entry(kind="note", key=f"door {n}", text=f"lesson {n}"), actor="me")
            assert len(store.entries()) <= 10
        assert len(store.entries()) >= 8
        many = [Entry(kind="note", key=f"lamp {n}", text="x") for n in range(50)]
        store.add_many(many, actor="me")
        assert len(store.entries()) == 8
        assert {e.actor for e in store.events() if e.action == "retire"} == {"budget"}
        assert store.check() == []
    for bad in ({"entries": 0}, {"entries": 5, "slack": 1.0}, {"entries": 2.5}):
        with pytest.raises(ConfigError, match="a budget is a number of entries"):
            MemoryBudget(**bad)  # type: ignore[arg-type]


def test_enforce_retires_what_the_policy_says_and_nothing_else(store: MemoryStore) -> None:
    store.add_many([RED, BLUE], actor="me")
    assert store.enforce(lambda e, f, now: {RED.id: "useless"}, actor="policy") == {RED.id: "useless"}
    assert store.enforce(lambda e, f, now: [], actor="policy") == {}
    before = store.fingerprint()
    for wrong in ([BLUE.id, RED.id], None, BLUE.id, [BLUE], 7):
        if wrong != BLUE.id:
            with pytest.raises(ConfigError, match="which is no live entry"):
                store.enforce(lambda e, f, now, wrong=wrong: wrong, actor="policy")  # type: ignore[misc]
    with pytest.raises(ZeroDivisionError):
        store.enforce(lambda e, f, now: [str(1 / 0)], actor="policy")
    with pytest.raises(StoreError, match="from within one of its own writes"):
        store.enforce(lambda e, f, now: [h.entry.id for h in store.search("door")], actor="policy")
    assert store.fingerprint() == before


# ------------------------------------------------------------------------------------------------------------- vectors


def test_vectors_of_another_encoder_are_refused_or_made_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "m.sqlite", HashingEncoder(128)
    with opened(path) as plain:
        plain.add(RED, actor="me")
    with opened(path, encoder=ENCODER) as store:
        # What was added without an encoder is embedded when it is first looked for.
        assert store.search(RED.key)[0].similarity == pytest.approx(1.0)
        with pytest.raises(StoreError, match=r"embedded with 'hashing-1:64' \(64 dimensions\).*reembed=True"):
            opened(path, encoder=other)
        with opened(path, encoder=other, reembed=True) as anew:
            assert anew.search(RED.key)[0].similarity == pytest.approx(1.0)
        # The first one, still open, must not go on with what is no longer there.
        with pytest.raises(StoreError, match="hashing-1:128"):
            store.add(BLUE, actor="me")
        assert store.stats()["rows"]["vectors"] == 1
    with opened(path) as plain, pytest.raises(ConfigError, match="opened without an encoder"):
        plain.reembed()


# ----------------------------------------------------------------------------------------------------------- integrity


def test_damage_to_what_is_derived_is_found_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    with opened(path, encoder=ENCODER) as store:
        store.add_many([RED, BLUE], actor="me")
        store.outcome(store.read("door", seed=1), 1.0)
        store.add_episode("r1", [1])
        before, told = store.fingerprint(), answers(store)
        for statement in (
            "UPDATE entries SET provenance = '[]', trust = 'self'",
            "DELETE FROM entries",
            "UPDATE effects SET shown = shown + 1",
            "DELETE FROM entries_words",
        ):
            with sqlite3.connect(path) as db:
                db.execute(statement)
            db.close()
            assert store.check()
            store.rebuild()
            assert store.check() == []
            assert (store.fingerprint(), answers(store)) == (before, told)
        with sqlite3.connect(path) as db:
            db.execute("DROP TRIGGER episodes_update")
            db.execute("UPDATE episodes SET payload = '[2]'")
        db.close()
        assert store.check() == ["the episode 'r1' is not what its hash says"]


def test_the_history_only_grows_whoever_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    with opened(path) as store:
        store.add_many([RED, BLUE], actor="me")
        store.outcome(store.read("door", seed=1), 1.0)
        store.add_episode("r1", [1])
    db = sqlite3.connect(path)
    for table in GROWING:
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET {columns[0]} = {columns[0]}"):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                db.execute(statement)
    db.close()


def test_the_tables_for_postgresql_are_the_same(tmp_path: Path) -> None:
    told = (Path(__file__).parents[2] / "docs" / "memory_postgres.sql").read_text(encoding="utf-8")
    theirs = {
        name: re.findall(r"(?:^|,)\s*([a-z_]+) (?:TEXT|BIGINT|INTEGER|DOUBLE|BYTEA)", body)
        for name, body in re.findall(r"CREATE TABLE (\w+) \((.*?)\);", told, re.DOTALL)
    }
    opened(tmp_path / "m.sqlite").close()
    db = sqlite3.connect(tmp_path / "m.sqlite")
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    names = {row[0] for row in db.execute(query)} - {"migrations"}
    ours = {
        name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")]
        for name in names
        if not name.startswith("entries_words")
    }
    db.close()
    assert theirs == ours


def test_a_file_that_goes_away_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    with opened(path) as store:
        store.add(RED, actor="me")
        for tail in ("", "-wal", "-shm"):
            path.with_name(path.name + tail).unlink(missing_ok=True)
        for _ in range(2):
            with pytest.raises(StoreError, match="moved, deleted or replaced while it was open"):
                store.add(BLUE, actor="me")
            opened(path).close()


@pytest.mark.parametrize("wrong", ["shape", "nan"])
def test_an_encoder_that_breaks_its_contract_writes_nothing(tmp_path: Path, wrong: str) -> None:
    class Broken(HashingEncoder):
        def encode(self, texts):  # type: ignore[no-untyped-def]
            made = super().encode(texts)
            return made[:, :-1] if wrong == "shape" else made * np.float32("nan")

    with opened(tmp_path / "m.sqlite", encoder=Broken(64)) as store:
        with pytest.raises(ConfigError, match="must make finite vectors"):
            store.add(RED, actor="me")
        assert store.events() == []
    with pytest.raises(ConfigError, match="must make finite vectors"):
        Bank().add(RED).search("red", now=0.0, encoder=Broken(64))


def test_files_that_are_no_memory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no memory at"):
        MemoryStore.open(tmp_path / "none.sqlite", create=False)
    with pytest.raises(StoreError, match="its folder is not"):
        MemoryStore.open(tmp_path / "no" / "folder.sqlite")
    with pytest.raises(StoreError, match="cannot be a memory file"):
        MemoryStore.open(tmp_path)
    text = tmp_path / "text.sqlite"
    text.write_text("not a database, but long enough to be looked at " * 50)
    with pytest.raises(StoreError, match="is no SQLite file"):
        MemoryStore.open(text)
    assert text.read_text().startswith("not a database")
    other = tmp_path / "other.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(StoreError, match="not a twoclock memory"):
        MemoryStore.open(other)
    newer = tmp_path / "newer.sqlite"
    opened(newer).close()
    db = sqlite3.connect(newer)
    db.execute(f"PRAGMA user_version = {LATEST + 1}")
    db.close()
    with pytest.raises(StoreError, match="pip install --upgrade twoclock"):
        MemoryStore.open(newer)
    with pytest.raises(ConfigError, match="use a Bank"):
        MemoryStore.open(":memory:")
    with pytest.raises(ConfigError, match="build_encoder"):
        MemoryStore.open(tmp_path / "m.sqlite", encoder="minilm")  # type: ignore[arg-type]
    store = opened(tmp_path / "closed.sqlite")
    store.close()
    store.close()
    with pytest.raises(StoreError, match="was closed"):
        store.search("x")
    # A file that was cut off before it was made is made.
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    with opened(empty) as store:
        assert store.check() == []


def test_a_damaged_file_is_told_not_read_as_if_it_were_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    with opened(path) as store:
        store.add_many([replace(RED, key=f"door {n}", text="lesson " * 40) for n in range(60)], actor="me")
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 4096, len(whole) // 3 + 100):
        assert is_told(tmp_path / f"cut{size}.sqlite", whole[:size])
    places = [found.start() for found in re.finditer(b"lesson", whole)]
    for at in places[:: len(places) // 12]:
        changed = whole[:at] + b"Lesson" + whole[at + 6 :]
        assert is_told(tmp_path / f"changed{at}.sqlite", changed)


def is_told(path: Path, content: bytes) -> bool:
    """Whether an error or the check says that something is wrong."""
    path.write_bytes(content)
    try:
        with opened(path) as store:
            return bool(store.check())
    except StoreError as error:
        return str(path) in str(error)


def test_a_history_that_was_rewritten_is_found(tmp_path: Path) -> None:
    """Also where the one who did it made everything that follows anew."""
    path = tmp_path / "m.sqlite"
    with opened(path) as store:
        store.add_many([RED, BLUE], actor="me")
        store.retire(RED.id, "x", actor="me")
    for statement, told in (
        ("UPDATE events SET actor = 'you' WHERE seq = 2", 2),
        ("UPDATE events SET payload = replace(payload, 'push it', 'pull it') WHERE seq = 2", 2),
        ("DELETE FROM events WHERE seq = 2", 3),
        ("DELETE FROM touches WHERE seq = 3", 3),
    ):
        copy = tmp_path / f"{told}.sqlite"
        copy.write_bytes(path.read_bytes())
        db = sqlite3.connect(copy)
        for table in ("events", "touches"):
            for verb in ("update", "delete"):
                db.execute(f"DROP TRIGGER {table}_{verb}")
        db.execute(statement)
        db.commit()
        db.close()
        with opened(copy) as store:
            store.rebuild()
            assert f"event {told} is not what was written: restore the file from a copy" in store.check()


def test_threads_share_a_store(store: MemoryStore) -> None:
    problems: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for n in range(8):
                store.add(Entry(kind="note", key=f"door {name} {n}", text="x"), actor=str(name))
                store.search("door")
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(store.entries()) == 32
