"""What the slow clock minimises: advantages from rewards, and policy-gradient losses from them. Pure functions.

An objective is a row of :data:`OBJECTIVES`, four choices and two bounds; nothing here asks for one by name.

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
of a ratio is clamped to ±20 so that nothing overflows; beyond it a ``ppo`` token has no gradient.

Legend: G rollouts of a group, N rollouts, T tokens of the longest completion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch

from twoclock.errors import ConfigError
from twoclock.nn.kl import kl_k2, kl_loss, kl_values

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveName",
    "advantages",
    "policy_loss",
    "denominator",
    "tau_from_trl",
    "tau_from_verl",
    "soft_overlong_penalty",
    "kl_values",
    "kl_loss",
    "group_advantages",
    "grpo_loss",
    "kl_k2",
]

ObjectiveName = Literal["grpo", "dr_grpo", "dapo", "cispo", "gspo", "rloo", "reinforce"]

LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One row: data only. The formulas are at the top of the module."""

    name: str
    source: str
    """The paper, with its arXiv id where it has one."""
    advantage: Literal["std", "centred", "leave_one_out", "batch"]
    ratio: Literal["token", "sequence", "none"]
    clip: Literal["ppo", "cap", "none"]
    clip_low: float = 0.0
    """``ppo``: ε_low, the lower bound being 1 − ε_low; ``cap``: τ_min, the lower bound itself."""
    clip_high: float = 0.0
    """``ppo``: ε_high, the upper bound being 1 + ε_high; ``cap``: τ_max, the upper bound itself."""
    aggregation: Literal["sequence_mean", "token_mean", "constant", "sequence_value", "sequence_sum"]

    def __post_init__(self) -> None:
        problems = []
        if self.ratio == "none" and self.clip != "none":
            problems.append(f"objective {self.name!r}: without a ratio there is nothing to clip; set clip='none'")
        if self.aggregation == "sequence_value" and self.ratio != "sequence":
            problems.append(
                f"objective {self.name!r}: aggregation 'sequence_value' takes a ratio that is one value a sequence; "
                "set ratio='sequence' or aggregation='sequence_mean'"
            )
        problems += _wrong_bounds(self, self.clip_low, self.clip_high)
        if problems:
            raise ConfigError(problems)

    @property
    def on_policy_only(self) -> bool:
        """Whether rollouts of any but the present weights bias it: it has no importance weights."""
        return self.ratio == "none"


def _wrong_bounds(objective: Objective, low: float, high: float) -> list[str]:
    if objective.clip == "none":
        return []
    what = f"objective {objective.name!r}"
    if objective.clip == "ppo" and not (low >= 0 and high >= 0):
        return [f"{what}: clip_low and clip_high are distances from 1, 0 or more; got {low} and {high}"]
    if objective.clip == "cap" and not (0 <= low <= high and high > 0):
        return [f"{what}: clip_low and clip_high bound the weight itself, 0 <= low <= high > 0; got {low} and {high}"]
    return []


_ROWS = (
    Objective(
        name="grpo",
        source="Shao et al., arXiv:2402.03300",
        advantage="std",
        ratio="token",
        clip="ppo",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="sequence_mean",
    ),
    Objective(
        name="dr_grpo",
        source="Liu et al., arXiv:2503.20783",
        advantage="centred",
        ratio="token",
        clip="ppo",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="constant",
    ),
    Objective(
        name="dapo",
        source="Yu et al., arXiv:2503.14476",
        advantage="std",
        ratio="token",
        clip="ppo",
        clip_low=0.2,
        clip_high=0.28,
        aggregation="token_mean",
    ),
    Objective(
        name="cispo",
        source="MiniMax, arXiv:2506.13585",
        advantage="std",
        ratio="token",
        clip="cap",
        clip_low=0.0,
        clip_high=4.0,
        aggregation="token_mean",
    ),
    Objective(
        name="gspo",
        source="Zheng et al., arXiv:2507.18071",
        advantage="std",
        ratio="sequence",
        clip="ppo",
        clip_low=3e-4,
        clip_high=4e-4,
        aggregation="sequence_value",
    ),
    Objective(
        name="rloo",
        source="Ahmadian et al., arXiv:2402.14740",
        advantage="leave_one_out",
        ratio="none",
        clip="none",
        aggregation="sequence_sum",
    ),
    Objective(
        name="reinforce",
        source="Williams 1992, Machine Learning 8, 229-256",
        advantage="batch",
        ratio="none",
        clip="none",
        aggregation="sequence_sum",
    ),
)

OBJECTIVES: Mapping[str, Objective] = MappingProxyType({row.name: row for row in _ROWS})


def advantages(objective: Objective, groups: Sequence[Sequence[float]], *, eps: float = 1e-6) -> list[list[float]]:
    """The advantages of a whole batch: one list of rewards a group, and the same shape back.

    A group without variance, or of one rollout, gets exact zeros, except by ``batch``, where it is held against all
    others and has a gradient; there a batch without variance, or of one rollout, gets zeros. ``leave_one_out`` and
    ``batch`` leave a rollout's own reward out of its baseline, which keeps the gradient unbiased; ``centred`` shrinks
    it by (G − 1)/G. ``eps`` is that of ``std``. Raises ValueError for a reward that is not finite.
    """
    for at, group in enumerate(groups):
        for index, reward in enumerate(group):
            if not math.isfinite(reward):
                raise ValueError(f"rewards must be finite numbers; rollout {index} of group {at} has {reward}")
    if objective.advantage == "std":
        return [group_advantages(group, eps=eps) for group in groups]
    if objective.advantage == "centred":
        return [group_advantages(group, scale=False) for group in groups]
    if objective.advantage == "leave_one_out":
        return [_against_the_others(group) for group in groups]
    flat = iter(_against_the_others([reward for group in groups for reward in group]))
    return [[next(flat) for _ in group] for group in groups]


def _against_the_others(rewards: Sequence[float]) -> list[float]:
    """r_i − mean_{j≠i} r_j; exact zeros where all are equal, and where there is no other."""
    count, total = len(rewards), sum(rewards)
    if count < 2 or len(set(rewards)) == 1:
        return [0.0] * count
    return [r - (total - r) / (count - 1) for r in rewards]


def group_advantages(rewards: Sequence[float], *, scale: bool = True, eps: float = 1e-6) -> list[float]:
    """Advantages of one group, in the order given: ``std``, or ``centred`` by ``scale=False`` (Dr. GRPO). A group
    without variance, or of one rollout, gives exact zeros."""
    count = len(rewards)
    if count < 2 or len(set(rewards)) == 1:
        return [0.0] * count
    mean = sum(rewards) / count
    centred = [r - mean for r in rewards]
    if not scale:
        return centred
    std = (sum(c * c for c in centred) / (count - 1)) ** 0.5
    return [c / (std + eps) for c in centred]


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
    ``advantages`` is [N], or [N, T] for one a token, which every objective takes (``gspo`` by its own token-level form).
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
    # Padding is emptied before, not after: an infinity times 0 would be NaN, and so would its gradient.
    logprobs, weight = logprobs.masked_fill(~real, 0.0), weight.masked_fill(~real, 0.0)
    lengths = mask.sum(dim=-1).clamp(min=1.0)
    clipped = torch.zeros_like(real)
    if old_logprobs is None or objective.ratio == "none":
        term = weight * logprobs
    else:
        log_ratio = logprobs - old_logprobs.detach().masked_fill(~real, 0.0)
        if objective.ratio == "sequence":
            mean = (log_ratio.detach() * mask).sum(dim=-1) / lengths
            log_ratio = mean[:, None] + (logprobs - logprobs.detach())
        ratio = torch.exp(log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
        if objective.clip == "cap":
            term = ratio.detach().clamp(low, high) * weight * logprobs
            clipped = (weight != 0) & ((ratio < low) | (ratio > high))
        elif objective.clip == "ppo":
            term = torch.minimum(ratio * weight, ratio.clamp(1.0 - low, 1.0 + high) * weight)
            beyond = (log_ratio.abs() > LOG_RATIO_LIMIT) & (weight != 0)
            clipped = beyond | ((weight > 0) & (ratio > 1.0 + high)) | ((weight < 0) & (ratio < 1.0 - low))
        else:
            term = ratio * weight
    clipped = clipped & real
    rows = (term * mask).sum(dim=-1)
    if objective.aggregation in ("sequence_mean", "sequence_value"):
        rows = rows / lengths
    return -rows.sum(), (clipped.any(dim=-1) if objective.ratio == "sequence" else clipped).sum()


def _bounds(objective: Objective, low: float | None, high: float | None) -> tuple[float, float]:
    if objective.clip == "none" and (low is not None or high is not None):
        raise ConfigError(f"objective {objective.name!r} clips nothing; leave clip_low and clip_high out")
    low = objective.clip_low if low is None else low
    high = objective.clip_high if high is None else high
    if problems := _wrong_bounds(objective, low, high):
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


def tau_from_trl(epsilon_high: float) -> tuple[float, float]:
    """(τ_min, τ_max) of TRL's setting for CISPO: the weight is capped at ``epsilon_high`` itself, without lower bound."""
    if not epsilon_high > 0:
        raise ConfigError(f"TRL's epsilon_high caps the weight itself and is above 0, such as 5.0; got {epsilon_high}")
    return 0.0, float(epsilon_high)


def tau_from_verl(clip_ratio_low: float, clip_ratio_high: float) -> tuple[float, float]:
    """(τ_min, τ_max) of verl's settings for CISPO: distances from 1, so that 1.0 and 3.0 mean [0, 4]."""
    if not (clip_ratio_low >= 0 and clip_ratio_high >= 0):
        raise ConfigError(
            f"verl's clip ratios are distances from 1, 0 or more; got {clip_ratio_low} and {clip_ratio_high}"
        )
    return max(0.0, 1.0 - clip_ratio_low), 1.0 + clip_ratio_high


def soft_overlong_penalty(length: int, *, max_tokens: int, buffer: int) -> float:
    """What to add to the reward of a completion of ``length`` tokens, in [−1, 0] (DAPO, arXiv:2503.14476, eq. 13).

    0 up to max_tokens − buffer, from there down in a line to −1 at ``max_tokens``, and −1 beyond.
    """
    if not 0 <= buffer <= max_tokens:
        raise ConfigError(f"buffer lies between 0 and max_tokens = {max_tokens}; got {buffer}")
    if length < 0:
        raise ValueError(f"a length is 0 or more tokens; got {length}")
    over = length - (max_tokens - buffer)
    if over <= 0:
        return 0.0
    return -1.0 if over >= buffer else -over / buffer


def grpo_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> torch.Tensor:
    """:func:`policy_loss` of ``grpo``, the sum alone, and without the clamp of the exponent."""
    ratio = torch.exp(logprobs - old_logprobs)
    weight = advantages[:, None]
    term = torch.minimum(ratio * weight, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * weight)
    lengths = mask.sum(dim=-1).clamp(min=1.0)
    return -((term * mask).sum(dim=-1) / lengths).sum()
