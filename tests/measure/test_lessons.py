"""A lesson's record: sums by hand, any order and any split, calibrated under noise, and its posteriors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from planted_worlds import planted_world
from twoclock.measure import LessonRecord, NormalPosterior, Outcomes
from twoclock.seeding import child_seed


def test_two_groups_by_hand() -> None:
    """x: 1, 1 with and 0, 1 without: d = ½, w = 1. y: 0 with and 1, 0, 0 without: d = -⅓, w = ¾.

    Together d = (½ - ¼)/(7/4) = 1/7; scatter = ¼ + 1/12 - (¼)²/(7/4) = 25/84, of 1 degree of freedom, so
    σ² = (25/84 + 2)/9 and error² = σ²/(7/4); prior N(0, 1/16).
    """
    record = LessonRecord(lesson="l").update([1, 1], [0, 1], item="x").update([0], [1, 0, 0], item="y")
    assert (record.applied, record.helped, record.contradicted) == (2, 1, 1)
    total = record.outcomes
    assert total.difference == pytest.approx(1 / 7)
    assert total.scatter == (pytest.approx(25 / 84), 1)
    error2 = (25 / 84 + 2) / 9 / (7 / 4)
    assert total.error() == pytest.approx(math.sqrt(error2))
    effect = record.effect()
    assert effect.mean == pytest.approx(1 / 7 / error2 / (1 / error2 + 16))
    assert effect.sd == pytest.approx((1 / error2 + 16) ** -0.5)
    assert effect.n == 2


def test_held_out_reads_by_hand() -> None:
    """Shown 1, 1, 0 and held out 0, 0: d = ⅔, w = 3·2/5, scatter ⅔ of 3 degrees of freedom."""
    record = LessonRecord(lesson="l")
    for reward in (1.0, 1.0, 0.0):
        record = record.update([reward], [], item="x", randomised=True)
    for _ in range(2):
        record = record.update([], [0.0], item="y", randomised=True)
    total = record.outcomes
    assert total.difference == pytest.approx(2 / 3)
    assert total.scatter == (pytest.approx(2 / 3), 3)
    assert total.error() == pytest.approx(math.sqrt((2 / 3 + 2) / 11 / (6 / 5)))
    assert (record.applied, record.helped, record.contradicted) == (3, 0, 0)
    assert record.effect().n == 5
    assert not record.items


def test_being_shown_where_no_coin_chose_says_nothing_of_the_effect() -> None:
    record = LessonRecord(lesson="l")
    for i in range(20):
        record = record.update([1.0, 1.0], [], item=str(i))
    assert record.applied == 20
    assert record.outcomes == Outcomes()
    assert record.effect() == NormalPosterior(0.0, 0.25)
    assert record.persistence().steps == ()
    assert record.generality().items == 0


def test_a_baseline_takes_the_items_variance_away_and_nothing_else() -> None:
    generator = np.random.default_rng(child_seed("test.baseline", 0))
    plain = based = LessonRecord(lesson="l")
    for i in range(400):
        rate = float(generator.choice([0.05, 0.85]))
        shown = bool(generator.random() < 0.5)
        reward = [float(generator.random() < rate + 0.1 * shown)]
        arms = (reward, []) if shown else ([], reward)
        plain = plain.update(*arms, item=str(i), randomised=True)
        based = based.update(*arms, item=str(i), randomised=True, baseline=rate)
    assert based.effect().sd < 0.8 * plain.effect().sd
    assert based.effect().interval().low < 0.1 < based.effect().interval().high


def random_groups(seed: int, number: int) -> list[tuple[list[float], list[float], str, int, bool]]:
    generator = np.random.default_rng(child_seed("test.groups", seed))
    groups = []
    for _ in range(number):
        a, b = int(generator.integers(0, 4)), int(generator.integers(0, 4))
        a += not (a or b)
        rewards = [float(x) for x in generator.choice([0, 0.5, 1], size=a + b)]
        groups.append((rewards[:a], rewards[a:], f"i{generator.integers(5)}", int(generator.integers(4)), True))
    return groups


@pytest.mark.parametrize("seed", range(5))
def test_order_and_splits_do_not_matter(seed: int) -> None:
    groups = random_groups(seed, 30)

    def record(some: list[tuple[list[float], list[float], str, int, bool]]) -> LessonRecord:
        found = LessonRecord(lesson="l")
        for a, b, item, step, coin in some:
            found = found.update(a, b, item=item, task="t", step=step, randomised=coin)
        return found

    whole, turned = record(groups), record(groups[::-1])
    parts = record(groups[:11]) + record(groups[11:])
    for other in (turned, parts):
        assert (other.applied, other.helped, other.contradicted) == (whole.applied, whole.helped, whole.contradicted)
        assert other.effect().mean == pytest.approx(whole.effect().mean)
        assert other.persistence().lasts(2) == pytest.approx(whole.persistence().lasts(2))
        assert other.generality().new_item == pytest.approx(whole.generality().new_item)
    back = LessonRecord.from_dict(json.loads(json.dumps(whole.as_dict(), allow_nan=False)))
    assert back == whole


def simulated(
    rates: list[float], seed: int, *, groups: int = 12, base: float = 0.4, rollouts: int = 2, tasks: int = 1
) -> LessonRecord:
    """One rate with the lesson for each step."""
    generator = np.random.default_rng(child_seed("test.lesson", seed))
    record = LessonRecord(lesson="l")
    for step, rate in enumerate(rates):
        for i in range(groups):
            a, b = generator.random(rollouts) < rate, generator.random(rollouts) < base
            arms = [float(x) for x in a], [float(x) for x in b]
            record = record.update(*arms, item=f"{step}-{i}", task=f"t{i % tasks}", step=step)
    return record


def test_a_lesson_that_does_nothing_is_seldom_said_to_help() -> None:
    for groups, base in ((3, 0.4), (12, 0.05), (50, 0.4)):
        found = [simulated([base], seed, groups=groups, base=base) for seed in range(400)]
        assert np.mean([record.effect().p_above() > 0.975 for record in found]) <= 0.025 + 3 * math.sqrt(0.024 / 400)
        low = [record.effect().interval() for record in found]
        assert np.mean([i.low > 0 or i.high < 0 for i in low]) <= 0.05 + 3 * math.sqrt(0.0475 / 400)


def test_skills_conventions_and_false_lessons_part_by_their_records() -> None:
    sims = 60
    skills = [simulated([0.8] * 4, s) for s in range(sims)]
    conventions = [simulated([0.8, 0.1, 0.8, 0.1, 0.8], s) for s in range(sims)]
    false = [simulated([0.2] * 4, s) for s in range(sims)]
    assert np.mean([r.persistence().lasts(1) > 0.75 for r in skills]) >= 0.9
    assert np.mean([r.persistence().lasts(1) < 0.5 for r in conventions]) >= 0.95
    assert np.mean([r.effect().p_above() > 0.99 for r in skills]) >= 0.95
    assert np.mean([r.effect().p_above() < 0.05 for r in false]) >= 0.9
    assert np.mean([r.helped > r.contradicted for r in skills]) >= 0.99


def test_the_flips_of_a_convention_do_not_widen_the_errors_of_its_steps() -> None:
    flips, steady = simulated([0.9, 0.0, 0.9, 0.0], 1), simulated([0.4] * 4, 1)
    assert max(s.error for s in flips.persistence().steps) < 1.3 * max(s.error for s in steady.persistence().steps)
    assert flips.outcomes.error() > flips.persistence().steps[0].error / 2  # type: ignore[operator]


def test_a_lesson_is_found_in_evidence() -> None:
    evidence = planted_world("prompt", items=30).evidence(2, seed=0, phase=3)
    record = LessonRecord(lesson="prompt-1").observe(evidence, lambda rollout, c: c.system == "prompt-1")
    assert record.applied == 30
    assert record.helped > 20
    assert list(record.steps) == [3]
    assert record.effect().interval().low > 0.3
    assert list(LessonRecord(lesson="l").observe(evidence, lambda r, c: True, step=7).steps) == []  # no other arm
    other = LessonRecord(lesson="prompt-2").observe(evidence, lambda rollout, c: c.system == "prompt-9")
    assert other == LessonRecord(lesson="prompt-2")
    assert list(record.observe(evidence, lambda r, c: c.system == "prompt-1", step=9).steps) == [3, 9]


def test_arrays_are_as_good_as_lists() -> None:
    arrays = LessonRecord(lesson="l").update(np.array([1, 0]), np.array([0.0]), item="x")  # type: ignore[arg-type]
    assert arrays == LessonRecord(lesson="l").update([1.0, 0.0], [0.0], item="x")
    json.dumps(arrays.as_dict())


def test_mistakes_are_named_and_change_nothing() -> None:
    record = LessonRecord(lesson="l").update([1.0], [0.0], item="x")
    with pytest.raises(ValueError, match="item 'y' has none with the lesson and none without"):
        record.update([], [], item="y")
    for bad in (math.nan, 1.2, -0.5, math.inf):
        with pytest.raises(ValueError, match="a reward lies in"):
            record.update([bad], [0.0], item="y")
    with pytest.raises(ValueError, match="baseline"):
        record.update([1.0], [], item="y", randomised=True, baseline=math.nan)
    with pytest.raises(ValueError, match="two lessons"):
        record + LessonRecord(lesson="other")
    for data in (
        {},
        {**record.as_dict(), "steps": [[0]]},
        {**record.as_dict(), "steps": [[0, {"grops": 1}]]},
        {**record.as_dict(), "items": 3},
    ):
        with pytest.raises(ValueError, match=r"expected what LessonRecord\.as_dict gives"):
            LessonRecord.from_dict(data)
    assert record.applied == 1
