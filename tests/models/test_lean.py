"""The lean decoding step against the plain computation, token for token in float32, under every kind of mounted change.

Promises: the same tokens as one sequence at a time through the model's own modules; None where it cannot know what a
module does; and the policies of the listed kinds really decode with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_models import SHARED, VOCAB, WINDOW, byte_tokenizer, make_model, make_policy  # noqa: E402
from twoclock.models import engine as engine_module  # noqa: E402
from twoclock.models import lean as lean_module  # noqa: E402
from twoclock.models.engine import Engine, Prompted  # noqa: E402
from twoclock.models.lean import LeanDecoder  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.models.plain import plain_generate  # noqa: E402
from twoclock.models.shared_attention import forward  # noqa: E402
from twoclock.models.views import DecodeView, PrefillView, Slots  # noqa: E402
from twoclock.nn.lowrank import LowRank, mounted, mounted_apart  # noqa: E402
from twoclock.types import Conditioning, Delta, Request, Sampling  # noqa: E402

KINDS = ("llama", "qwen2", "qwen3", "mistral")
NO_END: frozenset[int] = frozenset()
SAMPLING = Sampling(max_new_tokens=8)


def shaken(model: Any) -> Any:
    """Biases and norm weights at random too: as made they are 0 and 1, and leaving them out would go unseen."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.5 * torch.randn(parameter.shape, generator=g)
    return model.requires_grad_(False)


def windows_of(model: Any) -> dict[int, int]:
    window = WINDOW if type(model).__name__.startswith("Mistral") else 0
    return dict.fromkeys(range(model.config.num_hidden_layers), window)


def decoder(model: Any) -> LeanDecoder:
    made = LeanDecoder.of(model, windows_of(model))
    assert made is not None
    return made


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return shaken(make_model(request.param))


@pytest.fixture
def llama() -> Any:
    return shaken(make_model("llama"))


def tokens(seed: int, count: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(3, VOCAB) for _ in range(count))


def prompts() -> list[Prompted]:
    one = tokens(1, 13)
    return [
        Prompted((*one, *tokens(3, 4)), 13, (1, 2)),
        Prompted((*one, *tokens(4, 1)), 13, (4,)),
        Prompted(tokens(6, 8), 0, (7, 8)),
        Prompted(tokens(8, 1), 0, (9,)),
    ]


def changes(model: Any, which: Callable[[str], bool], *, rank: Callable[[int], int] = lambda n: 2) -> LowRank:
    """A change of the linear modules ``which``; the n-th has ``rank(n)``."""
    g = torch.Generator().manual_seed(5)
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and which(n)]
    return LowRank(
        {
            name: (
                torch.randn(rank(n), m.in_features, generator=g) * 0.3,
                torch.randn(m.out_features, rank(n), generator=g) * 0.3,
            )
            for n, (name, m) in enumerate(linears)
        },
        0.6,
    )


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How many decoding steps went which way."""
    counts = {"lean": 0, "modules": 0}
    step, through = LeanDecoder._step, engine_module.forward

    def lean_step(self: LeanDecoder, *args: Any) -> torch.Tensor:
        counts["lean"] += 1
        return step(self, *args)

    def module_step(model: Any, ids: torch.Tensor, positions: torch.Tensor, view: Any) -> torch.Tensor:
        counts["modules"] += isinstance(view, DecodeView)
        return through(model, ids, positions, view)

    with monkeypatch.context() as patch:
        patch.setattr(LeanDecoder, "_step", lean_step)
        patch.setattr(engine_module, "forward", module_step)
        yield counts


def assert_plain(
    model: Any,
    asked: list[Prompted],
    monkeypatch: pytest.MonkeyPatch,
    *,
    sampling: Sampling = SAMPLING,
    lean: LeanDecoder | None = None,
    goes: str = "lean",
) -> list[list[int]]:
    """The engine with a lean decoder gives what the plain computation gives, and takes the way it ``goes``."""
    engine = Engine(model, NO_END)
    engine.lean = lean or decoder(model)
    with counted(monkeypatch) as counts:
        drafts = engine.generate("", asked, sampling)
    assert counts == {"lean": 0, "modules": 0, goes: sampling.max_new_tokens - 1}
    for prompt, row in zip(asked, drafts, strict=True):
        for seed, draft in zip(prompt.seeds, row, strict=True):
            expected, logprobs = plain_generate(model, prompt.tokens, seed, sampling, NO_END)
            assert draft.tokens == expected
            assert draft.logprobs == pytest.approx(logprobs, abs=2e-4)
    return [d.tokens for row in drafts for d in row]


# ----------------------------------------------------------------------------------------------------- token for token


@pytest.mark.parametrize(
    "sampling",
    [SAMPLING, Sampling(max_new_tokens=5, temperature=0.0), Sampling(max_new_tokens=5, temperature=0.6, top_k=30)],
    ids=["plain", "greedy", "filtered"],
)
def test_lean_is_the_plain_computation(model: Any, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_plain(model, prompts(), monkeypatch, sampling=sampling)


def test_past_the_sliding_window(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tokens(1, 3 * WINDOW)
    asked = [Prompted((*one, *tokens(3, n)), len(one), (n, n + 1)) for n in (1, 2 * WINDOW)]
    asked.append(Prompted(tokens(9, 70), 0, (1, 2)))
    assert_plain(model, asked, monkeypatch, sampling=Sampling(max_new_tokens=3 * WINDOW))


RANKS = {"the same": lambda n: 2, "their own": lambda n: 1 + n % 4}
WHICH: dict[str, Callable[[str], bool]] = {
    "all but the head": lambda n: n != "lm_head",
    "all": lambda n: True,
    "the head": lambda n: n == "lm_head",
    "q and v": lambda n: n.endswith(("q_proj", "v_proj")),
    "k": lambda n: n.endswith("k_proj"),
    "up": lambda n: n.endswith("up_proj"),
    "gate, o and down": lambda n: n.endswith(("gate_proj", "o_proj", "down_proj")),
    "the middle layer": lambda n: ".1." in n,
}


@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("which", WHICH.values(), ids=WHICH)
def test_under_a_mounted_change(
    model: Any, which: Callable[[str], bool], rank: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts()[1:]
    lean = decoder(model)
    with mounted(dict(model.named_modules()), changes(model, which, rank=rank)):
        changed = assert_plain(model, asked, monkeypatch, lean=lean)
    # The same decoder without the change: what was prepared for the one is not kept for the other.
    assert assert_plain(model, asked, monkeypatch, lean=lean) != changed


CONFIGS: dict[str, dict[str, Any]] = {
    "biases everywhere": {"attention_bias": True, "mlp_bias": True},
    "head width of its own": {"head_dim": 12},
    "a key head a query head": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "tied head": {"tie_word_embeddings": True},
    "another epsilon": {"rms_norm_eps": 0.3},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "llama 3 positions": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_variants_of_one_kind(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    common = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.35,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**common, **options})).float().eval()
    assert_plain(shaken(model), prompts(), monkeypatch)


# ---------------------------------------------------------------------------------------------- where it does not apply


@pytest.mark.parametrize("name", ["gemma2", "bloom", "gptj"])
def test_other_kinds_have_none(name: str) -> None:
    assert LeanDecoder.of(make_model(name), dict.fromkeys(range(3), 0)) is None


def test_none_for_what_is_too_large_or_bends_otherwise(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(p.numel() * p.element_size() for p in llama.parameters())
    monkeypatch.setattr(lean_module, "MAX_COPY", size)
    assert LeanDecoder.of(llama, windows_of(llama)) is not None
    monkeypatch.setattr(lean_module, "MAX_COPY", size - 1)
    assert LeanDecoder.of(llama, windows_of(llama)) is None
    monkeypatch.undo()
    llama.config.hidden_act = "gelu"
    assert LeanDecoder.of(llama, windows_of(llama)) is None


HOOKED = {
    "a norm": "model.layers.1.input_layernorm",
    "the last norm": "model.norm",
    "a linear layer": "model.layers.0.mlp.up_proj",
    "an MLP": "model.layers.2.mlp",
    "a layer": "model.layers.0",
}


@pytest.mark.parametrize("name", HOOKED.values(), ids=HOOKED)
def test_a_foreign_hook_is_obeyed(llama: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before or behind a module: the engine goes through the modules, so what the hook does is done."""
    lean, module = decoder(llama), llama.get_submodule(name)
    assert lean.prepare() is not None
    free = assert_plain(llama, prompts()[2:], monkeypatch, lean=lean)

    def halve(_: Any, args: tuple[torch.Tensor, ...], output: Any) -> Any:
        return output * 0.5 if isinstance(output, torch.Tensor) else (output[0] * 0.5, *output[1:])

    handle = module.register_forward_hook(halve)
    assert lean.prepare() is None
    assert assert_plain(llama, prompts()[2:], monkeypatch, lean=lean, goes="modules") != free
    handle.remove()
    handle = module.register_forward_pre_hook(lambda _, args: (args[0] + 0.7, *args[1:]))
    assert lean.prepare() is None
    assert assert_plain(llama, prompts()[2:], monkeypatch, lean=lean, goes="modules") != free
    handle.remove()
    assert assert_plain(llama, prompts()[2:], monkeypatch, lean=lean) == free


def test_two_changes_at_once_go_through_the_modules(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    modules, lean = dict(llama.named_modules()), decoder(llama)
    first = changes(llama, WHICH["all but the head"])
    with mounted(modules, first), mounted(modules, changes(llama, WHICH["k"])):
        assert lean.prepare() is None
        assert_plain(llama, prompts()[2:], monkeypatch, lean=lean, goes="modules")
    with mounted_apart(modules, [(slice(0, 1), first)]):
        assert lean.prepare() is None


@pytest.mark.parametrize("name", ["model.embed_tokens", "lm_head"])
def test_hooks_at_the_ends_are_run(llama: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding and head are called as modules where they are hooked, so the lean step may stay."""
    free = assert_plain(llama, prompts()[2:], monkeypatch)
    handle = llama.get_submodule(name).register_forward_hook(lambda _, __, output: output.flip(-1))
    assert assert_plain(llama, prompts()[2:], monkeypatch) != free
    handle.remove()


def test_the_model_is_left_as_it_was(llama: Any) -> None:
    before = {n: t.clone() for n, t in llama.state_dict().items()}
    engine = Engine(llama, NO_END)
    engine.lean = decoder(llama)
    with mounted(dict(llama.named_modules()), changes(llama, WHICH["all"])):
        engine.generate("", prompts(), SAMPLING)
    assert all(torch.equal(t, before[n]) for n, t in llama.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.modules())


# ----------------------------------------------------------------------------------------------------------- bfloat16


def logits_of_steps(model: Any, lean: LeanDecoder | None) -> list[torch.Tensor]:
    """Three prompts of unlike length, then ten given tokens a row, by the lean step or through the modules."""
    lengths = [3, 9, 6]
    view = PrefillView(lengths, [0, 0, 0], (), model.device)
    found = []
    with torch.no_grad():
        forward(model, torch.tensor([tokens(1, sum(lengths))]), view.positions[None], view)
        slots = Slots(3, view)
        slots.put(torch.arange(3), view, torch.arange(3), torch.tensor(lengths))
        step = lean.prepare() if lean else None
        for n in range(10):
            at, given = slots.lengths.clone(), torch.tensor(tokens(100 + n, 3))
            reads = DecodeView(slots, [], at)
            found.append(step(given, reads) if step else forward(model, given[:, None], at[:, None], reads))
            slots.lengths += 1
    return found


@pytest.mark.parametrize("changed", [False, True])
def test_in_bfloat16_both_ways_are_as_near_to_float32(model: Any, changed: bool) -> None:
    """Each rounds in its own order. Against the same weights in float32 the lean step errs no more than the modules do
    (within a factor of 1.5 in the mean), and the probabilities of the two differ by no more than their errors."""
    kind = next(k for k in KINDS if type(model).__name__.lower().startswith(k + "for"))
    low = shaken(make_model(kind)).bfloat16()
    high = shaken(make_model(kind)).bfloat16().float()
    delta = changes(low, WHICH["all but the head"]) if changed else None
    with mounted(dict(low.named_modules()), delta), mounted(dict(high.named_modules()), delta):
        exact = torch.cat(logits_of_steps(high, None)).softmax(-1)
        lean, modules = (torch.cat(logits_of_steps(low, d)).float().softmax(-1) for d in (decoder(low), None))
    errors = [float((x - exact).abs().sum(-1).mean()) / 2 for x in (lean, modules)]
    assert errors[0] < 1.5 * errors[1] + 1e-3
    assert errors[1] < 0.05
    assert float((lean - modules).abs().sum(-1).mean()) / 2 < 0.05


def test_in_float32_both_ways_give_the_same_logits(model: Any) -> None:
    for lean, modules in zip(logits_of_steps(model, decoder(model)), logits_of_steps(model, None), strict=True):
        assert lean.shape == modules.shape
        torch.testing.assert_close(lean, modules, atol=2e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------- the policy


@pytest.mark.parametrize("name", SHARED)
def test_the_policy_decodes_with_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(name)
    assert policy.shared
    assert policy.notes == []
    assert (policy._engine.lean is not None) == (name in KINDS)
    delta = Delta("d" * 64, "lora", policy.base_hash, changes(policy.model, WHICH["all but the head"]))
    asked = [Request(prompt="hi", conditioning=Conditioning(delta=d), seeds=(1, 2)) for d in (None, delta)]
    with counted(monkeypatch) as counts:
        rows = policy.sample(asked, Sampling(max_new_tokens=6))
    assert counts["lean" if name in KINDS else "modules"] > 0
    assert counts["modules" if name in KINDS else "lean"] == 0
    ends = frozenset({byte_tokenizer().eos_token_id})
    for request, row in zip(asked, rows, strict=True):
        before = policy.render("hi", request.conditioning)
        with mounted(dict(policy.model.named_modules()), delta.payload if request.conditioning.delta else None):
            for seed, completion in zip((1, 2), row, strict=True):
                expected, _ = plain_generate(policy.model, before, seed, Sampling(max_new_tokens=6), ends)
                assert completion.tokens == tuple(expected)


@pytest.mark.parametrize("wrong", ["rotation", "error"])
def test_a_step_that_errs_is_found_when_the_policy_is_made(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says it is of a kind and computes otherwise: decoding goes through its modules, and that is said."""
    norm = lean_module._norm

    def strange(module: Any, x: torch.Tensor) -> torch.Tensor:
        if wrong == "error":
            raise RuntimeError("no such norm")
        return norm(module, x).roll(1, -1)

    monkeypatch.setattr(lean_module, "_norm", strange)
    policy: LocalPolicy = make_policy("llama")
    assert policy.shared
    assert policy._engine.lean is None
    reason = {"rotation": "next-token probabilities differ by", "error": "no such norm"}[wrong]
    assert len(policy.notes) == 1
    assert policy.notes[0].startswith(f"decoding goes through the model's own modules: {reason}")
    ((row,),) = policy.sample(
        [Request(prompt="hi", conditioning=Conditioning(), seeds=(1,))], Sampling(max_new_tokens=6)
    )
    ends = frozenset({byte_tokenizer().eos_token_id})
    before = policy.render("hi", Conditioning())
    assert row.tokens == tuple(plain_generate(policy.model, before, 1, Sampling(max_new_tokens=6), ends)[0])


@pytest.mark.parametrize("change", ["in place", "replaced", "the head"])
def test_weights_that_moved_since_are_not_read_from_the_copy(change: str) -> None:
    """The decoder has laid the weights out once: where the model's own have changed, its own modules decode."""
    policy = make_policy("llama")
    engine = policy._engine
    assert engine.lean is not None
    assert engine.lean.prepare() is not None
    asked = [Prompted((5, 6, 7, 8), 0, (1, 2))]
    before = engine.generate("", asked, Sampling(max_new_tokens=5))
    linear = policy.model.lm_head if change == "the head" else policy.model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        if change == "replaced":
            linear.weight.data = linear.weight.data.flip(0).clone()
        else:
            linear.weight.copy_(linear.weight.flip(0).clone())
    after = engine.generate("moved", asked, Sampling(max_new_tokens=5))
    assert after != before
    for seed, draft in zip((1, 2), after[0], strict=True):
        expected, _ = plain_generate(policy.model, (5, 6, 7, 8), seed, Sampling(max_new_tokens=5), engine.ends)
        assert draft.tokens == expected
