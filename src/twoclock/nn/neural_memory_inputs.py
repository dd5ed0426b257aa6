"""What the memory's kernels take and give: tokens checked once for both forms, and the result of a step.

Legend: B rows, H heads, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from twoclock.errors import ConfigError
from twoclock.nn.neural_memory_spec import Gates, check_gates
from twoclock.nn.neural_memory_state import MemoryState

__all__ = ["MemoryStep", "Tokens", "check_mask", "checked", "checked_gain"]


@dataclass(frozen=True)
class MemoryStep:
    """What reading a piece of text gave."""

    read: torch.Tensor | None
    """y_t = M(q_t), [B, H, T, D] in the keys' dtype, 0 at masked tokens; None where nothing was asked."""
    state: MemoryState
    """The memory after the piece."""
    loss: torch.Tensor | None = None
    """‖M'(k_t) - v_t‖² [B, H, T] at the weights M' of the gradient, before t is written; without history."""
    surprise: torch.Tensor | None = None
    """‖∇_M ‖M'(k_t) - v_t‖²‖ [B, H, T], before any clip; without history."""


@dataclass(frozen=True)
class Tokens:
    """A piece of text as the kernels see it, in the state's dtype; what is masked is 0."""

    k: torch.Tensor
    v: torch.Tensor
    q: torch.Tensor | None
    rate: torch.Tensor
    momentum: torch.Tensor | None
    forget: torch.Tensor
    mask: torch.Tensor | None
    """[B, T], True at tokens; None where all are."""
    gain: torch.Tensor | None
    """[H, 1, D]."""
    given: torch.dtype

    @property
    def length(self) -> int:
        return self.k.shape[2]

    def finished(self, read: torch.Tensor) -> torch.Tensor:
        return read.to(self.given)


def checked(
    state: MemoryState,
    keys: torch.Tensor,
    values: torch.Tensor,
    queries: torch.Tensor | None,
    gates: Gates,
    mask: torch.Tensor | None,
    gain: torch.Tensor | None,
) -> Tokens:
    """The tokens, or a ConfigError that says what does not fit the state."""
    spec = state.spec
    if keys.ndim != 4:
        raise ConfigError(f"keys are [B, H, T, D]; got {list(keys.shape)}")
    shape = (state.rows, spec.heads, keys.shape[2], spec.width)
    problems = []
    for name, given in (("keys", keys), ("values", values), ("queries", queries)):
        if given is None:
            continue
        if tuple(given.shape) != shape:
            problems.append(
                f"{name} are [B, H, T, D] = {list(shape)} for a state of {state.rows} rows, {spec.heads} heads of "
                f"width {spec.width}; got {list(given.shape)}"
            )
        if not given.is_floating_point():
            problems.append(f"{name} are floating-point numbers; got {given.dtype}")
        if given.device != state.device:
            problems.append(
                f"{name} are on {given.device}, the state on {state.device}; type: state.to({given.device})"
            )
    if problems:
        raise ConfigError(problems)
    dtype = state.dtype
    tokens = Tokens(
        keys.to(dtype),
        values.to(dtype),
        None if queries is None else queries.to(dtype),
        gates.rate.to(dtype),
        None if gates.momentum is None else gates.momentum.to(dtype),
        gates.forget.to(dtype),
        None if mask is None else check_mask(mask, (shape[0], shape[2])),
        checked_gain(state, gain),
        keys.dtype,
    )
    if tokens.mask is not None and _gates_fit(gates, shape[:3]):
        tokens = _without_masked(tokens, tokens.mask)
    check_gates(spec, Gates(tokens.rate, tokens.momentum, tokens.forget), shape[:3])
    return tokens


def checked_gain(state: MemoryState, gain: torch.Tensor | None) -> torch.Tensor | None:
    """The layer norm's gain as [H, 1, D] in the state's dtype."""
    spec = state.spec
    if gain is None:
        return None
    if not spec.norm:
        raise ConfigError("a gain belongs to the layer norm of a memory with spec.norm=True; this has none: gain=None")
    if tuple(gain.shape) != (spec.heads, spec.width):
        raise ConfigError(f"the gain is [H, D] = {[spec.heads, spec.width]}; got {list(gain.shape)}")
    return gain.to(state.dtype).unsqueeze(1)


def check_mask(mask: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The mask, or a ConfigError."""
    if mask.dtype != torch.bool:
        raise ConfigError(f"the mask is True at tokens and False at padding; got {mask.dtype}, type: mask.bool()")
    if tuple(mask.shape) != shape:
        raise ConfigError(f"the mask is [B, T] = {list(shape)}; got {list(mask.shape)}")
    return mask


def _gates_fit(gates: Gates, shape: tuple[int, ...]) -> bool:
    return all(tuple(g.shape) == shape for g in (gates.rate, gates.momentum, gates.forget) if g is not None)


def _without_masked(tokens: Tokens, mask: torch.Tensor) -> Tokens:
    """What stands at padding may be anything, NaN too: it becomes 0 before it can reach a sum or a gradient."""
    gone = ~mask[:, None, :]
    wide = gone.unsqueeze(-1)
    return replace(
        tokens,
        k=tokens.k.masked_fill(wide, 0.0),
        v=tokens.v.masked_fill(wide, 0.0),
        q=None if tokens.q is None else tokens.q.masked_fill(wide, 0.0),
        rate=tokens.rate.masked_fill(gone, 0.0),
        momentum=None if tokens.momentum is None else tokens.momentum.masked_fill(gone, 0.0),
        forget=tokens.forget.masked_fill(gone, 0.0),
    )
