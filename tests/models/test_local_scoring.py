"""Teacher forcing and exact KL: the packed tree against one sequence at a time, values and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import SHARED, make_policy  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.nn.lowrank import LowRank, mounted  # noqa: E402
from twoclock.types import Conditioning, Delta, Request, Sampling  # noqa: E402

PROMPTS = ("What is 7 + 8?", "What is 7 + 81?", "hi", "hi")
COMPLETIONS = (
    ((17, 40, 99, 255), (17,), (8, 8)),
    ((250, 3, 4, 4, 4, 4, 120), ()),
    ((17, 40, 99, 255), (17, 40, 99, 254)),
    ((33,),),
)
"""Several a prompt, with shared beginnings, of one token, empty, and the same prompt twice."""
TEXT = Conditioning(system="Answer briefly.", exemplars=(("1+1?", "2"),))


@pytest.fixture(scope="module", params=(*SHARED, "bloom", "gptj"))
def policy(request: pytest.FixtureRequest) -> LocalPolicy:
    return make_policy(request.param)


@pytest.fixture(scope="module")
def llama() -> LocalPolicy:
    return make_policy("llama")


def factors(policy: LocalPolicy, seed: int = 1) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Rank-2 leaves for every linear layer but the head."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(2, m.in_features, generator=g).mul_(0.3).requires_grad_(),
            torch.randn(m.out_features, 2, generator=g).mul_(0.3).requires_grad_(),
        )
        for name, m in policy.model.named_modules()
        if isinstance(m, torch.nn.Linear) and name != "lm_head"
    }


def with_scale(tensors: dict[str, Any], scale: float, policy: LocalPolicy) -> Conditioning:
    payload = LowRank({n: (a.detach(), b.detach()) for n, (a, b) in tensors.items()}, scale)
    return Conditioning(
        system=TEXT.system,
        exemplars=TEXT.exemplars,
        delta=Delta(f"scale {scale}".ljust(64, "0"), "lora", policy.base_hash, payload),
    )


def plain_distributions(
    policy: LocalPolicy, prompt: str, conditioning: Conditioning, answer: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities [T, V] at the answer's positions, by the model's own forward pass."""
    before = policy.render(prompt, conditioning)
    logits = plain_logits(policy.model, [*before, *answer])
    at = logits[len(before) - 1 : len(before) + len(answer) - 1]
    return torch.log_softmax(at / temperature, -1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_and_entropy_are_the_plain_ones(policy: LocalPolicy, temperature: float) -> None:
    with torch.no_grad():
        stats = policy.sequence_stats(PROMPTS, TEXT, COMPLETIONS, temperature=temperature)
        assert len(stats) == len(PROMPTS)
        for prompt, answers, stat in zip(PROMPTS, COMPLETIONS, stats, strict=True):
            longest = max(len(a) for a in answers)
            assert stat.logprobs.shape == stat.entropy.shape == stat.mask.shape == (len(answers), longest)
            for n, answer in enumerate(answers):
                size = len(answer)
                assert stat.mask[n].tolist() == [1.0] * size + [0.0] * (longest - size)
                assert bool((stat.logprobs[n, size:] == 0).all())
                assert bool((stat.entropy[n, size:] == 0).all())
                if not answer:
                    continue
                plain = plain_distributions(policy, prompt, TEXT, answer, temperature)
                chosen = plain.gather(1, torch.tensor(answer)[:, None])[:, 0]
                torch.testing.assert_close(stat.logprobs[n, :size], chosen, atol=1e-4, rtol=1e-5)
                entropy = -(plain.exp() * plain).sum(-1)
                torch.testing.assert_close(stat.entropy[n, :size], entropy, atol=1e-4, rtol=1e-5)


def test_entropy_by_hand(llama: LocalPolicy) -> None:
    policy = make_policy("llama")
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
        (stat,) = policy.sequence_stats(["hi"], Conditioning(), [[[5, 6]]], temperature=0.3)
    assert stat.entropy.flatten().tolist() == pytest.approx([math.log(300)] * 2, rel=1e-5)
    assert stat.logprobs.flatten().tolist() == pytest.approx([-math.log(300)] * 2, rel=1e-5)


def test_at_temperature_zero_they_are_what_greedy_sampling_reports(llama: LocalPolicy) -> None:
    ((greedy,),) = llama.sample(
        [Request(prompt="hi", conditioning=TEXT, seeds=(1,))], Sampling(max_new_tokens=4, temperature=0.0)
    )
    with torch.no_grad():
        (stat,) = llama.sequence_stats(["hi"], TEXT, [[greedy.tokens]], temperature=0.0)
    assert stat.logprobs[0].tolist() == pytest.approx(greedy.logprobs, abs=1e-4)


def test_what_was_sampled_is_scored_the_same(policy: LocalPolicy) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=0.9)
    changed = with_scale(factors(policy), 0.1, policy)
    requests = [Request(prompt=p, conditioning=c, seeds=(1, 2, 3)) for p in PROMPTS[:3] for c in (TEXT, changed)]
    rows = policy.sample(requests, sampling)
    for request, row in zip(requests, rows, strict=True):
        with torch.no_grad():
            (stat,) = policy.sequence_stats(
                [request.prompt], request.conditioning, [[c.tokens for c in row]], temperature=0.9
            )
        for n, completion in enumerate(row):
            size = len(completion.tokens)
            assert stat.logprobs[n, :size].tolist() == pytest.approx(completion.logprobs, abs=1e-4)


def test_gradients_are_those_of_one_sequence_at_a_time(policy: LocalPolicy) -> None:
    """Autograd through the shared prefix is exact: the same loss on plain log-probabilities has the same gradient."""
    ours, theirs = factors(policy), factors(policy)
    weights = torch.Generator().manual_seed(5)
    loss, plain = torch.zeros(()), torch.zeros(())
    stats = policy.sequence_stats(PROMPTS, TEXT, COMPLETIONS, temperature=0.8, change=LowRank(ours, 0.5))
    for prompt, answers, stat in zip(PROMPTS, COMPLETIONS, stats, strict=True):
        weight = torch.randn(stat.logprobs.shape, generator=weights)
        loss = loss + (weight * stat.logprobs * stat.mask).sum()
        for n, answer in enumerate(answers):
            with mounted(dict(policy.model.named_modules()), LowRank(theirs, 0.5)):
                logprobs = plain_distributions(policy, prompt, TEXT, answer, 0.8)
            chosen = logprobs.gather(1, torch.tensor(answer, dtype=torch.long)[:, None])[:, 0]
            plain = plain + (weight[n, : len(answer)] * chosen).sum()
    loss.backward()
    plain.backward()
    torch.testing.assert_close(loss.detach(), plain.detach(), atol=1e-4, rtol=1e-5)
    for name, pair in ours.items():
        for tensor, other in zip(pair, theirs[name], strict=True):
            assert tensor.grad is not None
            size = float(other.grad.abs().max())
            assert size > 0
            torch.testing.assert_close(tensor.grad / size, other.grad / size, atol=2e-5, rtol=1e-4)
    assert not any(s.entropy.requires_grad for s in stats)


def test_low_rank_replaces_the_delta_of_the_conditioning(llama: LocalPolicy) -> None:
    tensors, other = factors(llama), factors(llama, seed=2)
    conditioning = with_scale(other, 0.5, llama)
    with torch.no_grad():
        change = LowRank(tensors, 0.3)
        (replaced,) = llama.sequence_stats(["hi"], conditioning, [[[5, 6]]], temperature=1.0, change=change)
        (alone,) = llama.sequence_stats(["hi"], TEXT, [[[5, 6]]], temperature=1.0, change=change)
        (kept,) = llama.sequence_stats(["hi"], conditioning, [[[5, 6]]], temperature=1.0)
    assert torch.equal(replaced.logprobs, alone.logprobs)
    assert not torch.allclose(kept.logprobs, alone.logprobs, atol=1e-3)


@pytest.mark.parametrize("packed_tokens", [1, 60, 150, 10_000])
def test_chunks_change_no_number(policy: LocalPolicy, packed_tokens: int) -> None:
    small = make_policy(policy.card.name, packed_tokens=packed_tokens)
    with torch.no_grad():
        whole = policy.sequence_stats(PROMPTS, TEXT, COMPLETIONS, temperature=1.0)
        pieces = small.sequence_stats(PROMPTS, TEXT, COMPLETIONS, temperature=1.0)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(one.entropy, other.entropy, atol=1e-4, rtol=1e-5)


def test_chunks_hold_what_fits(llama: LocalPolicy) -> None:
    from twoclock.models.packing import pack

    texts = ["a" * 30 + str(n) for n in range(6)] + ["b", "a" * 30 + "b", "c" * 200, "d"]
    answers = [[[7] * 10, [8] * 5]] * len(texts)
    policy = make_policy("llama", packed_tokens=160)
    parts = policy.chunks(texts, Conditioning(), answers)
    assert [i for part in parts for i in part] == list(range(len(texts)))
    assert max(len(part) for part in parts) > 2
    for part in parts:
        packed = pack([policy.render(texts[i], Conditioning()) for i in part], [answers[i] for i in part])
        assert len(packed.tokens) <= 160 or len(part) == 1
    assert policy.chunks([], Conditioning(), []) == []


def test_nothing_to_score(policy: LocalPolicy) -> None:
    assert policy.sequence_stats([], TEXT, [], temperature=1.0) == []
    none, empty = policy.sequence_stats(["hi", "ho"], TEXT, [[], [[], []]], temperature=1.0)
    assert none.logprobs.shape == (0, 0)
    assert empty.logprobs.shape == empty.mask.shape == (2, 0)


# ------------------------------------------------------------------------------------------------------------------ KL


def test_kl_is_the_sum_over_the_vocabulary(policy: LocalPolicy) -> None:
    base, changed = TEXT, with_scale(factors(policy), 0.2, policy)
    answers = [(17, 40, 99), (250,), (3, 4)]
    for p, q in ((base, changed), (changed, base)):
        ours = policy.exact_kl(PROMPTS[:3], answers, p, q)
        for prompt, answer, value in zip(PROMPTS[:3], answers, ours, strict=True):
            logs = []
            for c in (p, q):
                modules = dict(policy.model.named_modules())
                with torch.no_grad(), mounted(modules, c.delta.payload if c.delta else None):
                    logs.append(plain_distributions(policy, prompt, c, answer).double())
            by_hand = float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())
            assert value == pytest.approx(by_hand, abs=1e-5, rel=1e-4)
            assert value > 1e-3


def test_kl_between_texts(llama: LocalPolicy) -> None:
    """The two conditionings may read different prompts; the answer is the same."""
    bare = Conditioning()
    (ours,) = llama.exact_kl(["hi"], [(17, 40)], TEXT, bare)
    with torch.no_grad():
        p, q = (plain_distributions(llama, "hi", c, (17, 40)).double() for c in (TEXT, bare))
    assert ours == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)


def test_kl_of_the_same_is_exactly_nothing(llama: LocalPolicy) -> None:
    changed = with_scale(factors(llama), 0.2, llama)
    for c in (TEXT, changed):
        assert llama.exact_kl(PROMPTS[:3], [(1,), (2, 3), ()], c, c) == [0.0, 0.0, 0.0]
    again = Conditioning(system=changed.system, exemplars=changed.exemplars, delta=changed.delta)
    assert llama.exact_kl(["hi"], [(1, 2)], changed, again) == [0.0]
    zero = with_scale({n: (a, b * 0) for n, (a, b) in factors(llama).items()}, 0.3, llama)
    assert llama.exact_kl(["hi"], [(1, 2)], zero, TEXT) == [0.0]


def test_kl_is_never_negative_and_grows_with_the_change(llama: LocalPolicy) -> None:
    tensors = factors(llama)
    answers = [(17, 40, 99, 255), (250, 3), (3,), (9, 9, 9)]
    previous = [0.0] * 4
    for scale in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05):
        values = llama.exact_kl(PROMPTS, answers, with_scale(tensors, scale, llama), TEXT)
        assert all(v >= 0.0 for v in values)
        if scale >= 1e-3:
            assert all(v > p for v, p in zip(values, previous, strict=True))
            # Quadratic in a small change.
            assert all(v < 1e4 * scale**2 for v in values)
        previous = values


def test_kl_without_positions(llama: LocalPolicy) -> None:
    changed = with_scale(factors(llama), 0.2, llama)
    (nothing, something) = llama.exact_kl(["hi", "ho"], [(), (5,)], changed, TEXT)
    assert nothing == 0.0
    assert something > 0.0
    assert llama.exact_kl([], [], changed, TEXT) == []


def test_more_prompts_than_one_pass_takes(llama: LocalPolicy) -> None:
    changed = with_scale(factors(llama), 0.05, llama)
    texts = [f"question {n}" for n in range(40)]
    answers = [(n, n + 1, 7)[: 1 + n % 3] for n in range(40)]
    together = llama.exact_kl(texts, answers, changed, TEXT)
    alone = [llama.exact_kl([t], [a], changed, TEXT)[0] for t, a in zip(texts, answers, strict=True)]
    assert together == pytest.approx(alone, rel=1e-3, abs=1e-6)


# --------------------------------------------------------------------------------------------------- the real thing


@pytest.mark.model
def test_the_packaged_model_end_to_end() -> None:
    """SmolLM2-135M in float32: shared, and equal to its own plain computation in tokens, scores and gradients."""
    from twoclock.models.local import open_local
    from twoclock.models.plain import plain_generate

    policy = open_local("packaged", dtype="float32")
    assert policy.shared
    sampling = Sampling(max_new_tokens=6)
    asked = [
        Request(prompt=p, conditioning=c, seeds=(1, 2))
        for p in ("What is 2+2?", "Say hi.")
        for c in (Conditioning(), TEXT)
    ]
    rows = policy.sample(asked, sampling)
    for request, row in zip(asked, rows, strict=True):
        before = policy.render(request.prompt, request.conditioning)
        for seed, completion in zip(request.seeds, row, strict=True):
            ends = frozenset({policy.tokenizer.eos_token_id})
            tokens, logprobs = plain_generate(policy.model, before, seed, sampling, ends)
            assert completion.tokens == tuple(tokens)
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-3)
    answers = [[c.tokens for c in rows[1]], [c.tokens for c in rows[3]]]
    shapes = policy.linear_shapes(["q_proj", "down_proj"])
    assert len(shapes) == 60

    def leaves() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        g = torch.Generator().manual_seed(0)
        return {
            n: (
                (torch.randn(2, i, generator=g) * 0.02).requires_grad_(),
                (torch.randn(o, 2, generator=g) * 0.02).requires_grad_(),
            )
            for n, (o, i) in shapes.items()
        }

    gradients = []
    for shared in (True, False):
        policy.shared = shared
        tensors = leaves()
        stats = policy.sequence_stats(
            ["What is 2+2?", "Say hi."], TEXT, answers, temperature=1.0, change=LowRank(tensors, 1.0)
        )
        sum((s.logprobs * s.mask).sum() for s in stats).backward()
        gradients.append(torch.cat([t.grad.flatten() for pair in tensors.values() for t in pair]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-4
