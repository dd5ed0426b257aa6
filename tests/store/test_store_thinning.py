"""Thinning keeps what it promises, deletes the rest, and says so: against an oracle that reads the whole history."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_records import CHANNELS, begin, make_run, round_record, state, unsynced  # noqa: F401

from twoclock.errors import ConfigError, StoreError
from twoclock.hashing import content_hash
from twoclock.store import RunStore, schema
from twoclock.types import Cost, LedgerEntry, RoundRecord, Snapshot

pytestmark = pytest.mark.usefixtures("unsynced")


def there(store: RunStore) -> set[str]:
    """The blobs on disk."""
    return {file.name for file in (store.path / "blobs").glob("[0-9a-f]?/*")}


def offers(store: RunStore, channel: str, action: str) -> list[str]:
    return [entry.offered for entry in store.entries(channel=channel, action=action)]


def turn(
    store: RunStore, moves: Mapping[str, tuple[str, bytes]], *, phase: int = 0, fallback: bytes | None = None
) -> None:
    """One round without evidence in which channels are told (``commit`` or ``reject``, the state that was offered)."""
    head = store.head()
    number, states, entries = head.next_round, dict(head.states), []
    for channel, (action, data) in moves.items():
        offered = store.put_blob(data)
        before = states[channel]
        if action == "commit":
            states[channel] = offered
        elif fallback is not None:
            states[channel] = store.put_blob(fallback)
        entries.append(
            LedgerEntry(
                round=number, channel=channel, timescale=CHANNELS[channel], action=action, before=before,  # type: ignore[arg-type]
                after=states[channel], offered=offered, cause="c", reason="r", cost=Cost(), phase=phase, task="sums",
            )
        )  # fmt: skip
    snapshot = Snapshot(round=number, states=states, next_round=number + 1)
    store.commit_round(
        RoundRecord(
            round=number, phase=phase, task="sums", snapshot=snapshot, entries=tuple(entries), evidence=None, metrics={}
        )
    )


def commits(store: RunStore, numbers: range, *, channel: str = "lora", phase: int = 0) -> list[str]:
    """A round each that commits state ``number``; their hashes."""
    for number in numbers:
        turn(store, {channel: ("commit", state(channel, number))}, phase=phase)
    return [content_hash(state(channel, number)) for number in numbers]


# --------------------------------------------------------------------------------------------------------- what is kept


def test_the_newest_states_the_start_and_the_live_one_are_kept(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    start = store.head().states
    made = commits(store, range(1, 9))
    before = store.digest()
    assert store.thin("lora", 3) == made[:5]
    assert there(store) == {*start.values(), *made[5:]}
    assert (store.verify(), store.digest()) == ([], before)
    assert store.thin("lora", 3) == []
    assert store.thin("lora", 2) == [made[5]]
    assert store.thin("lora", 100) == []
    assert store.thin("prompts", 1) == []
    assert RunStore.open(tmp_path / "run").verify() == []


def test_the_end_of_every_phase_is_kept(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    kept = set(store.head().states.values())
    for phase in range(3):
        numbers = range(1 + 4 * phase, 5 + 4 * phase)
        made = []
        for number in numbers:
            made += commits(store, range(number, number + 1), phase=phase)
            store.thin("lora", 1)
        kept.add(made[-1])
        assert there(store) == kept
    assert [n for n in range(13) if not _gone(store, n)] == [0, 4, 8, 12]
    assert store.append_rollback(4, reason="it was better").states["lora"] == store.snapshot_at(4).states["lora"]


def _gone(store: RunStore, round: int) -> bool:
    return not set(store.snapshot_at(round).states.values()) <= there(store)


def test_a_state_that_lives_long_is_one_state(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    one, two = commits(store, range(1, 3))
    for _ in range(20):
        turn(store, {})
    (three,) = commits(store, range(3, 4))
    assert store.thin("lora", 2) == [one]
    assert {two, three} <= there(store)


def test_a_state_that_came_back_counts_from_then(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    made = commits(store, range(1, 6))
    store.append_rollback(2, channels=["lora"], reason="?")
    assert store.thin("lora", 2) == [made[0], made[2], made[3]]  # live: 2; the one before: 5
    (new,) = commits(store, range(6, 7))
    assert store.thin("lora", 2) == [made[4]]
    assert store.thin("lora", 1) == [made[1]]
    assert new in there(store)
    assert store.verify() == []


def test_refused_states_go_too_and_never_pile_up(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    (live,) = commits(store, range(1, 2))
    refused = []
    for number in range(2, 12):
        turn(store, {"lora": ("reject", state("lora", number))})
        refused.append(content_hash(state("lora", number)))
        store.thin("lora", 3)
        assert {live, *refused[-3:]} <= there(store)
        assert not set(refused[:-3]) & there(store)
    # What was refused before the oldest state that is kept is older than it.
    made = commits(store, range(12, 15))
    assert store.thin("lora", 3) == [live, *refused[-3:]]
    turn(store, {"lora": ("reject", state("lora", 15))})
    assert store.thin("lora", 3) == []
    assert {*made, content_hash(state("lora", 15))} <= there(store)
    assert store.verify() == []


def test_a_refused_state_that_is_live_or_kept_stays(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    one, two = commits(store, range(1, 3))
    for _ in range(3):
        turn(store, {"lora": ("reject", state("lora", 1))})
    assert store.thin("lora", 1) == []  # refused just now, though it was live long ago
    commits(store, range(3, 4))
    assert store.thin("lora", 1) == [one, two]
    assert store.verify() == []


def test_a_fallback_of_a_refusal_is_a_state_like_any_other(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    for number in range(1, 5):
        turn(store, {"lora": ("reject", state("lora", number))}, fallback=state("lora", 100 + number))
    store.thin("lora", 2)
    live = [content_hash(state("lora", number)) for number in (103, 104)]
    refused = content_hash(state("lora", 4))
    assert there(store) == {*store.snapshot_at(0).states.values(), *live, refused}


def test_what_another_channel_has_too_stays(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    shared = store.put_blob(b"both")
    turn(store, {"lora": ("commit", b"both"), "prompts": ("commit", b"mine")})
    turn(store, {"prompts": ("reject", b"both")})
    turn(store, {"lora": ("commit", b"fallen back to")})
    turn(store, {"prompts": ("reject", b"refused")}, fallback=b"fallen back to")
    made = commits(store, range(5, 8))
    assert store.thin("lora", 1) == made[:2]
    assert {shared, content_hash(b"fallen back to")} <= there(store)


def test_one_channel_is_thinned_alone(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run", rounds=8)
    before = there(store)
    gone = store.thin("lora", 1)
    named = {h for e in store.entries(channel="prompts") for h in (e.after, e.offered) if h}
    assert before - there(store) == set(gone)
    assert not named & set(gone)
    assert store.snapshot_at(8).states.items() >= store.head().states.items()


# --------------------------------------------------------------------------------------------------------- the oracle


def expected(store: RunStore, channel: str, keep: int) -> set[str]:
    """The states that may go, from the whole history and in no hurry."""
    entries = store.entries(channel=channel)
    live_since: dict[str, int] = {}
    refused_at: dict[str, int] = {}
    for entry in entries:
        if entry.before != entry.after:
            live_since[entry.after] = entry.seq
        if entry.offered and entry.offered != entry.after:
            refused_at[entry.offered] = entry.seq
    newest = sorted(live_since, key=lambda h: -live_since[h])[:keep]
    oldest = min(live_since[h] for h in newest)
    late = [h for h in sorted(refused_at, key=lambda h: -refused_at[h]) if h not in newest and refused_at[h] > oldest]
    rows = store.rounds()
    ends = [max(row.round for row in rows if row.phase == phase) for phase in {row.phase for row in rows}]
    always = {h for n in (0, *ends) for h in store.snapshot_at(n).states.values()} | set(store.head().states.values())
    others = {h for e in store.entries() if e.channel != channel for h in (e.after, e.offered)}
    return {*live_since, *refused_at} - {*newest, *late[:keep]} - always - others


@pytest.mark.parametrize("seed", range(4))
def test_after_every_round_of_a_wild_history_the_disk_holds_what_the_oracle_says(tmp_path: Path, seed: int) -> None:
    rng, path = random.Random(seed), tmp_path / "run"
    store = make_run(path)
    keep, phase = {"lora": rng.randint(1, 3), "prompts": rng.randint(1, 3)}, 0
    for _ in range(50):
        phase += rng.random() < 0.08
        moves = {
            channel: (rng.choice(["commit", "reject", "reject"]), state(channel, rng.randint(0, 25)))
            for channel in CHANNELS
            if rng.random() < 0.7
        }
        turn(store, moves, phase=phase)
        if rng.random() < 0.15:
            kept = [n for n in range(store.head().next_round) if not _gone(store, n)]
            store.append_rollback(rng.choice(kept), channels=rng.choice([None, ["lora"]]), reason="?")
        if rng.random() < 0.1:
            store.close()
            store = RunStore.open(path, write=True)
        for channel in CHANNELS:
            if rng.random() < 0.9:
                gone = store.thin(channel, keep[channel])
                assert len(set(gone)) == len(gone)
                assert not expected(store, channel, keep[channel]) & there(store)
                assert not set(gone) - expected(store, channel, keep[channel])
        assert store.verify() == []
        named = {h for e in store.entries() for h in (e.before, e.after, e.offered) if h}
        with store._ledger.reading() as db:
            assert {row[0] for row in db.execute("SELECT hash FROM thinned")} == named - there(store)


# -------------------------------------------------------------------------------------------- what a thinned state says


def test_a_thinned_state_says_so_and_where_the_nearest_are(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as store:
        commits(store, range(1, 4))
        made = commits(store, range(4, 10), phase=1)
        store.thin("lora", 2)
    reader = RunStore.open(tmp_path / "run")
    says = rf"state {made[1][:12]} of channel 'lora', from round 5 of .*run, was thinned to save space; "
    with pytest.raises(StoreError, match=says + "the nearest rounds that were kept: 3 and 8$"):
        reader.get_blob(made[1])
    assert reader.get_blob(made[4]) == state("lora", 8)


def test_a_refused_state_that_was_thinned_names_its_own_round(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    for number in (1, 2):
        turn(store, {"lora": ("reject", state("lora", number))})
    (gone,) = store.thin("lora", 1)
    with pytest.raises(StoreError, match=r"from round 1 of .* rounds that were kept: 1 and 2"):
        store.get_blob(gone)


def test_a_rollback_to_a_thinned_state_changes_nothing(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    for number in range(1, 7):
        turn(store, {c: ("commit", state(c, number)) for c in CHANNELS}, phase=number // 4)
    store.thin("lora", 2)
    before, head = store.digest(), store.head()
    says = r"round 4 cannot be made live again: the state \w{12} of channel 'lora', from round 4 of .* was thinned"
    for channels in (None, ["lora"], ["lora", "prompts"]):
        with pytest.raises(StoreError, match=says + r".* kept: 3 and 5"):
            store.append_rollback(4, channels=channels, reason="?")
    assert (store.digest(), store.head(), store.verify()) == (before, head, [])
    assert store.append_rollback(4, channels=["prompts"], reason="the prompts are there").round == 6
    store.append_rollback(3, reason="the end of a phase")
    assert store.verify() == []


def test_the_nearest_rounds_are_those_where_every_channel_is_whole(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    for number in range(1, 9):
        turn(store, {c: ("commit", state(c, number)) for c in CHANNELS})
    store.thin("lora", 5)  # keeps 4 to 8
    store.thin("prompts", 2)  # keeps 7 and 8
    with pytest.raises(StoreError, match=r"channel 'prompts', from round 5 of .* kept: 0 and 7"):
        store.append_rollback(5, reason="?")


def test_other_losses_are_told_as_before(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    made = commits(store, range(1, 5))
    store.thin("lora", 2)
    lost = tmp_path / "run" / "blobs" / made[2][:2] / made[2]
    lost.unlink()
    assert [made[2][:12] in problem and "is missing" in problem for problem in store.verify()] == [True]
    with pytest.raises(StoreError, match=f"blob {made[2][:12]} is missing: .*; restore it from a copy"):
        store.get_blob(made[2])
    with pytest.raises(StoreError, match="is not the name of a blob"):
        store.get_blob("../../config.json")


def test_a_live_state_is_missing_whatever_is_recorded(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as store:
        (live,) = commits(store, range(1, 2))
    (tmp_path / "run" / "blobs" / live[:2] / live).unlink()
    db = sqlite3.connect(tmp_path / "run" / "ledger.sqlite", isolation_level=None)
    db.execute("INSERT INTO thinned VALUES (?, 'lora', 1, 0)", (live,))
    db.close()
    (problem,) = RunStore.open(tmp_path / "run").verify()
    assert f"the blob {live[:12]} is missing" in problem


# ----------------------------------------------------------------------------------------------------- bringing it back


def test_the_same_bytes_bring_a_thinned_state_back(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    made = commits(store, range(1, 5))
    store.thin("lora", 1)
    assert store.put_blob(state("lora", 2)) == made[1]
    assert store.get_blob(made[1]) == state("lora", 2)
    store.append_rollback(2, reason="it is there again")
    store.close()
    with RunStore.open(tmp_path / "run", write=True) as store:
        assert store.get_blob(made[1]) == state("lora", 2)
        assert store.verify() == []


def test_a_thinned_state_is_not_committed_without_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_run(tmp_path / "run")
    made = commits(store, range(1, 5))
    with monkeypatch.context() as patch:  # as on a system where a reader has the file open
        patch.setattr(Path, "unlink", _refuse)
        assert store.thin("lora", 1) == made[:3]
    assert set(made) <= there(store)
    head = store.head()
    old = Snapshot(round=5, states={**head.states, "lora": made[0]}, next_round=6)
    record = RoundRecord(round=5, phase=0, task="sums", snapshot=old, entries=(), evidence=None, metrics={})
    with pytest.raises(StoreError, match="channel 'lora', which has no blob; put the blob first"):
        store.commit_round(record)
    with pytest.raises(StoreError, match="was thinned"):
        store.append_rollback(1, reason="?")
    store.put_blob(state("lora", 3))
    store.close()
    with RunStore.open(tmp_path / "run", write=True) as store:  # finishes what could not be deleted
        assert there(store) & set(made) == {made[2], made[3]}
        assert store.verify() == []


def _refuse(self: Path, missing_ok: bool = False) -> None:
    raise PermissionError(13, "in use", str(self))


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("keep", [0, -3])
def test_at_least_one_state_is_kept(tmp_path: Path, keep: int) -> None:
    store = make_run(tmp_path / "run", rounds=4)
    before = there(store)
    with pytest.raises(ConfigError, match=f"keep = {keep}: expected at least 1 state of channel 'lora'"):
        store.thin("lora", keep)
    assert there(store) == before


def test_an_unknown_channel_a_reader_and_a_run_that_never_began_are_refused(tmp_path: Path) -> None:
    with make_run(tmp_path / "run", rounds=4) as store:
        with pytest.raises(StoreError, match="unknown channel 'loar'; did you mean 'lora'"):
            store.thin("loar", 1)
        before = there(store)
    with pytest.raises(StoreError, match=r"the thinning of 'lora' cannot be written: .* open for reading"):
        RunStore.open(tmp_path / "run").thin("lora", 1)
    assert there(store) == before
    with pytest.raises(StoreError, match="interrupted before it began"):
        RunStore.create(tmp_path / "new", config={}).thin("lora", 1)


# ----------------------------------------------------------------------------------------------------------------- cost


def test_the_cost_does_not_grow_with_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In steps of SQLite's machine: after 12 rounds and after 100 the same."""
    steps, real = [0], schema.connect

    def counted(path: Path, *, write: bool) -> sqlite3.Connection:
        db = real(path, write=write)
        db.set_progress_handler(lambda: steps.__setitem__(0, steps[0] + 1), 1)
        return db

    def cost(call: Callable[[], Any]) -> int:
        steps[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(schema, "connect", counted)
            call()
        return steps[0]

    store, costs = RunStore.create(tmp_path / "run", config={}), {}
    begin(store)
    for number in range(1, 101):
        turn(store, {"lora": ("commit", state("lora", number)), "prompts": ("reject", state("prompts", number))})
        costs[number] = [cost(lambda c=channel: store.thin(c, 3)) for channel in CHANNELS]  # type: ignore[misc]
        costs[number] += [cost(lambda: store.thin("lora", 3))]  # nothing new
    for few, many in zip(costs[12], costs[100], strict=True):
        assert 0 < many <= 1.2 * few + 20
    assert len(there(store)) == 2 + 3 + 3


def test_the_loops_records_thin_as_well(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    for _ in range(12):
        store.commit_round(replace(round_record(store), phase=store.head().round // 4))
        for channel in CHANNELS:
            store.thin(channel, 2)
        assert store.verify() == []
    assert len(there(store)) <= 2 * (1 + 3 + 2 + 2)
    assert offers(store, "lora", "commit")[-1] == store.head().states["lora"]
