"""Sampling under shifts: the identities, token for token, and every mode against uncached recomputation.

Promises: α = 0 is the base and so is an expert equal to the anti-expert, by the path that no shift touches; the base as
the anti-expert with α = 1 is the expert; any other sum of voices is what an uncached computation of every voice gives,
whatever the batch, the model kind, the sampling and the changes of weights.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from steered_cases import PROMPTS, asked, full, lora  # noqa: E402

from tiny_models import SHARED, make_policy  # noqa: E402
from twoclock.errors import UnsupportedError  # noqa: E402
from twoclock.models.steered import Job  # noqa: E402
from twoclock.models.steered_plain import plain_steered  # noqa: E402
from twoclock.nn.svf import Factoring, SingularChange  # noqa: E402
from twoclock.types import Completion, Conditioning, Delta, Request, Sampling, Shift, SideModel  # noqa: E402

SAMPLINGS = {
    "sampled": Sampling(max_new_tokens=6),
    "filtered": Sampling(max_new_tokens=5, temperature=0.6, top_k=30, top_p=0.9),
    "greedy": Sampling(max_new_tokens=6, temperature=0.0),
}
modes = pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
batches = pytest.mark.parametrize("seeds", [1, 4], ids=["batch 4", "batch 16"])


@pytest.fixture(scope="module")
def policy() -> Any:
    return make_policy("llama")


@pytest.fixture(scope="module")
def plain_path() -> Any:
    """Without the lean decoder."""
    policy = make_policy("llama")
    policy._engine.lean = None
    return policy


def oracle(policy: Any, request: Request, sampling: Sampling) -> list[Any]:
    recipe = policy.steering.recipe(request.conditioning)
    policies = {v.policy.base_hash: v.policy for v in recipe.voices} | {policy.base_hash: policy}
    job = Job(recipe, {key: p._prompted(request) for key, p in policies.items()}, request.seeds)
    return [plain_steered(job, seed, sampling, policy._ends) for seed in request.seeds]


def assert_oracle(policy: Any, requests: list[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
    rows = policy.sample(requests, sampling)
    for request, row in zip(requests, rows, strict=True):
        for completion, draft in zip(row, oracle(policy, request, sampling), strict=True):
            assert list(completion.tokens) == draft.tokens
            assert completion.logprobs == pytest.approx(draft.logprobs, abs=2e-4)
            assert completion.finish == draft.finish
    return list(rows)


def tokens(rows: list[tuple[Completion, ...]]) -> list[list[tuple[int, ...]]]:
    return [[c.tokens for c in row] for row in rows]


# ------------------------------------------------------------------------------------------------------- the identities


@modes
@batches
def test_alpha_zero_is_the_base(policy: Any, sampling: Sampling, seeds: int) -> None:
    base = policy.sample(asked([], seeds=seeds), sampling)
    for alpha in (0.0, (0.0, 0.0)):
        shift = Shift(expert=lora(policy, 1), anti=lora(policy, 2), alpha=alpha, plausible=0.3)
        assert policy.sample(asked([shift], seeds=seeds), sampling) == base


@modes
@batches
def test_an_expert_equal_to_the_anti_expert_is_the_base(policy: Any, sampling: Sampling, seeds: int) -> None:
    base = policy.sample(asked([], seeds=seeds), sampling)
    same = SideModel(weights=policy.base_hash, delta=lora(policy, 1))
    for expert, anti in ((lora(policy, 1), lora(policy, 1)), (None, None), (same, lora(policy, 1)), (same, same)):
        assert policy.sample(asked([Shift(expert=expert, anti=anti, alpha=1.5)], seeds=seeds), sampling) == base


@modes
@batches
def test_the_base_as_anti_expert_is_the_expert(policy: Any, sampling: Sampling, seeds: int) -> None:
    expert, deployed = lora(policy, 1), lora(policy, 2)
    there = policy.sample(asked([], delta=expert, seeds=seeds), sampling)
    assert policy.sample(asked([Shift(expert=expert, anti=None)], seeds=seeds), sampling) == there
    moved = Shift(expert=expert, anti=deployed)  # the base is what is deployed, not the untouched weights
    assert policy.sample(asked([moved], delta=deployed, seeds=seeds), sampling) == there
    back = Shift(expert=None, anti=deployed)
    assert policy.sample(asked([back], delta=deployed, seeds=seeds), sampling) == policy.sample(
        asked([], seeds=seeds), sampling
    )


@modes
@batches
def test_another_model_as_expert_of_the_base_is_that_model(policy: Any, sampling: Sampling, seeds: int) -> None:
    other = make_policy("qwen3", seed=5)
    side = policy.steering.companions.add(other)
    found = policy.sample(asked([Shift(expert=side, anti=None)], seeds=seeds), sampling)
    assert tokens(found) == tokens(other.sample(asked([], seeds=seeds), sampling))


def test_inert_shifts_run_no_other_model(policy: Any) -> None:
    """They need not even be there."""
    gone = SideModel(weights="f" * 64, source="/nowhere/at/all")
    shift = Shift(expert=gone, anti=gone, alpha=2.0)
    assert shift.is_inert
    base = policy.sample(asked([]), SAMPLINGS["sampled"])
    passes = []
    handle = policy.model.get_output_embeddings().register_forward_pre_hook(lambda *_: passes.append(1))
    alone = len(passes)
    policy.sample(asked([]), SAMPLINGS["sampled"])
    handle.remove()
    first = len(passes) - alone
    passes.clear()
    handle = policy.model.get_output_embeddings().register_forward_pre_hook(lambda *_: passes.append(1))
    steered = policy.sample(asked([Shift(expert=lora(policy, 1), anti=None, alpha=0.0)]), SAMPLINGS["sampled"])
    handle.remove()
    assert steered == base
    assert len(passes) == first


# --------------------------------------------------------------------------------------------------- against the oracle


@pytest.mark.parametrize("kind", SHARED)
@modes
def test_a_pair_of_changes_is_the_uncached_sum(kind: str, sampling: Sampling) -> None:
    policy = make_policy(kind)
    shift = Shift(expert=lora(policy, 1), anti=lora(policy, 2), alpha=0.8)
    found = assert_oracle(policy, asked([shift], system="Be brief.", seeds=1), sampling)
    assert tokens(found) != tokens(policy.sample(asked([], system="Be brief.", seeds=1), sampling))


@modes
def test_without_the_lean_decoder(plain_path: Any, sampling: Sampling) -> None:
    policy = plain_path
    shifts = [Shift(expert=lora(policy, 1), anti=None, alpha=0.5), Shift(expert=None, anti=lora(policy, 2), alpha=0.7)]
    assert_oracle(policy, asked(shifts, seeds=2), sampling)


@modes
def test_the_lean_decoder_is_used_and_agrees(policy: Any, plain_path: Any, sampling: Sampling) -> None:
    assert policy._engine.lean is not None
    shift = Shift(expert=lora(policy, 1), anti=lora(policy, 2), alpha=1.2)
    assert tokens(policy.sample(asked([shift]), sampling)) == tokens(plain_path.sample(asked([shift]), sampling))


@modes
def test_schedules_several_shifts_and_restrictions(policy: Any, sampling: Sampling) -> None:
    shifts = [
        Shift(expert=lora(policy, 1), anti=None, alpha=(1.5, 0.0, 0.5)),
        Shift(expert=lora(policy, 3), anti=lora(policy, 2), alpha=-0.4),
        Shift(expert=lora(policy, 4), anti=lora(policy, 2), alpha=(0.0, 1.0), plausible=0.05),
    ]
    found = assert_oracle(policy, asked(shifts, delta=lora(policy, 9), seeds=2), sampling)
    without = assert_oracle(policy, asked(shifts[:2], delta=lora(policy, 9), seeds=2), sampling)
    assert tokens(found) != tokens(without)


@modes
def test_whole_parameters_as_sides(policy: Any, sampling: Sampling) -> None:
    """They cannot stand in a batch of others, so each is mounted for its own passes."""
    shift = Shift(expert=full(policy, 1), anti=full(policy, 2), alpha=0.6)
    assert_oracle(policy, asked([shift], delta=lora(policy, 3), seeds=1), sampling)
    assert_oracle(policy, asked([Shift(expert=full(policy, 1), anti=lora(policy, 2), alpha=0.6)], seeds=1), sampling)


@modes
def test_scaled_singular_values_as_sides(policy: Any, sampling: Sampling) -> None:
    """Beside an adapter, in one batch."""
    names, factoring = ("down_proj", "q_proj"), Factoring()
    spectrum, factors = policy.singular_factors(names, factoring)
    generator = torch.Generator().manual_seed(3)
    offsets = {name: torch.randn(len(f.s), generator=generator) for name, f in factors.items()}
    scaled = Delta("e" * 64, "svf", policy.base_hash, SingularChange(offsets, factoring, spectrum))
    shift = Shift(expert=scaled, anti=lora(policy, 2), alpha=0.7)
    assert_oracle(policy, asked([shift], seeds=1), sampling)


@modes
def test_other_models_as_sides(policy: Any, sampling: Sampling) -> None:
    """Two small models of another architecture, and a change on one of them."""
    small = make_policy("qwen2", seed=7)
    add = policy.steering.companions.add
    shift = Shift(expert=add(small, lora(small, 1)), anti=add(small), alpha=0.7)
    assert_oracle(policy, asked([shift], seeds=2), sampling)
    third = make_policy("gemma2", seed=8)
    shift = Shift(expert=add(third), anti=add(small), alpha=0.7, plausible=0.02)
    assert_oracle(policy, asked([shift], delta=lora(policy, 3), seeds=2), sampling)


@pytest.mark.parametrize("kind", ["bloom", "gptj"])
def test_models_whose_attention_is_their_own(policy: Any, kind: str) -> None:
    """As the base and beside one; more rows than places, rows that end early, prompts of all lengths."""
    own = make_policy(kind, max_rows=9)
    assert not own.shared
    own._ends = frozenset(range(0, 300, 5))
    shift = Shift(expert=lora(own, 1), anti=lora(own, 2), alpha=0.5)
    found = assert_oracle(own, asked([shift], seeds=3), Sampling(max_new_tokens=8))
    assert len({len(c.tokens) for row in found for c in row}) > 2
    beside = Shift(expert=policy.steering.companions.add(own), anti=None, alpha=0.5)
    assert_oracle(policy, asked([beside], seeds=1), SAMPLINGS["greedy"])


def test_models_whose_attention_is_their_own_read_each_token_once() -> None:
    own = make_policy("gptj")
    widths: list[int] = []
    shift = Shift(expert=lora(own, 1), anti=None, alpha=0.5)
    handle = own.model.get_input_embeddings().register_forward_hook(lambda _, args, __: widths.append(args[0].shape[1]))
    own.sample(asked([shift], seeds=2), Sampling(max_new_tokens=6))
    handle.remove()
    assert sum(width > 1 for width in widths) == 2  # the prompts, once a voice


@modes
def test_rows_with_amounts_of_their_own_share_a_batch(policy: Any, sampling: Sampling) -> None:
    expert, anti = lora(policy, 1), lora(policy, 2)
    mixed = [
        request
        for alpha in (0.0, 0.3, (1.0, 0.2), 2.0)
        for request in asked([Shift(expert=expert, anti=anti, alpha=alpha)], seeds=2)
    ]
    together = assert_oracle(policy, mixed, sampling)
    alone = [policy.sample([request], sampling)[0] for request in mixed]
    assert tokens(together) == tokens(alone)


def test_requests_with_and_without_shifts_keep_their_places(policy: Any) -> None:
    sampling = SAMPLINGS["sampled"]
    some = [
        asked([Shift(expert=lora(policy, 1), anti=None, alpha=0.5)])[0],
        asked([])[1],
        asked([Shift(expert=lora(policy, 2), anti=lora(policy, 1), alpha=0.5)], system="x")[2],
        asked([], delta=lora(policy, 4))[3],
        asked([Shift(expert=lora(policy, 1), anti=None)])[0],
    ]
    rows = policy.sample(some, sampling)
    assert tokens(rows) == tokens([policy.sample([request], sampling)[0] for request in some])


def test_more_rows_than_places_and_rows_that_end_early() -> None:
    """A third of the vocabulary ends an answer: rows leave at all times, others come in, the batch shrinks."""
    policy = make_policy("llama", max_rows=12)
    policy._ends = frozenset(range(0, 300, 3))
    shift = Shift(expert=lora(policy, 1), anti=lora(policy, 2), alpha=0.8)
    found = assert_oracle(policy, asked([shift], seeds=9, system="Be brief."), Sampling(max_new_tokens=12))
    assert len({len(c.tokens) for row in found for c in row}) > 4


def test_long_prompts_are_kept_once_for_all_their_rows(policy: Any) -> None:
    """Above the length from which a prompt becomes a stem."""
    prompts = ["long " * 30, "longer, " * 20, "short"]
    shift = Shift(expert=lora(policy, 1), anti=lora(policy, 2), alpha=0.8)
    assert_oracle(policy, asked([shift], seeds=3, prompts=prompts), Sampling(max_new_tokens=4))


def test_stop_strings_and_limits(policy: Any) -> None:
    shift = Shift(expert=lora(policy, 1), anti=lora(policy, 2), alpha=0.8)
    free = policy.sample(asked([shift]), Sampling(max_new_tokens=12))
    stop = free[0][0].text[3:5]
    ((cut, *_), *_rest) = policy.sample(asked([shift]), Sampling(max_new_tokens=12, stop=(stop,)))
    assert cut.text == free[0][0].text[: free[0][0].text.index(stop)]
    assert cut.finish == "stop"


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_prompt_that_some_model_cannot_hold_fails_alone(policy: Any) -> None:
    short = make_policy("llama", context=64, seed=11)
    side = policy.steering.companions.add(short)
    shift = Shift(expert=side, anti=None, alpha=0.5)
    rows = policy.sample(asked([shift], prompts=["h", "x" * 60]), Sampling(max_new_tokens=6))
    assert {c.finish for c in rows[0]} <= {"stop", "length"}
    assert {c.finish for c in rows[1]} == {"error"}
    assert "reads at most 64" in str(rows[1][0].error)


def test_changes_for_other_weights_are_refused(policy: Any) -> None:
    foreign = Delta("a" * 64, "lora", "other weights", lora(policy, 1).payload)
    with pytest.raises(UnsupportedError, match="means nothing on other weights"):
        policy.sample(asked([Shift(expert=foreign, anti=None)]), SAMPLINGS["greedy"])
    recalled = Delta("b" * 64, "recalled", policy.base_hash, None)
    with pytest.raises(UnsupportedError, match="'recalled'"):
        policy.sample(asked([Shift(expert=recalled, anti=None, alpha=0.5)]), SAMPLINGS["greedy"])


def test_a_model_that_cannot_be_had_is_refused(policy: Any, tmp_path: Any) -> None:
    nameless = Shift(expert=SideModel(weights="c" * 64), anti=None)
    with pytest.raises(UnsupportedError, match="give its source"):
        policy.sample(asked([nameless]), SAMPLINGS["greedy"])
    from tiny_world import model_folder
    from twoclock.errors import ModelError

    missing = Shift(expert=SideModel(weights="c" * 64, source=str(tmp_path / "none")), anti=None)
    with pytest.raises(ModelError, match="no model at"):
        policy.sample(asked([missing]), SAMPLINGS["greedy"])
    folder = model_folder(tmp_path / "llama")
    changed = Shift(expert=SideModel(weights="c" * 64, source=str(folder)), anti=None)
    with pytest.raises(UnsupportedError, match="it has changed since"):
        policy.sample(asked([changed]), SAMPLINGS["greedy"])


def test_logits_that_are_no_numbers_fail_their_rows_alone(policy: Any) -> None:
    broken = lora(policy, 1)
    tensors = {name: (a * float("nan"), b) for name, (a, b) in broken.payload.tensors.items()}
    nan = Delta("d" * 64, "lora", policy.base_hash, type(broken.payload)(tensors, 1.0))
    good, bad = Shift(expert=broken, anti=None, alpha=0.5), Shift(expert=nan, anti=None, alpha=0.5)
    rows = policy.sample([*asked([bad]), *asked([good])], SAMPLINGS["sampled"])
    assert {c.finish for row in rows[: len(PROMPTS)] for c in row} == {"error"}
    assert tokens(rows[len(PROMPTS) :]) == tokens(policy.sample(asked([good]), SAMPLINGS["sampled"]))


def test_the_model_is_as_it_was(policy: Any) -> None:
    before = {n: t.clone() for n, t in policy.model.state_dict().items()}
    shift = Shift(expert=lora(policy, 1), anti=full(policy, 2), alpha=0.8)
    policy.sample(asked([shift]), SAMPLINGS["greedy"])
    assert all(torch.equal(t, before[n]) for n, t in policy.model.state_dict().items())
    assert not any(m._forward_hooks or "forward" in vars(m) for m in policy.model.modules())
    assert policy.sample(asked([]), SAMPLINGS["greedy"]) == make_policy("llama").sample(asked([]), SAMPLINGS["greedy"])


def test_the_same_conditioning_has_the_same_id(policy: Any) -> None:
    assert Conditioning(shifts=(Shift(expert=lora(policy, 1), anti=None),)).id != Conditioning().id
