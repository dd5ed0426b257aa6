"""The matrix memory written anew at every token, in products of whole blocks: the delta rule with a forgetting gate.

A memory of one layer, chunks of one token and no momentum is

    e_t = v_t - k_t M_{t-1},   M_t = (1 - α_t) M_{t-1} + 2 θ_t k_tᵀ e_t

(Behrouz, Zhong and Mirrokni, "Titans", arXiv:2501.00663, appendix C: gated DeltaNet; α = 0: DeltaNet; the decay is
applied beside the error, not before it). Inside a block the errors depend on each other linearly, so all of them are
one triangular system,

    (I + L) E = V - β_{t-1} ⊙ (K M_0),   L(t, i) = 2 θ_i Π_{m=i+1..t-1}(1 - α_m) (k_t · k_i)  for i < t,

(after Yang et al., "Parallelizing linear transformers with the delta rule", arXiv:2406.06484) and M and its reads
follow as in :mod:`twoclock.nn.neural_memory`. The block length is no part of the function: it only sets the speed.
Tested against :func:`twoclock.nn.neural_memory_reference.memory_reference`.

Legend: B rows, H heads, T tokens, D width, c tokens of a block.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from twoclock.errors import ConfigError
from twoclock.nn.neural_memory_coefficients import coefficients, read_before
from twoclock.nn.neural_memory_inputs import MemoryStep, Tokens, checked
from twoclock.nn.neural_memory_spec import Gates, MemorySpec
from twoclock.nn.neural_memory_state import MemoryState

__all__ = ["BLOCK_TOKENS", "delta_step", "is_delta"]

BLOCK_TOKENS = 64


def is_delta(spec: MemorySpec) -> bool:
    """Whether :func:`delta_step` computes this memory."""
    plain = not (spec.momentum or spec.residual or spec.norm) and spec.clip is None
    return plain and spec.depth == 1 and spec.chunk == 1


def delta_step(
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
    """As :func:`twoclock.nn.neural_memory.memory_step`, for a memory that :func:`is_delta`; else ConfigError."""
    if not is_delta(state.spec):
        raise ConfigError(
            "the delta rule is a memory of depth 1 and chunk 1 without momentum, residual, norm and clip; got "
            f"{state.spec}; use memory_step"
        )
    with torch.autocast(state.device.type, enabled=False):
        tokens = checked(state, keys, values, queries, gates, mask, gain)
        matrix, reads, errors = state.weights[0], [], []
        for start in range(0, tokens.length, BLOCK_TOKENS):
            matrix, read, error = _block(matrix, tokens, slice(start, start + BLOCK_TOKENS), state.spec)
            reads.append(read)
            errors.append(error)
        read = tokens.k[:, :, :0] if not reads else torch.cat(reads, dim=2)
        loss = surprise = None
        if telemetry:
            error = (tokens.k[:, :, :0] if not errors else torch.cat(errors, dim=2)).detach()
            loss = _at_tokens(error.square().sum(-1), tokens.mask)
            surprise = _at_tokens(2 * tokens.k.detach().norm(dim=-1) * error.norm(dim=-1), tokens.mask)
        counts = tokens.length if tokens.mask is None else tokens.mask.sum(1).cpu()
        after = replace(state, weights=(matrix,), base=(matrix,), written=state.written + counts)
        asked = None if queries is None else tokens.finished(_at_tokens(read, tokens.mask))
        return MemoryStep(asked, after, loss, surprise)


def _block(
    matrix: torch.Tensor, tokens: Tokens, part: slice, spec: MemorySpec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """M [B, H, D, D] after the block, and of its tokens the reads and the errors e [B, H, c, D]."""
    k, v = tokens.k[:, :, part], tokens.v[:, :, part]
    live = None if tokens.mask is None else tokens.mask[:, None, part].expand(k.shape[:3])
    after = coefficients(2 * tokens.rate[:, :, part], None, tokens.forget[:, :, part], live)
    before = read_before(after)
    mixing = ((k @ k.transpose(-1, -2)) * before.table).transpose(-1, -2)
    known = v - before.beta.unsqueeze(-1) * (k @ matrix)
    errors = torch.linalg.solve_triangular(mixing, known, upper=False, unitriangular=True)
    new = after.beta[..., -1, None, None] * matrix + (k * after.table[..., -1].unsqueeze(-1)).transpose(-1, -2) @ errors
    if tokens.q is None:
        return new, errors, errors
    q, at = tokens.q[:, :, part], after if spec.read == "after" else before
    inside = ((k @ q.transpose(-1, -2)) * at.table).transpose(-1, -2) @ errors
    return new, at.beta.unsqueeze(-1) * (q @ matrix) + inside, errors


def _at_tokens(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """x [B, H, T, ...] with 0 at what is no token."""
    if mask is None:
        return x
    return x.masked_fill(~mask[:, None].reshape(len(x), 1, -1, *[1] * (x.ndim - 3)), 0.0)
