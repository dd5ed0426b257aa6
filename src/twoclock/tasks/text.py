"""Small pure functions on model text: finding the answer in it, normalising it, reading numbers out of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal

__all__ = ["EXTRACTORS", "clip", "extract", "is_number", "last_number", "normalised", "numbers_equal", "present"]

# A sign counts only where no word or number ends before it: "5-3" holds 5 and 3, not -3. ASCII digits only.
_NUMBER = re.compile(r"(?:(?<![\w.)])[-+])?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")
_OPEN, _CLOSE = "<answer>", "</answer>"


def normalised(text: str, *, casefold: bool = True) -> str:
    """Whitespace runs as one space, ends stripped, case folded unless told otherwise."""
    joined = " ".join(text.split())
    return joined.casefold() if casefold else joined


def clip(text: str, limit: int = 80) -> str:
    """The text on one line, cut to ``limit`` characters: for messages and feedback."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def last_number(text: str) -> str | None:
    """The last number in the text, without thousands separators; ``None`` where there is none."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def is_number(text: str) -> bool:
    """Whether the text is one plain decimal number and nothing else."""
    return re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?", text) is not None


def numbers_equal(a: str, b: str) -> bool:
    """Whether two plain decimal numbers have the same value; exact, however long they are."""
    return Decimal(a) == Decimal(b)


def _tagged(text: str) -> str:
    # rfind twice, not a lazy pattern: a text of many unclosed tags must not cost quadratic time.
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, end) if end >= 0 else -1
    return text[start + len(_OPEN) : end].strip() if start >= 0 else ""


def _line(index: int) -> Callable[[str], str]:
    def pick(text: str) -> str:
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        return lines[index] if lines else ""

    return pick


def _first_word(text: str) -> str:
    words = text.split(maxsplit=1)
    return words[0].rstrip(".,;:!?") if words else ""


EXTRACTORS: Mapping[str, Callable[[str], str]] = {
    "text": str.strip,
    "first_line": _line(0),
    "last_line": _line(-1),
    "tag": _tagged,
    "last_number": lambda text: last_number(text) or "",
    "first_word": _first_word,
}
"""How the answer is found in a completion, by name. Each gives ``""`` where there is none."""


def extract(text: str, how: str) -> str:
    """The answer in a completion. Never raises on text, whatever it is."""
    return EXTRACTORS[how](text)


def present(answer: str, how: str) -> str:
    """The gold answer written so that :func:`extract` finds it again: as a few-shot turn must show it."""
    return f"{_OPEN}{answer}{_CLOSE}" if how == "tag" else answer
