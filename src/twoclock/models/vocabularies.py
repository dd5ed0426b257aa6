"""Two tokenizers side by side: whether their ids mean the same, where they differ, and what corresponds where they do.

A shift subtracts logits token by token, so the models must mean the same token by the same id. Where they do not, a
:class:`VocabularyMap` matches tokens by what they spell, in bytes; special tokens by their name. A token of the base
that the side has under no single id is *uncovered*: it is not shifted, and once it is drawn the side reads it in the
pieces that it knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from twoclock.errors import UnsupportedError

__all__ = ["VocabularyMap", "difference_of", "map_vocabulary", "same_vocabulary", "token_spellings"]

SHOWN = 3
"""Differences that a message names."""


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """How a side's tokens answer the base's. ``V`` rows of the base's head."""

    index: torch.Tensor = field(repr=False)
    """[V] int64: the side's id of each of the base's tokens, -1 where it has none."""
    is_same: bool
    """Whether every token of the base has its own id in the side."""
    rows: int
    """Of the side's head: its ids are below."""
    pieces: Mapping[int, tuple[int, ...]] = field(repr=False, default_factory=dict)
    """For uncovered tokens, by the base's id, the side's ids that spell the same; those that cannot be spelled are
    not there."""

    @property
    def covered(self) -> torch.Tensor:
        """[V] bool."""
        return self.index >= 0

    def read(self, token: int) -> tuple[int, ...]:
        """What the side reads where the base reads ``token``; nothing where it cannot be spelled."""
        if self.is_same:
            return (token,) if token < self.rows else ()
        own = int(self.index[token])
        return (own,) if own >= 0 else self.pieces.get(token, ())


def token_spellings(tokenizer: Any) -> dict[int, bytes | str]:
    """What each id spells: bytes for ordinary tokens, the name for special ones."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    style = _style(tokenizer)
    return {i: name if i in special else _spelled(name, style) for name, i in tokenizer.get_vocab().items()}


def difference_of(base: Any, side: Any) -> str | None:
    """Where two tokenizers differ, in words; None where every token of the base has the same id in the side."""
    mine, theirs = base.get_vocab(), side.get_vocab()
    if mine.items() <= theirs.items():
        return None
    by_id = {i: name for name, i in theirs.items()}
    wrong = sorted((i, name) for name, i in mine.items() if by_id.get(i) != name)
    told = [
        f"{i} is {name!r} in the one and {by_id[i]!r} in the other" if i in by_id else f"{i} ({name!r}) is missing"
        for i, name in wrong[:SHOWN]
    ]
    shared = len(mine.keys() & theirs.keys())
    return (
        f"{len(mine):,} tokens against {len(theirs):,}, {shared:,} of them in both; {len(wrong):,} ids differ: "
        f"{'; '.join(told)}{'; …' if len(wrong) > SHOWN else ''}"
    )


def same_vocabulary(base: Any, side: Any, rows: int, side_rows: int, names: tuple[str, str]) -> VocabularyMap:
    """The map of two models whose ids agree; the side may know more. Raises UnsupportedError that says where they
    differ. ``rows`` are those of the models' heads."""
    found = difference_of(base, side)
    if found is not None:
        raise UnsupportedError(
            f"the vocabularies of {names[0]} and {names[1]} differ ({found}); their logits cannot be subtracted. "
            "Give a model of the same family, or set mapped = true to match tokens by what they spell"
        )
    index = torch.full((rows,), -1, dtype=torch.long)
    known = torch.tensor([i for i in base.get_vocab().values() if i < min(rows, side_rows)], dtype=torch.long)
    index[known] = known
    if missing := sum(i >= side_rows for i in base.get_vocab().values()):
        raise UnsupportedError(
            f"the head of {names[1]} has {side_rows:,} rows, so {missing:,} tokens of {names[0]} have no logit there; "
            "set mapped = true to leave them unshifted"
        )
    return VocabularyMap(index, True, side_rows)


def map_vocabulary(base: Any, side: Any, rows: int, side_rows: int, names: tuple[str, str]) -> VocabularyMap:
    """The map of two models by what their tokens spell. Raises UnsupportedError where they share fewer than half of the
    base's tokens: what is left would say little of the base's next token."""
    mine = {i: spelled for i, spelled in token_spellings(base).items() if i < rows}
    theirs: dict[bytes | str, int] = {}
    for i, spelled in sorted(token_spellings(side).items()):
        if i < side_rows:
            theirs.setdefault(spelled, i)
    index = torch.full((rows,), -1, dtype=torch.long)
    for i, spelled in mine.items():
        index[i] = theirs.get(spelled, -1)
    shared = int((index >= 0).sum())
    if 2 * shared < len(mine):
        raise UnsupportedError(
            f"{names[1]} knows {shared:,} of the {len(mine):,} tokens of {names[0]}: too few to shift by. Give a model "
            "whose tokenizer shares most tokens"
        )
    longest = max((len(s) for s in theirs if isinstance(s, bytes)), default=0)
    pieces = {}
    for i, spelled in mine.items():
        if index[i] < 0 and isinstance(spelled, bytes) and (ids := _in_pieces(spelled, theirs, longest)):
            pieces[i] = ids
    return VocabularyMap(index, shared == len(mine) and all(int(index[i]) == i for i in mine), side_rows, pieces)


def _in_pieces(text: bytes, known: Mapping[bytes | str, int], longest: int) -> tuple[int, ...]:
    """The longest known piece first, then on; empty where some byte has no token."""
    ids: list[int] = []
    at = 0
    while at < len(text):
        for end in range(min(len(text), at + longest), at, -1):
            if text[at:end] in known:
                ids.append(known[text[at:end]])
                at = end
                break
        else:
            return ()
    return tuple(ids)


# ----------------------------------------------------------------------------------------------- how tokens are spelled


def _style(tokenizer: Any) -> str:
    """``bytes``: GPT-2's alphabet, one letter a byte; ``words``: sentencepiece's mark for a space, and <0x0A> bytes."""
    vocab = tokenizer.get_vocab()
    marked = sum(name.startswith("▁") for name in vocab)
    byte_like = sum(name.startswith("Ġ") for name in vocab)
    return "words" if marked > byte_like else "bytes"


def _spelled(name: str, style: str) -> bytes | str:
    if style == "words":
        if byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", name):
            return bytes.fromhex(byte[1])
        return name.replace("▁", " ").encode("utf-8")
    letters = _byte_letters()
    if all(letter in letters for letter in name):
        return bytes(letters[letter] for letter in name)
    return name.encode("utf-8")  # an added token in plain text


@cache
def _byte_letters() -> dict[str, int]:
    """GPT-2's alphabet: the printable bytes are themselves, the others follow from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return letters | {chr(256 + n): byte for n, byte in enumerate(others)}
