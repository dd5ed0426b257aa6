"""The shape of right answers: what stands around the varying part, and what kind of thing that part is. Pure.

From a few gold answers such as ``=> 12;`` and ``=> 7;`` it reads the frame (``=> `` before, ``;`` after) and the kind
(a number). Whole tokens alone count as a frame: ``120`` and ``125`` share two digits and no frame.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from twoclock.fast.prompts.guards import shared_limit

__all__ = ["Shape", "common_answers", "shape_of"]

# Numbers whole, with a sign only where no word or number ends before it: "5-3" has no negative number in it.
_TOKEN = re.compile(r"(?:(?<![\w.)])[-+])?[0-9]+(?:[.,][0-9]+)*(?!\w)|\w+|\s+|[^\w\s]")
_NUMBER = re.compile(r"[-+]?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
SLOT = "..."
MAX_LABELS = 6
"""Up to so many different answers are a set of labels to choose from."""
FORM_CHARS = 60
"""A longer frame is content, not form."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What right answers have in common."""

    form: str
    """An answer with ``...`` in the place of what varies, such as ``[[...]]``; empty where there is no frame."""
    prefix: str
    suffix: str
    """What stands before and after what varies; empty where an answer has several parts that vary."""
    noun: str
    """What varies, in words: ``one number``, ``2 words in capital letters``, ``numbers separated by commas``."""
    answers: tuple[str, ...]
    """The different answers, the more frequent first, then in order of appearance."""
    labels: tuple[str, ...] = ()
    """All answers there are, where they are few and each comes again and again; otherwise empty."""


def shape_of(answers: Sequence[str]) -> Shape | None:
    """The shape of these answers; None where there is none to read: fewer than two different ones."""
    given = [text for answer in answers if (text := answer.strip())]
    counts = Counter(given)
    if len(counts) < 2:
        return None
    distinct = tuple(text for text, _ in counts.most_common())
    few = len(distinct) <= MAX_LABELS and min(counts.values()) >= 2
    prefix, suffix = _frame(distinct)
    inner = [text[len(prefix) : len(text) - len(suffix)] for text in distinct]
    form = f"{prefix}{SLOT}{suffix}" if prefix or suffix else ""
    if any("\n" in part for part in inner) and (lines := _line_frames(distinct)):
        form, prefix, suffix = lines, "", ""
    if len(form) > FORM_CHARS:
        form = prefix = suffix = ""
    return Shape(
        form=form,
        prefix=prefix,
        suffix=suffix,
        noun=_noun(inner),
        answers=distinct,
        labels=tuple(sorted(distinct)) if few else (),
    )


def common_answers(answers: Sequence[str]) -> frozenset[str]:
    """Answers that so many items share that they are the task's vocabulary, not what one item asks for."""
    counts = Counter(answer.strip() for answer in answers)
    return frozenset(answer for answer, count in counts.items() if count > shared_limit(len(answers)))


def _frame(texts: Sequence[str]) -> tuple[str, str]:
    """The tokens that all texts begin and end with, as text; something is left in every text."""
    rows = [_TOKEN.findall(text) for text in texts]
    room = min(len(row) for row in rows) - 1
    before = _common(rows)[:room]
    after = _common([row[::-1] for row in rows])[: room - len(before)]
    return "".join(before), "".join(reversed(after))


def _common(rows: Sequence[Sequence[str]]) -> list[str]:
    """What all rows begin with."""
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))]


def _line_frames(texts: Sequence[str]) -> str:
    """The frames line by line, where all texts have equally many lines and one has a frame; otherwise nothing."""
    columns = [text.splitlines() for text in texts]
    if len({len(lines) for lines in columns}) != 1:
        return ""
    forms = []
    for parts in zip(*columns, strict=True):
        distinct = list(dict.fromkeys(parts))
        prefix, suffix = _frame(distinct) if len(distinct) > 1 and all(distinct) else ("", "")
        forms.append(distinct[0] if len(distinct) == 1 else f"{prefix}{SLOT}{suffix}")
    return "\n".join(forms) if any(form != SLOT for form in forms) else ""


def _noun(values: Sequence[str]) -> str:
    parts = [value.strip() for value in values]
    if any("\n" in part for part in parts):
        counts = {len(part.splitlines()) for part in parts}
        return f"{counts.pop()} lines" if len(counts) == 1 else "several lines"
    if all(_NUMBER.fullmatch(part) for part in parts):
        return "one number"
    for name, separator in (("commas", r"\s*,\s*"), ("spaces", r"\s+")):
        split = [re.split(separator, part) for part in parts]
        if any(len(row) > 1 for row in split):
            if all(_NUMBER.fullmatch(value) for row in split for value in row):
                return f"numbers separated by {name}"
            if name == "commas" and sum(len(row) > 1 for row in split) * 2 >= len(split):
                return "a list separated by commas"
    return _words(parts)


def _words(parts: Sequence[str]) -> str:
    rows = [part.split() for part in parts]
    case = " in capital letters" if all(part == part.upper() != part.lower() for part in parts) else ""
    if not all(_WORD.fullmatch(word) for row in rows for word in row):
        return "the answer"
    counts = {len(row) for row in rows}
    if counts == {1}:
        return ("one letter" if all(len(part) == 1 for part in parts) else "one word") + case
    return (f"{counts.pop()} words" if len(counts) == 1 else f"1 to {max(counts)} words") + case
