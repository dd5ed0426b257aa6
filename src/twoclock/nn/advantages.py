"""From rewards to advantages, and what a reward loses by running long. Plain numbers, whole batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from twoclock.errors import ConfigError
from twoclock.nn.objective_table import Objective

__all__ = ["advantages", "soft_overlong_penalty"]


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
        return [_of_group(group, eps=eps) for group in groups]
    if objective.advantage == "centred":
        return [_of_group(group, scale=False) for group in groups]
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


def _of_group(rewards: Sequence[float], *, scale: bool = True, eps: float = 1e-6) -> list[float]:
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
