"""Advantages and losses: worked by hand, by finite differences, and by enumeration."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.objectives import group_advantages, grpo_loss, kl_k2  # noqa: E402


def test_advantages_by_hand() -> None:
    # Mean 0.5; squared deviations sum to 1; unbiased variance 1/3.
    std = math.sqrt(1 / 3)
    assert group_advantages([1.0, 0.0, 1.0, 0.0]) == pytest.approx([0.5 / std, -0.5 / std] * 2, rel=1e-5)
    # Mean 0.25; deviations .75, -.25 three times; unbiased variance (0.5625 + 3 · 0.0625) / 3 = 0.25.
    assert group_advantages([1.0, 0.0, 0.0, 0.0]) == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)
    assert group_advantages([1.0, 0.0, 0.0, 0.0], scale=False) == [0.75, -0.25, -0.25, -0.25]
    assert group_advantages([0.0, 1.0]) == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-5)


@pytest.mark.parametrize("rewards", [[], [0.3], [0.1] * 7, [0.0] * 4, [1.0] * 2])
@pytest.mark.parametrize("scale", [True, False])
def test_a_group_without_variance_gives_exact_zeros(rewards: list[float], scale: bool) -> None:
    advantages = group_advantages(rewards, scale=scale)
    assert advantages == [0.0] * len(rewards)
    assert all(math.copysign(1.0, a) == 1.0 for a in advantages)


def test_advantages_sum_to_nothing_and_do_not_depend_on_the_order() -> None:
    rewards = [0.2, 0.9, 0.4, 0.4, 0.0]
    advantages = group_advantages(rewards)
    assert sum(advantages) == pytest.approx(0.0, abs=1e-9)
    assert group_advantages(rewards[::-1]) == pytest.approx(advantages[::-1])


def loss_of(ratio: float, advantage: float) -> tuple[float, float]:
    """The loss of one token at this ratio, and its derivative by the log-probability."""
    logprob = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64, requires_grad=True)
    old, mask = torch.tensor([[-1.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    loss = grpo_loss(logprob, old, advantages, mask, clip_low=0.2, clip_high=0.3)
    (gradient,) = torch.autograd.grad(loss, logprob)
    return float(loss.detach()), float(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # −min(ρA, clip(ρ)A); where the clipped branch is the smaller one, nothing pulls any more.
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        (2.0, 2.0, -2.6, 0.0),
        (2.0, -2.0, 4.0, 4.0),
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.25, 2.0, -2.5, -2.5),
        (0.9, -2.0, 1.8, 1.8),
        (1.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_branches_of_the_clip(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert loss_of(ratio, advantage) == pytest.approx((loss, gradient))


def test_the_loss_by_hand() -> None:
    """Two rollouts of 2 and 1 tokens: each is averaged over its own length, then they are summed."""
    old = torch.log(torch.tensor([[0.5, 0.4], [0.2, 1.0]]))
    new = torch.log(torch.tensor([[0.55, 0.2], [0.1, 1.0]]))
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    # First: A = 1, ratios 1.1 and 0.5 -> mean 0.8. Second: A = −1, ratio 0.5 -> clipped to 0.8 -> −0.8.
    loss = grpo_loss(new, old, torch.tensor([1.0, -1.0]), mask)
    assert float(loss) == pytest.approx(-(0.8 - 0.8), abs=1e-6)
    assert float(grpo_loss(new[:1], old[:1], torch.tensor([3.0]), mask[:1])) == pytest.approx(-2.4)


def test_what_lies_beyond_the_end_does_not_count() -> None:
    mask = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    logprobs = torch.tensor([[-1.0, -9.0, 5.0], [-3.0, 1.0, 1.0]], requires_grad=True)
    loss = grpo_loss(logprobs, torch.zeros(2, 3), torch.tensor([1.0, 1.0]), mask)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0, 0] != 0
    assert bool((logprobs.grad.flatten()[1:] == 0).all())
    assert float(loss.detach()) == pytest.approx(-math.exp(-1.0))


def test_finite_differences_on_a_softmax_of_two_tokens() -> None:
    logits = torch.tensor([0.3, -0.4], dtype=torch.float64)
    old = torch.log_softmax(torch.tensor([0.1, 0.2], dtype=torch.float64), -1)
    chosen = torch.tensor([[0, 1], [1, 1], [0, 0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    advantages = torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        logprobs = torch.log_softmax(x, -1)[chosen]
        base = torch.log_softmax(torch.tensor([0.0, 0.5], dtype=torch.float64), -1)[chosen]
        return grpo_loss(logprobs, old[chosen], advantages, mask) + 0.3 * kl_k2(logprobs, base, mask)

    x = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    for index in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[index] = 1e-6
        slope = float(loss(logits + step) - loss(logits - step)) / 2e-6
        assert float(gradient[index]) == pytest.approx(slope, rel=1e-6)


def test_on_policy_the_gradient_is_the_plain_policy_gradient() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    tokens, advantages = torch.tensor([1, 8, 3, 0]), torch.tensor([1.0, -0.5, 0.25, -2.0], dtype=torch.float64)
    logprobs = torch.log_softmax(logits, -1).gather(1, tokens[:, None])
    (ours,) = torch.autograd.grad(
        grpo_loss(logprobs, logprobs.detach(), advantages, torch.ones_like(logprobs)), logits, retain_graph=True
    )
    (plain,) = torch.autograd.grad(-(advantages[:, None] * logprobs).sum(), logits)
    torch.testing.assert_close(ours, plain)


def test_a_batch_may_be_walked_in_pieces() -> None:
    g = torch.Generator().manual_seed(3)
    new, old = -torch.rand(6, 4, generator=g), -torch.rand(6, 4, generator=g)
    mask = (torch.rand(6, 4, generator=g) < 0.7).float()
    advantages = torch.randn(6, generator=g)
    pieces = [grpo_loss(new[s], old[s], advantages[s], mask[s]) for s in (slice(0, 1), slice(1, 4), slice(4, 6))]
    torch.testing.assert_close(sum(pieces), grpo_loss(new, old, advantages, mask))


def test_k2_has_the_gradient_of_the_reverse_kl() -> None:
    """By enumeration over a vocabulary of 6: E_{y∼π} ∇ k2(y) = ∇ KL(π‖π_base)."""
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(6, generator=g, dtype=torch.float64).requires_grad_()
    base = torch.log_softmax(torch.randn(6, generator=g, dtype=torch.float64), -1)
    logprobs = torch.log_softmax(logits, -1)
    one = torch.ones(1, 1, dtype=torch.float64)
    expected_k2 = sum(
        logprobs[y].detach().exp() * kl_k2(logprobs[y].view(1, 1), base[y].view(1, 1), one) for y in range(6)
    )
    (ours,) = torch.autograd.grad(expected_k2, logits, retain_graph=True)
    (exact,) = torch.autograd.grad((logprobs.exp() * (logprobs - base)).sum(), logits)
    torch.testing.assert_close(ours, exact)


def test_k2_by_hand() -> None:
    new, base = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]]), torch.tensor([[-1.5, -1.0], [-3.0, 7.0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert float(kl_k2(new, base, mask)) == pytest.approx((0.125 + 0.5) / 2 + 2.0)
    assert float(kl_k2(new, new, mask)) == 0.0
