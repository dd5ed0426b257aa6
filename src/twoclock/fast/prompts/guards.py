"""What a proposed instruction must pass before any rollout is spent on it. Pure functions of text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from twoclock.types import Item

__all__ = ["copied_span", "instruction_problem", "item_ngrams", "reply_problem", "strip_thinking"]

_TOKEN = re.compile(r"\w+|[^\w\s]")
_THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_THINKING_TAG = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_PLACEHOLDERS = ("<curr_param>", "<side_info>")

SHARED_BY = 0.1
"""An n-gram that stands in more than this share of the items is the task's wording, not an item's."""


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
    limit = max(1, int(SHARED_BY * total))
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
    if any(mark in text for mark in _PLACEHOLDERS):
        return "the instruction repeats a placeholder of the reflection prompt"
    if text.strip() == (parent or "").strip():
        return "the instruction is the parent's, unchanged"
    return None
