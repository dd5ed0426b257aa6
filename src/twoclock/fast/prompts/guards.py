"""What a proposed instruction must pass before any rollout is spent on it. Pure functions of text.

Refused: nothing, too much, no word, the parent again, a copy of an item, JSON, a loop, an echo of the question asked.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

from twoclock.types import Item

__all__ = [
    "copied_span",
    "echo_problem",
    "instruction_problem",
    "item_ngrams",
    "loop_problem",
    "reply_problem",
    "shared_limit",
    "strip_thinking",
]

_TOKEN = re.compile(r"\w+|[^\w\s]")
_THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_THINKING_TAG = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_PLACEHOLDERS = ("<curr_param>", "<side_info>")
_RECORD_HEADING = re.compile(
    r"^\s*#{1,6}\s*(example \d+|inputs|generated outputs|feedback)\b", re.MULTILINE | re.IGNORECASE
)
_RECORD_JSON = re.compile(r"""^[\s\[{]*[\[{]\s*["'][^"'\n]*["']\s*[:,\]]""")

SHARED_BY = 0.1
"""An n-gram that stands in more than this share of the items is the task's wording, not an item's."""

ECHO_TOKENS = 7
"""So many tokens in a row of the reflection prompt's own wording are an echo of it."""
LOOP_LINES, LOOP_RUNS, LOOP_PERIOD = 3, 4, 12
"""A line that stands three times, or a run of up to twelve tokens that stands four times in a row, is a loop."""
LOOP_TOKENS, LOOP_GRAM, LOOP_DISTINCT = 24, 3, 0.5
"""In a text of so many tokens at least half of all runs of three must differ."""


def shared_limit(total: int) -> int:
    """What stands in more than this many of ``total`` items is the task's own, not an item's."""
    return max(1, int(SHARED_BY * total))


def _ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    tokens = _TOKEN.findall(text.lower())
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def item_ngrams(items: Iterable[Item], n: int) -> frozenset[tuple[str, ...]]:
    """The n-grams that belong to single items: what an instruction cannot contain unless it was copied.

    Prompts of one task share their wording ("How many times does the letter ..."), and an instruction may quote that;
    so n-grams that stand in more than a tenth of the items (and in more than one) do not count.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    total = 0
    for item in items:
        total += 1
        counts.update(_ngrams(item.prompt, n) | _ngrams(item.reference or "", n))
    limit = shared_limit(total)
    return frozenset(gram for gram, count in counts.items() if count <= limit)


def copied_span(text: str, own: frozenset[tuple[str, ...]], n: int, allowed: str = "") -> str | None:
    """The first run of ``n`` tokens that ``text`` shares with one item; ``allowed`` is text that may be kept (the
    parent's)."""
    found = (_ngrams(text, n) & own) - _ngrams(allowed, n)
    return " ".join(min(found)) if found else None


def strip_thinking(reply: str) -> str:
    """A reply without its closed ``<think>`` blocks."""
    return _THINKING.sub("", reply).strip()


def reply_problem(reply: str) -> str | None:
    """Why a reflector's reply, taken as a whole, cannot hold a proposal."""
    if not reply.strip():
        return "the reply is empty"
    if _THINKING_TAG.search(reply):
        return "the reply ends inside its thinking"
    if reply.count("```") % 2:
        return "the reply is cut off: a ``` block is not closed"
    return None


def instruction_problem(text: str, *, parent: str | None, max_chars: int) -> str | None:
    """Why an extracted instruction is refused, or None."""
    if not text.strip():
        return "the instruction is empty"
    if len(text) > max_chars:
        return f"the instruction has {len(text)} characters, {max_chars} are allowed"
    if not any(ch.isalpha() for ch in text):
        return "the instruction has no word in it"
    if _is_json(text):
        return "the instruction is JSON such as a task's data, not a prompt"
    if any(mark in text for mark in _PLACEHOLDERS):
        return "the instruction repeats a placeholder of the reflection prompt"
    if text.strip() == (parent or "").strip():
        return "the instruction is the parent's, unchanged"
    return loop_problem(text)


def _is_json(text: str) -> bool:
    """Whether a text is a JSON list or object, or begins as one and was cut off."""
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return _RECORD_JSON.match(text) is not None


def loop_problem(text: str) -> str | None:
    """Why a text is taken for a generator that got stuck, or None: a line, or a run of tokens, again and again."""
    lines = Counter(" ".join(line.lower().split()) for line in text.splitlines() if any(c.isalpha() for c in line))
    if lines and (often := lines.most_common(1)[0])[1] >= LOOP_LINES:
        return f"the instruction repeats itself: one line stands {often[1]} times"
    tokens = _TOKEN.findall(text.lower())
    for period in range(1, LOOP_PERIOD + 1):
        run = 0
        for at in range(period, len(tokens)):
            run = run + 1 if tokens[at] == tokens[at - period] else 0
            if run >= (LOOP_RUNS - 1) * period and any(t[0].isalpha() for t in tokens[at - period : at]):
                return f"the instruction repeats itself: '{' '.join(tokens[at - period + 1 : at + 1])}' again and again"
    grams = [tuple(tokens[i : i + LOOP_GRAM]) for i in range(len(tokens) - LOOP_GRAM + 1)]
    if len(tokens) >= LOOP_TOKENS and len(set(grams)) < LOOP_DISTINCT * len(grams):
        return f"the instruction repeats itself: {len(set(grams))} of {len(grams)} runs of {LOOP_GRAM} tokens differ"
    return None


def echo_problem(text: str, *, asked: str, answers: Iterable[str]) -> str | None:
    """Why a text is taken for an echo, or None. ``asked`` is the reflection prompt's own wording, without its records;
    ``answers`` are answers to items, which are no instructions either."""
    if _RECORD_HEADING.search(text):
        return "the instruction repeats the records of the reflection prompt"
    if copied := _ngrams(text, ECHO_TOKENS) & _ngrams(asked, ECHO_TOKENS):
        return f"the instruction echoes the reflection prompt: '{' '.join(min(copied))}'"
    plain = " ".join(text.lower().split())
    if any(plain == " ".join(answer.lower().split()) for answer in answers):
        return "the instruction is an answer to an item, not a prompt"
    return None
