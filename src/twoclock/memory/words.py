"""Text to the words that it is found by: one splitting for entries and for queries, so that they always agree.

A word is a run of letters, digits and underscores, case-folded, without the accents of European scripts and without
compatibility forms (NFKC). Names in code are found whole and in parts: ``getUserName`` and ``get_user_name`` are both
also ``get``, ``user`` and ``name``. Chinese, Japanese, Korean and Thai text, where spaces do not part the words that
one would look for, is split into pairs of neighbouring characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

__all__ = ["KEY_WEIGHT", "counted", "words_of"]

KEY_WEIGHT = 3
"""A word of an entry's key counts as much as this many of its text: it is found by its key first of all."""

LONGEST_WORD = 64
"""Of a longer run (a pasted blob) only so many characters are kept."""

# Vowel signs belong to a word, though no letter: those of Hebrew, Arabic and the scripts of South Asia.
_RUN = re.compile(r"[\w\u0591-\u05c7\u064b-\u0670\u0900-\u0963\u0966-\u0e3e\u0e40-\u0e7f]+")
_ACCENTS = re.compile(r"[\u0300-\u036f]+")
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+")
_PLAIN = re.compile(r"[a-z]+|[0-9]+")


def words_of(text: str) -> list[str]:
    """The words of a text in their order, repeated as they are."""
    found: list[str] = []
    for run in _RUN.findall(text if text.isascii() else _folded(text)):
        word = run.casefold()
        if _PLAIN.fullmatch(run):
            found.append(word[:LONGEST_WORD])
        else:
            found.extend(part[:LONGEST_WORD] for part in _split(run, word))
    return found


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text)))


def _split(run: str, word: str) -> list[str]:
    """A run that may be a name in code, or hold text without spaces."""
    unspaced = _UNSPACED.findall(word)
    if unspaced:
        rest = _UNSPACED.sub(" ", word).split()
        pairs = [span[i : i + 2] for span in unspaced for i in range(max(1, len(span) - 1))]
        return [*rest, *pairs]
    parts = [part.lower() for part in _PARTS.findall(run)] if run.isascii() else []
    return [word, *parts] if len(parts) > 1 else [word]


def counted(key: str, text: str) -> Mapping[str, int]:
    """How often each word stands in an entry, those of its key :data:`KEY_WEIGHT` times over."""
    counts = Counter(words_of(text))
    for word, count in Counter(words_of(key)).items():
        counts[word] += KEY_WEIGHT * count
    return counts
