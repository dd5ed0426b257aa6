"""Attention over keys that come in parts: a prefix that many rows share, and each row's own.

Softmax attention over a union of key sets is the mean of the parts' outputs weighted by the parts' softmax masses, so a
shared prefix can be read once for all the rows that share it:

    o = Σ_i w_i o_i,   w_i = exp(lse_i) / Σ_j exp(lse_j),   lse_i = log Σ_{k in part i} exp(scale · q·k)

Source of the decomposition: Juravsky et al., "Hydragen", arXiv:2402.05099, equations 2-4.

Legend: B rows, H query heads, K key/value heads, R = H / K, T queries a row, S keys, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = [
    "KeyPart",
    "attend",
    "attend_causal",
    "attend_reference",
    "fold_heads",
    "joint_attention",
    "joint_attention_reference",
    "merge",
    "unfold_heads",
]


@dataclass(frozen=True)
class KeyPart:
    """Keys and values [K, P, D] that the rows ``rows`` of a batch share."""

    rows: slice | torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def attend_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float, softcap: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output [B, K, T, D] in q's dtype, log-sum-exp [B, K, T] in float32), computed in float32.

    ``mask`` is boolean, True where a query may look, broadcastable to [B, K, T, S]. A query that may look nowhere gives
    output 0 and log-sum-exp -inf, so that its part weighs nothing in :func:`merge`. ``softcap`` c > 0 replaces a score
    s by c·tanh(s/c) (Gemma 2).
    """
    scores = torch.matmul(q.float(), k.float().transpose(-1, -2)) * scale
    if softcap > 0.0:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - torch.where(torch.isinf(lse), torch.zeros_like(lse), lse).unsqueeze(-1))
    return torch.matmul(weights, v.float()).to(q.dtype), lse


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float, softcap: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`attend_reference`, by the fused CPU kernel where it applies.

    Meant for many queries a row; for one query a row :func:`joint_attention` is several times faster.

    The kernel hands out the log-sum-exp that the public function keeps to itself. It is used without gradients, on the
    CPU, and where every query may look at something (the caller's promise); anything else takes the reference.
    """
    fused = q.device.type == "cpu" and softcap == 0.0 and not torch.is_grad_enabled() and q.dtype == k.dtype
    if not fused:
        return attend_reference(q, k, v, mask, scale, softcap)
    bias: torch.Tensor | None = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, float("-inf"))
        bias = bias.expand(q.shape[0], bias.shape[1], q.shape[2], k.shape[2])
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=bias, scale=scale
    )
    return out, lse.float()


def attend_causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(output [B, H, T, D], log-sum-exp [B, H, T]) of q [B, H, T, D] over k, v [B, K, T, D]: query t sees keys 0..t."""
    if q.device.type == "cpu" and not torch.is_grad_enabled():
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale)
        return out, lse.float()
    heads, size = q.shape[1], q.shape[2]
    mask = torch.ones(size, size, dtype=torch.bool, device=q.device).tril().repeat(heads // k.shape[1], 1)
    out, lse = attend_reference(fold_heads(q, k.shape[1]), k, v, mask, scale)
    return unfold_heads(out, heads), lse.reshape(q.shape[:3])


def merge(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The attention over the union of the parts' keys: [B, K, T, D] in the dtype of the parts."""
    if len(parts) == 1:
        return parts[0][0]
    lse = torch.stack([part_lse for _, part_lse in parts])
    weights = torch.softmax(lse, dim=0)
    total = weights[0].unsqueeze(-1) * parts[0][0].float()
    for weight, (out, _) in zip(weights[1:], parts[1:], strict=True):
        total = total + weight.unsqueeze(-1) * out.float()
    return total.to(parts[0][0].dtype)


def fold_heads(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[B, H, T, D] -> [B, K, R·T, D]: the query heads of a key head become further queries, so keys are not copied."""
    b, h, t, d = q.shape
    return q.reshape(b, kv_heads, (h // kv_heads) * t, d)


def unfold_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, K, R·T, D] -> [B, H, T, D]; the inverse of :func:`fold_heads`."""
    b, k, rt, d = x.shape
    return x.reshape(b, heads, rt * k // heads, d)


def joint_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    levels: Sequence[Sequence[KeyPart]],
    shared_bias: torch.Tensor | None,
    own_bias: torch.Tensor,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Attention of R queries a row over what the row shares with others and over its own keys: [B, K, R, D].

    ``q`` [B, K, R, D]; ``k``, ``v`` [B, K, S, D] a row's own. A level's parts are disjoint in rows; each is read once
    for all the rows that share it. The biases are 0 where a row looks and -inf where not: ``own_bias`` [B, 1, 1, S],
    ``shared_bias`` [B, 1, 1, W], whose columns are those of each level in order, as wide as its longest part (None: all
    are seen, which needs every row to have a part of the full width in every level).

    One softmax over all columns, so there is nothing to merge, and matrix products for the rest: with one query a row
    the fused kernels, made for long rows of queries, spend their time on setting up. Scores are rounded to q's dtype.
    """
    rows, kv_heads, queries, width = q.shape
    flat, own = rows * kv_heads, k.shape[2]
    widths = [max(part.keys.shape[1] for part in level) for level in levels]
    shared = sum(widths)
    scaled = q * scale
    by_head = scaled.transpose(0, 1)
    read = torch.bmm(scaled.reshape(flat, queries, width), k.view(flat, own, width).transpose(1, 2))
    scores = read.view(rows, kv_heads, queries, own)
    if levels:
        scores = q.new_empty(rows, kv_heads, queries, shared + own)
        scores[..., shared:] = read.view(rows, kv_heads, queries, own)
    if shared_bias is not None:
        scores[..., :shared] = 0.0
    start = 0
    for level, wide in zip(levels, widths, strict=True):
        for part in level:
            end = start + part.keys.shape[1]
            seen = torch.bmm(by_head[:, part.rows].reshape(kv_heads, -1, width), part.keys.transpose(1, 2))
            scores[part.rows, :, :, start:end] = seen.view(kv_heads, -1, queries, end - start).transpose(0, 1)
        start += wide
    if softcap > 0.0:
        scores = softcap * torch.tanh(scores.float() / softcap)
    scores[..., shared:] += own_bias
    if shared_bias is not None:
        scores[..., :shared] += shared_bias
    # In half precision too: the kernel works in float32 inside and rounds once.
    probs = torch.softmax(scores, dim=-1).to(q.dtype)
    out = torch.bmm(probs[..., shared:].reshape(flat, queries, own), v.view(flat, own, width)).view(q.shape)
    start = 0
    for level, wide in zip(levels, widths, strict=True):
        for part in level:
            end = start + part.keys.shape[1]
            weights = probs[part.rows, :, :, start:end].transpose(0, 1).reshape(kv_heads, -1, end - start)
            out[part.rows] += torch.bmm(weights, part.values).view(kv_heads, -1, queries, width).transpose(0, 1)
        start += wide
    return out


def joint_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    levels: Sequence[Sequence[KeyPart]],
    shared_bias: torch.Tensor | None,
    own_bias: torch.Tensor,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """:func:`joint_attention`, one row at a time over its keys side by side."""
    out = torch.empty_like(q)
    for row in range(q.shape[0]):
        keys, values, bias = [], [], []
        start = 0
        for level in levels:
            for part in level:
                size = part.keys.shape[1]
                if row in torch.arange(q.shape[0])[part.rows].tolist():
                    keys.append(part.keys)
                    values.append(part.values)
                    seen = torch.zeros(size) if shared_bias is None else shared_bias[row, 0, 0, start : start + size]
                    bias.append(seen)
            start += max(part.keys.shape[1] for part in level)
        whole_k, whole_v = torch.cat([*keys, k[row]], dim=1), torch.cat([*values, v[row]], dim=1)
        mask = torch.cat([*bias, own_bias[row, 0, 0]]) == 0
        out[row] = attend_reference(q[row][None], whole_k[None], whole_v[None], mask, scale, softcap)[0][0]
    return out
