"""The network that is a memory, M(x): its forward pass and, written out, the gradient of ‖M(k) - v‖² by its weights.

With rows a_0 = k, z_l = a_{l-1} W_l, a_l = σ(z_l), f = z_L and M(k) = f, or k + f, or with a layer norm of f:

    r = ∂ℓ/∂M(k) = 2 (M(k) - v),   e_L = r (through the norm),   e_l = (e_{l+1} W_{l+1}ᵀ) ⊙ σ'(z_l),   ∂ℓ/∂W_l =
    a_{l-1}ᵀ e_l

so that a token's gradient is an outer product a layer, which is what the chunk form lives on. Written out, it needs no
autograd of its own, works where gradients are off, and an outer gradient through it is exact.

Legend: N = B·H memories, T tokens, D width; every tensor here is [N, T, ·] or [N, in, out].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from twoclock.nn.neural_memory_spec import Activation, MemorySpec

__all__ = ["KeyPass", "NORM_EPS", "activate", "activate_backward", "apply_network", "finish", "key_pass", "with_errors"]

NORM_EPS = 1e-5


def activate(z: torch.Tensor, kind: Activation) -> torch.Tensor:
    return torch.nn.functional.gelu(z) if kind == "gelu" else torch.nn.functional.silu(z)


def activate_backward(grad: torch.Tensor, z: torch.Tensor, kind: Activation) -> torch.Tensor:
    """grad ⊙ σ'(z), itself differentiable."""
    if kind == "gelu":
        return cast(torch.Tensor, torch.ops.aten.gelu_backward(grad, z))
    # torch has a kernel for this one too, but no derivative of it.
    s = torch.sigmoid(z)
    return grad * (s * (1 + z * (1 - s)))


def finish(f: torch.Tensor, x: torch.Tensor, spec: MemorySpec, gain: torch.Tensor | None) -> torch.Tensor:
    """M(x) from the last layer's output f: the norm and its gain [N, 1, D] where the spec has one, and the residual."""
    if spec.norm:
        f = torch.nn.functional.layer_norm(f, f.shape[-1:], eps=NORM_EPS)
        f = f if gain is None else f * gain
    return x + f if spec.residual else f


def apply_network(
    weights: Sequence[torch.Tensor], x: torch.Tensor, spec: MemorySpec, gain: torch.Tensor | None = None
) -> torch.Tensor:
    """M(x) [..., T, D] of x [..., T, D] and weights [..., in, out]."""
    a = x
    for n, weight in enumerate(weights):
        a = a @ weight if n == 0 else activate(a, spec.activation) @ weight
    return finish(a, x, spec, gain)


@dataclass(frozen=True)
class KeyPass:
    """What a chunk's keys found in the memory: enough for every gradient in it."""

    inputs: tuple[torch.Tensor, ...]
    """a_{l-1} of each layer, [N, T, in]."""
    errors: tuple[torch.Tensor, ...]
    """e_l of each layer, [N, T, out]; clipped where the spec says so."""
    residuals: torch.Tensor
    """2 (M(k) - v) [N, T, D]."""
    norms: torch.Tensor | None
    """‖∂ℓ/∂M‖ before clipping, [N, T]; None where nobody needs it."""


def key_pass(
    weights: Sequence[torch.Tensor],
    k: torch.Tensor,
    v: torch.Tensor,
    spec: MemorySpec,
    gain: torch.Tensor | None,
    first: torch.Tensor | None = None,
    want_norms: bool = False,
) -> KeyPass:
    """The gradients of a chunk's tokens at these weights. ``first`` is k W_1 where it is already known."""
    z = torch.bmm(k, weights[0]) if first is None else first
    inputs, before = [k], []
    for weight in weights[1:]:
        before.append(z)
        inputs.append(activate(z, spec.activation))
        z = torch.bmm(inputs[-1], weight)
    residuals = 2.0 * (finish(z, k, spec, gain) - v)
    return with_errors(weights, inputs, before, residuals, _norm_backward(residuals, z, spec, gain), spec, want_norms)


def with_errors(
    weights: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    before: Sequence[torch.Tensor],
    residuals: torch.Tensor,
    last: torch.Tensor,
    spec: MemorySpec,
    want_norms: bool,
) -> KeyPass:
    """The way back: from the last layer's error to every layer's, and the clip."""
    errors = [last]
    for weight, z in zip(reversed(weights[1:]), reversed(before), strict=True):
        errors.append(activate_backward(torch.bmm(errors[-1], weight.transpose(1, 2)), z, spec.activation))
    errors.reverse()
    norms = None
    if want_norms or spec.clip is not None:
        # ‖aᵀe‖ = ‖a‖‖e‖: no gradient is ever formed.
        squares = torch.stack([_squares(a) * _squares(e) for a, e in zip(inputs, errors, strict=True)]).sum(0)
        norms = squares.detach().sqrt()
        if spec.clip is not None:
            scale = torch.rsqrt(torch.clamp(squares / spec.clip**2, min=1.0)).unsqueeze(-1)
            errors = [e * scale for e in errors]
    return KeyPass(tuple(inputs), tuple(errors), residuals, norms)


def _squares(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1)


def _norm_backward(r: torch.Tensor, f: torch.Tensor, spec: MemorySpec, gain: torch.Tensor | None) -> torch.Tensor:
    """∂ℓ/∂f from ∂ℓ/∂M: through the layer norm where there is one."""
    if not spec.norm:
        return r
    centred = f - f.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + NORM_EPS)
    unit = centred * scale
    g = r if gain is None else r * gain
    return scale * (g - g.mean(-1, keepdim=True) - unit * (g * unit).mean(-1, keepdim=True))
