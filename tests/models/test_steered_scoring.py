"""Scoring under shifts: what teacher forcing says is what sampling drew from, and what plain computation says.

Promises: log-probabilities, entropies and divergences are those of the summed logits; gradients go to the policy's own
change of weights and are those of the sum; shifts that come to nothing take the ordinary path, bit for bit.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from steered_cases import PROMPTS, asked, full, lora, other_tokenizer  # noqa: E402

from tiny_models import make_policy  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.models.steered import Job  # noqa: E402
from twoclock.models.steered_plain import plain_steered_logits  # noqa: E402
from twoclock.nn.lowrank import LowRank  # noqa: E402
from twoclock.types import Conditioning, Sampling, Shift  # noqa: E402

SAMPLING = Sampling(max_new_tokens=5)


@pytest.fixture(scope="module")
def policy() -> Any:
    return make_policy("llama")


def conditionings(policy: Any) -> dict[str, Conditioning]:
    small = make_policy("qwen2", seed=7)
    add = policy.steering.companions.add
    pair = Shift(expert=lora(policy, 1), anti=lora(policy, 2), alpha=0.8)
    return {
        "pair": Conditioning(shifts=(pair,)),
        "schedule": Conditioning(shifts=(Shift(expert=lora(policy, 1), anti=None, alpha=(1.5, 0.0, 0.4)),)),
        "restricted": Conditioning(
            system="Be brief.", shifts=(Shift(expert=lora(policy, 1), anti=None, alpha=0.6, plausible=0.05),)
        ),
        "others": Conditioning(
            shifts=(Shift(expert=add(small, lora(small, 1)), anti=add(small), alpha=0.7), pair), delta=lora(policy, 3)
        ),
        "whole": Conditioning(shifts=(Shift(expert=full(policy, 1), anti=None, alpha=0.5),)),
        "plain": Conditioning(delta=lora(policy, 3)),
        "expert": Conditioning(shifts=(Shift(expert=lora(policy, 1), anti=None),)),
        "another": Conditioning(shifts=(Shift(expert=add(small), anti=None),)),
    }


def sampled(policy: Any, told: Conditioning, sampling: Sampling = SAMPLING) -> list[Any]:
    requests = asked(told.shifts, delta=told.delta, system=told.system, seeds=2)
    return list(policy.sample(requests, sampling))


def before(policy: Any, told: Conditioning, prompt: str, answer: Any) -> torch.Tensor:
    """The logits [T, V] before each token, by the plain computation."""
    (request,) = asked(told.shifts, delta=told.delta, system=told.system, seeds=1, prompts=[prompt])
    recipe = policy.steering.recipe(told)
    policies = {v.policy.base_hash: v.policy for v in recipe.voices} | {policy.base_hash: policy}
    job = Job(recipe, {key: p._prompted(request) for key, p in policies.items()}, (0,))
    return torch.cat([plain_steered_logits(job, answer[:n]) for n in range(len(answer))]).double()


@pytest.mark.parametrize("name", ["pair", "schedule", "restricted", "others", "whole", "expert", "another"])
def test_scores_are_what_was_drawn_from(policy: Any, name: str) -> None:
    told = conditionings(policy)[name]
    for sampling in (SAMPLING, Sampling(max_new_tokens=4, temperature=0.7)):
        rows = sampled(policy, told, sampling)
        answers = [[c.tokens for c in row] for row in rows]
        found = policy.sequence_stats(PROMPTS, told, answers, temperature=sampling.temperature)
        flat = policy.logprobs_under(PROMPTS, [row[0] for row in answers], [told], temperature=sampling.temperature)
        for row, stats, first in zip(rows, found, flat[0], strict=True):
            for n, completion in enumerate(row):
                here = len(completion.tokens)
                assert stats.logprobs[n, :here].tolist() == pytest.approx(completion.logprobs, abs=3e-4)
                assert stats.mask[n].tolist() == [1.0] * here + [0.0] * (stats.mask.shape[1] - here)
            assert first == pytest.approx(row[0].logprobs, abs=3e-4)


def test_entropy_is_that_of_the_sum(policy: Any) -> None:
    for name in ("pair", "restricted"):
        told = conditionings(policy)[name]
        answer = (10, 20, 30)
        (stats,) = policy.sequence_stats(["h"], told, [[answer]], temperature=1.0)
        probs = before(policy, told, "h", answer).softmax(-1)
        expected = -(probs * probs.clamp_min(1e-300).log()).sum(-1)
        assert stats.entropy[0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_exact_divergences(policy: Any) -> None:
    cases = conditionings(policy)
    answers = [(10, 20, 30), (40,), (50, 60), ()]
    for one, other in (("pair", "plain"), ("plain", "pair"), ("others", "schedule"), ("restricted", "plain")):
        found = policy.exact_kl(PROMPTS, answers, cases[one], cases[other])
        for prompt, answer, value in zip(PROMPTS, answers, found, strict=True):
            if not answer:
                assert value == 0.0
                continue
            p, q = (before(policy, cases[name], prompt, answer).log_softmax(-1) for name in (one, other))
            expected = torch.where(p == -math.inf, 0.0, p.exp() * (p - q)).sum(-1).mean()
            assert value == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
    assert policy.exact_kl(PROMPTS, answers, cases["plain"], cases["restricted"])[:3] == [math.inf] * 3
    assert policy.exact_kl(PROMPTS, answers, cases["pair"], cases["pair"]) == [0.0] * 4


def test_the_gradient_is_that_of_the_sum_and_goes_to_the_own_change_alone(policy: Any) -> None:
    expert, anti = lora(policy, 1), lora(policy, 2)
    told = Conditioning(shifts=(Shift(expert=expert, anti=anti, alpha=0.8), Shift(expert=expert, anti=None, alpha=0.1)))
    start = lora(policy, 5, size=0.2).payload
    answer = (10, 20, 30, 7)

    def own() -> tuple[LowRank, list[torch.Tensor]]:
        tensors = {n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in start.tensors.items()}
        return LowRank(tensors, start.scale), [t for pair in tensors.values() for t in pair]

    change, moving = own()
    (stats,) = policy.sequence_stats(["h"], told, [[answer]], temperature=0.9, change=change)
    stats.logprobs.sum().backward()

    plain, reference = own()
    ids = [*policy.render("h", told), *answer]
    where = slice(len(ids) - len(answer) - 1, len(ids) - 1)
    logits = {}
    for name, payload in (("own", plain), ("expert", expert.payload), ("anti", anti.payload), ("base", None)):
        with policy._forcing.mount(payload), torch.set_grad_enabled(name == "own"):
            logits[name] = plain_logits(policy.model, ids)[where]
    total = logits["own"] + 0.8 * (logits["expert"] - logits["anti"]) + 0.1 * (logits["expert"] - logits["base"])
    chosen = torch.log_softmax(total / 0.9, -1).gather(1, torch.tensor(answer)[:, None])
    chosen.sum().backward()
    assert stats.logprobs[0].tolist() == pytest.approx(chosen[:, 0].tolist(), abs=1e-4)
    for mine, theirs in zip(moving, reference, strict=True):
        assert mine.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert all(a.grad is None and b.grad is None for a, b in expert.payload.tensors.values())
    assert all(p.grad is None for p in policy.model.parameters())


def test_gradients_with_whole_parameters_in_training(policy: Any) -> None:
    """The head itself moves, and is back in its place when the backward pass makes the logits again."""
    told = Conditioning(shifts=(Shift(expert=lora(policy, 1), anti=None, alpha=0.5),))
    start = full(policy, 3, size=0.05).payload
    moving = {n: t.clone().requires_grad_() for n, t in start.tensors.items()}
    (stats,) = policy.sequence_stats(["h"], told, [[(10, 20)]], temperature=1.0, change=type(start)(moving))
    stats.logprobs.sum().backward()
    name = next(n for n in moving if "lm_head" in n)
    grad = moving[name].grad
    assert grad is not None
    row, column, step = 10, 3, 1e-2
    values = []
    for sign in (1, -1):
        nudged = {n: t.detach().clone() for n, t in moving.items()}
        nudged[name][row, column] += sign * step
        with torch.no_grad():
            (moved,) = policy.sequence_stats(["h"], told, [[(10, 20)]], temperature=1.0, change=type(start)(nudged))
        values.append(float(moved.logprobs.sum()))
    assert float(grad[row, column]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.02, abs=1e-3)


def test_shifts_that_come_to_nothing_take_the_ordinary_path(policy: Any) -> None:
    expert = lora(policy, 1)
    answers = [[(10, 20, 30), (40,)] for _ in PROMPTS]
    flat = [row[0] for row in answers]
    cases = [
        (Conditioning(shifts=(Shift(expert=expert, anti=expert, alpha=2.0),)), Conditioning()),
        (Conditioning(shifts=(Shift(expert=expert, anti=None, alpha=0.0),)), Conditioning()),
        (Conditioning(shifts=(Shift(expert=expert, anti=None),)), Conditioning(delta=expert)),
    ]
    for told, same in cases:
        one, other = (policy.sequence_stats(PROMPTS, c, answers, temperature=1.0) for c in (told, same))
        assert all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(one, other, strict=True))
        assert policy.logprobs_under(PROMPTS, flat, [told]) == policy.logprobs_under(PROMPTS, flat, [same])
        assert policy.exact_kl(PROMPTS, flat, told, same) == [0.0] * len(PROMPTS)
        assert policy.chunks(PROMPTS, told, answers) == policy.chunks(PROMPTS, same, answers)


def test_a_change_in_training_is_no_fixed_side_even_where_they_are_equal(policy: Any) -> None:
    """The base cancels against an anti-expert only where both are the same value; what is trained never is."""
    expert, deployed = lora(policy, 1), lora(policy, 2)
    told = Conditioning(shifts=(Shift(expert=expert, anti=deployed),), delta=deployed)
    (fixed,) = policy.sequence_stats(["h"], told, [[(10, 20)]], temperature=1.0)
    moving = {n: (a.clone().requires_grad_(), b.clone()) for n, (a, b) in deployed.payload.tensors.items()}
    (trained,) = policy.sequence_stats(
        ["h"], told, [[(10, 20)]], temperature=1.0, change=LowRank(moving, deployed.payload.scale)
    )
    assert trained.logprobs.tolist() == [pytest.approx(fixed.logprobs[0].tolist(), abs=1e-4)]
    assert trained.logprobs.requires_grad


def test_prompts_are_scored_in_parts_that_fit(policy: Any) -> None:
    told = conditionings(policy)["pair"]
    policy._forcing.packed_tokens, kept = 60, policy._forcing.packed_tokens
    try:
        answers = [[(10, 20, 30), (40,)] for _ in PROMPTS]
        parts = policy.chunks(PROMPTS, told, answers)
        assert len(parts) > 1
        small = policy.sequence_stats(PROMPTS, told, answers, temperature=1.0)
    finally:
        policy._forcing.packed_tokens = kept
    whole = policy.sequence_stats(PROMPTS, told, answers, temperature=1.0)
    for one, other in zip(small, whole, strict=True):
        assert torch.allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_distilling_under_shifts(policy: Any) -> None:
    cases = conditionings(policy)
    answer = (10, 20, 30)
    found = policy.reverse_kl(["h"], cases["pair"], [[answer, ()]], [cases["plain"]], temperature=1.0)
    p, q = (before(policy, cases[name], "h", answer).log_softmax(-1) for name in ("pair", "plain"))
    assert found[0][0].tolist() == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), abs=1e-4)
    both = policy.reverse_kl(["h"], cases["pair"], [[answer]], [cases["plain"]], temperature=1.0, forward=0.25)
    mixed = 0.75 * (p.exp() * (p - q)).sum(-1) + 0.25 * (q.exp() * (q - p)).sum(-1)
    assert both[0][0].tolist() == pytest.approx(mixed.tolist(), abs=1e-4)
    assert found[0].shape == (2, 3)
    assert found[0][1].tolist() == [0.0] * 3


def test_nothing_to_score(policy: Any) -> None:
    told = conditionings(policy)["pair"]
    (stats,) = policy.sequence_stats(["h"], told, [[()]], temperature=1.0)
    assert stats.logprobs.shape == (1, 0)
    assert policy.logprobs_under(["h"], [()], [told]) == [[[]]]
    assert policy.sequence_stats([], told, [], temperature=1.0) == []


def test_what_the_shifts_did_to_each_token(policy: Any) -> None:
    told = conditionings(policy)["others"]
    answer = (10, 20, 30, 7)
    found = policy.token_shifts("h", told, answer)
    plain = Conditioning(delta=told.delta)
    one, other = (before(policy, c, "h", answer).log_softmax(-1) for c in (plain, told))
    for n, (token, record) in enumerate(zip(answer, found, strict=True)):
        assert (record.token, record.text) == (token, policy.tokenizer.decode([token]))
        assert record.before == pytest.approx(float(one[n, token]), abs=1e-4)
        assert record.after == pytest.approx(float(other[n, token]), abs=2e-4)
        assert record.instead == policy.tokenizer.decode([int(one[n].argmax())])
        assert record.changed == (int(one[n].argmax()) != int(other[n].argmax()))
        assert record.uncovered == 0.0
    assert any(abs(record.moved) > 0.1 for record in found)
    inert = Conditioning(shifts=(Shift(expert=lora(policy, 1), anti=None, alpha=0.0),))
    assert all(r.moved == 0.0 and not r.changed for r in policy.token_shifts("h", inert, answer))
    assert policy.token_shifts("h", told, ()) == ()


def test_the_probability_of_what_no_expert_knows_is_told(policy: Any) -> None:
    small = make_policy("qwen2", seed=41)
    small.tokenizer = other_tokenizer(lost=list("abcdijkl"))
    side = policy.steering.companions.add(small)
    told = Conditioning(shifts=(Shift(expert=side, anti=None, alpha=0.5, mapped=True),))
    found = policy.token_shifts("h", told, (10, 20))
    probs = before(policy, Conditioning(), "h", (10, 20)).softmax(-1)
    vocab = policy.tokenizer.get_vocab()
    lost = [i for t, i in vocab.items() if t not in small.tokenizer.get_vocab()]
    assert [r.uncovered for r in found] == pytest.approx(probs[:, lost].sum(-1).tolist(), abs=1e-5)
    assert all(r.uncovered > 0.0 for r in found)
