"""What a local policy does with conditionings that shift its logits: sampling, scoring, divergences.

:mod:`twoclock.models.voices` says what the shifts come to; where they come to one change of the policy's own weights,
or to nothing, the policy goes its ordinary way and never comes back here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from twoclock.models.engine import Draft
from twoclock.models.steered import Job, generate_steered
from twoclock.models.steered_plain import plain_steered
from twoclock.models.voices import Companions, Recipe, recipe_of
from twoclock.types import Completion, Conditioning, Request, Sampling

if TYPE_CHECKING:
    from twoclock.models.local import LocalPolicy

__all__ = ["Steering"]


class Steering:
    """See the module."""

    def __init__(self, policy: LocalPolicy) -> None:
        self.policy = policy
        self.companions = Companions(policy)

    def recipe(self, conditioning: Conditioning) -> Recipe:
        """What the shifts come to. Raises UnsupportedError for a side that cannot be had."""
        return recipe_of(self.policy, self.companions, conditioning)

    def simplified(self, conditioning: Conditioning) -> tuple[Conditioning, Recipe | None]:
        """The conditioning without shifts where they come to one change of the policy's own weights, and no recipe;
        else the conditioning as it is, and the recipe."""
        if not conditioning.shifts:
            return conditioning, None
        recipe = self.recipe(conditioning)
        alone = recipe.alone
        if alone is not None and alone.policy is self.policy:
            return replace(conditioning, delta=alone.delta, shifts=()), None
        return conditioning, recipe

    # ----------------------------------------------------------------------------------------------------- sampling

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        """See :class:`~twoclock.contracts.Policy`. Rows whose shifts have the same sides are decoded together, whatever
        their amounts."""
        results: list[tuple[Completion, ...]] = [()] * len(requests)
        plain: list[tuple[int, Request]] = []
        jobs: dict[tuple[object, ...], list[tuple[int, Job]]] = {}
        for index, request in enumerate(requests):
            told, recipe = self.simplified(request.conditioning)
            if recipe is None:
                plain.append((index, replace(request, conditioning=told)))
            elif (problem := self._too_long(request, recipe, sampling)) is not None:
                results[index] = (problem,) * len(request.seeds)
            else:
                jobs.setdefault(recipe.shape, []).append((index, self._job(request, recipe)))
        for (index, _), row in zip(plain, self.policy.sample([r for _, r in plain], sampling), strict=True):
            results[index] = row
        for some in jobs.values():
            for (index, job), drafts in zip(some, self._decoded([job for _, job in some], sampling), strict=True):
                read = len(job.prompts[self.policy.base_hash].tokens)
                results[index] = tuple(self.policy._completion(draft, read, sampling.stop) for draft in drafts)
        return results

    def _decoded(self, jobs: Sequence[Job], sampling: Sampling) -> list[list[Draft]]:
        policy, stopped = self.policy, self.policy._stopper(sampling.stop)
        if all(voice.policy.shared for voice in jobs[0].recipe.voices):
            return generate_steered(jobs, policy._ends, sampling, policy._engine.max_rows, stopped)
        return [[plain_steered(job, seed, sampling, policy._ends, stopped) for seed in job.seeds] for job in jobs]

    def _job(self, request: Request, recipe: Recipe) -> Job:
        policies = {voice.policy.base_hash: voice.policy for voice in recipe.voices} | {
            self.policy.base_hash: self.policy
        }
        prompts = {key: policy._prompted(request) for key, policy in policies.items()}
        return Job(recipe, prompts, request.seeds)

    def _too_long(self, request: Request, recipe: Recipe, sampling: Sampling) -> Completion | None:
        """The failed completion where some model cannot read the prompt and as many tokens as may be drawn."""
        for voice in recipe.voices:
            card = voice.policy.card
            tokens = voice.policy.prompt_tokens(request.prompt, request.conditioning)
            if tokens + sampling.max_new_tokens > card.context_tokens:
                return Completion(
                    tokens=(),
                    logprobs=(),
                    text="",
                    finish="error",
                    prompt_tokens=self.policy.prompt_tokens(request.prompt, request.conditioning),
                    error=f"the prompt has {tokens} tokens and {sampling.max_new_tokens} are to be added, but "
                    f"{card.name} reads at most {card.context_tokens}",
                )
        return None
