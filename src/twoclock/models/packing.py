"""Packing prompts and their completions into one row, so that what they share is computed once.

The row is a tree: a root that all prompts begin with, a stem for the rest of each prompt, a leaf for each completion. A
token sees the tokens before it on its path to the root, at the positions it would have in a sequence of its own, so its
hidden state, and the gradient through it, are those of the plain computation.

    root ── stem 0 ── leaf 0.0
         │         └─ leaf 0.1
         └─ stem 1 ── leaf 1.0 ...

Several trees may lie in one row (:func:`side_by_side`): they do not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from twoclock.nn.tree_attention import Rectangle

__all__ = ["Packed", "common_prefix", "pack", "side_by_side"]


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) of the row, behind those of its ancestors."""

    start: int
    stop: int
    ancestors: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """A packed row of S tokens, and where to read off what each completion token was predicted from."""

    tokens: torch.Tensor
    """[S] int64."""
    positions: torch.Tensor
    """[S] int64: the place of each token in its own sequence."""
    predicted_from: tuple[tuple[tuple[int, ...], ...], ...]
    """For prompt i, completion j: the row index whose logits predict each completion token."""
    segments: tuple[Segment, ...] = field(repr=False)

    @cached_property
    def mask(self) -> torch.Tensor:
        """[S, S] bool: True from a token to what it may see. For attention that cannot do with :attr:`rectangles`."""
        size = len(self.tokens)
        mask = torch.zeros(size, size, dtype=torch.bool)
        for s in self.segments:
            for parent in s.ancestors:
                mask[s.start : s.stop, self.segments[parent].start : self.segments[parent].stop] = True
            mask[s.start : s.stop, s.start : s.stop] = torch.ones(s.stop - s.start, s.stop - s.start).tril().bool()
        return mask

    @cached_property
    def rectangles(self) -> tuple[Rectangle, ...]:
        """What sees what, without the mask: each segment looks at itself causally, and all that stand behind an
        ancestor look at the whole of it together."""
        found: list[Rectangle] = []
        own = [range(s.start, s.stop) for s in self.segments if s.stop > s.start]
        for batch in _alike([(r, r) for r in own]):
            index = _index([r for r, _ in batch])
            found.append(Rectangle(index, index, causal=True))
        behind: dict[int, list[int]] = {}
        for s in self.segments:
            for parent in s.ancestors:
                behind.setdefault(parent, []).extend(range(s.start, s.stop))
        # One depth at a time: a rectangle may have a token as its query once only.
        for depth in sorted({len(self.segments[parent].ancestors) for parent in behind}):
            pairs = [
                (queries, range(self.segments[p].start, self.segments[p].stop))
                for p, queries in behind.items()
                if len(self.segments[p].ancestors) == depth
            ]
            for batch in _alike([(q, k) for q, k in pairs if len(q) and len(k)]):
                found.append(Rectangle(_index([q for q, _ in batch]), _index([k for _, k in batch]), causal=False))
        return tuple(found)


def _alike(pairs: list[tuple[Sequence[int], Sequence[int]]]) -> list[list[tuple[Sequence[int], Sequence[int]]]]:
    """Batches of (queries, keys) of like size, so that at most about half of a batch is padding."""
    batches: list[list[tuple[Sequence[int], Sequence[int]]]] = []
    for queries, keys in sorted(pairs, key=lambda p: (-len(p[1]), -len(p[0]))):
        if batches:
            first = batches[-1][0]
            most = max(len(q) for q, _ in batches[-1])
            if 2 * len(keys) > len(first[1]) and most < 2 * len(queries) and len(queries) < 2 * most:
                batches[-1].append((queries, keys))
                continue
        batches.append([(queries, keys)])
    return batches


def _index(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """[B, T] int64, -1 behind what is shorter."""
    longest = max(len(r) for r in rows)
    return torch.tensor([[*r, *([-1] * (longest - len(r)))] for r in rows])


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
    segments: list[Segment] = [Segment(0, root, ())]
    predicted: list[tuple[tuple[int, ...], ...]] = []

    def add(piece: Sequence[int], at: int, ancestors: tuple[int, ...]) -> int:
        start = len(tokens)
        tokens.extend(piece)
        positions.extend(range(at, at + len(piece)))
        segments.append(Segment(start, len(tokens), ancestors))
        return len(segments) - 1

    for prompt, answers in zip(prompts, completions, strict=True):
        stem = add(prompt[root:], root, (0,))
        stem_end = segments[stem].stop - 1
        rows = []
        for answer in answers:
            start = len(tokens)
            # The last token of a completion predicts nothing that carries loss, so it need not be computed.
            if len(answer) > 1:
                add(answer[:-1], len(prompt), (0, stem))
            rows.append((stem_end, *range(start, start + len(answer) - 1)) if answer else ())
        predicted.append(tuple(rows))
    return Packed(torch.tensor(tokens), torch.tensor(positions), tuple(predicted), tuple(segments))


def side_by_side(trees: Sequence[Packed]) -> tuple[Packed, list[slice]]:
    """One row of several trees that do not see each other, and the tokens that belong to each."""
    segments: list[Segment] = []
    predicted: list[tuple[tuple[int, ...], ...]] = []
    places: list[slice] = []
    start = 0
    for tree in trees:
        first = len(segments)
        segments += [
            Segment(s.start + start, s.stop + start, tuple(a + first for a in s.ancestors)) for s in tree.segments
        ]
        predicted += [tuple(tuple(i + start for i in row) for row in rows) for rows in tree.predicted_from]
        places.append(slice(start, start + len(tree.tokens)))
        start += len(tree.tokens)
    tokens, positions = torch.cat([t.tokens for t in trees]), torch.cat([t.positions for t in trees])
    return Packed(tokens, positions, tuple(predicted), tuple(segments)), places
