"""Scores of reasoning-gym families that can be trusted.

About a third of the graders give part credit to a lucky substring, some give full credit to plain nonsense, and some
*evaluate* the model's text as Python or symbolic mathematics. So strict scoring demands 0.999 of the family's own
grader; a grader that hands full credit to a text that is plainly wrong is replaced by a match with the reference; and
the evaluating ones run in a child process, on texts that pass a filter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache

from twoclock.tasks.rg_source import Entry, Source
from twoclock.tasks.text import is_number, normalised, numbers_equal

__all__ = [
    "EVALUATES",
    "EVALUATES_MATHS",
    "EVALUATES_PYTHON",
    "FULL",
    "exact_score",
    "find_leniency",
    "own_score",
    "refusal",
    "score_batch",
]

FULL = 0.999
"""What counts as right under strict scoring."""

EVALUATES_PYTHON = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"})
"""Families whose graders call ``eval`` on the text; their answers are lists of literals at most."""

EVALUATES_MATHS = frozenset(
    {"simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"}
)
"""Families whose graders hand the text to a symbolic parser, which evaluates it too."""

EVALUATES = EVALUATES_PYTHON | EVALUATES_MATHS

_FUNCTIONS = "sin cos tan cot sec csc asin acos atan sinh cosh tanh asinh acosh atanh exp log ln sqrt Abs Rational"
_CALLABLES = frozenset(_FUNCTIONS.split())
_NAME_BEFORE_CALL = re.compile(r"([A-Za-z_]\w*)\s*\(")
_POWER_TOWER = re.compile(
    r"(\*\*|\^)\s*\(?[\w.\s]*\)?\s*(\*\*|\^)"  # 9**9**9
    r"|(\*\*|\^)\s*\([^()]*(\*\*|\^|\()"  # 9**(2*9**9)
    r"|(\*\*|\^)\s*\(?\s*-?\s*\d{4,}"  # 9**99999
)
MAX_EVALUATED = 2000


def refusal(family: str, text: str) -> str | None:
    """Why a text is not handed to an evaluating grader; ``None`` where it may be, and for all other families."""
    if family in EVALUATES_PYTHON:
        if re.search(r"[(){}*:=;@\\]|__|\b(lambda|for|import)\b", text):
            return "the text holds code, and this family's grader would run it"
    elif family in EVALUATES_MATHS:
        names = _NAME_BEFORE_CALL.findall(text)
        if re.search(r"__|[\[\]{}:;@\\!\"'#]|\.\s*[A-Za-z_]|\b(lambda|for|if|import)\b", text):
            return "the text holds code, and this family's grader would run it"
        if any(len(name) > 1 and name not in _CALLABLES for name in names):
            return "the text calls functions that are no mathematics, and this family's grader would run them"
        if _POWER_TOWER.search(text) or re.search(r"\d{60,}", text):
            return "the text holds numbers too large to evaluate"
    else:
        return None
    return f"the text is longer than {MAX_EVALUATED} characters" if len(text) > MAX_EVALUATED else None


def find_leniency(source: Source, entries: Sequence[Entry]) -> str | None:
    """A plainly wrong text that the family's grader gives full credit to; ``None`` where none was found.

    Tried on each entry: nonsense, NaN, the gold answer doubled or with letters around it, a number far off. Then the
    gold answers of the other entries: where problems have many solutions one may fit by chance, so half must.
    """
    for entry in entries:
        for text in _wrong_texts(entry["answer"]):
            if _gets_full_credit(source, text, entry):
                return text
    pairs = [(other["answer"], entry) for entry in entries for other in entries if _differ(other, entry)]
    passing = [text for text, entry in pairs if _gets_full_credit(source, text, entry)]
    return passing[0] if passing and 2 * len(passing) >= len(pairs) else None


def _differ(a: Entry, b: Entry) -> bool:
    return bool(a["answer"] and b["answer"]) and normalised(a["answer"]) != normalised(b["answer"])


def _gets_full_credit(source: Source, text: str, entry: Entry) -> bool:
    gold = entry["answer"]
    if (gold and normalised(text) == normalised(gold)) or refusal(source.family, text):
        return False
    try:
        return source.score(text, entry) >= FULL
    except Exception:  # raising on it is not giving credit for it
        return False


def _wrong_texts(gold: str | None) -> list[str]:
    wrong = ["zq zq", "nan", "-"]
    if not gold:
        return wrong
    wrong += [f"{gold}zq", f"zq{gold}", f"{gold} {gold}", f"{gold} zq"]
    # One digit more may be within a fair tolerance of a decimal number, but never of another answer.
    return [*wrong, *_far_off(gold), *([] if "." in gold else [f"{gold}7"])]


def _far_off(gold: str) -> list[str]:
    try:
        value = float(gold)
    except ValueError:
        return []
    return [text for text in ("0", "1000003") if abs(float(text) - value) > 0.1]


def exact_score(answer: str, entry: Entry) -> float:
    """Full credit for the reference, up to case and whitespace, or for the same number written another way."""
    gold = entry["answer"]
    if gold is None:
        return 0.0
    if normalised(answer) == normalised(gold):
        return 1.0
    both_numbers = is_number(answer.strip()) and is_number(gold.strip())
    return float(both_numbers and numbers_equal(answer.strip(), gold.strip()))


def own_score(source: Source, answer: str, entry: Entry) -> float:
    """The family's own score, brought into [0, 1]; the gold answer as it stands always has 1."""
    if entry["answer"] is not None and answer.strip() == entry["answer"].strip():
        return 1.0
    score = source.score(answer, entry)
    return score if math.isnan(score) else min(1.0, max(0.0, score))


def score_batch(completions: Sequence[str], entry: Sequence[Entry], source: Sequence[tuple[str, str]]) -> list[float]:
    """The verifier that a child process runs for the evaluating graders: ``source`` is (family, config as JSON)."""
    return [
        own_score(_source(*origin), text, one) for text, one, origin in zip(completions, entry, source, strict=True)
    ]


@lru_cache(maxsize=8)
def _source(family: str, config: str) -> Source:
    return Source(family, json.loads(config))
