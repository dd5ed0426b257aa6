"""Merging low-rank changes: against slow versions entry by entry, against PEFT, and how far each is from the sum."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from twoclock.errors import ConfigError  # noqa: E402
from twoclock.nn.lowrank import LowRank  # noqa: E402
from twoclock.nn.merging import merge_error, merged, ties, trimmed  # noqa: E402

WEIGHTS = ([0.6, 0.4], [1.0, 1.0], [0.7, -0.5])
NAMES = ("up", "down")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def change(seed: int, *, rank: int = 3, scale: float = 1.5) -> LowRank:
    pairs = {n: (draw(seed + 10 * i, rank, 6), draw(seed + 10 * i + 5, 8, rank)) for i, n in enumerate(NAMES)}
    return LowRank(pairs, scale)


def ties_reference(tensors: list[torch.Tensor], weights: list[float], density: float) -> torch.Tensor:
    """Entry by entry, as TIES says it."""
    kept = []
    for tensor in tensors:
        values = sorted((abs(float(v)) for v in tensor.reshape(-1)), reverse=True)
        least = values[: int(density * len(values))]
        kept.append([float(v) if least and abs(float(v)) >= least[-1] else 0.0 for v in tensor.reshape(-1)])
    out = []
    for place in range(len(kept[0])):
        column = [row[place] for row in kept]
        sign = 1 if sum(column) >= 0 else -1
        agreeing = [(v, w) for v, w in zip(column, weights, strict=True) if v * sign > 0]
        out.append(sum(v * w for v, w in agreeing) / max(1, len(agreeing)))
    return torch.tensor(out).view_as(tensors[0])


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ties_is_the_slow_version(weights: list[float], density: float) -> None:
    some = [draw(1, 4, 6), draw(2, 4, 6)]
    assert torch.allclose(ties(some, weights, density), ties_reference(some, weights, density), atol=1e-6)


def test_ties_by_hand() -> None:
    one, other = torch.tensor([4.0, 1.0, -2.0, 3.0]), torch.tensor([2.0, -5.0, -1.0, -0.5])
    assert trimmed(one, 0.5).tolist() == [4.0, 0.0, 0.0, 3.0]
    assert ties([one, other], [1.0, 0.5], 0.5).tolist() == [(4.0 + 0.5 * 2.0) / 2, -2.5, 0.0, 3.0]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_cat_is_the_sum_and_linear_has_cross_terms(weights: list[float]) -> None:
    changes = [change(1), change(2, scale=0.5)]
    cat, linear = (merged(changes, weights, how) for how in ("cat", "linear"))
    for name in NAMES:
        exact = sum(
            w * c.scale * c.tensors[name][1] @ c.tensors[name][0] for c, w in zip(changes, weights, strict=True)
        )
        a, b = cat.tensors[name]
        assert torch.allclose(b @ a, exact, atol=1e-5)
        roots = [math.sqrt(abs(w * c.scale)) for c, w in zip(changes, weights, strict=True)]
        cross = sum(
            math.copysign(roots[j] * roots[k], weights[k]) * changes[j].tensors[name][1] @ changes[k].tensors[name][0]
            for j, k in ((0, 1), (1, 0))
        )
        a, b = linear.tensors[name]
        assert torch.allclose(b @ a, exact + cross, atol=1e-5)
    assert merge_error(changes, weights, cat) < 1e-6
    assert merge_error(changes, weights, linear) > 0.3
    assert merge_error(changes, weights, merged(changes, weights, "ties")) > 0.3


def test_one_change_alone_and_several_ranks() -> None:
    one = change(3)
    for how in ("cat", "linear"):
        assert merge_error([one], [1.0], merged([one], [1.0], how)) < 1e-6
    both = [one, change(4, rank=2)]
    assert merge_error(both, [1.0, 1.0], merged(both, [1.0, 1.0], "cat")) < 1e-6


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("how", ["cat", "linear", "ties"])
def test_peft_merges_to_the_same(how: str, weights: list[float]) -> None:
    peft = pytest.importorskip("peft")

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(6, 8), torch.nn.Linear(6, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(x) + self.down(x)

    changes = [change(1), change(2)]
    config = peft.LoraConfig(r=3, lora_alpha=4.5, target_modules=list(NAMES))
    model = peft.get_peft_model(Tiny(), config, adapter_name="0")
    model.add_adapter("1", config)
    with torch.no_grad():
        for k, one in enumerate(changes):
            for name, (a, b) in one.tensors.items():
                layer = getattr(model.base_model.model, name)
                layer.lora_A[str(k)].weight.copy_(a)
                layer.lora_B[str(k)].weight.copy_(b)
    more = {"density": 0.5} if how == "ties" else {}
    model.add_weighted_adapter(["0", "1"], weights, "m", combination_type=how, **more)
    ours = merged(changes, weights, how)
    for name in NAMES:
        layer = getattr(model.base_model.model, name)
        theirs = layer.scaling["m"] * layer.lora_B["m"].weight @ layer.lora_A["m"].weight
        a, b = ours.tensors[name]
        assert torch.allclose(b @ a, theirs, atol=1e-5)


def test_what_cannot_be_merged() -> None:
    one, other = change(1), change(2, rank=2)
    for changes, weights, how, density, told in (
        ([one, other], [1.0, 1.0], "linear", 0.5, "one rank"),
        ([one], [1.0, 2.0], "cat", 0.5, "1 changes and 2 weights"),
        ([], [], "cat", 0.5, "at least one"),
        ([one], [math.nan], "cat", 0.5, "finite"),
        ([one], [1.0], "tie", 0.5, "did you mean 'ties'"),
        ([one], [1.0], "ties", 0.0, "density"),
        ([one, LowRank({"up": one.tensors["up"]}, 1.0)], [1.0, 1.0], "cat", 0.5, "different modules"),
    ):
        with pytest.raises(ConfigError, match=told):
            merged(changes, weights, how, density=density)
