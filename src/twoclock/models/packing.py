"""Packing prompts and their completions into one row, so that what they share is computed once.

The row is a tree: a root that all prompts begin with, a stem for the rest of each prompt, a leaf for each completion. A
token sees the tokens before it on its path to the root, at the positions it would have in a sequence of its own, so its
hidden state, and the gradient through it, are those of the plain computation.

    root ── stem 0 ── leaf 0.0
         │         └─ leaf 0.1
         └─ stem 1 ── leaf 1.0 ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Packed", "common_prefix", "pack"]


@dataclass(frozen=True)
class Packed:
    """A packed row of S tokens, and where to read off what each completion token was predicted from."""

    tokens: torch.Tensor
    """[S] int64."""
    positions: torch.Tensor
    """[S] int64: the place of each token in its own sequence."""
    mask: torch.Tensor
    """[S, S] bool: True from a token to what it may see."""
    predicted_from: tuple[tuple[tuple[int, ...], ...], ...]
    """For prompt i, completion j: the row index whose logits predict each completion token."""


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """The number of leading tokens that all sequences share."""
    first = sequences[0]
    limit = min(len(s) for s in sequences)
    for index in range(limit):
        if any(s[index] != first[index] for s in sequences):
            return index
    return limit


def pack(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> Packed:
    """The tree of ``prompts`` (each at least one token) and, for each, its ``completions`` (which may be empty)."""
    if any(not p for p in prompts):
        raise ValueError("a prompt has no tokens; a completion needs at least one token to be predicted from")
    root = common_prefix(prompts)
    # Each stem keeps a token, so that a prompt which is a prefix of another still ends in a stem of its own.
    root = min(root, min(len(p) for p in prompts) - 1)
    tokens: list[int] = list(prompts[0][:root])
    positions: list[int] = list(range(root))
    segments: list[tuple[int, int, list[int]]] = [(0, root, [])]
    predicted: list[tuple[tuple[int, ...], ...]] = []

    def add(piece: Sequence[int], at: int, ancestors: list[int]) -> int:
        start = len(tokens)
        tokens.extend(piece)
        positions.extend(range(at, at + len(piece)))
        segments.append((start, len(tokens), ancestors))
        return len(segments) - 1

    for prompt, answers in zip(prompts, completions, strict=True):
        stem = add(prompt[root:], root, [0])
        stem_end = segments[stem][1] - 1
        rows = []
        for answer in answers:
            start = len(tokens)
            # The last token of a completion predicts nothing that carries loss, so it need not be computed.
            if len(answer) > 1:
                add(answer[:-1], len(prompt), [0, stem])
            rows.append((stem_end, *range(start, start + len(answer) - 1)) if answer else ())
        predicted.append(tuple(rows))

    size = len(tokens)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for start, stop, ancestors in segments:
        for parent in ancestors:
            low, high, _ = segments[parent]
            mask[start:stop, low:high] = True
        mask[start:stop, start:stop] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
    return Packed(torch.tensor(tokens), torch.tensor(positions), mask, tuple(predicted))
