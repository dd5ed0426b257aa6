"""Arbitrary answer formats: what a fast clock can learn from one example, apart from the skill that answers ask for.

A convention wraps the bare answer (``=> 7;``) or respells it (``SEVEN``). Prompts never mention it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from twoclock.errors import ConfigError, unknown_name
from twoclock.tasks.text import last_number, normalised

__all__ = ["CONVENTIONS", "Convention", "convention"]

SLOT = "{answer}"
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_INTEGER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Convention:
    """A pattern with one ``{answer}`` in it, and how the answer is spelled there."""

    pattern: str = SLOT
    spelling: Literal["as is", "upper", "words"] = "as is"
    """``words`` spells numbers digit by digit ("minus one two"); ``upper`` is for words."""

    def __post_init__(self) -> None:
        if self.pattern.count(SLOT) != 1 or self.pattern != self.pattern.strip():
            raise ConfigError(
                f"a convention's pattern holds {SLOT} once and neither starts nor ends with a space; "
                f"got {self.pattern!r}, expected something like '=> {SLOT};'"
            )

    def spell(self, answer: str) -> str:
        """The bare answer as this convention spells it."""
        if self.spelling == "upper":
            return answer.upper()
        if self.spelling == "words" and _INTEGER.fullmatch(answer):
            return " ".join("minus" if c == "-" else _DIGITS[int(c)] for c in answer)
        return answer

    def wrap(self, answer: str) -> str:
        """The whole text that a right completion consists of."""
        return self.pattern.replace(SLOT, self.spell(answer))

    def inner(self, text: str, answer: str) -> str | None:
        """What stands in the slot, or ``None`` where the text does not have the form that ``wrap(answer)`` has: the
        frame around it, and inside a number where a number is asked for, as many words where words are."""
        prefix, suffix = self.pattern.split(SLOT)
        text = text.strip()
        if len(text) <= len(prefix) + len(suffix) or not (text.startswith(prefix) and text.endswith(suffix)):
            return None
        inner = text[len(prefix) : len(text) - len(suffix)]
        return inner if self._has_shape(inner, answer) else None

    def _has_shape(self, inner: str, answer: str) -> bool:
        if not _INTEGER.fullmatch(answer):
            cased = self.spelling != "upper" or inner == inner.upper()
            return cased and inner == inner.strip() and len(inner.split()) == len(answer.split())
        if self.spelling == "words":
            return inner == " ".join(inner.split()) and all(w in (*_DIGITS, "minus") for w in inner.split())
        return _INTEGER.fullmatch(inner) is not None

    def mentions(self, text: str, answer: str) -> bool:
        """Whether the text ends on the right value, whatever its form: the last number, or the last word."""
        if _INTEGER.fullmatch(answer) and last_number(text) == answer:
            return True
        words = re.findall(r"[\w-]+", normalised(text))
        spelled = normalised(self.spell(answer)).split()
        return bool(spelled) and words[-len(spelled) :] == spelled


CONVENTIONS: Mapping[str, Convention] = {
    "plain": Convention(),
    "arrow": Convention(pattern="=> {answer};"),
    "brackets": Convention(pattern="[[{answer}]]"),
    "hash": Convention(pattern="#{answer}#"),
    "label": Convention(pattern="ANSWER: {answer}"),
    "tag": Convention(pattern="<answer>{answer}</answer>"),
    "stars": Convention(pattern="**{answer}**"),
    "upper": Convention(spelling="upper"),
    "spelled": Convention(spelling="words"),
    "spelled_arrow": Convention(pattern="=> {answer};", spelling="words"),
}
"""By name. A config may also give a pattern of its own, such as ``"<<{answer}>>"``."""


def convention(name: str) -> Convention:
    """A convention by name, or from a pattern that holds ``{answer}``. Raises ConfigError."""
    if name in CONVENTIONS:
        return CONVENTIONS[name]
    if SLOT in name:
        return Convention(pattern=name)
    raise ConfigError(unknown_name("convention", name, CONVENTIONS) + f"; or give a pattern such as '<<{SLOT}>>'")
