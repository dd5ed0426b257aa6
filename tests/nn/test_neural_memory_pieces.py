"""A text in pieces, cut anywhere, is the text as a whole; padding changes nothing; a state is a value."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from neural_memory_cases import (  # noqa: E402
    SPECS,
    Case,
    Kernel,
    assert_same_state,
    make_case,
    spec_of,
    tensors_of,
    weighed_sum,
)

from twoclock.nn.neural_memory import memory_step  # noqa: E402
from twoclock.nn.neural_memory_inputs import MemoryStep  # noqa: E402
from twoclock.nn.neural_memory_reference import memory_reference  # noqa: E402

both = pytest.mark.parametrize("kernel", [memory_reference, memory_step], ids=["reference", "chunks"])
LENGTH = 13
CUTS = {
    "token by token": list(range(1, LENGTH)),
    "one short of a chunk": [3, 6, 9, 12],
    "whole chunks": [4, 8],
    "one more than a chunk": [5, 10],
    "empty pieces too": [0, 2, 2, 7],
    "a head alone": [1],
}


def in_pieces(case: Case, kernel: Kernel, cuts: list[int], mask: torch.Tensor | None = None) -> MemoryStep:
    state, reads = case.state(), []
    for begin, end in zip([0, *cuts], [*cuts, LENGTH], strict=True):
        part = slice(begin, end)
        found = case.run(kernel, state, part, mask=None if mask is None else mask[:, part])
        state = found.state
        reads.append(found.read)
    return MemoryStep(torch.cat(reads, dim=2), state)  # type: ignore[arg-type]


@both
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", ["matrix", "network", "silu, no momentum", "read before, clipped"])
def test_pieces_are_the_whole(kernel: Kernel, name: str, cuts: list[int]) -> None:
    case = make_case(spec_of(name), length=LENGTH)
    whole, pieces = case.run(kernel), in_pieces(case, kernel, cuts)
    torch.testing.assert_close(pieces.read, whole.read, atol=1e-12, rtol=0)
    assert_same_state(pieces.state, whole.state, atol=1e-12)


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", SPECS)
def test_gradients_pass_through_the_pieces(name: str, cuts: list[int]) -> None:
    case = make_case(spec_of(name), length=LENGTH)
    leaves = case.leaves()
    for leaf in leaves.values():
        leaf.requires_grad_()
    whole = torch.autograd.grad(weighed_sum(case.run(memory_step)), list(leaves.values()))
    pieces = torch.autograd.grad(weighed_sum(in_pieces(case, memory_step, cuts)), list(leaves.values()))
    for leaf, a, b in zip(leaves, whole, pieces, strict=True):
        torch.testing.assert_close(b, a, atol=1e-9, rtol=1e-9, msg=lambda m, n=leaf: f"{n}: {m}")


@both
def test_rows_may_stand_at_different_places_of_their_chunks(kernel: Kernel) -> None:
    """Padding shifts the rows against each other; each still gets what its own tokens alone give."""
    case = make_case(spec_of("network"), rows=3, length=LENGTH)
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    mask[0, :5], mask[1, 7:9], mask[2] = False, False, torch.arange(LENGTH) % 3 == 1
    for cuts in CUTS.values():
        found = in_pieces(case, kernel, cuts, mask)
        assert found.read is not None
        for b in range(3):
            kept = mask[b]
            one = make_case(spec_of("network"), rows=3, length=LENGTH)
            for name in ("keys", "values", "queries", "rate", "momentum", "forget"):
                setattr(one, name, getattr(case, name)[b : b + 1][:, :, kept])
            alone = one.run(memory_reference)
            torch.testing.assert_close(found.read[b : b + 1][:, :, kept], alone.read, atol=1e-12, rtol=0)
            assert not bool(found.read[b][:, ~kept].any())
            assert_same_state(found.state.take([b]), alone.state, atol=1e-12)


@both
@pytest.mark.parametrize("name", SPECS)
def test_what_is_masked_changes_nothing_whatever_it_holds(kernel: Kernel, name: str) -> None:
    """NaN at the padding: the same bits in state, reads and gradients as with harmless padding."""
    spec = spec_of(name)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :4], mask[1, 9:] = False, False
    found = []
    for filling in (0.0, float("nan")):
        case = make_case(spec, length=LENGTH)
        for leaf in case.leaves().values():
            if leaf.shape[:3] == (2, spec.heads, LENGTH):
                leaf[0, :, :4], leaf[1, :, 9:] = filling, filling
        leaves = case.leaves()
        for leaf in leaves.values():
            leaf.requires_grad_()
        step = case.run(kernel, mask=mask)
        found.append((step, torch.autograd.grad(weighed_sum(step), list(leaves.values()))))
    (clean, clean_grads), (dirty, dirty_grads) = found
    assert torch.equal(clean.read, dirty.read)  # type: ignore[arg-type]
    assert_same_state(clean.state, dirty.state)
    for a, b in zip(clean_grads, dirty_grads, strict=True):
        assert torch.equal(a, b)


@both
def test_a_row_of_padding_keeps_its_state_to_the_bit(kernel: Kernel) -> None:
    """From the middle of a chunk too, beside a row that goes on."""
    case = make_case(spec_of("network"), length=LENGTH)
    before = case.run(kernel, part=slice(0, 6)).state
    mask = torch.tensor([[False] * 7, [True] * 7])
    after = case.run(kernel, before, slice(6, 13), mask=mask).state
    assert_same_state(after.take([0]), before.take([0]))
    assert not torch.equal(after.weights[0][1], before.weights[0][1])
    nothing = case.run(kernel, before, slice(6, 13), mask=torch.zeros(2, 7, dtype=torch.bool))
    assert_same_state(nothing.state, before)
    assert not bool(nothing.read.any())  # type: ignore[union-attr]


@both
def test_left_padding_gives_the_bits_of_the_text_alone(kernel: Kernel) -> None:
    case = make_case(spec_of("network"), rows=1, length=LENGTH)
    mask = torch.arange(LENGTH)[None] >= 5
    alone = case.run(kernel, part=slice(5, LENGTH))
    padded = case.run(kernel, mask=mask)
    assert_same_state(padded.state, alone.state)
    assert torch.equal(padded.read[:, :, 5:], alone.read)  # type: ignore[index, arg-type]


@both
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("cut", [0, 4, 6])
def test_the_state_given_stays_as_it_was(kernel: Kernel, mode, cut: int) -> None:  # type: ignore[no-untyped-def]
    """Rolling back is keeping the old value; two branches of one state do not touch each other."""
    case = make_case(spec_of("network"), length=24)
    with mode():
        start = case.run(kernel, part=slice(0, cut)).state
        kept = {name: tensor.clone() for name, tensor in tensors_of(start).items()}
        one = case.run(kernel, start, slice(6, 20)).state
        other = case.run(kernel, start, slice(9, 24)).state
        for name, tensor in tensors_of(start).items():
            assert torch.equal(tensor, kept[name]), name
        assert not torch.equal(one.weights[0], other.weights[0])
        assert_same_state(case.run(kernel, start, slice(6, 20)).state, one)


def test_values_do_not_depend_on_whether_gradients_are_kept() -> None:
    """Without them the chunks overwrite their own buffers: the same bits, the open chunk's base too."""
    for length in (8, 16, 23):
        case = make_case(spec_of("network"), length=length)
        for leaf in case.leaves().values():
            leaf.requires_grad_()
        kept = case.run(memory_step)
        with torch.no_grad():
            quiet = case.run(memory_step)
        assert torch.equal(kept.read, quiet.read)  # type: ignore[arg-type]
        assert_same_state(kept.state, quiet.state)


def test_a_detached_state_cuts_the_gradient() -> None:
    case = make_case(spec_of("network"), length=LENGTH)
    for leaf in case.leaves().values():
        leaf.requires_grad_()
    first = case.run(memory_step, part=slice(0, 6)).state
    assert all(w.requires_grad for w in first.weights)
    second = case.run(memory_step, first.detach(), slice(6, 13))
    (grad,) = torch.autograd.grad(second.read.sum(), case.keys)  # type: ignore[union-attr]
    assert not bool(grad[:, :, :6].any())
    assert bool(grad[:, :, 6:].any())
