"""What the slow clock minimises: advantages within a group, and the clipped policy-gradient loss.

GRPO (Shao et al., arXiv:2402.03300), per rollout i of a group of G, per completion token t:

    A_i   = (r_i − mean_j r_j) / (std_j r_j + ε)          std unbiased (N − 1), over the whole group
    ρ_it  = exp(log π_θ(y_it) − log π_old(y_it))
    L     = −(1/N) Σ_i (1/|y_i|) Σ_t min(ρ_it A_i, clip(ρ_it, 1 − ε_low, 1 + ε_high) A_i)

N counts every rollout of the batch, those of dead groups (no reward variance, A = 0) included. Legend: G rollouts of a
group, N rollouts, T tokens of the longest completion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["grpo_loss", "group_advantages", "kl_k2"]


def group_advantages(rewards: Sequence[float], *, scale: bool = True, eps: float = 1e-6) -> list[float]:
    """Advantages of one group, in the order given. ``scale=False`` leaves the standard deviation out (Dr. GRPO,
    arXiv:2503.20783). A group without variance, or of one rollout, gives exact zeros."""
    count = len(rewards)
    if count < 2 or len(set(rewards)) == 1:
        return [0.0] * count
    mean = sum(rewards) / count
    centred = [r - mean for r in rewards]
    if not scale:
        return centred
    std = (sum(c * c for c in centred) / (count - 1)) ** 0.5
    return [c / (std + eps) for c in centred]


def grpo_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> torch.Tensor:
    """The *sum* over rollouts of −(1/|y|) Σ_t of the clipped term; divide by N of the batch for the loss above.

    ``logprobs``, ``old_logprobs`` and ``mask`` are [N, T], ``advantages`` [N]. A sum, so that a batch may be walked in
    pieces and the gradients added up. An empty completion contributes nothing.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    weight = advantages[:, None]
    term = torch.minimum(ratio * weight, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * weight)
    lengths = mask.sum(dim=-1).clamp(min=1.0)
    return -((term * mask).sum(dim=-1) / lengths).sum()


def kl_k2(logprobs: torch.Tensor, base_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The sum over rollouts of (1/|y|) Σ_t ½ (log π_θ − log π_base)².

    On-policy its gradient is that of the reverse KL(π_θ‖π_base), which k3 as a loss does not have (arXiv:2510.01555).
    """
    lengths = mask.sum(dim=-1).clamp(min=1.0)
    return ((0.5 * (logprobs - base_logprobs) ** 2 * mask).sum(dim=-1) / lengths).sum()
