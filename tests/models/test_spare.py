"""Sparing norms and gates inside a training pass: the same values, less kept, and nothing left behind."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import SHARED, make_model, make_policy  # noqa: E402
from twoclock.models import teacher_forcing  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.models.spare import sparing  # noqa: E402
from twoclock.nn.lowrank import LowRank  # noqa: E402
from twoclock.types import Conditioning  # noqa: E402

KINDS = ("llama", "qwen2", "qwen3", "mistral")
TOKENS = [5, 17, 250, 33, 8, 99, 120, 64, 5]


def swapped(model: torch.nn.Module) -> list[str]:
    return [type(m).__name__ for m in model.modules() if "forward" in vars(m)]


def kept_bytes(model: Any) -> int:
    """What autograd keeps of one forward pass, each memory once; the weights, which are there anyway, left out."""
    weights = {p.data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in weights:
            found[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits = plain_logits(model, TOKENS)
    assert logits.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("name", SHARED)
def test_what_is_swapped_and_for_how_long(name: str) -> None:
    """Two norms and a gate a layer and a last norm, Qwen 3 two norms more; other kinds are left alone."""
    model = make_model(name).requires_grad_(False)
    with sparing(model):
        inside = swapped(model)
        with sparing(model):
            assert swapped(model) == inside
        assert swapped(model) == inside
    assert len(inside) == (3 * (5 if name == "qwen3" else 3) + 1 if name in KINDS else 0)
    assert swapped(model) == []
    with torch.no_grad(), sparing(model):
        assert swapped(model) == []
    with pytest.raises(RuntimeError, match="inside"), sparing(model):
        raise RuntimeError("inside")
    assert swapped(model) == []


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_the_same_bits_and_keeps_less(name: str, dtype: torch.dtype) -> None:
    model = make_model(name).requires_grad_(False).to(dtype)
    # Something below all layers must want a gradient, or nothing would be kept.
    model.model.embed_tokens.register_forward_hook(lambda _, __, output: output.requires_grad_())
    plain, plenty = plain_logits(model, TOKENS), kept_bytes(model)
    with sparing(model):
        assert torch.equal(plain_logits(model, TOKENS), plain)
        spared = plenty - kept_bytes(model)
    # silu's output in each layer; in bfloat16 the float32 copies of two norms a layer and the last one too.
    gates = 3 * len(TOKENS) * 48 * dtype.itemsize
    assert spared == gates if dtype == torch.float32 else spared >= gates + 7 * len(TOKENS) * 32 * 2


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_the_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a policy's log-probabilities with respect to a change of every linear layer, with and without."""
    found = []
    for context in (sparing, lambda model: nullcontext()):
        policy = make_policy(name)
        assert policy.shared
        entered: list[int] = []

        def watched(model: Any, inner: Any = context, seen: list[int] = entered) -> Any:
            seen.append(1)
            return inner(model)

        monkeypatch.setattr(teacher_forcing, "sparing", watched)
        g = torch.Generator().manual_seed(1)
        leaves = {
            n: (
                torch.randn(2, m.in_features, generator=g).mul_(0.3).requires_grad_(),
                torch.randn(m.out_features, 2, generator=g).mul_(0.3).requires_grad_(),
            )
            for n, m in policy.model.named_modules()
            if isinstance(m, torch.nn.Linear) and n != "lm_head"
        }
        stats = policy.sequence_stats(
            ["hi", "What?"], Conditioning(), [[TOKENS], [TOKENS[:3]]], temperature=1.0, change=LowRank(leaves, 0.5)
        )
        assert entered
        sum((s.logprobs * s.mask).sum() for s in stats).backward()
        found.append([t.grad for pair in leaves.values() for t in pair])
    for one, other in zip(*found, strict=True):
        assert float(other.abs().max()) > 0
        torch.testing.assert_close(one, other, atol=2e-5 * float(other.abs().max()), rtol=1e-4)


def test_what_others_have_done_is_kept() -> None:
    """A forward of the instance's own stays, and hooks of norms and gates run."""
    model = make_model("llama").requires_grad_(False)
    model.model.embed_tokens.register_forward_hook(lambda _, __, output: output.requires_grad_())
    layer = model.model.layers[1]

    def mine(x: torch.Tensor) -> torch.Tensor:
        return x * 2.0

    layer.input_layernorm.forward = mine
    layer.mlp.register_forward_hook(lambda _, __, output: output * 0.5)
    model.model.norm.register_forward_pre_hook(lambda _, args: (args[0] + 1.0,))
    plain = plain_logits(model, TOKENS)
    with sparing(model):
        assert layer.input_layernorm.forward is mine
        assert torch.equal(plain_logits(model, TOKENS), plain)
    assert layer.input_layernorm.forward is mine


def test_a_gate_that_bends_otherwise_is_left_alone() -> None:
    model = make_model("llama").requires_grad_(False)
    model.config.hidden_act = "gelu"
    with sparing(model):
        assert "LlamaMLP" not in swapped(model)
        assert "LlamaRMSNorm" in swapped(model)
