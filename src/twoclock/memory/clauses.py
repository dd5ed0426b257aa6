"""Whether two lessons in words say the opposite of each other: rules over clauses, for English.

A clause is its content words, its numbers, and how often it is negated. Two clauses about the same contradict when
they differ by an odd number of turns (a negation, or a word in place of its opposite), or in one number. The rules see
the form alone: what contradicts by its meaning ("be brief" and "explain every step") they do not see.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

__all__ = ["Clause", "clauses_of", "contradiction", "numbers_of", "opposite"]

ALIKE = 0.6
"""Of the content words of two clauses so many are shared (Jaccard) where they speak of the same."""
ALIKE_NUMBERS = 0.75
"""The same where a number is all that differs."""

_ENDS = re.compile(
    r"[.;:!?](?=\s|$)|\n|,\s+(?:but|and then|then|so|or else|otherwise)\b|\b(?:because|since|although|so that)\b"
)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+(?:[.,]\d+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


NEGATIONS = _listed(
    "not no never none nothing neither nor cannot without avoid avoids avoided avoiding stop stops refrain skip skips "
    "omit omits dont doesnt isnt wont cant shouldnt mustnt arent wasnt didnt forbidden wrong incorrect false fails "
    "unless except"
)
FILLERS = _listed(
    "a an the this that these those it its is are was were be been being am do does did done to of in on at for with "
    "by from as and or if when whenever while then than so very always every each all any must should shall may might "
    "can could will would need needs have has had you your i my me we our they them their he she there here just only "
    "please make sure ensure remember try really also still too again often usually generally ever "
    "right correct true works work"
)
OPPOSITES = _listed(
    "before/after first/last increase/decrease open/close open/shut up/down ascending/descending maximum/minimum "
    "max/min largest/smallest highest/lowest higher/lower more/less more/fewer odd/even add/subtract add/remove "
    "multiply/divide accept/reject allow/forbid allow/deny start/end begin/end push/pull take/leave keep/drop "
    "keep/discard keep/delete include/exclude enable/disable above/below over/under inside/outside north/south "
    "east/west early/late fast/slow quickly/slowly long/short brief/verbose positive/negative upper/lower "
    "uppercase/lowercase on/off strict/lenient safe/dangerous round/truncate left/right hot/cold buy/sell "
    "horizontal/vertical row/column local/global public/private forward/backward"
)
"""Pairs of words, ``one/other``."""
PREFIXES = ("un", "in", "im", "ir", "dis", "non")


@dataclass(frozen=True)
class Clause:
    """One statement: its content words (stems), its numbers in order, and whether it is negated."""

    text: str
    words: frozenset[str]
    numbers: tuple[str, ...]
    negated: bool


def numbers_of(text: str) -> tuple[str, ...]:
    """The numbers of a text in their order, ``4.0`` as ``4`` and ``1,000`` as ``1000``."""
    return tuple(_plain(number) for number in _NUMBER.findall(text))


def _plain(number: str) -> str:
    number = re.sub(r",(?=\d{3}(?:\D|$))", "", number).replace(",", ".")
    if number.count(".") > 1:
        return number
    whole, _, part = number.partition(".")
    part = part.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{part}" if part else "")


@lru_cache(maxsize=8192)
def clauses_of(text: str) -> tuple[Clause, ...]:
    """The clauses of a text that have any content."""
    found = (_clause(part.strip()) for part in _ENDS.split(text.replace("’", "'")) if part and part.strip())
    return tuple(clause for clause in found if clause.words or clause.numbers)


def _clause(text: str) -> Clause:
    tokens = _WORD.findall(text.lower())
    words, negations = set(), 0
    for token in tokens:
        bare = token.replace("'", "")
        if token.endswith("n't") or bare in NEGATIONS:
            negations += 1
        elif not token[0].isdigit() and bare not in FILLERS:
            words.add(_stem(token.partition("'")[0]))
    # "right" and "on" are fillers and also one side of an opposite: they count where their other side could.
    words |= {_stem(token) for token in tokens if token in ("right", "on") and _is_side(token, tokens)}
    return Clause(text, frozenset(words), numbers_of(text), negations % 2 == 1)


def _is_side(token: str, tokens: list[str]) -> bool:
    """Whether "right" is a direction, by the word before it, or "on" a switch's, by the verb."""
    if token == "on":
        return not {"turn", "turns", "switch", "switches", "leave", "keep"}.isdisjoint(tokens)
    return any(a in ("turn", "go", "the", "move", "look", "keep") and b == token for a, b in pairwise(tokens))


def _stem(word: str) -> str:
    """Enough to bring "checks", "checked" and "checking" together; no more is needed for comparing."""
    for ending in ("ing", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    word = word.removesuffix("e") if len(word) > 3 else word
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


_PAIRS = frozenset(
    pair
    for one, _, other in (entry.partition("/") for entry in OPPOSITES)
    for pair in ((_stem(one), _stem(other)), (_stem(other), _stem(one)))
)


def opposite(one: str, other: str) -> bool:
    """Whether two stems are opposites: listed, or one is the other with un-, in-, dis-, non- before it."""
    short, long = sorted((one, other), key=len)
    return (one, other) in _PAIRS or (len(short) >= 4 and any(long == prefix + short for prefix in PREFIXES))


def contradiction(one: Clause, other: Clause, *, same_numbers: bool = True) -> str | None:
    """Why two clauses contradict, or None. ``same_numbers`` says that they speak of one situation, so that a number
    that differs is a contradiction."""
    left, right = set(one.words - other.words), set(other.words - one.words)
    turned: list[tuple[str, str]] = []
    for a in sorted(left):
        for b in sorted(right):
            if opposite(a, b):
                turned.append((a, b))
                left.discard(a)
                right.discard(b)
                break
    shared = len(one.words & other.words)
    together = shared + len(turned)
    alike = together / (together + len(left) + len(right)) if together + len(left) + len(right) else 0.0
    if (not shared and not (turned and one.numbers)) or (together < 2 and (left or right)):
        return None
    # One more word in place of another, beside an opposite, is another subject: the left way to the coin and the right
    # way to the kitchen.
    elsewhere = bool(left and right) and (bool(turned) or alike < ALIKE_NUMBERS)
    odd = (len(turned) + (one.negated != other.negated)) % 2
    if alike >= ALIKE and one.numbers == other.numbers and odd and not elsewhere:
        what = f"'{turned[0][0]}' against '{turned[0][1]}'" if turned else "one says it, the other its negation"
        return f"{what}: “{_short(one.text)}” and “{_short(other.text)}”"
    differing = [pair for pair in zip(one.numbers, other.numbers, strict=False) if pair[0] != pair[1]]
    if (
        same_numbers
        and alike >= ALIKE_NUMBERS
        and not turned
        and one.negated == other.negated
        and len(one.numbers) == len(other.numbers)
        and len(differing) == 1
    ):
        return f"{differing[0][0]} against {differing[0][1]}: “{_short(one.text)}” and “{_short(other.text)}”"
    return None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:79] + "…"
