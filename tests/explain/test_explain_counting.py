"""What a conditioning has, and what the rollouts of a group then say of it: against cases worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from twoclock.explain.counting import count_lessons
from twoclock.explain.matching import Matcher, Parts
from twoclock.store import RolloutRow, RoundRow
from twoclock.types import Conditioning, Lesson

SYSTEM, TURN, OTHER = "Answer with a digit.", ("2 + 2?", "4"), ("3 + 3?", "6")
TOLD = {
    "a": Conditioning(system=SYSTEM),
    "ab": Conditioning(system=SYSTEM, exemplars=(TURN,)),
    "b": Conditioning(exemplars=(TURN,)),
}
PROMPTS = [
    Lesson(id=key, channel="prompts", text=key, tasks=("t",), live=key == "a", says=says) for key, says in TOLD.items()
]
CASES = [Lesson(id=key, channel="cases", text=key, tasks=("t",), live=True) for key in ("c1", "c2")]
MATCHER = Matcher([*PROMPTS, *CASES])


def told(**parts: Any) -> dict[str, Any]:
    empty = {"system": None, "exemplars": [], "notes": [], "recall": [], "recalled": [], "delta": None, "shifts": []}
    return {**empty, **parts}


def lessons(**parts: Any) -> set[str]:
    return {lesson for _, lesson in MATCHER.parts(told(**parts)).lessons}


def test_a_conditioning_has_the_longest_prompt_that_is_in_it() -> None:
    assert lessons() == set()
    assert lessons(system=SYSTEM) == {"a"}
    assert lessons(exemplars=[list(TURN)]) == {"b"}
    assert lessons(system=SYSTEM, exemplars=[list(TURN)]) == {"ab"}
    assert lessons(system=SYSTEM, exemplars=[list(OTHER), list(TURN)], recalled=["c1"]) == {"ab", "c1"}


def test_what_nobody_accounts_for_is_not_mistaken_for_nothing() -> None:
    empty = MATCHER.parts(told()).features
    for strange in (told(system="Sing."), told(exemplars=[list(OTHER)]), told(notes=["?"]), told(recalled=["gone"])):
        parts = MATCHER.parts(strange)
        assert parts.lessons == frozenset()
        assert parts.features != empty
    mixed = MATCHER.parts(told(system=SYSTEM, exemplars=[list(OTHER)]))
    assert mixed.without(("prompts", "a")) != empty
    assert MATCHER.parts(told(system=SYSTEM)).without(("prompts", "a")) == empty


def test_another_amount_of_a_shift_is_the_same_lesson_and_another_thing_said() -> None:
    matcher = Matcher([Lesson(id="terse", channel="proxy", text="", tasks=("*",), live=True)])
    one, two = (
        matcher.parts(told(shifts=[{"name": "terse", "alpha": [a], "expert": {}, "anti": {}}])) for a in (0.5, 1.0)
    )
    assert one.lessons == two.lessons == {("proxy", "terse")}
    assert one.features != two.features
    assert one.without(("proxy", "terse")) == matcher.parts(told()).features


# ------------------------------------------------------------------------------------------------------------ counting


def row(under: str, reward: float, *, round: int = 1, item: str = "i", **more: Any) -> RolloutRow:
    fields: dict[str, Any] = {
        "round": round, "task": "t", "item_id": item, "prompt": f"{item}?", "conditioning_id": under, "seed": 0,
        "text": "x", "reward": reward, "feedback": "", "failure": None, "finish": "stop", "prompt_tokens": 10,
        "completion_tokens": 1, "mean_logprob": None,
    }  # fmt: skip
    return RolloutRow(**{**fields, **more})


PARTS: dict[str, Parts] = {
    "none": MATCHER.parts(told()),
    "a": MATCHER.parts(told(system=SYSTEM)),
    "ab": MATCHER.parts(told(system=SYSTEM, exemplars=[list(TURN)])),
    "c1": MATCHER.parts(told(recalled=["c1"])),
    "c1c2": MATCHER.parts(told(recalled=["c1", "c2"])),
}
KEYS = [("prompts", "a"), ("prompts", "ab"), ("cases", "c1"), ("cases", "c2")]


def counted(rows: list[RolloutRow], last: int = 9, **more: Any) -> Any:
    return count_lessons(KEYS, PARTS, rows, last=last, sources=more.get("sources", {}))


def test_a_group_is_compared_by_hand() -> None:
    """Item i: with the lesson 1 and 1, without 0 and 1. d = 1/2, w = 2·2/4 = 1; the prior N(0, 1/16) and σ² = 1/4 (no
    degree of freedom of its own yet) give precision 16 + 4 and mean (4 · 1/2) / 20 = 0.1."""
    rows = [row("a", 1.0, prompt_tokens=14), row("a", 1.0, prompt_tokens=14), row("none", 0.0), row("none", 1.0)]
    count = counted(rows)["prompts", "a"]
    assert (count.alone.outcomes.groups, count.alone.outcomes.weight, count.alone.outcomes.difference) == (1, 1.0, 0.5)
    assert count.record is count.alone
    assert count.record.effect().mean == pytest.approx(0.1)
    assert count.record.effect().sd == pytest.approx(20**-0.5)
    assert (count.alone.helped, count.alone.contradicted, count.beside.applied, count.rollouts) == (1, 0, 1, 2)
    assert count.tokens == 4.0
    assert count.against == {"going without it": 1}


def test_another_prompt_in_its_place_is_no_comparison_with_going_without() -> None:
    count = counted([row("a", 1.0), row("ab", 0.0)])["prompts", "a"]
    assert not count.alone.steps
    assert count.tokens is None
    assert count.compared_with == "what stood in its place"
    assert count.record.outcomes.difference == 1.0
    assert count.against == {"ab": 1}


def test_an_entry_of_memory_is_its_own_where_it_alone_is_held_out() -> None:
    found = counted([row("c1c2", 1.0), row("c1", 0.25), row("none", 0.0)])
    second = found["cases", "c2"]
    assert second.alone.outcomes.difference == 0.75  # against c1 alone
    assert second.beside.outcomes.difference == pytest.approx(1 - 0.125)
    first = found["cases", "c1"]
    assert first.alone.outcomes.difference == 0.25  # c1 against none: of c1 with c2 nothing is told
    assert found["prompts", "a"].beside.applied == 0


def test_what_says_nothing_is_left_out() -> None:
    rows = [
        row("a", 1.0, round=1), row("none", 0.0, round=1, age=2),  # of an earlier round, under its weights
        row("a", 1.0, round=2), row("none", 0.0, round=2, failure="the verifier raised"),
        row("a", 1.0, round=3, item="i"), row("none", 0.0, round=3, item="j"),  # another item
        row("a", 1.0, round=4), row("never recorded", 0.0, round=4),
        row("a", 1.0, round=5), row("none", 0.0, round=5),  # beyond the head that was read
    ]  # fmt: skip
    count = counted(rows, last=4)["prompts", "a"]
    assert count.beside.applied == 4
    assert not count.beside.steps
    assert count.compared_with == "nothing"


def test_rounds_phases_and_tasks_add_up() -> None:
    rows = [row(u, r, round=n, item=f"i{n}") for n in (1, 2, 4) for u, r in (("a", float(n != 4)), ("none", 0.5))]
    count = counted(rows)["prompts", "a"]
    rounds = {n: RoundRow(round=n, phase=int(n > 2), task="t", metrics={}, started=0.0, at=0.0) for n in (1, 2, 3, 4)}
    assert [(s.name, s.groups) for s in count.slices(rounds, "round")] == [("1", 1), ("2", 1), ("4", 1)]
    first, second = count.slices(rounds, "phase")
    assert (first.name, first.groups, second.name, second.groups) == ("1: t", 2, "2: t", 1)
    assert first.effect.estimate > 0 > second.effect.estimate
    (whole,) = count.slices(rounds, "task")
    assert whole.effect == count.record.effect().interval()


def test_answers_that_became_exemplars_are_named() -> None:
    rows = [row("none", 1.0, round=3, text=" 4 ", prompt="2 + 2?", seed=7, item="sum")]
    count = counted(rows, sources={TURN: [("prompts", "ab")]})["prompts", "ab"]
    assert count.sources == ("round 3, item sum, seed 7",)
