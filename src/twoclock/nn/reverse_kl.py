"""KL(policy‖teacher) before each token, exact over the vocabulary, from hidden states.

    K_n = Σ_v p_n(v) (log p_n(v) − log q_n(v)),   p_n = softmax(z_n / τ),   q_n = softmax(t_n / τ)

with z_n = head(h_n) the policy's logits and t_n the teacher's, which get no gradient. As Σ_v p = 1,

    ∂K_n / ∂z_n[v] = p_n(v) (log p_n(v) − log q_n(v) − K_n) / τ .

That vanishes with p_n(v), however likely v is to the teacher: what the policy all but never says it learns only slowly.
A share f of the other direction, F_n = Σ_v q_n (log q_n − log p_n), has ∂F_n / ∂z_n[v] = (p_n(v) − q_n(v)) / τ, and
(1 − f) K_n + f F_n is what is returned; f = ½ is half of Jeffreys' divergence.

The forward pass walks over the rows in chunks, multiplies this by ∂z_n/∂h_n at once and drops the logits: no more than
a chunk of them exists at any time. The head itself must not be trained here.

Compared with the form over sampled tokens (:func:`twoclock.slow.credit.credit_distilled`) the gradient has the same
mean and none of the noise of which token was drawn (Agarwal et al., arXiv:2306.13649: on-policy, with the reverse
KL). Legend: N places, H width of the hidden states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from twoclock.nn.vocabulary import CHUNK, Head

__all__ = ["reverse_kl", "reverse_kl_reference"]

Logits = Callable[[slice], torch.Tensor]
"""A slice of the places → the teacher's logits there [n, V]."""


def reverse_kl(
    hidden: torch.Tensor, head: Head, teacher: Logits, temperature: float, forward: float = 0.0
) -> torch.Tensor:
    """K [N] in nats, float32, from the policy's hidden states [N, H], with a share ``forward`` of the other direction;
    gradients go to ``hidden`` alone."""
    result: torch.Tensor = _ReverseKL.apply(hidden, head, teacher, temperature, forward)  # type: ignore[no-untyped-call]
    return result


def reverse_kl_reference(
    logits: torch.Tensor, teacher: torch.Tensor, temperature: float, forward: float = 0.0
) -> torch.Tensor:
    """:func:`reverse_kl` from all logits [N, V] at once. Gradients go through the policy's logits."""
    p = torch.log_softmax(logits.float() / temperature, dim=-1)
    q = torch.log_softmax(teacher.detach().float() / temperature, dim=-1)
    reverse = (p.exp() * _difference(p, q)).sum(dim=-1)
    return (1 - forward) * reverse + forward * (q.exp() * _difference(q, p)).sum(dim=-1) if forward else reverse


def _difference(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """log p − log q; 0 where p cannot go, as 0 log 0 is 0."""
    return torch.where(p == -torch.inf, torch.zeros_like(p), p - q)


class _ReverseKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: Head, teacher: Logits, temperature: float, forward: float
    ) -> torch.Tensor:
        values = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        slopes = hidden.new_zeros(hidden.shape if hidden.requires_grad else (0,), dtype=torch.float32)
        for start in range(0, hidden.shape[0], CHUNK):
            some = slice(start, min(hidden.shape[0], start + CHUNK))
            logits = head(hidden[some])
            p = torch.log_softmax(logits / temperature, dim=-1)
            q = torch.log_softmax(teacher(some).float() / temperature, dim=-1)
            difference, probs = _difference(p, q), p.exp()
            values[some] = torch.linalg.vecdot(probs, difference)
            if hidden.requires_grad:
                slope = probs * (difference - values[some, None])
                if forward:
                    slope = (1 - forward) * slope + forward * (probs - q.exp())
                if head.softcap > 0.0:
                    slope = slope * (1.0 - (logits / head.softcap) ** 2)
                slopes[some] = (slope.to(head.weight.dtype) @ head.weight).float()
            if forward:
                values[some] *= 1 - forward
                values[some] += forward * torch.linalg.vecdot(q.exp(), _difference(q, p))
        ctx.save_for_backward(slopes)
        ctx.factor, ctx.dtype = head.scale / temperature, hidden.dtype
        return values

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return (slopes * (grad.float() * ctx.factor)[:, None]).to(ctx.dtype), None, None, None, None
