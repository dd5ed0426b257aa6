"""What each query of a forward pass may see: one view for reading prompts, one for decoding, one for packed trees.

A view is handed the new queries, keys and values of every layer in turn and answers with the attention's output; it
keeps the keys that later passes need. Nothing here knows an architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from twoclock.models.packing import Packed
from twoclock.nn.attention import (
    KeyPart,
    attend,
    attend_causal,
    attend_reference,
    fold_heads,
    joint_attention,
    merge,
    unfold_heads,
)
from twoclock.nn.tree_attention import tree_attention, tree_attention_applies

__all__ = ["SLOT_STEP", "DecodeView", "PrefillView", "PrefixKV", "Shared", "Slots", "TreeView", "View"]

SLOT_STEP = 16
"""The own columns that decoding reads grow in steps: every new shape costs the matrix kernels a set-up."""


@dataclass(frozen=True)
class PrefixKV:
    """The keys and values [K, P, D] a layer of tokens that begin at position ``start`` of their sequence; a pure
    function of (weights, the sequence up to their end)."""

    start: int
    keys: tuple[torch.Tensor, ...] = field(repr=False)
    values: tuple[torch.Tensor, ...] = field(repr=False)

    @property
    def length(self) -> int:
        return int(self.keys[0].shape[1])

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class Shared:
    """The rows of a batch that stand behind the same prefix."""

    rows: slice | torch.Tensor
    prefix: PrefixKV


class View:
    """See the module. ``logit_rows``: the flat places (row · T + column) whose logits are wanted; None: all."""

    logit_rows: torch.Tensor | None = None

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, scale: float, softcap: float, window: int
    ) -> torch.Tensor:
        """q [B, H, T, D], k and v [B, K, T, D] of the pass's own tokens -> [B, H, T, D]."""
        raise NotImplementedError


class PrefillView(View):
    """Reads n prompts' own tokens, packed into one row without padding, behind their shared prefixes.

    ``shared``'s rows count prompts. After the pass ``keys[layer]`` and ``values[layer]`` are [n, K, L, D], filled from
    column 0; what stands behind a prompt's last column has no meaning.
    """

    def __init__(self, lengths: Sequence[int], starts: Sequence[int], shared: Sequence[Shared], device: torch.device):
        n, longest = len(lengths), max(lengths)
        self.lengths, self.starts, self.shared = lengths, starts, shared
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._prefixes: dict[int, PrefixKV] = {}
        size = torch.tensor(lengths, device=device)
        columns = torch.arange(longest, device=device)
        real = columns[None, :] < size[:, None]
        ends = size.cumsum(0)
        self._shape = (n, longest)
        # Where nothing is padding, rows and packed row are the same memory and need no index.
        self._even = int(ends[-1]) == n * longest
        # Padding reads its own row's first token: another row's may be NaN, which no weight of 0 undoes.
        first = (ends - size)[:, None]
        self._gather = torch.where(real, first + columns[None, :], first)
        self._scatter = real.reshape(-1).nonzero()[:, 0]
        self.at = torch.tensor(starts, device=device)[:, None] + columns[None, :]
        self.positions = self.at.reshape(-1)[self._scatter]
        self.logit_rows = ends - 1

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, scale: float, softcap: float, window: int
    ) -> torch.Tensor:
        q, k, v = self._rows(q), self._rows(k), self._rows(v)
        self.keys.append(k)
        self.values.append(v)
        heads, kv_heads = q.shape[1], k.shape[1]
        windowed = window > 0 and int(self.at.max()) >= window
        if not self.shared and not windowed and softcap == 0.0:
            out = nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=heads != kv_heads
            )
            return self._packed(out)
        folded = fold_heads(q, kv_heads)
        if windowed or softcap > 0.0:
            mask = self.at[:, :, None] >= self.at[:, None, :]
            if windowed:
                mask = mask & (self.at[:, :, None] - self.at[:, None, :] < window)
            out, lse = attend(folded, k, v, mask[:, None].repeat(1, 1, heads // kv_heads, 1), scale, softcap)
        else:
            whole, whole_lse = attend_causal(q, k, v, scale)
            out, lse = fold_heads(whole, kv_heads), whole_lse.reshape(folded.shape[:3])
        merged = out.clone()
        for s in self.shared:
            part = self._behind(folded[s.rows], s, layer, scale, softcap, window if windowed else 0)
            merged[s.rows] = merge([(out[s.rows], lse[s.rows]), part])
        return self._packed(unfold_heads(merged, heads))

    def prefix(self, row: int) -> PrefixKV:
        """What prompt ``row`` brought of its own, to be shared by those who continue it; the same object each time."""
        if row not in self._prefixes:
            size = self.lengths[row]
            keys, values = (tuple(x[row, :, :size].contiguous() for x in side) for side in (self.keys, self.values))
            self._prefixes[row] = PrefixKV(self.starts[row], keys, values)
        return self._prefixes[row]

    def _behind(
        self, q: torch.Tensor, s: Shared, layer: int, scale: float, softcap: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The part of the attention [n', K, R·L, D] that goes to the prefix, with its log-sum-exp: the rows become one
        long row of queries, so the prefix is read once for all of them."""
        rows, kv_heads, queries, width = q.shape
        flat = q.transpose(0, 1).reshape(1, kv_heads, rows * queries, width)
        keys, values = s.prefix.keys[layer][None], s.prefix.values[layer][None]
        if window:
            at = self.at[s.rows].repeat(1, queries // self.at.shape[1]).reshape(-1)
            seen = at[:, None] - torch.arange(s.prefix.start, s.prefix.stop, device=at.device)[None, :] < window
            out, lse = attend_reference(flat, keys, values, seen[None, None], scale, softcap)
        else:
            out, lse = attend(flat, keys, values, None, scale, softcap)
        return (
            out.view(kv_heads, rows, queries, width).transpose(0, 1),
            lse.reshape(kv_heads, rows, queries).transpose(0, 1),
        )

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """[1, H, N, D] -> [n, H, L, D]."""
        by_token = x[0].transpose(0, 1)
        rows = by_token.reshape(*self._shape, *by_token.shape[1:]) if self._even else by_token[self._gather]
        return rows.transpose(1, 2)

    def _packed(self, x: torch.Tensor) -> torch.Tensor:
        """[n, H, L, D] -> [1, H, N, D]."""
        by_token = x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])
        return (by_token if self._even else by_token[self._scatter]).transpose(0, 1)[None]


class Slots:
    """The own keys and values of the rows being decoded, each row in a slot of its own length: [R, K, C, D] a layer. A
    row that ends leaves its slot to another.

    C grows with the longest row, a step at a time: the matrix kernels copy what is not one block of memory, so what is
    read is always the whole buffer.
    """

    def __init__(self, rows: int, like: PrefillView) -> None:
        self.lengths = torch.zeros(rows, dtype=torch.long, device=like.at.device)
        self.keys = [k.new_zeros(rows, k.shape[1], 0, k.shape[3]) for k in like.keys]
        self.values = [v.new_zeros(rows, v.shape[1], 0, v.shape[3]) for v in like.values]

    @property
    def columns(self) -> int:
        return int(self.keys[0].shape[2])

    def reserve(self, columns: int) -> None:
        """Makes room for rows of ``columns`` tokens."""
        more = -(-columns // SLOT_STEP) * SLOT_STEP - self.columns
        if more > 0:
            # Zeros, not whatever was there: a column that is not seen weighs 0, and 0 times NaN is NaN.
            self.keys = [nn.functional.pad(k, (0, 0, 0, more)) for k in self.keys]
            self.values = [nn.functional.pad(v, (0, 0, 0, more)) for v in self.values]

    def put(self, slots: torch.Tensor, read: PrefillView, rows: torch.Tensor, lengths: torch.Tensor) -> None:
        """Copies what the prompts ``rows`` of ``read`` brought of their own into ``slots``."""
        longest = int(lengths.max())
        self.reserve(longest + 1)
        for mine, theirs in ((self.keys, read.keys), (self.values, read.values)):
            for buffer, made in zip(mine, theirs, strict=True):
                # What the slot's last row left behind may be NaN, and 0 times NaN is NaN.
                buffer[slots] = 0.0
                buffer[slots, :, :longest] = made[rows, :, :longest]
        self.lengths[slots] = lengths

    def keep(self, slots: torch.Tensor) -> None:
        """Only these rows stay, in this order."""
        self.keys = [k[slots] for k in self.keys]
        self.values = [v[slots] for v in self.values]
        self.lengths = self.lengths[slots]


class DecodeView(View):
    """One new token a row: writes its key into the row's slot and looks at the row's prefixes, level by level (the
    conditioning's, then the prompt's), and its slot."""

    def __init__(self, slots: Slots, levels: Sequence[Sequence[Shared]], positions: torch.Tensor) -> None:
        """``positions`` [B]: the place of each row's new token in its sequence."""
        slots.reserve(int(slots.lengths.max()) + 1)
        self.slots, self.levels, self.positions = slots, [level for level in levels if level], positions
        self._rows = torch.arange(len(positions), device=positions.device)
        self._bars: dict[tuple[int, torch.dtype], tuple[torch.Tensor | None, torch.Tensor]] = {}

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, scale: float, softcap: float, window: int
    ) -> torch.Tensor:
        keys, values = self.slots.keys[layer], self.slots.values[layer]
        keys[self._rows, :, self.slots.lengths] = k[:, :, 0]
        values[self._rows, :, self.slots.lengths] = v[:, :, 0]
        levels = [
            [KeyPart(s.rows, s.prefix.keys[layer], s.prefix.values[layer]) for s in level] for level in self.levels
        ]
        if (window, q.dtype) not in self._bars:
            self._bars[window, q.dtype] = self._new_bars(window, q.dtype)
        shared_bias, own_bias = self._bars[window, q.dtype]
        folded = fold_heads(q, k.shape[1])
        out = joint_attention(folded, keys, values, levels, shared_bias, own_bias, scale, softcap)
        return unfold_heads(out, q.shape[1])

    def _new_bars(self, window: int, dtype: torch.dtype) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The biases of :func:`twoclock.nn.attention.joint_attention`, the same for all layers alike."""
        at, lengths = self.positions, self.slots.lengths
        seen = []
        for level in self.levels:
            part = torch.zeros(len(at), max(s.prefix.length for s in level), dtype=torch.bool, device=at.device)
            for s in level:
                places = torch.arange(s.prefix.start, s.prefix.stop, device=at.device)
                near = at[s.rows][:, None] - places[None, :] < window if window else True
                part[s.rows, : s.prefix.length] = near
            seen.append(part)
        ages = lengths[:, None] - torch.arange(self.slots.columns, device=at.device)[None, :]
        own = _bias((ages >= 0) & (ages < window) if window else ages >= 0, dtype)
        shared = torch.cat(seen, dim=1) if seen else None
        # Where every row sees all that is shared there is nothing to bar.
        return None if shared is None or bool(shared.all()) else _bias(shared, dtype), own


def _bias(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, W] -> [B, 1, 1, W], 0 where seen and -inf where not."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None, None]


class TreeView(View):
    """One row [1, S] that holds trees of segments (:mod:`twoclock.models.packing`), with gradients."""

    def __init__(self, packed: Packed, device: torch.device) -> None:
        self.packed, self.device = packed, device
        self.positions = packed.positions.to(device)
        self._rectangles = tuple(r.to(device) for r in packed.rectangles)
        self._furthest = int(packed.positions.max())
        self._mask: torch.Tensor | None = None

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, scale: float, softcap: float, window: int
    ) -> torch.Tensor:
        windowed = window > 0 and self._furthest >= window
        if tree_attention_applies(q, softcap) and not windowed:
            return tree_attention(q, k, v, self._rectangles, scale)
        if self._mask is None:
            self._mask = self.packed.mask[None, None].to(self.device)
        mask = self._mask
        if windowed:
            mask = mask & (self.positions[:, None] - self.positions[None, :] < window)
        repeat = q.shape[1] // k.shape[1]
        if softcap > 0.0:
            out, _ = attend_reference(fold_heads(q, k.shape[1]), k, v, mask.repeat(1, 1, repeat, 1), scale, softcap)
            return unfold_heads(out, q.shape[1])
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=repeat > 1)
