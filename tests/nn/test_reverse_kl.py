"""KL over the vocabulary from hidden states: by hand, against all logits at once, and its gradient."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.reverse_kl import reverse_kl, reverse_kl_reference  # noqa: E402
from twoclock.nn.vocabulary import CHUNK, Head  # noqa: E402


def test_two_tokens_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): K = ¾ ln 1.5 + ¼ ln 0.5."""
    hidden = torch.tensor([[math.log(3.0)]])
    head = Head(torch.tensor([[1.0], [0.0]]))
    found = reverse_kl(hidden, head, lambda some: torch.zeros(1, 2)[some], 1.0)
    assert found.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


def test_the_other_direction_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): F = ½ ln(2/3) + ½ ln 2, and ∂F/∂z = p − q = (¼, −¼)."""
    hidden = torch.tensor([[math.log(3.0)]], requires_grad=True)
    head = Head(torch.tensor([[1.0], [0.0]]))
    found = reverse_kl(hidden, head, lambda some: torch.zeros(1, 2)[some], 1.0, 1.0)
    assert found.item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-6)
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(0.25, abs=1e-6)


def test_what_is_never_said_is_learned_by_the_other_direction_alone() -> None:
    """The teacher is sure of a token of probability e⁻¹²: the reverse KL all but does not move it."""
    slopes = []
    for forward in (0.0, 0.5):
        logits = torch.tensor([[12.0, 0.0]], requires_grad=True)
        reverse_kl_reference(logits, torch.tensor([[0.0, 6.0]]), 1.0, forward).sum().backward()
        assert logits.grad is not None
        slopes.append(-logits.grad[0, 1].item())
    assert slopes[0] < 1e-3
    assert slopes[1] > 0.4


@pytest.mark.parametrize("forward", [0.0, 0.3])
@pytest.mark.parametrize(("temperature", "softcap", "scale"), [(1.0, 0.0, 1.0), (0.7, 0.0, 2.0), (1.3, 4.0, 0.5)])
def test_values_and_gradients_are_those_of_all_logits_at_once(
    temperature: float, softcap: float, scale: float, forward: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight, teacher = (
        torch.randn(*shape, generator=generator) for shape in ((2 * CHUNK + 5, 8), (31, 8), (2 * CHUNK + 5, 31))
    )
    head = Head(weight, torch.randn(31, generator=generator), scale, softcap)
    share = torch.rand(len(hidden), generator=generator)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found = reverse_kl(ours, head, lambda some: teacher[some], temperature, forward)
    wanted = reverse_kl_reference(head(theirs), teacher, temperature, forward)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert bool((found >= 0).all())
    (found * share).sum().backward()
    (wanted * share).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_one_policy_is_at_no_distance_from_itself_and_has_no_gradient() -> None:
    hidden = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    head = Head(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)))
    target = head(hidden.detach())
    found = reverse_kl(hidden, head, lambda some: target[some], 1.0)
    assert found.abs().max().item() < 1e-6
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().max().item() < 1e-6


def test_a_token_that_cannot_come_has_no_part() -> None:
    weight = torch.tensor([[1.0], [0.0], [0.0]])
    head = Head(weight, torch.tensor([0.0, 0.0, -torch.inf]))
    hidden = torch.tensor([[0.5]], requires_grad=True)
    found = reverse_kl(hidden, head, lambda some: torch.tensor([[0.0, 0.0, -torch.inf]])[some], 1.0)
    found.sum().backward()
    assert math.isfinite(found.item())
    assert hidden.grad is not None
    assert bool(hidden.grad.isfinite().all())
    p = 1 / (1 + math.exp(-0.5))
    assert found.item() == pytest.approx(p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)), abs=1e-6)


def test_its_gradient_is_the_mean_of_the_sampled_form() -> None:
    """Σ_y p(y) (−A_y ∇log p(y)), with A = log q − log p: the expectation of what distillation by tokens follows."""
    logits = torch.tensor([[0.3, -1.0, 0.8, 0.1]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.2, -0.4, 0.0]])
    reverse_kl_reference(logits, teacher, 1.0).sum().backward()
    exact = logits.grad.clone()
    logits.grad = None
    logp, logq = torch.log_softmax(logits, -1), torch.log_softmax(teacher, -1)
    advantage = (logq - logp).detach()
    (-(logp.detach().exp() * advantage * logp).sum()).backward()
    torch.testing.assert_close(logits.grad, exact, rtol=1e-5, atol=1e-6)
