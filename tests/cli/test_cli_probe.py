"""``probe`` and ``check`` as a user meets them: a run that is only read, budgets, bad arguments, exit codes."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cli_bench import CONFIG, Model, call, well, write_data

import twoclock.probe_file
from twoclock.cli.probe import NAMES
from twoclock.cli.probe_words import figure
from twoclock.cli.summary import _power_words
from twoclock.measure import detectable_difference, items_needed
from twoclock.probe_file import FORMAT, PROBES, find_probes, read_probe
from twoclock.probing import fingerprint
from twoclock.report.probes import figure_html, read_probes
from twoclock.store import RunStore

KEYS = {
    "format", "version", "run", "name", "model", "round", "rounds_run", "rounds_planned", "states", "digest", "at",
    "settings", "estimate", "budget", "cost", "stopped", "not_probed", "run_unchanged", "results",
}  # fmt: skip


def as_json(*words: Any) -> Any:
    return json.loads(well(*words, "--json").stdout)


# ------------------------------------------------------------------------------------------------------ the run is left


def test_a_probe_changes_nothing_in_the_run(run: Path) -> None:
    with RunStore.open(run) as store:
        digest = store.digest()
    before = fingerprint(run)
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and not p.name.endswith(("-shm", "-wal"))}
    found = as_json("probe", run, "--items", 6)
    assert found["run_unchanged"] is True
    assert found["cost"]["rollouts"] > 0
    assert fingerprint(run) == before
    assert {p: p.read_bytes() for p in files} == files
    with RunStore.open(run) as store:
        assert store.digest() == digest == found["digest"]


def test_a_fingerprint_sees_any_change(run: Path) -> None:
    before = fingerprint(run)
    (run / "note.txt").write_text("x")
    assert fingerprint(run) != before
    (run / "note.txt").unlink()
    assert fingerprint(run) == before
    with RunStore.open(run, write=True) as store:
        store.append_rollback(0, reason="a test")
    assert fingerprint(run) != before


def test_a_run_in_progress_can_be_probed(run: Path) -> None:
    with RunStore.open(run, write=True):
        found = as_json("probe", run, "--retention", "--items", 4)
    assert found["run_unchanged"] is True
    assert found["results"]["retention"]["finished_phases"] == 2


def test_a_run_that_goes_on_meanwhile_is_said_to(run: Path, model: Model) -> None:
    def interfere(call: int) -> None:
        if call == 1:
            (run / "written-by-another.txt").write_text("x")

    model.before = interfere
    done = well("probe", run, "--retention", "--items", 4)
    assert "another process wrote to the run meanwhile" in done.stdout


def test_a_round_that_another_process_commits_meanwhile_is_seen_in_the_log_too(run: Path, model: Model) -> None:
    reader = sqlite3.connect(run / "ledger.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM entries").fetchone()  # as long as somebody reads, the log stays apart
    main = (run / "ledger.sqlite").read_bytes()

    def interfere(call: int) -> None:
        if call == 1:
            with RunStore.open(run, write=True) as store:
                store.append_rollback(3, reason="meanwhile")

    model.before = interfere
    found = as_json("probe", run, "--retention", "--items", 4)
    assert (run / "ledger.sqlite").read_bytes() == main
    reader.close()
    assert found["run_unchanged"] is False
    assert found["round"] == 5  # the states that were live when the probe began


def test_results_go_beside_the_run_and_never_into_it(run: Path) -> None:
    done = well("probe", run, "--retention", "--items", 4)
    file = run.parent / "run-probes" / "retention-round-5.json"
    assert f"results: {file}" in done.stdout
    assert find_probes(run) == [file]
    for option in ("--out", "--html"):
        refused = call("probe", run, "--retention", option, run / "x.json")
        assert refused.exit_code == 2
        assert "leaves alone" in refused.stderr


# -------------------------------------------------------------------------------------------------------------- content


def test_the_options_are_the_probes_that_there_are() -> None:
    assert NAMES == PROBES  # written twice, so that --help loads nothing


def test_the_documented_keys_are_there(run: Path) -> None:
    found = as_json("probe", run, "--items", 6)
    assert set(found) == KEYS
    assert (found["format"], found["version"], found["round"]) == (FORMAT, 1, 5)
    assert set(found["results"]) == {"retention", "ood", "decomposition"}
    assert set(found["not_probed"]) == {"drift", "plasticity"}
    assert "no log-probabilities" in found["not_probed"]["drift"]
    assert "no slow channel" in found["not_probed"]["plasticity"]
    assert set(found["results"]["retention"]) == {
        "matrix", "phases", "summary", "worst_case", "finished_phases", "planned_phases", "is_current", "items",
        "base_forgetting", "suites", "unmeasured_suites", "stopped",
    }  # fmt: skip
    intervals = list(_intervals(found["results"]))
    assert len(intervals) > 20
    for interval in intervals:
        assert {"estimate", "low", "high", "n", "level", "method", "seeds"} <= set(interval)


def _intervals(value: Any) -> Any:
    if isinstance(value, dict):
        if "estimate" in value:
            yield value
        for part in value.values():
            yield from _intervals(part)
    elif isinstance(value, list):
        for part in value:
            yield from _intervals(part)


def test_every_figure_carries_its_interval_and_its_count(run: Path) -> None:
    text = well("probe", run, "--decomposition", "--retention", "--items", 6).stdout
    assert "[" in text
    rows = [line for line in text.splitlines() if line.strip().startswith(("base weights", "phase 1", "forgetting"))]
    assert rows
    assert all("n=" in row or "0 exactly" in row for row in rows)


def test_what_is_none_by_construction_has_no_share_at_all(run: Path) -> None:
    """No weights are learned here: their share of the gain is 0 exactly, and not 0 within the noise of some items."""
    task = as_json("probe", run, "--decomposition")["results"]["decomposition"]["tasks"]["double"]
    assert task["effects"]["slow"]["method"] == "identical"
    assert [task["shares"]["slow"][end] for end in ("estimate", "low", "high")] == [0.0, 0.0, 0.0]
    assert task["shares"]["fast"]["estimate"] == 1.0


def test_cost_comes_first(run: Path) -> None:
    done = well("probe", run, "--retention", "--items", 6)
    lines = done.stderr.splitlines()
    costs = [i for i, line in enumerate(lines) if line.startswith("cost of")]
    steps = [i for i, line in enumerate(lines) if line.startswith("retention:")]
    assert costs
    assert max(costs) < min(steps)
    assert "cost: 24 rollouts" in done.stdout  # 2 phases × (again, now) × 6 items
    assert "about 24 rollouts" in done.stderr


def test_a_suite_that_no_phase_trains_on_tells_base_forgetting(run: Path, tmp_path: Path) -> None:
    words = ["--set", "tasks.other.source=jsonl", "--set", f"tasks.other.path='{_suite(tmp_path)}'"]
    found = as_json("probe", run, "--retention", "--items", 20, *words)["results"]["retention"]
    assert [suite["task"] for suite in found["suites"]] == ["other"]
    # No prompt is learned for it: base and live are one system on the same random numbers, the null that must come out.
    assert found["base_forgetting"]["estimate"] == 0.0
    with RunStore.open(run) as store:
        assert "other" not in store.config["tasks"]


def test_a_suite_that_the_budget_leaves_out_is_not_said_to_be_none(run: Path, tmp_path: Path) -> None:
    words = ["--set", "tasks.other.source=jsonl", "--set", f"tasks.other.path='{_suite(tmp_path)}'"]
    assert (
        "not measured, as the budget ran out: other" in well("probe", run, "--retention", "--budget", 0, *words).stdout
    )
    assert "every task of the run is trained on" in well("probe", run, "--retention", "--budget", 0).stdout
    out = ["--html", tmp_path / "page.html"]
    well("probe", run, "--retention", "--budget", 0, *words, *out)
    assert "not measured, as the budget ran out: other" in (tmp_path / "page.html").read_text(encoding="utf-8")


def _suite(folder: Path) -> Path:
    path = folder / "other.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"Double {n}", "answer": str(2 * n)}) + "\n" for n in range(500, 620))
    )
    return path


def test_results_are_never_written_over(run: Path) -> None:
    """A second probe, of another task say, took its time too; the page shows both tasks, and of one the later."""
    for task, items in (("double", 8), ("next", 8), ("next", 6)):
        well("probe", run, "--decomposition", "--task", task, "--items", items)
    folder = run.parent / "run-probes"
    names = [f"decomposition-round-5{end}.json" for end in ("", "-2", "-3")]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    with RunStore.open(run) as store:
        head = store.head()
    pages = read_probes(run, head, None)
    tasks = pages.results["decomposition"]["tasks"]
    assert {name: task["cells"]["base_none"]["n"] for name, task in tasks.items()} == {"double": 8, "next": 6}
    assert all(name in pages.files["decomposition"]["path"] for name in names)
    # Of other states nothing is mixed in.
    well("rollback", run, 0)
    well("probe", run, "--decomposition", "--task", "next", "--items", 6)
    with RunStore.open(run) as store:
        head = store.head()
    assert set(read_probes(run, head, None).results["decomposition"]["tasks"]) == {"next"}


def test_a_partial_probe_does_not_hide_a_whole_one(run: Path) -> None:
    for budget in ([], ["--budget", 0]):
        well("probe", run, "--retention", "--items", 6, *budget)
    with RunStore.open(run) as store:
        head = store.head()
    pages = read_probes(run, head, None)
    assert len(pages.results["retention"]["items"]) == 2
    assert pages.files["retention"]["path"].endswith("retention-round-5.json")
    well("rollback", run, 3)
    well("probe", run, "--retention", "--items", 6, "--budget", 0)  # of other states what there is counts
    with RunStore.open(run) as store:
        head = store.head()
    assert read_probes(run, head, None).results["retention"]["stopped"]


def test_seeds_are_counted_once() -> None:
    plain = {"estimate": 0.5, "low": 0.25, "high": 0.75, "n": 3, "level": 0.95, "method": "t over seeds", "seeds": 3}
    assert figure(plain) == "0.50 [0.25, 0.75] 3 seeds"
    assert figure({**plain, "n": 120}) == "0.50 [0.25, 0.75] n=120, 3 seeds"
    assert figure({**plain, "seeds": 1}) == "0.50 [0.25, 0.75] n=3"
    assert re.sub("<[^>]*>", "", figure_html(plain)) == "0.50 [0.25, 0.75] 3 seeds"
    assert re.sub("<[^>]*>", "", figure_html({**plain, "n": 120})) == "0.50 [0.25, 0.75] n = 120, 3 seeds"


# --------------------------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize("budget", [0, 5, 13, 20])
def test_a_budget_is_never_passed(run: Path, budget: int) -> None:
    found = as_json("probe", run, "--retention", "--decomposition", "--items", 6, "--budget", budget)
    assert found["cost"]["rollouts"] <= budget
    assert "retention" in found["stopped"]
    retention = found["results"]["retention"]
    assert len(retention["items"]) == budget // 12
    assert retention["matrix"]["rows"]
    assert "budget ran out" in well("probe", run, "--retention", "--items", 6, "--budget", budget).stdout


def test_a_budget_that_suffices_changes_nothing(run: Path) -> None:
    free = as_json("probe", run, "--retention", "--items", 6)
    held = as_json("probe", run, "--retention", "--items", 6, "--budget", 24)
    assert held["results"] == free["results"]
    assert held["stopped"] == {}


def test_what_is_recorded_needs_no_model(run: Path, model: Model) -> None:
    done = well("probe", run, "--retention", "--budget", 0)
    assert "forgetting (loss is positive)" in done.stdout
    assert not model.policies
    recorded = well("probe", run, "--decomposition")  # measured by the run's own evaluation at its end
    assert "cost of decomposition: nothing, it is recorded" in recorded.stderr
    assert not model.policies
    well("probe", run, "--decomposition", "--items", 6)
    assert model.policies


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--task", "dubble"], "did you mean 'double'"),
        (["--items", "1"], "items = 1: expected at least 2"),
        (["--budget", "-1"], "budget = -1: expected at least 0"),
        (["--seeds", "a"], "--seeds takes whole numbers"),
        (["--seeds", "1,1"], "seeds has one twice"),
        (["--seeds", ","], "seeds names no seed"),
        (["--set", "rollouts.items=3"], "only new tasks can be added"),
        (["--set", "tasks.double.path=x"], "changes task 'double'"),
        (["--variant-file", "x.jsonl"], "VARIANT=FILE"),
        (["--variant-file", "n-1=x.jsonl"], "name it with --task"),
        (["--drift"], "no drift: the policy"),
        (["--plasticity", "--drift"], "no plasticity: the run has no slow channel"),
    ],
)
def test_mistakes_are_said_and_cost_nothing(run: Path, words: list[str], text: str) -> None:
    done = call("probe", run, *words)
    assert done.exit_code == 2
    assert text in " ".join(done.stderr.split())
    assert not (run.parent / "run-probes").exists()


def test_a_place_that_cannot_be_written_is_said_before_anything_is_measured(
    run: Path, tmp_path: Path, model: Model
) -> None:
    (tmp_path / "file").write_text("x")
    for option in ("--out", "--html"):
        for place in (tmp_path / "file" / "x.json", tmp_path):
            done = call("probe", run, "--retention", "--items", 4, option, place)
            assert done.exit_code == 2
            assert "cannot be written" in done.stderr or "is a folder" in done.stderr
    assert not any(policy.calls for policy in model.policies)
    well("probe", run, "--retention", "--budget", 0, "--out", tmp_path / "new" / "deep" / "x.json")
    assert read_probe(tmp_path / "new" / "deep" / "x.json")["round"] == 5
    refused = call("probe", run, "--drift", "--out", tmp_path / "other" / "x.json")
    assert refused.exit_code == 2
    assert refused.stderr.count("no drift") == 1
    assert not (tmp_path / "other").exists()  # nothing is left of a refused probe


def test_results_that_cannot_be_kept_are_shown_all_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(twoclock.probe_file, "write_atomically", full)
    done = call("probe", run, "--retention", "--items", 4)
    assert done.exit_code == 2
    assert "forgetting (loss is positive)" in done.stdout
    assert "No space left on device" in done.stderr


def test_no_run_is_said(tmp_path: Path) -> None:
    assert call("probe", tmp_path / "nothing").exit_code == 4
    assert call("check", tmp_path / "nothing", "--max-drift", 1).exit_code == 4


def test_a_remote_policy_is_probed_for_what_it_can_show(tmp_path: Path, model: Model) -> None:
    text = CONFIG + '\n[model]\nendpoint = "http://localhost:9/v1"\nname = "served"\n'
    config = write_data(tmp_path, text)
    well("run", config, "--out", tmp_path / "remote", "--no-eval")
    found = as_json("probe", tmp_path / "remote", "--items", 4)
    assert "behind an endpoint" in found["not_probed"]["drift"]
    assert set(found["results"]) == {"retention", "ood", "decomposition"}


# ---------------------------------------------------------------------------------------------------------------- check


def test_check_passes_fails_and_says_undecided(run: Path) -> None:
    good = well("check", run, "--max-forgetting", 0.2)
    assert "within: forgetting F" in good.stdout
    assert "passed" in good.stdout
    worse = call("check", run, "--min-retention", 0.99)
    assert worse.exit_code in (0, 10)
    low = call("check", run, "--min-retention", 0.1)
    assert low.exit_code == 0
    beyond = call("check", run, "--max-forgetting", -0.9)
    assert beyond.exit_code == 10
    assert "beyond: forgetting F" in beyond.stdout


def test_check_of_what_is_not_decided(run: Path) -> None:
    score = as_json("check", run, "--min-retention", 0.5)["limits"][0]["value"]["estimate"]
    loose = call("check", run, "--min-retention", score)
    assert loose.exit_code == 0
    assert "not decided" in loose.stderr
    assert call("check", run, "--min-retention", score, "--strict").exit_code == 11
    plain = json.loads(call("check", run, "--min-retention", score, "--strict", "--json").stdout)
    assert (plain["passed"], plain["exit_code"], plain["limits"][0]["verdict"]) == (False, 11, "undecided")


def test_check_of_what_was_never_measured_does_not_pass(run: Path) -> None:
    done = call("check", run, "--max-drift", 0.1)
    assert done.exit_code == 11
    assert "twoclock probe" in done.stdout
    assert call("check", run, "--max-forgetting", -0.9, "--max-drift", 0.1).exit_code == 10


def test_check_after_a_rollback_does_not_take_other_states_figures(run: Path) -> None:
    well("check", run, "--max-forgetting", 0.5)
    well("rollback", run, 3)
    done = call("check", run, "--max-forgetting", 0.5)
    assert done.exit_code == 11
    assert "not of the states that are live now" in done.stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "no limit is given"),
        (["--max-drift", "-1"], "a divergence is not negative"),
        (["--max-drift", "nan"], "expected a finite number"),
        (["--max-forgetting", "5"], "between -1 and 1"),
        (["--min-retention", "68"], "a score lies between 0 and 1"),
        (["--max-drift", "0.1", "--probe-file", "nothing.json"], "no probe file nothing.json"),
    ],
)
def test_mistakes_in_limits(run: Path, words: list[str], text: str) -> None:
    done = call("check", run, *words)
    assert done.exit_code == 2
    assert text in " ".join(done.stderr.split())


def test_check_takes_a_probes_figures_and_refuses_another_runs(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    well("probe", run, "--retention", "--items", 6, "--out", file)
    done = as_json("check", run, "--max-forgetting", 0.5, "--probe-file", file)
    assert done["limits"][0]["source"] == str(file)
    assert done["limits"][0]["verdict"] == "within"
    found = read_probe(file)
    found["results"]["retention"]["summary"]["forgetting"] |= {"estimate": 0.6, "low": 0.55, "high": 0.65}
    file.write_text(json.dumps(found))
    assert call("check", run, "--max-forgetting", 0.5, "--probe-file", file).exit_code == 10
    well("rollback", run, 0)
    stale = call("check", run, "--max-forgetting", 0.5, "--probe-file", file)
    assert stale.exit_code == 2
    assert "not those that are live" in " ".join(stale.stderr.split())


def test_check_changes_nothing(run: Path) -> None:
    before = fingerprint(run)
    call("check", run, "--max-forgetting", 0.1, "--max-drift", 0.1, "--min-retention", 0.5)
    assert fingerprint(run) == before


def test_check_holds_every_file_and_misses_what_a_budget_left_out(run: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{task}.json" for task in ("double", "next")]
    for file, task in zip(files, ("double", "next"), strict=True):
        well("probe", run, "--ood", "--task", task, "--items", 8, "--out", file)
    words = [word for file in files for word in ("--probe-file", file)]
    names = [line["name"] for line in as_json("check", run, "--max-ood-gap", 1.9, *words)["limits"]]
    assert {name.split(",")[0] for name in names} == {"DiD of double", "DiD of next"}
    # 8 items of 'id' and of 'template', base and live: nothing is left for the distractors, nor for the other task.
    well("probe", run, "--ood", "--items", 8, "--budget", 40, "--out", tmp_path / "part.json")
    done = call("check", run, "--max-ood-gap", 1.9, "--probe-file", tmp_path / "part.json", "--json")
    verdicts = {line["name"]: line["verdict"] for line in json.loads(done.stdout)["limits"]}
    assert done.exit_code == 11
    assert verdicts["DiD of double, template"] != "unknown"
    assert verdicts["DiD of double, distractor"] == verdicts["DiD of next"] == "unknown"
    text = call("check", run, "--max-ood-gap", 1.9, "--probe-file", tmp_path / "part.json").stdout
    assert "DiD of next is not known: the probe's budget ran out before it" in text


def test_check_refuses_a_probe_file_that_lacks_what_is_held(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    well("probe", run, "--retention", "--ood", "--items", 6, "--out", file)
    found = json.loads(file.read_text())
    damages: list[tuple[Any, str]] = [
        (lambda f: f.pop("states"), "'states' is missing"),
        (lambda f: f["results"].update(retention=[]), "the results of 'retention' are no object"),
        (lambda f: f["results"]["retention"].pop("summary"), "lacks what is held (KeyError: 'summary')"),
        (lambda f: f["results"]["retention"].update(summary=None), "lacks what is held (TypeError"),
        (lambda f: f["results"]["ood"]["tasks"]["double"].pop("report"), "lacks what is held (KeyError: 'report')"),
        (lambda f: f["results"]["retention"]["summary"]["forgetting"].update(estimate="high"), "lacks what is held"),
    ]
    for damage, text in damages:
        broken = json.loads(json.dumps(found))
        damage(broken)
        file.write_text(json.dumps(broken))
        done = call("check", run, "--max-forgetting", 0.5, "--max-ood-gap", 1, "--probe-file", file)
        assert done.exit_code == 2, (text, done.output)
        assert text in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": "twoclock-probe", "version": 7}', '{"format": "twoclock-probe"']
)
def test_damaged_probe_files(run: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    assert call("check", run, "--max-drift", 1, "--probe-file", file).exit_code == 2
    assert call("report", run, "--probe-file", file).exit_code == 2
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy-probes").mkdir()
    shutil.copy(file, tmp_path / "copy-probes" / "bad.json")
    well("report", tmp_path / "copy")  # found, not given: left out


# ----------------------------------------------------------------------------------------------------------------- eval


def test_eval_says_how_many_items_a_difference_takes(run: Path) -> None:
    power = as_json("eval", run)["tasks"]["double"]["power"]
    assert power["items"] == 20
    assert 0.2 <= power["discordance"] < 1
    needed = items_needed(power["detectable"], max(power["discordance"], power["detectable"]))
    assert 18 <= needed <= 20
    paired = {line["delta"]: line["paired"] for line in power["table"]}
    assert paired[0.02] > paired[0.05] > paired[0.1] > 0
    text = well("eval", run).stdout
    assert "these 20 items show a difference of" in text
    assert "items to see a difference of" in text
    well("rollback", run, 0)
    same = as_json("eval", run)["tasks"]["double"]["power"]
    assert (same["discordance"], same["discordance_measured"]) == (0.2, False)
    # 20 items show no difference below .2, and one above it has at least as many that differ.
    assert same["detectable"] > 0.2
    assert "if all the items that differ do so the same way" in well("eval", run).stdout
    enough = {**same, "items": 120, "detectable": detectable_difference(120, discordance=0.2)}
    assert "0.113 or more (80 % power at 95 %, taking 20% of the items to differ)" in _power_words(enough)[0]
