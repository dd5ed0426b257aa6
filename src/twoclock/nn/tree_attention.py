"""Attention over a tree of segments that lie packed in one row, without the [S, S] mask.

The tree is cut into rectangles in which a query sees every key, or every key up to its own place. Each rectangle is
one call of a fused kernel; their outputs are merged by log-sum-exp (see :mod:`twoclock.nn.attention`). The backward
pass goes through the rectangles again with the *merged* output and log-sum-exp: with

    P = exp(scale · q·k − lse),   D = Σ_d dO · O,   dS = P · (dO·v − D)

taken over all keys of a query, the gradients of the whole are the sums of the rectangles', exactly. Source of the
backward pass: Dao et al., "FlashAttention", arXiv:2205.14135, appendix B.2; that it splits over keys is what ring
attention (Liu et al., arXiv:2310.01889) rests on.

Computed in float32 whatever the inputs are: on the CPU the bf16 kernel's backward pass is many times slower on small
rectangles. Legend: S tokens of the row, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Rectangle", "tree_attention", "tree_attention_applies"]

NOWHERE = 1e30
"""The log-sum-exp of a padding query: whatever it would look at weighs exp(-1e30) = 0."""


@dataclass(frozen=True)
class Rectangle:
    """Row b of ``queries`` [B, T] looks at row b of ``keys`` [B, U]: places in the packed row, -1 for padding, which
    stands at the end. ``causal``: query t sees keys 0..t only (and T = U). A place is a query of a rectangle at most
    once."""

    queries: torch.Tensor
    keys: torch.Tensor
    causal: bool

    def to(self, device: Any) -> Rectangle:
        return Rectangle(self.queries.to(device), self.keys.to(device), self.causal)


def tree_attention_applies(q: torch.Tensor, softcap: float) -> bool:
    """The kernels are the CPU's, and know no soft cap."""
    return q.device.type == "cpu" and softcap == 0.0


def tree_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rectangles: Sequence[Rectangle], scale: float
) -> torch.Tensor:
    """[1, H, S, D] from q of that shape and k, v [1, K, S, D]. Every token must be a query of some rectangle."""
    out: torch.Tensor = _TreeAttention.apply(q, k, v, rectangles, scale)  # type: ignore[no-untyped-call]
    return out


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rectangles: Sequence[Rectangle], scale: float
    ) -> torch.Tensor:
        queries, keys, values = _by_token(q), _by_token(k), _by_token(v)
        size, heads, width = queries.shape
        out = queries.new_zeros(size, heads, width)
        lse = queries.new_full((size, heads), float("-inf"))
        for rectangle in rectangles:
            part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                _gather(queries, rectangle.queries),
                _gather(keys, rectangle.keys),
                _gather(values, rectangle.keys),
                0.0,
                rectangle.causal,
                attn_mask=_padding(rectangle),
                scale=scale,
            )
            at, real = _places(rectangle.queries)
            part, part_lse = _flat(part, real), _flat(part_lse[..., None], real)[..., 0].float()
            before = lse[at]
            after = torch.logaddexp(before, part_lse)
            out[at] = out[at] * (before - after).exp()[..., None] + part * (part_lse - after).exp()[..., None]
            lse[at] = after
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rectangles, ctx.scale = rectangles, scale
        return out.to(q.dtype).transpose(0, 1)[None]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        queries, keys, values, grads = _by_token(q), _by_token(k), _by_token(v), _by_token(grad)
        dq, dk, dv = torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for rectangle in ctx.rectangles:
            at, real = _places(rectangle.queries)
            to, real_keys = _places(rectangle.keys)
            some_lse = lse[_filled(rectangle.queries)]
            grad_out = _gather(grads, rectangle.queries)
            if real is not None:
                some_lse = some_lse.masked_fill(~real[..., None], NOWHERE)
                grad_out = grad_out * real[:, None, :, None]
            some_dq, some_dk, some_dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_out,
                _gather(queries, rectangle.queries),
                _gather(keys, rectangle.keys),
                _gather(values, rectangle.keys),
                _gather(out, rectangle.queries),
                some_lse.transpose(1, 2).contiguous(),
                0.0,
                rectangle.causal,
                attn_mask=_padding(rectangle),
                scale=ctx.scale,
            )
            dq.index_add_(0, at, _flat(some_dq, real))
            dk.index_add_(0, to, _flat(some_dk, real_keys))
            dv.index_add_(0, to, _flat(some_dv, real_keys))
        return (*(g.to(x.dtype).transpose(0, 1)[None] for g, x in ((dq, q), (dk, k), (dv, v))), None, None)


def _by_token(x: torch.Tensor) -> torch.Tensor:
    """[1, H, S, D] -> [S, H, D] float32."""
    return x[0].transpose(0, 1).float().contiguous()


def _gather(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[S, H, D] at [B, T] -> [B, H, T, D]."""
    return x[_filled(places)].transpose(1, 2)


def _filled(places: torch.Tensor) -> torch.Tensor:
    """Padding reads its row's first place: what stands in another tree, be it NaN, must not come in by 0 · NaN."""
    return torch.where(places < 0, places[:, :1], places)


def _padding(rectangle: Rectangle) -> torch.Tensor | None:
    """What bars padding keys, [B, 1, T, U]. Behind a causal diagonal real queries do not see them anyway."""
    if rectangle.causal or bool((rectangle.keys >= 0).all()):
        return None
    bars = torch.zeros(rectangle.keys.shape).masked_fill(rectangle.keys < 0, float("-inf"))
    return bars[:, None, None, :].expand(-1, 1, rectangle.queries.shape[1], -1)


def _places(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(the real places, flat; which of the index are real, None where all are)."""
    real = index >= 0
    return (index.reshape(-1), None) if bool(real.all()) else (index[real], real)


def _flat(x: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """[B, H, T, D] -> [number of real places, H, D]."""
    x = x.transpose(1, 2)
    return x.reshape(-1, *x.shape[2:]) if real is None else x[real]
