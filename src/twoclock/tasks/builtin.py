"""The verifiers that a config may name without writing one; they take the texts and the ``answer`` column."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from twoclock.tasks.text import clip, last_number, normalised, numbers_equal

__all__ = ["BUILTIN", "contains", "exact", "number", "regex"]

Scores = list[tuple[float, str]]


def _scores(
    completions: Sequence[str], answer: Sequence[str | None], right: Callable[[str, str], bool], expected: str
) -> Scores:
    scores: Scores = []
    for text, gold in zip(completions, answer, strict=True):
        if gold is not None and right(text, gold):
            scores.append((1.0, "Correct."))
        else:
            scores.append((0.0, f"Wrong: expected {expected} {clip(str(gold))!r}."))
    return scores


def exact(completions: Sequence[str], answer: Sequence[str | None]) -> Scores:
    """The text is the answer, up to whitespace; case counts."""

    def right(text: str, gold: str) -> bool:
        return normalised(text, casefold=False) == normalised(gold, casefold=False)

    return _scores(completions, answer, right, "the answer")


def contains(completions: Sequence[str], answer: Sequence[str | None]) -> Scores:
    """The answer stands in the text as whole words, whatever the case."""

    def right(text: str, gold: str) -> bool:
        found = rf"(?<!\w){re.escape(normalised(gold))}(?!\w)"
        return bool(normalised(gold)) and re.search(found, normalised(text)) is not None

    return _scores(completions, answer, right, "a text that contains")


def number(completions: Sequence[str], answer: Sequence[str | None]) -> Scores:
    """The last number in the text has the value of the last number in the answer."""

    def right(text: str, gold: str) -> bool:
        got, want = last_number(text), last_number(gold)
        return got is not None and want is not None and numbers_equal(got, want)

    return _scores(completions, answer, right, "the last number to be")


def regex(completions: Sequence[str], answer: Sequence[str | None]) -> Scores:
    """The stripped text matches the answer, taken as a Python pattern, as a whole."""
    return _scores(completions, answer, lambda t, gold: re.fullmatch(gold, t.strip()) is not None, "a match of")


BUILTIN: Mapping[str, Callable[..., Scores]] = {"exact": exact, "contains": contains, "number": number, "regex": regex}
"""By the name that a config uses."""
