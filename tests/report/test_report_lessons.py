"""The page's section on lessons: rows open to explanations, text is never markup, and what is missing is said."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_parse import Page
from report_runs import add_round, begun, entry, finished

from twoclock.errors import ConfigError
from twoclock.explain import Event, Explanation, Explanations, LessonCount, Origin, Slice, Standing
from twoclock.measure.lessons import LessonRecord
from twoclock.report import render
from twoclock.report.page import MAX_LESSONS
from twoclock.store import RunStore
from twoclock.types import Lesson, RoundRecord, Snapshot

ATTACK = "</script><script>stolen()</script><img src=x onerror=stolen()>"


def record(name: str) -> LessonRecord:
    made = LessonRecord(lesson=name)
    for n in range(6):
        made = made.update([1.0, 1.0], [0.0, 1.0], item=f"i{n}", task="largest", step=1 + n // 3)
    return made


def explanation(name: str, mark: str = "") -> Explanation:
    made = record(name)
    effect = made.effect().interval()
    part = Slice(name=f"slice {mark}", groups=6, weight=6.0, effect=effect)
    return Explanation(
        lesson=Lesson(id=name, channel=f"channel {mark}", text=f"text {mark}", tasks=(f"task {mark}",), live=True),
        origin=Origin(round=1, seq=4, cause=f"cause {mark}", rollouts=(f"rollout {mark}",)),
        count=LessonCount(alone=made, beside=made, rollouts=12, against={f"against {mark}": 6}, tokens=23.5),
        phases=(part,),
        tasks=(part, part),
        rounds=(part,),
        events=(Event(round=1, what="deployed", reason=f"reason {mark}", seq=4),),
        standing=Standing(kind="fast", sentence=f"sentence {mark}", changes=(f"change {mark}",)),
        own=made,
        horizon=8,
    )


def section(html: str) -> str:
    return html[html.index('<section id="lessons">') : html.index('<section id="broke">')]


def shown(store: RunStore, *lessons: Explanation) -> str:
    return render(store, explain=lambda _: Explanations(run="run", round=20, lessons=lessons))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    store = finished(tmp_path_factory.mktemp("runs") / "whole")
    store.close()
    return store


def test_a_row_opens_to_its_explanation(run: RunStore) -> None:
    """Worked by hand: 6 groups, d = 1/2, w = 1; scatter 0 over 5 degrees gives σ² = 8/4/13 = 2/13, so precision
    16 + 6 · 13/2 = 55 and mean (39 · 1/2) / 55 = 0.35."""
    page = Page(shown(run, explanation("abcdef0123456789")))
    for text in ("sentence", "change", "cause", "rollout", "reason", "against (6)", "text", "slice", "+23.5"):
        assert text in page.text
    assert "6 groups, 12 rollouts" in page.text
    assert "6, 0 of 6 groups" in page.text
    assert "+0.35 [+0.09, +0.62] n = 6" in page.text
    assert [d["href"] for tag, d in page.tags if tag == "a" and d.get("href") == "#entry-4"] == ["#entry-4"] * 2
    assert "entry-4" in page.ids
    assert "#lessons" in [d.get("href") for tag, d in page.tags if tag == "a"]


def test_text_of_a_lesson_is_never_markup(run: RunStore) -> None:
    html = shown(run, explanation(f"id {ATTACK}", ATTACK))
    page = Page(html)
    assert "<script>stolen" not in html
    assert "<img" not in html
    assert len(page.scripts) == 2
    words = ("channel", "text", "task", "cause", "rollout", "against", "slice", "reason", "sentence", "change", "id")
    for word in words:
        assert f"{word} {ATTACK}" in page.text, word
    assert all(not name.startswith("on") for _, values in page.tags for name in values)


def test_a_memory_of_thousands_is_cut_and_says_so(run: RunStore) -> None:
    html = section(shown(run, *(explanation(f"lesson{n:05d}") for n in range(MAX_LESSONS + 3))))
    assert html.count("data-lesson=") == MAX_LESSONS
    assert f"the first {MAX_LESSONS} of {MAX_LESSONS + 3}" in Page(html).text


def test_what_is_missing_is_said(run: RunStore) -> None:
    assert "Lessons are not explained on this page." in section(render(run))
    assert f"twoclock why {run.path}" in Page(section(render(run))).text
    assert "No lesson has been written yet." in section(shown(run))

    def refuse(store: RunStore) -> Explanations:
        raise ConfigError(f"unknown option {ATTACK}")

    html = render(run, explain=refuse)
    assert f"The lessons cannot be explained: unknown option {ATTACK}." in Page(html).text
    assert "<img" not in html
    told = render(run, explain=lambda _: Explanations(run="run", round=1, problem="no channel has lessons"))
    assert "Nothing to explain: no channel has lessons." in section(told)


def test_waits_and_take_backs_are_on_the_curve_and_in_the_ledger(tmp_path: Path) -> None:
    store = begun(tmp_path / "run")
    add_round(store)
    states = dict(store.head().states)
    wait = entry(2, 0, "largest", "prompts", "wait", states, reason="solved: 0.01 of the reward is missing")
    back = entry(2, 0, "largest", "lora", "rollback", states, cause="taken back: its effect is negative")
    again = replace(back, cause="rollback to round 1")
    store.commit_round(
        RoundRecord(
            round=2, phase=0, task="largest", snapshot=Snapshot(round=2, states=states, next_round=3),
            entries=(wait, back, again), evidence=None, metrics={},
        )
    )  # fmt: skip
    store.close()
    html = render(store)
    page = Page(html)
    traces = {trace.get("name"): trace for trace in page.data[0]["data"]}
    assert [len(traces[name]["x"]) for name in ("taken back", "rolled back", "passed over")] == [1, 1, 1]
    assert "solved: 0.01 of the reward is missing" in page.text
    assert re.findall(r'<span class="tag (wait|rollback)">', html) == ["wait", "rollback", "rollback"]
