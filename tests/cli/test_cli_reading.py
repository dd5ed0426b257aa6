"""status, log, diff, rollback, eval: what a run says of itself, to people and to programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_bench import Model, call, well

from twoclock.cli.diff import _norm
from twoclock.store import RunStore
from twoclock.types import Cost, LedgerEntry, RoundRecord, Snapshot, Write


def as_json(*words: Any) -> Any:
    """The object on standard output: nothing but JSON may stand there."""
    return json.loads(well(*words, "--json").stdout)


def cell(found: dict[str, Any], task: str, name: str) -> float:
    return float(found["tasks"][task]["cells"][name]["estimate"])


# -------------------------------------------------------------------------------------------------------------- status


def test_status(run: Path) -> None:
    found = as_json("status", run)
    assert (found["state"], found["round"], found["next_round"], found["rounds"]) == ("finished", 5, 6, 5)
    assert (found["phase"], found["task"], found["writer"], found["problems"]) == (2, "next", None, [])
    prompts = found["channels"]["prompts"]
    assert prompts["timescale"] == "fast"
    assert prompts["commits"] + prompts["rejects"] + prompts["declines"] == 5
    words = well("status", run).stdout
    assert "5 of 5 committed" in words
    assert f"twoclock eval {run}" in words


def test_status_can_verify(run: Path) -> None:
    assert as_json("status", run, "--verify")["problems"] == []
    blob = next(path for path in (run / "blobs").glob("*/*") if path.is_file())
    blob.write_bytes(b"other")
    done = call("status", run, "--verify")
    assert done.exit_code == 4
    assert blob.name[:12] in done.stderr


# ----------------------------------------------------------------------------------------------------------------- log


def test_log_shows_every_entry_with_reason_cost_and_writes(run: Path) -> None:
    with RunStore.open(run) as store:
        entries = store.entries()
    words = well("log", run).stdout
    assert [line.split()[0] for line in words.splitlines() if line.startswith("#")] == [f"#{e.seq}" for e in entries]
    assert all(" ".join(e.reason.split())[:100] in words for e in entries)
    commit = next(e for e in entries if e.action == "commit")
    assert f"{commit.cost.rollouts} rollouts" in words
    assert f"state   {commit.before[:12]} → {commit.after[:12]}" in words


def test_log_as_json_is_the_ledger(run: Path) -> None:
    found = as_json("log", run)
    with RunStore.open(run) as store:
        entries = store.entries()
    assert [(e["seq"], e["action"], e["after"]) for e in found["entries"]] == [
        (e.seq, e.action, e.after) for e in entries
    ]
    assert found["entries"][3]["cost"]["rollouts"] == entries[3].cost.rollouts


def test_log_filters(run: Path) -> None:
    def seqs(*words: Any) -> list[int]:
        return [e["seq"] for e in as_json("log", run, *words)["entries"]]

    with RunStore.open(run) as store:
        entries = store.entries()
    assert seqs("--channel", "prompts") == [e.seq for e in entries if e.channel == "prompts"]
    assert seqs("--action", "commit") == [e.seq for e in entries if e.action == "commit"]
    assert seqs("--round", 4) == [e.seq for e in entries if e.round == 4]
    assert seqs("--limit", 3) == [e.seq for e in entries][-3:]
    assert seqs("--channel", "null", "--action", "commit") == []
    limited = well("log", run, "--limit", 3)
    assert f"{len(entries) - 3} older entries are not shown" in limited.stderr
    assert "no entry matches" in well("log", run, "--channel", "null", "--action", "commit").stderr


def test_full_shows_the_whole_text_of_a_write_and_short_one_line(run: Path) -> None:
    text = "first line\n" + "word " * 60 + "\x1b[2Jend"
    with RunStore.open(run, write=True) as store:
        head = store.head()
        entry = LedgerEntry(
            round=6,
            channel="prompts",
            timescale="fast",
            action="reject",
            before=head.states["prompts"],
            after=head.states["prompts"],
            cause="a test",
            reason="no better",
            cost=Cost(),
            writes=(Write(kind="system", text=text),),
        )
        store.commit_round(
            RoundRecord(
                round=6,
                phase=1,
                task="next",
                snapshot=Snapshot(round=6, states=head.states, next_round=7),
                entries=(entry,),
                evidence=None,
                metrics={},
            )
        )
    short = well("log", run, "--round", 6).stdout
    assert all(len(line) <= 120 for line in short.splitlines())
    assert "end" not in short.split("wrote")[1]
    full = well("log", run, "--round", 6, "--full").stdout
    assert "        first line\n        word word" in full
    assert "\\x1b[2Jend" in full  # what a terminal would obey is shown, not sent
    assert "\x1b" not in full


# ---------------------------------------------------------------------------------------------------------------- diff


def test_diff_shows_the_prompt_that_was_learned(run: Path) -> None:
    found = as_json("diff", run, 0, 5)
    prompts = found["channels"]["prompts"]
    assert set(prompts["prompts"]) == {"double", "next"}
    assert any(line.startswith("+user: Double ") for line in prompts["prompts"]["double"])
    assert not any(line.startswith("-") for line in prompts["prompts"]["double"])
    assert not found["channels"]["null"]["changed"]
    back = as_json("diff", run, 5, 0)["channels"]["prompts"]["prompts"]["double"]
    assert [line[1:] for line in back] == [line[1:] for line in prompts["prompts"]["double"]]
    assert {line[0] for line in back} == {"-"}
    words = well("diff", run, 0, 3).stdout
    assert "the deployed prompt for double:" in words
    assert "for next:" not in words


def test_diff_of_a_round_with_itself_is_empty(run: Path) -> None:
    found = as_json("diff", run, 4, 4)
    assert not any(channel["changed"] for channel in found["channels"].values())
    assert found["entries"] == []


def test_diff_against_what_is_live_has_the_rollback(run: Path) -> None:
    assert not as_json("diff", run, 5)["channels"]["prompts"]["changed"]
    well("rollback", run, 0)
    found = as_json("diff", run, 5)
    assert [e["action"] for e in found["entries"]] == ["rollback"]
    assert found["channels"]["prompts"]["changed"]
    assert not as_json("diff", run, 0)["channels"]["prompts"]["changed"]


def test_the_norm_of_a_way_is_that_of_the_whole_matrices() -> None:
    np = pytest.importorskip("numpy")
    rng = np.random.default_rng(0)
    terms = [(rng.normal(size=(7, 2)), rng.normal(size=(2, 5))) for _ in range(2)]
    whole = sum(b @ a for b, a in terms)
    assert _norm(terms) == pytest.approx(np.linalg.norm(whole))
    b, a = terms[0]
    assert _norm([(b, a), (-b, a)]) == pytest.approx(0.0, abs=1e-6)


def test_diff_of_weights_counts_steps_and_norms(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from twoclock.slow.lora import LoraChannel, LoraState

    def state(step: int, fill: float) -> LoraState:
        a, b = torch.full((1, 3), fill), torch.ones(2, 1)
        moments = tuple(torch.zeros_like(t) for t in (a, a, b, b))
        return LoraState(7, step, "base", 0.5, {"m.q_proj": (a, b)}, {"m.q_proj": moments})

    channel = LoraChannel()
    config = {"stream": [{"task": "t", "rounds": 2}], "channels": {"lora": {}}, "run": {"name": "w"}}
    with RunStore.create(tmp_path / "run", config=config) as store:
        empty = LoraState(seed=7)
        blobs = [store.put_blob(channel.dump(s)) for s in (empty, state(1, 1.0), state(4, 3.0))]
        store.begin(Snapshot(round=0, states={"lora": blobs[0]}, next_round=1), [])
        for n in (1, 2):
            snapshot = Snapshot(round=n, states={"lora": blobs[n]}, next_round=n + 1)
            store.commit_round(
                RoundRecord(round=n, phase=0, task="t", snapshot=snapshot, entries=(), evidence=None, metrics={})
            )
    weights = as_json("diff", tmp_path / "run", 1, 2)["channels"]["lora"]["weights"]
    # 0.5 · B A is a 2 × 3 matrix of 0.5 · fill: its norm is 0.5 · fill · √6.
    assert weights["steps"] == [1, 4]
    assert weights["norm_a"] == pytest.approx(0.5 * 6**0.5)
    assert weights["norm_b"] == pytest.approx(1.5 * 6**0.5)
    assert weights["norm_change"] == pytest.approx(6**0.5)
    assert weights["largest"] == [["m.q_proj", pytest.approx(6**0.5)]]
    assert "optimizer steps 0 → 4" in well("diff", tmp_path / "run", 0, 2).stdout


# ------------------------------------------------------------------------------------------------------------ rollback


def test_rollback_to_the_start_and_back(run: Path) -> None:
    learned = as_json("eval", run)
    done = well("rollback", run, 0, "--reason", "a trial")
    assert "round 0 is live again: prompts" in done.stdout
    assert f"to take it back: twoclock rollback {run} 5" in done.stderr
    base = as_json("eval", run)
    for task in ("double", "next"):
        assert cell(base, task, "live_learned") == cell(learned, task, "base_none")
        assert base["tasks"][task]["identical"] == [["base_none", "base_learned", "live_none", "live_learned"]]
        assert base["tasks"][task]["effects"]["total"]["method"] == "identical"
    assert (base["round"], base["rounds_run"]) == (0, 5)
    entry = as_json("log", run, "--action", "rollback")["entries"][0]
    assert (entry["channel"], entry["reason"]) == ("prompts", "a trial")
    assert "live are the states of round 0" in well("status", run).stdout
    well("rollback", run, 5)
    again = as_json("eval", run)
    assert again["tasks"] == learned["tasks"]


def test_rollback_by_clock(run: Path) -> None:
    assert "the slow states of round 0 are live already" in well("rollback", run, 0, "--slow-only").stdout
    with RunStore.open(run) as store:
        assert store.entries(action="rollback") == []
    assert "round 0 is live again: prompts" in well("rollback", run, 0, "--fast-only").stdout
    both = call("rollback", run, 0, "--fast-only", "--slow-only")
    assert both.exit_code == 2
    assert "exclude each other" in both.stderr


def test_rollback_to_where_one_is_writes_nothing(run: Path) -> None:
    assert "nothing to roll back" in well("rollback", run, 5).stdout


def test_rollback_asks_on_a_terminal_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twoclock.cli.rollback._is_terminal", lambda: True)
    refused = well("rollback", run, 0, text="n\n")
    assert "nothing was changed" in refused.stderr
    assert "live again" not in refused.stdout
    assert "live again" in well("rollback", run, 0, "--yes").stdout


# ---------------------------------------------------------------------------------------------------------------- eval


def test_eval_gives_the_documented_keys(run: Path) -> None:
    found = as_json("eval", run)
    assert set(found) == {"run", "model", "round", "rounds_run", "tasks", "drift", "retention", "cost"}
    task = found["tasks"]["double"]
    assert set(task) == {"round", "cells", "effects", "shares", "identical", "power"}
    assert set(task["cells"]) == {"base_none", "base_learned", "live_none", "live_learned"}
    for interval in task["cells"].values():
        assert interval["low"] <= interval["estimate"] <= interval["high"]
        assert interval["n"] == 20
    effects = {name: value["estimate"] for name, value in task["effects"].items()}
    assert effects["slow"] + effects["fast"] + effects["interaction"] == effects["total"]
    assert effects["fast"] == pytest.approx(cell(found, "double", "base_learned") - cell(found, "double", "base_none"))
    assert task["identical"] == [["base_none", "live_none"], ["base_learned", "live_learned"]]
    assert task["effects"]["slow"]["low"] == task["effects"]["slow"]["high"] == 0.0
    assert found["drift"] == []  # a scripted model gives no log-probabilities of given text
    assert set(found["cost"]) == {"rollouts", "channels", "evaluations", "this_evaluation", "seconds"}
    assert found["cost"]["this_evaluation"]["rollouts"] == 2 * 2 * 20  # tasks × distinct cells × items


def test_eval_says_what_became_of_the_first_task_after_the_second(run: Path) -> None:
    retention = as_json("eval", run)["retention"]
    rows = retention["matrix"]["rows"]
    assert retention["matrix"]["tasks"] == ["double", "next"]
    assert [(row["after"], row["round"]) for row in rows] == [
        ("start", 0),
        ("phase 1 (double)", 3),
        ("phase 2 (next)", 5),
        ("now", 5),
    ]
    first = [row["scores"][0]["estimate"] for row in rows]
    assert first[0] < 0.5 < first[1]
    assert first[2] == first[3] == first[1]  # its own prompt is untouched by the second task
    double = retention["phases"][0]
    assert (double["task"], double["phase"], double["change"]["estimate"]) == ("double", 1, 0.0)
    assert double["gain"]["estimate"] == pytest.approx(first[3] - first[0])
    assert retention["summary"]["forgetting"]["estimate"] == 0.0


def test_eval_of_some_tasks(run: Path) -> None:
    found = as_json("eval", run, "--tasks", "next, next")
    assert list(found["tasks"]) == ["next"]
    assert found["retention"]["matrix"]["rows"][-1]["scores"][0] is None
    words = well("eval", run, "--tasks", "next").stdout
    assert "double: held-out" not in words
    assert "retention: held-out reward of the deployed system" in words
    assert "drift: not measured" in words


def test_eval_of_an_unfinished_run(run: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def before(number: int) -> None:
        if number == 7:
            raise KeyboardInterrupt

    stopping = Model()
    stopping.before = before
    monkeypatch.setattr("twoclock.build.build_policy", stopping)
    from cli_bench import write_data

    assert call("run", write_data(tmp_path), "--out", tmp_path / "half").exit_code == 130
    stopping.before = lambda number: None
    found = as_json("eval", tmp_path / "half")
    assert [row["after"] for row in found["retention"]["matrix"]["rows"]] == ["start", "now"]
    assert found["retention"]["phases"] == []
