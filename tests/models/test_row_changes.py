"""One call whose requests are under different changes of weights: one batch, and each row what it is alone.

Promises: every request gets the tokens that a plain walk through the model with its weights put in place gives; changes
of singular values and low-rank ones stand in one batch with the base; the base's rows are its own; what cannot stand
in a row stands alone; the lean decoder serves such batches too.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import make_policy  # noqa: E402
from twoclock.errors import ConfigError, UnsupportedError  # noqa: E402
from twoclock.models.engine import Engine  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.models.plain import plain_generate  # noqa: E402
from twoclock.nn.full import FullChange, in_place_of  # noqa: E402
from twoclock.nn.lowrank import LowRank  # noqa: E402
from twoclock.nn.svf import Factoring, SingularChange, materialised  # noqa: E402
from twoclock.types import Conditioning, Delta, Request, Sampling  # noqa: E402

SAMPLING = Sampling(max_new_tokens=6)
PROMPTS = ("hi", "What is 2 + 2, and why is it so?")
SHARED_KINDS = ("llama", "qwen2", "qwen3", "mistral", "gemma2")
TARGETS = {"gptj": ("fc_in", "out_proj")}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def svf(policy: LocalPolicy, seed: int, *, rank: int = 0, size: float = 0.3) -> Delta:
    targets = TARGETS.get(policy.card.name, ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"))
    spectrum, factors = policy.singular_factors(targets, Factoring(rank=rank))
    offsets = {n: size * draw(seed + i, len(f.s)) for i, (n, f) in enumerate(factors.items())}
    change = SingularChange(offsets, Factoring(rank=rank), spectrum)
    return Delta(f"svf-{seed}-{rank}-{size}", "svf", policy.base_hash, change)


def lora(policy: LocalPolicy, seed: int, *, rank: int = 2, targets: tuple[str, ...] | None = None) -> Delta:
    shapes = policy.linear_shapes(targets or TARGETS.get(policy.card.name, ("q_proj", "down_proj")))
    pairs = {n: (draw(seed, rank, i), 0.1 * draw(seed + 1, o, rank)) for n, (o, i) in shapes.items()}
    return Delta(f"lora-{seed}-{rank}-{targets}", "lora", policy.base_hash, LowRank(pairs, 1.0))


def weights(policy: LocalPolicy, delta: Delta | None) -> dict[str, torch.Tensor]:
    """The dense matrices that the change makes, put together at length."""
    if delta is None:
        return {}
    change, own = delta.payload, dict(policy.model.named_parameters())
    if isinstance(change, FullChange):
        return {n: own[n].detach() + d for n, d in change.tensors.items()}
    if isinstance(change, LowRank):
        terms = {n: change.scale * b @ a for n, (a, b) in change.tensors.items()}
    else:
        factors = policy.spectra.of(change)
        terms = {n: materialised(factors[n], o) for n, o in change.offsets.items()}
    return {f"{n}.weight": own[f"{n}.weight"].detach() + d for n, d in terms.items()}


def plain(policy: LocalPolicy, request: Request) -> list[list[int]]:
    """One seed at a time through the model's own modules."""
    tokens = policy.render(request.prompt, request.conditioning)
    with torch.no_grad(), in_place_of(policy.model, weights(policy, request.conditioning.delta)):
        return [plain_generate(policy.model, tokens, s, SAMPLING, policy._ends, None)[0] for s in request.seeds]


def requests(deltas: list[Delta | None], seed: int = 0) -> list[Request]:
    conditionings = [(d, s) for d in deltas for s in (None, "Answer at length, with care, and never twice the same.")]
    asked = [
        Request(prompt=p, conditioning=Conditioning(system=s, delta=d), seeds=(1, 2)[: 1 + (s is None)])
        for d, s in conditionings
        for p in PROMPTS
    ]
    return random.Random(seed).sample(asked, len(asked))


def mixed(policy: LocalPolicy) -> list[Delta | None]:
    return [None, svf(policy, 1), svf(policy, 2), svf(policy, 3, rank=3), lora(policy, 4), lora(policy, 6, rank=3)]


@pytest.mark.parametrize("form", ["delta", "factored"])
@pytest.mark.parametrize("name", [*SHARED_KINDS, "gptj"])
def test_each_row_is_the_plain_computation_with_its_own_weights(name: str, form: Any) -> None:
    policy = make_policy(name, svf_form=form)
    assert policy.shared == (name in SHARED_KINDS)
    asked = requests(mixed(policy))
    for request, found in zip(asked, policy.sample(asked, SAMPLING), strict=True):
        assert [list(c.tokens) for c in found] == plain(policy, request)


@pytest.mark.parametrize("form", ["delta", "factored"])
def test_in_company_and_alone(form: Any) -> None:
    policy = make_policy("llama", svf_form=form)
    asked = requests(mixed(policy), seed=1)
    together = policy.sample(asked, SAMPLING)
    assert policy.sample(asked, SAMPLING) == together
    texts = {c.text for row in together for c in row}
    assert len(texts) > 0.8 * sum(len(row) for row in together), "the changes change nothing"
    for request, row in zip(asked, together, strict=True):
        ((*alone,),) = policy.sample([request], SAMPLING)
        for mine, theirs in zip(row, alone, strict=True):
            assert mine.tokens == theirs.tokens
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=2e-5)


def test_they_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("llama")
    calls: list[int] = []
    generate = Engine.generate

    def counted(self: Engine, mounted: Any, sequences: Any, *rest: Any) -> Any:
        calls.append(len(sequences))
        return generate(self, mounted, sequences, *rest)

    monkeypatch.setattr(Engine, "generate", counted)
    asked = requests(mixed(policy))
    policy.sample(asked, SAMPLING)
    assert calls == [len(asked)]


def test_what_cannot_stand_in_a_row_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of whole parameters, and one of the head."""
    policy = make_policy("llama")
    shapes = policy.parameter_shapes(["norm", "up_proj"])
    full = FullChange({n: 0.1 * draw(3, *shape) for n, shape in shapes.items()})
    others = [Delta("full", "full", policy.base_hash, full), lora(policy, 8, targets=("v_proj", "lm_head"))]
    asked = requests([None, svf(policy, 1), *others])
    calls: list[int] = []
    generate = Engine.generate

    def counted(self: Engine, mounted: Any, sequences: Any, *rest: Any) -> Any:
        calls.append(len(sequences))
        return generate(self, mounted, sequences, *rest)

    monkeypatch.setattr(Engine, "generate", counted)
    found = policy.sample(asked, SAMPLING)
    assert sorted(calls) == [4, 4, 8]
    for request, row in zip(asked, found, strict=True):
        assert [list(c.tokens) for c in row] == plain(policy, request)


def test_the_lean_decoder_serves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("qwen2")
    lean = policy._engine.lean
    assert lean is not None
    changes = [d.payload if d else None for d in mixed(policy)]
    for bare in (False, True):
        with torch.no_grad(), policy._forcing.mount.rows(changes, bare=bare):
            assert lean.prepare() is not None
    # A forward pass that someone else has put on a module is not known.
    module = policy.model.model.layers[0].mlp.up_proj
    module.forward = module.forward
    assert lean.prepare() is None
    del module.forward
    assert lean.prepare() is not None


def test_factors_are_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("llama", svf_form="factored")
    lean = policy._engine.lean
    assert lean is not None
    for seed in (1, 2):
        policy.sample([Request(prompt="hi", conditioning=Conditioning(delta=svf(policy, seed)), seeds=(1,))], SAMPLING)
        kept = len(lean._layouts)
    policy.sample([Request(prompt="hi", conditioning=Conditioning(delta=lora(policy, 1)), seeds=(1,))], SAMPLING)
    assert len(lean._layouts) == kept == len(svf(policy, 1).payload.offsets)


def test_the_base_is_left_as_it_was() -> None:
    policy = make_policy("llama")
    before = {n: p.clone() for n, p in policy.model.named_parameters()}
    one = Request(prompt="hi", conditioning=Conditioning(), seeds=(1, 2))
    first = policy.sample([one], SAMPLING)
    policy.sample(requests(mixed(policy)), SAMPLING)
    assert policy.sample([one], SAMPLING) == first
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())
    assert not any("forward" in vars(m) or m._forward_hooks for m in policy.model.modules())


def test_a_prefix_is_kept_for_the_weights_that_read_it() -> None:
    """All under one system prompt, whose keys and values differ from change to change."""
    policy = make_policy("llama")
    deltas = mixed(policy)
    asked = [
        Request(prompt="hi", conditioning=Conditioning(system="A long and common beginning.", delta=d), seeds=(1, 2))
        for d in deltas
    ]
    for _ in range(2):
        for request, row in zip(asked, policy.sample(asked, SAMPLING), strict=True):
            assert [list(c.tokens) for c in row] == plain(policy, request)
    names = {weights for weights, _ in policy._engine._prefixes}
    assert names == {d.id if d else "" for d in deltas}
    # Weights that a call has not are gone for good as soon as it reads a prefix of its own.
    other = Conditioning(system="Another beginning.", delta=deltas[1])
    policy.sample([Request(prompt="hi", conditioning=other, seeds=(1,))], SAMPLING)
    assert {weights for weights, _ in policy._engine._prefixes} == {"", other.delta.id if other.delta else ""}


def test_z_1_is_the_base_in_delta_form_bit_for_bit() -> None:
    for form in ("delta", "factored"):
        policy = make_policy("llama", svf_form=form)
        asked = [Request(prompt=p, conditioning=Conditioning(), seeds=(1, 2)) for p in PROMPTS]
        still = svf(policy, 1, size=0.0)
        same = [Request(prompt=r.prompt, conditioning=Conditioning(delta=still), seeds=r.seeds) for r in asked]
        base, found = policy.sample(asked, SAMPLING), policy.sample(same, SAMPLING)
        for one, other in zip(base, found, strict=True):
            for a, b in zip(one, other, strict=True):
                assert a.tokens == b.tokens
                assert a.logprobs == (b.logprobs if form == "delta" else pytest.approx(b.logprobs, abs=1e-4))


def test_in_bfloat16_rows_are_near_what_they_are_alone() -> None:
    policy = make_policy("llama", svf_form="factored")
    policy.model.bfloat16()
    policy = LocalPolicy(policy.model, policy.tokenizer, name="llama", base_hash="b", svf_form="factored")
    deltas = [None, svf(policy, 1, size=0.1), svf(policy, 2, size=0.1), lora(policy, 4)]
    conditionings = [Conditioning(delta=d) for d in deltas]
    found = policy.sample([Request(prompt="hi", conditioning=c, seeds=(1,)) for c in conditionings], SAMPLING)
    for conditioning, (completion,) in zip(conditionings, found, strict=True):
        ((scored,),) = policy.logprobs_under(["hi"], [completion.tokens], [conditioning])
        assert completion.logprobs == pytest.approx(scored, abs=0.6)


def test_what_is_refused_leaves_the_policy_fit() -> None:
    policy = make_policy("llama")
    foreign = Delta("x", "svf", policy.base_hash, SingularChange({"nowhere": torch.zeros(3)}, Factoring(), "id"))
    asked = requests([None, svf(policy, 1)])
    before = policy.sample(asked, SAMPLING)
    for wrong in (foreign, Delta("y", "svf", "other", svf(policy, 1).payload), Delta("z", "svf", policy.base_hash, 3)):
        bad = Request(prompt="hi", conditioning=Conditioning(delta=wrong), seeds=(1,))
        with pytest.raises(UnsupportedError):
            policy.sample([*asked, bad], SAMPLING)
    assert policy.sample(asked, SAMPLING) == before
    with pytest.raises(ConfigError, match="did you mean 'factored'"):
        make_policy("llama", svf_form="factord")
