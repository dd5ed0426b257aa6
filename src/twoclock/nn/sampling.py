"""Drawing tokens from logits with uniforms that the caller brings, so that a row's draw is its own.

Inverse transform sampling in a fixed order of the vocabulary: the token is the first whose cumulative probability
passes u. The same logits and u give the same token whatever else is in the batch.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["filter_logits", "sample_tokens", "sample_tokens_reference", "uniforms"]

BLOCK = 256
ROWS = 16
"""Rows whose float32 logits are worked on at one time: they stay in the processor's cache."""


def uniforms(seed: int, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) for one rollout: a counter-based stream keyed by its seed."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def filter_logits(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Logits [B, V] of the distribution that is sampled: divided by the temperature, then top-k, then top-p, what is
    cut at -inf. Top-p keeps the smallest set of most likely tokens whose mass reaches p (Holtzman et al.,
    arXiv:1904.09751); ties at the border of top-k are kept in."""
    logits = logits.float() if temperature == 1.0 else logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        least = torch.topk(logits, top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1.0:
        ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        probs = torch.softmax(ordered, dim=-1)
        before = torch.cumsum(probs, dim=-1) - probs
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(cut, float("-inf"))
    return logits


def sample_tokens(
    logits: torch.Tensor, u: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens [B] int64, log-probabilities [B] float32 under the distribution drawn from).

    ``u`` [B] float64 in [0, 1). ``temperature=0`` is greedy, with the log-probability at temperature 1. Two passes over
    blocks of the vocabulary replace one long cumulative sum, whose float32 error would move the tail.

    A row whose logits are no distribution (NaN, all -inf) gets a log-probability that is not finite, and any token.
    """
    if temperature <= 0.0:
        logits = logits.float()
        tokens = logits.argmax(dim=-1)
        return tokens, logits.gather(-1, tokens[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
    u = u.to(logits.device)
    parts = [
        _sample_some(logits[at : at + ROWS], u[at : at + ROWS], temperature, top_k, top_p)
        for at in range(0, len(logits), ROWS)
    ]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _sample_some(
    logits: torch.Tensor, u: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = filter_logits(logits, temperature, top_k, top_p)
    rows, vocab = logits.shape
    top = logits.amax(dim=-1)
    # Softmax's exponential is several times faster than exp, and its values serve as well as masses.
    mass = torch.softmax(logits, dim=-1)
    most = mass.amax(dim=-1)
    if vocab % BLOCK:
        mass = torch.nn.functional.pad(mass, (0, -vocab % BLOCK))
    padded = mass.view(rows, -1, BLOCK)
    block_mass = padded.sum(dim=-1).double()
    block_end = torch.cumsum(block_mass, dim=-1)
    target = u.to(block_end)[:, None] * block_end[:, -1:]
    # A target is below the total, so a block is always found; the clamp guards the last unit of rounding.
    block = torch.searchsorted(block_end, target, right=True).clamp(max=block_end.shape[1] - 1)
    start = block_end.gather(1, block) - block_mass.gather(1, block)
    inside = padded.gather(1, block[:, :, None].expand(-1, 1, BLOCK))[:, 0].double()
    # Below 0 by rounding, the target would be passed by the block's first token, be it excluded.
    offset = torch.searchsorted(torch.cumsum(inside, dim=-1), (target - start).clamp(min=0.0), right=True)
    # Rounding may step past the last token that has mass; the last such token of the block is then the answer.
    last = BLOCK - 1 - torch.argmax((inside > 0).flip(-1).int(), dim=-1, keepdim=True)
    tokens = (block * BLOCK + torch.minimum(offset, last))[:, 0].clamp(max=vocab - 1)
    # The most likely token's mass is exp(top - lse), and never small enough to lose digits.
    return tokens, logits.gather(-1, tokens[:, None])[:, 0] - top + most.log()


def sample_tokens_reference(
    logits: torch.Tensor, u: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`sample_tokens`, one row and one token at a time in float64."""
    tokens, logprobs = [], []
    for row, x in zip(logits.double(), u.tolist(), strict=True):
        if temperature <= 0.0:
            token = int(row.argmax())
            logprob = float(torch.log_softmax(row, -1)[token])
        else:
            probs = torch.softmax(filter_logits(row[None], temperature, top_k, top_p)[0].double(), -1).tolist()
            running, token = 0.0, len(probs) - 1
            for index, p in enumerate(probs):
                running += p
                if p > 0 and running > x:
                    token = index
                    break
            logprob = float(np.log(probs[token]))
        tokens.append(token)
        logprobs.append(logprob)
    return torch.tensor(tokens), torch.tensor(logprobs, dtype=torch.float32)
