"""Causal attention over keys of the past, tokens that every query sees, and memory tokens; in blocks, so that a window
costs what a window costs.

Rows are *packed*: a row's tokens stand at its front, so that behind its remembered keys (which stand at the end of
their buffer) tokens follow one another without a gap. A difference of places is then a difference of positions, in
every row, and positions (rotary, Su et al., arXiv:2104.09864) are counted inside a block: they never grow, however
long the text. Tokens that every query sees have no position.

Legend: B rows, H heads, T tokens, d width of a head, S places of the past, P tokens that all see, W window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["Past", "QUERY_BLOCK", "attend", "past_after", "rotary", "segment_attention", "sliding_attention"]

QUERY_BLOCK = 512
"""Queries that are computed at once where they see everything."""


@dataclass(frozen=True)
class Past:
    """Keys and values of tokens that have passed [B, H, S, d], a row's last ones, not rotated."""

    keys: torch.Tensor
    values: torch.Tensor
    held: torch.Tensor
    """[B] int64 on the CPU: how many of the S places, the last ones, hold a token."""

    @property
    def places(self) -> int:
        return self.keys.shape[2]

    def seen(self) -> torch.Tensor:
        """[B, S]: the places that hold a token."""
        return (torch.arange(self.places) >= self.places - self.held[:, None]).to(self.keys.device)

    @classmethod
    def none(cls, like: torch.Tensor) -> Past:
        """Nothing yet, for keys like [B, H, ·, d]."""
        empty = like[:, :, :0]
        return cls(empty, empty, torch.zeros(like.shape[0], dtype=torch.int64))


def past_after(
    past: Past, keys: torch.Tensor, values: torch.Tensor, counts: torch.Tensor | None, keep: int | None
) -> Past:
    """The past after new keys and values [B, H, T, d], of which row b has the first ``counts[b]`` (None: all); at most
    ``keep`` tokens a row (None: all)."""
    length = keys.shape[2]
    held = past.held + (length if counts is None else counts)
    held = held if keep is None else held.clamp(max=keep)
    places = int(held.max()) if len(held) else 0
    whole_k, whole_v = torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2)
    if counts is None:
        cut = slice(whole_k.shape[2] - places, None)
        # Copies: a view would keep the whole text alive.
        return Past(whole_k[:, :, cut].clone(), whole_v[:, :, cut].clone(), held)
    first = past.places + counts - places
    index = (first[:, None] + torch.arange(places)).clamp(min=0).to(keys.device)
    index = index[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
    return Past(whole_k.gather(2, index), whole_v.gather(2, index), held)


def rotary(x: torch.Tensor, base: float, first: int = 0) -> torch.Tensor:
    """x [..., T, d] turned by its positions ``first``, ``first`` + 1, ...: halves of d paired as in Llama."""
    half = x.shape[-1] // 2
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    speed = base ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    angle = torch.arange(first, first + x.shape[-2], device=x.device, dtype=wide)[:, None] * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(
    turned: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    q: torch.Tensor,
    shared: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """softmax over the tokens that all see and those the mask allows. ``turned`` and ``q`` are the queries [..., T, d]
    with and without their positions, ``keys`` are turned, ``shared`` the keys and values [H, P, d] of the former."""
    scale = 1 / math.sqrt(q.shape[-1])
    scores = (turned @ keys.transpose(-1, -2)) * scale
    scores = scores.masked_fill(~mask, float("-inf"))
    if shared is None:
        return scores.softmax(-1) @ values
    keys_all, values_all = (x.view(x.shape[0], *[1] * (q.ndim - 4), *x.shape[1:]) for x in shared)
    weights = torch.cat([(q @ keys_all.transpose(-1, -2)) * scale, scores], dim=-1).softmax(-1)
    count = keys_all.shape[-2]
    return weights[..., :count] @ values_all + weights[..., count:] @ values


def sliding_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past: Past,
    window: int | None,
    base: float,
    live: torch.Tensor | None,
    shared: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Each token sees itself and the ``window`` - 1 before it (None: all before it). q, k, v [B, H, T, d], ``live``
    [B, T] True at tokens (None: all) -> [B, H, T, d]."""
    length = q.shape[2]
    if length == 0:
        return torch.empty_like(q)
    seen = past.seen()
    now = torch.ones(len(seen), length, dtype=torch.bool, device=q.device) if live is None else live
    if window is None:
        return _all_before(q, torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2), seen, now, base, shared)
    # The past always takes window - 1 places here, so that every block of queries sees the same stretch of keys.
    missing = window - 1 - past.places
    pad = torch.nn.functional.pad
    block = min(window, length)
    extra = -length % block
    keys = torch.cat([pad(past.keys, (0, 0, missing, 0)), pad(k, (0, 0, 0, extra))], dim=2)
    values = torch.cat([pad(past.values, (0, 0, missing, 0)), pad(v, (0, 0, 0, extra))], dim=2)
    valid = torch.cat([pad(seen, (missing, 0)), pad(now, (0, extra))], dim=1)
    span = window - 1 + block
    blocks = keys.unfold(2, span, block).transpose(-1, -2), values.unfold(2, span, block).transpose(-1, -2)
    queries = pad(q, (0, 0, 0, extra))
    queries = queries.view(*q.shape[:2], -1, block, q.shape[3])
    mask = _band(block, span, window, q.device) & valid.unfold(1, span, block).unsqueeze(2)
    mask = mask | _itself(block, span, q.device)  # padding sees itself: a row of nothing would be NaN
    out = attend(
        rotary(queries, base, window - 1), rotary(blocks[0], base), blocks[1], mask.unsqueeze(1), queries, shared
    )
    return out.flatten(2, 3)[:, :, :length]


def _band(block: int, span: int, window: int, device: torch.device) -> torch.Tensor:
    """[block, span]: query i stands at place span - block + i."""
    ago = torch.arange(block, device=device)[:, None] + (span - block) - torch.arange(span, device=device)
    return (ago >= 0) & (ago < window)


def _itself(block: int, span: int, device: torch.device) -> torch.Tensor:
    return torch.arange(block, device=device)[:, None] + (span - block) == torch.arange(span, device=device)


def _all_before(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor,
    now: torch.Tensor,
    base: float,
    shared: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    places, length = seen.shape[1], q.shape[2]
    valid = torch.cat([seen, now], dim=1)
    turned_keys, turned = rotary(keys, base), rotary(q, base, places)
    parts = []
    for start in range(0, length, QUERY_BLOCK):
        stop = min(length, start + QUERY_BLOCK)
        size, span = stop - start, places + stop
        mask = _band(size, span, span, q.device) & valid[:, None, :span] | _itself(size, span, q.device)
        block = slice(start, stop)
        parts.append(
            attend(
                turned[:, :, block],
                turned_keys[:, :, :span],
                values[:, :, :span],
                mask.unsqueeze(1),
                q[:, :, block],
                shared,
            )
        )
    return torch.cat(parts, dim=2)


def segment_attention(
    q: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor],
    context: tuple[torch.Tensor, torch.Tensor] | None,
    open_: Past,
    open_context: Past,
    segment: int,
    base: float,
    live: torch.Tensor | None,
    shared: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Each token sees its segment up to itself, and of the memory's tokens before the segment those up to its own.

    A memory token is read by the token of its number, so to see a later one would be to see that later token. They
    stand where the segment before would: token i's is at position i - ``segment``. ``own`` and ``context``: keys and
    values [B, H, T, d] (context None: the memory says nothing).
    """
    length = q.shape[2]
    seen = open_.seen()
    now = torch.ones(len(seen), length, dtype=torch.bool, device=q.device) if live is None else live
    places, span = open_.places, open_.places + length
    mask = _band(length, span, span, q.device) & torch.cat([seen, now], dim=1).unsqueeze(1)
    mask = mask | _itself(length, span, q.device)
    keys = rotary(torch.cat([open_.keys, own[0]], dim=2), base, segment)
    values = torch.cat([open_.values, own[1]], dim=2)
    if context is not None:
        # Fewer than the segment's tokens where the memory was silent at its beginning.
        early = places - open_context.places
        told = rotary(torch.cat([open_context.keys, context[0]], dim=2), base, early)
        keys = torch.cat([told, keys], dim=2)
        values = torch.cat([open_context.values, context[1], values], dim=2)
        heard = torch.cat([open_context.seen(), now], dim=1).unsqueeze(1)
        mask = torch.cat([_band(length, span - early, span, q.device) & heard, mask], dim=2)
    return attend(rotary(q, base, places + segment), keys, values, mask.unsqueeze(1), q, shared)
