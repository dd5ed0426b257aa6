"""Distillation over the whole vocabulary, from a teacher that stays as it is: values, gradients, the optimizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from credit_table import PLAIN  # noqa: E402
from lora_world import bench, learned_gradient, make_evidence  # noqa: E402

from tiny_models import make_policy  # noqa: E402
from twoclock.contracts import Distilling, WholeVocabulary  # noqa: E402
from twoclock.errors import ConfigError  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.nn.lowrank import LowRank  # noqa: E402
from twoclock.nn.reverse_kl import reverse_kl_reference  # noqa: E402
from twoclock.slow.config import TrainingConfig  # noqa: E402
from twoclock.slow.full import FullChannel, FullConfig  # noqa: E402
from twoclock.slow.lora import LoraChannel, LoraConfig, LoraState  # noqa: E402
from twoclock.types import Budget, Conditioning, Declined, Evidence, Item, Proposal  # noqa: E402

CONFIG = LoraConfig(
    rank=3, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"), learning_rate=0.01, beta1=0.0, max_grad_norm=1e9
)
TEACHER = Conditioning(system="Say seven.", exemplars=(("1 + 1", "2"),))


def taught(item: Item) -> Conditioning:
    """Another text for every other item."""
    return replace(TEACHER, notes=("Be quick.",)) if item.id.endswith(("1", "3")) else TEACHER


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return make_policy("llama")


def evidence_of(policy: LocalPolicy, *, seed: int = 0, text: Conditioning = PLAIN) -> Evidence:
    return make_evidence(policy, texts=(text,), seed=seed)


def step(policy: LocalPolicy, channel: Any, state: Any, evidence: Evidence) -> Any:
    return channel.propose(bench(policy), state, evidence, Budget(), 4)


def moved(policy: LocalPolicy) -> LoraState:
    """A state that has learned something, with moments."""
    channel = LoraChannel(replace(CONFIG, objective="distill"))
    found = channel.propose(bench(policy, TEACHER), channel.init(policy.card, 0), evidence_of(policy), Budget(), 1)
    assert isinstance(found, Proposal)
    state: LoraState = found.state
    return state


def plain_kl(policy: LocalPolicy, evidence: Evidence, change: LowRank, temperature: float) -> torch.Tensor:
    """Σ_t KL over all rollouts, one sequence at a time through the model's own attention."""
    parts = []
    for group in evidence.groups:
        teacher = taught(group.item)
        for rollout in group.rollouts:
            answer = list(rollout.completion.tokens)
            own = policy.render(group.item.prompt, evidence.conditionings[rollout.conditioning_id])
            other = policy.render(group.item.prompt, teacher)
            with torch.no_grad():
                target = plain_logits(policy.model, [*other, *answer])[len(other) - 1 : -1]
            with policy._forcing.mount(change):
                logits = plain_logits(policy.model, [*own, *answer])[len(own) - 1 : -1]
            parts.append(reverse_kl_reference(logits, target, temperature).sum())
    return torch.stack(parts).sum()


def test_what_the_policy_says_of_itself_is_the_plain_sum(policy: LocalPolicy) -> None:
    assert isinstance(policy, WholeVocabulary)
    evidence, state = evidence_of(policy), moved(policy)
    prompts = [g.item.prompt for g in evidence.groups]
    answers = [[r.completion.tokens for r in g.rollouts] for g in evidence.groups]
    teachers = [taught(g.item) for g in evidence.groups]
    weights = Conditioning(delta=state.delta)
    found = policy.reverse_kl(prompts, weights, answers, teachers, temperature=0.9)
    change = LowRank(state.tensors, state.scale)
    assert float(torch.stack([f.sum() for f in found]).sum()) == pytest.approx(
        float(plain_kl(policy, evidence, change, 0.9).detach()), rel=1e-4
    )
    # At temperature 1 its mean is what drift is measured by.
    found = policy.reverse_kl(prompts, weights, [[a[0]] for a in answers], teachers, temperature=1.0)
    drift = [policy.exact_kl([p], [a[0]], weights, t)[0] for p, a, t in zip(prompts, answers, teachers, strict=True)]
    assert [float(f.sum()) / len(a[0]) for f, a in zip(found, answers, strict=True)] == pytest.approx(drift, rel=1e-4)
    (nothing,) = policy.reverse_kl(prompts[:1], TEACHER, answers[:1], [TEACHER], temperature=1.0)
    assert float(nothing.abs().max()) < 1e-5


def test_the_gradient_is_that_of_the_plain_sum(policy: LocalPolicy) -> None:
    evidence = evidence_of(policy)
    channel = LoraChannel(CONFIG).distilling(taught)
    state = channel.rested(moved(policy))
    evidence = replace(evidence, conditionings={PLAIN.id: PLAIN})
    proposal = step(policy, channel, state, evidence)
    assert isinstance(proposal, Proposal), proposal
    leaves = {n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in state.tensors.items()}
    tokens = sum(len(r.completion.tokens) for r in evidence.rollouts)
    (plain_kl(policy, evidence, LowRank(leaves, state.scale), 0.9) / tokens).backward()
    learned = learned_gradient(state, proposal.state)
    for name, (a, b) in leaves.items():
        for part, leaf in zip("AB", (a, b), strict=True):
            assert leaf.grad is not None
            torch.testing.assert_close(learned[f"{name}.{part}"], leaf.grad, rtol=2e-3, atol=2e-5)
    assert proposal.cost.trained_tokens > 0


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_student_comes_to_its_teacher_and_the_teacher_stays(policy: LocalPolicy, kind: str) -> None:
    make = LoraChannel(replace(CONFIG, beta1=0.9)) if kind == "lora" else FullChannel(FullConfig(learning_rate=2e-3))
    channel: Any = make.distilling(lambda item: TEACHER, learning_rate=0.03 if kind == "lora" else None)
    assert isinstance(make, Distilling)
    state, losses, evidence = channel.init(policy.card, 0), [], evidence_of(policy)
    for _ in range(10):
        proposal = step(policy, channel, state, evidence)
        assert isinstance(proposal, Proposal), proposal
        losses.append(proposal.metrics["loss"])
        state = proposal.state
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_weights_count_where_the_text_is_the_same(policy: LocalPolicy) -> None:
    """A teacher without a prompt of its own, under weights from before, holds the student where it was."""
    state = moved(policy)
    channel = LoraChannel(CONFIG).distilling(lambda item: PLAIN)
    same = step(policy, channel, channel.init(policy.card, 0), evidence_of(policy))
    assert isinstance(same, Declined)
    assert "nothing to distil" in same.reason
    under = evidence_of(policy, text=Conditioning(delta=state.delta))
    back = step(policy, channel, channel.rested(state), under)
    assert isinstance(back, Proposal)
    assert back.metrics["loss"] > 0


def test_an_optimizer_that_rests_and_takes_up_again(policy: LocalPolicy) -> None:
    channel, before = LoraChannel(CONFIG), moved(policy)
    before = replace(before, step=7)
    rested = channel.rested(before)
    assert rested.step == 1
    assert rested.delta == before.delta
    assert all(not bool(t.any()) for moments in rested.moments.values() for t in moments)
    assert any(bool(t.any()) for moments in before.moments.values() for t in moments)
    after = step(policy, channel.distilling(taught), rested, evidence_of(policy)).state
    resumed = channel.resumed(before, after)
    assert resumed.delta == after.delta != before.delta
    assert resumed.moments is before.moments
    assert resumed.step == 8
    # A state that was never trained: its optimizer remembers nothing afterwards, and it is no longer the base.
    start = channel.init(policy.card, 0)
    first = channel.resumed(start, step(policy, channel.distilling(taught), start, evidence_of(policy)).state)
    assert first.step == 1
    assert first.delta is not None
    assert all(not bool(t.any()) for moments in first.moments.values() for t in moments)


def test_a_form_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown distill_over 'words'"):
        TrainingConfig(objective="distill", distill_over="words")  # type: ignore[arg-type]
