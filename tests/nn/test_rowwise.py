"""Many changes in one pass: each row against the model with that row's own weights, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.lowrank import LowRank, low_rank_terms  # noqa: E402
from twoclock.nn.rowwise import mounted_groups, mounted_rows  # noqa: E402
from twoclock.nn.svf import Factoring, SingularChange, factorise, materialised, singular_terms  # noqa: E402

SHAPES = {"0": (8, 6), "2": (5, 8)}
INPUT = torch.randn(9, 6, generator=torch.Generator().manual_seed(9))
OWNERS = [3, 0, 1, 4, 2, 0, 1, 4, 3]


def layers() -> torch.nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5, bias=False))


FACTORS = {name: factorise(layers().get_submodule(name).weight) for name in SHAPES}


def svf(seed: int, only: str = "") -> SingularChange:
    g = torch.Generator().manual_seed(seed)
    offsets = {n: 0.4 * torch.randn(len(f.s), generator=g) for n, f in FACTORS.items() if only in (n, "")}
    return SingularChange(offsets, Factoring(), "id")


def lora(seed: int, rank: int = 2, only: str = "") -> LowRank:
    g = torch.Generator().manual_seed(seed)
    pairs = {
        n: (torch.randn(rank, i, generator=g), torch.randn(o, rank, generator=g))
        for n, (o, i) in SHAPES.items()
        if only in (n, "")
    }
    return LowRank(pairs, 0.3)


Change = LowRank | SingularChange | None
KINDS: dict[str, list[Change]] = {
    "svf": [None, svf(1), svf(2), svf(3), svf(4)],
    "lora": [None, lora(1), lora(2, rank=3), lora(3, rank=1), lora(4)],
    "both": [None, svf(1), lora(2), svf(3), lora(4, rank=1)],
    "other layers": [None, svf(1, only="0"), svf(2, only="2"), lora(3, only="2"), svf(4)],
    "none is first of several": [None, None, svf(2), lora(3), None],
}


def terms(model: torch.nn.Module, change: Change) -> Mapping[str, Any]:
    if change is None:
        return {}
    if isinstance(change, LowRank):
        return low_rank_terms(dict(model.named_modules()), change)
    return singular_terms(change, FACTORS)


def merged(change: Change) -> torch.nn.Sequential:
    """The model whose weights carry the change."""
    model = layers()
    with torch.no_grad():
        if isinstance(change, LowRank):
            for name, (a, b) in change.tensors.items():
                model.get_submodule(name).weight += change.scale * b @ a
        elif change is not None:
            for name, offset in change.offsets.items():
                model.get_submodule(name).weight += materialised(FACTORS[name], offset)
    return model


@pytest.mark.parametrize("bare", [False, True], ids=["delta", "bare"])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_each_row_is_the_model_with_its_own_weights(changes: list[Change], bare: bool) -> None:
    model = layers()
    with torch.no_grad(), mounted_rows(dict(model.named_modules()), [terms(model, c) for c in changes], bare=bare) as r:
        for owners in (OWNERS, [1] * 9, [0] * 9, [4, 3] * 4 + [4]):
            r.assign(owners)
            out = model(INPUT)
            for row, owner in enumerate(owners):
                torch.testing.assert_close(out[row], merged(changes[owner])(INPUT[row]), atol=2e-5, rtol=2e-5)
        r.assign(2)
        torch.testing.assert_close(model(INPUT[:4]), merged(changes[2])(INPUT[:4]), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_rows_without_a_change_are_the_bits_of_the_base(changes: list[Change]) -> None:
    model = layers()
    with torch.no_grad():
        before = model(INPUT)
        # Where SVF rows go without the base's product, the others are a product of their own.
        others = [n for n, owner in enumerate(OWNERS) if not isinstance(changes[owner], SingularChange)]
        alone = model(INPUT[others])[[others.index(1), others.index(5)]]
        for bare in (False, True):
            with mounted_rows(dict(model.named_modules()), [terms(model, c) for c in changes], bare=bare) as rows:
                rows.assign(OWNERS)
                out = model(INPUT)
                assert torch.equal(out[[1, 5]], before[[1, 5]]) or (bare and torch.equal(out[[1, 5]], alone))
                rows.assign([0] * 9)
                assert torch.equal(model(INPUT), before)
        assert torch.equal(model(INPUT), before)


def test_a_row_has_several_tokens_where_the_input_has_three_axes() -> None:
    model, changes = layers(), KINDS["both"]
    x = INPUT[:6].view(2, 3, 6)
    with torch.no_grad(), mounted_rows(dict(model.named_modules()), [terms(model, c) for c in changes]) as rows:
        rows.assign([1, 1, 1, 2, 2, 2])
        out = model(x)
    for row, owner in enumerate((1, 2)):
        torch.testing.assert_close(out[row], merged(changes[owner])(x[row]), atol=2e-5, rtol=2e-5)


def test_gradients_reach_each_rows_own_change() -> None:
    model = layers().requires_grad_(False)
    weight = torch.randn(9, 5, generator=torch.Generator().manual_seed(3))

    def leaves() -> list[SingularChange]:
        return [
            SingularChange({n: t.clone().requires_grad_() for n, t in svf(k).offsets.items()}, Factoring(), "id")
            for k in (1, 2)
        ]

    together, alone = leaves(), leaves()
    owners = [0, 1, 2, 2, 1, 0, 1, 2, 1]
    modules = dict(model.named_modules())
    with mounted_rows(modules, [{}, *(singular_terms(c, FACTORS) for c in together)]) as rows:
        rows.assign(owners)
        (model(INPUT) * weight).sum().backward()
    for k, change in enumerate(alone, start=1):
        mine = [n for n, o in enumerate(owners) if o == k]
        with mounted_rows(modules, [singular_terms(change, FACTORS)]) as rows:
            rows.assign(0)
            (model(INPUT[mine]) * weight[mine]).sum().backward()
        for name, offset in change.offsets.items():
            assert offset.grad is not None
            assert bool((offset.grad != 0).any())
            torch.testing.assert_close(together[k - 1].offsets[name].grad, offset.grad, atol=1e-5, rtol=1e-4)


def test_what_is_refused_and_nothing_is_left_behind() -> None:
    model = layers()
    modules = dict(model.named_modules())
    before = model(INPUT)
    some = [terms(model, c) for c in KINDS["both"]]
    with mounted_rows(modules, some) as rows:
        assert mounted_groups(model[0]) is not None
        with pytest.raises(ValueError, match=r"no rows were assigned .* call rows.assign\(owners\)"):
            model(INPUT)
        rows.assign([1, 2])
        with pytest.raises(ValueError, match="a pass has 9 rows, but 2 were assigned"):
            model(INPUT)
        for wrong, said in (([0, 5], "change 5, and there are 5"), ([-1, 0], "change -1"), (7, "change 7")):
            with pytest.raises(ValueError, match=said):
                rows.assign(wrong)
        with pytest.raises(ValueError, match="someone else's already"), mounted_rows(modules, some):
            pass
        rows.assign(OWNERS)
        assert not torch.equal(model(INPUT), before)
    with pytest.raises(RuntimeError, match="inside"), mounted_rows(modules, some):
        raise RuntimeError("inside")
    with pytest.raises(KeyError), mounted_rows({"0": model[0]}, some):
        pass
    assert not any("forward" in vars(m) for m in model.modules())
    assert mounted_groups(model[0]) is None
    assert torch.equal(model(INPUT), before)
    with mounted_rows(modules, [{}, {}]) as rows:
        rows.assign([0, 1] * 4 + [0])
        assert torch.equal(model(INPUT), before)


def test_a_pass_of_no_rows() -> None:
    model = layers()
    for bare in (False, True):
        with mounted_rows(dict(model.named_modules()), [terms(model, c) for c in KINDS["both"]], bare=bare) as rows:
            rows.assign([])
            assert model(INPUT[:0]).shape == (0, 5)


def test_two_factorings_of_one_base_in_one_batch() -> None:
    """One product can stand in the base's place, so both are added to it."""
    model = layers()
    part = {n: factorise(model.get_submodule(n).weight, Factoring(rank=2)) for n in SHAPES}
    cut = SingularChange({n: t[:2] for n, t in svf(5).offsets.items()}, Factoring(rank=2), "part")
    some = [{}, singular_terms(svf(1), FACTORS), singular_terms(cut, part)]
    with torch.no_grad(), mounted_rows(dict(model.named_modules()), some, bare=True) as rows:
        rows.assign([0, 1, 2] * 3)
        out = model(INPUT)
    whole = {n: torch.cat([t[:2], torch.zeros(len(FACTORS[n].s) - 2)]) for n, t in svf(5).offsets.items()}
    for row in range(9):
        change = [None, svf(1), SingularChange(whole, Factoring(), "id")][row % 3]
        torch.testing.assert_close(out[row], merged(change)(INPUT[row]), atol=2e-5, rtol=2e-5)
