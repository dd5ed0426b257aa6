"""The obviously right way: one sequence at a time, through the model's own attention. The oracle of the tests, and the
path for models whose attention cannot be shared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from twoclock.nn.sampling import sample_tokens, uniforms
from twoclock.types import Sampling

__all__ = ["plain_generate", "plain_logits"]


def plain_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Logits [T, V] of one sequence, by the model's own forward pass."""
    ids = torch.tensor([list(tokens)], device=model.device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


@torch.no_grad()
def plain_generate(
    model: Any,
    prompt: Sequence[int],
    seed: int,
    sampling: Sampling,
    ends: frozenset[int],
    stopped: Callable[[list[int]], bool] | None = None,
) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities of one rollout, the whole sequence recomputed for each token. Ends after a token of
    ``ends``, after tokens that are ``stopped``, and at a log-probability that is no number."""
    draws = uniforms(seed, sampling.max_new_tokens)
    tokens: list[int] = []
    logprobs: list[float] = []
    for draw in draws:
        logits = plain_logits(model, [*prompt, *tokens])[-1:]
        u = torch.tensor([draw], dtype=torch.float64, device=logits.device)
        token, logprob = sample_tokens(logits, u, sampling.temperature, sampling.top_k, sampling.top_p)
        tokens.append(int(token))
        logprobs.append(float(logprob))
        if tokens[-1] in ends or not math.isfinite(logprobs[-1]) or (stopped is not None and stopped(tokens)):
            break
    return tokens, logprobs
