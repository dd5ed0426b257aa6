"""Evidence for the LoRA channel, and the plain computation that it is held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from twoclock.models.local import LocalPolicy
from twoclock.seeding import child_seed
from twoclock.slow.lora import LoraConfig, LoraState
from twoclock.types import Completion, Conditioning, Evidence, Grade, Group, Item, Request, Rollout, Sampling

SAMPLING = Sampling(max_new_tokens=6, temperature=0.9)
TEXTS = (Conditioning(), Conditioning(system="Answer briefly."))
REWARDS = ((1.0, 0.0, 0.3, 1.0), (0.0, 0.0, 1.0, 0.0), (0.5, 0.5, 0.5, 0.5), (0.2, 0.9, 0.4, 0.4))
"""By item: two rollouts under each text. The third group is dead."""


class TrainBench:
    """The part of a workbench that a slow channel may use: the model, and nothing to spend."""

    def __init__(self, policy: LocalPolicy) -> None:
        self._policy = policy

    def trainable(self) -> LocalPolicy:
        return self._policy


def bench(policy: LocalPolicy) -> Any:
    return TrainBench(policy)


def make_evidence(
    policy: LocalPolicy,
    *,
    rewards: Sequence[Sequence[float]] = REWARDS,
    sampling: Sampling = SAMPLING,
    texts: Sequence[Conditioning] = TEXTS,
    seed: int = 0,
) -> Evidence:
    """Real rollouts of the policy with made-up rewards: half of each group under either text."""
    groups = []
    for index, row in enumerate(rewards):
        item = Item(id=f"item-{index}", prompt=f"What is {index} + {seed}?")
        rollouts = []
        for n, reward in enumerate(row):
            text = texts[n * len(texts) // len(row)]
            request = Request(prompt=item.prompt, conditioning=text, seeds=(child_seed("world", seed, index, n),))
            ((completion,),) = policy.sample([request], sampling)
            rollouts.append(
                Rollout(
                    item_id=item.id,
                    conditioning_id=text.id,
                    seed=n,
                    completion=completion,
                    grade=Grade(reward=reward),
                )
            )
        groups.append(Group(item=item, rollouts=tuple(rollouts)))
    return Evidence(
        round=1,
        phase=0,
        task="sums",
        groups=tuple(groups),
        conditionings={t.id: t for t in texts},
        sampling=sampling,
    )


def with_completion(evidence: Evidence, group: int, rollout: int, **changes: Any) -> Evidence:
    """The evidence with one completion changed."""
    groups = list(evidence.groups)
    rollouts = list(groups[group].rollouts)
    old: Completion = rollouts[rollout].completion
    rollouts[rollout] = replace(rollouts[rollout], completion=replace(old, **changes))
    groups[group] = replace(groups[group], rollouts=tuple(rollouts))
    return replace(evidence, groups=tuple(groups))


# --------------------------------------------------------------------------------------------------------- the oracle


def plain_logprobs(
    policy: LocalPolicy, weights: Mapping[str, Any], rollout: Rollout, prompt: str, evidence: Evidence
) -> Any:
    """Log-probabilities [T] of one rollout's tokens, with ``weights`` in place of the model's own of that name."""
    import torch

    before = policy.render(prompt, evidence.conditionings[rollout.conditioning_id])
    answer = rollout.completion.tokens
    ids = torch.tensor([[*before, *answer]])
    logits = torch.func.functional_call(policy.model, dict(weights), (), {"input_ids": ids, "use_cache": False}).logits
    at = logits[0, len(before) - 1 : -1] / evidence.sampling.temperature
    return torch.log_softmax(at, -1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def merged(policy: LocalPolicy, factors: Mapping[str, tuple[Any, Any]], scale: float) -> dict[str, Any]:
    """W + scale · B A by parameter name, differentiable in A and B."""
    own = dict(policy.model.named_parameters())
    return {f"{n}.weight": own[f"{n}.weight"].detach() + scale * b @ a for n, (a, b) in factors.items()}


def oracle_loss(
    policy: LocalPolicy,
    config: LoraConfig,
    evidence: Evidence,
    groups: Sequence[Group],
    factors: Mapping[str, tuple[Any, Any]],
    start: Mapping[str, tuple[Any, Any]],
    scale: float,
    num: float,
) -> Any:
    """The loss as its equation reads: rollout by rollout, token by token."""
    import torch

    loss = torch.zeros(())
    for group in groups:
        rewards = torch.tensor(group.rewards, dtype=torch.float64)
        advantages = rewards - rewards.mean()
        if config.scale_advantages:
            advantages = advantages / (rewards.std() + 1e-6)
        for rollout, advantage in zip(group.rollouts, advantages.tolist(), strict=True):
            if not rollout.completion.tokens:
                continue
            new = plain_logprobs(policy, merged(policy, factors, scale), rollout, group.item.prompt, evidence)
            with torch.no_grad():
                old = plain_logprobs(policy, merged(policy, start, scale), rollout, group.item.prompt, evidence)
                base = plain_logprobs(policy, {}, rollout, group.item.prompt, evidence)
            total = torch.zeros(())
            for t in range(len(new)):
                ratio = torch.exp(new[t] - old[t])
                clipped = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
                total = total - torch.minimum(ratio * advantage, clipped * advantage)
                total = total + config.kl_coef * 0.5 * (new[t] - base[t]) ** 2
            loss = loss + total / len(new)
    return loss / num


class Oracle:
    """torch.optim.AdamW on leaves of its own, kept over rounds."""

    def __init__(self, policy: LocalPolicy, config: LoraConfig, state: LoraState) -> None:
        import torch

        self.policy, self.config, self.scale = policy, config, config.alpha / config.rank
        self.factors = {n: tuple(t.clone().requires_grad_() for t in pair) for n, pair in state.tensors.items()}
        self.leaves = [t for pair in self.factors.values() for t in pair]
        self.optimizer = torch.optim.AdamW(
            self.leaves,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )

    def round(self, evidence: Evidence, seed: int) -> list[float]:
        """The steps of one round; returns their gradient norms before clipping."""
        import torch

        config, norms = self.config, []
        start = {n: (a.detach().clone(), b.detach().clone()) for n, (a, b) in self.factors.items()}
        alive = [g for g in evidence.groups if len(set(g.rewards)) > 1]
        alive.sort(key=lambda g: child_seed("lora-order", seed, g.item.id))
        num = len(evidence.rollouts) / config.steps_per_round
        for part in range(config.steps_per_round):
            groups = alive[part :: config.steps_per_round]
            if not groups:
                continue
            self.optimizer.zero_grad()
            loss = oracle_loss(
                self.policy,
                config,
                evidence,
                groups,
                self.factors,
                start,
                self.scale,
                num,  # type: ignore[arg-type]
            )
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(self.leaves, config.max_grad_norm)))
            self.optimizer.step()
        return norms
