"""A bank is a value: writes give another, equal content has equal bytes, and what it may not take up it refuses."""

from __future__ import annotations

import math
import pickle
import zlib
from dataclasses import replace

import numpy as np
import pytest

from twoclock.errors import ConfigError, StoreError
from twoclock.memory.bank import Bank
from twoclock.memory.encoders import HashingEncoder
from twoclock.memory.records import Effect, Entry, Scope

RED = Entry(kind="note", key="the red door", text="it is locked; take the key from the hall", created=3.0)
BLUE = Entry(kind="case", key="the blue door", text="push it", reward=1.0, body={"answer": "push"}, provenance=("r1",))
MINE = Entry(kind="reflection", key="the red door", text="look twice", scope=Scope(user="me"), expires=9.0)


def test_writes_give_another_bank_and_leave_the_old_one() -> None:
    empty = Bank()
    one = empty.add(RED, BLUE)
    two = one.credit(RED.id, 1.0, shown=True).retire(BLUE.id)
    assert (len(empty), len(one), len(two)) == (0, 2, 1)
    assert one.effects == {}
    assert two.effect(RED.id) == Effect(shown=1, shown_sum=1.0, shown_squares=1.0)
    assert two.effect("absent") == Effect()
    assert (one.get(BLUE.id), two.get(BLUE.id)) == (BLUE, None)
    assert len({empty.id, one.id, two.id}) == 3


def test_the_same_lesson_twice_is_one_entry_with_the_provenance_of_both() -> None:
    again = replace(BLUE, provenance=("r2", "r1"), reward=0.0, created=8.0)
    bank = Bank().add(BLUE, again)
    assert bank.entries == (replace(BLUE, provenance=("r1", "r2")),)
    assert bank.add(again) is bank


def test_credit_of_what_is_not_there_and_of_no_number() -> None:
    bank = Bank().add(RED)
    with pytest.raises(ConfigError, match="no entry 'nothing' among the 1"):
        bank.credit("nothing", 1.0, shown=True)
    for value in (math.nan, math.inf, 1e200, "1", None, True):
        with pytest.raises(ConfigError, match="a finite number near"):
            bank.credit(RED.id, value, shown=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no entry"):
        bank.retire(["nothing"])


def test_enforce_takes_ids_or_reasons_by_id() -> None:
    bank = Bank().add(RED, BLUE)
    assert bank.enforce(lambda entries, effects, now: {e.id: "why" for e in entries[:1]}, now=1.0).entries == (BLUE,)
    assert bank.enforce(lambda entries, effects, now: [], now=1.0) is bank


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (replace(RED, kind="lesson"), "unknown kind of entry 'lesson'"),  # type: ignore[arg-type]
        (replace(RED, trust="trusted"), "unknown trust 'trusted'"),  # type: ignore[arg-type]
        (replace(RED, key="", text=" \n"), "both empty"),
        (replace(RED, text=None), "text must be a string; got None"),  # type: ignore[arg-type]
        (replace(RED, text="half \ud83d"), "lone surrogate"),
        (replace(RED, text="x" * 1_000_001), "1000000 are allowed"),
        (replace(RED, reward=1.5), "a reward must lie in"),
        (replace(RED, reward=math.nan), "a reward must lie in"),
        (replace(RED, created=math.nan), "created must be a finite time"),
        (replace(RED, expires=math.inf), "expires must be a finite time"),
        (replace(RED, body={"x": math.nan}), "plain JSON"),
        (replace(RED, body={"x": {1, 2}}), "plain JSON"),
        (replace(RED, body={1: "x"}), "plain JSON"),  # type: ignore[dict-item]
        (replace(RED, provenance="r1"), "must be a tuple of names"),  # type: ignore[arg-type]
        (replace(RED, scope=Scope(user=7)), "scope.user must be a string"),  # type: ignore[arg-type]
        ("a lesson", "got str"),
    ],
)
def test_an_improper_entry_is_refused_with_what_is_wrong_and_nothing_is_added(entry: Entry, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Bank().add(BLUE, entry)


def test_what_repeats_what_it_was_shown_is_left_out() -> None:
    bank = Bank().add(RED, BLUE)
    echo = Entry(kind="reflection", key="another door", text=f"Remember: {RED.text}!", seen=(RED.id,))
    assert "repeats the entry" in str(bank.refusal(echo))
    assert bank.add(echo) is bank
    assert "is the entry" in str(bank.refusal(replace(RED, seen=(RED.id,))))
    # The same words from elsewhere, or news beside an ancestor, are welcome.
    assert len(bank.add(replace(echo, seen=()))) == 3
    assert len(bank.add(replace(echo, seen=("not here",)))) == 3
    assert len(bank.add(Entry(kind="reflection", key="x", text="the hall is dark at night", seen=(RED.id,)))) == 3
    # A case is what happened: an old answer that worked in a new situation is news.
    assert len(bank.add(replace(BLUE, key="the green door", seen=(BLUE.id,)))) == 3
    assert bank.refusal(replace(BLUE, key="The blue door!", text="Push it.", seen=(BLUE.id,))) is not None


# ------------------------------------------------------------------------------------------------------------- bytes


def test_dump_and_load_are_exact_and_canonical() -> None:
    bank = Bank().add(RED, BLUE, MINE).credit(BLUE.id, 0.1, shown=True).credit(RED.id, 0.2, shown=False)
    other = Bank().add(RED, BLUE, MINE).credit(RED.id, 0.2, shown=False).credit(BLUE.id, 0.1, shown=True)
    back = Bank.load(bank.dump())
    assert (back, back.id, back.dump()) == (bank, bank.id, bank.dump())
    assert (other, other.dump(), hash(other)) == (bank, bank.dump(), hash(bank))
    assert Bank.load(Bank().dump()) == Bank()
    assert pickle.loads(pickle.dumps(bank)) == bank


def test_bytes_that_are_no_bank_are_refused() -> None:
    good = Bank().add(RED, BLUE).dump()
    text = zlib.decompress(good)
    bad = [
        b"",
        b"nonsense",
        good[:-5],
        good + b"x",
        zlib.compress(b"[]"),
        zlib.compress(b"{}"),
        zlib.compress(b"[" * 100_000),
        zlib.compress(text.replace(b'"format":1', b'"format":2')),
        zlib.compress(text.replace(b'"effects":{}', b'"effects":{"nothing":[1,1,1,0,0,0]}')),
        zlib.compress(text.replace(b'"kind":"note"', b'"kind":"nonsense"')),
        zlib.compress(text.replace(b'"kind":"note"', b'"sort":"note"')),
    ]
    for blob in bad:
        with pytest.raises(StoreError, match="are no dump of a memory bank"):
            Bank.load(blob)
    for position in range(0, len(good), 7):
        changed = bytearray(good)
        changed[position] ^= 0x10
        with pytest.raises(StoreError):
            Bank.load(bytes(changed))


# ------------------------------------------------------------------------------------------------------------ search


def test_search_shows_what_the_reader_may_see_and_what_it_was_ranked_by() -> None:
    bank = Bank().add(RED, BLUE, MINE, replace(BLUE, key="a quarantined door", trust="quarantined"))
    hits = bank.search("red door", now=0.0)
    assert [h.entry.id for h in hits] == [RED.id, BLUE.id]
    assert hits[0].lexical > hits[1].lexical > 0
    assert hits[0].similarity is None
    me = Scope(user="me")
    assert {h.entry.id for h in bank.search("red door", scope=me, now=0.0)} == {RED.id, BLUE.id, MINE.id}
    assert {h.entry.id for h in bank.search("red door", scope=me, now=9.0)} == {RED.id, BLUE.id}
    assert [h.entry.id for h in bank.search("red door", scope=me, now=0.0, kinds=["reflection"])] == [MINE.id]
    assert bank.search("red door", now=0.0, k=0) == []
    assert Bank().search("red door", now=0.0, encoder=HashingEncoder(64)) == []


def test_vectors_are_made_once_for_a_key_and_handed_on() -> None:
    class Counting(HashingEncoder):
        texts: list[str] = []  # noqa: RUF012

        def encode(self, texts):  # type: ignore[no-untyped-def]
            self.texts.extend(texts)
            return super().encode(texts)

    encoder = Counting(64)
    bank = Bank().add(RED, BLUE)
    (first, _) = bank.search("the red doors", now=0.0, encoder=encoder)
    assert first.entry == RED
    expected = float(np.dot(*HashingEncoder(64).encode(["the red doors", RED.key])))
    assert first.similarity == pytest.approx(expected, abs=1e-6)
    later = bank.add(MINE).credit(RED.id, 1.0, shown=True)
    later.search("x", now=0.0, encoder=encoder)
    assert encoder.texts == [RED.key, BLUE.key, "the red doors", MINE.key, "x"]
    assert later.search("red", now=0.0, encoder=encoder) == Bank.load(later.dump()).search(
        "red", now=0.0, encoder=encoder
    )
