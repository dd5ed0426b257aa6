"""The optimizer steps of one proposal, on copies: what any slow channel does, whatever part of the weights may move.

The old log-probabilities of a rollout of this round are the trainer's own under the weights that the round began with,
so its ratio starts at exactly 1, and what differs between sampler and trainer (rounding, and what top-p and top-k cut
off) is reported, not optimised. A rollout that an earlier round's search made has the sampler's stored ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from twoclock.contracts import SequenceStats, Trainable, WholeVocabulary
from twoclock.nn.kl import kl_loss
from twoclock.nn.objective_table import Objective
from twoclock.nn.objectives import denominator, policy_loss
from twoclock.slow.config import TrainingConfig
from twoclock.slow.credit import Credited
from twoclock.types import Conditioning, Cost, Evidence, Group, Item

__all__ = ["Moments", "Moving", "Training", "adamw"]

Moments = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""By tensor name the first and second moment of its gradient."""

Row = tuple[Group, list[Credited]]


class Moving(Protocol):
    """What moves: float32 tensors by name with their moments, and how they speak to the model."""

    @property
    def step(self) -> int: ...

    @property
    def moving(self) -> Mapping[str, torch.Tensor]: ...

    @property
    def moving_moments(self) -> Moments: ...

    def payload(self, moving: Mapping[str, torch.Tensor]) -> Any:
        """The change of weights that these values of the tensors make; differentiable."""
        ...

    def stepped(self, moving: Mapping[str, torch.Tensor], moments: Moments) -> Any:
        """The next state."""
        ...


@dataclass
class _Sums:
    """What a step adds up over its pieces."""

    loss: float = 0.0
    entropy: float = 0.0
    mismatch: float = 0.0
    kl_base: float = 0.0
    clipped: float = 0.0
    stale_gap: float = 0.0
    tokens: float = 0.0
    sequences: int = 0
    fresh: float = 0.0
    stale: float = 0.0


class Training:
    """Steps from ``state``. ``rows`` are the credited rollouts of every group of the evidence."""

    def __init__(
        self,
        config: TrainingConfig,
        objective: Objective,
        model: Trainable,
        evidence: Evidence,
        state: Any,
        kl_coef: float,
    ) -> None:
        self.config, self.objective, self.model, self.evidence = config, objective, model, evidence
        self.state: Any = state
        self.kl_coef = kl_coef
        self.cost = Cost()
        self.teacher: Callable[[Item], Conditioning] | None = None
        """Whom the KL is taken to over the whole vocabulary, in the place of the objective."""
        self._start: Moving = state
        self._seen: list[dict[str, float]] = []
        # Every rollout of the round counts, those of dead groups too: with few live groups a step is small, not a leap
        # on noise.
        self._share = denominator(
            objective,
            rollouts=len(evidence.rollouts) / config.steps_per_round,
            tokens=max(1.0, sum(len(r.completion.tokens) for r in evidence.rollouts) / config.steps_per_round),
            max_tokens=evidence.sampling.max_new_tokens,
        )

    def affordable(self, rows: Sequence[Row], limit: int | None) -> list[Row]:
        """The first rows whose tokens, read and trained on, fit the limit."""
        kept, spent = [], 0
        for group, credited in rows:
            texts = {self._text(c).text_id: self._text(c) for c in credited if c.rollout.completion.tokens}
            spent += sum(self.model.prompt_tokens(group.item.prompt, text) for text in texts.values())
            spent += sum(len(c.rollout.completion.tokens) for c in credited)
            if limit is not None and spent > limit:
                break
            kept.append((group, credited))
        return kept

    def metrics(self) -> dict[str, float]:
        """Means over the steps."""
        return {key: sum(m[key] for m in self._seen) / len(self._seen) for key in self._seen[0]}

    def step(self, rows: Sequence[Row]) -> str | None:
        """One AdamW step on these groups; the reason when it is refused."""
        leaves = {name: t.clone().requires_grad_() for name, t in self.state.moving.items()}
        sums = _Sums()
        for text, part in self._batches(rows):
            make = self._loss if self.teacher is None else self._divergence
            loss = make(text, part, self.state.payload(leaves), sums)
            numbers = {"loss": float(loss.detach()), "entropy": sums.entropy, "sampler_mismatch": sums.mismatch}
            wrong = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
            if wrong:
                return f"{', '.join(wrong)}; the step was refused and the state kept"
            (loss / self._share).backward()  # type: ignore[no-untyped-call]
            sums.loss += float(loss.detach()) / self._share
        norm = float(torch.nn.utils.clip_grad_norm_(leaves.values(), self.config.max_grad_norm))
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}; the step was refused and the state kept"
        self.state = self.state.stepped(*adamw(self.config, leaves, self.state.moving_moments, self.state.step))
        self.cost += Cost(optimizer_steps=1)
        if self.teacher is not None:
            self._seen.append({"loss": sums.loss, "grad_norm": norm, "kl_base": 0.0})
            return None
        self._seen.append(
            {
                "loss": sums.loss,
                "grad_norm": norm,
                "entropy": sums.entropy / max(sums.tokens, 1.0),
                "sampler_mismatch": sums.mismatch / max(sums.fresh, 1.0),
                "kl_base": sums.kl_base / max(sums.tokens, 1.0),
                "clipped": sums.clipped / max(sums.tokens if self.objective.ratio == "token" else sums.sequences, 1.0),
                "stale": sums.stale / max(sums.tokens, 1.0),
                "stale_gap": sums.stale_gap / max(sums.stale, 1.0),
            }
        )
        return None

    def _text(self, credited: Credited) -> Conditioning:
        """The prompt of a rollout, without weights."""
        own = self.evidence.conditionings[credited.rollout.conditioning_id]
        return replace(own, delta=None)

    def _batches(self, rows: Sequence[Row]) -> list[tuple[Conditioning, list[Row]]]:
        """Pieces that fit one pass: by prompt, whatever weights it was sampled under, then by the model's chunks."""
        by_text: dict[str, list[Row]] = {}
        texts: dict[str, Conditioning] = {}
        for group, credited in rows:
            mine: dict[str, list[Credited]] = {}
            for one in credited:
                if one.rollout.completion.tokens:
                    text = self._text(one)
                    texts[text.id] = text
                    mine.setdefault(text.id, []).append(one)
            for key, some in mine.items():
                by_text.setdefault(key, []).append((group, some))
        batches = []
        for key, some_rows in by_text.items():
            answers = [[c.rollout.completion.tokens for c in credited] for _, credited in some_rows]
            for chunk in self.model.chunks([g.item.prompt for g, _ in some_rows], texts[key], answers):
                batches.append((texts[key], [some_rows[i] for i in chunk]))
        return batches

    def _loss(self, text: Conditioning, rows: list[Row], change: Any, sums: _Sums) -> torch.Tensor:
        """The objective's undivided sum over these rows."""
        config, temperature = self.config, self.evidence.sampling.temperature
        prompts = [g.item.prompt for g, _ in rows]
        answers = [[c.rollout.completion.tokens for c in credited] for _, credited in rows]
        stats = self.model.sequence_stats(prompts, text, answers, temperature=temperature, change=change)
        before: Sequence[SequenceStats] = stats
        base: Sequence[SequenceStats] | None = None
        with torch.no_grad():
            if self.state.step > self._start.step:
                started = self._start.payload(self._start.moving)
                before = self.model.sequence_stats(prompts, text, answers, temperature=temperature, change=started)
            if config.kl in ("k2_loss", "k3_loss"):
                base = self.model.sequence_stats(prompts, text, answers, temperature=temperature)
        loss = torch.zeros((), device=stats[0].logprobs.device)
        for index, ((_, credited), stat) in enumerate(zip(rows, stats, strict=True)):
            sampled, told = _padded([c.rollout.completion.logprobs for c in credited], stat.mask)
            stale = _column([c.rollout.age > 0 for c in credited], stat.mask) * told
            own = before[index].logprobs.detach()
            old = torch.where(stale > 0, sampled, own)
            part, clipped = policy_loss(
                self.objective,
                stat.logprobs,
                old,
                _advantages(credited, stat.mask),
                stat.mask,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
            )
            loss = loss + part
            if base is not None:
                reference = base[index].logprobs
                form: Any = config.kl[:2]
                loss = loss + self.kl_coef * self._kl_scale() * kl_loss(stat.logprobs, reference, stat.mask, form)
                sums.kl_base += float(((stat.logprobs.detach() - reference) * stat.mask).sum())
            sums.entropy += float((stat.entropy * stat.mask).sum())
            fresh = told * (1.0 - stale)
            sums.mismatch += float(((own - sampled).abs() * fresh).sum())
            sums.stale_gap += float(((own - sampled).abs() * stale).sum())
            sums.clipped += float(clipped)
            sums.tokens += float(stat.mask.sum())
            sums.sequences += len(credited)
            sums.fresh += float(fresh.sum())
            sums.stale += float(stale.sum())
        read = sum(self.model.prompt_tokens(p, text) for p in prompts)
        self.cost += Cost(trained_tokens=read + sum(len(a) for row in answers for a in row))
        return loss

    def _divergence(self, text: Conditioning, rows: list[Row], change: Any, sums: _Sums) -> torch.Tensor:
        """The sum over these rows of KL(policy‖teacher) at each place."""
        model = self.model
        assert isinstance(model, WholeVocabulary)
        assert self.teacher is not None
        prompts = [g.item.prompt for g, _ in rows]
        answers = [[c.rollout.completion.tokens for c in credited] for _, credited in rows]
        taught = [self.teacher(g.item) for g, _ in rows]
        temperature = self.evidence.sampling.temperature
        forward = self.config.distill_forward
        found = model.reverse_kl(
            prompts, text, answers, taught, temperature=temperature, change=change, forward=forward
        )
        told = [(p, c) for p, teacher in zip(prompts, taught, strict=True) for c in (text, teacher)]
        read = sum(model.prompt_tokens(p, c) for p, c in told)
        self.cost += Cost(trained_tokens=read + sum(len(a) for row in answers for a in row))
        return torch.stack([part.sum() for part in found]).sum()

    def _kl_scale(self) -> float:
        """The KL is a mean over rollouts of means over tokens, whatever the objective's own sum is divided by."""
        return self._share * self.config.steps_per_round / max(1, len(self.evidence.rollouts))


def adamw(
    config: TrainingConfig, leaves: Mapping[str, torch.Tensor], moments: Moments, step: int
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """One step of AdamW (Loshchilov and Hutter, arXiv:1711.05101) from the given moments: new tensors, detached."""
    optimizer = torch.optim.AdamW(
        list(leaves.values()),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )
    for name, leaf in leaves.items():
        mean, square = moments[name]
        optimizer.state[leaf] = {
            "step": torch.tensor(float(step)),
            "exp_avg": mean.clone(),
            "exp_avg_sq": square.clone(),
        }
    optimizer.step()
    kept = {n: (optimizer.state[t]["exp_avg"], optimizer.state[t]["exp_avg_sq"]) for n, t in leaves.items()}
    return {n: t.detach() for n, t in leaves.items()}, kept


def _advantages(credited: Sequence[Credited], mask: torch.Tensor) -> torch.Tensor:
    """[N], or [N, T] where any rollout has an advantage a token."""
    if not any(isinstance(c.advantage, tuple) for c in credited):
        return torch.tensor([float(c.advantage) for c in credited if not isinstance(c.advantage, tuple)]).to(mask)
    rows = [
        c.advantage if isinstance(c.advantage, tuple) else (c.advantage,) * len(c.rollout.completion.tokens)
        for c in credited
    ]
    return _padded(rows, mask)[0]


def _column(values: Sequence[bool], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[:, None].expand_as(like)


def _padded(rows: Sequence[Sequence[float]], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the rows, 1.0 where a row has a number), both of the shape of ``like``; a policy that cannot tell gives none."""
    out, told = torch.zeros_like(like), torch.zeros_like(like)
    for n, row in enumerate(rows):
        out[n, : len(row)] = torch.tensor(row)
        told[n, : len(row)] = 1.0
    return out, told
