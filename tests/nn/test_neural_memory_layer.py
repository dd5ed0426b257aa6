"""From hidden states to memory and back: the projections as equations, pieces, padding, causality, a long stream."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from neural_memory_cases import assert_same_state, spec_of  # noqa: E402

from twoclock.errors import ConfigError  # noqa: E402
from twoclock.nn.neural_memory_inputs import MemoryStep  # noqa: E402
from twoclock.nn.neural_memory_layer import (  # noqa: E402
    MemoryParameters,
    init_parameters,
    layer_read,
    layer_step,
    project,
    start,
)
from twoclock.nn.neural_memory_reference import memory_reference  # noqa: E402
from twoclock.nn.neural_memory_spec import MemorySpec  # noqa: E402
from twoclock.nn.neural_memory_state import MemoryState  # noqa: E402

WIDTH, LENGTH = 6, 13
NAMES = ["matrix", "network", "residual and norm", "silu, no momentum", "read before, clipped"]


def parameters_of(spec: MemorySpec, seed: int = 0) -> MemoryParameters:
    """In float64, with a convolution and gates that do something."""
    first = init_parameters(spec, WIDTH, seed, half_life=20.0, momentum=0.6)
    generator = torch.Generator().manual_seed(seed)

    def moved(t: torch.Tensor | None) -> torch.Tensor | None:
        return None if t is None else t.double() + 0.3 * torch.randn(t.shape, generator=generator, dtype=torch.float64)

    fields = {n: moved(getattr(first, n)) for n in ("project", "taps", "gates", "gates_bias", "gain")}
    return MemoryParameters(**fields, initial=tuple(moved(w) for w in first.initial))  # type: ignore[arg-type, misc]


def states_of(rows: int = 2, length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves_of(p: MemoryParameters) -> list[torch.Tensor]:
    return [t for t in (p.project, p.taps, p.gates, p.gates_bias, *p.initial, p.gain) if t is not None]


def in_pieces(
    p: MemoryParameters, state: MemoryState, x: torch.Tensor, cuts: list[int], mask: torch.Tensor | None = None
) -> MemoryStep:
    reads = []
    for begin, end in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        step = layer_step(p, state, x[:, begin:end], mask=None if mask is None else mask[:, begin:end])
        state = step.state
        reads.append(step.read)
    return MemoryStep(torch.cat(reads, dim=1), state)  # type: ignore[arg-type]


def test_the_projections_are_the_equations() -> None:
    """Token t, head h, from its own and the three inputs before it."""
    spec = spec_of("network")
    p, x = parameters_of(spec), states_of()
    found = project(p, start(spec, p, 2), x)
    wide = x @ p.project
    size = spec.heads * spec.width
    for t in (0, 2, 9):
        mixed = torch.zeros(2, 3 * size, dtype=torch.float64)
        for back in range(spec.conv):
            if t - back >= 0:
                mixed += p.taps[spec.conv - 1 - back] * wide[:, t - back]  # type: ignore[index]
        smooth = mixed / (1 + torch.exp(-mixed))
        q, k, v = (smooth[:, n * size : (n + 1) * size].view(2, spec.heads, spec.width) for n in range(3))
        torch.testing.assert_close(found.values[:, :, t], v)
        for given, raw in ((found.queries, q), (found.keys, k)):
            length = raw.norm(dim=-1, keepdim=True)
            torch.testing.assert_close(given[:, :, t] * length, raw, atol=1e-4, rtol=1e-4)
        gates = torch.sigmoid(x[:, t] @ p.gates + p.gates_bias)
        torch.testing.assert_close(found.gates.rate[:, :, t], 0.1 * gates[:, :2])
        torch.testing.assert_close(found.gates.momentum[:, :, t], gates[:, 2:4])  # type: ignore[index]
        torch.testing.assert_close(found.gates.forget[:, :, t], gates[:, 4:])


def test_gates_start_where_they_are_told() -> None:
    spec = spec_of("network")
    p = init_parameters(spec, WIDTH, 0, half_life=100.0, momentum=0.3, rate=0.02)
    found = project(p, start(spec, p, 1), torch.zeros(1, 1, WIDTH))
    torch.testing.assert_close(found.gates.rate.flatten(), torch.full((2,), 0.02))
    assert found.gates.momentum is not None
    torch.testing.assert_close(found.gates.momentum.flatten(), torch.full((2,), 0.3))
    torch.testing.assert_close((1 - found.gates.forget.flatten()) ** 100, torch.full((2,), 0.5))


def test_parameters_follow_from_their_seed() -> None:
    spec = spec_of("network")
    one, same, other = (init_parameters(spec, WIDTH, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(leaves_of(one), leaves_of(same), strict=True))
    assert not torch.equal(one.project, other.project)
    assert not torch.equal(one.initial[0], other.initial[0])


@pytest.mark.parametrize("name", NAMES)
def test_both_kernels_agree_through_the_layer(name: str) -> None:
    spec = spec_of(name)
    p, x = parameters_of(spec), states_of()
    mask = torch.arange(LENGTH) >= torch.tensor([[4], [0]])
    found, grads = [], []
    for kernel in ({}, {"kernel": memory_reference}):
        for leaf in (x, *leaves_of(p)):
            leaf.requires_grad_()
        step = layer_step(p, start(spec, p, 2), x, mask=mask, telemetry=True, **kernel)  # type: ignore[arg-type]
        assert step.read is not None
        loss = (step.read * torch.arange(8)).sum() + sum(w.square().sum() for w in step.state.weights)
        grads.append(torch.autograd.grad(loss, (x, *leaves_of(p))))
        found.append(step)
    torch.testing.assert_close(found[0].read, found[1].read, atol=1e-11, rtol=0)
    torch.testing.assert_close(found[0].loss, found[1].loss, atol=1e-11, rtol=0)
    assert_same_state(found[0].state, found[1].state, atol=1e-11)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8)
    assert not bool(grads[0][0][0, :4].any())


@pytest.mark.parametrize("cuts", [list(range(1, LENGTH)), [3, 6, 9], [4, 8], [1], [0, 5, 5]])
@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_the_whole(name: str, cuts: list[int]) -> None:
    """The convolution goes on across the cut, and so do the outer gradients."""
    spec = spec_of(name)
    p, x = parameters_of(spec), states_of()
    leaves = [x, *leaves_of(p)]
    for leaf in leaves:
        leaf.requires_grad_()
    whole, pieces = layer_step(p, start(spec, p, 2), x), in_pieces(p, start(spec, p, 2), x, cuts)
    torch.testing.assert_close(pieces.read, whole.read, atol=1e-11, rtol=0)
    assert_same_state(pieces.state, whole.state, atol=1e-11)
    grads = [
        torch.autograd.grad((s.read * torch.arange(8)).sum() + s.state.weights[0].square().sum(), leaves)  # type: ignore[operator]
        for s in (whole, pieces)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("cuts", [[], [3, 6, 9], [5]])
def test_padding_anywhere_is_as_if_it_were_not_there(cuts: list[int]) -> None:
    """The convolution too must not see it, also where a piece is shorter than the convolution."""
    spec = spec_of("network")
    p, x = parameters_of(spec), states_of(3)
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    mask[0, :6], mask[1, 4:9], mask[2, 1:] = False, False, False
    x[~mask] = float("nan")
    found = in_pieces(p, start(spec, p, 3), x, cuts, mask)
    assert found.read is not None
    for b in range(3):
        alone = layer_step(p, start(spec, p, 1), x[b : b + 1, mask[b]])
        torch.testing.assert_close(found.read[b : b + 1, mask[b]], alone.read, atol=1e-12, rtol=0)
        assert not bool(found.read[b, ~mask[b]].any())
        assert_same_state(found.state.take([b]), alone.state, atol=1e-12)


def test_a_row_of_padding_keeps_its_state_to_the_bit() -> None:
    spec = spec_of("network")
    p, x = parameters_of(spec), states_of()
    before = layer_step(p, start(spec, p, 2), x).state
    mask = torch.tensor([[False] * LENGTH, [True] * LENGTH])
    after = layer_step(p, before, states_of(seed=3), mask=mask).state
    assert_same_state(after.take([0]), before.take([0]))
    assert not torch.equal(after.tails[1], before.tails[1])


def test_no_token_sees_a_later_one() -> None:
    spec = spec_of("network")
    p, x = parameters_of(spec), states_of(1).requires_grad_()
    state = layer_step(p, start(spec, p, 1), states_of(1, 3, seed=7)).state
    read = layer_step(p, state, x).read
    assert read is not None
    for s in range(LENGTH):
        (grad,) = torch.autograd.grad(read[:, s].sum(), x, retain_graph=True)
        seen = grad.abs().sum((0, 2)) > 0
        assert seen.tolist() == [t <= s for t in range(LENGTH)]


def test_reading_writes_nothing_and_sees_the_memory_and_the_convolution() -> None:
    spec = spec_of("network")
    p, x = parameters_of(spec), states_of()
    state = layer_step(p, start(spec, p, 2), x).state
    kept = state.clone()
    asked = states_of(seed=3)
    read = layer_read(p, state, asked)
    assert_same_state(state, kept)
    queries = project(p, state, asked).queries
    one = torch.nn.functional.gelu(queries[1, 0, 5] @ state.weights[0][1, 0]) @ state.weights[1][1, 0]
    torch.testing.assert_close(read[1, 5, :4], one)
    forgotten = dataclasses.replace(state, tails=torch.zeros_like(state.tails))
    assert not torch.allclose(read[:, 0], layer_read(p, forgotten, asked)[:, 0])


def test_a_matrix_starts_as_nothing() -> None:
    spec = spec_of("matrix")
    p = init_parameters(spec, WIDTH, 0)
    assert not bool(layer_read(p, start(spec, p, 2), states_of()).any())


@pytest.mark.parametrize("masked", [False, True])
def test_a_state_holds_on_to_nothing_but_itself_and_can_be_saved(masked: bool, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """No view into the piece that was read: the storage behind the tensors is no larger than they are."""
    files = pytest.importorskip("safetensors.torch")
    spec = spec_of("network")
    p, mask = parameters_of(spec), torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :3] = not masked
    state = layer_step(p, start(spec, p, 2), states_of(), mask=mask).state
    for name, tensor in state.flat().items():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name
    files.save_file(state.flat(), tmp_path / "state.safetensors", metadata=state.header())
    back = MemoryState.from_flat(files.load_file(tmp_path / "state.safetensors"), state.header(), spec)
    assert_same_state(back, state)


def test_half_precision_states_and_a_float32_memory() -> None:
    spec = spec_of("network")
    p = init_parameters(spec, WIDTH, 0)
    step = layer_step(p, start(spec, p, 2), states_of().bfloat16())
    assert step.read is not None
    assert step.read.dtype == torch.bfloat16
    assert step.state.weights[0].dtype == step.state.tails.dtype == torch.float32


def test_a_zero_vector_has_a_finite_gradient() -> None:
    spec = spec_of("network")
    p, x = parameters_of(spec), torch.zeros(1, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    read = layer_step(p, start(spec, p, 1), x).read
    assert read is not None
    (grad,) = torch.autograd.grad(read.sum(), x)
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("name", ["matrix", "network", "residual and norm"])
def test_a_long_stream_at_first_values(name: str) -> None:
    """100,000 tokens of noise through untrained parameters, in float32 and pieces that cut chunks, no clip: finite, and
    neither the memory nor what it says grows once it is full. The half-life is 1,000 tokens, so 100 of them pass."""
    spec = spec_of(name, heads=1, chunk=64)
    p = init_parameters(spec, WIDTH, 0, half_life=1000.0)
    generator = torch.Generator().manual_seed(2)
    state, norms, sizes = start(spec, p, 1), [], []
    with torch.no_grad():
        for _ in range(10):
            step = layer_step(p, state, torch.randn(1, 10_000, WIDTH, generator=generator))
            state = step.state
            state.check_finite()
            norms.append(float(torch.stack([w.square().sum() for w in state.weights]).sum().sqrt()))
            sizes.append(float(step.read.square().mean().sqrt()))  # type: ignore[union-attr]
    assert int(state.written) == 100_000
    assert max(norms[5:]) < 1.2 * max(norms[:5])
    assert max(sizes[5:]) < 1.2 * max(sizes[:5])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 5, WIDTH + 1), r"\[B, T, X\] = \[2, T, 6\]"),
        (torch.zeros(3, 5, WIDTH), r"got torch.float32 \[3, 5, 6\]"),
        (torch.zeros(2, 5, WIDTH, dtype=torch.int64), "got torch.int64"),
        (torch.zeros(2, WIDTH), r"got torch.float32 \[2, 6\]"),
    ],
)
def test_hidden_states_that_do_not_fit(x: torch.Tensor, message: str) -> None:
    spec = spec_of("network")
    p = init_parameters(spec, WIDTH, 0)
    for call in (layer_step, layer_read):
        with pytest.raises(ConfigError, match=message):
            call(p, start(spec, p, 2), x)


def test_parameters_of_another_memory() -> None:
    spec = spec_of("network")
    p = init_parameters(spec, WIDTH, 0)
    other = spec_of("silu, no momentum", conv=1)
    state = start(other, init_parameters(other, WIDTH, 0), 2)
    with pytest.raises(ConfigError, match=r"parameters.taps is None .* got \(4, 24\)") as caught:
        layer_step(p, state, torch.zeros(2, 3, WIDTH))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"momentum": 1.0}, "momentum is the η"), ({"rate": 0.2}, "rate is the θ"), ({"rate": 0.0}, "rate is the θ")],
)
def test_first_gates_that_cannot_be(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        init_parameters(spec_of("network"), WIDTH, 0, **fields)
