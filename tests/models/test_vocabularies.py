"""Two vocabularies side by side: what agrees, where they differ, what corresponds, and shifts across them.

Promises: ids that differ are refused with the place named; a model whose ids are permuted, matched by what its tokens
spell, shifts exactly as the model it was made from; what a side does not know is not shifted and is read in pieces;
rows of a head that stand for no token take no part.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from steered_cases import PROMPTS, asked, other_tokenizer  # noqa: E402

from tiny_models import VOCAB, byte_tokenizer, make_model, make_policy  # noqa: E402
from twoclock.errors import UnsupportedError  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.models.vocabularies import (  # noqa: E402
    difference_of,
    map_vocabulary,
    same_vocabulary,
    token_spellings,
)
from twoclock.types import Conditioning, Sampling, Shift  # noqa: E402

NAMES = ("base", "side")
SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def policy() -> Any:
    return make_policy("llama")


@pytest.fixture(scope="module")
def exact() -> Any:
    """A base whose head has a row for every token and no other: what it draws, every side can be told."""
    model = make_model("llama")
    model.resize_token_embeddings(len(byte_tokenizer()))
    return LocalPolicy(model, byte_tokenizer(), name="exact", base_hash="exact")


def permuted(seed: int, tokenizer: Any, *, kind: str = "qwen2") -> LocalPolicy:
    """A model and the same model with its tokens under other ids: rows of embedding and head moved along."""
    model = make_model(kind, seed=seed)
    own = byte_tokenizer().get_vocab()
    with torch.no_grad():
        inner, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        before = inner.clone(), head.clone()
        for name, i in tokenizer.get_vocab().items():
            if name in own:
                inner[i], head[i] = before[0][own[name]], before[1][own[name]]
    return LocalPolicy(model, tokenizer, name="permuted", base_hash=f"permuted-{seed}")


def test_what_tokens_spell() -> None:
    own = byte_tokenizer()
    spelled = token_spellings(own)
    vocab = own.get_vocab()
    assert spelled[vocab["he"]] == b"he"
    assert spelled[vocab["Ġ"]] == b" "
    assert spelled[vocab["<|im_end|>"]] == "<|im_end|>"
    assert sorted(s for s in spelled.values() if isinstance(s, bytes) and len(s) == 1) == [
        bytes([b]) for b in range(256)
    ]


def test_sentencepiece_spells_spaces_and_bytes() -> None:
    vocab = {"▁the": 0, "<0x0A>": 1, "é": 2, "<0xZZ>": 3}
    pieces = SimpleNamespace(added_tokens_decoder={}, get_vocab=lambda: vocab)
    assert token_spellings(pieces) == {0: b" the", 1: b"\n", 2: "é".encode(), 3: b"<0xZZ>"}


def test_the_same_and_a_longer_vocabulary_agree() -> None:
    own, longer = byte_tokenizer(), byte_tokenizer()
    assert difference_of(own, own) is None
    found = same_vocabulary(own, longer, VOCAB, VOCAB + 64, NAMES)
    assert found.is_same
    assert int(found.covered.sum()) == len(own)
    assert found.read(7) == (7,)


def test_ids_that_differ_are_named(policy: Any) -> None:
    side = policy.steering.companions.add(permuted(5, other_tokenizer()))
    with pytest.raises(UnsupportedError) as problem:
        policy.sample(asked([Shift(expert=side, anti=None, alpha=0.5)]), SAMPLING)
    told = str(problem.value)
    assert "llama" in told
    assert "permuted" in told
    assert "260 of them in both" in told
    assert "4 is " in told
    assert "mapped = true" in told


def test_a_head_that_is_too_short_is_named() -> None:
    with pytest.raises(UnsupportedError, match="has 200 rows, so 60 tokens of base have no logit"):
        same_vocabulary(byte_tokenizer(), byte_tokenizer(), VOCAB, 200, NAMES)


def test_too_little_in_common_is_refused() -> None:
    own = byte_tokenizer()
    lost = ["he", *sorted(t for t in own.get_vocab() if len(t) == 1)[:199]]
    with pytest.raises(UnsupportedError, match="knows 60 of the 260 tokens of base: too few"):
        map_vocabulary(own, other_tokenizer(lost=lost), VOCAB, VOCAB, NAMES)


def test_matching_by_spelling() -> None:
    own, other = byte_tokenizer(), other_tokenizer(lost=["he", "Ā"], extra=["Ġa", "xyz"])
    found = map_vocabulary(own, other, VOCAB, VOCAB, NAMES)
    mine, theirs = own.get_vocab(), other.get_vocab()
    assert not found.is_same
    for name, i in mine.items():
        if name in theirs:
            assert int(found.index[i]) == theirs[name]
            assert found.read(i) == (theirs[name],)
    assert found.read(mine["he"]) == (theirs["h"], theirs["e"])
    assert found.read(mine["Ā"]) == ()  # the byte 0 has no token there
    assert found.read(VOCAB - 1) == ()
    assert int((found.index >= 0).sum()) == len(mine) - 2


@pytest.mark.parametrize("sampling", [SAMPLING, Sampling(max_new_tokens=6, temperature=0.0)], ids=["sampled", "greedy"])
def test_a_permuted_model_shifts_as_the_one_it_was_made_from(exact: Any, sampling: Sampling) -> None:
    """The same weights under other ids: mapped, they give the tokens of the shift with agreeing ids."""
    policy = exact
    add = policy.steering.companions.add
    plain, shuffled = [], []
    for seed in (21, 22):
        straight = LocalPolicy(
            make_model("qwen2", seed=seed), byte_tokenizer(), name="straight", base_hash=f"straight-{seed}"
        )
        plain.append(add(straight))
        shuffled.append(add(permuted(seed, other_tokenizer(seed=seed))))
    for plausible in (0.0, 0.03):
        rows = [
            policy.sample(
                asked([Shift(expert=e, anti=a, alpha=0.9, mapped=mapped, plausible=plausible)], seeds=2), sampling
            )
            for (e, a), mapped in ((plain, False), (shuffled, True))
        ]
        for one, other in zip(*rows, strict=True):
            assert [c.tokens for c in one] == [c.tokens for c in other]
            for x, y in zip(one, other, strict=True):
                assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)


def test_tokens_that_a_side_does_not_know_are_read_in_pieces(policy: Any) -> None:
    """Many tokens have no counterpart, so rows take several steps in the side where others take one or none."""
    from test_steered_decoding import assert_oracle

    lost = ["he", *"abcdefgijklmno"]
    side = permuted(23, other_tokenizer(lost=lost, extra=["xy"]))
    shift = Shift(expert=policy.steering.companions.add(side), anti=None, alpha=0.8, mapped=True)
    # What is drawn most: the tokens that are lost.
    vocab = byte_tokenizer().get_vocab()
    with torch.no_grad():
        head = policy.model.get_output_embeddings().weight
        kept = head.clone()
        head[[vocab[t] for t in lost]] *= 3.0
    try:
        rows = assert_oracle(policy, asked([shift], seeds=3), Sampling(max_new_tokens=10))
        drawn = [t for row in rows for c in row for t in c.tokens]
        assert vocab["he"] in drawn
        assert any(vocab[t] in drawn for t in lost[1:])
        answers = [[c.tokens for c in row] for row in rows]
        found = policy.sequence_stats(PROMPTS, Conditioning(shifts=(shift,)), answers, temperature=1.0)
        for row, stats in zip(rows, found, strict=True):
            for n, completion in enumerate(row):
                scored = stats.logprobs[n, : len(completion.tokens)].tolist()
                assert scored == pytest.approx(completion.logprobs, abs=3e-4)
    finally:
        with torch.no_grad():
            head.copy_(kept)


def test_a_side_with_no_room_left_ends_the_answer(policy: Any) -> None:
    """One token of the base may be several of the side's: its context may end first."""
    side = permuted(24, other_tokenizer(lost=["he"]))
    side._card = type(side.card)(name="short", base_hash=side.base_hash, trainable=True, context_tokens=512)
    shift = Shift(expert=policy.steering.companions.add(side), anti=None, alpha=0.8, mapped=True)
    read = side.prompt_tokens("h", Conditioning())
    side._card = type(side.card)(name="short", base_hash=side.base_hash, trainable=True, context_tokens=read + 6)
    vocab = byte_tokenizer().get_vocab()
    with torch.no_grad():
        head = policy.model.get_output_embeddings().weight
        kept = head.clone()
        head[:] = 0.0
        head[vocab["he"]] = 50.0
    try:
        ((one,),) = policy.sample(asked([shift], seeds=1, prompts=["h"]), Sampling(max_new_tokens=6, temperature=0.0))
    finally:
        with torch.no_grad():
            head.copy_(kept)
    assert 0 < len(one.tokens) <= 6
    assert one.finish in ("length", "stop")


def test_rows_that_are_no_token_are_not_shifted(policy: Any) -> None:
    """The heads have 300 rows for 260 tokens; huge logits in the side's other rows change nothing."""
    one = LocalPolicy(make_model("qwen2", seed=31), byte_tokenizer(), name="one", base_hash="rows-1")
    two = LocalPolicy(make_model("qwen2", seed=31), byte_tokenizer(), name="two", base_hash="rows-2")
    with torch.no_grad():
        two.model.get_output_embeddings().weight[260:] += 40.0
    add = policy.steering.companions.add
    rows = [policy.sample(asked([Shift(expert=add(p), anti=None, alpha=0.9)]), SAMPLING) for p in (one, two)]
    assert [[c.tokens for c in row] for row in rows[0]] == [[c.tokens for c in row] for row in rows[1]]
