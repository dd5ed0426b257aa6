"""Two pieces of a Llama-like layer whose backward pass needs less than autograd would keep.

``rms_norm``: y = w · x / sqrt(mean(x²) + ε) keeps x and one number a row; the plain chain of operations keeps three
float32 copies of x. ``gated``: y = silu(g) · u keeps g and u, the plain chain silu(g) too. Values are rounded where
transformers' modules round, so forward passes agree to the bit; gradients are computed in float32 and rounded once.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["gated", "rms_norm"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """[..., H] -> [..., H] in x's dtype. Source: Zhang & Sennrich, arXiv:1910.07467, equation 4."""
    out: torch.Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, [..., I]. Source: Shazeer, "GLU variants", arXiv:2002.05202, SwiGLU."""
    out: torch.Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        # With n = x·s:  dx = s (dn − n · mean(n · dn)).
        normed = x.float() * scale
        dw = None
        if ctx.needs_input_grad[1]:
            dw = (grad.float() * normed).flatten(0, -2).sum(0).to(weight.dtype)
        inner = grad.float() * weight.float()
        inner -= normed * (normed * inner).mean(-1, keepdim=True)
        return (inner * scale).to(x.dtype), dw, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), torch.nn.functional.silu(gate) * grad
