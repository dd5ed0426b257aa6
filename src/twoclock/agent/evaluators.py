"""Who says whether an attempt passed: the environment, a model that is asked, tests that a model wrote, noise on top.

In Reflexion the evaluator, not the truth, decides whether there is another trial, so a false pass is final. Both are
kept apart here: an evaluator judges, the task's grade is the truth, and the two are counted against each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from twoclock.agent.episodes import Attempt
from twoclock.errors import ConfigError
from twoclock.seeding import child_rng
from twoclock.types import Item

__all__ = ["ClassifierEvaluator", "EnvironmentEvaluator", "Evaluator", "Judgement", "NoisyEvaluator", "count_tokens"]


def count_tokens(text: str) -> int:
    """A rough count where nobody tells: one token for every four bytes, rounded up."""
    return -(-len(text.encode("utf-8", errors="replace")) // 4)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What an evaluator says of one attempt."""

    passed: bool
    feedback: str = ""
    """All that a reflector may be told of the attempt's outcome."""
    tokens: int = 0
    """What judging read and wrote."""
    calls: int = 0
    undecided: bool = False
    """Whether it could not tell; that is no pass."""


class Evaluator(Protocol):
    """Judges attempts."""

    @property
    def name(self) -> str: ...

    def judge(self, items: Sequence[Item], attempts: Sequence[Attempt]) -> list[Judgement]:
        """One judgement an attempt, in order."""
        ...


class EnvironmentEvaluator:
    """The task's own grade: passed from a reward of ``success_at`` on."""

    name = "environment"

    def __init__(self, success_at: float = 1.0) -> None:
        if not 0.0 < success_at <= 1.0:
            raise ConfigError(f"success_at must lie in (0, 1]; got {success_at!r}")
        self._success_at = success_at

    def judge(self, items: Sequence[Item], attempts: Sequence[Attempt]) -> list[Judgement]:
        return [
            Judgement(passed=a.failure is None and a.reward >= self._success_at, feedback=a.failure or a.feedback)
            for a in attempts
        ]


QUESTION = (
    "Here is a task and an attempt at it. Did the attempt reach the goal of the task? Begin your answer with the word "
    "yes or the word no, then give the reason in one sentence.\n\n<task>\n{task}\n</task>\n\n<attempt>\n{attempt}\n"
    "</attempt>"
)
_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


class ClassifierEvaluator:
    """A model that is asked (Reflexion's binary classifier). It sees the task and the attempt, never the grade; what is
    neither yes nor no is undecided, and no pass."""

    name = "classifier"

    def __init__(self, ask: Callable[[str], str], *, count: Callable[[str], int] = count_tokens) -> None:
        self._ask, self._count = ask, count

    def judge(self, items: Sequence[Item], attempts: Sequence[Attempt]) -> list[Judgement]:
        return [self._one(item, attempt) for item, attempt in zip(items, attempts, strict=True)]

    def _one(self, item: Item, attempt: Attempt) -> Judgement:
        prompt = QUESTION.format(task=item.prompt, attempt=_without_ending(attempt.text))
        reply = self._ask(prompt)
        spent = self._count(prompt) + self._count(reply)
        found = _VERDICT.search(reply)
        if found is None:
            return Judgement(
                passed=False, feedback="The evaluator gave no verdict.", tokens=spent, calls=1, undecided=True
            )
        return Judgement(passed=found[1].lower() == "yes", feedback=reply.strip()[:500], tokens=spent, calls=1)


def _without_ending(text: str) -> str:
    """A transcript without the line in which the environment says how it ended."""
    lines = text.split("\n")
    return "\n".join(lines[:-1]) if lines[-1].startswith("= ") else text


class NoisyEvaluator:
    """Another evaluator whose verdicts are turned over by chance: what false passes and false fails cost."""

    def __init__(self, inner: Evaluator, *, false_pass: float = 0.0, false_fail: float = 0.0, seed: int = 0) -> None:
        """``false_pass`` is the share of failures that are passed, ``false_fail`` that of passes that are failed."""
        problems = [
            f"{name} must lie in [0, 1]; got {value!r}"
            for name, value in (("false_pass", false_pass), ("false_fail", false_fail))
            if not 0.0 <= value <= 1.0
        ]
        if problems:
            raise ConfigError(problems)
        self._inner, self._seed = inner, seed
        self._turned = {True: false_fail, False: false_pass}
        self.name = f"{inner.name} with {false_pass:g} false passes and {false_fail:g} false fails"

    def judge(self, items: Sequence[Item], attempts: Sequence[Attempt]) -> list[Judgement]:
        judged = self._inner.judge(items, attempts)
        return [self._turn(judgement, attempt) for judgement, attempt in zip(judged, attempts, strict=True)]

    def _turn(self, judgement: Judgement, attempt: Attempt) -> Judgement:
        draw = child_rng("noisy-evaluator", self._seed, attempt.item_id, attempt.trial).random()
        if draw >= self._turned[judgement.passed]:
            return judgement
        return replace(judgement, passed=not judgement.passed)
