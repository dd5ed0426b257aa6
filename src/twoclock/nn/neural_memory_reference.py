"""The neural memory token by token: slow, and as close to the paper's equations as code can be.

For each token (Behrouz, Zhong and Mirrokni, "Titans", arXiv:2501.00663, equations 8-18), with M' the weights at which
the token's chunk of C began:

    u_t = ∇_M ‖M'(k_t) - v_t‖²
    S_t = η_t S_{t-1} - θ_t u_t
    M_t = (1 - α_t) M_{t-1} + S_t
    y_t = M_t(q_t)

The gradient is torch's, of the loss as written; nothing here shares the algebra of the chunk form, which the tests hold
to this. At C = 1 it is the rule without chunks. No past surprise (``spec.momentum=False``): S_t = -θ_t u_t.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from twoclock.nn.neural_memory_inputs import MemoryStep, Tokens, checked
from twoclock.nn.neural_memory_net import apply_network
from twoclock.nn.neural_memory_spec import Gates
from twoclock.nn.neural_memory_state import MemoryState

__all__ = ["memory_reference"]

Weights = tuple[torch.Tensor, ...]


def memory_reference(
    state: MemoryState,
    keys: torch.Tensor,
    values: torch.Tensor,
    queries: torch.Tensor | None,
    gates: Gates,
    *,
    mask: torch.Tensor | None = None,
    gain: torch.Tensor | None = None,
    telemetry: bool = False,
) -> MemoryStep:
    """As :func:`twoclock.nn.neural_memory.memory_step`, one token after the other."""
    tokens = checked(state, keys, values, queries, gates, mask, gain)
    reads, losses, norms = [], [], []
    for t in range(tokens.length):
        before = state
        state, loss, norm = _write(state, tokens, t)
        losses.append(loss)
        norms.append(norm)
        if tokens.q is not None:
            source = state if state.spec.read == "after" else before
            reads.append(_read(source, tokens, t))
    shape = tokens.k.shape[:3]
    return MemoryStep(
        read=None if tokens.q is None else tokens.finished(_stacked(reads, tokens.k)),
        state=state,
        loss=_stacked(losses, tokens.k.new_empty(shape)) if telemetry else None,
        surprise=_stacked(norms, tokens.k.new_empty(shape)) if telemetry else None,
    )


def _write(state: MemoryState, tokens: Tokens, t: int) -> tuple[MemoryState, torch.Tensor, torch.Tensor]:
    """The state after token t, the loss before it [B, H] and the norm of its gradient [B, H]."""
    spec = state.spec
    live = tokens.mask[:, t] if tokens.mask is not None else torch.ones(state.rows, dtype=torch.bool)

    def losses(weights: Weights) -> torch.Tensor:
        found = apply_network(weights, tokens.k[:, :, t : t + 1], spec, tokens.gain)
        return (found - tokens.v[:, :, t : t + 1]).square().sum((-1, -2))

    gradient: Weights = torch.func.grad(lambda weights: losses(weights).sum())(state.base)
    squares = sum(u.square().sum((-1, -2)) for u in gradient)
    assert isinstance(squares, torch.Tensor)
    if spec.clip is not None:
        scale = (spec.clip / squares.clamp(min=spec.clip**2).sqrt())[..., None, None]
        gradient = tuple(u * scale for u in gradient)
    rate, keep = tokens.rate[:, :, t, None, None], 1 - tokens.forget[:, :, t, None, None]
    surprise = tuple(-rate * u for u in gradient)
    if tokens.momentum is not None:
        eta = tokens.momentum[:, :, t, None, None]
        surprise = tuple(eta * old + new for old, new in zip(state.surprise, surprise, strict=True))
    weights = tuple(keep * old + s for old, s in zip(state.weights, surprise, strict=True))
    after = _advanced(state, weights, surprise if spec.momentum else (), live)
    seen = live.to(squares.device)[:, None]
    return after, (losses(state.base) * seen).detach(), (squares.sqrt() * seen).detach()


def _advanced(state: MemoryState, weights: Weights, surprise: Weights, live: torch.Tensor) -> MemoryState:
    """The new values in the live rows, the old ones bit for bit in the others; a full chunk begins the next."""
    written = state.written + live.cpu()
    full = live & (written % state.spec.chunk == 0).to(live.device)
    weights = _where(live, weights, state.weights)
    return replace(
        state,
        weights=weights,
        surprise=_where(live, surprise, state.surprise),
        base=_where(full, weights, state.base),
        written=written,
    ).settled()


def _where(rows: torch.Tensor, new: Weights, old: Weights) -> Weights:
    return tuple(torch.where(rows.to(o.device)[:, None, None, None], n, o) for n, o in zip(new, old, strict=True))


def _read(state: MemoryState, tokens: Tokens, t: int) -> torch.Tensor:
    """[B, H, D]; zeros in rows without a token here."""
    assert tokens.q is not None
    out = apply_network(state.weights, tokens.q[:, :, t : t + 1], state.spec, tokens.gain)[:, :, 0]
    return out if tokens.mask is None else out.masked_fill(~tokens.mask[:, t, None, None], 0.0)


def _stacked(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.stack(parts, dim=2) if parts else torch.zeros_like(like)
