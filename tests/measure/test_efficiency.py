"""A planted threefold speed-up, a control that is none, runs that do not get there, and the three axes apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from learning_curves import SIZE, curve, measured, saturating
from scipy import stats

from twoclock.measure import CurvePoint, LearningCurve, reach, sample_efficiency, time_to

AXES = ("problems", "rollouts", "tokens")


# ----------------------------------------------------------------------------------------------------------- one curve


def test_when_a_score_is_reached_by_hand() -> None:
    noisy = curve([0.1, 0.3, 0.55, 0.4, 0.45, 0.6, 0.7])
    peak = reach(noisy, 0.5)
    assert peak.problems == pytest.approx(200 - 100 * (0.05 / 0.25))  # on the line from .3 to .55
    assert peak.rollouts == pytest.approx(peak.problems * SIZE)
    assert peak.tokens == pytest.approx(peak.problems * SIZE * 40)
    raw = reach(noisy, 0.5, "raw")
    assert raw.problems == pytest.approx(400 + 100 / 3)  # the peak at 200 did not hold
    assert str(raw) == "433 problems, 6,933 rollouts, 277,333 tokens"
    assert reach(noisy, 0.5, "raw", hold=1).problems == peak.problems
    assert (raw.target, raw.rule, raw.seed) == (0.5, "raw", 0)


def test_a_score_that_is_not_reached_is_said_to_be_so() -> None:
    low = curve([0.1, 0.2, 0.3])
    for rule in ("running max", "raw"):
        found = reach(low, 0.9, rule)
        assert not found.is_reached
        assert (found.problems, found.rollouts, found.tokens) == (None, None, None)
        assert str(found) == "not reached in 200 problems"
        assert found.spent == {"problems": 200, "rollouts": 200 * SIZE, "tokens": 200 * SIZE * 40}
    late = curve([0.1, 0.2, 0.9])
    assert reach(late, 0.8).is_reached
    assert not reach(late, 0.8, "raw").is_reached  # nobody saw whether it stays


def test_a_score_that_was_there_at_the_start_took_nothing() -> None:
    assert reach(curve([0.6, 0.7, 0.8]), 0.5).problems == 0
    assert reach(curve([0.6, 0.2, 0.8, 0.8]), 0.5, "raw").problems == pytest.approx(150)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"target": 0.0}, r"a score in \(0, 1\]; got 0\.0"),
        ({"target": 40}, "got 40"),
        ({"target": 0.5, "rule": "smoothed"}, "rule is one of running max, raw; got 'smoothed'"),
        ({"target": 0.5, "hold": 0}, "at least 1; got 0"),
    ],
)
def test_bad_questions_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reach(curve([0.1, 0.9]), **more)


# ------------------------------------------------------------------------------------------------------------- one arm


def test_runs_that_did_not_get_there_stay_in() -> None:
    found = [
        reach(curve([0.1, score, 0.9 if score > 0.2 else 0.2], seed=s), 0.5) for s, score in enumerate((0.5, 0.3, 0.1))
    ]
    times = time_to(found, "problems")
    known = [100.0, 100 + 100 / 3, 200.0]
    assert (times.reached, times.runs, times.horizon) == (2, 3, 200)
    assert times.median == pytest.approx(known[1])
    assert times.restricted.estimate == pytest.approx(np.mean(known))
    most = [reach(curve([0.1, score], seed=s), 0.5) for s, score in enumerate((0.5, 0.3, 0.1))]
    assert time_to(most, "problems").median is None  # one of three: the median run was not watched long enough
    none = time_to(most[1:], "problems")
    assert (none.reached, none.median, none.restricted.estimate) == (0, None, 100.0)
    with pytest.raises(ValueError, match="at least one"):
        time_to([], "problems")


def test_the_median_is_kaplan_meiers() -> None:
    # Runs of different lengths: those cut off early say less than those cut off late.
    ends = [4, 5, 6, 9, 9, 9, 9]
    rises = [2, 9, 3, 4, 9, 5, 6]
    runs = [
        curve([0.1 if i < rise else 0.9 for i in range(end)], seed=s)
        for s, (end, rise) in enumerate(zip(ends, rises, strict=True))
    ]
    found = [reach(run, 0.9) for run in runs]
    known = [f.problems if f.is_reached else f.spent["problems"] for f in found]
    survival = stats.ecdf(stats.CensoredData.right_censored(known, [not f.is_reached for f in found])).sf
    alive, at_risk = 1.0, list(zip(known, [f.is_reached for f in found], strict=True))
    for time in sorted({t for t, reached in at_risk if reached}):  # the product-limit estimator by hand
        risk = sum(t >= time for t, _ in at_risk)
        alive *= 1 - sum(t == time and reached for t, reached in at_risk) / risk
        assert survival.evaluate(time) == pytest.approx(alive)
        if alive <= 0.5:
            assert time_to(found, "problems").median == pytest.approx(time)
            break


# ------------------------------------------------------------------------------------------------------------ two arms


def arms(
    factor: float, seeds: int = 5, points: int = 40, n: int = 500
) -> tuple[list[LearningCurve], list[LearningCurve]]:
    """Two arms of noisy runs, the first ``factor`` times as quick; each seed has a pace of its own."""
    pace = np.random.default_rng(5).lognormal(0, 0.15, 2 * seeds)
    fast, slow = [], []
    for s in range(seeds):
        one = measured(saturating(900 * pace[s] / factor), 1000 + s, points=points, n=n, start="both clocks")
        two = measured(saturating(900 * pace[seeds + s]), 2000 + s, points=points, n=n, start="slow only")
        fast.append(LearningCurve(task="sums", start=one.start, seed=s, points=one.points))
        slow.append(LearningCurve(task="sums", start=two.start, seed=s, points=two.points))
    return fast, slow


def test_a_planted_threefold_speed_up_is_recovered() -> None:
    # Many seeds, so that what is tested is the estimator and not the luck of five.
    fast, slow = arms(3.0, seeds=30)
    found = sample_efficiency(fast, slow, 0.5)
    assert (found.task, found.arm, found.than, found.target) == ("sums", "both clocks", "slow only", 0.5)
    for by_axis in (found.running_max, found.raw):
        for axis in AXES:
            speed = by_axis[axis]
            assert speed.ratio.estimate == pytest.approx(3.0, rel=0.1)
            assert 1 < speed.ratio.low < 3.0 < speed.ratio.high
            assert not speed.is_censored
            assert (speed.ratio.n, speed.ratio.seeds) == (30, 30)
            assert speed.arm.reached == speed.than.reached == 30
    five = sample_efficiency(*arms(3.0), 0.5).running_max["problems"].ratio
    assert 1 < five.low < 3.0 < five.high


def test_the_negative_control_comes_out_null() -> None:
    found = sample_efficiency(*arms(1.0), 0.5)
    for by_axis in (found.running_max, found.raw):
        for axis in AXES:
            assert by_axis[axis].ratio.low < 1 < by_axis[axis].ratio.high
    same, _ = arms(1.0)
    assert sample_efficiency(same, same, 0.5).raw["tokens"].ratio.estimate == 1.0


def test_three_axes_can_tell_three_stories() -> None:
    def with_group(rollouts: int, tokens: int, midpoint: float, name: str) -> list[LearningCurve]:
        truth = saturating(midpoint)
        return [
            LearningCurve(task="sums", start=name, seed=s, points=tuple(
                CurvePoint(problems=100 * i, rollouts=100 * i * rollouts, tokens=100 * i * rollouts * tokens,
                           score=truth(100 * i + s), n=100) for i in range(40)
            )) for s in range(2)
        ]  # fmt: skip

    found = sample_efficiency(with_group(16, 120, 300, "many"), with_group(4, 40, 900, "few"), 0.5).running_max
    assert found["problems"].ratio.estimate == pytest.approx(3, rel=0.05)
    assert found["rollouts"].ratio.estimate == pytest.approx(3 / 4, rel=0.05)
    assert found["tokens"].ratio.estimate == pytest.approx(3 / 4 / 3, rel=0.05)


def test_a_slow_arm_that_never_gets_there_is_a_bound_not_a_gap() -> None:
    fast, slow = arms(3.0, points=12)  # 1,100 problems: the slow ones need some 1,200
    found = sample_efficiency(fast, slow, 0.5).running_max["problems"]
    assert found.is_censored
    assert found.than.reached < found.than.runs == 5
    assert found.arm.reached == 5
    assert 1 < found.ratio.low < found.ratio.estimate < 3.2
    assert found.than.restricted.estimate < 1100 == found.than.horizon
    assert "Fieller" in found.ratio.method
    lost = sample_efficiency(fast, slow, 0.79)
    assert not lost.running_max["problems"].ratio.is_known
    assert str(lost.running_max["problems"]) == "problems: not reached by any run within 1,100"
    assert all(not one.is_reached for one in lost.reached)
    assert len(lost.reached) == 20


def test_a_longer_run_is_no_better_for_its_length() -> None:
    # Beyond the end of a run that was cut off nothing can be compared.
    short = [curve([0.1, 0.2, 0.3], start="a", seed=s) for s in (0, 1)]
    long = [curve([0.1, 0.2, 0.3, 0.6, 0.9], start="b", seed=s) for s in (0, 1)]
    found = sample_efficiency(short, long, 0.5).running_max["problems"]
    assert found.is_censored
    assert not found.ratio.is_known
    assert found.ratio.method == "not reached by any run within 200"
    assert found.than.reached == 2
    assert (found.than.restricted.estimate, found.than.horizon) == (200, 200)


def test_arms_of_other_lengths_that_all_got_there_are_known_for_good() -> None:
    quick = [curve([0.1, 0.7, 0.8], start="a", seed=s) for s in (0, 1)]
    slow = [curve([0.1, 0.2, 0.3, 0.3, 0.6 + s / 10, 0.9], start="b", seed=s) for s in (0, 1)]
    found = sample_efficiency(quick, slow, 0.5).running_max["problems"]
    assert not found.is_censored
    times = [(300 + 100 * 2 / 3) / (100 * 4 / 6), (300 + 100 * 2 / 4) / (100 * 4 / 6)]
    assert found.ratio.estimate == pytest.approx(np.sqrt(times[0] * times[1]))


def test_other_seeds_are_compared_unpaired() -> None:
    fast, slow = arms(3.0)
    found = sample_efficiency(fast, slow[:4], 0.5).running_max["problems"].ratio
    assert "Welch" in found.method
    assert found.n == 9
    assert found.low < 3 < found.high
    few, cut = arms(3.0, points=12)
    censored = sample_efficiency(few, cut[:4], 0.5).running_max["problems"].ratio
    assert np.isnan(censored.low)
    assert "needs the same seeds" in censored.method


@pytest.mark.parametrize(
    ("arm", "than", "message"),
    [
        ([], [curve([0, 1])], "arm has no curve"),
        ([curve([0, 1])], [curve([0, 1], task="gcd")], "one arm learned 'sums' and the other 'gcd'"),
        ([curve([0, 1])], [curve([0, 1]), curve([0, 1])], "than has seed 0 more than once"),
    ],
)
def test_unlike_is_not_compared(arm: Any, than: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_efficiency(arm, than, 0.5)
