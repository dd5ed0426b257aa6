"""Norm and gate that keep less: the same bits forward, the gradients of the plain operations, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.fused import gated, rms_norm  # noqa: E402

EPS = 1e-2


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As transformers' modules write it, in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def plain_gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate) * up


def kept(function: Callable[..., torch.Tensor], *args: torch.Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of what autograd keeps for the backward pass, each memory once."""
    found: dict[int, torch.Tensor] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        found[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        function(*args)
    return sorted(((tuple(x.shape), x.dtype) for x in found.values()), key=str)


def test_one_row_by_hand() -> None:
    """x = (3, 4): the mean of the squares is 12.5."""
    out = rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 10.0]), 0.0)
    assert out.tolist() == pytest.approx([6 / 12.5**0.5, 40 / 12.5**0.5], rel=1e-6)
    assert gated(torch.tensor([0.0, 100.0, -100.0]), torch.tensor([5.0, 2.0, 3.0])).tolist() == [0.0, 200.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 64)])
def test_forward_is_the_same_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = (normal(*shape, seed=1) * 3).to(dtype), normal(shape[-1], seed=2).to(dtype)
    assert torch.equal(rms_norm(x, weight, EPS), plain_norm(x, weight))
    up = normal(*shape, seed=3).to(dtype)
    assert torch.equal(gated(x, up), plain_gate(x, up))
    assert rms_norm(x, weight, EPS).dtype == gated(x, up).dtype == dtype


def test_forward_is_transformers_module() -> None:
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    norm = modeling.LlamaRMSNorm(16, eps=EPS)
    with torch.no_grad():
        norm.weight.copy_(normal(16, seed=2))
    for dtype in (torch.float32, torch.bfloat16):
        x = normal(3, 4, 16, seed=1).to(dtype)
        assert torch.equal(rms_norm(x, norm.to(dtype).weight, EPS), norm(x))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_gradients_are_those_of_the_plain_chain_in_float64(size: float) -> None:
    x, weight, up, grad = (
        normal(3, 4, 16, seed=1) * size,
        normal(16, seed=2),
        normal(3, 4, 16, seed=3),
        normal(3, 4, 16, seed=4),
    )
    cases: list[tuple[Any, Any, list[torch.Tensor]]] = [
        (lambda a: rms_norm(a, weight, EPS), lambda a: plain_norm(a, weight.double()), [x]),
        (lambda a, w: rms_norm(a, w, EPS), plain_norm, [x, weight]),
        (gated, plain_gate, [x, up]),
    ]
    for ours, plain, inputs in cases:
        low = [t.clone().requires_grad_() for t in inputs]
        high = [t.double().requires_grad_() for t in inputs]
        ours(*low).backward(grad)
        plain(*high).backward(grad.double())
        for one, other in zip(low, high, strict=True):
            bound = 2e-6 * float(other.grad.abs().max())
            torch.testing.assert_close(one.grad.double(), other.grad, atol=bound, rtol=1e-5)


def test_bfloat16_gradients_are_within_its_rounding() -> None:
    """Of the gradient in float64 from the same rounded inputs: two roundings to 8 bits at most."""
    x, weight, up, grad = (normal(*s, seed=n).bfloat16() for n, s in enumerate([(9, 32), (32,), (9, 32), (9, 32)]))
    for ours, plain, inputs in (
        (lambda a: rms_norm(a, weight, EPS), lambda a: plain_norm(a, weight.double()), [x]),
        (gated, plain_gate, [x, up]),
    ):
        low = [t.clone().requires_grad_() for t in inputs]
        high = [t.double().requires_grad_() for t in inputs]
        ours(*low).backward(grad)
        plain(*high).backward(grad.double())
        for one, other in zip(low, high, strict=True):
            assert one.grad.dtype == torch.bfloat16
            torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-3, rtol=2**-7)


def test_what_is_kept() -> None:
    """The norm: its input as it is, one number a row, its weight. The gate: its two inputs. The plain chains keep a
    float32 copy, and silu's output."""
    x, weight, up = (normal(*s, seed=1).bfloat16() for s in ((5, 16), (16,), (5, 16)))
    x, up = x.requires_grad_(), up.requires_grad_()
    half, full = torch.bfloat16, torch.float32
    assert kept(lambda a: rms_norm(a, weight, EPS), x) == [((16,), half), ((5, 1), full), ((5, 16), half)]
    assert ((5, 16), full) in kept(lambda a: plain_norm(a, weight), x)
    assert kept(gated, x, up) == [((5, 16), half)] * 2
    assert kept(plain_gate, x, up) == [((5, 16), half)] * 3


def test_the_norms_weight_gets_a_gradient_where_it_is_asked_for() -> None:
    """Whole weights train it; a change of linear layers alone does not pay for it."""
    x, weight = normal(5, 16, seed=1).requires_grad_(), normal(16, seed=2)
    rms_norm(x, weight, EPS).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
