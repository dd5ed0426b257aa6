"""A local model as a policy: sampling, stop strings, failures, and the two paths (shared and slow) that must agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import SHARED, byte_tokenizer, make_model, make_policy  # noqa: E402
from twoclock.contracts import Trainable  # noqa: E402
from twoclock.errors import ConfigError, UnsupportedError  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.models.plain import plain_generate  # noqa: E402
from twoclock.nn.lowrank import LowRank, mounted  # noqa: E402
from twoclock.types import Completion, Conditioning, Delta, Request, Sampling  # noqa: E402

SLOW = ("bloom", "gptj")
SAMPLING = Sampling(max_new_tokens=7)
TEXTS = (
    Conditioning(),
    Conditioning(system="Answer briefly."),
    Conditioning(system="Answer briefly.", exemplars=(("1+1?", "2"), ("2+2?", "4"))),
)


@pytest.fixture(scope="module", params=(*SHARED, *SLOW))
def policy(request: pytest.FixtureRequest) -> LocalPolicy:
    return make_policy(request.param)


@pytest.fixture(scope="module")
def llama() -> LocalPolicy:
    return make_policy("llama")


def random_delta(policy: LocalPolicy, *, seed: int = 1, size: float = 0.1, base: str | None = None) -> Delta:
    """A change of every linear layer but the head, rank 2."""
    g = torch.Generator().manual_seed(seed)
    tensors = {
        name: (torch.randn(2, m.in_features, generator=g), torch.randn(m.out_features, 2, generator=g))
        for name, m in policy.model.named_modules()
        if isinstance(m, torch.nn.Linear) and name != "lm_head"
    }
    return Delta(f"{seed}-{size}".ljust(64, "0"), "lora", base or policy.base_hash, LowRank(tensors, size))


def ask(prompt: str, conditioning: Conditioning = TEXTS[0], seeds: Sequence[int] = (1, 2)) -> Request:
    return Request(prompt=prompt, conditioning=conditioning, seeds=tuple(seeds))


def assert_plain(policy: LocalPolicy, request: Request, row: Sequence[Completion], sampling: Sampling) -> None:
    delta = request.conditioning.delta
    prompt = policy.render(request.prompt, request.conditioning)
    modules = dict(policy.model.named_modules())
    ends = frozenset({byte_tokenizer().eos_token_id})
    with mounted(modules, delta.payload if delta else None):
        for seed, completion in zip(request.seeds, row, strict=True):
            tokens, logprobs = plain_generate(policy.model, prompt, seed, sampling, ends)
            assert completion.tokens == tuple(tokens)
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)
            assert completion.prompt_tokens == len(prompt)
            assert completion.text == byte_tokenizer().decode(tokens, skip_special_tokens=True)


def test_which_path_a_model_takes(policy: LocalPolicy) -> None:
    assert policy.shared == (policy.card.name in SHARED)
    if policy.shared:
        assert policy.notes == []
    else:
        assert "slow path is used: every layer computes attention without transformers' interface" in policy.notes[0]
    assert isinstance(policy, Trainable)


def test_sampling_is_the_plain_computation_whatever_shares_the_call(policy: LocalPolicy) -> None:
    """Several texts and weights in one call: each rollout is what one sequence alone would have given."""
    changed = Conditioning(system="Answer briefly.", delta=random_delta(policy, size=0.02))
    requests = [
        ask(prompt, conditioning, (n, n + 1))
        for n, conditioning in enumerate((*TEXTS, changed))
        for prompt in ("What is 7 + 8?", "hi", "Name a colour, please; any colour.")
    ]
    rows = policy.sample(requests, SAMPLING)
    for request, row in zip(requests, rows, strict=True):
        assert_plain(policy, request, row, SAMPLING)
    assert policy.sample(requests, SAMPLING) == rows
    backwards = policy.sample(requests[::-1], SAMPLING)[::-1]
    assert [[c.tokens for c in r] for r in backwards] == [[c.tokens for c in r] for r in rows]


def test_a_delta_changes_answers_and_leaves_nothing_behind(policy: LocalPolicy) -> None:
    base = policy.sample([ask("hi", seeds=range(8))], SAMPLING)
    changed = policy.sample([ask("hi", Conditioning(delta=random_delta(policy)), range(8))], SAMPLING)
    assert [c.tokens for c in changed[0]] != [c.tokens for c in base[0]]
    assert policy.sample([ask("hi", seeds=range(8))], SAMPLING) == base


def test_a_cached_prefix_is_that_of_the_weights(llama: LocalPolicy) -> None:
    """The same text under other weights has other keys: the cache must not mix them up, in any order."""
    text = "Answer briefly."
    deltas = [None, random_delta(llama, seed=1), random_delta(llama, seed=2)]
    for delta in [*deltas, *deltas[::-1], deltas[1]]:
        request = ask("hi", Conditioning(system=text, delta=delta))
        assert_plain(llama, request, llama.sample([request], SAMPLING)[0], SAMPLING)


def test_a_delta_of_another_base_is_refused(llama: LocalPolicy) -> None:
    foreign = Conditioning(delta=random_delta(llama, base="f" * 64))
    with pytest.raises(UnsupportedError, match=r"trained on base weights ffffffffffff, but this model is base-llama"):
        llama.sample([ask("hi", foreign)], SAMPLING)
    with pytest.raises(UnsupportedError, match="trained on base weights"):
        llama.sequence_stats(["hi"], foreign, [[[5]]], temperature=1.0)
    with pytest.raises(UnsupportedError, match="trained on base weights"):
        llama.exact_kl(["hi"], [[5]], foreign, Conditioning())
    strange = Conditioning(delta=Delta("x" * 64, "svf", llama.base_hash, payload={}))
    with pytest.raises(UnsupportedError, match="kind 'svf'"):
        llama.sample([ask("hi", strange)], SAMPLING)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_stop_strings(name: str) -> None:
    policy = make_policy(name)
    sampling = Sampling(max_new_tokens=30)
    free = policy.sample([ask("hi", seeds=range(12))], sampling)[0]
    pairs = (c.text[i : i + 2] for c in free for i in range(2, len(c.text)))
    stop = next(pair for pair in pairs if len(pair) == 2 and pair.isascii())
    for whole, cut in zip(
        free, policy.sample([ask("hi", seeds=range(12))], Sampling(max_new_tokens=30, stop=(stop, "~")))[0], strict=True
    ):
        places = [whole.text.find(s) for s in (stop, "~") if s in whole.text]
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
        assert cut.text == (whole.text[: min(places)] if places else whole.text)
        assert cut.finish == ("stop" if places else whole.finish)
        assert len(cut.logprobs) == len(cut.tokens)
    assert any(stop in c.text for c in free)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_special_token_as_a_stop_string(name: str) -> None:
    """It has no text of its own, so it is known by its id."""
    policy = make_policy(name)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[0] *= 3.0
    sampling = Sampling(max_new_tokens=40)
    free = policy.sample([ask("hi", seeds=range(8))], sampling)[0]
    cut = policy.sample([ask("hi", seeds=range(8))], Sampling(max_new_tokens=40, stop=("<|endoftext|>",)))[0]
    assert any(0 in c.tokens for c in free)
    for whole, short in zip(free, cut, strict=True):
        end = whole.tokens.index(0) + 1 if 0 in whole.tokens else len(whole.tokens)
        assert short.tokens == whole.tokens[:end]
        assert short.finish == ("stop" if 0 in whole.tokens else whole.finish)


def test_the_end_token_ends_and_is_counted_but_not_shown(llama: LocalPolicy) -> None:
    policy = make_policy("llama", seed=3)
    with torch.no_grad():
        policy.model.lm_head.weight[2] *= 4.0
    rows = policy.sample([ask("hi", seeds=range(16))], Sampling(max_new_tokens=40))[0]
    ended = [c for c in rows if c.finish == "stop"]
    assert ended
    assert all(c.tokens[-1] == 2 and "<|im_end|>" not in c.text for c in ended)
    assert all(len(c.tokens) == 40 and 2 not in c.tokens for c in rows if c.finish == "length")
    short = policy.sample([ask("hi", seeds=range(16))], Sampling(max_new_tokens=1))[0]
    assert [c.tokens for c in short] == [c.tokens[:1] for c in rows]


def test_a_prompt_that_does_not_fit_fails_alone() -> None:
    policy = make_policy("llama", context=64)
    requests = [ask("hi"), ask("x" * 100, seeds=(1, 2, 3)), ask("ho")]
    first, failed, last = policy.sample(requests, SAMPLING)
    assert len(failed) == 3
    for completion in failed:
        assert (completion.finish, completion.tokens, completion.text) == ("error", (), "")
        assert "7 are to be added, but the model reads at most 64" in (completion.error or "")
    assert [first, last] == policy.sample([requests[0], requests[2]], SAMPLING)
    assert policy.sample([requests[1]], SAMPLING) == [failed]


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_weights_that_give_no_numbers_fail_as_values(name: str) -> None:
    policy = make_policy(name)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[5] = float("nan")
    (row,) = policy.sample([ask("hi")], SAMPLING)
    assert {c.finish for c in row} == {"error"}
    assert all("NaN or infinite" in (c.error or "") and c.tokens == () and c.prompt_tokens > 0 for c in row)


def test_a_template_that_refuses_a_system_message() -> None:
    tokenizer = byte_tokenizer().__class__(tokenizer_object=byte_tokenizer().backend_tokenizer, eos_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    policy = LocalPolicy(make_model("llama"), tokenizer, name="tiny", base_hash="b")
    assert policy.sample([ask("hi")], SAMPLING)[0][0].finish != "error"
    with pytest.raises(
        UnsupportedError, match=r"template of tiny cannot render .* with a system message.*no system role"
    ):
        policy.sample([ask("hi", TEXTS[1])], SAMPLING)


def test_the_shared_prefix_is_a_prefix_of_every_prompt(llama: LocalPolicy) -> None:
    for conditioning in TEXTS:
        prefix = llama.shared_prefix(conditioning)
        for prompt in ("Apple", "7", "", "A", "\n\n", "apple pie", "<|im_end|>"):
            assert llama.render(prompt, conditioning)[: len(prefix)] == prefix
    assert len(llama.shared_prefix(TEXTS[2])) > len(llama.shared_prefix(TEXTS[1])) > 0


def test_a_prompt_whose_first_characters_merge_with_the_template() -> None:
    """The template ends in 'h' and the prompt begins with 'e': one token spans the border, so no prefix is shared."""
    tokenizer = byte_tokenizer().__class__(tokenizer_object=byte_tokenizer().backend_tokenizer, eos_token="<|im_end|>")
    tokenizer.chat_template = "{{ 'Question: h' + messages[-1]['content'] + '?' }}"
    policy = LocalPolicy(make_model("llama"), tokenizer, name="tiny", base_hash="b")
    requests = [ask("ello"), ask("arp"), ask("eat")]
    rows = policy.sample(requests, SAMPLING)
    assert policy.render("ello", TEXTS[0])[: len(policy.shared_prefix(TEXTS[0]))] != policy.shared_prefix(TEXTS[0])
    for request, row in zip(requests, rows, strict=True):
        assert_plain(policy, request, row, SAMPLING)


def test_no_requests_and_no_seeds(policy: LocalPolicy) -> None:
    assert policy.sample([], SAMPLING) == []
    assert policy.sample([ask("hi", seeds=())], SAMPLING) == [()]


def test_a_model_that_only_seems_to_obey_takes_the_slow_path() -> None:
    """Its attention goes through the interface, but one layer adds something that the interface is not told of."""
    model = make_model("llama")
    layer = model.model.layers[1].self_attn
    layer.register_forward_hook(lambda _, __, out: (out[0] + out[0].cumsum(1), *out[1:]))
    policy = LocalPolicy(model, byte_tokenizer(), name="odd", base_hash="b")
    assert not policy.shared
    assert "next-token probabilities differ" in policy.notes[0]
    request = ask("hi", TEXTS[1])
    assert_plain(policy, request, policy.sample([request], SAMPLING)[0], SAMPLING)


def test_a_model_that_hides_its_window_takes_the_slow_path() -> None:
    """The mask has a window of which the attention is not told: no short sequence would show it."""
    model = make_model("llama")
    model.config.sliding_window = 64
    policy = LocalPolicy(model, byte_tokenizer(), name="odd", base_hash="b")
    assert not policy.shared
    assert "layer 0 has a window of 64 tokens but attends with 0" in policy.notes[0]
    model.config.sliding_window = 512
    assert LocalPolicy(model, byte_tokenizer(), name="odd", base_hash="b").shared


def test_layers_of_an_unknown_kind_take_the_slow_path() -> None:
    model = make_model("llama")
    model.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    policy = LocalPolicy(model, byte_tokenizer(), name="odd", base_hash="b")
    assert not policy.shared
    assert "layers of the kind chunked_attention" in policy.notes[0]


def test_linear_shapes(llama: LocalPolicy) -> None:
    shapes = llama.linear_shapes(["q_proj", "down_proj"])
    assert list(shapes) == [f"model.layers.{i}.{n}" for i in range(3) for n in ("self_attn.q_proj", "mlp.down_proj")]
    assert shapes["model.layers.0.self_attn.q_proj"] == (32, 32)
    assert shapes["model.layers.0.mlp.down_proj"] == (32, 48)
    with pytest.raises(ConfigError) as problem:
        llama.linear_shapes(["q_proj", "query", "fc1"])
    assert len(problem.value.problems) == 2
    assert "no linear layer is called 'query' in this model; it has: down_proj" in problem.value.problems[0]


def test_prompt_tokens_is_the_length_of_the_rendered_prompt(policy: LocalPolicy) -> None:
    for conditioning in TEXTS:
        count = policy.prompt_tokens("hello", conditioning)
        assert count == len(policy.render("hello", conditioning))
        assert policy.sample([ask("hello", conditioning, (1,))], SAMPLING)[0][0].prompt_tokens == count


def test_what_a_user_types_is_no_markup_of_ours(llama: LocalPolicy) -> None:
    """A prompt that is empty, or holds special tokens or odd characters, is sampled like any other."""
    for prompt in ("", "<|im_end|>", "\x00", "é𝄞\n\n"):
        request = ask(prompt, TEXTS[1])
        assert_plain(llama, request, llama.sample([request], SAMPLING)[0], SAMPLING)


def seen(rows: list[tuple[Completion, ...]]) -> list[Any]:
    return [[(c.tokens, c.text, c.finish) for c in row] for row in rows]


def test_both_paths_of_one_model_agree(policy: LocalPolicy) -> None:
    slow = make_policy(policy.card.name)
    slow.shared = False
    requests = [ask("What is 7 + 8?", c, (3, 4)) for c in TEXTS]
    for sampling in (SAMPLING, Sampling(max_new_tokens=12, temperature=0.7, top_p=0.8, stop=("e", "<|endoftext|>"))):
        assert seen(slow.sample(requests, sampling)) == seen(policy.sample(requests, sampling))
