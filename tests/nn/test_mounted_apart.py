"""Several low-rank changes in one pass, each on its own tokens; and what a module says of the change it carries."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.lowrank import LowRank, mounted, mounted_apart, mounted_change  # noqa: E402

SHAPES = {"0": (8, 6), "2": (5, 8)}
INPUT = torch.randn(2, 11, 6, generator=torch.Generator().manual_seed(9))
PARTS = (slice(0, 4), slice(4, 5), slice(5, 11))


def layers() -> torch.nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5, bias=False))


def change(seed: int, *, scale: float = 0.7, rank: int = 2, only: str = "") -> LowRank:
    g = torch.Generator().manual_seed(seed)
    tensors = {
        n: (torch.randn(rank, i, generator=g), torch.randn(o, rank, generator=g))
        for n, (o, i) in SHAPES.items()
        if only in (n, "")
    }
    return LowRank(tensors, scale)


CHANGES: dict[str, list[LowRank | None]] = {
    "all": [change(1), change(2, scale=1.9, rank=3), change(3, rank=1)],
    "none in the middle": [change(1), None, change(3)],
    "one only": [None, None, change(3)],
    "different layers": [change(1, only="0"), change(2, only="2"), change(3)],
}


def merged(delta: LowRank | None) -> torch.nn.Sequential:
    """The model whose weights carry the change."""
    model = layers()
    with torch.no_grad():
        for name, (a, b) in (delta.tensors if delta else {}).items():
            model.get_submodule(name).weight += delta.scale * b @ a
    return model


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_each_slice_is_the_model_with_its_own_weights(changes: list[LowRank | None], gradients: bool) -> None:
    model = layers()
    with (
        torch.set_grad_enabled(gradients),
        mounted_apart(dict(model.named_modules()), list(zip(PARTS, changes, strict=True))),
    ):
        out = model(INPUT)
    for part, delta in zip(PARTS, changes, strict=True):
        torch.testing.assert_close(out[:, part], merged(delta)(INPUT[:, part]), atol=1e-5, rtol=1e-5)
    assert out.requires_grad == gradients


def test_a_slice_without_a_change_is_the_same_bits() -> None:
    model = layers()
    before = model(INPUT)
    with mounted_apart(dict(model.named_modules()), [(PARTS[0], None), (PARTS[2], change(1))]):
        out = model(INPUT)
    assert torch.equal(out[:, :5], before[:, :5])
    assert not torch.allclose(out[:, 5:], before[:, 5:])


def test_gradients_are_those_of_each_slice_alone() -> None:
    model = layers().requires_grad_(False)
    modules = dict(model.named_modules())
    weight = torch.randn(2, 11, 5, generator=torch.Generator().manual_seed(3))

    def leaves() -> list[LowRank]:
        return [
            LowRank(
                {n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in c.tensors.items()}, 0.7
            )
            for c in (change(1), change(2), change(3))
        ]

    together, alone = leaves(), leaves()
    one, other = INPUT.clone().requires_grad_(), INPUT.clone().requires_grad_()
    with mounted_apart(modules, list(zip(PARTS, together, strict=True))):
        (model(one) * weight).sum().backward()
    for part, delta in zip(PARTS, alone, strict=True):
        with mounted(modules, delta):
            (model(other[:, part]) * weight[:, part]).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
    for delta, single in zip(together, alone, strict=True):
        for name, pair in delta.tensors.items():
            for x, y in zip(pair, single.tensors[name], strict=True):
                assert bool((y.grad != 0).any())
                torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-4)


def test_what_the_module_hands_out_is_not_written_to() -> None:
    """Another hook may hold on to the output."""
    model = layers()
    held: list[torch.Tensor] = []
    model[0].register_forward_hook(lambda _, __, output: held.append(output))
    before = model(INPUT)
    with mounted_apart(dict(model.named_modules()), [(PARTS[0], change(1))]):
        model(INPUT)
    assert torch.equal(held[0], held[1])
    assert torch.equal(model(INPUT), before)


def test_afterwards_nothing_is_left() -> None:
    model = layers()
    modules = dict(model.named_modules())
    before = model(INPUT)
    with mounted_apart(modules, [(PARTS[0], change(1)), (PARTS[1], change(2))]):
        assert not torch.equal(model(INPUT), before)
    assert torch.equal(model(INPUT), before)
    with mounted_apart(modules, []), mounted_apart(modules, [(PARTS[0], None)]):
        assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="inside"), mounted_apart(modules, [(PARTS[0], change(1))]):
        raise RuntimeError("inside")
    # The second layer is not there: the first is taken off again.
    with pytest.raises(KeyError), mounted_apart({"0": model[0]}, [(PARTS[0], change(1))]):
        pass
    # An error on the way through.
    with pytest.raises(RuntimeError), mounted_apart(modules, [(PARTS[0], change(1))]):
        model(INPUT[..., :3])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(INPUT), before)


# ----------------------------------------------------------------------------------------------------- mounted_change


def test_the_change_a_module_carries() -> None:
    model, delta = layers(), change(1, only="2")
    a, b = delta.tensors["2"]
    assert mounted_change(model[2]) is None
    with mounted(dict(model.named_modules()), delta):
        found = mounted_change(model[2])
        assert found is not None
        assert torch.equal(found[0], a)
        torch.testing.assert_close(found[1], (0.7 * b).T)
        assert mounted_change(model[0]) is None
        x = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(model[2](x), x @ model[2].weight.T + x @ found[0].T @ found[1])
    assert mounted_change(model[2]) is None


def test_a_change_in_the_modules_dtype() -> None:
    model = layers().bfloat16()
    with mounted(dict(model.named_modules()), change(1)):
        found = mounted_change(model[0])
        assert found is not None
        assert {t.dtype for t in found} == {torch.bfloat16}


def test_what_is_not_one_change_for_all_tokens_is_none() -> None:
    """Changes on slices, two changes at once, and a hook whose effect nobody knows, before or behind."""
    model = layers()
    modules = dict(model.named_modules())
    with mounted_apart(modules, [(PARTS[0], change(1))]):
        assert mounted_change(model[0]) is None
    with mounted(modules, change(1)):
        with mounted(modules, change(2)):
            assert mounted_change(model[0]) is None
        assert mounted_change(model[0]) is not None
        for register in (model[0].register_forward_hook, model[0].register_forward_pre_hook):
            handle = register(lambda *_: None)
            assert mounted_change(model[0]) is None
            handle.remove()
        assert mounted_change(model[0]) is not None
    handle = model[0].register_forward_hook(lambda *_: None)
    assert mounted_change(model[0]) is None
    handle.remove()
