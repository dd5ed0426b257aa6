"""How a piece of text falls into chunks: frames of tokens that share their gradient's weights, for every row at once.

Each row stands somewhere in its own chunk and may have padding anywhere, so the tokens of one frame are, row by row,
those of one chunk. Where all rows stand alike and nothing is masked the frames are plain slices.

Legend: B rows, T tokens, C chunk length, F frames, W the frames' widths together (W = T where nothing is masked).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch

__all__ = ["Frame", "Layout", "lay_out", "packed_index", "runs"]


@dataclass(frozen=True)
class Frame:
    """Tokens [start, stop) of the laid-out axis."""

    start: int
    stop: int
    counts: tuple[int, ...] | None
    """Tokens each row has in the frame, the first ones; None: every row all of them."""
    fresh: bool
    """Every row with tokens here begins a chunk with the frame's first."""
    closes: tuple[bool, ...] | bool
    """The rows whose chunk is full after the frame."""

    @property
    def width(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """``index`` [B, W] names the token at each place, T for none; None: the tokens as they come."""

    frames: tuple[Frame, ...]
    index: torch.Tensor | None
    counts: torch.Tensor
    """[B]: tokens of each row."""


def lay_out(position: torch.Tensor, mask: torch.Tensor | None, length: int, chunk: int) -> Layout:
    """The frames of ``length`` tokens for rows that stand at ``position`` [B] of their chunks of ``chunk``."""
    live = None if mask is None or bool(mask.all()) else mask.cpu()
    counts = torch.full_like(position, length) if live is None else live.sum(1)
    starts = sorted(set(position.tolist()))
    if not starts:
        return Layout((), None, counts)
    if live is None and len(starts) == 1:
        return Layout(tuple(_even_frames(starts[0], length, chunk)), None, counts)
    return _uneven(position, live, length, chunk, counts)


def _even_frames(position: int, length: int, chunk: int) -> Iterator[Frame]:
    start = 0
    while start < length:
        stop = min(length, start + chunk - position)
        yield Frame(start, stop, None, position == 0, position + stop - start == chunk)
        start, position = stop, 0


def _uneven(position: torch.Tensor, live: torch.Tensor | None, length: int, chunk: int, counts: torch.Tensor) -> Layout:
    """Frame j holds the tokens of each row's (j+1)-th chunk, moved to the front of the frame."""
    ends = position + counts
    frames, columns, start = [], [], 0
    for j in range(int((ends.max() + chunk - 1) // chunk)):
        begin = position if j == 0 else torch.zeros_like(position)
        held = (torch.clamp(ends - j * chunk, max=chunk) - begin).clamp(min=0)
        width = int(held.max())
        if width == 0:
            continue
        full = (held > 0) & (begin + held == chunk)
        fresh = not bool((begin * (held > 0)).any())
        frames.append(Frame(start, start + width, tuple(held.tolist()), fresh, tuple(full.tolist())))
        place = torch.arange(width)
        ordinal = j * chunk + begin[:, None] + place - position[:, None]
        columns.append(torch.where(place < held[:, None], ordinal, length))
        start += width
    if not columns:
        return Layout((), None, counts)
    ordinals = torch.cat(columns, dim=1)
    if live is None:
        return Layout(tuple(frames), ordinals, counts)
    # The n-th token of a row, wherever the padding left it.
    token_of = torch.nn.functional.pad(packed_index(live), (0, 1), value=length)
    return Layout(tuple(frames), token_of.gather(1, ordinals), counts)


def packed_index(mask: torch.Tensor) -> torch.Tensor:
    """[B, T]: the places of the tokens in each row in order, then those of the padding."""
    return torch.argsort((~mask).to(torch.int8), dim=1, stable=True)


def runs(frames: tuple[Frame, ...], tokens: int) -> Iterator[tuple[Frame, ...]]:
    """Neighbouring frames of one width, at most about ``tokens`` tokens together: what can be prepared in one go."""
    for width, same in groupby(frames, key=lambda f: f.width):
        together = tuple(same)
        step = max(1, tokens // width)
        for n in range(0, len(together), step):
            yield together[n : n + step]
