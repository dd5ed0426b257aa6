"""What the slow clock minimises: advantages from rewards, and policy-gradient losses from them. Pure functions.

An objective is a row of data, four choices and two bounds; nothing here asks for one by name. The
room has its rows in ``objective_table``, what a rollout earns in ``advantages``, the divergences in ``kl``.

    advantage   std            A_i = (r_i − mean_j r_j) / (std_j r_j + ε)      std unbiased (G − 1), over the group
                centred        A_i = r_i − mean_j r_j                          over the group
                leave_one_out  A_i = r_i − mean_{j≠i} r_j = G/(G−1) · centred   over the group
                batch          A_i = r_i − mean_{j≠i} r_j                      over all rollouts of the batch
    ratio       token          ρ_it = exp(log π_θ(y_it) − log π_old(y_it))
                sequence       s_i = exp((1/|y_i|) Σ_t log ρ_it), and ρ_it = sg(s_i) · π_θ(y_it) / sg(π_θ(y_it)):
                               the value of s_i, with a gradient that sums to that of s_i (GSPO-token, arXiv:2507.18071)
                none           no weights; only for rollouts of the very policy that is trained
    clip        ppo            J_it = min(ρ_it A_i, clip(ρ_it, 1 − low, 1 + high) A_i)
                cap            J_it = sg(clip(ρ_it, low, high)) A_i log π_θ(y_it)      the bounds of the weight itself
                none           J_it = ρ_it A_i, and without ratio J_it = A_i log π_θ(y_it)
    aggregation sequence_mean  L = −(1/N) Σ_i (1/|y_i|) Σ_t J_it
                sequence_value the same sum, for a ratio that is one value a sequence: −(1/N) Σ_i J_i
                token_mean     L = −Σ_i Σ_t J_it / Σ_i |y_i|
                constant       L = −(1/(N · max_tokens)) Σ_i Σ_t J_it
                sequence_sum   L = −(1/N) Σ_i Σ_t J_it

N and Σ|y| are of the whole batch, dead groups (no reward variance, A = 0) included. sg stops the gradient. The exponent
of a ratio is clamped to ±20 so that nothing overflows; beyond it a token has no gradient, and under ``cap`` that of the
clamped weight.

Legend: G rollouts of a group, N rollouts, T tokens of the longest completion.
"""

from __future__ import annotations

import torch

from twoclock.errors import ConfigError
from twoclock.nn.objective_table import Objective, wrong_bounds

__all__ = ["denominator", "policy_loss"]

LOG_RATIO_LIMIT = 20.0


def policy_loss(
    objective: Objective,
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_low: float | None = None,
    clip_high: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the *sum* to be minimised, the count of what was clipped); divide the sum by :func:`denominator`.

    ``logprobs``, ``old_logprobs`` and ``mask`` (1 for tokens of the completion, 0 for padding) are [N, T];
    ``advantages`` is [N], or [N, T] for one a token, which every objective takes (``gspo`` by GSPO-token).
    A sum, so that a batch may be walked in pieces and the gradients added up. Gradients flow through ``logprobs`` only.
    An empty completion contributes nothing, and what padding holds is never read, NaN included.

    The count (an integer scalar without gradient) is of tokens, for a ratio a sequence of sequences, whose gradient the
    clip removes or whose weight it changes; A = 0 has no gradient to lose and is not counted. ``clip_low`` and
    ``clip_high`` take the place of the objective's own, with its meaning of them. Without a ratio ``old_logprobs`` is
    not read and may be None. Raises ValueError for shapes that do not match, ConfigError for bounds that make no sense.
    """
    low, high = _bounds(objective, clip_low, clip_high)
    weight = _checked(objective, logprobs, old_logprobs, advantages, mask)
    real, mask = mask != 0, mask.to(logprobs.dtype)
    # Padding is emptied before, not after: an infinity times 0 would be NaN, and so would its gradient. Without weight
    # it is not counted as clipped either.
    logprobs, weight = logprobs.masked_fill(~real, 0.0), weight.masked_fill(~real, 0.0)
    lengths = mask.sum(dim=-1).clamp(min=1.0)
    if old_logprobs is None or objective.ratio == "none":
        term, clipped = weight * logprobs, torch.zeros_like(real)
    else:
        log_ratio = logprobs - old_logprobs.detach().masked_fill(~real, 0.0)
        if objective.ratio == "sequence":
            mean = (log_ratio.detach() * mask).sum(dim=-1) / lengths
            log_ratio = mean[:, None] + (logprobs - logprobs.detach())
        term, clipped = _weighed(objective, log_ratio, logprobs, weight, low, high)
    rows = (term * mask).sum(dim=-1)
    if objective.aggregation in ("sequence_mean", "sequence_value"):
        rows = rows / lengths
    return -rows.sum(), (clipped.any(dim=-1) if objective.ratio == "sequence" else clipped).sum()


def _weighed(
    objective: Objective,
    log_ratio: torch.Tensor,
    logprobs: torch.Tensor,
    weight: torch.Tensor,
    low: float,
    high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(J_it, where the clip is active), both [N, T]; ``weight`` are the advantages."""
    ratio = torch.exp(log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    if objective.clip == "cap":
        clipped = (weight != 0) & ((ratio < low) | (ratio > high))
        return ratio.detach().clamp(low, high) * weight * logprobs, clipped
    beyond = (weight != 0) & (log_ratio.abs() > LOG_RATIO_LIMIT)
    if objective.clip == "none":
        return ratio * weight, beyond
    clipped = ((weight > 0) & (ratio > 1.0 + high)) | ((weight < 0) & (ratio < 1.0 - low))
    return torch.minimum(ratio * weight, ratio.clamp(1.0 - low, 1.0 + high) * weight), clipped | beyond


def _bounds(objective: Objective, low: float | None, high: float | None) -> tuple[float, float]:
    if objective.clip == "none" and (low is not None or high is not None):
        raise ConfigError(f"objective {objective.name!r} clips nothing; leave clip_low and clip_high out")
    low = objective.clip_low if low is None else low
    high = objective.clip_high if high is None else high
    if problems := wrong_bounds(objective, low, high):
        raise ConfigError(problems)
    return low, high


def _checked(
    objective: Objective,
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """The advantages as [N, T], detached; ValueError where the shapes do not fit."""
    shape = tuple(logprobs.shape)
    if len(shape) != 2:
        raise ValueError(f"log-probabilities must be [rollouts, tokens]; got {shape}")
    if mask.shape != logprobs.shape:
        raise ValueError(f"the mask must be {shape}, as the log-probabilities; got {tuple(mask.shape)}")
    if objective.ratio != "none":
        if old_logprobs is None:
            raise ValueError(f"objective {objective.name!r} weighs by π_θ/π_old: old_logprobs {shape} is needed")
        if old_logprobs.shape != logprobs.shape:
            raise ValueError(f"old_logprobs must be {shape}, as the log-probabilities; got {tuple(old_logprobs.shape)}")
    if tuple(advantages.shape) not in (shape, shape[:1]):
        raise ValueError(f"advantages must be {shape[:1]} or, one a token, {shape}; got {tuple(advantages.shape)}")
    weight = advantages.detach().to(logprobs)
    return weight if weight.dim() == 2 else weight[:, None].expand(shape)


def denominator(objective: Objective, *, rollouts: float, tokens: float, max_tokens: int) -> float:
    """What the sum of the whole batch is divided by: its ``rollouts``, its completion ``tokens`` (both counting dead
    groups), or rollouts × ``max_tokens``, the longest completion allowed. A batch of empty completions has the sum 0,
    and 1 to divide it by."""
    if not rollouts > 0:
        raise ValueError(f"a loss needs at least one rollout; got {rollouts}")
    if objective.aggregation == "token_mean":
        if not tokens >= 0:
            raise ValueError(f"tokens is a count, 0 or more; got {tokens}")
        return float(tokens) if tokens > 0 else 1.0
    if objective.aggregation == "constant":
        if max_tokens < 1:
            raise ValueError(f"max_tokens is the longest completion allowed, 1 or more; got {max_tokens}")
        return float(rollouts) * max_tokens
    return float(rollouts)
