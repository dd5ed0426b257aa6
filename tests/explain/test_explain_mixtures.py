"""Experts in the weights are part of what a conditioning says: their lesson's, or of nobody that is known."""

from __future__ import annotations

from twoclock.explain.matching import Matcher
from twoclock.types import Conditioning, Delta, Lesson

MIX = Delta("mix-1", "svf", "b", None)
LESSON = Lesson(
    id="sums", channel="experts", text="1 adder", tasks=("sums",), live=True, says=Conditioning(mixture=MIX)
)


def told(mixture: str | None) -> dict[str, object]:
    return {
        "system": "be brief", "exemplars": [], "notes": [], "recall": [], "recalled": [], "shifts": [],
        "delta": None, "mixture": mixture,
    }  # fmt: skip


def test_a_mixture_is_its_lessons() -> None:
    matcher = Matcher([LESSON])
    parts = matcher.parts(told("mix-1"))
    assert parts.lessons == {("experts", "sums")}
    assert parts.without(("experts", "sums")) == matcher.parts(told(None)).features
    older = matcher.parts(told("mix-0"))
    assert older.lessons == frozenset()
    assert older.features != matcher.parts(told(None)).features, "two things said are not one"


def test_a_ledger_from_before_there_were_mixtures_is_read() -> None:
    old = {name: value for name, value in told(None).items() if name != "mixture"}
    assert Matcher([LESSON]).parts(old).features == Matcher([LESSON]).parts(told(None)).features
