"""Shifts over a base that tells only its most likely tokens: what is exact, and what is a model of the rest.

The base gives log-probabilities ℓ_v of a set K of tokens; Δ_v is the shift, known for every token. Every token outside
K has a log-probability of at most

    u = min(min_{v in K} ℓ_v, log m),   m = 1 − Σ_{v in K} exp ℓ_v,

since K holds the most likely tokens and no token has more than all that is hidden. So where

    max_{v in K} (ℓ_v + Δ_v) > max_{v not in K} (u + Δ_v)

the left side's token is the most likely one under the shift, whatever the hidden probabilities are: the step is
*certified*. Where it is not, a *tail model* stands in: the hidden mass m is spread over the hidden tokens as a small
model spreads it (ℓ_v = log m + log q_v − log q(hidden)), the anti-expert being the natural one.
Legend: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

__all__ = ["Choice", "choose", "hidden_bound", "hidden_mass", "tail_logprobs"]

ROUNDING = 1e-3
"""What servers round log-probabilities by, in nats, at most."""


@dataclass(frozen=True)
class Choice:
    """One greedy step."""

    token: int
    certified: bool
    """Whether the token is the most likely one whatever the hidden probabilities are."""
    margin: float
    """How far the best visible token lies above the most that a hidden one can reach, in nats; infinite where nothing
    is hidden, below 0 where the step is not certified."""


def hidden_mass(top: Mapping[int, float]) -> float:
    """m, at least 0: what servers round can sum to a little over 1."""
    return max(0.0, 1.0 - math.fsum(math.exp(value) for value in top.values()))


def hidden_bound(top: Mapping[int, float], complete: bool = True) -> float:
    """u, with room for a server's rounding. Where the told tokens are not all of the most likely ones (``complete`` is
    False), a hidden one may have all the mass that is left."""
    mass = hidden_mass(top) + ROUNDING * math.fsum(math.exp(value) for value in top.values())
    return min(min(top.values()) if complete else 0.0, math.log(mass)) + ROUNDING


def tail_logprobs(top: Mapping[int, float], model: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [V] float64: those told, and the hidden mass spread as ``model`` [V] spreads it, given as
    log-probabilities. Sums to 1 where the told ones do not exceed it."""
    told = torch.tensor([*top], dtype=torch.long)
    hidden = torch.ones(len(model), dtype=torch.bool)
    hidden[told] = False
    result = torch.full((len(model),), float("-inf"), dtype=torch.float64)
    result[told] = torch.tensor([*top.values()], dtype=torch.float64)
    mass = hidden_mass(top)
    if mass > 0.0 and bool(hidden.any()):
        spread = torch.log_softmax(model.double()[hidden], dim=-1)
        result[hidden] = math.log(mass) + spread.nan_to_num(nan=float("-inf"), neginf=float("-inf"))
    return result


def choose(
    top: Mapping[int, float],
    shift: torch.Tensor,
    tail: torch.Tensor,
    *,
    complete: bool = True,
    least_margin: float = 0.0,
) -> Choice:
    """The token of a greedy step. ``shift`` [V] is Δ, -inf where a token may not be drawn; ``tail`` [V] are the tail
    model's log-probabilities, used where the step is not certified. ``complete``: whether ``top`` holds the most likely
    tokens, without a gap. Raises ValueError where nothing was told."""
    if not top:
        raise ValueError("the base told no token's log-probability; a step cannot be taken")
    told = torch.tensor([*top], dtype=torch.long)
    values = torch.tensor([*top.values()], dtype=torch.float64) + shift.double()[told]
    best = int(values.argmax())
    rest = shift.double().clone()
    rest[told] = float("-inf")
    most = float(rest.max())
    reach = -math.inf if most == -math.inf else hidden_bound(top, complete) + most
    margin = float(values[best]) - reach if float(values[best]) > -math.inf else -math.inf
    if margin > least_margin:
        return Choice(int(told[best]), True, margin)
    modelled = tail_logprobs(top, tail) + shift.double()
    return Choice(int(modelled.argmax()), False, margin)
