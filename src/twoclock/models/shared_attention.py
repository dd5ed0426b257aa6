"""How our forward passes look at keys: installed in a transformers model as an attention implementation of its own.

A forward pass runs under a *view*, which says what each query may see beyond causality: shared prefixes held apart from
each row's own keys (decoding), or a tree of segments packed into one row (teacher forcing). Models that call their
attention through transformers' interface (Llama, Qwen, Gemma, Mistral and their kin) need no code of their own here;
whether a model really obeys is checked once when it is loaded, against its own plain forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from twoclock.nn.attention import attend, attend_reference, fold_heads, merge, unfold_heads

__all__ = ["DecodeView", "OwnCache", "PackedView", "PrefixKV", "Segment", "attention_windows", "text_config", "viewing"]

IMPLEMENTATION = "twoclock_shared"


@dataclass(frozen=True)
class PrefixKV:
    """The keys and values of a prefix, [1, K, P, D] a layer; a pure function of (weights, tokens)."""

    tokens: tuple[int, ...]
    keys: tuple[torch.Tensor, ...] = field(repr=False)
    values: tuple[torch.Tensor, ...] = field(repr=False)


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) of the batch share one prefix (None: they have none)."""

    start: int
    stop: int
    prefix: PrefixKV | None


@dataclass
class DecodeView:
    """Rows with own keys behind shared prefixes.

    ``own_mask`` [B, 1, T, S]: which own keys each query sees, True at least at its own place. ``query_positions``
    [B, T] and ``key_positions`` [B, S] are positions in the whole sequence; only sliding windows need them.
    """

    segments: list[Segment]
    own_mask: torch.Tensor
    query_positions: torch.Tensor
    key_positions: torch.Tensor

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, scale: float, softcap: float, window: int
    ) -> torch.Tensor:
        kv_heads, heads = k.shape[1], q.shape[1]
        repeat = heads // kv_heads
        folded = fold_heads(q, kv_heads)
        mask = self.own_mask
        windowed = window > 0 and int(self.query_positions.max()) >= window
        if windowed:
            near = self.query_positions[:, :, None] - self.key_positions[:, None, :] < window
            mask = mask & near[:, None]
        own = attend(folded, k, v, mask.repeat(1, 1, repeat, 1), scale, softcap)
        if all(s.prefix is None for s in self.segments):
            return unfold_heads(own[0], heads)
        merged = []
        for s in self.segments:
            own_part = (own[0][s.start : s.stop], own[1][s.start : s.stop])
            if s.prefix is None:
                merged.append(own_part[0])
                continue
            rows, _, queries, width = folded[s.start : s.stop].shape
            # The rows of a segment become one long row of queries: the prefix is read once for all of them.
            flat = folded[s.start : s.stop].transpose(0, 1).reshape(1, kv_heads, rows * queries, width)
            keys, values = s.prefix.keys[layer], s.prefix.values[layer]
            if windowed:
                at = self.query_positions[s.start : s.stop].repeat(1, repeat).reshape(-1)
                seen = at[:, None] - torch.arange(keys.shape[2], device=at.device)[None, :] < window
                out, lse = attend_reference(flat, keys, values, seen[None, None], scale, softcap)
            else:
                out, lse = attend(flat, keys, values, None, scale, softcap)
            part = out.view(kv_heads, rows, queries, width).transpose(0, 1)
            part_lse = lse.reshape(kv_heads, rows, queries).transpose(0, 1)
            merged.append(merge([own_part, (part, part_lse)]))
        return unfold_heads(torch.cat(merged), heads)


@dataclass
class PackedView:
    """One row [1, S] that holds a tree of segments; ``mask`` [1, 1, S, S] is True from a token to its ancestors."""

    mask: torch.Tensor
    positions: torch.Tensor

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, scale: float, softcap: float, window: int
    ) -> torch.Tensor:
        mask = self.mask
        if window > 0 and int(self.positions.max()) >= window:
            mask = mask & (self.positions[0][:, None] - self.positions[0][None, :] < window)
        if softcap > 0.0:
            folded = fold_heads(q, k.shape[1])
            repeat = q.shape[1] // k.shape[1]
            out, _ = attend_reference(folded, k, v, mask.repeat(1, 1, repeat, 1), scale, softcap)
            return unfold_heads(out, q.shape[1])
        repeat = q.shape[1] // k.shape[1]
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class OwnCache:
    """Each row's own keys and values, in buffers allocated once: a step writes in place and copies nothing.

    Quacks like a transformers cache as far as a model's forward pass asks.
    """

    is_compileable = False

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: list[torch.Tensor | None] = [None] * num_layers
        self._values: list[torch.Tensor | None] = [None] * num_layers
        self._written = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, heads, new, width = keys.shape
        k, v = self._keys[layer_idx], self._values[layer_idx]
        if k is None or v is None:
            k = keys.new_zeros(rows, heads, self.capacity, width)
            v = values.new_zeros(rows, heads, self.capacity, values.shape[-1])
            self._keys[layer_idx], self._values[layer_idx] = k, v
        end = self.length + new
        k[:, :, self.length : end] = keys
        v[:, :, self.length : end] = values
        return k[:, :, :end], v[:, :, :end]

    def advance(self, count: int) -> None:
        """Counts ``count`` columns as written, after every layer has written them."""
        self.length += count

    def take(self, rows: torch.Tensor, capacity: int | None = None) -> OwnCache:
        """A cache with these rows (repeats allowed), in this order."""
        out = OwnCache(len(self._keys), capacity or self.capacity)
        out.length = self.length
        for layer, (k, v) in enumerate(zip(self._keys, self._values, strict=True)):
            if k is None or v is None:
                continue
            for source, target in ((k, out._keys), (v, out._values)):
                fresh = source.new_zeros(rows.shape[0], source.shape[1], out.capacity, source.shape[3])
                fresh[:, :, : self.length] = source[rows, :, : self.length]
                target[layer] = fresh
        return out

    def as_prefix(self, tokens: tuple[int, ...]) -> PrefixKV:
        keys = tuple(k[:, :, : self.length].contiguous() for k in self._keys if k is not None)
        values = tuple(v[:, :, : self.length].contiguous() for v in self._values if v is not None)
        return PrefixKV(tokens, keys, values)


_active = threading.local()


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    view: DecodeView | PackedView = _active.view
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    _active.windows[layer] = sliding_window or 0
    out = view.attend(query, key, value, layer, scale, softcap or 0.0, sliding_window or 0)
    return out.transpose(1, 2).contiguous(), None


@contextmanager
def viewing(model: nn.Module, view: DecodeView | PackedView) -> Iterator[None]:
    """The model's attention follows ``view`` while inside; outside it is what it was."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attention)
    config = text_config(model)
    before = config._attn_implementation
    _active.view, _active.windows = view, {}
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before
        _active.view = None


def attention_windows() -> dict[int, int]:
    """The sliding window (0: none) of each layer that asked for attention since the last :func:`viewing` began. A layer
    that is not there computes attention by itself."""
    return dict(getattr(_active, "windows", {}))


def text_config(model: Any) -> Any:
    """The config of the language model, where a model has parts for other things too."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
