"""A task that is played: items and verifier of another, episodes as completions; built from a configuration's table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from planner_world import SumTask, add, good_executor, good_planner, policy

from twoclock.agent.planned_episode import HEADER, PlannedEpisode
from twoclock.agent.planner import PlannerConfig
from twoclock.agent.planner_task import PlannerTask, build_planner_task, load_tools
from twoclock.agent.toolbox import Toolbox
from twoclock.bench import Bench
from twoclock.contracts import Interactive
from twoclock.errors import ConfigError
from twoclock.types import Conditioning, Recall, Request, Sampling

SAMPLING = Sampling(temperature=1.0)


def task(count: int = 4, **options: Any) -> PlannerTask:
    return PlannerTask(SumTask(count), Toolbox([add]), **options)


def test_it_is_a_task_that_is_played() -> None:
    assert isinstance(task(), Interactive)
    assert task().name == "sums"
    assert "planner and an executor with add" in task().description
    assert [i.id for i in task().split("train")] == ["s0", "s1", "s2", "s3"]
    assert task().split("heldout") == ()


def test_a_bench_plays_and_grades_it_and_counts_its_tokens() -> None:
    both = policy(good_planner, good_executor)
    bench = Bench(both, task(), others=Conditioning(), sampling=SAMPLING)
    groups = bench.roll_out(task().split("train"), [Conditioning()], 2, 1)
    assert [g.rewards for g in groups] == [(1.0, 1.0)] * 4
    completion = groups[3].rollouts[0].completion
    episode = PlannedEpisode.loads(completion.text)
    assert (episode.answer, completion.turns, completion.finish) == ("12", 4, "stop")
    assert completion.logprobs == ()
    assert completion.prompt_tokens == episode.prompt_tokens
    assert len(completion.tokens) == episode.completion_tokens
    assert bench.spent.rollouts == 8
    assert bench.spent.completion_tokens == sum(len(r.completion.tokens) for g in groups for r in g.rollouts)


def test_memory_is_asked_about_the_item_and_its_entries_are_in_the_transcript() -> None:
    recall = Recall(id="m", ask=lambda item: Conditioning(notes=(f"note on {item.id}",), recalled=(f"e-{item.id}",)))
    items = task(2).split("train")
    requests = [Request(prompt=i.prompt, conditioning=Conditioning(recall=(recall,)), seeds=(1,)) for i in items]
    both = policy(good_planner, good_executor)
    played = task(2).play(both, items, requests, SAMPLING)
    assert [PlannedEpisode.loads(row[0].text).seen for row in played] == [("e-s0",), ("e-s1",)]
    assert {c.notes for _, c, _ in both.asked} == {("note on s0",), ("note on s1",)}


def test_an_episode_without_an_answer_scores_nothing_and_says_why() -> None:
    bench = Bench(policy("nonsense"), task(1), others=Conditioning(), sampling=SAMPLING)
    (group,) = bench.roll_out(task(1).split("train"), [Conditioning()], 1, 1)
    assert group.rollouts[0].reward == 0.0
    assert "There is no answer: no plan" in group.rollouts[0].grade.feedback
    assert group.rollouts[0].grade.failure is None


def test_a_policys_failure_is_a_failed_completion() -> None:
    def broken(prompt: str, conditioning: Conditioning, seed: int) -> str:
        raise RuntimeError("gone")

    bench = Bench(policy(broken), task(1), others=Conditioning(), sampling=SAMPLING)
    (group,) = bench.roll_out(task(1).split("train"), [Conditioning()], 1, 1)
    assert group.rollouts[0].completion.finish == "error"
    assert "gone" in (group.rollouts[0].grade.failure or "")


def test_a_plain_answer_is_graded_as_one_and_a_damaged_transcript_is_not() -> None:
    items = task(3).split("train")
    grades = task(3).grade(items, ["0", f"{HEADER}\n{{broken", "6"])
    assert [g.reward for g in grades] == [1.0, 0.0, 1.0]
    assert "damaged" in (grades[1].failure or "")
    assert task().grade([], []) == []


def test_an_executor_of_its_own_runs_the_subtasks() -> None:
    executor = policy("never asked", good_executor)
    planner = policy(good_planner, "never asked")
    played = task(2, executor=executor)
    items = played.split("train")
    requests = [Request(prompt=i.prompt, conditioning=Conditioning(), seeds=(1,)) for i in items]
    rows = played.play(planner, items, requests, SAMPLING)
    assert [PlannedEpisode.loads(row[0].text).answer for row in rows] == ["0", "2"]
    assert len(executor.asked) == 4


def test_items_and_requests_must_match() -> None:
    with pytest.raises(ValueError, match="got 1 items and 0 requests"):
        task().play(policy(good_planner), task().split("train")[:1], [], SAMPLING)


def test_closing_closes_what_it_wraps() -> None:
    inner = SumTask()
    PlannerTask(inner).close()
    assert inner.closed == 1


# -------------------------------------------------------------------------------------------------------- from a table

TOOLS = '''
from twoclock.agent.tools import tool

seen = []

@tool(pure=True)
def look(word: str) -> str:
    """Looks a word up."""
    seen.append(word)
    return word.upper()

def count(n: int) -> int:
    return len(seen) + n

def untyped(x):
    return x

number = 3
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_tools.py").write_text(TOOLS)
    lines = [json.dumps({"prompt": f"What is {i} plus 1?", "answer": str(i + 1)}) for i in range(30)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    return tmp_path


def spec(**more: Any) -> dict[str, Any]:
    of = {"source": "jsonl", "path": "sums.jsonl"}
    return {"source": "planner", "of": of, "tools": ["my_tools.py:look", "my_tools.py:count"], **more}


def test_a_table_makes_the_task(folder: Path) -> None:
    built = build_planner_task("x", spec(planner={"cycles": 2}, timeout_s=3), 0, folder)
    assert built.name == "x"
    assert [t.name for t in built.toolbox.tools] == ["look", "count"]
    assert built.toolbox["look"].pure
    assert not built.toolbox["count"].pure
    assert built.config == PlannerConfig(cycles=2)
    assert built.toolbox.timeout_s == 3
    assert built.toolbox.cache is not None
    bench = Bench(policy(good_planner, "5"), built, others=Conditioning(), sampling=SAMPLING)
    groups = bench.roll_out(built.split("train")[:5], [Conditioning()], 1, 1)
    assert all(PlannedEpisode.loads(g.rollouts[0].completion.text).answer == "5" for g in groups)
    assert build_planner_task("x", spec(cache=False), 0, folder).toolbox.cache is None


def test_tools_of_one_file_share_what_it_defines(folder: Path) -> None:
    look, count = load_tools(["my_tools.py:look", "my_tools.py:count"], folder)
    look(word="a")
    assert count(n=0) == 1


def test_every_mistake_of_a_table_is_told_at_once(folder: Path) -> None:
    wrong = spec(
        tools=["my_tools.py:lok", "my_tools.py:untyped", "nowhere.py:f", "nonsense", "my_tools.py:number"],
        planner={"cycels": 1, "tool_rounds": -1},
        timeout=3,
        of={"source": "jsonl"},
    )
    with pytest.raises(ConfigError) as caught:
        build_planner_task("x", wrong, 0, folder)
    said = str(caught.value)
    for part in (
        "did you mean 'look'",
        "'x' of tool 'untyped' has no type hint",
        "there is no file",
        "a tool is named as 'package.module:function'",
        "is a int, not a function",
        "did you mean 'cycles'",
        "'tool_rounds' must be a whole number of at least 0",
        "did you mean 'timeout_s'",
        "'path' is missing",
    ):
        assert part in said, part
    assert all(p.startswith("tasks.x") for p in caught.value.problems)
    assert len(caught.value.problems) >= 9


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"of": "sums.jsonl"}, "'of' must be the table of another source"),
        ({"of": {"source": "planner"}}, "'of' is itself a planner's table"),
        ({"planner": 3}, "'planner' must be a table"),
        ({"servers": [{}]}, "either 'command'"),
        ({"servers": [{"command": ["x"], "url": "http://y"}]}, "either 'command'"),
        ({"servers": [{"url": "nowhere"}]}, "is like 'http://localhost"),
        ({"tools": ["my_tools.py:look", "my_tools.py:look"]}, "two tools are called 'look'"),
        ({"timeout_s": 0}, "must be above 0"),
    ],
)
def test_single_mistakes_of_a_table(folder: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_planner_task("x", spec(**more), 0, folder)


def test_a_server_of_the_table_is_started_used_and_ended(folder: Path) -> None:
    pytest.importorskip("mcp", reason="the package 'mcp' is not installed")
    server = {
        "command": [sys.executable, str(Path(__file__).with_name("mcp_server.py"))],
        "only": ["add"],
        "prefix": "m.",
    }
    built = build_planner_task("x", spec(servers=[server]), 0, folder)
    try:
        assert [t.name for t in built.toolbox.tools] == ["look", "count", "m.add"]
        assert built.toolbox["m.add"](a=1, b=2) == "3"
    finally:
        built.close()
    with pytest.raises(ConfigError, match="unknown tool of 'mcp_server' 'ad'"):
        build_planner_task("x", spec(servers=[{**server, "pure": ["ad"]}]), 0, folder)
