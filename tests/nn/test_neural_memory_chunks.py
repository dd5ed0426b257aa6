"""The chunk form is the reference: values, states and outer gradients, for every chunk length and kind of memory."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from neural_memory_cases import SPECS, Case, assert_same_state, make_case, spec_of, weighed_sum  # noqa: E402

from twoclock.nn.neural_memory import PREPARED_TOKENS, memory_step  # noqa: E402
from twoclock.nn.neural_memory_coefficients import coefficients  # noqa: E402
from twoclock.nn.neural_memory_net import activate, activate_backward  # noqa: E402
from twoclock.nn.neural_memory_reference import memory_reference  # noqa: E402
from twoclock.nn.neural_memory_spec import Gates  # noqa: E402
from twoclock.nn.neural_memory_state import init_state  # noqa: E402

MASKS = ["none", "left", "scattered"]


def mask_of(kind: str, rows: int, length: int) -> torch.Tensor | None:
    if kind == "none":
        return None
    if kind == "left":
        return torch.arange(length) >= torch.arange(rows)[:, None] * 3 + 1
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(3)) < 0.6


def gradients(case: Case, kernel, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    leaves = case.leaves()
    for leaf in leaves.values():
        leaf.requires_grad_()
    found = torch.autograd.grad(weighed_sum(case.run(kernel, mask=mask)), list(leaves.values()))
    for leaf in leaves.values():
        leaf.requires_grad_(False)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("chunk", [1, 3, 4, 16])
@pytest.mark.parametrize("name", SPECS)
def test_values_and_state(name: str, chunk: int, mask: str) -> None:
    case = make_case(spec_of(name, chunk=chunk))
    live = mask_of(mask, 2, 11)
    slow, fast = (case.run(kernel, mask=live, telemetry=True) for kernel in (memory_reference, memory_step))
    for left, right in ((slow.read, fast.read), (slow.loss, fast.loss), (slow.surprise, fast.surprise)):
        torch.testing.assert_close(left, right, atol=1e-11, rtol=0)
    assert_same_state(slow.state, fast.state, atol=1e-11)


@pytest.mark.parametrize("length", [0, 1, 2, 4, 5])
def test_lengths_around_a_chunk(length: int) -> None:
    case = make_case(spec_of("network"), length=length)
    slow, fast = (case.run(kernel) for kernel in (memory_reference, memory_step))
    torch.testing.assert_close(slow.read, fast.read, atol=1e-12, rtol=0)
    assert_same_state(slow.state, fast.state, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", SPECS)
def test_outer_gradients(name: str, chunk: int, mask: str) -> None:
    case = make_case(spec_of(name, chunk=chunk), length=7)
    live = mask_of(mask, 2, 7)
    slow, fast = (gradients(case, kernel, live) for kernel in (memory_reference, memory_step))
    for leaf, expected in slow.items():
        assert bool(expected.any()), f"{leaf} moves nothing: the comparison would be empty"
        torch.testing.assert_close(fast[leaf], expected, atol=1e-9, rtol=1e-9, msg=lambda m, n=leaf: f"{n}: {m}")


@pytest.mark.parametrize("name", ["network", "read before, clipped"])
def test_gates_at_their_ends(name: str) -> None:
    """α = 0 and 1 and η = 0 and 1 exactly, values and gradients: no logarithm, no quotient."""
    case = make_case(spec_of(name), length=9)
    assert case.momentum is not None
    case.forget[:, 0, ::2], case.forget[:, :, 3] = 0.0, 1.0
    case.momentum[:, 0, 1::3], case.momentum[:, 1, 4] = 0.0, 1.0
    case.rate[:, :, 6] = 0.0
    slow, fast = (case.run(kernel) for kernel in (memory_reference, memory_step))
    torch.testing.assert_close(slow.read, fast.read, atol=1e-12, rtol=0)
    assert_same_state(slow.state, fast.state, atol=1e-12)
    slow_grad, fast_grad = (gradients(case, kernel, None) for kernel in (memory_reference, memory_step))
    for leaf, expected in slow_grad.items():
        torch.testing.assert_close(fast_grad[leaf], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "name", ["matrix", "network", "residual and norm", "silu, no momentum", "read before, clipped"]
)
def test_gradcheck(name: str) -> None:
    case = make_case(spec_of(name, width=2, chunk=2, heads=1), rows=2, length=3)
    leaves = case.leaves()

    def run(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        moved = copy.copy(case)
        named = dict(zip(leaves, given, strict=True))
        moved.initial = tuple(named.pop(f"initial.{n}") for n in range(case.spec.depth))
        for leaf, value in named.items():
            setattr(moved, leaf, value)
        found = moved.run(memory_step)
        assert found.read is not None
        return (found.read, *found.state.weights, *found.state.surprise)

    torch.autograd.gradcheck(run, [leaf.requires_grad_() for leaf in leaves.values()])


@pytest.mark.parametrize("name", ["matrix", "network", "residual and norm"])
@pytest.mark.parametrize("chunk", [16, 64])
def test_float32_keeps_close(name: str, chunk: int) -> None:
    """The tolerance in float32: 2e-5 of the largest number, over 300 tokens, against float64.

    The gates are gentle where there is a norm: it magnifies what is small, so weights forgotten fast make steps
    that are chaotic in any precision and any form.
    """

    def run(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        case = make_case(spec_of(name, width=16, chunk=chunk), length=300, dtype=dtype)
        if case.spec.norm:
            case.rate, case.forget = case.rate / 10, case.forget / 100
        found = case.run(memory_step)
        assert found.read is not None
        assert found.read.dtype == found.state.dtype == dtype
        return (found.read, *found.state.weights, *found.state.surprise)

    for single, double in zip(run(torch.float32), run(torch.float64), strict=True):
        torch.testing.assert_close(single.double(), double, atol=2e-5 * float(double.abs().max()), rtol=0)


def test_half_precision_tokens_meet_a_float32_state() -> None:
    case = make_case(spec_of("network", chunk=3), dtype=torch.bfloat16)
    found = case.run(memory_step)
    assert found.read is not None
    assert found.read.dtype == torch.bfloat16
    assert {w.dtype for w in (*found.state.weights, *found.state.surprise)} == {torch.float32}
    for leaf in ("keys", "values", "queries", "rate", "momentum", "forget"):
        setattr(case, leaf, getattr(case, leaf).float())
    torch.testing.assert_close(found.read, case.run(memory_step).read.bfloat16())  # type: ignore[union-attr]


def test_autocast_does_not_reach_the_memory() -> None:
    case = make_case(spec_of("network"), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.run(memory_step)
    assert_same_state(inside.state, case.run(memory_step).state)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_values_are_the_same(mode) -> None:  # type: ignore[no-untyped-def]
    case = make_case(spec_of("network"))
    for leaf in case.leaves().values():
        leaf.requires_grad_()
    with mode():
        quiet, slow = case.run(memory_step), case.run(memory_reference)
    assert_same_state(quiet.state, case.run(memory_step).state)
    torch.testing.assert_close(quiet.read, slow.read, atol=1e-12, rtol=0)


def test_more_tokens_than_are_prepared_at_once() -> None:
    length = PREPARED_TOKENS + 37
    case = make_case(spec_of("network", heads=1, chunk=8), rows=1, length=length)
    slow, fast = (case.run(kernel) for kernel in (memory_reference, memory_step))
    torch.testing.assert_close(slow.read, fast.read, atol=1e-10, rtol=0)
    assert_same_state(slow.state, fast.state, atol=1e-10)


@pytest.mark.parametrize("read", ["after", "before"])
def test_no_token_sees_a_later_one(read: str) -> None:
    """∂y_s/∂(token t) is exactly 0 for t > s, and, but for the query, for t = s where the read comes before the write.
    From inside a chunk on, where S is not 0."""
    case = make_case(spec_of("network", read=read), rows=1, length=13)
    start = case.run(memory_step, part=slice(0, 3)).state
    leaves = {n: t for n, t in case.leaves().items() if not n.startswith("initial")}
    for leaf in leaves.values():
        leaf.requires_grad_()
    out = case.run(memory_step, start, slice(3, 13)).read
    assert out is not None
    for s in range(10):
        found = torch.autograd.grad(out[:, :, s].sum(), list(leaves.values()), retain_graph=True)
        for name, grad in zip(leaves, found, strict=True):
            seen = grad.flatten(3).abs().sum(3) if grad.ndim > 3 else grad.abs()
            touched = seen.sum((0, 1))[3:]
            last = s if read == "after" or name == "queries" else s - 1
            assert not bool(touched[last + 1 :].any()), f"y_{s} depends on {name} after {last}"
            assert bool(touched[s if name == "queries" else slice(0, last + 1)].all()), f"{name} does not reach y_{s}"


def test_rows_and_heads_are_independent() -> None:
    case = make_case(spec_of("network"), rows=3)
    together = case.run(memory_step)
    for b in range(3):
        for h in range(2):
            one = copy.copy(case)
            one.spec = spec_of("network", heads=1)
            for name in ("keys", "values", "queries", "rate", "momentum", "forget"):
                setattr(one, name, getattr(case, name)[b : b + 1, h : h + 1])
            one.initial = tuple(w[h : h + 1] for w in case.initial)
            alone = one.run(memory_step)
            torch.testing.assert_close(alone.read[0, 0], together.read[b, h], atol=1e-13, rtol=0)  # type: ignore[index]
            for a, t in zip(alone.state.weights, together.state.weights, strict=True):
                torch.testing.assert_close(a[0, 0], t[b, h], atol=1e-13, rtol=0)


def test_coefficients_by_hand() -> None:
    """Two tokens, θ = (1, 2), η = (.5, .25), α = (.5, .75), of u_1, u_2 and S_0:
    S_1 = .5S_0 - u_1, S_2 = .125S_0 - .25u_1 - 2u_2; M_1 = .5M_0 + S_1, M_2 = .25M_1 + S_2."""

    def row(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64).view(1, 1, -1)

    found = coefficients(row(1, 2), row(0.5, 0.25), row(0.5, 0.75), None)
    torch.testing.assert_close(found.beta, row(0.5, 0.125))
    torch.testing.assert_close(found.carried, row(0.5, 0.25))
    table = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)  # [written, reading]
    torch.testing.assert_close(found.table[0, 0], table)
    torch.testing.assert_close(found.mu_end, torch.tensor([[0.125]], dtype=torch.float64))
    torch.testing.assert_close(found.surprise_end, row(0.25, 2.0))


@pytest.mark.parametrize("kind", ["gelu", "silu"])
def test_the_activations_derivative(kind: str) -> None:
    z = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    grad = torch.linspace(1, 2, 41, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(activate(z, kind), z, grad)  # type: ignore[arg-type]
    torch.testing.assert_close(activate_backward(grad, z, kind), expected)  # type: ignore[arg-type]
    torch.autograd.gradcheck(lambda g, x: activate_backward(g, x, kind), (grad, z))  # type: ignore[arg-type]


def test_a_very_long_stream_stays_finite_and_in_bounds() -> None:
    """100,000 tokens at once in float32: keys that repeat, values that change. With η and α in bounds and clipped
    gradients the weights cannot pass θ·clip / ((1 - η) α); the loss does not grow either."""
    spec = spec_of("network", heads=1, width=8, chunk=64, clip=1.0)
    generator = torch.Generator().manual_seed(0)
    length = 100_000
    keys = torch.nn.functional.normalize(torch.randn(16, 8, generator=generator), dim=-1)
    which = torch.randint(0, 16, (length,), generator=generator)
    values = torch.randn(length, 8, generator=generator)
    gate = torch.ones(1, 1, length)
    rate, eta, alpha = 0.5, 0.5, 0.01  # far above what is stable unclipped: 64 tokens a chunk
    initial = [torch.randn(1, *shape, generator=generator) / shape[0] ** 0.5 for shape in spec.shapes]
    state = init_state(spec, initial, 1)
    halves = []
    with torch.no_grad():
        for part in (slice(0, length // 2), slice(length // 2, length)):
            k = keys[which[part]][None, None]
            gates = Gates(gate[:, :, part] * rate, gate[:, :, part] * eta, gate[:, :, part] * alpha)
            found = memory_step(state, k, values[part][None, None], k, gates, telemetry=True)
            state = found.state
            state.check_finite()
            assert bool(found.read.isfinite().all())  # type: ignore[union-attr]
            norm = torch.stack([w.square().sum() for w in state.weights]).sum().sqrt()
            assert float(norm) <= rate * 1.0 / ((1 - eta) * alpha)
            halves.append((float(norm), float(found.loss.mean())))  # type: ignore[union-attr]
    (first_norm, first_loss), (second_norm, second_loss) = halves
    assert second_norm < 1.2 * first_norm
    assert second_loss < 1.2 * first_loss
