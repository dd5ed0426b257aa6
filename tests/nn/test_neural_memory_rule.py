"""The memory's rule itself: worked by hand, against plain loops over numbers, and its special cases.

Both forms are held to each of these, so that they cannot be wrong together.
"""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from neural_memory_cases import SPECS, Kernel, assert_same_state, make_case, spec_of  # noqa: E402

from twoclock.nn.neural_memory import memory_read, memory_step  # noqa: E402
from twoclock.nn.neural_memory_reference import memory_reference  # noqa: E402
from twoclock.nn.neural_memory_spec import Gates, MemorySpec  # noqa: E402
from twoclock.nn.neural_memory_state import MemoryState, init_state  # noqa: E402

both = pytest.mark.parametrize("kernel", [memory_reference, memory_step], ids=["reference", "chunks"])


def rows(*values: list[float]) -> torch.Tensor:
    """[1, 1, T, D] of one row and one head."""
    return torch.tensor(values, dtype=torch.float64)[None, None]


def gate(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[None, None]


def matrix(weights: list[list[float]], **changes: object) -> MemoryState:
    spec = MemorySpec(**{"heads": 1, "width": 2, "depth": 1, "chunk": 1} | changes)  # type: ignore[arg-type]
    return init_state(spec, [torch.tensor(weights, dtype=torch.float64)[None]], 1)


@both
def test_two_tokens_by_hand(kernel: Kernel) -> None:
    """M_0 = 0. Token 1: k = (1,0), v = (2,4), θ = .25: u = 2kᵀ(0 - v), S = -.25 u = [[1,2],[0,0]], α = .5: M = S.
    Token 2: k = (0,1), v = (1,0), θ = .5, η = .5, α = .25: u = 2kᵀ(kM - v) = [[0,0],[-2,0]],
    S = .5 S - .5 u = [[.5,1],[1,0]], M = .75 M + S = [[1.25,2.5],[1,0]]."""
    found = kernel(
        matrix([[0, 0], [0, 0]]),
        rows([1, 0], [0, 1]),
        rows([2, 4], [1, 0]),
        rows([3, 1], [1, 1]),
        Gates(gate(0.25, 0.5), gate(0.9, 0.5), gate(0.5, 0.25)),
        telemetry=True,
    )
    torch.testing.assert_close(found.state.weights[0][0, 0], torch.tensor([[1.25, 2.5], [1, 0]]).double())
    torch.testing.assert_close(found.state.surprise[0][0, 0], torch.tensor([[0.5, 1], [1, 0]]).double())
    torch.testing.assert_close(found.read, rows([3, 6], [2.25, 2.5]))
    torch.testing.assert_close(found.loss, gate(20.0, 1.0))
    torch.testing.assert_close(found.surprise, gate(math.sqrt(80.0), 2.0))


@both
def test_a_chunk_takes_its_gradients_at_its_first_weights(kernel: Kernel) -> None:
    """The same key twice in one chunk: both steps go by the error before the chunk, θ = .25 with value 4: 2 + 2 = 4,
    where token by token it would be 2 + 1 = 3. The third token begins a chunk and sees the 4: no error."""
    state = matrix([[0, 0], [0, 0]], chunk=2, momentum=False)
    key, value = rows([1, 0], [1, 0], [1, 0]), rows([4, 0], [4, 0], [4, 0])
    found = kernel(state, key, value, key, Gates(gate(0.25, 0.25, 0.25), None, gate(0, 0, 0)), telemetry=True)
    torch.testing.assert_close(found.read[..., 0], gate(2.0, 4.0, 4.0))
    torch.testing.assert_close(found.loss, gate(16.0, 16.0, 0.0))
    single = kernel(
        matrix([[0, 0], [0, 0]], momentum=False), key, value, key, Gates(gate(0.25, 0.25, 0.25), None, gate(0, 0, 0))
    )
    torch.testing.assert_close(single.read[..., 0], gate(2.0, 3.0, 3.5))


@both
def test_the_token_reads_before_its_own_write_where_the_spec_says_so(kernel: Kernel) -> None:
    state = matrix([[0, 0], [0, 0]], chunk=2, momentum=False, read="before")
    key, value = rows([1, 0], [1, 0], [1, 0]), rows([4, 0], [4, 0], [4, 0])
    found = kernel(state, key, value, key, Gates(gate(0.25, 0.25, 0.25), None, gate(0, 0, 0)))
    torch.testing.assert_close(found.read[..., 0], gate(0.0, 2.0, 4.0))


@both
def test_without_momentum_a_matrix_is_the_delta_rule(kernel: Kernel) -> None:
    """M_t = (1-α)M_{t-1} - β kᵀ(kM_{t-1} - v) with β = 2θ: DeltaNet, and gated where α > 0, up to where the decay
    stands (Titans takes the error before it)."""
    case = make_case(spec_of("matrix", chunk=1, momentum=False), rows=1)
    found = case.run(kernel)
    weights = case.initial[0].clone()
    for t in range(case.keys.shape[2]):
        for h in range(2):
            k, v = case.keys[0, h, t], case.values[0, h, t]
            error = k @ weights[h] - v
            weights[h] = (1 - case.forget[0, h, t]) * weights[h] - 2 * case.rate[0, h, t] * torch.outer(k, error)
            torch.testing.assert_close(found.read[0, h, t], case.queries[0, h, t] @ weights[h])
    torch.testing.assert_close(found.state.weights[0][0], weights)


@both
def test_momentum_of_zero_is_no_momentum(kernel: Kernel) -> None:
    case = make_case(spec_of("network"))
    assert case.momentum is not None
    case.momentum.zero_()
    with_it = case.run(kernel)
    case.spec, case.momentum = spec_of("network", momentum=False), None
    without = case.run(kernel)
    torch.testing.assert_close(with_it.read, without.read, atol=1e-13, rtol=0)
    for a, b in zip(with_it.state.weights, without.state.weights, strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=0)
    assert without.state.surprise == ()


@both
@pytest.mark.parametrize("name", ["network", "residual and norm"])
def test_a_network_against_plain_loops(kernel: Kernel, name: str) -> None:
    """One head, token by token, with gradients by finite differences of the loss: no derivative is shared."""
    spec = spec_of(name, heads=1, width=2, chunk=3)
    case = make_case(spec, rows=1, length=5)
    assert case.momentum is not None
    found = case.run(kernel)
    weights = [w[0].clone() for w in case.initial]
    surprise = [torch.zeros_like(w) for w in weights]
    base = weights
    for t in range(5):
        base = [w.clone() for w in weights] if t % spec.chunk == 0 else base
        k, v = case.keys[0, 0, t], case.values[0, 0, t]
        gradient = [torch.zeros_like(w) for w in base]
        for n, weight in enumerate(base):
            for place in range(weight.numel()):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = [w.clone() for w in base]
                    moved[n].view(-1)[place] += step
                    ends.append(
                        sum((x - y) ** 2 for x, y in zip(plain(moved, k, case.gain, spec), v.tolist(), strict=True))
                    )
                gradient[n].view(-1)[place] = (ends[0] - ends[1]) / 2e-5
        rate, eta, alpha = (float(g[0, 0, t]) for g in (case.rate, case.momentum, case.forget))
        surprise = [eta * s - rate * u for s, u in zip(surprise, gradient, strict=True)]
        weights = [(1 - alpha) * w + s for w, s in zip(weights, surprise, strict=True)]
        out = torch.tensor(plain(weights, case.queries[0, 0, t], case.gain, spec), dtype=torch.float64)
        torch.testing.assert_close(found.read[0, 0, t], out, atol=1e-6, rtol=0)


def plain(weights: list[torch.Tensor], x: torch.Tensor, gain: torch.Tensor | None, spec: MemorySpec) -> list[float]:
    """M(x) in Python numbers."""
    a = x.tolist()
    for n, w in enumerate(weights):
        if n:
            a = [z * 0.5 * (1 + math.erf(z / math.sqrt(2))) for z in a]
        a = [sum(a[i] * float(w[i, o]) for i in range(len(a))) for o in range(w.shape[1])]
    if spec.norm:
        assert gain is not None
        mean = sum(a) / len(a)
        spread = math.sqrt(sum((z - mean) ** 2 for z in a) / len(a) + 1e-5)
        a = [(z - mean) / spread * float(g) for z, g in zip(a, gain[0], strict=True)]
    return [z + y for z, y in zip(a, x.tolist(), strict=True)] if spec.residual else a


@both
@pytest.mark.parametrize("name", SPECS)
def test_a_rate_of_zero_leaves_the_memory_to_the_bit(kernel: Kernel, name: str) -> None:
    case = make_case(spec_of(name))
    case.rate.zero_()
    case.forget.zero_()
    found = case.run(kernel)
    before = case.state()
    for old, new in zip(before.weights, found.state.weights, strict=True):
        assert torch.equal(old, new)
    assert not any(bool(s.any()) for s in found.state.surprise)
    torch.testing.assert_close(found.read, memory_read(before, case.queries, gain=case.gain), atol=1e-14, rtol=1e-13)


@both
@pytest.mark.parametrize("momentum", [True, False])
def test_forgetting_all_leaves_only_the_last_surprise(kernel: Kernel, momentum: bool) -> None:
    """α = 1 at a token: M = S there, whatever was before; with θ = η = 0 too, the memory is empty."""
    case = make_case(spec_of("network", chunk=4, momentum=momentum), length=7)
    case.forget[:, :, 5] = 1.0
    found = case.run(kernel, part=slice(0, 6))
    if momentum:
        for weight, surprise in zip(found.state.weights, found.state.surprise, strict=True):
            torch.testing.assert_close(weight, surprise, atol=1e-14, rtol=0)
    case.rate[:, :, 5] = 0.0
    if case.momentum is not None:
        case.momentum[:, :, 5] = 0.0
    for weight in case.run(kernel, part=slice(0, 6)).state.weights:
        assert not bool(weight.any())


@both
def test_a_clip_scales_the_whole_gradient_of_a_head(kernel: Kernel) -> None:
    """Without momentum and forgetting the change of one token is -θu: as long as θ · clip, in the same direction."""
    whole, clipped = (make_case(spec_of("network", momentum=False, clip=clip), length=1) for clip in (None, 0.01))
    changes = []
    for case in (whole, clipped):
        case.forget.zero_()
        found = case.run(kernel, telemetry=True)
        parts = [(n - o).flatten(2) for n, o in zip(found.state.weights, case.state().weights, strict=True)]
        changes.append(torch.cat(parts, dim=2))
        assert float(found.surprise.min()) > 0.01
        torch.testing.assert_close(found.surprise[..., 0] * case.rate[..., 0], whole_norm(changes[0]))
    torch.testing.assert_close(whole_norm(changes[1]), 0.01 * clipped.rate[..., 0])
    torch.testing.assert_close(
        torch.nn.functional.normalize(changes[0], dim=2), torch.nn.functional.normalize(changes[1], dim=2)
    )
    wide = make_case(spec_of("network", momentum=False, clip=1e6), length=1)
    wide.forget.zero_()
    assert_same_state_values(wide.run(kernel).state, whole.run(kernel).state)


def whole_norm(change: torch.Tensor) -> torch.Tensor:
    return change.square().sum(2).sqrt()


def assert_same_state_values(a: MemoryState, b: MemoryState) -> None:
    for left, right in zip(a.weights, b.weights, strict=True):
        assert torch.equal(left, right)


@both
def test_nothing_read_is_nothing_changed(kernel: Kernel) -> None:
    case = make_case(spec_of("network"))
    found = case.run(kernel, part=slice(0, 0), telemetry=True)
    assert_same_state(found.state, case.state())
    assert found.read.shape == (2, 2, 0, 4)
    assert found.loss.shape == found.surprise.shape == (2, 2, 0)


@both
def test_writing_alone_leaves_the_same_state(kernel: Kernel) -> None:
    case = make_case(spec_of("network"))
    gates = Gates(case.rate, case.momentum, case.forget)
    written = kernel(case.state(), case.keys, case.values, None, gates)
    assert written.read is None
    assert_same_state(written.state, case.run(kernel).state)


def test_reading_alone_is_the_network_as_it_stands() -> None:
    case = make_case(spec_of("residual and norm"))
    state = case.run(memory_step).state
    read = memory_read(state, case.queries, gain=case.gain)
    for b in range(2):
        for h in range(2):
            weights = [w[b, h] for w in state.weights]
            expected = plain(weights, case.queries[b, h, 3], case.gain[h : h + 1], case.spec)  # type: ignore[index]
            torch.testing.assert_close(read[b, h, 3], torch.tensor(expected, dtype=torch.float64))
