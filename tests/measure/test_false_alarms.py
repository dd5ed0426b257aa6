"""Two hundred comparisons of a thing with itself, for each comparison that the library makes: at 95 % between 2 % and
8 % of them may say that there is a difference. More would be crying wolf, fewer would be intervals too wide to use.

Everything is drawn from fixed seeds, so a rate here is a number and not a matter of luck.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from learning_curves import curve, saturating

from twoclock.measure import (
    CELLS,
    Interval,
    LearningCurve,
    ScoreMatrix,
    cluster_difference,
    forgotten_items,
    iqm,
    paired_bootstrap_p,
    paired_difference,
    paired_permutation_p,
    plasticity_ratio,
    sample_efficiency,
    summarise_references,
    summarise_retention,
    t_interval,
    two_by_two,
)

COMPARISONS = 200
LEAST, MOST = 0.02, 0.08

Rng = np.random.Generator


def rate_of(alarm: Callable[[Rng, int], bool], name: str) -> float:
    """The share of comparisons that raise an alarm; the name keeps the draws of one comparison off the others'."""
    digest = [ord(letter) for letter in name]
    return float(np.mean([alarm(np.random.default_rng([*digest, i]), i) for i in range(COMPARISONS)]))


def skills(rng: Rng, items: int) -> np.ndarray:
    return rng.beta(1.2, 0.9, items)


def rewards(rng: Rng, skill: np.ndarray, samples: int) -> np.ndarray:
    return rng.binomial(samples, skill) / samples


# --------------------------------------------------------------------------------------------------- over items


def difference_of_rates(rng: Rng, i: int, samples: int = 1) -> bool:
    skill = skills(rng, 120)
    return paired_difference(
        rewards(rng, skill, samples), rewards(rng, skill, samples), seed=i, resamples=2500
    ).excludes_zero


def difference_of_mean_rewards(rng: Rng, i: int) -> bool:
    return difference_of_rates(rng, i, samples=4)


def difference_in_clusters(rng: Rng, i: int) -> bool:
    """30 templates of 6 items; one system does a template better, the other does another: neither is better."""
    clusters = np.repeat(np.arange(30), 6)
    taste = rng.normal(0, 0.2, 30)[clusters]
    a, b = (rng.random(180) < np.clip(0.5 + sign * taste, 0, 1) for sign in (1, -1))
    return cluster_difference(a.astype(float), b.astype(float), clusters.tolist(), seed=i, resamples=2500).excludes_zero


def gap(rng: Rng, i: int) -> bool:
    """In distribution and a variant that is just as hard, paired by the base item."""
    skill = skills(rng, 150)
    return paired_difference(rewards(rng, skill, 1), rewards(rng, skill, 1), seed=i, resamples=2500).excludes_zero


def change_of_gap(rng: Rng, i: int) -> bool:
    """A variant that is harder, and an update that changes neither: the difference in differences."""
    skill = skills(rng, 150)
    before, after = (rewards(rng, skill, 1) - rewards(rng, 0.7 * skill, 1) for _ in range(2))
    return paired_difference(after, before, seed=i, resamples=2500).excludes_zero


def effect_of_a_channel(rng: Rng, i: int) -> bool:
    skill = skills(rng, 60)
    return two_by_two({cell: list(rewards(rng, skill, 1)) for cell in CELLS}, seed=i).total.excludes_zero


def permutation_test(rng: Rng, i: int) -> bool:
    """Of rewards that take many values: on few, equal sums make the test more careful than its level."""
    skill = skills(rng, 120)
    a, b = rewards(rng, skill, 16), rewards(rng, skill, 16)
    return paired_permutation_p(a, b, i, "two-sided", resamples=2000) <= 0.05


def bootstrap_test(rng: Rng, i: int) -> bool:
    skill = skills(rng, 120)
    return paired_bootstrap_p(rewards(rng, skill, 4), rewards(rng, skill, 4), i, "two-sided", resamples=2000) <= 0.05


def forgotten(rng: Rng, i: int) -> bool:
    skill = skills(rng, 100)
    runs = [{str(k): v for k, v in enumerate(rewards(rng, skill, 8))} for _ in range(3)]
    return forgotten_items(*runs, seed=i).excess.excludes_zero


def stream(rng: Rng, tasks: int, items: int) -> ScoreMatrix:
    """A policy that never changes, measured after each phase with fresh samples."""
    skill = [skills(rng, items) for _ in range(tasks)]
    rows = tuple(
        tuple({f"{j}-{k}": float(v) for k, v in enumerate(rewards(rng, s, 1))} for j, s in enumerate(skill))
        for _ in range(tasks + 1)
    )
    return ScoreMatrix(tasks=tuple(f"t{j}" for j in range(tasks)), rounds=tuple(range(tasks + 1)), rewards=rows)


def of_a_stream(name: str, tasks: int = 3) -> Callable[[Rng, int], bool]:
    def alarm(rng: Rng, i: int) -> bool:
        found: Interval = getattr(summarise_retention(stream(rng, tasks, 80), seed=i), name)
        return found.excludes_zero

    return alarm


def against_a_run_alone(rng: Rng, i: int) -> bool:
    skill = [skills(rng, 80) for _ in range(2)]
    draws = [
        [{f"{j}-{k}": float(v) for k, v in enumerate(rewards(rng, s, 1))} for j, s in enumerate(skill)]
        for _ in range(4)
    ]
    matrix = ScoreMatrix(tasks=("t0", "t1"), rounds=(0, 1, 2), rewards=tuple(tuple(row) for row in draws[:3]))
    alone = {"t0": draws[3][0], "t1": draws[3][1]}
    return summarise_references(matrix, alone=alone, seed=i).forward_transfer_alone.excludes_zero


# --------------------------------------------------------------------------------------------------- over seeds


def runs(rng: Rng, seeds: int, points: int = 25) -> list[LearningCurve]:
    """Runs of one method: each seed has its own pace and height, and each score is seen through 150 items."""
    found = []
    for seed in range(seeds):
        truth = saturating(500 * rng.lognormal(0, 0.25), high=float(np.clip(0.8 + rng.normal(0, 0.03), 0, 1)))
        scores = [float(rng.binomial(150, truth(100 * i)) / 150) for i in range(points)]
        found.append(curve(scores, seed=seed, n=150))
    return found


def mean_over_seeds(rng: Rng, i: int) -> bool:
    return t_interval(rng.normal(0, 1, 4)).excludes_zero


def plasticity(rng: Rng, i: int) -> bool:
    return plasticity_ratio(runs(rng, 5), runs(rng, 5)).ratio.excludes(1)


def efficiency(rule: str, target: float = 0.5, points: int = 25, seeds: int = 5) -> Callable[[Rng, int], bool]:
    def alarm(rng: Rng, i: int) -> bool:
        found = sample_efficiency(runs(rng, seeds, points), runs(rng, seeds, points), target)
        by_axis = found.running_max if rule == "running max" else found.raw
        return by_axis["rollouts"].ratio.excludes(1)

    return alarm


COMPARED: dict[str, Callable[[Rng, int], bool]] = {
    "difference of rates": difference_of_rates,
    "difference of mean rewards": difference_of_mean_rewards,
    "difference in clusters": difference_in_clusters,
    "gap": gap,
    "change of gap": change_of_gap,
    "effect of a channel": effect_of_a_channel,
    "permutation test": permutation_test,
    "bootstrap test": bootstrap_test,
    "forgotten items": forgotten,
    # A maximum can only err upwards, so these raise half of the alarms that their level allows.
    "forgetting": of_a_stream("forgetting"),
    "forgetting since first": of_a_stream("forgetting_since_first"),
    "backward transfer": of_a_stream("backward_transfer"),
    "forward transfer": of_a_stream("forward_transfer"),
    "against a run alone": against_a_run_alone,
    "mean over seeds": mean_over_seeds,
    "plasticity": plasticity,
    "efficiency, running max": efficiency("running max"),
    "efficiency, raw": efficiency("raw"),
    "efficiency, some runs not there": efficiency("running max", points=9),
}


@pytest.mark.parametrize("name", COMPARED)
def test_alarms_are_as_rare_as_the_level_says(name: str) -> None:
    assert LEAST <= rate_of(COMPARED[name], name) <= MOST


def test_a_difference_that_is_there_raises_the_alarm() -> None:
    """The same machinery is not deaf: half a standard deviation of items is seen nearly always."""

    def alarm(rng: Rng, i: int) -> bool:
        skill = skills(rng, 200)
        return paired_difference(rewards(rng, skill, 4), rewards(rng, 0.8 * skill, 4), seed=i, resamples=2500).low > 0

    assert rate_of(alarm, "there") > 0.95


def test_the_interquartile_mean_covers_too_little_over_few_seeds() -> None:
    """As its docstring says, and as is known of the percentile bootstrap; over ten seeds it is nearly right."""

    def covered(seeds: int) -> float:
        rng = np.random.default_rng(seeds)
        return float(np.mean([not iqm(rng.normal(0, 1, (seeds, 5)), seed=i).excludes_zero for i in range(400)]))

    assert 0.78 <= covered(3) <= 0.92
    assert 0.9 <= covered(10) <= 0.97
