"""The planted world of tool memory, small: memory helps, its placebos do not, and an arm is a function of its seed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "planner_tools"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The experiment's own script, with its world beside it."""
    loaded = {}
    for name, called in (("planted", "planted"), ("run", "planner_tools_run")):
        spec = importlib.util.spec_from_file_location(called, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded[name] = sys.modules[called] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    return loaded["run"]


def test_the_gold_answer_is_what_the_right_tools_give(study: ModuleType) -> None:
    world = study.World(3)
    for number in range(6):
        item = world.item(number)
        gold = []
        for part in study.parts(item.prompt):
            kind = part.removeprefix("what is the ").split(" of ")[0]
            given = {tool.name: tool(question=part) for tool in world.toolbox().tools}
            assert {name for name, answer in given.items() if answer != "nothing found"} == {world.right(kind)}
            gold.append(given[world.right(kind)])
        assert world.grade(item, ", ".join(gold)).reward == 1.0
        assert world.grade(item, "nothing found").reward == 0.0
        assert world.grade(item, None).reward == 0.0


def test_memory_helps_and_its_placebos_do_not(study: ModuleType) -> None:
    late = {
        arm: [reward for seed in range(2) for reward in study.play(study.World(seed), arm, 60)["rewards"][30:]]
        for arm in ("none", "ignored", "shuffled", "memory", "oracle", "no tools")
    }
    score = {arm: study.mean(rewards) for arm, rewards in late.items()}
    assert late["ignored"] == late["none"], "memory that nobody reads changes nothing, item by item"
    assert score["no tools"] == 0.0
    assert score["oracle"] > 0.75
    assert score["memory"] > score["none"] + 0.15
    assert score["memory"] > score["shuffled"] + 0.15
    assert abs(score["shuffled"] - score["none"]) < 0.15


def test_the_same_seed_gives_the_same_transcripts(study: ModuleType) -> None:
    first, again = (study.play(study.World(1), "memory", 20) for _ in range(2))
    assert first == again
    assert study.play(study.World(2), "memory", 20)["transcripts"] != first["transcripts"]
