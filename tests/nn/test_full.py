"""Whole-parameter changes: what they are, gradients through them, and that nothing is left of them afterwards."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.full import FullChange, changed_weights, in_place_of  # noqa: E402


class Tied(torch.nn.Module):
    """An embedding whose matrix is the head's, as in many small models."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = torch.nn.Embedding(7, 4)
            self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(tokens)))


TOKENS = torch.tensor([[0, 3, 6], [2, 2, 1]])


def change(model: torch.nn.Module, seed: int = 1) -> FullChange:
    g = torch.Generator().manual_seed(seed)
    return FullChange({n: 0.3 * torch.randn(p.shape, generator=g) for n, p in model.named_parameters()})


def test_a_tied_matrix_changes_in_both_places() -> None:
    model, merged = Tied(), Tied()
    delta = change(model)
    assert list(delta.tensors) == ["embed.weight"]
    with torch.no_grad():
        merged.embed.weight += delta.tensors["embed.weight"]
    with in_place_of(model, changed_weights(model, delta)):
        assert model.head.weight is model.embed.weight
        torch.testing.assert_close(model(TOKENS), merged(TOKENS), rtol=0, atol=0)


def test_afterwards_the_same_parameters_stand_there() -> None:
    model = Tied()
    own, before = model.embed.weight, model(TOKENS)
    weights = changed_weights(model, change(model))
    with pytest.raises(IndexError), in_place_of(model, weights):
        model(torch.tensor([99]))  # fails inside, and everything is put back all the same
    with in_place_of(model, weights):
        assert not torch.equal(model(TOKENS), before)
    assert model.embed.weight is own
    assert model.head.weight is own
    assert torch.equal(model(TOKENS), before)


def test_gradients_are_those_of_the_weights_themselves() -> None:
    model, plain = Tied(), Tied()
    leaves = {n: torch.zeros_like(p).requires_grad_() for n, p in model.named_parameters()}
    model.requires_grad_(False)
    with in_place_of(model, changed_weights(model, FullChange(leaves))):
        model(TOKENS).square().sum().backward()
    plain(TOKENS).square().sum().backward()
    torch.testing.assert_close(leaves["embed.weight"].grad, plain.embed.weight.grad)
    assert model.embed.weight.grad is None


def test_a_change_too_small_for_the_dtype_adds_up_outside_it() -> None:
    """In bfloat16 1 + 0.001 is 1: ten such steps must be seen all the same."""
    model = torch.nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    small = FullChange({"weight": torch.full((2, 2), 0.001)})
    assert torch.equal(changed_weights(model, small)["weight"], model.weight)
    ten = FullChange({"weight": 10 * small.tensors["weight"]})
    assert float(changed_weights(model, ten)["weight"][0, 0]) > 1.0
