"""The checks as equations, and which lessons the evidence speaks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from twoclock.consolidation import ConsolidationSettings, LessonEvidence, choose
from twoclock.consolidation.checks import drift_check, kept_check, worth_check
from twoclock.errors import ConfigError
from twoclock.measure.lessons import LessonRecord
from twoclock.seeding import child_rng
from twoclock.types import Lesson

SETTINGS = ConsolidationSettings(min_age=3, min_rounds=2, horizon=2, lasting=0.3)
PHI = NormalDist()


# --------------------------------------------------------------------------------------------------------- the checks


def test_the_power_by_hand() -> None:
    """Differences 1, −1 and 98 zeros: s² = 2/99, se = √(s²/100) = 0.0142; Φ(0.05/se − 1.645) = Φ(1.873)."""
    old, new = [0.0, 1.0] + [0.5] * 98, [1.0, 0.0] + [0.5] * 98
    check = kept_check("score", "sums", old, new, margin=0.05, alpha=0.05, seed=0)
    error = math.sqrt(2 / 99 / 100)
    assert check.numbers["power"] == pytest.approx(PHI.cdf(0.05 / error - PHI.inv_cdf(0.95)))
    needed = 100 * ((PHI.inv_cdf(0.95) + PHI.inv_cdf(0.8)) * error / 0.05) ** 2
    assert check.numbers["items_needed"] == math.ceil(needed)
    assert check.passed


def test_a_loss_of_the_margin_passes_as_rarely_as_it_says() -> None:
    """At a true loss of exactly the margin the test passes in about α of all cases, and never in many more."""
    passed, runs = 0, 120
    for run in range(runs):
        rng = child_rng("checks", run)
        old = [float(rng.random() < 0.6) for _ in range(150)]
        new = [float(rng.random() < 0.5) for _ in range(150)]
        passed += kept_check("score", "sums", old, new, margin=0.1, alpha=0.05, seed=run).passed
    assert passed / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_where_nothing_is_lost_it_passes_as_often_as_its_power_says() -> None:
    passed, powers, runs = 0, [], 100
    for run in range(runs):
        rng = child_rng("power", run)
        old, new = ([float(rng.random() < 0.5) for _ in range(100)] for _ in range(2))
        check = kept_check("score", "sums", old, new, margin=0.15, alpha=0.05, seed=run)
        passed, powers = passed + check.passed, [*powers, check.numbers["power"]]
    assert passed / runs == pytest.approx(sum(powers) / runs, abs=0.1)


def test_too_few_items_say_so() -> None:
    check = kept_check("score", "sums", [1.0, 0.0] * 6, [0.0, 1.0] * 6, margin=0.05, alpha=0.05, seed=0)
    assert not check.passed
    assert "12 items are too few" in check.reason
    lost = kept_check("score", "sums", [1.0] * 40, [0.0] * 40, margin=0.05, alpha=0.05, seed=0)
    assert not lost.passed
    assert "too few" not in lost.reason


def test_no_difference_at_all_on_a_few_items_is_no_proof() -> None:
    """Eight items without a difference exclude no loss of 0.05; a thousand do."""
    few, many = (kept_check("s", "t", [1.0] * n, [1.0] * n, margin=0.05, alpha=0.05, seed=0) for n in (8, 1000))
    assert (few.passed, many.passed) == (False, True)
    assert not kept_check("s", "t", [], [], margin=0.05, alpha=0.05, seed=0).passed


def test_what_a_lesson_is_worth() -> None:
    good = worth_check("a", [1.0] * 20 + [0.0] * 20, [0.0] * 40, alpha=0.05, seed=0)
    assert good.passed
    assert good.interval is not None
    assert good.interval.estimate == 0.5
    assert not worth_check("a", [0.0] * 40, [1.0] * 40, alpha=0.05, seed=0).passed
    assert not worth_check("a", [1.0] * 40, [1.0] * 40, alpha=0.05, seed=0).passed
    assert "shown on none" in worth_check("a", [], [], alpha=0.05, seed=0).reason


def test_many_lessons_that_do_nothing_pass_together_as_rarely_as_one() -> None:
    passed, runs, looks = 0, 40, 5
    for run in range(runs):
        rng = child_rng("worth", run)
        found = []
        for lesson in range(looks):
            shown, without = ([float(rng.random() < 0.5) for _ in range(60)] for _ in range(2))
            found.append(worth_check(str(lesson), shown, without, alpha=0.05, seed=run, looks=looks).passed)
        passed += any(found)
    assert passed / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize(
    ("forward", "backward", "budget", "passed"),
    [(0.1, 0.2, 0.2, True), (0.1, 0.3, 0.2, False), (0.3, 0.1, 0.2, False), (9.0, 9.0, None, True),
     (math.nan, 0.1, None, False), (0.1, math.inf, 5.0, False)],
)  # fmt: skip
def test_drift_is_held_to_in_both_directions(
    forward: float, backward: float, budget: float | None, passed: bool
) -> None:
    check = drift_check(forward, backward, (0.0, 0.0), budget)
    assert check.passed is passed
    assert check.as_dict()["numbers"]["live_base_before"] == 0.0


# ------------------------------------------------------------------------------------------------------ which lessons


def lesson(name: str = "a", live: bool = True) -> Lesson:
    return Lesson(id=name, channel="prompts", text=f"say {name}", tasks=("sums",), live=live)


def evidence(rounds: Sequence[tuple[int, float]], age: int = 9, items: int = 6) -> LessonEvidence:
    """(round, chance of success with the lesson); without it, none."""
    record = LessonRecord(lesson="a")
    for number, chance in rounds:
        for item in range(items):
            rng = child_rng("choice", number, item)
            shown = [float(rng.random() < chance) for _ in range(4)]
            record = record.update(shown, [0.0] * 4, item=f"i{number}-{item}", task="sums", step=number)
    return LessonEvidence(record=record, since=1, age=age)


STEADY = [(n, 0.8) for n in range(1, 7)]


def reason_of(found: LessonEvidence, settings: ConsolidationSettings = SETTINGS) -> str:
    (choice,) = choose([lesson()], {"a": found}, settings)
    assert choice.accepted is choice.reason.startswith("+")
    return choice.reason


def test_a_lesson_that_has_held_for_rounds_is_chosen() -> None:
    assert "6 rounds" in reason_of(evidence(STEADY))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (evidence([]), "nothing compares it with going without it"),
        (evidence(STEADY, age=2), "too young: 2 of 3 rounds"),
        (evidence(STEADY[:1]), "compared in 1 of 2 rounds"),
        (evidence([(n, 0.0) for n in range(6)]), "its effect is not above 0"),
    ],
)
def test_a_lesson_without_evidence_is_left_where_it_is(found: LessonEvidence, reason: str) -> None:
    assert reason in reason_of(found)


def test_a_convention_that_flips_is_left_where_it_is() -> None:
    """Half of the rounds it is worth much, so its mean effect is above 0; it will not stay true."""
    flips = evidence([(n, 0.9 * (n % 2)) for n in range(8)])
    assert flips.record.effect().interval().low > 0
    assert "it may not last" in reason_of(flips, replace(SETTINGS, lasting=0.5))


def test_by_hand_nothing_needs_evidence() -> None:
    first, second = choose([lesson("b"), lesson("a")], {}, SETTINGS, asked=["a"])
    assert (first.lesson.id, first.accepted, first.reason) == ("a", True, "it was asked for")
    assert (second.lesson.id, second.accepted) == ("b", False)
    assert first.as_dict()["effect"] is None
    with pytest.raises(ConfigError, match="unknown lesson 'c'"):
        choose([lesson()], {}, SETTINGS, asked=["c"])
    with pytest.raises(ConfigError, match="'a' is not live"):
        choose([lesson(live=False)], {}, SETTINGS, asked=["a"])


def test_another_rule_may_decide() -> None:
    def never(one: Lesson, found: LessonEvidence, settings: ConsolidationSettings) -> str:
        return f"no: {one.id}"

    (choice,) = choose([lesson()], {"a": evidence(STEADY)}, SETTINGS, rule=never)
    assert choice.reason == "no: a"
    assert choice.as_dict()["rounds"] == 6


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"rounds": 0}, "rounds = 0: expected at least 1"), ({"margin": 0.0}, "margin = 0.0"), ({"drift": -1.0}, "drift"),
     ({"alpha": math.nan}, "alpha = nan"), ({"trial_items": 2}, "at least 8"), ({"learning_rate": 0.0}, "above 0")],
)  # fmt: skip
def test_settings_that_are_none(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ConsolidationSettings(**wrong)


# -------------------------------------------------------------------------------------------- what the ledger has of it


def test_evidence_is_read_from_the_groups_of_a_run(tmp_path: Path) -> None:
    """Each group of the world's rounds has two rollouts under the prompt and two without: some 0.94 better."""
    pytest.importorskip("torch")
    from two_token_world import TwoTokenWorld
    from twoclock.consolidation import lesson_evidence

    world = TwoTokenWorld()
    with world.run(tmp_path / "run", 4) as loop:
        channel: Any = loop.channels["prompts"]
        lessons = channel.lessons(loop.states["prompts"])
        found = lesson_evidence(loop.store, "prompts", channel, loop.states["prompts"], lessons, ["first", "second"])[
            world.lesson()
        ]
        assert found.rounds == 4
        assert found.record.outcomes.groups == 32
        assert found.record.outcomes.difference == pytest.approx(0.95, abs=0.06)
        assert (found.since, found.age) == (0, 4)  # it was there from the start
        (choice,) = choose(lessons, {world.lesson(): found}, SETTINGS)
        assert choice.accepted, choice.reason
