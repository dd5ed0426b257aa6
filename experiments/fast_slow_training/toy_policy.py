"""The two-token world's model: two tables of logits, small enough to be enumerated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from toy_world import NUM_ANSWERS, NUM_FORMATS, NUM_INPUTS, World

from twoclock.errors import ConfigError, UnsupportedError
from twoclock.hashing import content_hash
from twoclock.models.mounting import Mounting
from twoclock.nn.sampling import sample_tokens, uniforms
from twoclock.seeding import child_rng, child_seed
from twoclock.types import Completion, Conditioning, Delta, PolicyCard, Request, Sampling

__all__ = ["ToyPolicy", "ToyStats", "base_weights"]

LENGTH = 2
"""Tokens of a whole completion."""

_INPUT = re.compile(r"input (\d+)")
_INSTRUCTION = re.compile(r"use format (\d+)\.", re.IGNORECASE)


class _Tables(torch.nn.Module):
    """Two linear layers without bias on one-hot inputs: their weights are the tables of logits."""

    def __init__(self, formats: torch.Tensor, answers: torch.Tensor) -> None:
        super().__init__()
        self.formats = torch.nn.Linear(NUM_INPUTS, NUM_FORMATS, bias=False)
        self.answers = torch.nn.Linear(NUM_INPUTS, NUM_ANSWERS, bias=False)
        self.formats.weight.data.copy_(formats)
        self.answers.weight.data.copy_(answers)


@dataclass(frozen=True)
class ToyStats:
    """See :class:`twoclock.contracts.SequenceStats`."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor


class ToyPolicy:
    """A :class:`~twoclock.contracts.Policy` and :class:`~twoclock.contracts.Trainable` over two tables of logits.

    Token k is format k, token NUM_FORMATS + k answer k. ``weights`` stand in the place of the world's own base.
    """

    def __init__(self, world: World, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        self.world = world
        own = dict(weights or base_weights(world))
        self.model = _Tables(own["formats.weight"], own["answers.weight"]).requires_grad_(False)
        self._linears = {n: m for n, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)}
        self._mounting = Mounting(self.model, self._linears)
        self._inputs = torch.eye(NUM_INPUTS)
        bits = [content_hash(p.numpy().tobytes()) for p in self.model.parameters()]
        self._card = PolicyCard(name="two-token toy", base_hash=content_hash(bits), trainable=True, context_tokens=4096)
        self._shift = lru_cache(maxsize=4096)(self._shift_of)

    @property
    def card(self) -> PolicyCard:
        return self._card

    @property
    def base_hash(self) -> str:
        return self._card.base_hash

    def settled(self, delta: Delta | None) -> ToyPolicy:
        """A policy of its own whose base is this one with the change written in: what fresh training starts from."""
        with torch.no_grad():
            formats, answers = self._tables(Conditioning(delta=delta))
        return ToyPolicy(self.world, {"formats.weight": formats.T, "answers.weight": answers.T})

    # ------------------------------------------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        rows = [(r, seed) for r in requests for seed in r.seeds]
        if not rows:
            return [() for _ in requests]
        distinct = {r.conditioning.id: r.conditioning for r in requests}
        tables = [torch.stack(part) for part in zip(*(self._tables(c) for c in distinct.values()), strict=True)]
        order = {key: n for n, key in enumerate(distinct)}
        which = [order[r.conditioning.id] for r, _ in rows]
        at = [_input_of(r.prompt) for r, _ in rows]
        u = torch.tensor([uniforms(seed, LENGTH).tolist() for _, seed in rows], dtype=torch.float64)
        drawn = [
            sample_tokens(table[which, at], u[:, part], sampling.temperature, sampling.top_k, sampling.top_p)
            for part, table in enumerate(tables)
        ]
        tokens = torch.stack([drawn[0][0], drawn[1][0] + NUM_FORMATS], 1).tolist()
        logprobs = torch.stack([logprob for _, logprob in drawn], 1).tolist()
        done = iter(self._completion(*row, sampling) for row in zip(rows, tokens, logprobs, strict=True))
        return [tuple(next(done) for _ in request.seeds) for request in requests]

    def _completion(
        self, row: tuple[Request, int], tokens: list[int], logprobs: list[float], sampling: Sampling
    ) -> Completion:
        kept = min(LENGTH, sampling.max_new_tokens)
        words = [f"f{tokens[0]}", f"a{tokens[1] - NUM_FORMATS}"][:kept]
        return Completion(
            tokens=tuple(tokens[:kept]),
            logprobs=tuple(logprobs[:kept]),
            text=" ".join(words),
            finish="stop" if kept == LENGTH else "length",
            prompt_tokens=self.prompt_tokens(row[0].prompt, row[0].conditioning),
        )

    def prompt_tokens(self, prompt: str, conditioning: Conditioning) -> int:
        """A word is a token."""
        return len(prompt.split()) + len((conditioning.system or "").split())

    # ------------------------------------------------------------------------------------------------------- weights

    def _tables(self, conditioning: Conditioning, change: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the formats [inputs, formats] and of the answers [inputs, answers]."""
        if conditioning.exemplars:
            raise UnsupportedError("the two-token toy reads no exemplars: it has a system prompt and weights")
        with self._mount(conditioning.delta) if change is None else self._mounting(change):
            formats, answers = self.model.formats(self._inputs), self.model.answers(self._inputs)
        return formats + self._shift(conditioning.system), answers

    def _mount(self, delta: Delta | None) -> AbstractContextManager[None]:
        if delta is not None and delta.base != self.base_hash:
            raise UnsupportedError(f"the delta {delta.id[:12]} belongs to another base, {delta.base[:12]}")
        return self._mounting(delta.payload if delta else None)

    def _shift_of(self, system: str | None) -> torch.Tensor:
        """What a system prompt adds to the formats' logits."""
        shift = torch.zeros(NUM_FORMATS)
        if system is None:
            return shift
        if named := _INSTRUCTION.search(system):
            at = int(named[1])
            shift[at : at + 1] = self.world.prompt_bias  # a format that there is not helps nothing
            return shift
        rng = child_rng("toy-shift", self.world.seed, system)
        return torch.tensor([rng.gauss(0.0, self.world.other_bias) for _ in range(NUM_FORMATS)])

    def linear_shapes(self, patterns: Sequence[str]) -> dict[str, tuple[int, int]]:
        if unknown := [p for p in patterns if p not in self._linears]:
            raise ConfigError([f"no linear layer is called '{p}'; the toy has formats and answers" for p in unknown])
        return {n: (m.out_features, m.in_features) for n, m in self._linears.items() if n in patterns}

    def parameter_shapes(self, patterns: Sequence[str]) -> dict[str, tuple[int, ...]]:
        self.linear_shapes(patterns)
        shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        return {n: s for n, s in shapes.items() if not patterns or n.split(".")[0] in patterns}

    # ------------------------------------------------------------------------------------------------------- scoring

    def sequence_stats(
        self,
        prompts: Sequence[str],
        conditioning: Conditioning,
        completions: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float,
        change: Any = None,
    ) -> list[ToyStats]:
        counts = [len(answers) for answers in completions]
        tokens = [list(answer) for answers in completions for answer in answers]
        at = [_input_of(p) for p, n in zip(prompts, counts, strict=True) for _ in range(n)]
        longest = max((len(t) for t in tokens), default=0)
        parts = [
            torch.log_softmax(table / (temperature or 1.0), -1)[at] for table in self._tables(conditioning, change)
        ][:longest]
        first = (0, NUM_FORMATS)
        chosen, entropy, mask = [], [], []
        for place, logprobs in enumerate(parts):
            there = torch.tensor([float(len(t) > place) for t in tokens])
            index = torch.tensor([t[place] - first[place] if len(t) > place else 0 for t in tokens])
            chosen.append(logprobs.gather(1, index[:, None])[:, 0] * there)
            entropy.append(-(logprobs.exp() * logprobs).sum(-1).detach() * there)
            mask.append(there)
        empty = [torch.zeros(len(tokens))][: not parts]
        columns = [torch.stack(column or empty, 1)[:, :longest] for column in (chosen, entropy, mask)]
        return [ToyStats(*row) for row in zip(*(torch.split(column, counts) for column in columns), strict=True)]

    def chunks(
        self, prompts: Sequence[str], conditioning: Conditioning, completions: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[int]]:
        return [list(range(len(prompts)))] if prompts else []

    @torch.no_grad()
    def logprobs_under(
        self,
        prompts: Sequence[str],
        completions: Sequence[Sequence[int]],
        conditionings: Sequence[Conditioning],
        *,
        temperature: float = 1.0,
    ) -> list[list[list[float]]]:
        wrapped = [[answer] for answer in completions]
        rows = [self.sequence_stats(prompts, c, wrapped, temperature=temperature) for c in conditionings]
        return [
            [s.logprobs[0, : len(answer)].tolist() for s, answer in zip(row, completions, strict=True)] for row in rows
        ]

    @torch.no_grad()
    def exact_kl(
        self, prompts: Sequence[str], completions: Sequence[Sequence[int]], p: Conditioning, q: Conditioning
    ) -> list[float]:
        if p.id == q.id:
            return [0.0] * len(prompts)
        parts = self._kl_parts(p, q)
        per = [[float(part[_input_of(prompt)]) for part in parts] for prompt in prompts]
        return [sum(row[: len(t)]) / max(len(t), 1) for row, t in zip(per, completions, strict=True)]

    # ------------------------------------------------------------------------------- by enumeration, without sampling

    @torch.no_grad()
    def _kl_parts(self, p: Conditioning, q: Conditioning) -> list[torch.Tensor]:
        """KL(p‖q) [inputs] of the format and of the answer, which does not depend on the format, in nats."""
        pairs = zip(self._tables(p), self._tables(q), strict=True)
        logs = [(torch.log_softmax(a.double(), -1), torch.log_softmax(b.double(), -1)) for a, b in pairs]
        return [(a.exp() * (a - b)).sum(-1) for a, b in logs]

    def divergence(self, p: Conditioning, q: Conditioning) -> float:
        """KL(p‖q) of whole completions in nats, the mean over inputs."""
        return 0.0 if p.id == q.id else float(sum(part.mean() for part in self._kl_parts(p, q)))

    @torch.no_grad()
    def accuracy(self, conditioning: Conditioning, task: str) -> float:
        """The chance that a sampled completion is right, the mean over inputs."""
        formats, answers = (torch.softmax(t.double(), -1) for t in self._tables(conditioning))
        right = answers.gather(1, torch.tensor(self.world.answers)[:, None])[:, 0]
        return float((formats[:, self.world.right_format(task)] * right).mean())


def base_weights(world: World) -> dict[str, torch.Tensor]:
    """The two tables of logits that a world's model begins with."""
    generator = torch.Generator().manual_seed(child_seed("toy-base", world.seed))
    formats = torch.randn(NUM_FORMATS, NUM_INPUTS, generator=generator) * world.noise
    answers = torch.randn(NUM_ANSWERS, NUM_INPUTS, generator=generator) * world.noise
    formats[world.formats[0]] += world.wrong_logit
    answers[list(world.answers), list(range(NUM_INPUTS))] += world.known_logit
    return {"formats.weight": formats, "answers.weight": answers}


def _input_of(prompt: str) -> int:
    """The input that a prompt asks for; a text that names none stands for the one that its hash names."""
    found = _INPUT.search(prompt)
    return int(found[1]) % NUM_INPUTS if found else int(content_hash(prompt), 16) % NUM_INPUTS
