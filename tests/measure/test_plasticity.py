"""Areas by hand, ratios with a known truth, coverage over few seeds, and comparisons that must not be made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from learning_curves import SIZE, curve, measured, saturating

from twoclock.measure import (
    CurvePoint,
    LearningCurve,
    Spent,
    area_under,
    learning_curve,
    plasticity_ratio,
    ratio_of_means,
)
from twoclock.types import Evaluation


def test_the_area_by_hand() -> None:
    rising = curve([0.0, 0.2, 0.6])  # at 0, 100, 200 problems
    assert area_under(rising, "problems") == pytest.approx((0.1 * 100 + 0.4 * 100) / 200)
    assert area_under(rising, "rollouts") == pytest.approx(0.25)
    assert area_under(rising, "problems", 150) == pytest.approx((0.1 * 100 + 0.3 * 50) / 150)
    assert area_under(rising, "problems", 100) == pytest.approx(0.1)
    late = LearningCurve(task="sums", start="base", seed=0, points=rising.points[1:])
    assert area_under(late, "problems") == pytest.approx((0.2 * 100 + 0.4 * 100) / 200)  # flat before the first point


def test_a_point_measured_again_counts_with_its_last_score() -> None:
    points = curve([0.0, 0.2, 0.6]).points
    again = CurvePoint(problems=200, rollouts=200 * SIZE, tokens=200 * SIZE * 40, score=0.4, n=100)
    twice = LearningCurve(task="sums", start="base", seed=0, points=(*points, again))
    assert area_under(twice, "problems", 150) == pytest.approx(area_under(curve([0.0, 0.2, 0.4]), "problems", 150))


def test_budgets_out_of_reach_are_refused() -> None:
    for budget in (0, 201, -5):
        with pytest.raises(ValueError, match=r"spans 200 problems; .* got"):
            area_under(curve([0.0, 0.2, 0.6]), "problems", budget)
    with pytest.raises(ValueError, match="axis is one of problems, rollouts, tokens; got 'hours'"):
        area_under(curve([0.0, 0.2]), "hours")  # type: ignore[arg-type]


def test_a_checkpoint_that_learns_half_as_well() -> None:
    seeds = range(5)
    base = [measured(saturating(400), s, n=400) for s in seeds]
    worn = [measured(saturating(400, high=0.4), 100 + s, n=400, start="after maths") for s in seeds]
    worn = [
        LearningCurve(task=c.task, start=c.start, seed=s, points=c.points, dead_groups=0.4) for s, c in enumerate(worn)
    ]
    found = plasticity_ratio(worn, base)
    truth = area_under(exact(saturating(400, high=0.4))) / area_under(exact(saturating(400)))
    assert found.ratio.low < truth < found.ratio.high < 1
    assert found.is_loss
    assert not found.may_be_exploration
    assert (found.start, found.against, found.task, found.seeds) == ("after maths", "base", "sums", (0, 1, 2, 3, 4))
    assert (found.ratio.n, found.ratio.seeds) == (5, 5)
    assert found.area.estimate / found.area_against.estimate == pytest.approx(found.ratio.estimate)
    assert found.first.estimate == pytest.approx(0.1, abs=0.03)
    assert found.dead_groups.estimate == pytest.approx(0.4)
    assert not found.dead_groups_against.is_known  # nobody counted them


def exact(truth: Any) -> LearningCurve:
    return curve([truth(100 * i) for i in range(25)])


def test_a_checkpoint_that_lost_its_exploration_is_not_convicted() -> None:
    base = [measured(saturating(400), s) for s in range(3)]
    stuck = [curve([0.0] * 25, seed=s, start="after maths", dead=0.99) for s in range(3)]
    found = plasticity_ratio(stuck, base)
    assert found.ratio.estimate == 0
    assert found.is_loss
    assert found.may_be_exploration
    assert not found.too_hard  # of the base nobody counted them
    hopeless = [LearningCurve(task="sums", start="base", seed=s, points=c.points, dead_groups=0.95)
                for s, c in enumerate(base)]  # fmt: skip
    assert plasticity_ratio(stuck, hopeless).too_hard


def test_from_the_base_twice_is_no_loss() -> None:
    base = [measured(saturating(400), s) for s in range(5)]
    again = [measured(saturating(400), 50 + s, start="again") for s in range(5)]
    again = [LearningCurve(task=c.task, start=c.start, seed=s, points=c.points) for s, c in enumerate(again)]
    found = plasticity_ratio(again, base)
    assert found.ratio.low < 1 < found.ratio.high
    same = plasticity_ratio(base, base)
    assert same.ratio.estimate == same.ratio.low == same.ratio.high == 1


def test_curves_of_other_lengths_are_compared_as_far_as_both_go() -> None:
    base, short = [curve([0.0, 0.2, 0.6, 0.8])], [curve([0.0, 0.1, 0.3], start="worn")]
    with pytest.raises(ValueError, match=r"budgets of 3200, 4800 rollouts differ; give budget=3200"):
        plasticity_ratio(short, base)
    found = plasticity_ratio(short, base, budget=3200)
    assert found.ratio.estimate == pytest.approx(0.5)
    assert found.budget == 3200
    assert math.isnan(found.ratio.low)  # one seed has no interval


@pytest.mark.parametrize(
    ("checkpoint", "base", "more", "message"),
    [
        ([], [curve([0, 1])], {}, "checkpoint has no curve"),
        ([curve([0, 1], task="gcd")], [curve([0, 1])], {}, "checkpoint learned 'gcd' and the base 'sums'"),
        ([curve([0, 1], seed=3)], [curve([0, 1])], {}, r"seeds \[3\] and \[0\] differ"),
        ([curve([0, 1])] * 2, [curve([0, 1])], {}, "checkpoint has seed 0 more than once"),
        ([curve([0, 1]), curve([0, 1], start="x", seed=1)], [curve([0, 1])], {}, "checkpoint mixes starts: base, x"),
        ([curve([0, 1])], [curve([0, 1])], {"budget": 1e9}, "the shortest curve spans 1600"),
        ([curve([0, 1])], [curve([0, 1])], {"axis": "steps"}, "axis is one of"),
    ],
)
def test_unlike_is_not_compared(checkpoint: Any, base: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plasticity_ratio(checkpoint, base, **more)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: curve([0.1]), "at least 2 points; 'sums' from base, seed 0 has 1"),
        (lambda: curve([0.1, 1.2]), r"a score lies in \[0, 1\]; got 1\.2"),
        (lambda: curve([0.1, float("nan")]), "got nan"),
        (lambda: curve([0.1, 0.2], n=0), "got n=0"),
        (lambda: curve([0.1, 0.2], every=-5), "problems=-5, rollouts=-80"),
        (lambda: curve([0.1, 0.2], dead=1.5), "dead_groups is a share"),
        (
            lambda: LearningCurve(task="a", start="b", seed=1, points=curve([0, 1]).points[::-1]),
            r"the problems of 'a' from b, seed 1 fall: \[100, 0\]",
        ),
    ],
)
def test_curves_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------- the ratio's interval


def test_fieller_by_hand() -> None:
    x, y = np.array([2.0, 3.0, 4.0]), np.array([4.0, 5.0, 6.0])
    found = ratio_of_means(x, y)
    assert found.estimate == pytest.approx(0.6)
    t = 4.302652729911275  # 97.5 % at 2 degrees of freedom
    for bound in (found.low, found.high):  # where the t test of mean(x - ρ y) = 0 just rejects
        rest = x - bound * y
        assert abs(rest.mean()) / (rest.std(ddof=1) / math.sqrt(3)) == pytest.approx(t)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_fieller_covers_what_it_says_at_any_number_of_seeds(seeds: int) -> None:
    rng, runs = np.random.default_rng(seeds), 3000
    hits = 0
    for _ in range(runs):
        shared = rng.normal(0, 0.03, seeds)
        below, above = 0.5 + shared + rng.normal(0, 0.03, seeds), 0.3 + 0.6 * shared + rng.normal(0, 0.03, seeds)
        found = ratio_of_means(above, below)
        hits += not found.excludes(0.6)
    assert hits / runs == pytest.approx(0.95, abs=0.015)


def test_a_divisor_that_may_be_nothing_gives_no_bounds() -> None:
    found = ratio_of_means([0.5, 0.6, 0.4], [0.3, -0.2, 0.1])
    assert found.is_known
    assert math.isnan(found.low)
    assert "may be 0" in found.method
    assert not ratio_of_means([1.0, 2.0], [0.0, 0.0]).is_known
    assert not ratio_of_means([], []).is_known
    with pytest.raises(ValueError, match="got 2 above and 1 below"):
        ratio_of_means([1.0, 2.0], [1.0])


# ------------------------------------------------------------------------------------------------------ from a run


def test_a_runs_curve_counts_what_learning_spent() -> None:
    def ev(round: int, cell: tuple[str, str], score: float) -> Evaluation:
        return Evaluation(
            round=round, task="sums", weights=cell[0], prompt=cell[1], item_ids=("a", "b"),  # type: ignore[arg-type]
            rewards=(score, score), samples=1, conditioning_id="c", purpose="probe" if round else "phase",
        )  # fmt: skip

    evaluations = [
        ev(0, ("base", "none"), 0.1), ev(2, ("live", "learned"), 0.3), ev(4, ("live", "learned"), 0.5),
    ]  # fmt: skip
    spent = [Spent(round=r, problems=8, rollouts=64, tokens=1000, dead_groups=0.25 * (r % 2)) for r in range(1, 5)]
    found = learning_curve(evaluations, spent, "sums", start="base", seed=3)
    assert [(p.problems, p.rollouts, p.tokens, p.score, p.n) for p in found.points] == [
        (0, 0, 0, 0.1, 2),
        (16, 128, 2000, 0.3, 2),
        (32, 256, 4000, 0.5, 2),
    ]
    assert found.dead_groups == pytest.approx(0.125)
    later = learning_curve(evaluations, spent, "sums", start="round 2", seed=3, begin=2)
    assert [(p.problems, p.score) for p in later.points] == [(0, 0.3), (16, 0.5)]
    with pytest.raises(ValueError, match="at least 2 points"):
        learning_curve(evaluations, spent, "gcd", start="base", seed=3)
