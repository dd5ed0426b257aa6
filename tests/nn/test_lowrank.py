"""Low-rank changes: what they add, and that nothing is left of them when they are gone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.lowrank import LowRank, low_rank_term, mounted  # noqa: E402


def two_layers() -> torch.nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5, bias=False))


def change(seed: int = 1, scale: float = 0.7, rank: int = 2) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    shapes = {"0": (8, 6), "2": (5, 8)}
    tensors = {
        n: (torch.randn(rank, i, generator=g), torch.randn(o, rank, generator=g)) for n, (o, i) in shapes.items()
    }
    return LowRank(tensors, scale)


INPUT = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(9))


def test_the_term_is_scale_b_a_x() -> None:
    a, b = change().tensors["0"]
    torch.testing.assert_close(low_rank_term(INPUT, a, b, 0.7), INPUT @ (0.7 * b @ a).T)


def test_mounted_is_the_model_with_merged_weights() -> None:
    model, delta = two_layers(), change()
    merged = two_layers()
    with torch.no_grad():
        for name, (a, b) in delta.tensors.items():
            merged.get_submodule(name).weight += delta.scale * b @ a
    with mounted(dict(model.named_modules()), delta):
        torch.testing.assert_close(model(INPUT), merged(INPUT))


def test_unmounted_is_the_same_bits() -> None:
    model = two_layers()
    before, weights = model(INPUT), {n: t.clone() for n, t in model.state_dict().items()}
    modules = dict(model.named_modules())
    with mounted(modules, change()):
        assert not torch.equal(model(INPUT), before)
    assert torch.equal(model(INPUT), before)
    with mounted(modules, None):
        assert torch.equal(model(INPUT), before)
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_zero_b_adds_nothing() -> None:
    model, delta = two_layers(), change()
    zero = LowRank({n: (a, torch.zeros_like(b)) for n, (a, b) in delta.tensors.items()}, delta.scale)
    before = model(INPUT)
    with mounted(dict(model.named_modules()), zero):
        assert torch.equal(model(INPUT), before)


def test_an_error_inside_leaves_nothing_mounted() -> None:
    model = two_layers()
    before = model(INPUT)
    with pytest.raises(RuntimeError, match="inside"), mounted(dict(model.named_modules()), change()):
        raise RuntimeError("inside")
    assert torch.equal(model(INPUT), before)
    # One layer of the change is not there: the one already mounted is taken off again.
    with pytest.raises(KeyError), mounted({"0": model[0]}, change()):
        pass
    assert torch.equal(model(INPUT), before)


def test_gradients_reach_the_factors_and_not_the_base() -> None:
    model, delta = two_layers().requires_grad_(False), change()
    leaves = {n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in delta.tensors.items()}
    with mounted(dict(model.named_modules()), LowRank(leaves, delta.scale)):
        model(INPUT).square().sum().backward()
    merged = two_layers()
    with torch.no_grad():
        for name, (a, b) in delta.tensors.items():
            merged.get_submodule(name).weight += delta.scale * b @ a
    merged(INPUT).square().sum().backward()
    for name, (a, b) in delta.tensors.items():
        whole = merged.get_submodule(name).weight.grad
        torch.testing.assert_close(leaves[name][0].grad, delta.scale * b.T @ whole, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(leaves[name][1].grad, delta.scale * whole @ a.T, rtol=1e-4, atol=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_float32_factors_on_a_bfloat16_model() -> None:
    model, delta = two_layers().bfloat16(), change()
    leaves = {n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in delta.tensors.items()}
    with mounted(dict(model.named_modules()), LowRank(leaves, delta.scale)):
        out = model(INPUT.bfloat16())
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for pair in leaves.values() for t in pair)
