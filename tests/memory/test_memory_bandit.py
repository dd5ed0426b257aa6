"""A small version of experiments/case_retrieval: where half the bank misleads, what was learned beats the nearest."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "case_retrieval"
SEEDS = (0, 1)


def load(name: str) -> ModuleType:
    """A module of the experiment; by path, as other experiments have a ``run`` too."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"case_retrieval_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run = load("run")


def mean(arm: str, metric: str, *, marked: bool = False, shuffled: bool = False, episodes: int = 160) -> float:
    worlds = [run.World(seed, marked, num_topics=8) for seed in SEEDS]
    return float(np.mean([run.play(w, arm, 1, episodes, shuffled=shuffled)[metric] for w in worlds]))


def test_the_planted_world_is_what_it_says() -> None:
    world = run.World(0, False, num_topics=8)
    assert world.useful.mean() == 0.5
    topic, query = world.situation(3, "learn")
    places, hits = world.search(query)
    assert sum(world.topic[places] == topic) == 8
    assert [h.similarity for h in hits] == sorted((h.similarity for h in hits), reverse=True)
    best = world.oracle(places.tolist(), topic, 4)
    assert world.success(best, topic) == 0.85
    assert world.success([], topic) == 0.35
    assert np.array_equal(query, world.situation(3, "learn")[1])
    assert not np.array_equal(query, world.situation(3, "heldout")[1])


@pytest.mark.parametrize(("arm", "marked"), [("kernel", False), ("parametric", True)])
def test_learned_retrieval_beats_the_nearest(arm: str, marked: bool) -> None:
    assert mean(arm, "heldout", marked=marked) > mean("topk", "heldout", marked=marked) + 0.15
    assert mean(arm, "auc", marked=marked) > 0.75


@pytest.mark.parametrize("arm", ["kernel", "parametric"])
def test_shuffled_rewards_teach_nothing(arm: str) -> None:
    assert 0.35 < mean(arm, "auc", shuffled=True) < 0.65


def test_no_cases_are_no_memory() -> None:
    world = run.World(0, False, num_topics=8)
    rewards: dict[str, Any] = {arm: run.play(world, arm, 0, 0)["heldout"] for arm in run.ARMS}
    assert set(rewards.values()) == {0.35}
    assert set(rewards) >= {"none", "topk", "kernel", "parametric", "oracle"}
