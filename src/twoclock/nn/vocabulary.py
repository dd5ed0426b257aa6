"""Log-probabilities of chosen tokens from hidden states, without ever holding a logit for every token of a text.

    z_m = head(h_m) [V],   log p(y | m) = z_m[y] / τ − log Σ_v exp(z_m[v] / τ)

and the gradient with respect to h_m needs no logits either once E_m = Σ_v p(v | m) ∂z_m[v]/∂h_m [H] is known, as

    ∂ log p(y | m) / ∂h_m = (∂z_m[y]/∂h_m − E_m) / τ .

So the forward pass walks over the rows in chunks, keeps E_m, and drops the logits; the backward pass multiplies by what
comes from above. The head itself must not be trained here: its weights get no gradient.

Legend: M rows, H width of the hidden states, V vocabulary, N chosen tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Head", "chosen_logprobs", "chosen_logprobs_reference"]

CHUNK = 64
"""Rows whose logits exist at one time: as float32 they about fill the processor's last cache."""


@dataclass(frozen=True)
class Head:
    """From hidden states to logits: z = cap(scale · (W h + b)), with cap(z) = c·tanh(z/c) where c > 0 (Gemma 2)."""

    weight: torch.Tensor
    """[V, H]."""
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[M, H] -> [M, V] float32, rounded on the way as the model's own forward pass rounds."""
        return self.bent(nn.functional.linear(hidden, self.weight, self.bias))

    def bent(self, logits: torch.Tensor) -> torch.Tensor:
        """What follows W h + b."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap > 0.0:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()


def chosen_logprobs(
    hidden: torch.Tensor, head: Head, rows: torch.Tensor, tokens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities [N], entropies [M] in nats), float32: token ``tokens[n]`` after ``hidden[rows[n]]`` [M, H] in
    the distribution at ``temperature`` above 0. The entropies carry no gradient."""
    logprobs, entropy = _Chosen.apply(hidden, head, rows, tokens, temperature)  # type: ignore[no-untyped-call]
    return logprobs, entropy


def chosen_logprobs_reference(
    logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`chosen_logprobs` from all logits [M, V] at once. Gradients go through the logits."""
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs.clamp(min=torch.finfo(torch.float32).min)).sum(dim=-1)
    return logprobs[rows, tokens], entropy


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: Head, rows: torch.Tensor, tokens: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = hidden.shape[0]
        logprobs = hidden.new_zeros(rows.shape[0], dtype=torch.float32)
        entropy = hidden.new_zeros(size, dtype=torch.float32)
        slopes = hidden.new_ones(rows.shape[0], dtype=torch.float32)
        wanted = hidden.requires_grad
        expected = hidden.new_zeros(hidden.shape if wanted else (0,), dtype=torch.float32)
        for start, stop, picked in _chunks(rows, size):
            logits = head(hidden[start:stop])
            at, token = rows[picked] - start, tokens[picked]
            slope = 1.0 - (logits / head.softcap) ** 2 if head.softcap > 0.0 else None
            if temperature != 1.0:
                logits = logits / temperature
            probs = torch.softmax(logits, dim=-1)
            # log Σ exp(logits) = top - most, where most is the log-probability of the most likely token.
            top, most = logits.amax(dim=-1), probs.amax(dim=-1).log()
            logprobs[picked] = logits[at, token] - top[at] + most[at]
            mean = torch.linalg.vecdot(probs, logits)
            if not bool(mean.isfinite().all()):
                # A token that cannot come has probability 0 and a logit of -inf: 0 · -inf is NaN.
                mean = torch.linalg.vecdot(probs, logits.nan_to_num(neginf=0.0))
            entropy[start:stop] = top - most - mean
            if wanted:
                if slope is not None:
                    slopes[picked] = slope[at, token]
                    probs = probs * slope
                expected[start:stop] = (probs.to(head.weight.dtype) @ head.weight).float()
        ctx.save_for_backward(rows, tokens, slopes, expected)
        ctx.head, ctx.factor, ctx.dtype = head, head.scale / temperature, hidden.dtype
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> Any:
        rows, tokens, slopes, expected = ctx.saved_tensors
        grad = grad.float()
        total = grad.new_zeros(expected.shape[0]).index_add_(0, rows, grad)
        out = -total[:, None] * expected
        out.index_add_(0, rows, (grad * slopes)[:, None] * ctx.head.weight[tokens].float())
        return (out * ctx.factor).to(ctx.dtype), None, None, None, None


def _chunks(rows: torch.Tensor, size: int) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(first row, last row + 1, which chosen tokens lie in between)."""
    for start in range(0, size, CHUNK):
        stop = min(size, start + CHUNK)
        yield start, stop, ((rows >= start) & (rows < stop)).nonzero()[:, 0]
