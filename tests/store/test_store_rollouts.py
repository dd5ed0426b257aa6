"""Rollouts token by token: what a search sampled comes back to the last bit, apart from what a round learned from."""

from __future__ import annotations

import math
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_records import conditioning, evidence, make_run, rollout, round_record, searched, unsynced  # noqa: F401

from twoclock.errors import NumericsError, StoreError
from twoclock.store import KeptRollout, RunStore, rollouts, schema
from twoclock.types import Conditioning, Delta, Evidence, Grade, Group, Item, Rollout

pytestmark = pytest.mark.usefixtures("unsynced")


def commit(store: RunStore, search: Evidence | None) -> None:
    store.commit_round(replace(round_record(store), searched=search))


def rebuilt(kept: KeptRollout) -> Rollout:
    return Rollout(
        item_id=kept.item_id,
        conditioning_id=kept.conditioning_id,
        seed=kept.seed,
        completion=kept.completion,
        grade=kept.grade,
    )


def bits(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"{len(values)}d", *values)


@contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(path / "ledger.sqlite", isolation_level=None)
    try:
        yield db
    finally:
        db.close()


# ------------------------------------------------------------------------------------------------------ what comes back


def test_a_searched_rollout_comes_back_whole(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    given = rollout("later", 2**63 - 1, 4, tokens=(0, 7, 2**32 - 2), logprobs=(-0.1, -1 / 3, -2.5), finish="length")
    given = replace(given, grade=Grade(reward=1 / 3, feedback="expected 'ä'", failure=None))
    commit(store, searched(1, given))
    (kept,) = RunStore.open(tmp_path / "run").kept_rollouts("sums", ["later"], since=1)
    assert rebuilt(kept) == given
    spoken = conditioning(4)
    assert (kept.round, kept.system, kept.exemplars, kept.delta) == (1, spoken.system, spoken.exemplars, None)
    assert kept.conditioning_id == spoken.id


def test_log_probabilities_come_back_to_the_last_bit(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    odd = (
        -0.0,
        0.0,
        -5e-324,
        -1e-300,
        -math.pi,
        math.nextafter(-1.0, 0.0),
        -1.7976931348623157e308,
        float(np.float32(-0.1)),
    )
    commit(store, searched(1, rollout("later", 1, 1, tokens=tuple(range(len(odd))), logprobs=odd)))
    (kept,) = store.kept_rollouts("sums", ["later"], since=0)
    assert bits(kept.completion.logprobs) == bits(odd)
    assert store.verify() == []


def test_the_bytes_are_little_endian_whatever_the_machine(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    commit(store, searched(1, rollout("later", 1, 1, tokens=(1, 258), logprobs=(-2.0, 0.5))))
    with edited(tmp_path / "run") as db:
        ((tokens, logprobs),) = db.execute("SELECT tokens, logprobs FROM rollouts WHERE purpose = 'search'")
    assert tokens == b"\x01\x00\x00\x00\x02\x01\x00\x00"
    assert logprobs == bytes.fromhex("00000000000000c0000000000000e03f")


def test_an_endpoints_nameless_tokens_stay_nameless(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    given = rollout("later", 1, 1, tokens=(-1, -1, -1), logprobs=())
    commit(store, searched(1, given))
    (kept,) = store.kept_rollouts("sums", ["later"], since=1)
    assert rebuilt(kept) == given
    assert store.verify() == []


def test_a_failure_of_sampling_and_one_of_grading_are_told_apart(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    nothing: dict[str, Any] = {"tokens": (), "logprobs": (), "text": "", "finish": "error"}
    cases = [
        rollout("later", 0, 1, **nothing, error="hung up"),
        replace(rollout("later", 1, 1, **nothing, error="hung up"), grade=Grade(reward=0.0, failure="hung up")),
        replace(rollout("later", 2, 1), grade=Grade(reward=0.0, failure="the verifier raised")),
        replace(rollout("later", 4, 1), grade=Grade(reward=0.0, failure="")),
    ]
    commit(store, searched(1, *cases))
    assert [rebuilt(kept) for kept in store.kept_rollouts("sums", ["later"], since=1)] == cases
    store.commit_round(replace(round_record(store), evidence=replace(searched(2, *cases), round=2)))
    assert [row.failure for row in store.rollouts(2)] == ["hung up", "hung up", "the verifier raised", ""]


def test_the_weights_are_named(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    moved = Conditioning(system="be brief", delta=Delta(id="d" * 64, kind="lora", base="b", payload=None))
    given = replace(rollout("later", 1, 1), conditioning_id=moved.id)
    commit(store, replace(searched(1, given), conditionings={moved.id: moved}))
    (kept,) = store.kept_rollouts("sums", ["later"], since=1)
    assert (kept.system, kept.exemplars, kept.delta) == ("be brief", (), "d" * 64)


def test_they_come_oldest_round_first_and_only_those_asked_for(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    for number in (1, 2, 3):
        commit(store, searched(number, *(rollout(item, seed, number) for item in ("b", "a", "c") for seed in (5, 4))))
    commit(store, searched(4, rollout("a", 9, 1), task="products"))
    kept = store.kept_rollouts("sums", {"a", "b"}, since=2)
    order = [("b", 5), ("b", 4), ("a", 5), ("a", 4)]
    assert [(k.round, k.item_id, k.seed) for k in kept] == [(n, *rest) for n in (2, 3) for rest in order]
    assert store.kept_rollouts("sums", ["a", "a"], since=3) == [k for k in kept if k.item_id == "a" and k.round == 3]
    assert [k.seed for k in store.kept_rollouts("products", ["a", "b"], since=0)] == [9]
    assert store.kept_rollouts("sums", [], since=0) == []
    assert store.kept_rollouts("sums", ["a"], since=4) == store.kept_rollouts("other", ["a"], since=0) == []


def test_more_items_than_one_query_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_run(tmp_path / "run")
    names = [f"n{i}" for i in range(40)]
    commit(store, searched(1, *(rollout(name, 1, 1) for name in names)))
    commit(store, searched(2, *(rollout(name, 1, 2) for name in reversed(names))))
    whole = store.kept_rollouts("sums", names, since=1)
    monkeypatch.setattr(rollouts, "MOST_NAMES", 7)
    assert store.kept_rollouts("sums", names, since=1) == whole
    assert [kept.item_id for kept in whole] == [*names, *reversed(names)]
    assert store.kept_rollouts("sums", [f"x{i}" for i in range(40_000)], since=1) == []


def test_a_rounds_own_rollouts_and_those_of_its_search_are_kept_apart(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    commit(store, searched(1, rollout("i2-0", 8, 1)))
    assert [row.seed for row in store.rollouts(1)] == [0, 1, 2, 3] * 2
    # The round that takes it up has it in its own evidence, with its age.
    (kept,) = store.kept_rollouts("sums", ["i2-0"], since=1)
    fresh = evidence(2)
    taken = replace(fresh.groups[0], rollouts=(*fresh.groups[0].rollouts, replace(rebuilt(kept), age=1)))
    store.commit_round(replace(round_record(store), evidence=replace(fresh, groups=(taken, fresh.groups[1]))))
    assert [(row.seed, row.age) for row in store.rollouts(2)][:5] == [(0, 0), (1, 0), (2, 0), (3, 0), (8, 1)]
    assert store.kept_rollouts("sums", ["i2-0"], since=1) == [kept]
    assert len(list(store.rollouts())) == 17
    assert conditioning(9).id in store.conditionings()
    assert next(row for row in store.rollouts(2) if row.age).prompt == "later i2-0"  # as it was first seen


# -------------------------------------------------------------------------------------------------------- refused whole


@pytest.mark.parametrize("place", ["evidence", "searched"])
@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"logprobs": (-0.5, math.nan, -1.0)}, NumericsError, "the rollout of item 'x' in round 1 is nan"),
        ({"logprobs": (-0.5, float("-inf"), -1.0)}, NumericsError, "is -inf"),
        ({"logprobs": (-0.5,)}, StoreError, "has 3 tokens and 1 log-probabilities"),
        ({"tokens": (1, -2, 3)}, StoreError, "a token of the rollout of item 'x' in round 1 is no number from 0"),
        ({"tokens": (1, 2**32, 3)}, StoreError, "from 0 to 4294967294"),
        ({"tokens": (1, 2.5, 3)}, StoreError, "is no number from 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_exactly_is_refused(
    tmp_path: Path, place: str, changes: dict[str, object], error: type[Exception], says: str
) -> None:
    store = make_run(tmp_path / "run")
    before = store.digest()
    wrong = searched(1, rollout("y", 0, 1), rollout("x", 1, 1, **changes))
    with pytest.raises(error, match=says):
        store.commit_round(replace(round_record(store), **{place: wrong}))  # type: ignore[arg-type]
    assert (store.digest(), store.verify(), store.head().next_round) == (before, [], 1)


def test_a_search_under_a_conditioning_that_nobody_wrote_down_is_refused(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    lost = replace(rollout("x", 1, 1), conditioning_id="f" * 16)
    with pytest.raises(
        StoreError, match="sampled under the conditioning ffffffffffffffff, which their evidence does not"
    ):
        commit(store, searched(1, lost))
    assert store.head().next_round == 1


# ---------------------------------------------------------------------------------------------------- digest and verify


@pytest.mark.parametrize(
    "changes",
    [
        {"completion": {"tokens": (1, 2, 4)}},
        {"completion": {"logprobs": (-0.5, math.nextafter(-1.0, 0.0), -0.25)}},
        {"completion": {"logprobs": (-1.0, -0.5, -0.25)}},  # the mean is the same
        {"completion": {"error": "late"}},
        {"age": 1},
    ],
)
@pytest.mark.parametrize("place", ["evidence", "searched"])
def test_any_difference_in_a_rollout_changes_the_digest(tmp_path: Path, place: str, changes: dict[str, Any]) -> None:
    digests = []
    for name, more in (("one", {}), ("two", {}), ("three", changes)):
        store = make_run(tmp_path / name)
        given = rollout("x", 1, 1)
        given = replace(
            given, completion=replace(given.completion, **more.get("completion", {})), age=more.get("age", 0)
        )
        store.commit_round(replace(round_record(store), **{place: searched(1, given)}))  # type: ignore[arg-type]
        digests.append(store.digest())
    assert digests[0] == digests[1] != digests[2]


def test_whether_a_rollout_was_searched_changes_the_digest(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    one.commit_round(replace(round_record(one), evidence=searched(1, rollout("x", 1, 1)), searched=None))
    two.commit_round(replace(round_record(two), evidence=None, searched=searched(1, rollout("x", 1, 1))))
    assert one.digest() != two.digest()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("tokens = substr(tokens, 1, 8)", r"rollout \d+ \(round 1, item 'x'\) holds 8 bytes of tokens, but counts 3"),
        ("tokens = substr(tokens, 1, 11)", "holds 11 bytes of tokens"),
        ("logprobs = substr(logprobs, 1, 16)", "holds 16 bytes of log-probabilities, but counts 3"),
        ("logprobs = zeroblob(24)", r"has log-probabilities of mean 0\.0; recorded is -0\.58"),
        ("logprobs = x'000000000000f87f000000000000f87f000000000000f87f'", "of mean nan"),
        ("logprobs = x'000000000000f07f000000000000f0ff000000000000f87f'", "of mean nan"),
        ("logprobs = x''", "of mean None"),
        ("tokens = NULL", "has no tokens beside the other"),
        ("logprobs = NULL", "has no log-probabilities beside the other"),
        ("completion_tokens = 4", "holds 12 bytes of tokens, but counts 4 tokens of 4 bytes"),
        ("purpose = 'sport'", "has the purpose 'sport'; known: round, search"),
    ],
)
def test_verify_finds_damage_in_a_rollout(tmp_path: Path, damage: str, says: str) -> None:
    with make_run(tmp_path / "run") as store:
        commit(store, searched(1, rollout("x", 1, 1), rollout("y", 1, 1)))
        assert store.verify() == []
    with edited(tmp_path / "run") as db:
        db.execute(f"UPDATE rollouts SET {damage} WHERE item_id = 'x'")
    (problem,) = RunStore.open(tmp_path / "run").verify()
    with pytest.raises(StoreError, match=says):
        raise StoreError(problem)


def test_a_damaged_rollout_is_not_learned_from(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as store:
        commit(store, searched(1, rollout("x", 1, 1)))
    with edited(tmp_path / "run") as db:
        db.execute("UPDATE rollouts SET tokens = substr(tokens, 1, 11) WHERE item_id = 'x'")
    with pytest.raises(StoreError, match="11 bytes are no whole number of values of 4 bytes"):
        RunStore.open(tmp_path / "run").kept_rollouts("sums", ["x"], since=1)


# -------------------------------------------------------------------------------------------------------- older ledgers


def first_version(path: Path, rounds: int = 2) -> None:
    """Turn the ledger of a new run into what the first schema held of it: the same rows, none of the later columns."""
    make_run(path, rounds=rounds).close()
    new, old = path / "ledger.sqlite", path / "old.sqlite"
    db = sqlite3.connect(old, isolation_level=None)
    db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    db.execute("CREATE TABLE migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, at REAL)")
    for statement in schema.MIGRATIONS[0].statements:
        db.execute(statement)
    db.execute("INSERT INTO migrations VALUES (1, 'the history of a run', 1.0)")
    db.execute("PRAGMA user_version = 1")
    db.execute("ATTACH ? AS new", (str(new),))
    tables = ("snapshots", "rounds", "entries", "items", "rollouts", "conditionings", "evaluations", "drift")
    for table in tables:
        columns = ", ".join(row[1] for row in db.execute(f"PRAGMA main.table_info({table})"))
        db.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table} ORDER BY 1")
    db.close()
    new.unlink()
    old.rename(new)


@pytest.mark.parametrize("write", [False, True])
def test_a_ledger_of_the_first_version_is_read_and_gone_on_with(tmp_path: Path, write: bool) -> None:
    path = tmp_path / "run"
    first_version(path)
    assert schema.check(path / "ledger.sqlite") == 1
    with RunStore.open(path, write=write) as store:
        assert schema.check(path / "ledger.sqlite") == schema.LATEST
        now = make_run(tmp_path / "now", rounds=2)
        assert list(store.rollouts()) == list(now.rollouts())
        assert (store.entries(), store.evaluations(), store.drift(), store.head()) == (
            [replace(e, at=s.at) for e, s in zip(now.entries(), store.entries(), strict=True)],
            now.evaluations(), now.drift(), now.head(),
        )  # fmt: skip
        assert store.verify() == []
        assert store.kept_rollouts("sums", ["i1-0", "i2-0"], since=0) == []
        before = store.digest()
    with RunStore.open(path, write=True) as store:
        assert store.digest() == before
        commit(store, searched(3, rollout("i1-0", 1, 1)))
        assert [kept.round for kept in store.kept_rollouts("sums", ["i1-0"], since=0)] == [3]
        assert len(list(store.rollouts())) == 24
        old, refused, _ = [entry.offered for entry in store.entries(channel="prompts") if entry.offered]
        assert store.thin("prompts", 1) == [old, refused]
        assert store.verify() == []


def test_a_searched_row_without_tokens_is_left_out(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as store:
        commit(store, searched(1, rollout("x", 1, 1), rollout("x", 2, 1)))
    with edited(tmp_path / "run") as db:
        db.execute("UPDATE rollouts SET tokens = NULL, logprobs = NULL WHERE item_id = 'x' AND seed = 1")
    store = RunStore.open(tmp_path / "run")
    assert [kept.seed for kept in store.kept_rollouts("sums", ["x"], since=1)] == [2]
    assert store.verify() == []


def test_a_run_of_the_first_version_that_never_began_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first_version(path, rounds=0)
    with edited(path) as db:
        db.execute("DELETE FROM snapshots")
    with RunStore.create(path, config={"seed": 2}) as store:
        assert store.config == {"seed": 2}


# ----------------------------------------------------------------------------------------------------------------- cost


def test_the_cost_of_reading_does_not_grow_with_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [0]
    real = schema.connect

    def counted(path: Path, *, write: bool) -> sqlite3.Connection:
        db = real(path, write=write)
        db.set_progress_handler(lambda: steps.__setitem__(0, steps[0] + 1), 1)  # each step of SQLite's machine
        return db

    def cost(call: Any) -> int:
        steps[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(schema, "connect", counted)
            list(call())
        return steps[0]

    def asked(store: RunStore) -> list[int]:
        last = store.head().round
        return [
            cost(lambda: store.kept_rollouts("sums", [f"n{last}-{i}" for i in range(4)], since=last - 3)),
            cost(lambda: store.rollouts(last)),
        ]

    store, costs = make_run(tmp_path / "run"), []
    for number in range(1, 61):
        item = Item(id=f"i{number}", prompt="?")
        record = replace(
            round_record(store), evidence=replace(evidence(number), groups=(Group(item=item, rollouts=()),))
        )
        found = searched(number, *(rollout(f"n{number}-{i}", s, 1) for i in range(4) for s in range(4)))
        store.commit_round(replace(record, searched=found))
        if number in (6, 60):
            costs.append(asked(store))
    for few, many in zip(*costs, strict=True):
        assert 0 < many < 1.3 * few + 50
