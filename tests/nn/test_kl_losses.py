"""k1, k2 and k3: their values against the exact KL, and whose gradient each has as a loss."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.kl import kl_loss, kl_values  # noqa: E402

KINDS: tuple[Literal["k1", "k2", "k3"], ...] = ("k1", "k2", "k3")
VOCABULARY = 5


def pair(seed: int, spread: float = 1.0) -> tuple[Any, Any]:
    """Logits of the policy, a leaf, and log-probabilities of the reference, both float64 over the vocabulary."""
    g = torch.Generator().manual_seed(seed)
    logits, ref = spread * torch.randn(2, VOCABULARY, generator=g, dtype=torch.float64)
    return logits.clone().requires_grad_(), torch.log_softmax(ref, -1)


def exact(p: Any, q: Any) -> Any:
    return (p.exp() * (p - q)).sum()


def expected_gradient(logits: Any, ref: Any, which: Literal["k1", "k2", "k3"]) -> Any:
    """E_{y∼π_θ} ∇ k(y), every token of the vocabulary weighed by its probability, which is held fixed."""
    logprobs = torch.log_softmax(logits, -1)
    weighed = (logprobs.detach().exp() * kl_values(logprobs[:, None], ref[:, None], which)[:, 0]).sum()
    return torch.autograd.grad(weighed, logits)[0]


def test_by_hand() -> None:
    # log r = log π_ref − log π_θ = ln 2 and −ln 4.
    new, ref = torch.tensor([[-1.0, -1.0]]).double(), torch.tensor([[-1 + math.log(2), -1 - math.log(4)]]).double()
    ln2 = math.log(2)
    assert kl_values(new, ref, "k1")[0].tolist() == pytest.approx([-ln2, 2 * ln2])
    assert kl_values(new, ref, "k2")[0].tolist() == pytest.approx([ln2**2 / 2, 2 * ln2**2])
    assert kl_values(new, ref, "k3")[0].tolist() == pytest.approx([2 - 1 - ln2, 0.25 - 1 + 2 * ln2])


@pytest.mark.parametrize("which", KINDS)
def test_equal_models_give_exactly_nothing(which: Literal["k1", "k2", "k3"]) -> None:
    logprobs = -torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = kl_values(logprobs, logprobs.detach().clone(), which)
    assert bool((values == 0).all())


@pytest.mark.parametrize("which", ["k2", "k3"])
def test_equal_models_give_no_loss_and_no_gradient(which: Literal["k2", "k3"]) -> None:
    logprobs = (-torch.rand(3, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = kl_loss(logprobs, logprobs.detach().clone(), torch.ones(3, 4), which)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert float(loss.detach()) == 0.0
    assert bool((gradient == 0).all())


def test_k3_keeps_its_digits_where_the_models_are_close() -> None:
    # ½ x² + x³/6 at x = −1e-4 is 4.99983e-9; r − 1 − log r in float32 is off by more than that itself.
    close = kl_values(torch.tensor([[-1.0]]), torch.tensor([[-1.0001]]), "k3")
    x = float(torch.tensor(-1.0001) - torch.tensor(-1.0))
    assert float(close) == pytest.approx(math.expm1(x) - x, rel=1e-2)


@pytest.mark.parametrize("seed", range(4))
def test_sampled_values_against_the_exact_kl(seed: int) -> None:
    """Means over 40 000 samples, within five of their own standard errors: of the KL for k1 and k3, and for k2 of its
    own expectation, which is another number."""
    n, (logits, ref) = 40_000, pair(seed)
    p = torch.log_softmax(logits.detach(), -1)
    drawn = torch.multinomial(p.exp(), n, replacement=True, generator=torch.Generator().manual_seed(seed + 100))
    reverse = float(exact(p, ref))
    for which in KINDS:
        every = kl_values(p[:, None], ref[:, None], which)[:, 0]
        mean = float((p.exp() * every).sum())
        error = math.sqrt(float((p.exp() * (every - mean) ** 2).sum()) / n)
        sampled = float(kl_values(p[drawn][:, None], ref[drawn][:, None], which).mean())
        assert sampled == pytest.approx(mean, abs=5 * error)
        if which == "k2":
            assert abs(mean - reverse) > 10 * error
        else:
            assert mean == pytest.approx(reverse, rel=1e-12)


def test_the_two_directions_differ() -> None:
    logits, ref = pair(0)
    p = torch.log_softmax(logits.detach(), -1)
    assert abs(float(exact(p, ref)) - float(exact(ref, p))) > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_whose_gradient_each_has(seed: int) -> None:
    logits, ref = pair(seed)
    (reverse,) = torch.autograd.grad(exact(torch.log_softmax(logits, -1), ref), logits)
    (forward,) = torch.autograd.grad(exact(ref, torch.log_softmax(logits, -1)), logits)
    torch.testing.assert_close(expected_gradient(logits, ref, "k2"), reverse)
    torch.testing.assert_close(expected_gradient(logits, ref, "k3"), forward)
    torch.testing.assert_close(expected_gradient(logits, ref, "k1"), torch.zeros_like(logits))
    assert float((forward - reverse).norm()) > 0.1 * float(reverse.norm())


@pytest.mark.parametrize("seed", range(3))
def test_k1_off_the_reward_is_the_same_regulariser_as_a_k2_loss(seed: int) -> None:
    """E[sg(k1) ∇ log π] = ∇ KL(π‖π_ref): what a penalised reward contributes to −∇ E[reward]."""
    logits, ref = pair(seed)
    logprobs = torch.log_softmax(logits, -1)
    penalty = kl_values(logprobs[:, None], ref[:, None], "k1")[:, 0].detach()
    (ours,) = torch.autograd.grad((logprobs.detach().exp() * penalty * logprobs).sum(), logits)
    torch.testing.assert_close(ours, expected_gradient(logits, ref, "k2"))


@pytest.mark.parametrize("which", ["k2", "k3"])
def test_finite_differences(which: Literal["k2", "k3"]) -> None:
    logits, ref = pair(7)
    chosen, mask = torch.tensor([[0, 3], [2, 4]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]).double()

    def loss(x: Any) -> Any:
        return kl_loss(torch.log_softmax(x, -1)[chosen], ref[chosen], mask, which)

    (gradient,) = torch.autograd.grad(loss(logits), logits)
    for index in range(VOCABULARY):
        step = torch.zeros_like(logits)
        step[index] = 1e-6
        slope = float((loss(logits + step) - loss(logits - step)).detach()) / 2e-6
        assert float(gradient[index]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("which", ["k2", "k3"])
def test_the_loss_is_a_sum_of_means_and_reads_no_padding(which: Literal["k2", "k3"]) -> None:
    new = torch.tensor([[-1.0, -2.0], [-1.0, math.nan], [-math.inf, 0.5]], requires_grad=True)
    ref = torch.tensor([[-1.5, -1.0], [-3.0, 7.0], [-math.inf, math.nan]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    # log r: −0.5 and 1 in the first rollout, −2 in the second, none in the third.
    values = {x: 0.5 * x**2 if which == "k2" else math.exp(x) - 1 - x for x in (-0.5, 1.0, -2.0)}
    loss = kl_loss(new, ref, mask, which)
    assert float(loss.detach()) == pytest.approx((values[-0.5] + values[1.0]) / 2 + values[-2.0])
    assert float(kl_loss(new, ref, mask.bool(), which).detach()) == float(loss.detach())
    loss.backward()
    assert new.grad is not None
    assert bool(torch.isfinite(new.grad).all())
    assert bool((new.grad[mask == 0] == 0).all())
    pieces = [kl_loss(new[s], ref[s], mask[s], which).detach() for s in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(pieces), loss.detach())


def test_nothing_flows_into_the_reference() -> None:
    new, ref = torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[-2.0]], requires_grad=True)
    kl_loss(new, ref, torch.ones(1, 1), "k2").backward()
    assert ref.grad is None
    assert new.grad is not None


def test_what_is_refused() -> None:
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match="expected gradient of 0"):
        kl_loss(one, one, one, "k1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k2 or k3; got 'kl'"):
        kl_loss(one, one, one, "kl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k1, k2 or k3; got 'k4'"):
        kl_values(one, one, "k4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one shape"):
        kl_values(one, one[:, :1], "k1")
    with pytest.raises(ValueError, match="mask"):
        kl_loss(one, one, one[0], "k2")
