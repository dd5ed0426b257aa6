"""Changes of singular values: each form against the dense matrix, gradients against differences, the best low rank."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from twoclock.errors import ConfigError, NumericsError  # noqa: E402
from twoclock.nn.svf import (  # noqa: E402
    Factoring,
    Factors,
    SingularChange,
    as_low_rank,
    changed_weight,
    delta_term,
    factored_product,
    factorise,
    materialised,
    rowwise_product,
    singular_terms,
    truncation_error,
)
from twoclock.nn.terms import added  # noqa: E402

SHAPES = [(5, 8), (8, 5), (6, 6), (1, 4), (4, 1)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense(weight: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """W' by the definition, in float64: take W apart, multiply each singular value, put it together."""
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    total = torch.zeros_like(weight, dtype=torch.float64)
    for i in range(len(s)):
        total += s[i] * (1 + offset[i].double()) * torch.outer(u[:, i], vh[i])
    return total


@pytest.mark.parametrize("shape", SHAPES)
def test_all_forms_are_the_matrix_with_scaled_singular_values(shape: tuple[int, int]) -> None:
    w, x = draw(*shape), draw(3, 2, shape[1], seed=1)
    offset, bias = 0.3 * draw(min(shape), seed=2), draw(shape[0], seed=3)
    factors = factorise(w)
    expected = (x.double() @ dense(w, offset).T).float()
    torch.testing.assert_close(x @ w.T + delta_term(x, factors, offset), expected, atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(factored_product(x, factors, offset), expected, atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(factored_product(x, factors, offset, bias), expected + bias, atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(x @ changed_weight(w, factors, offset).T, expected, atol=5e-6, rtol=5e-6)
    torch.testing.assert_close((w + materialised(factors, offset)).double(), dense(w, offset), atol=5e-6, rtol=5e-6)


def test_a_case_by_hand() -> None:
    """W = diag(3, 2): z = (2, 0.5) makes it diag(6, 1)."""
    w = torch.diag(torch.tensor([3.0, 2.0]))
    offset = torch.tensor([1.0, -0.5])
    torch.testing.assert_close(changed_weight(w, factorise(w), offset), torch.diag(torch.tensor([6.0, 1.0])))
    a, b = as_low_rank(factorise(w), offset, 1)
    torch.testing.assert_close(b @ a, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    # The change is diag(3, -1): rank 1 leaves the 1 out.
    assert truncation_error(factorise(w), offset, 1) == pytest.approx((1.0, 10.0))


def test_at_z_1_the_delta_form_is_the_base_and_the_factored_one_is_near() -> None:
    w, x = draw(40, 24), draw(7, 24, seed=1)
    factors, zero = factorise(w), torch.zeros(24)
    base = x @ w.T
    assert torch.equal(base + delta_term(x, factors, zero), base)
    assert torch.equal(changed_weight(w, factors, zero), w)
    error = float((factored_product(x, factors, zero) - base).norm() / base.norm())
    assert 0 < error < 2e-6
    low = w.bfloat16()
    halves = Factors(factors.u.bfloat16(), factors.s, factors.vh.bfloat16(), 0.0)
    rough = factored_product(x.bfloat16(), halves, zero).float()
    assert float((rough - x.bfloat16().float() @ low.float().T).norm() / base.norm()) < 8e-3


def test_gradients_are_those_of_differences_and_of_the_dense_matrix() -> None:
    """∂/∂z_i = s_i Σ (v_i·x)(u_i·δ), in float64."""
    w = draw(5, 8, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    factors = Factors(u, s, vh, 0.0)
    x, push = draw(4, 8, seed=1, dtype=torch.float64), draw(4, 5, seed=2, dtype=torch.float64)
    offset = (0.2 * draw(5, seed=3, dtype=torch.float64)).requires_grad_()

    def loss(form: str, z: torch.Tensor) -> torch.Tensor:
        out = x @ w.T + delta_term(x, factors, z) if form == "delta" else factored_product(x, factors, z)
        return (torch.tanh(out) * push).sum()

    grads = {f: torch.autograd.grad(loss(f, offset), offset)[0] for f in ("delta", "factored")}
    step = 1e-6
    for form, grad in grads.items():
        for i in range(5):
            nudge = torch.zeros(5, dtype=torch.float64)
            nudge[i] = step
            with torch.no_grad():
                difference = (loss(form, offset + nudge) - loss(form, offset - nudge)) / (2 * step)
            assert float(grad[i]) == pytest.approx(float(difference), abs=1e-7)
    out = (x @ w.T + delta_term(x, factors, offset)).detach()
    delta = push / torch.cosh(out) ** 2
    torch.testing.assert_close(grads["delta"], s * ((x @ vh.T) * (delta @ u)).sum(0), atol=1e-10, rtol=1e-10)


def test_no_gradient_as_large_as_the_matrix_is_made() -> None:
    factors = factorise(draw(64, 48))
    offset = torch.zeros(48, requires_grad=True)
    saved: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    x = draw(3, 48, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = delta_term(x, factors, offset)
    out.sum().backward()
    assert offset.grad is not None
    assert factors.u.grad is None
    assert factors.vh.grad is None
    # Kept for the backward pass: thin products, and the factors, which are there anyhow.
    shared = {t.untyped_storage().data_ptr() for t in (factors.u, factors.vh)}
    assert all(t.numel() <= 3 * 48 or t.untyped_storage().data_ptr() in shared for t in saved)


def test_each_row_its_own_change_and_rows_of_the_base_its_bits() -> None:
    w, x = draw(9, 6), draw(7, 6, seed=1)
    factors, base = factorise(w), x @ w.T
    offsets = [None, *(0.3 * draw(6, seed=n) for n in range(2, 5))]
    owners = torch.tensor([2, 0, 1, 3, 0, 2, 1])
    found = rowwise_product(x, base, factors, offsets, owners)
    for n, k in enumerate(owners.tolist()):
        own = offsets[k]
        if own is None:
            assert torch.equal(found[n], base[n])
        else:
            torch.testing.assert_close(found[n].double(), dense(w, own) @ x[n].double(), atol=5e-6, rtol=5e-6)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    again = rowwise_product(x[order], base[order], factors, offsets, owners[order])
    torch.testing.assert_close(again, found[order])


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_low_rank_change_is_the_best_there_is(rank: int) -> None:
    w, offset = draw(9, 6), 0.5 * draw(6, seed=4)
    factors = factorise(w)
    a, b = as_low_rank(factors, offset, rank)
    assert (a.shape, b.shape) == ((rank, 6), (9, rank))
    change = materialised(factors, offset)
    left, whole = truncation_error(factors, offset, rank)
    assert float((change - b @ a).norm() ** 2) == pytest.approx(left, abs=1e-9, rel=1e-4)
    assert float(change.norm() ** 2) == pytest.approx(whole, rel=1e-5)
    # Eckart and Young: no matrix of this rank is nearer than the truncated decomposition of the change itself.
    best = torch.linalg.svdvals(change.double())[rank:].square().sum()
    assert left == pytest.approx(float(best), abs=1e-9, rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_error_of_a_part_is_stated(precision: str) -> None:
    w = draw(12, 10)
    s = torch.linalg.svdvals(w)
    for rank in (0, 4, 10, 99):
        f = factorise(w, Factoring(rank=rank, precision=precision))
        kept = 10 if rank in (0, 99) else rank
        assert len(f.s) == kept
        assert f.is_whole == (kept == 10)
        assert (f.u.dtype, f.s.dtype) == (getattr(torch, precision), torch.float32)
        cut = float((s[kept:].square().sum() / s.square().sum()).sqrt())
        rounding = 1e-6 if precision == "float32" else 6e-3
        assert f.error == pytest.approx(cut, abs=rounding)
        whole = (f.u.float() * f.s) @ f.vh.float()
        assert f.error == pytest.approx(float((w - whole).norm() / w.norm()), rel=1e-5, abs=1e-9)
    with pytest.raises(ConfigError, match="4 of 10; use the delta form"):
        factored_product(draw(2, 10), factorise(w, Factoring(rank=4)), torch.zeros(4))


def test_a_part_changes_what_it_has_and_nothing_else() -> None:
    w, x = draw(8, 6), draw(3, 6, seed=1)
    offset = torch.tensor([0.5, -0.2])
    whole = torch.cat([offset, torch.zeros(4)])
    part = x @ w.T + delta_term(x, factorise(w, Factoring(rank=2)), offset)
    torch.testing.assert_close(part, (x.double() @ dense(w, whole).T).float(), atol=5e-6, rtol=5e-6)


def test_changes_add() -> None:
    """ΔW of a sum of offsets is the sum of the ΔW, in float64 to the last digits."""
    w = draw(7, 5, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    offsets = [draw(5, seed=n, dtype=torch.float64) for n in range(4)]
    weights = [0.7, -1.5, 2.0, 0.1]

    def change(o: torch.Tensor) -> torch.Tensor:
        return (u * (s * o)) @ vh

    mixed = change(sum(a * o for a, o in zip(weights, offsets, strict=True)))
    torch.testing.assert_close(
        mixed, sum(a * change(o) for a, o in zip(weights, offsets, strict=True)), atol=1e-12, rtol=0
    )


def test_terms_are_the_delta_form_and_the_bare_one_the_factored() -> None:
    w, x, offset = draw(8, 6), draw(4, 6, seed=1), 0.3 * draw(6, seed=2)
    factors = factorise(w)
    (term,) = singular_terms(SingularChange({"m": offset}, Factoring(), "id"), {"m": factors}).values()
    torch.testing.assert_close(added(x @ w.T, x, term), x @ w.T + delta_term(x, factors, offset))
    assert term.base is not None
    assert term.gate is not None
    torch.testing.assert_close((x @ term.p.T * (term.gate + term.base)) @ term.q, factored_product(x, factors, offset))
    part = factorise(w, Factoring(rank=3))
    (term,) = singular_terms(SingularChange({"m": offset[:3]}, Factoring(rank=3), "id"), {"m": part}).values()
    assert term.base is None
    with pytest.raises(ConfigError, match="m has 3 singular values, and its change has the shape"):
        singular_terms(SingularChange({"m": offset}, Factoring(rank=3), "id"), {"m": part})


def test_what_is_refused() -> None:
    with pytest.raises(NumericsError, match="NaN or infinity"):
        factorise(torch.tensor([[1.0, float("nan")]]))
    for wrong in (torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(0, 3)):
        with pytest.raises(ConfigError, match="a matrix has singular values"):
            factorise(wrong)
    with pytest.raises(ConfigError) as caught:
        Factoring(rank=-1, precision="float31")
    assert "rank must be a whole number from 0" in str(caught.value)
    assert "did you mean 'float32'" in str(caught.value)
    assert factorise(torch.zeros(3, 2)).error == 0.0
