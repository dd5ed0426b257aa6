"""Estimates of KL(π_θ‖π_ref) at sampled tokens, and those of them that may stand in a loss.

With r = π_ref/π_θ at a token that π_θ drew (Schulman, "Approximating KL divergence"):

    k1 = −log r            unbiased, of either sign
    k2 = ½ (log r)²        biased, never negative
    k3 = r − 1 − log r     unbiased, never negative

A good value is not a good gradient. What E_{y∼π_θ} ∇k(y) is, the sampling held fixed as it is in a loss
(arXiv:2510.01555):

    ∇k1    0                      a loss of k1 moves nothing but by noise: take k1 off the reward instead, detached
    ∇k2    ∇ KL(π_θ‖π_ref)        the reverse KL, as k1 in the reward
    ∇k3    ∇ KL(π_ref‖π_θ)        the other KL

All of this is on-policy: of tokens that another policy drew, none of it holds. Measuring drift is the work of
:mod:`twoclock.measure`. Legend: N rollouts, T tokens of the longest completion.
"""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ["kl_loss", "kl_values"]


def kl_values(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, which: Literal["k1", "k2", "k3"]) -> torch.Tensor:
    """One estimate a token, [N, T] in nats, from the log-probabilities [N, T] of the sampled tokens.

    Gradients flow through ``logprobs`` only; detach the result where it goes into a reward. Padding gets a value too:
    mask it. Equal models give exactly 0. Nothing is clamped: where π_θ ≪ π_ref at a sampled token, k3 grows
    exponentially, and a clamp would hide it.
    """
    if logprobs.shape != ref_logprobs.shape:
        raise ValueError(
            f"both models' log-probabilities must have one shape; got {tuple(logprobs.shape)} by the policy and "
            f"{tuple(ref_logprobs.shape)} by the reference"
        )
    difference = logprobs - ref_logprobs.detach()
    if which == "k1":
        return difference
    if which == "k2":
        return 0.5 * difference**2
    if which == "k3":
        # expm1 keeps the digits that r − 1 loses where the models are close.
        return torch.expm1(-difference) + difference
    raise ValueError(f"which is k1, k2 or k3; got {which!r}")


def kl_loss(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor, which: Literal["k2", "k3"]
) -> torch.Tensor:
    """The *sum* over rollouts of (1/|y|) Σ_t of the estimate; divide by the rollouts of the batch. All [N, T].

    ``k2`` regularises with the reverse KL(π_θ‖π_ref). ``k3`` is here for comparison and by name only: its value is that
    of the reverse KL, but as a loss it has the gradient of the *forward* KL(π_ref‖π_θ), exponential in the log-ratio.
    ``k1`` is refused: its expected gradient is 0. An empty completion contributes nothing.
    """
    if which not in ("k2", "k3"):
        raise ValueError(
            f"a KL loss is k2 or k3; got {which!r}. k1 has an expected gradient of 0: take kl_values(..., 'k1') off "
            "the reward, or use 'k2', whose gradient is the same KL's"
        )
    if mask.shape != logprobs.shape:
        raise ValueError(f"the mask must be {tuple(logprobs.shape)}, as the log-probabilities; got {tuple(mask.shape)}")
    real, mask = mask != 0, mask.to(logprobs.dtype)
    # Padding is emptied before, not after: an infinity times 0 would be NaN, and so would its gradient.
    values = kl_values(logprobs.masked_fill(~real, 0.0), ref_logprobs.masked_fill(~real, 0.0), which)
    return ((values * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1.0)).sum()
