"""How far a decision is from turning: held against the equations and the rules that turn it."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from twoclock.consolidation import ConsolidationSettings, LessonEvidence, lasting_rule
from twoclock.explain.forecast import comparisons_needed, groups_needed, items_needed, rounds_until
from twoclock.measure.generality import SIZE
from twoclock.measure.lessons import LessonRecord
from twoclock.measure.trial_value import NormalPosterior, posterior_gain
from twoclock.types import Lesson
from twoclock.watching import Watch, bounds

LESSON = Lesson(id="a", channel="prompts", text="a", tasks=("t",), live=True)


def record(*differences: float, per_round: int = 1) -> LessonRecord:
    """One group of one rollout on each side for each difference, so many groups a round."""
    made = LessonRecord(lesson="a")
    for n, d in enumerate(differences):
        made = made.update([0.5 + d / 2], [0.5 - d / 2], item=f"i{n}", task="t", step=1 + n // per_round)
    return made


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("differences", [(0.5, 0.0, 0.25), (-0.5, 0.0, 0.0, -0.25), (0.25, -0.25, 0.5, 0.0, 0.0)])
def test_groups_needed_are_the_fewest_that_decide(level: float, differences: tuple[float, ...]) -> None:
    """With the noise as it is, n more groups put the interval past 0 and n − 1 do not."""
    made = record(*differences)
    more = groups_needed(made, level)
    assert more is not None
    total = made.outcomes
    difference, error = total.difference, total.error()
    assert difference is not None
    assert error is not None

    def excludes(groups: int) -> bool:
        scaled = error * math.sqrt(total.groups / groups)
        return posterior_gain(NormalPosterior(0.0, SIZE), difference, scaled).interval(level).excludes_zero

    assert more > 0
    assert excludes(total.groups + more)
    assert not excludes(total.groups + more - 1)


def test_groups_needed_where_nothing_is_needed_or_nothing_helps() -> None:
    assert groups_needed(record(*[0.5] * 60), 0.9) == 0
    assert groups_needed(record(0.5, -0.5), 0.9) is None
    assert groups_needed(LessonRecord(lesson="a"), 0.9) is None
    assert groups_needed(LessonRecord(lesson="a").update([1.0], [], item="i"), 0.9) is None


@pytest.mark.parametrize(("age", "needed"), [(1, 3), (9, 1)])
def test_rounds_until_is_when_the_rule_turns(age: int, needed: int) -> None:
    """Two rounds of six clear groups are asked for, and four rounds of age: whichever comes last."""
    settings = ConsolidationSettings(min_age=4, min_rounds=2, lasting=0.2, horizon=1)
    made = record(*[0.5] * 6, per_round=6)
    found = LessonEvidence(record=made, since=1, age=age)
    assert lasting_rule(LESSON, found, settings) is not None
    assert rounds_until(LESSON, found, settings, effect=0.5) == needed


def test_a_candidate_is_held_back_by_rounds_that_contradict_it() -> None:
    settings = ConsolidationSettings(min_age=1, min_rounds=2, lasting=0.3, horizon=1)
    found = LessonEvidence(record=record(*[0.5] * 24, per_round=4), since=1, age=9)
    assert lasting_rule(LESSON, found, settings) is None
    against = rounds_until(LESSON, found, settings, effect=-0.5)
    idle = rounds_until(LESSON, found, settings, effect=0.0)
    assert against is not None
    assert idle is not None
    assert 1 <= against <= idle


def test_no_number_of_rounds_proves_what_does_nothing() -> None:
    settings = ConsolidationSettings()
    assert rounds_until(LESSON, LessonEvidence(record=record(0.0, 0.0), since=1, age=9), settings, effect=0.0) is None
    assert (
        rounds_until(LESSON, LessonEvidence(record=LessonRecord(lesson="a"), since=1, age=9), settings, effect=1)
        is None
    )


def test_comparisons_needed_are_the_fewest_that_the_bounds_decide_on() -> None:
    watch = Watch(since=3).add([0.5, 0.0, 0.25, 0.5])
    needed = comparisons_needed(watch, 0.05)
    assert needed is not None

    def low(count: int) -> float:
        grown = count / watch.count
        return bounds(Watch(since=3, count=count, total=watch.total * grown, squares=watch.squares * grown), 0.05)[0]

    assert low(needed) > 0 >= low(needed - 1)
    assert comparisons_needed(Watch(since=3), 0.05) is None
    assert comparisons_needed(Watch(since=3).add([0.5, -0.5]), 0.05) is None


def test_items_needed_by_hand() -> None:
    """A gain of one standard error at 20 items (p = 0.1587) is one of 1.645 at 20 · 1.645² = 54.1."""
    p = 1 - NormalDist().cdf(1.0)
    assert items_needed(0.1, p, 20, 0.05) == 55
    assert items_needed(0.0, p, 20, 0.05) is None
    assert items_needed(-0.1, 0.9, 20, 0.05) is None
