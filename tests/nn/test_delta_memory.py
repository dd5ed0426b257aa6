"""The delta rule in blocks is the per-token reference: reads, states, telemetry and outer gradients."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from neural_memory_cases import Case, assert_same_state, make_case, weighed_sum  # noqa: E402

from twoclock.errors import ConfigError  # noqa: E402
from twoclock.nn import delta_memory  # noqa: E402
from twoclock.nn.delta_memory import delta_step, is_delta  # noqa: E402
from twoclock.nn.neural_memory_reference import memory_reference  # noqa: E402
from twoclock.nn.neural_memory_spec import MemorySpec  # noqa: E402

LENGTH = 13


def spec(**changes: Any) -> MemorySpec:
    return MemorySpec(**{"heads": 2, "width": 4, "depth": 1, "chunk": 1, "momentum": False} | changes)


@pytest.fixture(params=[3, 64], ids=["blocks of 3", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_memory, "BLOCK_TOKENS", request.param)


def masks() -> dict[str, torch.Tensor | None]:
    some = torch.ones(2, LENGTH, dtype=torch.bool)
    some[0, :5], some[1, 3:6] = False, False
    return {"all": None, "some": some, "none": torch.zeros(2, LENGTH, dtype=torch.bool)}


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("mask", masks().values(), ids=masks())
@pytest.mark.parametrize("read", ["after", "before"])
def test_blocks_are_the_reference(read: str, mask: torch.Tensor | None) -> None:
    case = make_case(spec(read=read), length=LENGTH)
    expected = case.run(memory_reference, mask=mask, telemetry=True)
    found = case.run(delta_step, mask=mask, telemetry=True)
    for name in ("read", "loss", "surprise"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-12, rtol=0, msg=name)
    assert_same_state(found.state, expected.state, atol=1e-12)


@pytest.mark.usefixtures("block")
def test_gradients_are_those_of_the_reference() -> None:
    case = make_case(spec(), length=LENGTH)
    leaves = case.leaves()
    for leaf in leaves.values():
        leaf.requires_grad_()
    expected = torch.autograd.grad(weighed_sum(case.run(memory_reference)), list(leaves.values()))
    found = torch.autograd.grad(weighed_sum(case.run(delta_step)), list(leaves.values()))
    for leaf, a, b in zip(leaves, found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9, msg=lambda m, n=leaf: f"{n}: {m}")


def test_pieces_are_the_whole() -> None:
    case = make_case(spec(), length=LENGTH)
    whole = case.run(delta_step)
    state, reads = case.state(), []
    for start, stop in ((0, 1), (1, 6), (6, 6), (6, LENGTH)):
        step = case.run(delta_step, state, slice(start, stop))
        state = step.state
        reads.append(step.read)
    torch.testing.assert_close(torch.cat(reads, dim=2), whole.read, atol=1e-12, rtol=0)
    assert_same_state(state, whole.state, atol=1e-12)


def test_one_token_by_hand() -> None:
    """From M = 0 a unit key k with value v and θ = 1/2 writes kᵀ v: the key then reads v, and M keeps 1 - α of it."""
    case = make_case(spec(heads=1, width=2), rows=1, length=2)
    case = Case(
        case.spec,
        keys=torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]).double(),
        values=torch.tensor([[[[3.0, 5.0], [0.0, 0.0]]]]).double(),
        queries=torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]).double(),
        rate=torch.full((1, 1, 2), 0.5).double(),
        momentum=None,
        forget=torch.tensor([[[0.0, 0.25]]]).double(),
        initial=(torch.zeros(1, 2, 2).double(),),
        gain=None,
    )
    expected = torch.tensor([[[[3.0, 5.0], [2.25, 3.75]]]]).double()
    torch.testing.assert_close(case.run(delta_step).read, expected)


def test_other_memories_are_refused() -> None:
    for changes in ({"depth": 2}, {"chunk": 4}, {"momentum": True}, {"norm": True}, {"clip": 1.0}):
        assert not is_delta(spec(**changes))
        with pytest.raises(ConfigError, match="the delta rule is"):
            make_case(spec(**changes)).run(delta_step)
