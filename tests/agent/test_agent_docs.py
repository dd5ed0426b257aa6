"""The page on episodes and trials says what the program does: its examples run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from trial_world import Guessing

from twoclock.models.scripted import ScriptedPolicy
from twoclock.tasks.env_play import EpisodeRules
from twoclock.tasks.env_stuck import PAPER
from twoclock.tasks.env_task import EpisodeTask
from twoclock.tasks.env_worlds import WORLDS, check_world, episode_rules
from twoclock.tasks.splits import SplitSizes
from twoclock.types import Conditioning, Sampling

PAGE = (Path(__file__).parents[2] / "docs" / "agent.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_the_table_builds() -> None:
    spec = tomllib.loads(blocks("toml")[0])["tasks"]["coin"]
    assert check_world(spec["family"], spec["config"]) == []
    assert episode_rules(spec["episode"]).stuck == PAPER


def test_every_world_and_rule_is_on_the_page() -> None:
    for name in [*WORLDS, *EpisodeRules.__dataclass_fields__, *PAPER.__dataclass_fields__]:
        assert name == "stuck" or f"| `{name}` |" in PAGE


def test_an_environment_of_ones_own() -> None:
    space: dict[str, Any] = {}
    exec(blocks("python")[0], space)
    task = EpisodeTask(space["make_world"](), sizes=SplitSizes(train=4, trial=1, heldout=1))
    (grade,) = task.grade([task.split("train")[0]], ["> two\n> two\n> two\n> one"])
    assert grade.reward == 1.0


def test_the_example_of_trials_prints_its_table(capsys: Any) -> None:
    task = Guessing(10)

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        if prompt.endswith("Lesson:"):
            return f"I guessed without thinking of what I know; my note is number {seed}."
        return str(seed % 8)

    space = {
        "policy": ScriptedPolicy(script, context_tokens=9999),
        "task": task,
        "items": task.split("train"),
        "sampling": Sampling(max_new_tokens=99),
    }
    exec(blocks("python")[1], space)
    assert "| retries |" in capsys.readouterr().out
