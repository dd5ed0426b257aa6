"""Attention over keys that come in parts: a prefix that many rows share, and each row's own.

Softmax attention over a union of key sets is the mean of the parts' outputs weighted by the parts' softmax masses, so a
shared prefix can be read once for all the rows that share it:

    o = Σ_i w_i o_i,   w_i = exp(lse_i) / Σ_j exp(lse_j),   lse_i = log Σ_{k in part i} exp(scale · q·k)

Source of the decomposition: Juravsky et al., "Hydragen", arXiv:2402.05099, equations 2-4.

Legend: B rows, H query heads, K key/value heads, R = H / K, T queries a row, S keys, D head width.
"""

from __future__ import annotations

import torch

__all__ = ["attend", "attend_reference", "fold_heads", "merge", "unfold_heads"]


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
