"""Several models scored on the same completions in one pass: against each alone, by the model's own forward pass.

Promises: log-probabilities and KL of each side are those of the side alone, whatever differs between the sides (change,
system message, exemplars); one pass where one will do; no pass larger than ``packed_tokens``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_models import SHARED, VOCAB, byte_tokenizer, make_policy  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.nn.lowrank import LowRank, mounted  # noqa: E402
from twoclock.nn.vocabulary import CHUNK  # noqa: E402
from twoclock.types import Conditioning, Delta  # noqa: E402

PROMPTS = ("What is 7 + 8?", "What is 7 + 81?", "hi", "hi", "ho")
COMPLETIONS = (
    (17, 40, 99, 255),
    tuple(20 + 3 * n for n in range(CHUNK)),
    (),
    (33,),
    (17, 40, 17, 40, 17, 40),
)
"""Of one token, none, and together more than the rows whose logits exist at one time."""

Which = Callable[[str], bool]


def no_head(name: str) -> bool:
    return name != "lm_head"


def delta(policy: LocalPolicy, seed: int, which: Which = no_head, *, rank: int = 2) -> Delta:
    g = torch.Generator().manual_seed(seed)
    tensors = {
        name: (
            torch.randn(rank, m.in_features, generator=g) * 0.3,
            torch.randn(m.out_features, rank, generator=g) * 0.3,
        )
        for name, m in policy.model.named_modules()
        if isinstance(m, torch.nn.Linear) and which(name)
    }
    assert tensors
    return Delta(f"{seed}".ljust(64, "0"), "lora", policy.base_hash, LowRank(tensors, 0.4))


def sides(policy: LocalPolicy, which: Which = no_head) -> dict[str, Conditioning]:
    """Texts and changes in all combinations that matter."""
    one, other = delta(policy, 1, which), delta(policy, 2, which, rank=3)
    return {
        "base": Conditioning(),
        "system": Conditioning(system="Answer briefly."),
        "turns": Conditioning(system="Answer at length, please.", exemplars=(("1+1?", "2"),)),
        "changed": Conditioning(delta=one),
        "changed system": Conditioning(system="Answer briefly.", delta=one),
        "other": Conditioning(delta=other),
    }


@pytest.fixture(scope="module", params=(*SHARED, "bloom"))
def policy(request: pytest.FixtureRequest) -> LocalPolicy:
    made: LocalPolicy = make_policy(request.param)
    assert made.shared == (request.param in SHARED), made.notes
    return made


@pytest.fixture(scope="module")
def llama() -> LocalPolicy:
    made: LocalPolicy = make_policy("llama")
    assert made.shared
    return made


def distributions(
    policy: LocalPolicy, prompt: str, side: Conditioning, answer: Sequence[int], temperature: float
) -> Any:
    """Log-probabilities [T, V] in float64, the side alone, one sequence at a time."""
    before = policy.render(prompt, side)
    payload = side.delta.payload if side.delta else None
    with torch.no_grad(), mounted(dict(policy.model.named_modules()), payload):
        logits = plain_logits(policy.model, [*before, *answer])
    return torch.log_softmax(logits[len(before) - 1 : len(before) + len(answer) - 1].double() / temperature, -1)


def assert_alone(
    policy: LocalPolicy,
    found: list[list[list[float]]],
    conditionings: Sequence[Conditioning],
    *,
    prompts: Sequence[str] = PROMPTS,
    completions: Sequence[Sequence[int]] = COMPLETIONS,
    temperature: float = 1.0,
) -> None:
    assert len(found) == len(conditionings)
    for side, rows in zip(conditionings, found, strict=True):
        for prompt, answer, row in zip(prompts, completions, rows, strict=True):
            assert len(row) == len(answer)
            if answer:
                plain = distributions(policy, prompt, side, answer, temperature)
                assert row == pytest.approx(plain[range(len(answer)), list(answer)].tolist(), abs=2e-4, rel=1e-4)


@contextmanager
def passes(policy: LocalPolicy) -> Iterator[list[int]]:
    """The tokens of each forward pass."""
    sizes: list[int] = []
    handle = policy.model.get_input_embeddings().register_forward_hook(
        lambda _, args, __: sizes.append(args[0].numel())
    )
    try:
        yield sizes
    finally:
        handle.remove()


COMBINATIONS = {
    "one": ["changed"],
    "base and changed": ["base", "changed"],
    "two changes": ["changed", "other"],
    "none changed": ["base", "system", "turns"],
    "all": ["turns", "changed", "base", "other", "changed system", "system"],
    "the same twice": ["changed", "base", "changed"],
}

# ---------------------------------------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("names", COMBINATIONS.values(), ids=COMBINATIONS)
def test_each_side_is_the_side_alone(policy: LocalPolicy, names: list[str]) -> None:
    known = sides(policy)
    chosen = [known[n] for n in names]
    wide = make_policy(policy.card.name, packed_tokens=100_000)
    with passes(wide) as sizes:
        found = wide.logprobs_under(PROMPTS, COMPLETIONS, chosen)
    assert_alone(policy, found, chosen)
    # One pass for all, or one a side and completion that is not empty.
    assert len(sizes) == (1 if policy.shared else 4 * len(names))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_at_a_temperature(policy: LocalPolicy, temperature: float) -> None:
    """Temperature 0 is read as 1, as where greedy answers are sampled."""
    known = sides(policy)
    chosen = [known["system"], known["changed"]]
    found = policy.logprobs_under(PROMPTS, COMPLETIONS, chosen, temperature=temperature)
    assert_alone(policy, found, chosen, temperature=temperature or 1.0)


WHERE: dict[str, Which] = {
    "the head only": lambda name: name == "lm_head",
    "all with the head": lambda name: True,
    "one layer": lambda name: name.endswith("1.mlp.down_proj"),
}


@pytest.mark.parametrize("which", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize("name", SHARED)
def test_wherever_the_change_stands(name: str, which: Which) -> None:
    """A changed head makes each side a pass of its own, for then the heads differ."""
    policy = make_policy(name, packed_tokens=100_000)
    assert policy.shared
    known = sides(policy, which)
    chosen = [known[n] for n in ("base", "changed", "changed system", "other")]
    with passes(policy) as sizes:
        found = policy.logprobs_under(PROMPTS, COMPLETIONS, chosen)
    assert_alone(policy, found, chosen)
    assert len(sizes) == (4 if which("lm_head") else 1)
    answers = policy.exact_kl(PROMPTS, COMPLETIONS, known["changed"], known["base"])
    assert_kl(policy, answers, known["changed"], known["base"])


def test_a_change_with_the_head_beside_one_without(llama: LocalPolicy) -> None:
    chosen = [
        Conditioning(delta=delta(llama, 1)),
        Conditioning(delta=delta(llama, 2, lambda name: True)),
        Conditioning(),
    ]
    for order in (chosen, chosen[::-1]):
        assert_alone(llama, llama.logprobs_under(PROMPTS, COMPLETIONS, order), order)


def test_the_order_of_sides_changes_nothing_but_the_order(policy: LocalPolicy) -> None:
    known = sides(policy)
    chosen = [known[n] for n in ("turns", "changed", "base")]
    one = policy.logprobs_under(PROMPTS, COMPLETIONS, chosen)
    other = policy.logprobs_under(PROMPTS, COMPLETIONS, chosen[::-1])[::-1]
    for rows, same in zip(one, other, strict=True):
        for row, again in zip(rows, same, strict=True):
            assert row == pytest.approx(again, abs=1e-4)


def test_nothing_to_score(policy: LocalPolicy) -> None:
    known = sides(policy)
    chosen = [known["base"], known["changed"]]
    with passes(policy) as sizes:
        assert policy.logprobs_under([], [], chosen) == [[], []]
        assert policy.logprobs_under(["hi", "ho"], [(), ()], chosen) == [[[], []], [[], []]]
        assert policy.exact_kl(["hi", "ho"], [(), ()], *chosen) == [0.0, 0.0]
    assert sizes == []


def test_afterwards_nothing_is_mounted(policy: LocalPolicy) -> None:
    known = sides(policy)
    before = plain_logits(policy.model, [5, 6, 7])
    policy.logprobs_under(PROMPTS, COMPLETIONS, [known["changed"], known["other"]])
    policy.exact_kl(PROMPTS, COMPLETIONS, known["changed"], known["base"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in policy.model.modules())
    assert torch.equal(plain_logits(policy.model, [5, 6, 7]), before)


# ------------------------------------------------------------------------------------------------------------------ KL


def assert_kl(policy: LocalPolicy, found: list[float], p: Conditioning, q: Conditioning) -> None:
    for prompt, answer, value in zip(PROMPTS, COMPLETIONS, found, strict=True):
        if not answer:
            assert value == 0.0
            continue
        lp, lq = (distributions(policy, prompt, side, answer, 1.0) for side in (p, q))
        by_hand = float((lp.exp() * (lp - lq)).sum(-1).mean())
        # Between texts alone it may be nothing: the text may stand outside of the sliding window.
        assert by_hand > 1e-3 or p.delta is q.delta
        assert value == pytest.approx(by_hand, abs=2e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("p", "q"),
    [("changed", "base"), ("base", "changed"), ("changed", "other"), ("turns", "changed system"), ("system", "base")],
)
def test_kl_between_two_sides(policy: LocalPolicy, p: str, q: str) -> None:
    known = sides(policy)
    wide = make_policy(policy.card.name, packed_tokens=100_000)
    with passes(wide) as sizes:
        found = wide.exact_kl(PROMPTS, COMPLETIONS, known[p], known[q])
    assert_kl(policy, found, known[p], known[q])
    assert len(sizes) == (1 if policy.shared else 8)


# -------------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("packed_tokens", [1, 300, 450, 700])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_no_pass_is_larger_than_asked(name: str, packed_tokens: int) -> None:
    """But for one prompt that is larger alone; and the numbers stay what they are."""
    policy = make_policy(name, packed_tokens=packed_tokens)
    assert policy.shared
    known = sides(policy)
    prompts = [f"What is {n} + {n * n}?" for n in range(12)]
    answers = [tuple(range(10 + n, 10 + n + n % 5)) for n in range(12)]
    chosen = [known["turns"], known["changed"], known["base"]]
    with passes(policy) as sizes:
        found = policy.logprobs_under(prompts, answers, chosen)
    assert_alone(policy, found, chosen, prompts=prompts, completions=answers)
    alone = sum(len(policy.render(prompts[-1], c)) + 4 for c in chosen)
    assert all(size <= max(packed_tokens, alone) for size in sizes)
    assert len(sizes) == {1: 9, 300: 9, 450: 4, 700: 2}[packed_tokens]
    with passes(policy) as sizes:
        policy.exact_kl(prompts, answers, known["changed"], known["turns"])
    assert all(size <= max(packed_tokens, alone) for size in sizes)


def test_what_sides_share_within_themselves_is_read_once(llama: LocalPolicy) -> None:
    """The pass holds, for each side, its system message once, each question, and each answer but its last token."""
    known = sides(llama)
    chosen = [known["turns"], known["changed"]]
    prompts = [f"{n} + 1?" for n in range(2, 6)]
    with passes(llama) as sizes:
        llama.logprobs_under(prompts, [(5, 6, 7)] * 4, chosen)
    expected = 0
    for c in chosen:
        rendered = [llama.render(p, c) for p in prompts]
        root = len(llama.shared_prefix(c))
        expected += root + sum(len(r) - root for r in rendered) + 4 * 2
    assert sizes == [expected]


def test_logits_exist_a_chunk_at_a_time(llama: LocalPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head reads at most ``CHUNK`` rows at once, each row of each side once."""
    from twoclock.nn.vocabulary import Head

    rows: list[int] = []
    bent = Head.bent

    def watched(self: Head, logits: torch.Tensor) -> torch.Tensor:
        rows.append(logits.shape[0])
        return bent(self, logits)

    monkeypatch.setattr(Head, "bent", watched)
    known = sides(llama)
    llama.logprobs_under(PROMPTS, COMPLETIONS, [known["base"], known["changed"]])
    assert max(rows) == CHUNK
    assert sum(rows) == 2 * sum(map(len, COMPLETIONS))


# --------------------------------------------------------------------------------------- heads that scale their logits

SCALED: dict[str, Callable[..., Any]] = {
    "granite": lambda **common: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(
            **common, logits_scaling=3.0, attention_multiplier=0.3, residual_multiplier=0.5, embedding_multiplier=2.0
        )
    ),
    "cohere": lambda **common: transformers.CohereForCausalLM(transformers.CohereConfig(**common, logit_scale=0.25)),
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("head", [False, True])
def test_heads_that_scale(kind: str, head: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SCALED[kind](
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.35,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    policy = LocalPolicy(model.float().eval(), byte_tokenizer(), name=kind, base_hash="base-" + kind)
    assert policy.shared, policy.notes
    known = sides(policy, (lambda name: True) if head else no_head)
    chosen = [known["base"], known["changed"], known["turns"]]
    assert_alone(policy, policy.logprobs_under(PROMPTS, COMPLETIONS, chosen), chosen)
    assert_kl(policy, policy.exact_kl(PROMPTS, COMPLETIONS, chosen[0], chosen[1]), chosen[0], chosen[1])
    with torch.no_grad():
        stats = policy.sequence_stats(PROMPTS, chosen[1], [[c] for c in COMPLETIONS], temperature=0.7)
    for prompt, answer, stat in zip(PROMPTS, COMPLETIONS, stats, strict=True):
        if answer:
            plain = distributions(policy, prompt, chosen[1], answer, 0.7)[range(len(answer)), list(answer)]
            assert stat.logprobs[0].tolist() == pytest.approx(plain.tolist(), abs=2e-4)
