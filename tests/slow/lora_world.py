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
    """The part of a workbench that a slow channel may use: the model, what the others say, and nothing to spend."""

    def __init__(self, policy: LocalPolicy, others: Conditioning) -> None:
        self._policy, self.others = policy, others

    def trainable(self) -> LocalPolicy:
        return self._policy


def bench(policy: LocalPolicy, others: Conditioning | None = None) -> Any:
    return TrainBench(policy, others or Conditioning())


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
    old: Completion = evidence.groups[group].rollouts[rollout].completion
    return with_rollout(evidence, group, rollout, completion=replace(old, **changes))


def with_rollout(evidence: Evidence, group: int, rollout: int, **changes: Any) -> Evidence:
    """The evidence with one rollout changed."""
    groups = list(evidence.groups)
    rollouts = list(groups[group].rollouts)
    rollouts[rollout] = replace(rollouts[rollout], **changes)
    groups[group] = replace(groups[group], rollouts=tuple(rollouts))
    return replace(evidence, groups=tuple(groups))


def with_lengths(evidence: Evidence, group: int, lengths: Sequence[int]) -> Evidence:
    """The evidence with one group's completions of these many tokens, whatever they were; a completion of as many
    tokens as may be sampled was cut off."""
    for n, length in enumerate(lengths):
        done = evidence.groups[group].rollouts[n].completion
        tokens = tuple((done.tokens * 9 + (5, 6, 7, 8) * 9)[:length])
        finish = "length" if length == evidence.sampling.max_new_tokens else "stop"
        evidence = with_completion(evidence, group, n, tokens=tokens, logprobs=(-1.0,) * length, finish=finish)
    return evidence


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


def learned_gradient(before: LoraState, after: LoraState) -> dict[str, Any]:
    """The gradient of one step that began with empty moments, taken with beta1 = 0 and no bound on its norm."""
    assert after.step == before.step + 1
    return {f"{n}.{p}": m for n, ms in after.moments.items() for p, m in (("A", ms[0]), ("B", ms[2]))}


def weighed_gradient(
    policy: LocalPolicy, state: LoraState, evidence: Evidence, weights: Mapping[int, Sequence[float]]
) -> dict[str, Any]:
    """That of −Σ_i Σ_t w_it log π(y_it), with w by ``id(rollout)``: what any objective is on-policy, as one sum."""
    import torch

    factors = {n: tuple(t.clone().requires_grad_() for t in pair) for n, pair in state.tensors.items()}
    loss = torch.zeros(())
    for group in evidence.groups:
        for rollout in group.rollouts:
            if any(weights[id(rollout)]):
                changed = merged(policy, factors, state.scale)  # type: ignore[arg-type]
                new = plain_logprobs(policy, changed, rollout, group.item.prompt, evidence)
                loss = loss - (torch.tensor(weights[id(rollout)]) * new).sum()
    leaves = [t for pair in factors.values() for t in pair]
    found = iter(torch.autograd.grad(loss, leaves))
    return {f"{n}.{p}": next(found) for n in factors for p in "AB"}


def assert_same_gradient(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Up to float32: against the largest entry of each tensor, and where all is rounding against the whole."""
    assert ours.keys() == theirs.keys()
    whole = max(float(t.abs().max()) for t in theirs.values())
    assert whole > 0
    for name, expected in theirs.items():
        size = max(float(expected.abs().max()), 1e-4 * whole)
        off = float((ours[name] - expected).abs().max()) / size
        assert off < 1e-3, f"{name} is off by {off:.2g} of its size"


BOUNDS = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "cispo": (0.0, 4.0), "gspo": (3e-4, 4e-4)}


def oracle_advantages(objective: str, evidence: Evidence) -> dict[int, float]:
    """By ``id(rollout)``, as the definitions read."""
    import torch

    found: dict[int, float] = {}
    every = [r for g in evidence.groups for r in g.rollouts]
    for group in evidence.groups:
        rewards = torch.tensor(group.rewards, dtype=torch.float64)
        for n, rollout in enumerate(group.rollouts):
            others = [r.reward for r in group.rollouts if r is not rollout]
            if objective == "rloo":
                found[id(rollout)] = rollout.reward - sum(others) / len(others)
            elif objective == "reinforce":
                rest = [r.reward for r in every if r is not rollout]
                found[id(rollout)] = rollout.reward - sum(rest) / len(rest)
            else:
                centred = float(rewards[n] - rewards.mean())
                found[id(rollout)] = centred if objective == "dr_grpo" else centred / (float(rewards.std()) + 1e-6)
    return found


def oracle_term(objective: str, new: Any, old: Any, advantage: float, low: float, high: float) -> Any:
    """What one rollout adds to the undivided loss, token by token."""
    import torch

    if objective in ("rloo", "reinforce"):
        return -advantage * new.sum()
    if objective == "gspo":
        ratio = torch.exp((new - old).mean())
        return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    total = torch.zeros(())
    for t in range(len(new)):
        ratio = torch.exp(new[t] - old[t])
        if objective == "cispo":
            total = total - ratio.detach().clamp(low, high) * advantage * new[t]
        else:
            total = total - torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return total / len(new) if objective == "grpo" else total


def oracle_share(objective: str, evidence: Evidence, steps: int) -> float:
    """What the sum is divided by."""
    rollouts = [r for g in evidence.groups for r in g.rollouts]
    if objective in ("dapo", "cispo"):
        return sum(len(r.completion.tokens) for r in rollouts) / steps
    share = len(rollouts) / steps
    return share * evidence.sampling.max_new_tokens if objective == "dr_grpo" else share


def oracle_loss(
    policy: LocalPolicy,
    config: LoraConfig,
    evidence: Evidence,
    groups: Sequence[Group],
    factors: Mapping[str, tuple[Any, Any]],
    start: Mapping[str, tuple[Any, Any]],
    scale: float,
) -> Any:
    """The loss as its equation reads: rollout by rollout, token by token."""
    import torch

    low, high = BOUNDS.get(config.objective, (0.0, 0.0))
    low = low if config.clip_low is None else config.clip_low
    high = high if config.clip_high is None else config.clip_high
    advantages = oracle_advantages(config.objective, evidence)
    share = oracle_share(config.objective, evidence, config.steps_per_round)
    num = len(evidence.rollouts) / config.steps_per_round
    loss = torch.zeros(())
    sequence_kl: dict[int, float] = {}
    scored: list[tuple[Group, Rollout, Any, Any, Any]] = []
    for group in groups:
        for rollout in group.rollouts:
            if not rollout.completion.tokens:
                continue
            new = plain_logprobs(policy, merged(policy, factors, scale), rollout, group.item.prompt, evidence)
            with torch.no_grad():
                old = plain_logprobs(policy, merged(policy, start, scale), rollout, group.item.prompt, evidence)
                base = plain_logprobs(policy, {}, rollout, group.item.prompt, evidence)
            sequence_kl[id(rollout)] = float((old - base).sum())
            scored.append((group, rollout, new, old, base))
    for group, rollout, new, old, base in scored:
        advantage = advantages[id(rollout)]
        if config.kl == "k1_reward":
            mean = sum(sequence_kl[id(r)] for r in group.rollouts) / len(group.rollouts)
            advantage -= config.kl_coef * (sequence_kl[id(rollout)] - mean)
        if rollout.age:
            old = torch.tensor(rollout.completion.logprobs)
        loss = loss + oracle_term(config.objective, new, old, advantage, low, high) / share
        if config.kl == "k2_loss":
            loss = loss + config.kl_coef * (0.5 * (new - base) ** 2).mean() / num
        if config.kl == "k3_loss":
            loss = loss + config.kl_coef * (torch.exp(base - new) - 1 - (base - new)).mean() / num
    return loss


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
        # At the start the KL to the base is 0, so a dead group teaches nothing there.
        moved = any(float(b.abs().max()) > 0 for _, b in start.values())
        living = moved or any(len(set(g.rewards)) > 1 for g in evidence.groups)
        every = config.objective == "reinforce" or (config.kl == "k1_reward" and moved)
        every = every or (config.kl in ("k2_loss", "k3_loss") and living)
        alive = [g for g in evidence.groups if every or len(set(g.rewards)) > 1]
        alive.sort(key=lambda g: child_seed("lora-order", seed, g.item.id))
        for part in range(config.steps_per_round):
            groups = alive[part :: config.steps_per_round]
            if not groups:
                continue
            self.optimizer.zero_grad()
            loss = oracle_loss(self.policy, config, evidence, groups, self.factors, start, self.scale)  # type: ignore[arg-type]
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(self.leaves, config.max_grad_norm)))
            self.optimizer.step()
        return norms
