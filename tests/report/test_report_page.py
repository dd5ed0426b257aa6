"""The page of a whole run: every section, every number with count and interval, nothing loaded, nothing executed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from report_parse import Page
from report_runs import TASKS, add_round, begun, conditioning, config, entry, evidence, finished

from twoclock.errors import ConfigError, StoreError
from twoclock.measure import score_matrix, summarise_retention, task_tables
from twoclock.report import render, write_report
from twoclock.report.formats import interval_text, number
from twoclock.report.reading import read_run
from twoclock.report.tables import cost_rows
from twoclock.store import RunStore
from twoclock.types import Cost, RoundRecord, Snapshot, Write

SECTIONS = ["header", "learned", "written", "broke", "cost", "ledger", "samples", "glossary"]
ATTACK = "</script><script>stolen()</script><img src=x onerror=stolen()>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    store = finished(tmp_path_factory.mktemp("runs") / "whole")
    store.close()
    return store


@pytest.fixture(scope="module")
def html(run: RunStore) -> str:
    return render(run)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_sections_come_in_order_and_say_how_to_read_them(page: Page, html: str) -> None:
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    for name in SECTIONS[1:7]:
        body = html[html.index(f'id="{name}"') :]
        assert 'class="how"' in body[: body.index("</section>")], name
    assert [d.get("data-figure") for tag, d in page.tags if tag == "figure"] == [
        "reward", "split", "retention", "drift_live_base", "drift_base_live", "cost", "tokens",
    ]  # fmt: skip


def test_header_tells_what_ran(page: Page, run: RunStore) -> None:
    for text in (
        "two tasks", "SmolLM2-135M-Instruct", "bbbbbbbbbbbb", "largest (10 rounds) → lookup (10 rounds)",
        "finished: 20 of 20 rounds", f"twoclock run {run.path}/config.toml --set", "UTC", "torch", "Seed 7",
    ):  # fmt: skip
        assert text in page.text
    assert len([1 for tag, values in page.tags if values.get("class") == "card"]) == 5


def test_recorded_command_is_the_one_that_is_shown(tmp_path: Path) -> None:
    with begun(tmp_path / "run") as store:
        store.environment["command"] = ["twoclock", "run", "my config.toml", "--set", "run.seed=7"]
        assert "twoclock run 'my config.toml' --set run.seed=7" in Page(render(store)).text


def test_every_cell_of_the_square_and_its_split_is_there(page: Page, run: RunStore) -> None:
    tables = task_tables(run.evaluations())
    assert [table.task for table in tables] == list(TASKS)
    for table in tables:
        assert table.split is not None
        for cell in table.cells.values():
            assert "n = 120" in interval_text(cell)
            assert interval_text(cell) in page.text
        for effect in (table.split.fast, table.split.slow, table.split.interaction, table.split.total):
            assert interval_text(effect, sign=True) in page.text
        assert table.split.shares is not None
        assert f"share {interval_text(table.split.shares['fast'], n=False)}" in page.text


def test_deployed_prompt_of_each_task_can_be_read(page: Page) -> None:
    for task in TASKS:
        assert f"The learned prompt of {task} system {conditioning(task).system} example 1: user" in page.text


def test_headline_goes_from_the_base_to_the_deployed_system(page: Page, run: RunStore) -> None:
    for table in task_tables(run.evaluations()):
        base, now = table.cells["base", "none"], table.cells["live", "learned"]
        assert f"{number(base.estimate)} → {number(now.estimate)}" in page.text
        assert f"trained, learned prompt: {interval_text(now)}" in page.text


def test_retention_and_drift_are_shown_with_intervals(page: Page, run: RunStore) -> None:
    matrix = score_matrix(run.evaluations(), TASKS)
    summary = summarise_retention(matrix)
    assert summary.forgetting.estimate > 0
    for value in (summary.forgetting, summary.backward_transfer, summary.forward_transfer):
        assert f"{interval_text(value, sign=True)} mean over" in page.text
    for i in range(3):
        for j in range(2):
            assert interval_text(matrix.cell(i, j)) in page.text
    data = read_run(run)
    assert {record.prompts for record in data.drift} == {"general", "task:largest", "task:lookup"}
    assert page.text.count("n = 12 ") >= 2 * len(data.drift)


def test_heatmap_holds_the_matrix(page: Page, run: RunStore) -> None:
    heat = next(f["data"][0] for f in page.data if f["data"][0]["type"] == "heatmap")
    means = score_matrix(run.evaluations(), TASKS).means
    assert heat["z"] == [[pytest.approx(float(value)) for value in row] for row in means]
    assert len(heat["y"]) == 3
    assert heat["y"][0].startswith("start")


def test_curve_counts_every_rollout_spent_on_learning(page: Page, run: RunStore) -> None:
    traces = {trace.get("name"): trace for trace in page.data[0]["data"]}
    spent = 20 * 64 + sum(e.cost.rollouts for e in run.entries())
    assert traces["lookup, training"]["x"][-1] == spent
    assert traces["lookup, held out"]["x"] == [0, traces["largest, training"]["x"][-1], spent]
    assert traces["lookup, held out"]["error_y"]["array"][0] > 0
    marks = {name: len(traces[name]["x"]) for name in ("committed", "rejected", "declined")}
    assert marks == {"committed": 20, "rejected": 2, "declined": 2}
    assert [shape["x0"] for shape in page.data[0]["layout"]["shapes"]] == [traces["largest, training"]["x"][-1]]


def test_band_is_over_items_because_rollouts_of_one_item_hang_together(run: RunStore) -> None:
    bins = read_run(run).bins
    assert [b.first for b in bins] == list(range(1, 21))
    assert all(b.reward.n == 8 and b.rollouts == 64 for b in bins)
    first = list(run.rollouts(1))
    assert bins[0].reward.estimate == pytest.approx(sum(row.reward for row in first) / len(first))
    assert all(b.reward.low <= b.reward.estimate <= b.reward.high for b in bins)


def test_bill_adds_up_and_counts_everything_once(run: RunStore) -> None:
    data = read_run(run)
    rows = {row.name: row.cost for row in cost_rows(data)}
    parts = [cost for name, cost in rows.items() if name != "total"]
    assert rows["total"] == sum(parts[1:], parts[0])
    assert rows["training rollouts"] == Cost(
        rollouts=20 * 64, prompt_tokens=20 * 320, completion_tokens=20 * 256, seconds=pytest.approx(20 * 6.1)
    )
    assert rows["held-out evaluation"].rollouts == sum(e.cost.rollouts for e in data.evaluations)
    # 2 phase ends of 20 s, of which 4 cells of 4 s each are evaluations; 4 other rounds of 3 s are drift alone.
    assert rows["drift measurement"].seconds == pytest.approx(2 * 20 - 8 * 4 + 4 * 3)


def test_ledger_has_a_row_an_entry_with_the_full_text_of_each_write(page: Page, html: str, run: RunStore) -> None:
    rows = [d for tag, d in page.tags if tag == "tr" and "data-action" in d]
    assert [(d["data-channel"], d["data-action"]) for d in rows] == [(e.channel, e.action) for e in run.entries()]
    spoken = conditioning("lookup")
    assert spoken.system in page.text
    assert "user: Which is the largest: 31 or 13? assistant: => 31" in page.text
    assert "160 rollouts, 7,300 tokens, 12 s" in page.text
    options = re.findall(r"<option>([^<]+)</option>", html)
    assert options == ["prompts", "lora", "init", "commit", "reject", "decline"]


def test_sample_rollouts_show_answers_rewards_and_feedback(page: Page) -> None:
    assert "phase 1: largest round 1" in page.text
    assert "phase 2: lookup round 20" in page.text
    assert "reward 1.00 · best" in page.text
    assert "Feedback: expected the form '=> 27'" in page.text


# ------------------------------------------------------------------------------------------- alone, and harmless


def test_nothing_is_loaded_from_anywhere(html: str, page: Page) -> None:
    loading = {"src", "href", "srcset", "data", "action", "formaction", "poster", "background"}
    for tag, values in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img"), tag
        for name in loading & values.keys():
            assert str(values[name]).startswith("#"), (tag, name, values[name])
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert "http://" not in own
    assert "https://" not in own
    assert "@import" not in own
    assert "url(" not in own


def test_plotly_stands_in_the_page_once_and_the_page_stays_small(html: str, page: Page) -> None:
    assert len(page.scripts) == 2
    assert html.count("plotly.js v") == 1
    assert len(html) < 6_000_000
    assert len(html) - len(page.scripts[0]) < 400_000


def test_policy_names_exactly_the_scripts_of_the_page(page: Page) -> None:
    policy = next(str(d["content"]) for tag, d in page.tags if d.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    named = re.findall(r"'sha256-([^']+)'", policy)
    assert named == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts]
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert all(not name.startswith("on") for _, values in page.tags for name in values)


def test_text_from_the_run_is_never_markup(tmp_path: Path) -> None:
    task = f"task {ATTACK}"
    store = begun(tmp_path / "run", config((task, "other"), name=f"name {ATTACK}"))
    add_round(store, tasks=(task, "other"))
    head = store.head()
    states = dict(head.states)
    seen = evidence(2, 0, task, 0.5, items=1, samples=2)
    group = seen.groups[0]
    rollouts = tuple(
        replace(r, completion=replace(r.completion, text=f"answer {ATTACK}"),
                grade=replace(r.grade, feedback=f"feedback {ATTACK}", failure=f"failure {ATTACK}"))
        for r in group.rollouts
    )  # fmt: skip
    item = replace(group.item, prompt=f"prompt {ATTACK}")
    bad = entry(
        2, 0, task, "prompts", "reject", states, reason=f"reason {ATTACK}", cause=f"cause {ATTACK}",
        writes=(Write(kind=f"kind {ATTACK}", text=f"write {ATTACK}", lesson=ATTACK),), metrics={f"m {ATTACK}": 1.0},
    )  # fmt: skip
    store.commit_round(
        RoundRecord(
            round=2, phase=0, task=task, snapshot=Snapshot(round=2, states=states, next_round=3), entries=(bad,),
            evidence=replace(seen, groups=(replace(group, item=item, rollouts=rollouts),)), metrics={},
        )
    )  # fmt: skip
    store.close()
    html = render(store)
    page = Page(html)
    assert "<script>stolen" not in html
    assert "<img" not in html
    assert len(page.scripts) == 2
    assert not any("stolen" in script for script in page.scripts)
    for word in ("name", "task", "prompt", "answer", "feedback", "failure", "reason", "cause", "write", "kind"):
        assert f"{word} {ATTACK}" in page.text, word
    # Where plotly prints it, it is text too; what a script reads is whole JSON.
    labels = json.dumps([figure["data"] for figure in page.data])
    assert "&lt;/script&gt;" in labels
    shown = re.findall(r'"(?:name|text|x|y)": ("[^"]*"|\[[^\]]*\])', labels)
    assert not any("<script" in text or "<img" in text for text in shown)


def test_lone_surrogates_and_control_characters_do_not_stop_the_page(tmp_path: Path) -> None:
    settings = config(name="half a \ud800 pair \x00 nul")
    begun(tmp_path / "run", settings).close()
    out = write_report(tmp_path / "run")
    assert "half a" in out.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------- writing the file


def test_default_place_is_the_run_and_writing_again_replaces_it(run: RunStore) -> None:
    out = write_report(run.path)
    assert out == run.path / "report.html"
    first = out.read_bytes()
    assert write_report(run.path).read_bytes() == first
    assert [p.name for p in run.path.iterdir() if p.name.endswith(".tmp")] == []


def test_folders_of_the_target_are_made(run: RunStore, tmp_path: Path) -> None:
    out = write_report(run.path, tmp_path / "new" / "page.html")
    assert out.stat().st_size > 1_000_000


def test_a_folder_is_no_target(run: RunStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder; give a file for the report, such as .*report\.html"):
        write_report(run.path, tmp_path)


def test_a_file_in_the_way_of_a_folder_is_named(run: RunStore, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StoreError, match="cannot make the folder"):
        write_report(run.path, tmp_path / "taken" / "page.html")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_failed_write_keeps_the_old_page(run: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "page.html"
    out.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(StoreError, match="No space left on device"):
        write_report(run.path, out)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("page.html", "old")]


def test_no_run_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no run at"):
        write_report(tmp_path / "nothing")


def test_a_report_needs_neither_torch_nor_a_model_and_imports_lightly(run: RunStore, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import twoclock.report as r; "
        "assert 'torch' not in sys.modules and 'plotly.graph_objs' not in sys.modules; "
        f"r.write_report(Path({str(run.path)!r}), Path({str(tmp_path / 'p.html')!r})); "
        "assert not {'torch', 'transformers', 'twoclock.models', 'twoclock.build'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
