"""Rollouts of earlier rounds: weighed by what the sampler stored, counted apart, refused where no weight can be had."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lora_world import (  # noqa: E402
    TEXTS,
    Oracle,
    assert_same_gradient,
    bench,
    learned_gradient,
    make_evidence,
    merged,
    plain_logprobs,
    weighed_gradient,
    with_completion,
    with_rollout,
)

from tiny_models import make_policy  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.slow.lora import LoraChannel, LoraConfig, LoraState  # noqa: E402
from twoclock.types import Budget, Declined, Evidence, Proposal  # noqa: E402

CONFIG = LoraConfig(
    objective="cispo", rank=3, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"), learning_rate=0.01
)  # fmt: skip
OLD = ((0, 1), (0, 3), (1, 2), (2, 0), (3, 0))
"""(group, rollout) of what an earlier round sampled; the third group is dead."""


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return make_policy("llama")


def aged(evidence: Evidence, shift: float = 0.0) -> Evidence:
    """The evidence with the old ones marked, their log-probabilities moved by ``shift``, up and down in turn."""
    for group, n in OLD:
        stored = evidence.groups[group].rollouts[n].completion.logprobs
        moved = tuple(value + shift * (-1) ** t for t, value in enumerate(stored))
        evidence = with_completion(with_rollout(evidence, group, n, age=2), group, n, logprobs=moved)
    return evidence


def offer(policy: LocalPolicy, evidence: Evidence, config: LoraConfig, state: LoraState, seed: int = 4) -> Any:
    return LoraChannel(config).propose(bench(policy), state, evidence, Budget(), seed)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_low": 0.9, "clip_high": 1.1},
        {"steps_per_round": 2},
        {"objective": "grpo", "kl": "k1_reward", "kl_coef": 0.3},
        {"objective": "dr_grpo", "steps_per_round": 3},
        {"objective": "dapo"},
        {"objective": "gspo"},
        {"objective": "gspo", "clip_low": 0.05, "clip_high": 0.05},
    ],
    ids=str,
)
def test_rounds_with_old_rollouts_are_those_of_the_equation(policy: LocalPolicy, changes: dict[str, Any]) -> None:
    """The ratio of an old one starts at π_now / π_then, that of a new one at 1, whatever was stored for it."""
    config = replace(CONFIG, **changes)
    channel = LoraChannel(config)
    state = channel.started(channel.init(policy.card, 0), policy)
    oracle = Oracle(policy, config, state)
    clipped = []
    for seed in range(2):
        evidence = aged(make_evidence(policy, seed=seed), 0.4)
        proposal = offer(policy, evidence, config, state, seed)
        norms = oracle.round(evidence, seed)
        assert proposal.metrics["grad_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
        clipped.append(proposal.metrics["clipped"])
        state = proposal.state
    if config.objective in ("grpo", "dapo", "dr_grpo") or "clip_low" in changes:
        assert max(clipped) > 0


def test_the_weights_by_hand(policy: LocalPolicy) -> None:
    """Stored one half a nat too high, so each ratio is exp(−1/2); CISPO's gradient is that weight times A ∇ log π."""
    config = replace(CONFIG, beta1=0.0, max_grad_norm=1e9)
    evidence = make_evidence(policy, rewards=[(1.0, 0.0)], texts=TEXTS[:1])
    (group,) = evidence.groups
    stored = group.rollouts[0].completion.logprobs
    evidence = with_completion(
        with_rollout(evidence, 0, 0, age=1), 0, 0, logprobs=tuple(value + 0.5 for value in stored)
    )
    good, bad = evidence.groups[0].rollouts
    tokens = len(good.completion.tokens) + len(bad.completion.tokens)
    advantage = 0.5 / (math.sqrt(0.5) + 1e-6)
    weights = {
        id(good): [math.exp(-0.5) * advantage / tokens] * len(good.completion.tokens),
        id(bad): [-advantage / tokens] * len(bad.completion.tokens),
    }
    state = LoraChannel(config).started(LoraChannel(config).init(policy.card, 0), policy)
    proposal = offer(policy, evidence, config, state)
    assert_same_gradient(learned_gradient(state, proposal.state), weighed_gradient(policy, state, evidence, weights))
    assert proposal.metrics["stale_gap"] == pytest.approx(0.5, rel=1e-4)
    assert proposal.metrics["stale"] == pytest.approx(len(good.completion.tokens) / tokens)


def test_what_is_stale_is_told_apart_from_what_the_sampler_mismatches(policy: LocalPolicy) -> None:
    fresh = make_evidence(policy)
    evidence = aged(fresh, 0.25)
    for group, n in ((0, 0), (1, 0)):  # and the sampler of two new ones was off by 1/16
        stored = fresh.groups[group].rollouts[n].completion.logprobs
        evidence = with_completion(evidence, group, n, logprobs=tuple(value - 0.0625 for value in stored))
    state = LoraChannel(CONFIG).init(policy.card, 0)
    metrics = offer(policy, evidence, CONFIG, state).metrics
    taught = [r for g in evidence.groups if not g.is_dead for r in g.rollouts]
    tokens = {old: sum(len(r.completion.tokens) for r in taught if (r.age > 0) is old) for old in (True, False)}
    off = sum(len(evidence.groups[g].rollouts[n].completion.tokens) for g, n in ((0, 0), (1, 0)))
    assert metrics["stale"] == pytest.approx(tokens[True] / sum(tokens.values()))
    assert metrics["stale_gap"] == pytest.approx(0.25, rel=1e-3)
    assert metrics["sampler_mismatch"] == pytest.approx(0.0625 * off / tokens[False], rel=1e-2)
    none = offer(policy, fresh, CONFIG, state).metrics
    assert (none["stale"], none["stale_gap"]) == (0.0, 0.0)


def test_the_gap_is_how_far_the_weights_have_moved_since(policy: LocalPolicy) -> None:
    """Rollouts of the base, two rounds on: what the plain computation says of them now, against what was stored."""
    channel, first = LoraChannel(CONFIG), make_evidence(policy)
    state = channel.init(policy.card, 0)
    for seed in range(2):
        state = offer(policy, make_evidence(policy, seed=seed + 1), CONFIG, state, seed).state
    evidence = aged(first)
    weights = merged(policy, state.tensors, state.scale)  # type: ignore[arg-type]
    gaps = []
    for group in evidence.groups:
        for rollout in group.rollouts:
            if rollout.age and not group.is_dead:
                now = plain_logprobs(policy, weights, rollout, group.item.prompt, evidence).detach()
                gaps += (now - torch.tensor(rollout.completion.logprobs)).abs().tolist()
    metrics = offer(policy, evidence, CONFIG, state).metrics
    assert metrics["stale_gap"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-3)
    assert metrics["stale_gap"] > 0.02


@pytest.mark.parametrize("objective", ["rloo", "reinforce"])
def test_without_weights_old_ones_are_refused(policy: LocalPolicy, objective: str) -> None:
    config = replace(CONFIG, objective=objective)
    state = LoraChannel(config).init(policy.card, 0)
    assert isinstance(offer(policy, make_evidence(policy), config, state), Proposal)
    result = offer(policy, aged(make_evidence(policy)), config, state)
    assert isinstance(result, Declined)
    assert f'objective = "{objective}" learns from the rollouts of its own round alone' in result.reason
    assert "set [rollouts] reuse = false" in result.reason
    assert LoraChannel(config).on_policy_only
    assert not LoraChannel(CONFIG).on_policy_only
