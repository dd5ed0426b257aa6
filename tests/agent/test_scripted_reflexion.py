"""The published claim in small, with a scripted reflector: lessons help early, and controls tell them from noise."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from twoclock.agent.reflectors import OracleWriter, ScriptedWriter
from twoclock.agent.token_matched import run_token_matched
from twoclock.agent.trial_report import compare, trial_report
from twoclock.agent.trial_table import TrialTable, cumulative
from twoclock.agent.trials import Strategy, TrialSettings, run_trials
from twoclock.tasks import build_task
from twoclock.types import Sampling

FOLDER = Path(__file__).parents[2] / "experiments" / "reflexion"


def load(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"reflexion_{name}", FOLDER / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arms() -> dict[str, TrialTable]:
    explorer = load("explorer")
    spec = {"source": "environment", "family": "maze", "config": {"rooms": 12, "doors": 1}}
    spec |= {"episode": {"max_steps": 12}, "size": {"train": 120, "trial": 1, "heldout": 1}}
    task = build_task("maze", spec, 0)
    items = task.split("train")
    settings = TrialSettings(trials=3, window=3, seed=0, sampling=Sampling(max_new_tokens=4000))
    player, deaf = explorer.explorer(), explorer.explorer(reads_notes=False, name="deaf")
    lessons = ScriptedWriter(explorer.lesson_of, count=len)
    gold = OracleWriter(lambda item: [str(action) for action in task.gold(item)], count=len)  # type: ignore[attr-defined]
    made = {"retries": run_trials(player, task, items, replace(settings, strategy=Strategy.NONE)).table}
    for name, policy, writer, changed in (
        ("reflexion", player, lessons, settings),
        ("shuffled", player, lessons, replace(settings, memory="shuffled")),
        ("window0", player, lessons, replace(settings, window=0)),
        ("placebo", deaf, lessons, settings),
        ("oracle", player, gold, settings),
    ):
        made[name] = run_trials(policy, task, items, changed, writer=writer, arm=name).table
    made["token-matched"] = run_token_matched(player, task, items, made["reflexion"], settings)
    return made


def test_lessons_beat_as_many_retries_and_as_many_tokens(arms: dict[str, TrialTable]) -> None:
    assert 0.2 <= cumulative(arms["retries"])[0] / 120 <= 0.6
    versus = compare(arms["reflexion"], arms["retries"])
    assert max(versus.p[1:]) < 0.05
    assert versus.auc.low > 0
    assert compare(arms["reflexion"], arms["token-matched"]).auc.low > 0


def test_the_controls_gain_nothing(arms: dict[str, TrialTable]) -> None:
    placebo = compare(arms["placebo"], arms["retries"]).auc
    assert placebo.low <= 0.0 <= placebo.high
    assert compare(arms["shuffled"], arms["retries"]).auc.low <= 0.0
    assert arms["window0"].solved == arms["retries"].solved
    assert arms["window0"].tokens == arms["retries"].tokens


def test_the_oracle_is_an_upper_bound(arms: dict[str, TrialTable]) -> None:
    assert compare(arms["oracle"], arms["reflexion"]).auc.low >= 0.0
    assert cumulative(arms["oracle"])[1] >= 115


def test_the_table_has_every_control(arms: dict[str, TrialTable]) -> None:
    assert "missing from this table" not in trial_report(arms)
