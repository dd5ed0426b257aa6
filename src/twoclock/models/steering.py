"""What a local policy does with conditionings that shift its logits: sampling, scoring, divergences.

:mod:`twoclock.models.voices` says what the shifts come to; where they come to one change of the policy's own weights,
or to nothing, the policy goes its ordinary way and never comes back here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from twoclock.models.engine import Draft
from twoclock.models.steered import Job, generate_steered
from twoclock.models.steered_scoring import (
    Predictions,
    chosen_under,
    kl_between,
    predictions,
    reverse_kl_under,
    stats_under,
)
from twoclock.models.teacher_forcing import Stats
from twoclock.models.voices import Companions, Recipe, recipe_of
from twoclock.nn.proxy import token_shifts
from twoclock.nn.summed import summed
from twoclock.types import Completion, Conditioning, Delta, Request, Sampling, TokenShift

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
            # What is mixed in is in the voice already, where it is the policy's own.
            return replace(conditioning, delta=alone.delta, mixture=None, shifts=()), None
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
        return generate_steered(jobs, policy._ends, sampling, policy._engine.max_rows, stopped)

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

    # ------------------------------------------------------------------------------------------------------- scoring

    def sequence_stats(
        self,
        prompts: Sequence[str],
        conditioning: Conditioning,
        completions: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float,
        change: Any = None,
    ) -> list[Stats]:
        """See :class:`~twoclock.contracts.Trainable`; the prompts in parts that fit in memory."""
        told, learning = self._learning(conditioning, change)
        plain, recipe = self.simplified(told)
        if recipe is None:
            return self.policy.sequence_stats(prompts, plain, completions, temperature=temperature)
        results: list[Stats] = []
        for part in self.chunks(prompts, told, completions):
            answers = [completions[i] for i in part]
            found = self._predictions(told, [prompts[i] for i in part], answers, learning)
            results += stats_under(found, answers, temperature)
        return results

    def reverse_kl(
        self,
        prompts: Sequence[str],
        conditioning: Conditioning,
        completions: Sequence[Sequence[Sequence[int]]],
        teachers: Sequence[Conditioning],
        *,
        temperature: float,
        change: Any = None,
        forward: float = 0.0,
    ) -> list[torch.Tensor]:
        """See :meth:`twoclock.models.local.LocalPolicy.reverse_kl`; one prompt at a time."""
        told, learning = self._learning(conditioning, change)
        simple = [self.simplified(one) for one in (told, *teachers)]
        if not any(recipe for _, recipe in simple):
            taught = [one for one, _ in simple[1:]]
            return self.policy.reverse_kl(
                prompts, simple[0][0], completions, taught, temperature=temperature, forward=forward
            )
        results: list[torch.Tensor] = []
        for prompt, answers, teacher in zip(prompts, completions, teachers, strict=True):
            with torch.no_grad():
                target = self._predictions(teacher, [prompt], [answers])
            found = self._predictions(told, [prompt], [answers], learning)
            results += reverse_kl_under(found, target, [answers], temperature, forward)
        return results

    def logprobs_under(
        self,
        prompts: Sequence[str],
        completions: Sequence[Sequence[int]],
        conditionings: Sequence[Conditioning],
        *,
        temperature: float = 1.0,
    ) -> list[list[list[float]]]:
        """See :class:`~twoclock.contracts.Trainable`."""
        simple = [self.simplified(told) for told in conditionings]
        if not any(recipe for _, recipe in simple):
            return self.policy.logprobs_under(
                prompts, completions, [told for told, _ in simple], temperature=temperature
            )
        wrapped = [[c] for c in completions]
        results: list[list[list[float]]] = []
        for told in conditionings:
            rows: list[list[float]] = []
            for part in self.chunks(prompts, told, wrapped):
                answers = [wrapped[i] for i in part]
                with torch.no_grad():
                    found = self._predictions(told, [prompts[i] for i in part], answers)
                values = iter(chosen_under(found, answers, temperature))
                rows += [[next(values) for _ in answer] for (answer,) in answers]
            results.append(rows)
        return results

    def exact_kl(
        self, prompts: Sequence[str], completions: Sequence[Sequence[int]], p: Conditioning, q: Conditioning
    ) -> list[float]:
        """See :class:`~twoclock.contracts.Trainable`. Infinite where p may draw what q rules out."""
        simple = [self.simplified(told) for told in (p, q)]
        if not any(recipe for _, recipe in simple):
            return self.policy.exact_kl(prompts, completions, simple[0][0], simple[1][0])
        means: list[float] = []
        for prompt, answer in zip(prompts, completions, strict=True):
            with torch.no_grad():
                one, other = (self._predictions(told, [prompt], [[answer]]) for told in (p, q))
            values = kl_between(one, other)
            means.append(max(0.0, math.fsum(values) / len(values)) if values else 0.0)
        return means

    @torch.no_grad()
    def token_shifts(self, prompt: str, conditioning: Conditioning, tokens: Sequence[int]) -> tuple[TokenShift, ...]:
        """See :class:`~twoclock.contracts.Shifting`."""
        answers = [[tokens]]
        before = self._predictions(replace(conditioning, shifts=()), [prompt], answers)
        after = self._predictions(conditioning, [prompt], answers)
        unknown = ~after.recipe.known if after.recipe.gaps else None
        decode = self.policy.tokenizer.decode
        found: list[TokenShift] = []
        for some in before.slices():
            one, other = before.logits(some), after.logits(some)
            drawn = torch.tensor(tokens[some], device=one.device)
            moved = token_shifts(one, other, drawn)
            mass = one.softmax(dim=-1) * (torch.zeros_like(one) if unknown is None else unknown.to(one))
            columns = (moved.before, moved.after, moved.top, moved.changed, mass.sum(dim=-1))
            rows = zip(tokens[some], *(column.tolist() for column in columns), strict=True)
            for token, was, now, top, changed, uncovered in rows:
                found.append(
                    TokenShift(
                        token=token,
                        text=decode([token]),
                        before=was,
                        after=now,
                        instead=decode([top]),
                        changed=changed,
                        uncovered=uncovered,
                    )
                )
        return tuple(found)

    def chunks(
        self, prompts: Sequence[str], conditioning: Conditioning, completions: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[int]]:
        """See :class:`~twoclock.contracts.Trainable`: every voice's pass takes room."""
        plain, recipe = self.simplified(conditioning)
        voices = 1 if recipe is None else len(recipe.voices)
        rendered = [self.policy.render(prompt, plain) for prompt in prompts]
        return self.policy._forcing.chunks(rendered, completions, sides=voices)

    def _learning(self, conditioning: Conditioning, change: Any) -> tuple[Conditioning, str | None]:
        """The conditioning with ``change`` in the place of its delta, and the id that the change then has: another
        than that of any fixed side, whatever it holds."""
        if change is None:
            return conditioning, None
        change = summed(change, self.policy._payload(conditioning.mixture))
        own = Delta("in training", "in training", self.policy.base_hash, change)
        return replace(conditioning, delta=own, mixture=None), own.id

    def _predictions(
        self,
        conditioning: Conditioning,
        prompts: Sequence[str],
        completions: Sequence[Sequence[Sequence[int]]],
        learning: str | None = None,
    ) -> Predictions:
        recipe = self.recipe(conditioning)
        own = [i for i, voice in enumerate(recipe.voices) if voice.delta is not None and voice.delta.id == learning]

        def render(policy: LocalPolicy) -> list[tuple[int, ...]]:
            return [policy.render(prompt, conditioning) for prompt in prompts]

        return predictions(recipe, render, completions, own[0] if own else None)
