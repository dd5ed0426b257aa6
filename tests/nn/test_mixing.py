"""Mixtures of changes of singular values as equations: the mixture's matrices are the mixture of the experts'."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from twoclock.errors import ConfigError, NumericsError  # noqa: E402
from twoclock.nn.mixing import amounts_by_module, mixed, places  # noqa: E402
from twoclock.nn.summed import Summed  # noqa: E402
from twoclock.nn.svf import Factoring, SingularChange, factorise, materialised  # noqa: E402

NAMES = ("model.layers.2.mlp.up", "model.layers.2.mlp.down", "model.layers.10.mlp.up", "head")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FACTORS = {name: factorise(draw(i, 7, 5)) for i, name in enumerate(NAMES)}


def expert(seed: int, spectrum: str = "s") -> SingularChange:
    return SingularChange({n: draw(seed + i, 5) for i, n in enumerate(NAMES)}, Factoring(), spectrum)


def everywhere(change: SingularChange, amount: float) -> dict[str, float]:
    return amounts_by_module(change, "expert", [amount])


@pytest.mark.parametrize("count", range(1, 9))
def test_the_mixtures_matrices_are_the_mixture_of_the_matrices(count: int) -> None:
    """Whatever the amounts: below 0, above 1, with any sum."""
    experts = [expert(20 * k) for k in range(count)]
    amounts = (2.5 * draw(99, count)).tolist()
    mixture = mixed([(e, everywhere(e, a)) for e, a in zip(experts, amounts, strict=True)])
    assert isinstance(mixture, SingularChange)
    for name in NAMES:
        ours = materialised(FACTORS[name], mixture.offsets[name])
        theirs = sum(a * materialised(FACTORS[name], e.offsets[name]) for e, a in zip(experts, amounts, strict=True))
        assert torch.allclose(ours, theirs, atol=2e-5)


def test_nothing_of_any_is_the_base_and_one_alone_is_itself() -> None:
    one, other = expert(1), expert(2)
    assert mixed([]) is None
    assert mixed([(one, everywhere(one, 0.0)), (other, everywhere(other, 0.0))]) is None
    alone = mixed([(one, everywhere(one, 1.0)), (other, everywhere(other, 0.0))])
    assert all(alone.offsets[n] is one.offsets[n] for n in NAMES)


def test_an_amount_for_each_layer_or_vector() -> None:
    one = expert(1)
    assert places(one, "expert") == ("*",)
    assert places(one, "layer") == ("2", "10", "head")
    assert set(places(one, "vector")) == set(NAMES)
    by_layer = mixed([(one, amounts_by_module(one, "layer", [0.5, 2.0, 0.0]))])
    for name, amount in zip(NAMES, (0.5, 0.5, 2.0, 0.0), strict=True):
        assert torch.equal(by_layer.offsets[name], one.offsets[name] * amount)
    order = places(one, "vector")
    by_vector = mixed([(one, amounts_by_module(one, "vector", range(1, 5)))])
    for amount, name in enumerate(order, 1):
        assert torch.equal(by_vector.offsets[name], one.offsets[name] * amount)


def test_experts_of_other_layers_stand_beside_each_other() -> None:
    one, other = expert(1), expert(2, "t")
    found = mixed([(one, everywhere(one, 0.5)), (other, everywhere(other, 0.5)), (one, everywhere(one, 0.25))])
    assert isinstance(found, Summed)
    first, second = found.parts
    assert (first.spectrum, second.spectrum) == ("s", "t")
    assert torch.allclose(first.offsets[NAMES[0]], 0.75 * one.offsets[NAMES[0]])


def test_what_is_no_mixture() -> None:
    one = expert(1)
    with pytest.raises(ConfigError, match="has 3 amounts; got 2"):
        amounts_by_module(one, "layer", [1.0, 2.0])
    with pytest.raises(ConfigError, match="did you mean 'layer'"):
        places(one, "layers")
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(NumericsError, match="cannot be mixed in"):
            amounts_by_module(one, "expert", [wrong])
    with pytest.raises(NumericsError, match="NaN or infinity"):
        mixed([(one, everywhere(one, 1e38)), (one, everywhere(one, 3e38))])
