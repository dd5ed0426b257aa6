"""Runs that lack something: the page still comes, says what is missing and which command makes it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_parse import Page
from report_runs import SKILL, TASKS, add_round, begun, conditioning, config, evaluation, finished

from twoclock.errors import StoreError
from twoclock.measure import Interval, wilson
from twoclock.report import render
from twoclock.report.formats import amount, duration, interval, interval_text, number
from twoclock.report.reading import MAX_BINS, read_run
from twoclock.store import RunStore
from twoclock.types import Cost, Evaluation


def shown(store: RunStore) -> Page:
    store.close()
    return Page(render(store))


def test_no_round_yet(tmp_path: Path) -> None:
    page = shown(begun(tmp_path / "run"))
    assert "not finished: 0 of 20 rounds" in page.text
    assert f"twoclock resume {tmp_path / 'run'}" in page.text
    assert "No round has been committed yet" in page.text
    assert "There are no rollouts yet." in page.text
    assert "needs two finished phases" in page.text


def test_no_round_and_no_evaluation(tmp_path: Path) -> None:
    page = shown(begun(tmp_path / "run", evaluated=False))
    assert page.data == []
    assert f"No held-out evaluation was recorded. Measure it: twoclock eval {tmp_path / 'run'}" in page.text
    assert "No phase's end was evaluated" in page.text
    assert "Drift was not measured" in page.text
    assert "Held-out reward, largest – not measured" in page.text


def test_in_the_middle_of_the_second_phase(tmp_path: Path) -> None:
    store = begun(tmp_path / "run")
    for _ in range(13):
        add_round(store)
    page = shown(store)
    assert "not finished: 13 of 20 rounds" in page.text
    assert "finished so far: 1." in page.text
    assert "after phase 1: largest (round 10)" in page.text
    assert "after phase 2" not in page.text


def test_the_missing_cell_is_named_with_the_command_that_measures_it(tmp_path: Path) -> None:
    store = finished(tmp_path / "a run", final=False)
    page = shown(store)
    needed = "Not measured for largest: base weights, learned prompt. Without all four cells the gain cannot be split."
    assert f"{needed} Measure it: twoclock eval '{tmp_path / 'a run'}'" in page.text
    assert "not measured" in page.text


def test_no_metrics_and_no_evaluations(tmp_path: Path) -> None:
    store = begun(tmp_path / "run", evaluated=False)
    for _ in range(4):
        add_round(store, bare=True)
    page = shown(store)
    # Without the round's own figures the rollouts are counted one by one.
    assert "training rollouts 256 10,240 1,024 0 0 0 0.0 s" in page.text
    assert "No held-out evaluation was recorded." in page.text
    assert "drift measurement" not in page.text


def test_only_rejected_proposals(tmp_path: Path) -> None:
    store = begun(tmp_path / "run")
    for _ in range(6):
        add_round(store, rejected_only=True)
    page = shown(store)
    assert "Nothing has been committed: the live state is still the one that the run began with." in page.text
    assert "committed" not in {trace.get("name") for trace in page.data[0]["data"]}
    assert "conditioning" not in page.ids
    assert conditioning("largest").system in page.text  # what was rejected can be read as well


def test_one_task(tmp_path: Path) -> None:
    store = begun(tmp_path / "run", config(("sums",)))
    for _ in range(10):
        add_round(store, tasks=("sums",))
    page = shown(store)
    assert "finished: 10 of 10 rounds" in page.text
    assert "Forgetting – needs two finished phases" in page.text
    assert "Forgetting and transfer need two finished phases" in page.text


def test_one_task_twice(tmp_path: Path) -> None:
    tasks = ("sums", "words", "sums")
    store = begun(tmp_path / "run", config(tasks))
    for _ in range(30):
        add_round(store, tasks=tasks)
    page = shown(store)
    names = [trace.get("name") for trace in page.data[0]["data"] if trace.get("showlegend", True)]
    assert names.count("sums, training") == 1
    assert "after phase 3: sums (round 30)" in page.text


def test_one_clock_alone_has_no_share_to_tell_of(tmp_path: Path) -> None:
    """Cells of one conditioning are one measurement: their difference is no estimate of anything."""
    store = finished(tmp_path / "run", final=False)
    spoken, plain = conditioning("largest").id, "base"
    store.record_evaluations(
        [
            replace(
                evaluation(20, "largest", (weights, prompt), 0.6 if prompt == "learned" else 0.05, "final"),
                conditioning_id=spoken if prompt == "learned" else plain,
            )
            for weights, prompt in SKILL
        ]
    )
    page = shown(store)
    assert "The weights are the base's: both rows are one system" in page.text
    assert re.search(r"residual use of the prompt \+0\.\d\d \[[^]]+\] n = 120 none none \+0", page.text)
    assert (
        "share"
        not in page.text[: page.text.index("What it broke")].split("lookup evaluated")[0].split("largest evaluated")[1]
    )


def test_after_a_rollback_the_page_says_so(tmp_path: Path) -> None:
    store = finished(tmp_path / "run")
    store.append_rollback(0, reason="it forgot too much")
    page = shown(store)
    assert "changed by a rollback to round 0" in page.text
    assert "it forgot too much" in page.text
    assert "rolled back" in {trace.get("name") for trace in page.data[0]["data"]}


def test_evaluations_that_share_no_items_do_not_stop_the_page(tmp_path: Path) -> None:
    store = finished(tmp_path / "run", final=False)
    other = [
        Evaluation(
            round=20, task="largest", weights=weights, prompt=prompt, item_ids=(f"{weights}{prompt}",), rewards=(1.0,),
            samples=1, conditioning_id="x", cost=Cost(), purpose=purpose,
        )
        for weights, prompt in SKILL for purpose in ("final", "phase")
    ]  # fmt: skip
    store.record_evaluations(other)
    page = shown(store)
    assert "The four cells of largest share no items" in page.text
    assert "The evaluations do not make a matrix: the evaluations of 'largest' have no item in common" in page.text


@pytest.mark.parametrize("settings", [{}, {"stream": "odd", "run": 3, "allocator": []}, {"stream": [{"task": "t"}]}])
def test_any_configuration_will_do(tmp_path: Path, settings: dict[str, Any]) -> None:
    store = begun(tmp_path / "odd", settings)
    add_round(store)
    page = shown(store)
    assert "odd" in page.text
    assert "1 round" in page.text


def test_a_run_that_never_began_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", config=config()).close()
    with pytest.raises(StoreError, match="start it again with the command that made it"):
        render(RunStore.open(tmp_path / "run"))


def test_rounds_committed_while_the_page_is_read_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = begun(tmp_path / "run")
    add_round(store)
    head = store.head()
    add_round(store)
    store.record_evaluations([evaluation(2, TASKS[0], ("live", "learned"), 0.5, "final")])
    monkeypatch.setattr(store, "head", lambda: head)
    data = read_run(store)
    assert [row.round for row in data.rounds] == [1]
    assert {e.round for e in data.entries} == {0, 1}
    assert {e.round for e in data.evaluations} == {0}
    assert sum(b.rollouts for b in data.bins) == 64


def test_very_many_rounds_become_few_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twoclock.report.reading.MAX_BINS", 7)
    assert MAX_BINS > 7
    store = finished(tmp_path / "run")
    bins = read_run(store).bins
    assert [(b.first, b.last) for b in bins] == [
        (1, 3), (4, 6), (7, 9), (10, 10), (11, 13), (14, 16), (17, 19), (20, 20),
    ]  # fmt: skip
    assert bins[0].rollouts == 192
    assert bins[0].reward.n == 24
    assert "rounds 1–3" in str(Page(render(store)).data[0])


# --------------------------------------------------------------------------------------------------- how numbers look


def test_numbers_keep_their_sign_their_unit_and_their_doubt() -> None:
    assert number(0.125, sign=True) == "+0.12"
    assert number(-0.5) == "−0.50"
    assert number(0.0004) == "0.0004"
    assert number(0.0) == "0.00"
    assert number(float("nan")) == "–"
    assert number(None) == "–"
    assert amount(3.0) == "3"
    assert amount(1234567.0) == "1,234,567"
    assert amount(-0.25) == "−0.25"
    assert amount(0.000123456) == "0.0001235"
    assert [duration(s) for s in (0.0, 0.04, 9.96, 59.6, 200, 7500, None)] == [
        "0.0 s", "0.04 s", "10 s", "1 min 00 s", "3 min 20 s", "2 h 05 min", "–",
    ]  # fmt: skip
    assert interval_text(wilson(3, 4)) == "0.75 [0.30, 0.95] n = 4"
    assert interval_text(Interval(0.5, float("nan"), float("nan"), 1)) == "0.50 n = 1"
    unknown = Interval(float("nan"), float("nan"), float("nan"), 0)
    assert interval_text(unknown) == "not measured"
    assert "not measured" in interval(unknown)
    assert "wilson" in interval(wilson(3, 4))
