"""Scores of given completions: log-probabilities and entropies with gradients, and exact KL divergences.

Prompts and completions are packed into trees (:mod:`twoclock.models.packing`), so what a batch shares is computed once;
hidden states are turned into logits a chunk of rows at a time, at the places that predict a completion's token and
nowhere else. Where the model does not let itself be led (``shared`` is False), one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from twoclock.models.mounting import Change, Mounting
from twoclock.models.packing import Packed, common_prefix, pack, side_by_side
from twoclock.models.plain import plain_logits
from twoclock.models.shared_attention import head_module, hidden_states, text_config
from twoclock.models.spare import sparing
from twoclock.models.svd import Spectra
from twoclock.models.views import TreeView
from twoclock.nn.reverse_kl import reverse_kl, reverse_kl_reference
from twoclock.nn.vocabulary import CHUNK, Head, chosen_logprobs, chosen_logprobs_reference

__all__ = ["Side", "Stats", "TeacherForcing", "model_head", "split_stats"]

Completions = Sequence[Sequence[Sequence[int]]]
Logits = Callable[[slice], torch.Tensor]


@dataclass(frozen=True)
class Side:
    """One of several models that are compared on the same completions: its prompts as tokens, its weights' change."""

    prompts: Sequence[Sequence[int]]
    delta: Change | None


@dataclass(frozen=True)
class Stats:
    """See :class:`twoclock.contracts.SequenceStats`."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor


def model_head(model: Any) -> Head:
    """The head that turns this model's hidden states into logits, with what its kind does to them afterwards."""
    module: Any = head_module(model)
    config = text_config(model)
    # Cohere multiplies by a scale, Granite divides by one; Gemma bends.
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(module.weight, module.bias, scale, float(getattr(config, "final_logit_softcapping", None) or 0.0))


class TeacherForcing:
    """Scores completions under whatever is mounted in the model. ``packed_tokens`` bounds the tokens of one pass."""

    def __init__(
        self, model: Any, linears: Mapping[str, torch.nn.Module], packed_tokens: int, spectra: Spectra | None = None
    ) -> None:
        self.model = model
        self.linears = linears
        self.packed_tokens = packed_tokens
        self.shared = True
        self.mount = Mounting(model, linears, spectra)

    def stats(self, prompts: Sequence[Sequence[int]], completions: Completions, temperature: float) -> list[Stats]:
        """One record a prompt. Greedy answers (temperature 0) have the log-probabilities of temperature 1, as where
        they are sampled."""
        temperature = temperature or 1.0
        results: list[Stats] = []
        for part in self.chunks(prompts, completions):
            answers = [completions[i] for i in part]
            logprobs, entropy, rows = self._chosen([prompts[i] for i in part], answers, temperature)
            results.extend(split_stats(logprobs, entropy[rows], answers))
        return results

    def _chosen(
        self, prompts: Sequence[Sequence[int]], completions: Completions, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(log-probabilities [N] of all completion tokens in order, entropies [M], the row of each token [N])."""
        device = self.model.device
        tokens = torch.tensor([t for c in completions for a in c for t in a], dtype=torch.long, device=device)
        if not self.shared:
            logits = self._plain_logits(prompts, completions)
            rows = torch.arange(len(tokens), device=device)
            return *chosen_logprobs_reference(logits, rows, tokens, temperature), rows
        packed = pack(prompts, completions)
        wanted, rows = _rows(packed)
        hidden = self._hidden(packed, wanted)
        rows = rows.to(device)
        module = head_module(self.model)
        if module._forward_hooks or any(p.requires_grad for p in module.parameters()):
            # The head itself is adapted or trained: through the module, with its gradients.
            logits = model_head(self.model).bent(module(hidden))
            return *chosen_logprobs_reference(logits, rows, tokens, temperature), rows
        return *chosen_logprobs(hidden, model_head(self.model), rows, tokens, temperature), rows

    def _hidden(self, packed: Packed, wanted: torch.Tensor) -> torch.Tensor:
        device = self.model.device
        view = TreeView(packed, device)
        view.logit_rows = wanted.to(device)
        with sparing(self.model):
            return hidden_states(self.model, packed.tokens[None].to(device), view.positions[None], view)

    def _plain_logits(self, prompts: Sequence[Sequence[int]], completions: Completions) -> torch.Tensor:
        """Logits [N, V] before each completion token, one sequence at a time."""
        pieces = [torch.zeros(0, text_config(self.model).vocab_size, device=self.model.device)]
        for prompt, answers in zip(prompts, completions, strict=True):
            for answer in answers:
                if answer:
                    logits = plain_logits(self.model, [*prompt, *answer])
                    pieces.append(logits[len(prompt) - 1 : len(prompt) + len(answer) - 1].float())
        return torch.cat(pieces)

    # ------------------------------------------------------------------------------------------ learning from a side

    def reverse_kl(
        self, student: Side, teacher: Side, completions: Completions, temperature: float, forward: float = 0.0
    ) -> list[torch.Tensor]:
        """For each prompt [N, T]: KL(student‖teacher) in nats before each token of its completions, exact over the
        vocabulary, with a share of the other direction; 0 beyond the end. Gradients flow into the student's change."""
        temperature = temperature or 1.0
        results: list[torch.Tensor] = []
        for part in self.chunks(student.prompts, completions):
            answers = [completions[i] for i in part]
            with torch.no_grad(), self.mount(teacher.delta):
                taught, head = self.predicting([teacher.prompts[i] for i in part], answers)
            target = _sliced(head, taught) if head else partial(torch.Tensor.__getitem__, taught)
            with self.mount(student.delta):
                own, head = self.predicting([student.prompts[i] for i in part], answers)
            if head:
                values = reverse_kl(own, head, target, temperature, forward)
            else:
                values = reverse_kl_reference(own, target(slice(None)), temperature, forward)
            results.extend(stat.logprobs for stat in split_stats(values, values.detach(), answers))
        return results

    def predicting(
        self, prompts: Sequence[Sequence[int]], completions: Completions
    ) -> tuple[torch.Tensor, Head | None]:
        """What each completion token is predicted from: hidden states [N, H] and the head; where the head itself is
        changed or the model cannot be led, the logits [N, V] and None."""
        if not self.shared:
            return self._plain_logits(prompts, completions), None
        module: Any = head_module(self.model)
        changed = module._forward_hooks or any(p.requires_grad for p in module.parameters())
        pieces = []
        for part in self.chunks(prompts, completions):
            packed = pack([prompts[i] for i in part], [completions[i] for i in part])
            wanted, rows = _rows(packed)
            hidden = self._hidden(packed, wanted)[rows.to(self.model.device)]
            pieces.append(model_head(self.model).bent(module(hidden)) if changed else hidden)
        return torch.cat(pieces), None if changed else model_head(self.model)

    # ------------------------------------------------------------------------------------------ several sides at once

    @torch.no_grad()
    def kl(self, p: Side, q: Side, completions: Sequence[Sequence[int]]) -> list[float]:
        """KL(p‖q) at temperature 1, exact over the vocabulary, in nats a token: the mean over each completion's
        positions, one number a prompt. Both sides are read in one pass where the model can be led."""
        totals = [0.0] * len(completions)
        for part, logits in self._together([p, q], completions):
            owners = [i for i in part for _ in completions[i]]
            for start in range(0, len(owners), CHUNK):
                some = slice(start, start + CHUNK)
                lp, lq = (torch.log_softmax(of(some), dim=-1) for of in logits)
                for i, value in zip(owners[some], (lp.exp() * (lp - lq)).sum(dim=-1).tolist(), strict=True):
                    totals[i] += value
        # No divergence is below 0; what float32 rounds to just under it is 0.
        return [max(0.0, t / len(c)) if c else 0.0 for t, c in zip(totals, completions, strict=True)]

    @torch.no_grad()
    def logprobs(
        self, sides: Sequence[Side], completions: Sequence[Sequence[int]], temperature: float
    ) -> list[list[list[float]]]:
        """For each side, for each prompt, the log-probability of each completion token. One pass for all sides where
        the model can be led."""
        results: list[list[list[float]]] = [[[] for _ in completions] for _ in sides]
        for part, logits in self._together(sides, completions):
            owners = [(i, t) for i in part for t in completions[i]]
            for start in range(0, len(owners), CHUNK):
                some = slice(start, start + CHUNK)
                tokens = torch.tensor([t for _, t in owners[some]], device=self.model.device)[:, None]
                for side, of in enumerate(logits):
                    values = torch.log_softmax(of(some) / (temperature or 1.0), dim=-1).gather(1, tokens)[:, 0].tolist()
                    for (i, _), value in zip(owners[some], values, strict=True):
                        results[side][i].append(value)
        return results

    def _together(
        self, sides: Sequence[Side], completions: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[int], list[Logits]]]:
        """For each part of the prompts, a function a side from a slice of the part's completion tokens to logits."""
        wrapped = [[c] for c in completions]
        longest = max((s.prompts for s in sides), key=lambda prompts: sum(map(len, prompts)))
        apart = self.shared and all(self.mount.has_rows(side.delta) for side in sides)
        for part in self.chunks(longest, wrapped, sides=len(sides) if apart else 1):
            some = [wrapped[i] for i in part]
            if not any(len(c) for (c,) in some):
                continue
            if apart:
                yield part, self._one_pass(sides, part, some)
            else:
                yield part, [self._alone(side, part, some) for side in sides]

    def _one_pass(self, sides: Sequence[Side], part: list[int], completions: Completions) -> list[Logits]:
        trees = [pack([side.prompts[i] for i in part], completions) for side in sides]
        packed, places = side_by_side(trees)
        with self.mount.apart([(at, side.delta) for at, side in zip(places, sides, strict=True)]):
            wanted, rows = _rows(packed)
            hidden = self._hidden(packed, wanted)
        head = model_head(self.model)
        return [_sliced(head, hidden[at]) for at in rows.view(len(sides), -1).to(hidden.device)]

    def _alone(self, side: Side, part: list[int], completions: Completions) -> Logits:
        prompts = [side.prompts[i] for i in part]
        with self.mount(side.delta):
            if not self.shared:
                logits = self._plain_logits(prompts, completions)
                return lambda some: logits[some]
            packed = pack(prompts, completions)
            wanted, rows = _rows(packed)
            hidden = self._hidden(packed, wanted)[rows.to(self.model.device)]
            mounted_logits = model_head(self.model).bent(head_module(self.model)(hidden))
            return lambda some: mounted_logits[some]

    # -------------------------------------------------------------------------------------------------------- packing

    def chunks(self, prompts: Sequence[Sequence[int]], completions: Completions, *, sides: int = 1) -> list[list[int]]:
        """Consecutive prompts that together pack into ``packed_tokens``; one that is larger alone stands alone."""
        parts: list[list[int]] = []
        whole = root = 0
        limit = self.packed_tokens // sides
        for i, (prompt, answers) in enumerate(zip(prompts, completions, strict=True)):
            new = len(prompt) + sum(len(a) for a in answers)
            if parts:
                # The root is what all prompts of the pack begin with: one more prompt may make it shorter for all.
                shared = min(root, common_prefix([prompts[parts[-1][0]], prompt]))
                if whole + new - shared * len(parts[-1]) <= limit:
                    parts[-1].append(i)
                    whole, root = whole + new, shared
                    continue
            parts.append([i])
            whole, root = new, len(prompt)
        return parts


def _sliced(head: Head, hidden: torch.Tensor) -> Logits:
    return lambda some: head(hidden[some])


def _rows(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """(the row indices [M] whose hidden states predict a completion token, which of them each token [N] uses)."""
    flat = [i for rows in packed.predicted_from for row in rows for i in row]
    wanted, rows = torch.unique(torch.tensor(flat, dtype=torch.long), sorted=True, return_inverse=True)
    return wanted, rows


def split_stats(logprobs: torch.Tensor, entropy: torch.Tensor, completions: Completions) -> list[Stats]:
    """One padded record a prompt from the flat values [N] of all completion tokens."""
    results, start = [], 0
    for answers in completions:
        columns = torch.arange(max((len(a) for a in answers), default=0), device=logprobs.device)
        lengths = torch.tensor([len(a) for a in answers], dtype=torch.long, device=logprobs.device)
        mask = columns[None, :] < lengths[:, None]
        end = start + int(lengths.sum())
        empty = logprobs.new_zeros(mask.shape)
        results.append(
            Stats(
                empty.masked_scatter(mask, logprobs[start:end]),
                empty.masked_scatter(mask, entropy[start:end]),
                mask.float(),
            )
        )
        start = end
    return results
