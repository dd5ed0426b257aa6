"""Decoding under shifts the obviously right way: every voice reads the whole sequence anew for each token, by its own
forward pass. The oracle of the tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from twoclock.models.engine import Draft
from twoclock.models.plain import plain_logits
from twoclock.models.steered import Job, combined
from twoclock.nn.sampling import sample_tokens, uniforms
from twoclock.types import Sampling

__all__ = ["plain_steered", "plain_steered_logits"]


@torch.no_grad()
def plain_steered_logits(job: Job, tokens: Sequence[int]) -> torch.Tensor:
    """The logits [1, V] that the token after ``tokens`` of the answer is drawn from."""
    recipe = job.recipe
    found = []
    for voice, known in zip(recipe.voices, recipe.maps, strict=True):
        own = voice.policy is recipe.policy
        read = [i for t in tokens for i in ((t,) if own else known.read(t))]
        with voice.policy._mount(voice.delta):
            found.append(plain_logits(voice.policy.model, [*job.prompts[voice.policy.base_hash].tokens, *read])[-1:])
    device = found[0].device
    logits: torch.Tensor = combined(recipe, [recipe], [len(tokens)], [logits.to(device) for logits in found])
    return logits


def plain_steered(
    job: Job,
    seed: int,
    sampling: Sampling,
    ends: frozenset[int],
    stopped: Callable[[list[int]], bool] | None = None,
) -> Draft:
    """One rollout of a job."""
    draft = Draft()
    for draw in uniforms(seed, sampling.max_new_tokens):
        logits = plain_steered_logits(job, draft.tokens)
        u = torch.tensor([draw], dtype=torch.float64, device=logits.device)
        token, logprob = sample_tokens(logits, u, sampling.temperature, sampling.top_k, sampling.top_p)
        if not math.isfinite(float(logprob)):
            draft.finish = "error"
            return draft
        draft.tokens.append(int(token))
        draft.logprobs.append(float(logprob))
        if draft.tokens[-1] in ends or (stopped is not None and stopped(draft.tokens)):
            draft.finish = "stop"
            return draft
    return draft
