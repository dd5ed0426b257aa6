"""What a reflector is asked, and what its answer must pass to be kept as a lesson. Pure functions of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from twoclock.fast.prompts.guards import loop_problem, reply_problem, strip_thinking

__all__ = ["COPIED_SHARE", "lesson_problem", "reflection_prompt"]

_WORD = re.compile(r"\w+")

COPIED_GRAM = 4
"""Words in a row by which a text is compared with what memory said already."""
COPIED_SHARE = 0.6
"""A lesson that shares at least this part of its runs of words with one earlier lesson says it again."""
ECHO_GRAM = 8
"""So many words in a row of the question asked are an echo of it."""


def reflection_prompt(
    *, description: str, problem: str, attempt: str, reward: float, feedback: str = "", lessons: Sequence[str] = ()
) -> str:
    """What a reflector reads: the task, the attempt and what came of it, the lessons that were at hand. It is asked for
    a plan in the first person, as in the paper, and told not to answer the problem: weak models do that instead."""
    parts = [
        f"You are improving at this task: {description}" if description else "",
        f"The problem was:\n{problem}",
        f"Your attempt was:\n{attempt.strip() or '(nothing)'}",
        f"It scored {reward:.2f} out of 1." + (f" What was said about it: {feedback}" if feedback else ""),
        "What you had noted before:\n" + "\n".join(f"- {lesson}" for lesson in lessons) if lessons else "",
        "In one or two sentences, say what went wrong and what you will do differently next time. Write a plan for "
        "yourself that begins with 'I'. Do not solve the problem here.",
    ]
    return "\n\n".join(part for part in parts if part)


def lesson_problem(
    text: str, *, asked: str, answers: Iterable[str], known: Iterable[str], max_chars: int
) -> str | None:
    """Why a text is no lesson, or None. ``asked`` is the reflection prompt, ``answers`` what answers to the problem
    look like, ``known`` the lessons that were shown or are kept for the same item."""
    if problem := reply_problem(text):
        return problem.replace("the reply", "the reflection", 1)
    text = strip_thinking(text)
    if len(text) > max_chars:
        return f"the reflection has {len(text)} characters, {max_chars} are allowed"
    if not any(c.isalpha() for c in text):
        return "the reflection has no word in it"
    plain = _plain(text)
    if any(plain == _plain(answer) for answer in answers if answer.strip()):
        return "the reflection is an answer, not a lesson"
    if problem := loop_problem(text):
        return problem.replace("the instruction", "the reflection", 1)
    own = _grams(text, COPIED_GRAM)
    for lesson in known:
        if plain == _plain(lesson) or (own and len(own & _grams(lesson, COPIED_GRAM)) >= COPIED_SHARE * len(own)):
            return "the reflection repeats what memory said already"
    if _grams(text, ECHO_GRAM) & _grams(asked, ECHO_GRAM):
        return "the reflection echoes what was asked"
    return None


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
