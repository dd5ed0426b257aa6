"""Soft states in conditionings, and what policies do with them: sampled and scored alike, held to the plain pass, or
refused by name."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from retrofit_cases import BASE, TEXTS, retrofit_of, soft_of

from tiny_models import make_policy
from twoclock.contracts import Memorizing
from twoclock.errors import UnsupportedError
from twoclock.models.plain import plain_generate, plain_logits
from twoclock.models.remote import RemotePolicy
from twoclock.models.retrofit.hooks import reading
from twoclock.models.scripted import ScriptedPolicy
from twoclock.nn.lowrank import LowRank
from twoclock.nn.soft_memory import SoftMemory, soft_state
from twoclock.types import Conditioning, Delta, Request, Sampling, Shift, SoftState

PROMPTS = ("Where is the key?", "What is the gate code of the north depot?", "2 + 2 = ?")
GREEDY = Sampling(max_new_tokens=9, temperature=0.0)
WARM = Sampling(max_new_tokens=9, temperature=1.0)


@pytest.fixture(scope="module")
def policy() -> Any:
    return make_policy("llama", context=2048)


@pytest.fixture(scope="module")
def soft(policy: Any) -> SoftState:
    fresh = soft_of(SoftMemory.start(retrofit_of()))
    return policy.memorized(fresh, [TEXTS[0], ("Where is the key?", "In the box")])  # type: ignore[no-any-return]


def lora(policy: Any) -> Delta:
    generator = torch.Generator().manual_seed(5)
    (name,) = [n for n in policy.linear_shapes(["down_proj"]) if ".1." in n]
    out, width = policy.linear_shapes(["down_proj"])[name]
    pair = torch.randn(2, width, generator=generator), torch.randn(out, 2, generator=generator)
    return Delta("a lora", "lora", policy.base_hash, LowRank({name: pair}, 0.3))


def requests(*conditionings: Conditioning) -> list[Request]:
    return [Request(prompt=p, conditioning=c, seeds=(1, 2)) for p in PROMPTS for c in conditionings]


# ------------------------------------------------------------------------------------------------------------ the value


def test_a_conditioning_without_a_memory_keeps_the_id_that_it_had(soft: SoftState) -> None:
    assert Conditioning().id == Conditioning(soft=None).id == "78a0c9091184b6a2"
    told = Conditioning(soft=soft)
    assert told.id != Conditioning().id
    assert not told.is_identity
    assert told.text_id == told.id, "a memory is no change of weights"
    assert Conditioning(soft=SoftState(soft.id, "x", "y", None)) == told
    assert Conditioning(soft=replace_id(soft)).id != told.id


def replace_id(soft: SoftState) -> SoftState:
    return SoftState("another", soft.kind, soft.base, soft.payload)


def test_two_memories_do_not_join(soft: SoftState) -> None:
    told, both = Conditioning(soft=soft), Conditioning(system="a", soft=soft)
    assert told.join(Conditioning(system="a")) == both == Conditioning(system="a").join(told)
    with pytest.raises(ValueError, match="both set the conditioning's 'soft'"):
        told.join(told)


def test_a_soft_state_survives_pickling(soft: SoftState) -> None:
    again = pickle.loads(pickle.dumps(soft))
    assert (again, hash(again), again.payload.id) == (soft, hash(soft), soft.id)


def test_a_silent_memory_is_no_influence(policy: Any) -> None:
    fresh = SoftMemory.start(retrofit_of())
    assert soft_state(fresh) is None
    silent = Conditioning(soft=soft_of(fresh))
    assert policy.sample(requests(silent), WARM) == policy.sample(requests(Conditioning()), WARM)


# --------------------------------------------------------------------------------------------- sampled, scored, mounted


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "mistral"])
def test_sampling_under_a_memory_is_the_plain_way_token_for_token(name: str) -> None:
    policy = make_policy(name, context=512)
    fresh = soft_of(SoftMemory.start(retrofit_of(base=policy.base_hash)))
    told = Conditioning(soft=policy.memorized(fresh, TEXTS))
    together = policy.sample(requests(Conditioning(), told), WARM)
    changed = 0
    for request, row in zip(requests(Conditioning(), told), together, strict=True):
        tokens = policy.render(request.prompt, request.conditioning)
        for seed, completion in zip(request.seeds, row, strict=True):
            base, _ = plain_generate(policy.model, tokens, seed, WARM, policy._ends)
            if request.conditioning.soft is None:
                assert list(completion.tokens) == base
                continue
            with reading(policy.model, told.soft.payload):  # type: ignore[union-attr]
                theirs, logprobs = plain_generate(policy.model, tokens, seed, WARM, policy._ends)
            assert list(completion.tokens) == theirs
            assert completion.logprobs == pytest.approx(logprobs, abs=2e-3)
            changed += theirs != base
    assert changed, "a memory that says nothing would pass too"
    assert not any(m._forward_hooks for m in policy.model.modules())


def test_prefixes_of_one_memory_are_not_anothers(policy: Any, soft: SoftState) -> None:
    """Under a system prompt, whose keys and values are kept between calls."""
    other = policy.memorized(soft, [TEXTS[1]])
    told = [Conditioning(system="Be brief.", soft=s) for s in (soft, other, None)]
    first = [policy.sample(requests(c), GREEDY) for c in told]
    assert [policy.sample(requests(c), GREEDY) for c in reversed(told)] == first[::-1]
    fresh = make_policy("llama", context=2048)
    assert [fresh.sample(requests(c), GREEDY) for c in told] == first
    assert len({str(row) for row in first}) == 3


def test_scores_are_those_of_the_plain_pass(policy: Any, soft: SoftState) -> None:
    told = Conditioning(soft=soft, delta=lora(policy))
    completions = [[(40, 41, 42, 43), (40, 50)] for _ in PROMPTS]
    stats = policy.sequence_stats(PROMPTS, told, completions, temperature=1.0)
    flat = policy.logprobs_under(PROMPTS, [c[0] for c in completions], [told, Conditioning()])
    for prompt, answers, stat, scored in zip(PROMPTS, completions, stats, flat[0], strict=True):
        tokens = policy.render(prompt, told)
        with policy._forcing.mount(told.delta.payload), reading(policy.model, soft.payload):  # type: ignore[union-attr]
            for n, answer in enumerate(answers):
                logits = plain_logits(policy.model, [*tokens, *answer])[len(tokens) - 1 : -1].detach()
                expected = logits.log_softmax(-1)[range(len(answer)), list(answer)]
                assert torch.allclose(stat.logprobs[n, : len(answer)].detach(), expected, atol=2e-3)
                if n == 0:
                    assert scored == pytest.approx(expected.tolist(), abs=2e-3)
    assert flat[0] != flat[1]
    assert policy.exact_kl(PROMPTS, [c[0] for c in completions], told, told) == [0.0] * 3
    assert min(policy.exact_kl(PROMPTS, [c[0] for c in completions], told, replace(told, soft=None))) > 1e-4


def test_gradients_reach_a_change_that_is_trained_beside_a_memory(policy: Any, soft: SoftState) -> None:
    change = lora(policy).payload
    name, (a, b) = next(iter(change.tensors.items()))
    a, b = a.clone().requires_grad_(True), b.clone().requires_grad_(True)
    trained = LowRank({name: (a, b)}, 0.3)
    told = Conditioning(soft=soft)
    (with_soft,) = policy.sequence_stats(PROMPTS[:1], told, [[(40, 41)]], temperature=1.0, change=trained)
    (without,) = policy.sequence_stats(PROMPTS[:1], Conditioning(), [[(40, 41)]], temperature=1.0, change=trained)
    assert not torch.equal(with_soft.logprobs, without.logprobs)
    with_soft.logprobs.sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert float(a.grad.abs().sum()) > 0
    values = policy.reverse_kl(
        PROMPTS[:1], Conditioning(), [[(40, 41)]], [told], temperature=1.0, change=LowRank({name: (a, b)}, 0.3)
    )
    assert float(values[0].detach().min()) > 0, "a teacher with a memory is another than one without"


def test_writing_follows_from_the_base_and_the_texts_alone(policy: Any) -> None:
    fresh = soft_of(SoftMemory.start(retrofit_of()))
    one = policy.memorized(fresh, TEXTS)
    assert policy.memorized(policy.memorized(fresh, TEXTS[:1]), TEXTS[1:]) == one
    with policy._forcing.mount(None):
        assert policy.memorized(fresh, TEXTS) == one
    assert policy.text_tokens(TEXTS[0]) == policy.memorized(fresh, TEXTS[:1]).payload.tokens
    assert policy.text_tokens(("a", "bc")) > policy.text_tokens("a") + policy.text_tokens("bc")
    assert policy.memory_shape() == (32, 3)
    assert policy.memorized(one, []) == one
    assert isinstance(policy, Memorizing)


# -------------------------------------------------------------------------------------------------------------- refused


def test_memories_of_other_models_are_refused(policy: Any, soft: SoftState) -> None:
    other = make_policy("llama", seed=1)
    with pytest.raises(UnsupportedError, match="for the base weights base-llama-0, and the model is base-llama-1"):
        other.sample(requests(Conditioning(soft=soft))[:1], GREEDY)
    with pytest.raises(UnsupportedError, match="base-llama-1"):
        other.memorized(soft, ["a"])
    for wrong in (SoftState("x", "prefix", BASE, soft.payload), SoftState("x", "neural_memory", BASE, None)):
        with pytest.raises(UnsupportedError, match="it reads 'neural_memory'"):
            policy.sample(requests(Conditioning(soft=wrong))[:1], GREEDY)
        with pytest.raises(UnsupportedError, match="it reads 'neural_memory'"):
            policy.sequence_stats(PROMPTS[:1], Conditioning(soft=wrong), [[(40,)]], temperature=1.0)


def test_policies_that_read_no_memory_refuse(soft: SoftState) -> None:
    request = [Request(prompt="a", conditioning=Conditioning(soft=soft), seeds=(1,))]
    with RemotePolicy("http://localhost:9/v1", "m") as remote, pytest.raises(UnsupportedError, match="memory"):
        remote.sample(request, Sampling())
    with pytest.raises(UnsupportedError, match="memory"):
        ScriptedPolicy(lambda *_: "x", accepts_delta=False).sample(request, Sampling())


def test_shifts_beside_a_memory_are_refused(policy: Any, soft: SoftState) -> None:
    both = Conditioning(soft=soft, shifts=(Shift(expert=lora(policy), anti=None),))
    with pytest.raises(UnsupportedError, match="leave out the channel"):
        policy.sample(requests(both)[:1], GREEDY)
    with pytest.raises(UnsupportedError, match="leave out the channel"):
        policy.sequence_stats(PROMPTS[:1], both, [[(40,)]], temperature=1.0)
    mixed = [*requests(Conditioning(soft=soft))[:1], *requests(replace(both, soft=None))[:1]]
    memory, shifted = policy.sample(mixed, GREEDY)
    assert memory == policy.sample(mixed[:1], GREEDY)[0]
    assert shifted == policy.sample(mixed[1:], GREEDY)[0]
