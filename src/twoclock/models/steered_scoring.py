"""Scores of given answers under shifts: log-probabilities and entropies with gradients, and exact KL divergences.

Each voice reads the answers behind its own prompts, in its own ids; what a token is predicted from is kept as hidden
states, and the logits of all voices exist for a chunk of tokens at a time, in the backward pass too (they are made
again). Gradients flow into the policy's own change of weights alone: experts and anti-experts are fixed. That is the
gradient of training through the sum (arXiv:2407.01155), where the policy learns what the shifts do not do already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from twoclock.models.steered import combined
from twoclock.models.teacher_forcing import Stats, split_stats
from twoclock.models.vocabularies import VocabularyMap
from twoclock.models.voices import Recipe
from twoclock.nn.reverse_kl import reverse_kl_reference
from twoclock.nn.vocabulary import CHUNK, Head

if TYPE_CHECKING:
    from twoclock.models.local import LocalPolicy

__all__ = ["Predictions", "chosen_under", "kl_between", "predictions", "reverse_kl_under", "stats_under"]

Completions = Sequence[Sequence[Sequence[int]]]
Render = Callable[["LocalPolicy"], list[tuple[int, ...]]]


@dataclass(frozen=True, eq=False)
class _Source:
    """What one voice predicts each token from: hidden states [M, H] and the head, or, without a head, logits [M, S]."""

    values: torch.Tensor = field(repr=False)
    head: Head | None
    at: torch.Tensor | None
    """[N]: which of the M each token of the answers uses; None: they are the same."""

    def logits(self, some: slice) -> torch.Tensor:
        rows = self.values[some] if self.at is None else self.values[self.at[some]]
        return rows if self.head is None else self.head(rows)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The distributions before each of N tokens, under one recipe."""

    recipe: Recipe = field(repr=False)
    sources: Sequence[_Source] = field(repr=False)
    steps: Sequence[int] = field(repr=False)
    """At which token of its answer each one is, from 0."""

    def logits(self, some: slice) -> torch.Tensor:
        """[n, V] float32 of a slice of the tokens."""
        steps = self.steps[some]
        found = [source.logits(some) for source in self.sources]
        total: torch.Tensor = combined(
            self.recipe, [self.recipe] * len(steps), steps, [logits.to(found[0].device) for logits in found]
        )
        return total

    def base(self, some: slice, voice: int) -> torch.Tensor:
        """The raw logits [n, S] of one voice."""
        return self.sources[voice].logits(some)

    def slices(self) -> Iterator[slice]:
        for start in range(0, len(self.steps), CHUNK):
            yield slice(start, min(len(self.steps), start + CHUNK))


def predictions(recipe: Recipe, render: Render, completions: Completions, learning: int | None = None) -> Predictions:
    """What every voice predicts the answers' tokens from. ``render`` gives a model's own prompts; ``learning`` is the
    voice whose change of weights gets gradients."""
    sources = []
    for i, (voice, known) in enumerate(zip(recipe.voices, recipe.maps, strict=True)):
        policy = voice.policy
        own = policy is recipe.policy
        answers, at = (completions, None) if own else _translated(known, completions)
        with nullcontext() if i == learning else torch.no_grad(), policy._mount(voice.delta):
            values, head = policy._forcing.predicting(render(policy), answers)
        sources.append(_Source(values, head, None if at is None else at.to(values.device)))
    steps = [j for answers in completions for answer in answers for j in range(len(answer))]
    return Predictions(recipe, sources, steps)


def _translated(known: VocabularyMap, completions: Completions) -> tuple[Completions, torch.Tensor]:
    """The answers in a side's ids, and for each token which of the side's tokens it is predicted together with: the
    first of those that it is read as. Behind each answer stands one more, so that the last has a prediction too where
    it is read as nothing."""
    at: list[int] = []
    start = 0
    translated = []
    for answers in completions:
        row = []
        for answer in answers:
            ids: list[int] = []
            for token in answer:
                at.append(start + len(ids))
                ids += known.read(token)
            row.append([*ids, 0] if answer else [])
            start += len(row[-1])
        translated.append(row)
    return translated, torch.tensor(at, dtype=torch.long)


def stats_under(found: Predictions, completions: Completions, temperature: float) -> list[Stats]:
    """See :class:`twoclock.contracts.SequenceStats`; one record a prompt."""
    tokens = _flat(completions, found)
    temperature = temperature or 1.0

    def chosen(some: slice) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = torch.log_softmax(found.logits(some) / temperature, dim=-1)
        entropy = -torch.where(logprobs == -torch.inf, 0.0, logprobs.exp() * logprobs).sum(dim=-1)
        return logprobs.gather(1, tokens[some, None])[:, 0], entropy.detach()

    pieces = [_again(chosen, some, found) for some in found.slices()]
    none = torch.zeros(0, device=tokens.device)
    logprobs = torch.cat([none, *(one for one, _ in pieces)])
    return split_stats(logprobs, torch.cat([none, *(entropy for _, entropy in pieces)]), completions)


def reverse_kl_under(
    student: Predictions, teacher: Predictions, completions: Completions, temperature: float, forward: float = 0.0
) -> list[torch.Tensor]:
    """For each prompt [N, T]: KL(student‖teacher) before each token of its completions, with a share ``forward`` of the
    other direction; 0 beyond the end."""
    temperature = temperature or 1.0

    def divergence(some: slice) -> torch.Tensor:
        with torch.no_grad():
            target = teacher.logits(some)
        return reverse_kl_reference(student.logits(some), target, temperature, forward)

    pieces = [_again(divergence, some, student) for some in student.slices()]
    values = torch.cat([torch.zeros(0, device=_device(student)), *pieces])
    return [stat.logprobs for stat in split_stats(values, values.detach(), completions)]


@torch.no_grad()
def chosen_under(found: Predictions, completions: Completions, temperature: float) -> list[float]:
    """The log-probability of every token, in order."""
    tokens = _flat(completions, found)
    values: list[float] = []
    for some in found.slices():
        logprobs = torch.log_softmax(found.logits(some) / (temperature or 1.0), dim=-1)
        values += logprobs.gather(1, tokens[some, None])[:, 0].tolist()
    return values


@torch.no_grad()
def kl_between(p: Predictions, q: Predictions) -> list[float]:
    """KL(p‖q) in nats before every token, in order; infinite where p may draw what q rules out."""
    return [value for some in p.slices() for value in _kl(p.logits(some), q.logits(some)).tolist()]


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    p, q = torch.log_softmax(p, dim=-1), torch.log_softmax(q, dim=-1)
    return (p.exp() * torch.where(p == -torch.inf, 0.0, p - q)).sum(dim=-1)


def _again(of: Callable[[slice], Any], some: slice, found: Predictions) -> Any:
    """``of(some)``, whose logits are dropped and made again in the backward pass, where there will be one."""
    if torch.is_grad_enabled() and any(source.values.requires_grad for source in found.sources):
        return checkpoint(of, some, use_reentrant=False)
    return of(some)


def _flat(completions: Completions, found: Predictions) -> torch.Tensor:
    flat = [token for answers in completions for answer in answers for token in answer]
    return torch.tensor(flat, dtype=torch.long, device=_device(found))


def _device(found: Predictions) -> torch.device:
    return found.sources[0].values.device
