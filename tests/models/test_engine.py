"""The rollout engine against one sequence at a time through the model's own attention, in float32, token for token.

Promises: the same seed gives the same tokens as the plain computation, for every architecture; and whatever else is in
the call, in the cache or in the wave.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import SHARED, WINDOW, make_model  # noqa: E402
from twoclock.models.engine import Draft, Engine, Prompted  # noqa: E402
from twoclock.models.plain import plain_generate, plain_logits  # noqa: E402
from twoclock.models.shared_attention import viewing  # noqa: E402
from twoclock.types import Sampling  # noqa: E402

NO_END: frozenset[int] = frozenset()
SAMPLING = Sampling(max_new_tokens=9)


@pytest.fixture(scope="module", params=SHARED)
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_model("llama")


def tokens(seed: int, count: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(3, 300) for _ in range(count))


def prompts() -> list[Prompted]:
    """Two shared prefixes and none, short and long rests, several seeds."""
    one, two = tokens(1, 13), tokens(2, 5)
    return [
        Prompted((*one, *tokens(3, 4)), 13, (1, 2, 3)),
        Prompted((*one, *tokens(4, 1)), 13, (4,)),
        Prompted((*two, *tokens(5, 17)), 5, (5, 6)),
        Prompted(tokens(6, 8), 0, (7, 8)),
        Prompted((*one, *tokens(7, 9)), 13, (1,)),
        Prompted(tokens(8, 1), 0, (9,)),
    ]


def assert_plain(
    model: Any, asked: list[Prompted], drafts: list[list[Draft]], sampling: Sampling, ends: frozenset[int]
) -> None:
    for prompt, row in zip(asked, drafts, strict=True):
        for seed, draft in zip(prompt.seeds, row, strict=True):
            expected, logprobs = plain_generate(model, prompt.tokens, seed, sampling, ends)
            assert draft.tokens == expected
            assert draft.logprobs == pytest.approx(logprobs, abs=1e-4)
            assert draft.finish == ("stop" if expected[-1] in ends else "length")


@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLING,
        Sampling(max_new_tokens=1),
        Sampling(max_new_tokens=6, temperature=0.5, top_k=20, top_p=0.9),
        Sampling(max_new_tokens=6, temperature=0.0),
    ],
    ids=["plain", "one token", "filtered", "greedy"],
)
def test_the_engine_is_the_plain_computation(model: Any, sampling: Sampling) -> None:
    asked = prompts()
    drafts = Engine(model, NO_END).generate("", asked, sampling)
    assert_plain(model, asked, drafts, sampling, NO_END)


def test_past_the_sliding_window(model: Any) -> None:
    """Prefix, rest and answer are each longer than the window of the models that have one."""
    one = tokens(1, 3 * WINDOW)
    asked = [Prompted((*one, *tokens(3, n)), len(one), (n, n + 1)) for n in (1, WINDOW, 2 * WINDOW)]
    sampling = Sampling(max_new_tokens=3 * WINDOW)
    assert_plain(model, asked, Engine(model, NO_END).generate("", asked, sampling), sampling, NO_END)


def test_the_window_matters_in_these_models() -> None:
    """The test above would prove nothing if what lies beyond the window changed nothing anyway."""
    mistral, far = make_model("mistral"), tokens(1, 8 * WINDOW)
    wide = make_model("mistral")
    wide.config.sliding_window = None
    with torch.no_grad():
        assert (plain_logits(mistral, far)[-1] - plain_logits(wide, far)[-1]).abs().max() > 0.1


def test_end_tokens_and_rows_that_finish_early(model: Any) -> None:
    """A third of the vocabulary ends an answer, so rows finish at all times and are dropped from the batch."""
    ends = frozenset(range(0, 300, 3))
    asked = [Prompted((*tokens(1, 9), *tokens(n, 1 + n % 5)), 9, tuple(range(10 * n, 10 * n + 4))) for n in range(8)]
    sampling = Sampling(max_new_tokens=12)
    drafts = Engine(model, ends).generate("", asked, sampling)
    assert_plain(model, asked, drafts, sampling, ends)
    lengths = {len(d.tokens) for row in drafts for d in row}
    assert len(lengths) > 4


def test_finished_rows_cost_no_more_forward_passes(llama: Any) -> None:
    """Rows are dropped: the widths of the decoding passes shrink, and the last row decodes alone or nearly so."""
    widths: list[int] = []
    handle = llama.model.embed_tokens.register_forward_hook(lambda _, args, __: widths.append(args[0].shape[0]))
    ends = frozenset(range(0, 300, 3))
    asked = [Prompted(tokens(1, 5), 0, tuple(range(32)))]
    ((*drafts,),) = Engine(llama, ends).generate("", asked, Sampling(max_new_tokens=12))
    handle.remove()
    assert widths[:2] == [1, 32 if sum(len(d.tokens) > 1 for d in drafts) > 24 else widths[1]]
    assert widths[1:] == sorted(widths[1:], reverse=True)
    assert len(widths) == max(len(d.tokens) for d in drafts)
    going = [sum(len(d.tokens) > step for d in drafts) for step in range(1, len(widths))]
    assert all(width <= max(1, going_now / 0.75 + 1) for width, going_now in zip(widths[1:], going, strict=True))


# ------------------------------------------------------------------------------------------------- batch independence


def as_plain(drafts: list[list[Draft]]) -> list[list[list[int]]]:
    return [[d.tokens for d in row] for row in drafts]


@pytest.mark.parametrize("max_rows", [1, 2, 3, 7, 64])
def test_waves_of_any_size(llama: Any, max_rows: int) -> None:
    expected = as_plain(Engine(llama, NO_END).generate("", prompts(), SAMPLING))
    assert as_plain(Engine(llama, NO_END, max_rows=max_rows).generate("", prompts(), SAMPLING)) == expected


def test_alone_in_a_batch_and_in_any_order(model: Any) -> None:
    asked = prompts()
    together = Engine(model, NO_END).generate("", asked, SAMPLING)
    for seed in range(3):
        order = random.Random(seed).sample(range(len(asked)), len(asked))
        shuffled = Engine(model, NO_END).generate("", [asked[i] for i in order], SAMPLING)
        for place, i in enumerate(order):
            assert as_plain([shuffled[place]]) == as_plain([together[i]])
    for prompt, row in zip(asked, together, strict=True):
        for seed, draft in zip(prompt.seeds, row, strict=True):
            alone = Engine(model, NO_END).generate("", [Prompted(prompt.tokens, prompt.prefix, (seed,))], SAMPLING)
            assert alone[0][0].tokens == draft.tokens
            assert alone[0][0].logprobs == pytest.approx(draft.logprobs, abs=1e-4)


def test_how_much_of_a_prompt_is_called_prefix_changes_nothing(model: Any) -> None:
    whole = tokens(1, 12)
    expected = Engine(model, NO_END).generate("", [Prompted(whole, 0, (1, 2))], SAMPLING)
    for prefix in (1, 6, 11):
        drafts = Engine(model, NO_END).generate("", [Prompted(whole, prefix, (1, 2))], SAMPLING)
        assert as_plain(drafts) == as_plain(expected)


def test_a_prefix_from_the_cache_gives_the_same_bits(model: Any) -> None:
    cold, warm = Engine(model, NO_END), Engine(model, NO_END)
    warm.generate("", [prompts()[4]], SAMPLING)
    asked = prompts()[:2]
    for one, other in zip(cold.generate("", asked, SAMPLING), warm.generate("", asked, SAMPLING), strict=True):
        assert [d.tokens for d in one] == [d.tokens for d in other]
        assert [d.logprobs for d in one] == [d.logprobs for d in other]


def test_the_same_call_twice_gives_the_same_bits(model: Any) -> None:
    engine = Engine(model, NO_END)
    first, second = engine.generate("", prompts(), SAMPLING), engine.generate("", prompts(), SAMPLING)
    assert first == second


def test_the_cache_is_bounded_and_forgets_old_weights(llama: Any) -> None:
    engine = Engine(llama, NO_END, prefix_tokens=20)
    kept = [engine.prefix("", tokens(n, 9)) for n in range(4)]
    assert engine.prefix("", tokens(3, 9)) is kept[3]
    assert engine.prefix("", tokens(2, 9)) is kept[2]
    assert engine.prefix("", tokens(0, 9)) is not kept[0]
    # One that is larger than the cache is still answered, and other weights never get these keys.
    large = engine.prefix("", tokens(9, 30))
    assert engine.prefix("", tokens(9, 30)) is large
    assert engine.prefix("v1", tokens(9, 30)) is not large
    small = Engine(llama, NO_END)
    base, old = small.prefix("", tokens(1, 4)), small.prefix("v1", tokens(1, 4))
    small.prefix("v2", tokens(1, 4))
    assert small.prefix("", tokens(1, 4)) is base
    assert small.prefix("v1", tokens(1, 4)) is not old
    assert small.prefix("", ()) is None


def test_a_cached_prefix_is_not_written_to(llama: Any) -> None:
    engine = Engine(llama, NO_END)
    prefix = engine.prefix("", tokens(1, 13))
    assert prefix is not None
    before = [t.clone() for t in (*prefix.keys, *prefix.values)]
    engine.generate("", prompts(), SAMPLING)
    assert engine.prefix("", tokens(1, 13)) is prefix
    assert all(torch.equal(a, b) for a, b in zip(before, (*prefix.keys, *prefix.values), strict=True))


# ---------------------------------------------------------------------------------------------------------- the rest


def test_a_stop_ends_a_row_where_it_is_met(llama: Any) -> None:
    asked = prompts()
    free = Engine(llama, NO_END).generate("", asked, SAMPLING)
    drafts = Engine(llama, NO_END).generate("", asked, SAMPLING, stopped=lambda so_far: sum(so_far) > 700)
    for row, free_row in zip(drafts, free, strict=True):
        for draft, whole in zip(row, free_row, strict=True):
            cut = next((n for n in range(1, 10) if sum(whole.tokens[:n]) > 700), None)
            assert draft.tokens == whole.tokens[:cut]
            assert draft.finish == ("length" if cut is None else "stop")


def test_a_stop_at_the_last_token_is_a_stop(llama: Any) -> None:
    free = Engine(llama, NO_END).generate("", [Prompted(tokens(1, 5), 0, (1,))], Sampling(max_new_tokens=4))[0][0]
    ends = frozenset({free.tokens[3]} - set(free.tokens[:3]))
    assert ends
    draft = Engine(llama, ends).generate("", [Prompted(tokens(1, 5), 0, (1,))], Sampling(max_new_tokens=4))[0][0]
    assert (draft.tokens, draft.finish) == (free.tokens, "stop")


def test_nothing_asked(llama: Any) -> None:
    assert Engine(llama, NO_END).generate("", [], SAMPLING) == []
    assert Engine(llama, NO_END).generate("", [Prompted(tokens(1, 3), 0, ())], SAMPLING) == [[]]


def test_logits_that_are_no_numbers_end_their_own_row_only() -> None:
    model = make_model("llama")
    asked = prompts()
    expected = Engine(model, NO_END).generate("", asked, SAMPLING)
    poison = asked[2].tokens[-1]
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = float("nan")
    drafts = Engine(model, NO_END).generate("", asked, SAMPLING)
    for prompt, row, fine in zip(asked, drafts, expected, strict=True):
        for draft, healthy in zip(row, fine, strict=True):
            if poison in prompt.tokens:
                assert (draft.finish, draft.tokens) == ("error", [])
            elif poison in healthy.tokens[:-1]:
                assert (draft.finish, draft.tokens) == ("error", healthy.tokens[: healthy.tokens.index(poison) + 1])
            else:
                assert draft.tokens == healthy.tokens
    assert any(d.finish == "error" for row in drafts for d in row)
    assert any(d.finish == "length" for row in drafts for d in row)


def test_outside_a_view_the_model_is_its_own(llama: Any) -> None:
    before, implementation = plain_logits(llama, tokens(1, 9)), llama.config._attn_implementation
    with pytest.raises(RuntimeError, match="inside"), viewing(llama, None):  # type: ignore[arg-type]
        raise RuntimeError("inside")
    Engine(llama, NO_END).generate("", prompts(), SAMPLING)
    assert llama.config._attn_implementation == implementation
    assert torch.equal(plain_logits(llama, tokens(1, 9)), before)


def test_bfloat16_agrees_with_its_own_plain_probabilities() -> None:
    """Tokens may part where two are nearly as likely; the reported log-probabilities are still the plain ones."""
    model = make_model("llama").bfloat16()
    asked = prompts()
    for prompt, row in zip(asked, Engine(model, NO_END).generate("", asked, SAMPLING), strict=True):
        for draft in row:
            with torch.no_grad():
                logits = plain_logits(model, [*prompt.tokens, *draft.tokens]).float()
            plain = torch.log_softmax(logits, -1)[len(prompt.tokens) - 1 : -1]
            chosen = plain.gather(1, torch.tensor(draft.tokens)[:, None])[:, 0].exp()
            assert (chosen - torch.tensor(draft.logprobs).exp()).abs().max() < 0.05
