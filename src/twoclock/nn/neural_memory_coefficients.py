"""What the gates of a chunk make of its gradients: the linear recurrence inside a chunk, solved for all tokens at once.

With N(t,i) = θ_i Π_{m=i+1..t} η_m, Γ(t,j) = Π_{m=j+1..t} (1 - α_m), β_t = Γ(t,0), μ_t = Π_{m≤t} η_m:

    S_t = μ_t S_0 - Σ_{i≤t} N(t,i) u_i
    M_t = β_t M_0 + f_t S_0 - Σ_{i≤t} G(t,i) u_i,     G = Γ N,   f_t = Σ_{j≤t} Γ(t,j) μ_j

Products are running products of the gates themselves, not exponentials of summed logarithms nor quotients: exact
where a gate is 0 or 1, with nothing to overflow. A place without a token has θ = 0, η = 1, α = 0 and no S added: M
and S pass.

Legend: N memories, n chunks, c tokens of each; tables over (token written i, token reading t) are stored [i, t].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Coefficients", "coefficients", "read_before"]


@dataclass(frozen=True)
class Coefficients:
    beta: torch.Tensor
    """β_t [N, n, c]."""
    carried: torch.Tensor | None
    """f_t [N, n, c]; None without momentum, like the two marked so below."""
    table: torch.Tensor
    """G(t, i) at [i, t], [N, n, c, c]; 0 where i > t."""
    mu_end: torch.Tensor | None
    """μ at the end [N, n]; with momentum."""
    surprise_end: torch.Tensor | None
    """N(end, i) [N, n, c]; with momentum."""


def coefficients(
    rate: torch.Tensor, momentum: torch.Tensor | None, forget: torch.Tensor, live: torch.Tensor | None
) -> Coefficients:
    """From θ, η, α [N, n, c] and, where some places hold no token, which do (bool, [N, n, c])."""
    keep = 1 - forget
    if live is not None:
        rate, keep = rate.masked_fill(~live, 0.0), keep.masked_fill(~live, 1.0)
        momentum = None if momentum is None else momentum.masked_fill(~live, 1.0)
    decay = _products(keep)
    beta = keep.cumprod(-1)
    if momentum is None:
        return Coefficients(beta, None, decay * rate.unsqueeze(-1), None, None)
    surprise = _products(momentum) * rate.unsqueeze(-1)
    mu = momentum.cumprod(-1)
    added, remaining = surprise, mu
    if live is not None:
        added, remaining = surprise * live.unsqueeze(-2), mu * live
    carried = (remaining.unsqueeze(-2) @ decay).squeeze(-2)
    return Coefficients(beta, carried, added @ decay, mu[..., -1], surprise[..., -1])


def _products(factors: torch.Tensor) -> torch.Tensor:
    """[.., j, t]: Π_{m=j+1..t} factors_m for j ≤ t, and 0 for j > t."""
    size = factors.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=factors.device).triu(1)
    steps = torch.where(later, factors.unsqueeze(-2), factors.new_ones(()))
    return steps.cumprod(-1).triu()


def read_before(found: Coefficients) -> Coefficients:
    """The same for token t reading M_{t-1}: everything over t moves by one; what happens at the end stays."""
    shift = torch.nn.functional.pad
    return Coefficients(
        shift(found.beta[..., :-1], (1, 0), value=1.0),
        None if found.carried is None else shift(found.carried[..., :-1], (1, 0)),
        shift(found.table[..., :-1], (1, 0)),
        found.mu_end,
        found.surprise_end,
    )
