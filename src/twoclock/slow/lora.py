"""The slow channel ``lora``: low-rank changes of linear layers, trained by GRPO on the policy's own rollouts.

Source: LoRA (arXiv:2106.09685) for what moves, GRPO (arXiv:2402.03300) for the objective; the equations stand in
:mod:`twoclock.nn.lowrank` and :mod:`twoclock.nn.objectives`. Where we depart: groups are keyed by item id and may span
several prompts, with one mean and standard deviation across them; the old log-probabilities are the trainer's own under
the weights that the round began with, so the ratio starts at exactly 1, and what differs between sampler and trainer
(rounding, and what top-p and top-k cut off) is reported, not optimised;
the regulariser, when asked for, is k2 (the reverse KL's gradient), not k3.

The state is a value: the tensors, the optimizer's moments and the step. Until the first step it is empty and its
conditioning is the identity, so the base model runs untouched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from twoclock.contracts import Trainable, Workbench
from twoclock.errors import ConfigError, StoreError, UnsupportedError
from twoclock.hashing import canonical_json, content_hash
from twoclock.nn.lowrank import LowRank
from twoclock.nn.objectives import group_advantages, grpo_loss, kl_k2
from twoclock.seeding import child_seed
from twoclock.types import (
    Budget,
    Conditioning,
    Cost,
    Declined,
    Delta,
    Evidence,
    Group,
    PolicyCard,
    Proposal,
    Rollout,
    Timescale,
    Write,
)

__all__ = ["LoraChannel", "LoraConfig", "LoraState"]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What may move and how fast."""

    rank: int = 8
    alpha: float = 16.0
    """The change is scaled by alpha / rank."""
    targets: tuple[str, ...] = (*ATTENTION, *MLP)
    """Last name parts of the linear layers that get a change."""
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    """Weight of the k2 regulariser towards the base under the same prompt, on the groups that have a gradient."""
    scale_advantages: bool = True
    """Divide by the group's standard deviation (GRPO); off is Dr. GRPO's advantage."""
    steps_per_round: int = 1
    """Optimizer steps a round, each on its share of the groups."""

    def __post_init__(self) -> None:
        problems = [
            f"lora.{name} must be {rule}; got {getattr(self, name)!r}"
            for name, rule, ok in (
                ("rank", "a whole number from 1", self.rank >= 1),
                ("learning_rate", "above 0", self.learning_rate > 0),
                ("steps_per_round", "a whole number from 1", self.steps_per_round >= 1),
                ("max_grad_norm", "above 0", self.max_grad_norm > 0),
                ("kl_coef", "0 or more", self.kl_coef >= 0),
                ("targets", "at least one layer name", len(self.targets) > 0),
            )
            if not ok
        ]
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class LoraState:
    """``tensors[name]`` = (A [R, I], B [O, R]); ``moments[name]`` = (m_A, v_A, m_B, v_B), all float32. Nothing in a
    state is ever written to: a step makes new tensors."""

    seed: int
    step: int = 0
    base: str = ""
    scale: float = 0.0
    tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)
    moments: Mapping[str, tuple[torch.Tensor, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def delta(self) -> Delta | None:
        """The change of weights as a value; None before the first step."""
        if self.step == 0:
            return None
        parts = [f"{self.base} {self.scale!r}"]
        for name, pair in self.tensors.items():
            parts += [f"{name} {content_hash(t.contiguous().numpy().tobytes())}" for t in pair]
        return Delta(content_hash("\n".join(parts)), "lora", self.base, LowRank(self.tensors, self.scale))


class LoraChannel:
    """See the module."""

    timescale = Timescale.SLOW

    def __init__(self, config: LoraConfig | None = None, *, name: str = "lora") -> None:
        self.name = name
        self.config = config or LoraConfig()

    def init(self, card: PolicyCard, seed: int) -> LoraState:
        return LoraState(seed=child_seed("lora-init", seed))

    def condition(self, state: LoraState, task: str) -> Conditioning:
        return Conditioning(delta=state.delta)

    def propose(
        self, bench: Workbench, state: LoraState, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[LoraState] | Declined:
        if not evidence.groups:
            return Declined(channel=self.name, reason="there is no evidence: the round has no rollouts")
        dead = evidence.dead_groups
        share = {"dead_groups": dead / len(evidence.groups)}
        alive = [g for g in evidence.groups if not g.is_dead]
        if not alive:
            reason = f"all {dead} groups are dead: no reward varies within an item, so there is no gradient"
            return Declined(channel=self.name, reason=reason, metrics=share)
        alive = [g for g in alive if any(r.completion.tokens for r in g.rollouts)]
        if not alive:
            reason = "no completion of a group with reward variance has a token to learn from"
            return Declined(channel=self.name, reason=reason, metrics=share)
        model = bench.trainable()
        trained = _Training(self.config, model, evidence, self._started(state, model))
        order = sorted(alive, key=lambda g: child_seed("lora-order", seed, g.item.id))
        order = trained.affordable(order, budget.tokens)
        if not order:
            reason = f"the budget of {budget.tokens} tokens is too small to train on one group"
            return Declined(channel=self.name, reason=reason, metrics=share)
        for part in range(self.config.steps_per_round):
            groups = order[part :: self.config.steps_per_round]
            problem = trained.step(groups) if groups else None
            if problem:
                return Declined(channel=self.name, reason=problem, cost=trained.cost, metrics=share)
        metrics = {**share, **trained.metrics()}
        text = (
            f"step {trained.state.step}: {len(alive)} of {len(evidence.groups)} groups with a gradient, "
            f"gradient norm {metrics['grad_norm']:.3g}, entropy {metrics['entropy']:.3g} nats"
        )
        return Proposal(
            channel=self.name,
            state=trained.state,
            cause=f"{len(alive)} groups of {evidence.task} in round {evidence.round} had reward variance",
            cost=trained.cost,
            writes=(Write(text=text, kind="step"),),
            metrics=metrics,
        )

    def _started(self, state: LoraState, model: Trainable) -> LoraState:
        """The state with its tensors: A drawn as in the LoRA paper's code (Kaiming uniform, a = √5), B zero."""
        if state.tensors:
            if state.base != model.base_hash:
                raise UnsupportedError(
                    f"this state of '{self.name}' was trained on base weights {state.base[:12]}, but the model is "
                    f"{model.base_hash[:12]}; start a run of its own for this model"
                )
            return state
        tensors, moments = {}, {}
        for name, (out, width) in model.linear_shapes(self.config.targets).items():
            generator = torch.Generator().manual_seed(child_seed("lora-a", state.seed, name))
            a = (torch.rand(self.config.rank, width, generator=generator) * 2 - 1) / math.sqrt(width)
            b = torch.zeros(out, self.config.rank)
            tensors[name] = (a, b)
            moments[name] = tuple(torch.zeros_like(t) for t in (a, a, b, b))
        scale = self.config.alpha / self.config.rank
        return LoraState(state.seed, 0, model.base_hash, scale, tensors, moments)

    def dump(self, state: LoraState) -> bytes:
        from safetensors.torch import save

        flat: dict[str, torch.Tensor] = {}
        for name, (a, b) in state.tensors.items():
            flat[f"{name}.A"], flat[f"{name}.B"] = a, b
            for part, moment in zip(("mA", "vA", "mB", "vB"), state.moments[name], strict=True):
                flat[f"{name}.{part}"] = moment
        head = canonical_json(
            {
                "format": 1,
                "seed": state.seed,
                "step": state.step,
                "base": state.base,
                "scale": state.scale,
                "modules": list(state.tensors),
            }
        )
        # One key: the library writes several in no fixed order, and equal states must give equal bytes.
        return bytes(save({k: v.contiguous() for k, v in flat.items()}, metadata={"twoclock": head}))

    def load(self, blob: bytes) -> LoraState:
        from safetensors.torch import load

        try:
            length = int.from_bytes(blob[:8], "little")
            head = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["twoclock"])
            flat = load(blob)
            if head["format"] != 1:
                raise ValueError(f"its format is {head['format']}, and this version reads 1")
            names = head["modules"]
            return LoraState(
                head["seed"],
                head["step"],
                head["base"],
                head["scale"],
                {n: (flat[f"{n}.A"], flat[f"{n}.B"]) for n in names},
                {n: tuple(flat[f"{n}.{p}"] for p in ("mA", "vA", "mB", "vB")) for n in names},
            )
        except Exception as problem:
            raise StoreError(f"this is not a dumped state of the channel '{self.name}': {problem!r}") from problem


class _Training:
    """The optimizer steps of one proposal, on copies."""

    def __init__(self, config: LoraConfig, model: Trainable, evidence: Evidence, state: LoraState) -> None:
        self.config, self.model, self.evidence, self.state = config, model, evidence, state
        self.cost = Cost()
        self._seen: list[dict[str, float]] = []
        self._start = state

    def affordable(self, groups: Sequence[Group], limit: int | None) -> list[Group]:
        """The first groups whose tokens, read and trained on, fit the limit."""
        kept, spent = [], 0
        for group in groups:
            conditionings = {r.conditioning_id for r in group.rollouts if r.completion.tokens}
            spent += sum(
                self.model.prompt_tokens(group.item.prompt, self.evidence.conditionings[c]) for c in conditionings
            )
            spent += sum(len(r.completion.tokens) for r in group.rollouts)
            if limit is not None and spent > limit:
                break
            kept.append(group)
        return kept

    def metrics(self) -> dict[str, float]:
        """Means over the steps."""
        return {key: sum(m[key] for m in self._seen) / len(self._seen) for key in self._seen[0]}

    def step(self, groups: Sequence[Group]) -> str | None:
        """One AdamW step on these groups; the reason when it is refused."""
        leaves = {name: tuple(t.clone().requires_grad_() for t in pair) for name, pair in self.state.tensors.items()}
        change = LowRank(leaves, self.state.scale)  # type: ignore[arg-type]
        # Dead groups count in N, as the loss is defined: with few live groups a step is small, not a leap on noise.
        num = len(self.evidence.rollouts) / self.config.steps_per_round
        sums = {"loss": 0.0, "entropy": 0.0, "sampler_mismatch": 0.0, "kl_base": 0.0}
        tokens = 0.0
        for conditioning, part in self._batches(groups):
            loss, seen, count = self._batch_loss(conditioning, part, change)
            numbers = {"loss": float(loss.detach()), **seen}
            wrong = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
            if wrong:
                return f"{', '.join(wrong)}; the step was refused and the state kept"
            (loss / num).backward()  # type: ignore[no-untyped-call]
            sums["loss"] += float(loss.detach()) / num
            for key, value in seen.items():
                sums[key] += value
            tokens += count
        parameters = [t for pair in leaves.values() for t in pair]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}; the step was refused and the state kept"
        self.state = self._updated(leaves)
        self.cost += Cost(optimizer_steps=1)
        per_token = {k: v / max(tokens, 1.0) for k, v in sums.items() if k != "loss"}
        self._seen.append({"loss": sums["loss"], "grad_norm": norm, **per_token})
        return None

    def _batches(self, groups: Sequence[Group]) -> list[tuple[Conditioning, list[tuple[Group, list[Rollout]]]]]:
        """Pieces that fit one pass: by conditioning, then by the model's own chunks."""
        by_id: dict[str, list[tuple[Group, list[Rollout]]]] = {}
        for group in groups:
            for cid in dict.fromkeys(r.conditioning_id for r in group.rollouts):
                rollouts = [r for r in group.rollouts if r.conditioning_id == cid and r.completion.tokens]
                if rollouts:
                    by_id.setdefault(cid, []).append((group, rollouts))
        batches = []
        for cid, rows in by_id.items():
            conditioning = self.evidence.conditionings[cid]
            answers = [[r.completion.tokens for r in rollouts] for _, rollouts in rows]
            for chunk in self.model.chunks([g.item.prompt for g, _ in rows], conditioning, answers):
                batches.append((conditioning, [rows[i] for i in chunk]))
        return batches

    def _batch_loss(
        self, conditioning: Conditioning, rows: list[tuple[Group, list[Rollout]]], change: Any
    ) -> tuple[torch.Tensor, dict[str, float], float]:
        config, temperature = self.config, self.evidence.sampling.temperature
        prompts = [g.item.prompt for g, _ in rows]
        answers = [[r.completion.tokens for r in rollouts] for _, rollouts in rows]
        stats = self.model.sequence_stats(prompts, conditioning, answers, temperature=temperature, change=change)
        base = old_stats = None
        with torch.no_grad():
            if self.state.step > self._start.step:
                start = LowRank(self._start.tensors, self._start.scale)
                old_stats = self.model.sequence_stats(
                    prompts, conditioning, answers, temperature=temperature, change=start
                )
            if config.kl_coef > 0:
                text_only = Conditioning(system=conditioning.system, exemplars=conditioning.exemplars)
                base = self.model.sequence_stats(prompts, text_only, answers, temperature=temperature)
        loss = torch.zeros(())
        seen = {"entropy": 0.0, "sampler_mismatch": 0.0, "kl_base": 0.0}
        count = 0.0
        for index, ((group, rollouts), stat) in enumerate(zip(rows, stats, strict=True)):
            every = group_advantages(group.rewards, scale=config.scale_advantages)
            mine = {id(r): a for r, a in zip(group.rollouts, every, strict=True)}
            advantages = torch.tensor([mine[id(r)] for r in rollouts], device=stat.logprobs.device)
            old = old_stats[index].logprobs if old_stats else stat.logprobs.detach()
            sampled, told = _padded([r.completion.logprobs for r in rollouts], stat.mask)
            loss = loss + grpo_loss(
                stat.logprobs, old, advantages, stat.mask, clip_low=config.clip_low, clip_high=config.clip_high
            )
            if base is not None:
                loss = loss + config.kl_coef * kl_k2(stat.logprobs, base[index].logprobs, stat.mask)
                seen["kl_base"] += float(((stat.logprobs.detach() - base[index].logprobs) * stat.mask).sum())
            seen["entropy"] += float((stat.entropy * stat.mask).sum())
            seen["sampler_mismatch"] += float(((old - sampled).abs() * told).sum())
            count += float(stat.mask.sum())
        read = sum(self.model.prompt_tokens(p, conditioning) for p in prompts)
        self.cost += Cost(trained_tokens=read + int(count))
        return loss, seen, count

    def _updated(self, leaves: Mapping[str, tuple[torch.Tensor, ...]]) -> LoraState:
        """AdamW (Loshchilov and Hutter, arXiv:1711.05101) with the state's moments; new tensors, detached."""
        config = self.config
        parameters = [t for pair in leaves.values() for t in pair]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        kept = [m for name in leaves for m in _pairs(self.state.moments[name])]
        for parameter, (mean, square) in zip(parameters, kept, strict=True):
            optimizer.state[parameter] = {
                "step": torch.tensor(float(self.state.step)),
                "exp_avg": mean.clone(),
                "exp_avg_sq": square.clone(),
            }
        optimizer.step()
        tensors = {name: (pair[0].detach(), pair[1].detach()) for name, pair in leaves.items()}
        moments = {
            name: tuple(optimizer.state[t][k] for t in pair for k in ("exp_avg", "exp_avg_sq"))
            for name, pair in leaves.items()
        }
        return LoraState(self.state.seed, self.state.step + 1, self.state.base, self.state.scale, tensors, moments)


def _pairs(moments: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(moments[0], moments[1]), (moments[2], moments[3])]


def _padded(rows: Sequence[Sequence[float]], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the rows, 1.0 where a row has a number), both of the shape of ``like``; a policy that cannot tell gives none."""
    out, told = torch.zeros_like(like), torch.zeros_like(like)
    for n, row in enumerate(rows):
        out[n, : len(row)] = torch.tensor(row)
        told[n, : len(row)] = 1.0
    return out, told
