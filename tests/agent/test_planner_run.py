"""A run over episodes of planner and executor: what its channels learn, and that it can be taken up again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from planner_world import PLAN, SumTask, add, good_executor, numbers, policy

from twoclock.agent.planner_task import PlannerTask
from twoclock.agent.toolbox import Toolbox
from twoclock.agent.tools import tool
from twoclock.build import build_parts
from twoclock.config import parse_config
from twoclock.errors import ConfigError
from twoclock.evaluation import EvaluationSettings
from twoclock.gathering import RolloutSettings
from twoclock.store import RunStore
from twoclock.types import Conditioning, Item, SplitName

sys.path.append(str(Path(__file__).parent.parent / "loop"))
from loop_world import World


class SplitSums(SumTask):
    """Sums in three splits."""

    def split(self, name: SplitName) -> tuple[Item, ...]:
        places = {"train": (0, 16), "trial": (16, 20), "heldout": (20, 24)}
        start, stop = places[name]
        return self._items[start:stop]


@tool(pure=True)
def multiply(a: int, b: int) -> int:
    """Multiplies two numbers."""
    return a * b


def led_executor(prompt: str, conditioning: Conditioning, seed: int) -> str:
    """Calls the tool that its notes say helped; without any, either of the two by chance."""
    if "You called" in prompt:
        return good_executor(prompt.replace("You called multiply", "You called add"), conditioning, seed)
    notes = "\n".join(conditioning.notes)
    name = "add" if "add with" in notes and "helped" in notes else ("add", "multiply")[seed % 2]
    a, b = numbers(prompt)
    return f'<tool_call>{{"name": "{name}", "arguments": {{"a": {a}, "b": {b}}}}}</tool_call>'


def planner(prompt: str, conditioning: Conditioning, seed: int) -> str:
    import re

    results = re.findall(r"^> result: (.*)$", prompt, re.MULTILINE)
    return f'{{"answer": "{results[-1]}"}}' if results else PLAN


def world(channels: Mapping[str, Mapping[str, Any]]) -> World:
    return World(
        policy=policy(planner, led_executor),
        channels=channels,
        allocator="fixed",
        options={},
        rollouts=RolloutSettings(items=4, per_item=4, prompts_per_item=2),
        measure=EvaluationSettings(heldout_items=4, drift_every=0),
        tasks={"sums": PlannerTask(SplitSums(24), Toolbox([add, multiply]))},
        phases=(("sums", 4),),
    )


def test_the_tool_that_helps_is_learned_in_a_run_and_shown_on_items_never_seen(tmp_path: Path) -> None:
    world({"tools": {"k": 1}}).play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        scores = {(e.round, e.prompt): sum(e.rewards) / 4 for e in store.evaluations()}
        assert store.verify() == []
        written = [w for e in store.entries(channel="tools", action="commit") for w in e.writes]
    assert scores[4, "learned"] == 1.0
    assert scores[0, "learned"] == scores[4, "none"] < 1.0
    assert {w.kind for w in written} >= {"tool"}


@pytest.mark.parametrize("name", ["tools", "subtasks", "cases"])
def test_a_run_that_stops_in_the_middle_goes_on_to_the_same_numbers(tmp_path: Path, name: str) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    world({name: {}}).play(whole)
    world({name: {}}).play(halved, until=2)
    world({name: {}}).play(halved)
    with RunStore.open(whole) as one, RunStore.open(halved) as other:
        assert one.digest() == other.digest()


def test_a_case_of_an_episode_keeps_the_plan_and_not_the_transcript(tmp_path: Path) -> None:
    w = world({"cases": {"show": "exemplars"}})
    w.play(tmp_path / "run", until=2)
    with RunStore.open(tmp_path / "run") as store:
        loop = w.loop(store)
        loop.restore()
        entries = loop.states["cases"].bank.entries
    assert entries
    assert {e.text for e in entries} == {'{"plan":[{"task":"add the numbers"}]}'}


def test_a_configuration_names_it(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text("".join(f'{{"prompt": "What is {n} plus {n}?", "answer": "{2 * n}"}}\n'
                                                 for n in range(40)))  # fmt: skip
    (tmp_path / "my_tools.py").write_text("def double(x: int) -> int:\n    'Twice a number.'\n    return 2 * x\n")
    text = """
        [tasks.sums]
        source = "planner"
        of = { source = "jsonl", path = "sums.jsonl" }
        tools = ["my_tools.py:double"]
        [[stream]]
        task = "sums"
        rounds = 1
        [channels.tools]
    """
    parts = build_parts(parse_config(text, base_dir=tmp_path))
    assert isinstance(parts.tasks["sums"], PlannerTask)
    with pytest.raises(ConfigError, match="double"):
        build_parts(parse_config(text.replace(":double", ":dubble"), base_dir=tmp_path))
