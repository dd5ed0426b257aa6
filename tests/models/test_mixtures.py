"""Experts mixed into the weights beside a slow version of them.

Promises: a mixture adds to the base's own matrices whatever the slow weights are, low-rank, singular values or whole
parameters, sampled, scored and trained; rows under different mixtures are one batch and each is what it is alone; what
has none is untouched; a mixture of other weights, or with two influences that cannot be joined, is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import make_policy  # noqa: E402
from twoclock.errors import UnsupportedError  # noqa: E402
from twoclock.hashing import content_hash  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.models.mixtures import weights_of  # noqa: E402
from twoclock.models.plain import plain_generate, plain_logits  # noqa: E402
from twoclock.models.remote import RemotePolicy  # noqa: E402
from twoclock.models.scripted import ScriptedPolicy  # noqa: E402
from twoclock.nn.full import FullChange, in_place_of  # noqa: E402
from twoclock.nn.lowrank import LowRank  # noqa: E402
from twoclock.nn.summed import Summed, summed  # noqa: E402
from twoclock.nn.svf import Factoring, SingularChange, materialised  # noqa: E402
from twoclock.types import Conditioning, Delta, Request, Sampling, Shift  # noqa: E402

SAMPLING = Sampling(max_new_tokens=5)
PROMPTS = ("hi", "What is 2 + 2, and why is it so?")
SLOW = ("none", "lora", "svf", "svf of rank 3", "svf of other layers", "full")


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return make_policy("llama")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MLP = ("gate_proj", "down_proj")


def expert(policy: LocalPolicy, seed: int, *, targets: tuple[str, ...] = MLP, **how: Any) -> Delta:
    spectrum, factors = policy.singular_factors(targets, Factoring(**how))
    offsets = {n: 0.3 * draw(seed + i, len(f.s)) for i, (n, f) in enumerate(factors.items())}
    change = SingularChange(offsets, Factoring(**how), spectrum)
    return Delta(f"svf-{seed}-{targets}-{how}", "svf", policy.base_hash, change)


def slow(policy: LocalPolicy, kind: str) -> Delta | None:
    if kind == "none":
        return None
    if kind.startswith("svf"):
        if "other" in kind:
            return expert(policy, 7, targets=("q_proj", "down_proj"))
        return expert(policy, 7, rank=3 if "rank" in kind else 0)
    if kind == "lora":
        shapes = policy.linear_shapes(("q_proj", "down_proj"))
        pairs = {n: (draw(8, 2, i), 0.1 * draw(9, o, 2)) for n, (o, i) in shapes.items()}
        return Delta("lora", "lora", policy.base_hash, LowRank(pairs, 1.0))
    shapes = policy.parameter_shapes(("down_proj", "norm"))
    change = FullChange({n: 0.1 * draw(10 + i, *shape) for i, (n, shape) in enumerate(shapes.items())})
    return Delta("full", "full", policy.base_hash, change)


def dense(policy: LocalPolicy, *deltas: Delta | None) -> dict[str, torch.Tensor]:
    """The matrices that all changes together make, put together at length."""
    own = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    for delta in deltas:
        change = delta.payload if delta else None
        if isinstance(change, FullChange):
            for name, d in change.tensors.items():
                own[name] += d
        elif isinstance(change, LowRank):
            for name, (a, b) in change.tensors.items():
                own[f"{name}.weight"] += change.scale * b @ a
        elif isinstance(change, SingularChange):
            for name, f in policy.spectra.of(change).items():
                own[f"{name}.weight"] += materialised(f, change.offsets[name])
    return own


def plain(policy: LocalPolicy, request: Request) -> list[list[int]]:
    told = request.conditioning
    tokens = policy.render(request.prompt, told)
    with torch.no_grad(), in_place_of(policy.model, dense(policy, told.delta, told.mixture)):
        return [plain_generate(policy.model, tokens, s, SAMPLING, policy._ends, None)[0] for s in request.seeds]


@pytest.mark.parametrize("form", ["delta", "factored"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gptj"])
def test_every_pair_of_slow_weights_and_mixture_in_one_call(name: str, form: Any) -> None:
    policy = make_policy(name, svf_form=form)
    if name == "gptj":  # its layers have other names, and it cannot be led
        one, other = (expert(policy, s, targets=("fc_in",)) for s in (1, 2))
        pairs: list[tuple[Delta | None, Delta | None]] = [(None, one), (one, other), (None, None)]
    else:
        one, other = expert(policy, 1), expert(policy, 2)
        pairs = [(slow(policy, kind), m) for kind in SLOW for m in (None, one, other)]
    tolds = [Conditioning(delta=d, mixture=m) for d, m in pairs]
    asked = [Request(prompt=p, conditioning=told, seeds=(1, 2)) for told in tolds for p in PROMPTS]
    found = policy.sample(asked, SAMPLING)
    for request, row in zip(asked, found, strict=True):
        assert [list(c.tokens) for c in row] == plain(policy, request), request.conditioning
    assert len({row[0].text for row in found}) > 0.5 * len(found), "the changes change nothing"


@pytest.mark.parametrize("kind", SLOW)
def test_what_is_scored_is_the_sum(policy: LocalPolicy, kind: str) -> None:
    told = Conditioning(delta=slow(policy, kind), mixture=expert(policy, 1))
    answer = [5, 9, 40, 12]
    (prompt,) = (policy.render(PROMPTS[1], told),)
    with torch.no_grad(), in_place_of(policy.model, dense(policy, told.delta, told.mixture)):
        logp = plain_logits(policy.model, [*prompt, *answer]).float().log_softmax(-1)[len(prompt) - 1 : -1]
    expected = logp[range(4), answer]
    (stats,) = policy.sequence_stats([PROMPTS[1]], told, [[answer]], temperature=1.0)
    assert torch.allclose(stats.logprobs[0], expected, atol=2e-5)
    ((together,), _) = policy.logprobs_under([PROMPTS[1]], [answer], [told, Conditioning()])
    assert together == pytest.approx(expected.tolist(), abs=2e-5)
    base = policy.exact_kl([PROMPTS[1]], [answer], told, Conditioning(delta=told.delta))
    assert base[0] > 1e-4
    assert policy.exact_kl([PROMPTS[1]], [answer], told, replace(told)) == [0.0]


def test_gradients_flow_into_what_is_trained_beside_the_mixture(policy: LocalPolicy) -> None:
    """Against a dense walk through the model: d/dz of the same log-probabilities."""
    mixture, start = expert(policy, 1), slow(policy, "svf")
    assert start is not None
    offsets = {n: o.clone().requires_grad_() for n, o in start.payload.offsets.items()}
    change = replace(start.payload, offsets=offsets)
    told = Conditioning(delta=start, mixture=mixture)
    answer = [5, 9, 40]
    (stats,) = policy.sequence_stats([PROMPTS[0]], told, [[answer]], temperature=1.0, change=change)
    stats.logprobs.sum().backward()
    name = next(iter(offsets))
    index, step = 4, 1e-2
    moved = []
    for sign in (1, -1):
        shifted = {n: o.detach().clone() for n, o in offsets.items()}
        shifted[name][index] += sign * step
        at = Delta(f"moved{sign}", "svf", policy.base_hash, replace(start.payload, offsets=shifted))
        (s,) = policy.sequence_stats([PROMPTS[0]], replace(told, delta=at), [[answer]], temperature=1.0)
        moved.append(float(s.logprobs.sum()))
    grad = offsets[name].grad
    assert grad is not None
    assert float(grad[index]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=2e-2, abs=1e-3)


def test_a_mixture_that_is_gone_leaves_the_same_bits(policy: LocalPolicy) -> None:
    told = Conditioning(delta=slow(policy, "svf"))
    request = Request(prompt=PROMPTS[1], conditioning=told, seeds=(3,))
    before = policy.sample([request], SAMPLING)
    mixed = replace(request, conditioning=replace(told, mixture=expert(policy, 1)))
    assert policy.sample([mixed], SAMPLING) != before
    assert policy.sample([request], SAMPLING) == before


def test_shifts_stand_on_the_mixture(policy: LocalPolicy) -> None:
    """s + alpha (s+ - s-), with s under slow weights and mixture."""
    told = Conditioning(delta=slow(policy, "lora"), mixture=expert(policy, 1))
    shifted = replace(told, shifts=(Shift(expert=expert(policy, 2), anti=None, alpha=0.5),))
    answer = [5, 9, 40]
    prompt = policy.render(PROMPTS[0], told)

    def logits(*deltas: Delta | None) -> torch.Tensor:
        with torch.no_grad(), in_place_of(policy.model, dense(policy, *deltas)):
            return plain_logits(policy.model, [*prompt, *answer]).float()[len(prompt) - 1 : -1]

    raw = logits(told.delta, told.mixture) + 0.5 * (logits(expert(policy, 2)) - logits())
    expected = raw.log_softmax(-1)[range(3), answer].tolist()
    ((found,),) = policy.logprobs_under([PROMPTS[0]], [answer], [shifted])
    assert found == pytest.approx(expected, abs=5e-5)
    # alpha = 1 away from the very weights that speak is the expert alone, mixture or not.
    alone = Conditioning(mixture=told.mixture, shifts=(Shift(expert=expert(policy, 2), anti=told.mixture),))
    ((found,),) = policy.logprobs_under([PROMPTS[0]], [answer], [alone])
    assert found == pytest.approx(logits(expert(policy, 2)).log_softmax(-1)[range(3), answer].tolist(), abs=5e-5)
    change = slow(policy, "svf")
    assert change is not None
    offsets = {n: o.clone().requires_grad_() for n, o in change.payload.offsets.items()}
    payload = replace(change.payload, offsets=offsets)
    (stats,) = policy.sequence_stats([PROMPTS[0]], shifted, [[answer]], temperature=1.0, change=payload)
    stats.logprobs.sum().backward()
    assert all(o.grad is not None and bool(o.grad.abs().sum() > 0) for o in offsets.values())


def test_ids_and_joins(policy: LocalPolicy) -> None:
    one, other = expert(policy, 1), expert(policy, 2)
    assert Conditioning(mixture=one).id != Conditioning(delta=one).id != Conditioning().id
    plain = {"system": "x", "exemplars": [], "delta": None}
    assert Conditioning(system="x").id == content_hash(plain)[:16], "what has no mixture keeps the id that it had"
    assert not Conditioning(mixture=one).is_identity
    joined = Conditioning(delta=other).join(Conditioning(mixture=one))
    assert (joined.delta, joined.mixture) == (other, one)
    with pytest.raises(ValueError, match="both set the conditioning's 'mixture'"):
        joined.join(Conditioning(mixture=other))
    assert weights_of(Conditioning()) is None
    assert weights_of(Conditioning(mixture=one)) == one
    assert weights_of(Conditioning(delta=one)) == one
    both = weights_of(joined)
    assert both is not None
    assert both.id not in (one.id, other.id)
    assert both.id != weights_of(Conditioning(delta=one, mixture=other)).id  # type: ignore[union-attr]


def test_what_cannot_be_mixed_is_refused(policy: LocalPolicy) -> None:
    one = expert(policy, 1)
    foreign = replace(one, base="f" * 64)
    for told in (Conditioning(mixture=foreign), Conditioning(delta=one, mixture=foreign)):
        with pytest.raises(UnsupportedError, match="other weights"):
            policy.sample([Request(prompt="hi", conditioning=told, seeds=(1,))], SAMPLING)
    told = Conditioning(mixture=foreign)
    with pytest.raises(UnsupportedError, match="other weights"):
        policy.sequence_stats(["hi"], told, [[[5]]], temperature=1.0, change=one.payload)
    request = Request(prompt="hi", conditioning=Conditioning(mixture=one), seeds=(1,))
    with pytest.raises(UnsupportedError, match="experts"):
        RemotePolicy("http://127.0.0.1:9/v1", "m").sample([request], SAMPLING)
    with pytest.raises(UnsupportedError, match="experts"):
        ScriptedPolicy(lambda *_: "x", accepts_delta=False).sample([request], SAMPLING)


def test_sums_of_sums_are_one_sum(policy: LocalPolicy) -> None:
    a, b, c = (expert(policy, s).payload for s in (1, 2, 3))
    assert summed() is None
    assert summed(None, a, None) is a
    nested = summed(summed(a, b), c)
    assert isinstance(nested, Summed)
    assert nested.parts == (a, b, c)
    full = slow(policy, "full")
    assert full is not None
    assert summed(a, full.payload).whole is full.payload
    assert summed(full.payload, a).added == (a,)
    with pytest.raises(ValueError, match="no sum"):
        summed(full.payload, full.payload)
    with pytest.raises(ValueError, match="at least two"):
        Summed((a,))
