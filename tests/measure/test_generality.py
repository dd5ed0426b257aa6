"""The hierarchy of a lesson's effects: against brute force, calibrated on effects drawn from its own prior."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from twoclock.measure import fit_generality
from twoclock.seeding import child_seed

Effects = dict[tuple[str, str], tuple[float, float]]


def brute_force(effects: Effects, size: float, grid: int = 36) -> dict[str, float]:
    """The same posterior from joint normal densities over all items at once, new ones included, on a plain grid."""
    keys = list(effects)
    d, v = (np.array([effects[key][k] for key in keys]) for k in (0, 1))
    same_task = np.array([[a[0] == b[0] for b in keys] for a in keys], dtype=float)
    spreads = (np.arange(grid) + 0.5) * 4 * size / grid
    logs, answers = [], []
    for item in spreads:
        for task in spreads:
            cov = size**2 + same_task * task**2 + np.eye(len(keys)) * item**2 + np.diag(v)
            logs.append(
                stats.multivariate_normal.logpdf(d, np.zeros(len(keys)), cov) - (item**2 + task**2) / 2 / size**2
            )
            gain = np.linalg.solve(cov, d)

            def chance(shared: np.ndarray, variance: float, cov: np.ndarray = cov, gain: np.ndarray = gain) -> float:
                rest = variance - shared @ np.linalg.solve(cov, shared)
                return float(stats.norm.cdf(shared @ gain / math.sqrt(rest)))

            first = np.array([size**2 + (key[0] == keys[0][0]) * task**2 for key in keys])
            new = np.full(len(keys), size**2)
            answers.append(
                (
                    chance(first, size**2 + task**2 + item**2),
                    chance(new, size**2 + task**2),
                    chance(new, size**2 + task**2 + item**2),
                    float(new @ gain),
                )
            )
    weight = np.exp(np.array(logs) - max(logs))
    found = (weight / weight.sum()) @ np.array(answers)
    return dict(zip(("item", "task", "task_item", "mean"), map(float, found), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_the_closed_forms_are_the_joint_normals(seed: int) -> None:
    generator = np.random.default_rng(child_seed("test.general", seed))
    effects: Effects = {
        (f"t{generator.integers(3)}", f"i{i}"): (float(generator.normal(0.2, 0.3)), float(generator.uniform(0.02, 0.2)))
        for i in range(int(generator.integers(1, 8)))
    }
    found, truth = fit_generality(effects), brute_force(effects, 0.25)
    first = next(iter(effects))[0]
    assert found.new_item_of[first] == pytest.approx(truth["item"], abs=5e-3)
    assert found.new_task == pytest.approx(truth["task"], abs=5e-3)
    assert found.new_task_item == pytest.approx(truth["task_item"], abs=5e-3)
    assert found.mean.estimate == pytest.approx(truth["mean"], abs=5e-3)


def test_nothing_measured_is_a_coin() -> None:
    found = fit_generality({})
    assert found.new_item == found.new_task == found.new_task_item == pytest.approx(0.5)
    assert (found.items, found.tasks, found.mean.n) == (0, (), 0)
    assert found.mean.high == pytest.approx(0.25 * 1.96, rel=0.01)


def test_one_item_with_the_spreads_at_zero_is_the_textbooks() -> None:
    """With effects measured without error, on many items of one task that all agree, the item's spread goes to 0."""
    effects: Effects = {("t", str(i)): (0.3, 1e-4) for i in range(60)}
    found = fit_generality(effects)
    assert found.between_items.estimate < 0.01
    assert found.new_item > 0.999
    assert 0.7 < found.new_task < 0.95  # one task says little of the next
    more = fit_generality({(f"t{i % 6}", str(i)): (0.3, 1e-4) for i in range(60)})
    assert more.new_task > 0.999


def drawn(generator: np.random.Generator, items: int, tasks: int) -> tuple[Effects, float, float]:
    """Effects of a lesson drawn from the prior, and its effects on a new item of the first task and on a new task."""
    size = 0.25
    mean, between_items, between_tasks = generator.normal(0, size), *np.abs(generator.normal(0, size, size=2))
    of_task = generator.normal(mean, between_tasks, size=tasks + 1)
    effects: Effects = {}
    for t in range(tasks):
        for i in range(items):
            variance = float(generator.uniform(0.05, 0.25))
            theta = generator.normal(of_task[t], between_items)
            effects[f"t{t}", f"i{i}"] = (float(generator.normal(theta, math.sqrt(variance))), variance)
    return effects, float(generator.normal(of_task[0], between_items)), float(of_task[-1])


def test_what_is_said_of_new_items_and_tasks_is_as_often_true() -> None:
    generator = np.random.default_rng(child_seed("test.general.calibration", 0))
    said, true = [], []
    for k in range(240):
        effects, item, task = drawn(generator, items=6, tasks=1 + k % 3)
        found = fit_generality(effects)
        said += [found.new_item_of["t0"], found.new_task]
        true += [item > 0, task > 0]
    predicted, happened = np.array(said), np.array(true, dtype=float)
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        inside = (predicted >= low) & (predicted < high)
        error = 4 * math.sqrt(predicted[inside].mean() * (1 - predicted[inside].mean()) / inside.sum())
        assert abs(predicted[inside].mean() - happened[inside].mean()) < error


def test_a_lesson_that_helps_on_one_task_of_two_is_not_general() -> None:
    generator = np.random.default_rng(child_seed("test.general.two", 0))
    effects: Effects = {
        (task, str(i)): (float(generator.normal(mean, 0.2)), 0.04)
        for task, mean in (("a", 0.5), ("b", -0.3))
        for i in range(30)
    }
    found = fit_generality(effects)
    assert found.new_item_of["a"] > 0.95
    assert found.new_item_of["b"] < 0.1
    assert 0.4 < found.new_task < 0.75
    assert found.between_tasks.low > 0.1
    costly = fit_generality(effects, above=0.45)
    assert costly.new_item_of["a"] < found.new_item_of["a"]


def test_many_items_are_no_trouble_and_mistakes_are_named() -> None:
    generator = np.random.default_rng(child_seed("test.general.many", 0))
    effects: Effects = {(f"t{i % 5}", str(i)): (float(generator.normal(0.1, 0.35)), 0.1) for i in range(2000)}
    found = fit_generality(effects)
    assert found.between_items.low < math.sqrt(0.35**2 - 0.1) < found.between_items.high
    for bad in ((0.1, 0.0), (math.nan, 0.1), (0.1, math.inf)):
        with pytest.raises(ValueError, match="its variance above 0"):
            fit_generality({("t", "i"): bad})
    with pytest.raises(ValueError, match="size is a number above 0"):
        fit_generality({}, size=0)
