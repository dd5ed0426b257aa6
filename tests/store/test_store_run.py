"""Laws of a run's store: what goes in comes out, wrong input is refused whole, rolling back keeps the old value."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_records import begin, conditioning, drift, evaluation, evidence, make_run, rollout, round_record, state

from twoclock.errors import NumericsError, StoreError
from twoclock.store import RunStore, describe_environment
from twoclock.types import Group, Item, Snapshot


def test_everything_comes_back_as_it_went_in(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as store:
        record = round_record(store)
        store.commit_round(replace(record, evaluations=(evaluation(1),)))
    read = RunStore.open(tmp_path / "run")
    assert read.config == {"seed": 1}
    assert (tmp_path / "run" / "config.toml").read_text() == "seed = 1\n"
    assert read.head() == record.snapshot == read.snapshot_at(1)
    entries = read.entries(round=1)
    assert [replace(entry, seq=0, at=0.0) for entry in entries] == list(record.entries)
    assert [entry.seq for entry in entries] == [3, 4]
    assert all(entry.at > 1e9 for entry in entries)
    assert read.evaluations()[1] == evaluation(1)
    assert read.drift() == [drift(1)]
    row = read.rounds()[0]
    assert (row.round, row.phase, row.task) == (1, 0, "sums")
    assert row.metrics == record.metrics
    assert 1e9 < row.started <= row.at
    rows = list(read.rollouts(1))
    assert [(r.item_id, r.seed, r.reward) for r in rows[:3]] == [("i1-0", 0, 0.0), ("i1-0", 1, 0.5), ("i1-0", 2, 0.0)]
    first, failed = rows[0], rows[3]
    assert (first.prompt, first.text, first.feedback) == ("question 1-0", "ä i1-0 0", "so so")
    assert (first.prompt_tokens, first.completion_tokens, first.mean_logprob) == (11, 3, pytest.approx(-1.75 / 3))
    assert (first.failure, failed.failure) == (None, "verifier raised")
    spoken = conditioning(1)
    nothing: dict[str, object] = {"notes": [], "recall": [], "recalled": [], "shifts": [], "soft": {}, "mixture": None}
    told = {"system": "system 1", "exemplars": [["1+1", "2"]], **nothing, "delta": None}
    assert read.conditionings() == {spoken.id: told}
    assert read.verify() == []


def test_filters_select_what_they_name(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run", rounds=3)
    assert len(store.entries()) == 8
    assert [e.round for e in store.entries(channel="lora", action="commit")] == [2]
    assert {e.channel for e in store.entries(round=2)} == {"lora", "prompts"}
    assert [e.round for e in store.evaluations("phase")] == [0, 3]
    assert store.evaluations("final") == []
    assert len(list(store.rollouts())) == 24
    assert {r.round for r in store.rollouts(2)} == {2}


def test_rollouts_come_in_order_over_many_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_run(tmp_path / "run", rounds=2)
    whole = list(store.rollouts())
    monkeypatch.setattr("twoclock.store.ledger.PAGE_ROWS", 3)
    assert list(store.rollouts()) == whole
    assert len(whole) == 16


def test_odd_text_survives(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    record = round_record(store)
    texts = ["", "nul \x00 inside", "emoji 🦊", "lone \ud800 surrogate", "line\r\nends \u2028"]
    rollouts = tuple(rollout("x", n, 1, text=text) for n, text in enumerate(texts))
    item = Item(id="x", prompt="quote ' \" ; DROP TABLE rounds", reference=None)
    odd = replace(evidence(1), groups=(Group(item=item, rollouts=rollouts),))
    store.commit_round(replace(record, evidence=odd))
    assert [r.text for r in store.rollouts()] == [*texts[:3], "lone \\ud800 surrogate", texts[4]]
    assert next(iter(store.rollouts())).prompt == item.prompt


def test_a_completion_without_logprobs_has_no_mean(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    broken = rollout("x", 1, 1, logprobs=(), tokens=(), text="", finish="error", error="the endpoint hung up")
    group = Group(item=Item(id="x", prompt="?"), rollouts=(broken,))
    store.commit_round(replace(round_record(store), evidence=replace(evidence(1), groups=(group,))))
    (row,) = store.rollouts()
    assert (row.mean_logprob, row.finish, row.failure) == (None, "error", "the endpoint hung up")


def test_the_largest_seed_fits(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    group = Group(item=Item(id="x", prompt="?"), rollouts=(rollout("x", 2**63 - 1, 1),))
    store.commit_round(replace(round_record(store), evidence=replace(evidence(1), groups=(group,))))
    assert [r.seed for r in store.rollouts()] == [2**63 - 1]


# ------------------------------------------------------------------------------------------------------ refused whole


def unchanged(store: RunStore, before: str) -> bool:
    return store.digest() == before and store.verify() == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"metrics": {"reward": float("nan")}}, "'reward'"),
        ({"metrics": {"entropy": float("-inf")}}, "'entropy'"),
        ({"drift": (replace(drift(1), live_base=float("inf")),)}, "live_base"),
        ({"drift": (replace(drift(1), per_prompt_base_live=(0.1, float("nan"))),)}, "element 1"),
        ({"evaluations": (evaluation(1, rewards=(0.5, float("nan"))),)}, "rewards of the evaluation of 'sums'"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(tmp_path: Path, changes: dict[str, object], names: str) -> None:
    store = make_run(tmp_path / "run", rounds=0)
    before = store.digest()
    with pytest.raises(NumericsError, match=names):
        store.commit_round(replace(round_record(store), **changes))  # type: ignore[arg-type]
    assert unchanged(store, before)


def test_nan_in_the_last_rollout_leaves_nothing_of_the_round(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    before = store.digest()
    seen = evidence(1)
    bad = replace(seen.groups[-1], rollouts=(rollout("i1-1", 1, 1, logprobs=(float("nan"),)),))
    with pytest.raises(NumericsError, match="log-probability of the rollout of item 'i1-1'"):
        store.commit_round(replace(round_record(store), evidence=replace(seen, groups=(*seen.groups[:-1], bad))))
    assert unchanged(store, before)
    assert list(store.rollouts()) == []


def test_numpy_numbers_are_taken(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    metrics = {"a": np.float32(0.5), "b": np.int64(3), "c": 2}
    store.commit_round(replace(round_record(store), metrics=metrics))  # type: ignore[arg-type]
    assert store.rounds()[0].metrics == {"a": 0.5, "b": 3.0, "c": 2}


def test_a_metric_that_is_no_number_is_refused(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    with pytest.raises(StoreError, match="'reward' of round 1 must be a number; got 'high'"):
        store.commit_round(replace(round_record(store), metrics={"reward": "high"}))  # type: ignore[dict-item]


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_only_the_next_round_is_taken(tmp_path: Path, wrong: int) -> None:
    store = make_run(tmp_path / "run", rounds=1)
    before = store.digest()
    record = round_record(store)
    shifted = replace(record, round=wrong, snapshot=replace(record.snapshot, round=wrong, next_round=wrong + 1))
    with pytest.raises(StoreError, match=f"round {wrong} cannot be committed: the next round of this run is 2"):
        store.commit_round(shifted)
    assert unchanged(store, before)


def test_a_snapshot_must_number_itself_rightly(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    record = round_record(store)
    with pytest.raises(StoreError, match="next_round=2"):
        store.commit_round(replace(record, snapshot=replace(record.snapshot, next_round=5)))


def test_a_state_without_a_blob_is_refused(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    before = store.digest()
    record = round_record(store)
    states = {**record.snapshot.states, "lora": "0" * 64}
    with pytest.raises(StoreError, match="channel 'lora', which has no blob"):
        store.commit_round(replace(record, snapshot=replace(record.snapshot, states=states)))
    assert unchanged(store, before)
    fresh = RunStore.create(tmp_path / "other", config={})
    with pytest.raises(StoreError, match="has no blob"):
        fresh.begin(Snapshot(round=0, states={"lora": ""}, next_round=1), [])


def test_an_evaluation_with_a_reward_missing_is_refused(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    with pytest.raises(StoreError, match="2 items and 1 rewards"):
        store.record_evaluations([evaluation(0, rewards=(0.5,))])


def test_a_run_begins_once(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    with pytest.raises(StoreError, match="has begun already"):
        begin(store)
    assert len(store.entries()) == 2


def test_nothing_is_committed_before_the_beginning(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", config={})
    with pytest.raises(StoreError, match="interrupted before it began"):
        store.head()
    assert store.rounds() == []
    assert store.verify() == ["the run has no snapshot: it was interrupted before it began"]


def test_a_reader_writes_nothing(tmp_path: Path) -> None:
    make_run(tmp_path / "run", rounds=1).close()
    reader = RunStore.open(tmp_path / "run")
    for write in (
        lambda: reader.put_blob(b"x"),
        lambda: reader.append_rollback(0, reason="?"),
        lambda: begin(reader),
    ):
        with pytest.raises(StoreError, match="open for reading"):
            write()


def test_a_closed_writer_writes_nothing(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    record = round_record(store)
    store.close()
    with pytest.raises(StoreError, match="round 1 cannot be written"):
        store.commit_round(record)
    assert store.head().next_round == 1


# --------------------------------------------------------------------------------------------------------- rolling back


def test_rolling_back_keeps_the_old_states_and_the_numbering(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run", rounds=3)
    start, late = store.snapshot_at(0), store.head()
    head = store.append_rollback(0, reason="it answered in French")
    assert head == store.head()
    assert (head.states, head.round, head.next_round) == (start.states, 0, 4)
    entries = store.entries(action="rollback")
    assert [(e.channel, e.timescale, e.round, e.reason) for e in entries] == [
        ("lora", "slow", 3, "it answered in French"),
        ("prompts", "fast", 3, "it answered in French"),
    ]
    assert all(e.before == late.states[e.channel] and e.after == start.states[e.channel] for e in entries)
    assert store.verify() == []
    store.commit_round(round_record(store))
    assert store.head().round == 4
    assert store.verify() == []


def test_one_channel_goes_back_alone(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run", rounds=3)
    late = store.head()
    head = store.append_rollback(0, channels={"prompts"}, reason="bad prompt")
    assert head.states == {"lora": late.states["lora"], "prompts": store.snapshot_at(0).states["prompts"]}
    assert (head.round, head.cause) == (3, "rollback to round 0 of prompts")
    assert [e.channel for e in store.entries(action="rollback")] == ["prompts"]
    assert store.verify() == []


def test_a_rollback_is_taken_back_by_another(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run", rounds=3)
    late = store.head()
    store.append_rollback(1, channels=["lora"], reason="try")
    store.append_rollback(0, reason="try more")
    assert store.snapshot_at(3) == late
    assert store.append_rollback(3, reason="it was better").states == late.states
    assert store.verify() == []


def test_rolling_back_to_what_is_live_writes_nothing(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run", rounds=2)
    before = store.digest()
    assert store.append_rollback(2, reason="?") == store.head()
    assert store.digest() == before


def test_an_unknown_round_or_channel_changes_nothing(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run", rounds=2)
    before = store.digest()
    for wrong in (3, -1):
        with pytest.raises(StoreError, match=rf"no round {wrong} .* has rounds 0 \(the untouched start\) to 2"):
            store.append_rollback(wrong, reason="?")
    with pytest.raises(StoreError, match="unknown channel 'prompt'; did you mean 'prompts'"):
        store.append_rollback(0, channels=["prompt"], reason="?")
    assert unchanged(store, before)


def test_a_rollback_to_a_damaged_state_is_refused(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run", rounds=1)
    before, live = store.digest(), store.head()
    name = store.snapshot_at(0).states["prompts"]
    (tmp_path / "run" / "blobs" / name[:2] / name).write_bytes(b"rubbish")
    with pytest.raises(StoreError, match=f"blob {name[:12]} is damaged"):
        store.append_rollback(0, reason="?")
    assert (store.digest(), store.head()) == (before, live)


# -------------------------------------------------------------------------------------------------- digest and verify


def test_equal_runs_have_equal_digests_whatever_the_clock_says(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", rounds=3, seconds=0.5)
    two = make_run(tmp_path / "two", rounds=3, seconds=7.0)
    assert one.digest() == two.digest()
    two.commit_round(round_record(two))
    assert one.digest() != two.digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"reward": 0.25 + 1e-16, "dead_groups": 0}},
        {"task": "products"},
        {"evaluations": (evaluation(1, rewards=(0.25, 0.75)),)},
        {"drift": ()},
        {"evidence": None},
        {"entries": ()},
    ],
)
def test_any_difference_changes_the_digest(tmp_path: Path, changes: dict[str, object]) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    one.commit_round(replace(round_record(one), metrics={"reward": 0.25, "dead_groups": 0}))
    same = replace(round_record(two), metrics={"reward": 0.25, "dead_groups": 0})
    two.commit_round(replace(same, **changes))  # type: ignore[arg-type]
    assert one.digest() != two.digest()


def test_verify_names_a_missing_and_a_damaged_blob(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run", rounds=1)
    states = store.head().states
    for channel, action in (("prompts", "remove"), ("lora", "damage")):
        file = tmp_path / "run" / "blobs" / states[channel][:2] / states[channel]
        file.unlink() if action == "remove" else file.write_bytes(file.read_bytes()[:-1])
    problems = store.verify()
    assert len(problems) == 2
    assert any(states["prompts"][:12] in p and "missing" in p for p in problems)
    assert any(states["lora"][:12] in p and "damaged" in p for p in problems)
    # The same bytes put again repair it.
    assert store.put_blob(state("lora", 0)) == states["lora"]
    assert store.get_blob(states["lora"]) == state("lora", 0)


def test_verify_finds_a_change_that_no_entry_explains(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    record = round_record(store)
    store.commit_round(replace(record, entries=record.entries[1:]))
    (problem,) = store.verify()
    assert "snapshot of round 1" in problem
    assert "'prompts'" in problem


def test_verify_finds_an_entry_that_starts_from_the_wrong_state(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    record = round_record(store)
    commit, reject = record.entries
    wrong = replace(reject, before=commit.after)
    store.commit_round(replace(record, entries=(commit, wrong)))
    problems = store.verify()
    assert len(problems) == 2
    assert "live state was" in problems[0]
    assert "must not" in problems[1]


# ------------------------------------------------------------------------------------------- readers beside the writer


def test_readers_in_threads_see_whole_rounds_while_the_writer_writes(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    reader = RunStore.open(tmp_path / "run")
    done, faults = threading.Event(), []

    def watch() -> None:
        try:
            while not done.is_set():
                head = reader.head()
                for row in reader.rounds():
                    if len(list(reader.rollouts(row.round))) != 8 or len(reader.entries(round=row.round)) != 2:
                        faults.append(f"round {row.round} was seen in part")
                assert head.states.keys() == {"prompts", "lora"}
        except Exception as error:
            faults.append(repr(error))

    watchers = [threading.Thread(target=watch) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    for _ in range(12):
        store.commit_round(round_record(store))
    done.set()
    for watcher in watchers:
        watcher.join()
    assert faults == []
    assert len(reader.rounds()) == 12


def test_the_environment_is_recorded_and_added_to(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", config={}, environment={"device": "cpu"}).close()
    found = RunStore.open(tmp_path / "run").environment
    assert found["device"] == "cpu"
    assert found["twoclock"]["source_hash"] == describe_environment()["twoclock"]["source_hash"]
    assert "numpy" in found["packages"]
    assert json.loads((tmp_path / "run" / "environment.json").read_text()) == found


def test_evaluations_are_recorded_from_a_reading_handle(tmp_path: Path) -> None:
    make_run(tmp_path / "run", rounds=1).close()
    reader = RunStore.open(tmp_path / "run")
    spoken = conditioning(9)
    reader.record_evaluations([evaluation(1, purpose="final")], [drift(1)], {spoken.id: spoken})
    assert reader.evaluations("final") == [evaluation(1, purpose="final")]
    assert spoken.id in reader.conditionings()
    RunStore.open(tmp_path / "run", write=True).close()  # the lock was given back
