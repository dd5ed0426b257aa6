"""Log-probabilities of chosen tokens in chunks: values, entropies and gradients against all logits at once.

Promises: equal to :func:`chosen_logprobs_reference` for every kind of head; never more than ``CHUNK`` rows of logits at
a time, forward or backward; the head gets no gradient.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from twoclock.nn.vocabulary import CHUNK, Head, chosen_logprobs, chosen_logprobs_reference  # noqa: E402

H, V = 12, 37
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 2.0},
}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_head(kind: str, size: int = V, width: int = H) -> Head:
    options: dict[str, Any] = dict(HEADS[kind])
    bias = normal(size, seed=2) if options.pop("bias", False) else None
    return Head(normal(size, width, seed=1), bias, **options)


def choose(rows: int, count: int, seed: int = 3, size: int = V) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens in any order, several a row; rows without any."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, max(rows, 1), (count,), generator=g), torch.randint(0, size, (count,), generator=g)


def both(
    hidden: torch.Tensor, head: Head, rows: torch.Tensor, tokens: torch.Tensor, temperature: float, seed: int = 5
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """(log-probabilities, entropies, gradient to the hidden states under random weights), ours and the reference's."""
    weight = normal(len(rows), seed=seed)
    found = []
    for ours in (True, False):
        leaf = hidden.clone().requires_grad_()
        if ours:
            logprobs, entropy = chosen_logprobs(leaf, head, rows, tokens, temperature)
        else:
            logprobs, entropy = chosen_logprobs_reference(head(leaf), rows, tokens, temperature)
        (logprobs * weight).sum().backward()
        found.append((logprobs.detach(), entropy.detach(), leaf.grad))
    return found[0], found[1]


def test_two_tokens_by_hand() -> None:
    """Logits (0, ln 3), so probabilities 1/4 and 3/4; d log p(0)/dh = W_0 − Σ p W."""
    head = Head(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    hidden = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    logprobs, entropy = chosen_logprobs(hidden, head, torch.tensor([0, 0]), torch.tensor([0, 1]), 1.0)
    assert logprobs.tolist() == pytest.approx([math.log(1 / 4), math.log(3 / 4)], rel=1e-6)
    assert entropy.tolist() == pytest.approx([-0.25 * math.log(0.25) - 0.75 * math.log(0.75)], rel=1e-6)
    logprobs[0].backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[-0.75, 2.0 - 0.5]]))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.4, 2.5])
@pytest.mark.parametrize("rows", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_values_and_gradients_are_the_references(kind: str, temperature: float, rows: int) -> None:
    hidden, chosen = normal(rows, H, seed=rows), choose(rows, 2 * rows)
    ours, theirs = both(hidden, make_head(kind), *chosen, temperature)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    if rows > 1:
        without = torch.ones(rows, dtype=torch.bool)
        without[chosen[0]] = False
        assert bool(without.any())
        assert bool((ours[2][without] == 0).all())


@pytest.mark.parametrize("kind", HEADS)
def test_the_reference_is_the_log_of_the_softmax(kind: str) -> None:
    """In float64, from the head's definition z = cap(scale · (W h + b)), c·tanh(z/c)."""
    head, hidden, (rows, tokens) = make_head(kind), normal(9, H, seed=4), choose(9, 30)
    logits = hidden.double() @ head.weight.double().T + (0.0 if head.bias is None else head.bias.double())
    logits = logits * head.scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logs = torch.log_softmax(logits / 0.7, -1)
    logprobs, entropy = chosen_logprobs_reference(head(hidden), rows, tokens, 0.7)
    torch.testing.assert_close(logprobs.double(), logs[rows, tokens], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), -(logs.exp() * logs).sum(-1), atol=1e-5, rtol=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    head, (rows, tokens) = make_head("all"), choose(5, 9)
    hidden, direction = normal(5, H, seed=1).requires_grad_(), normal(5, H, seed=2)
    weight = normal(9, seed=3)
    (chosen_logprobs(hidden, head, rows, tokens, 0.8)[0] * weight).sum().backward()
    with torch.no_grad():
        moved = [
            float((chosen_logprobs(hidden + s * 1e-3 * direction, head, rows, tokens, 0.8)[0] * weight).sum())
            for s in (1, -1)
        ]
    assert float((hidden.grad * direction).sum()) == pytest.approx((moved[0] - moved[1]) / 2e-3, rel=5e-3)


def test_one_token_from_many_places_and_the_same_place_twice() -> None:
    hidden = normal(3, H, seed=1)
    rows, tokens = torch.tensor([2, 0, 2, 2, 0]), torch.tensor([4, 4, 4, 9, 4])
    ours, theirs = both(hidden, make_head("softcap"), rows, tokens, 0.6)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert ours[0][0] == ours[0][2]


def test_nothing_chosen_and_no_rows() -> None:
    none = torch.zeros(0, dtype=torch.long)
    hidden = normal(70, H, seed=1).requires_grad_()
    logprobs, entropy = chosen_logprobs(hidden, make_head("plain"), none, none, 1.0)
    assert (logprobs.shape, entropy.shape) == ((0,), (70,))
    logprobs.sum().backward()
    assert bool((hidden.grad == 0).all())
    logprobs, entropy = chosen_logprobs(hidden[:0], make_head("plain"), none, none, 1.0)
    assert (logprobs.shape, entropy.shape) == ((0,), (0,))


# ------------------------------------------------------------------------------------------------------------ entropy


def test_entropy_carries_no_gradient() -> None:
    hidden = normal(5, H, seed=1).requires_grad_()
    logprobs, entropy = chosen_logprobs(hidden, make_head("plain"), *choose(5, 4), 1.0)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_entropy_at_its_limits(temperature: float) -> None:
    """ln V where all tokens are alike, 0 where one takes all."""
    same = Head(torch.zeros(V, H))
    _, entropy = chosen_logprobs(normal(3, H, seed=1), same, *choose(3, 1), temperature)
    assert entropy.tolist() == pytest.approx([math.log(V)] * 3, rel=1e-6)
    sure = Head(torch.zeros(V, H), torch.tensor([1e4] + [0.0] * (V - 1)))
    logprobs, entropy = chosen_logprobs(normal(3, H, seed=1), sure, torch.tensor([1]), torch.tensor([0]), temperature)
    assert entropy.tolist() == [0.0] * 3
    assert logprobs.tolist() == [0.0]


# ---------------------------------------------------------------------------------------------------- extreme logits


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_that_cannot_come(temperature: float) -> None:
    """A logit of -inf: log-probability -inf, no part in the entropy, finite gradients for the others."""
    bias = torch.zeros(V)
    bias[[3, 8]] = float("-inf")
    head, hidden = Head(normal(V, H, seed=1), bias), normal(5, H, seed=4)
    rows, tokens = torch.tensor([0, 1, 4, 4]), torch.tensor([0, 5, 7, 9])
    ours, theirs = both(hidden, head, rows, tokens, temperature)
    for one, other in zip(ours, theirs, strict=True):
        assert bool(one.isfinite().all())
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    logprobs, entropy = chosen_logprobs(hidden, head, torch.tensor([1, 1]), torch.tensor([3, 0]), temperature)
    assert logprobs[0] == float("-inf")
    assert bool(logprobs[1].isfinite())
    assert bool(entropy.isfinite().all())


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_logits_of_thousands(size: float) -> None:
    """Where the exponential of any of them alone is infinite or 0."""
    bias = torch.full((V,), size) + normal(V, seed=2)
    head, hidden = Head(normal(V, H, seed=1), bias), normal(CHUNK + 3, H, seed=4)
    chosen = choose(CHUNK + 3, 50)
    ours, theirs = both(hidden, head, *chosen, 1.0)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=1e-3)


def test_an_unlikely_token_keeps_its_digits() -> None:
    """Its probability is 0 in float32, its log-probability is not."""
    head = Head(torch.zeros(3, H), torch.tensor([0.0, -300.0, -500.0]))
    logprobs, _ = chosen_logprobs(normal(1, H, seed=1), head, torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]), 1.0)
    assert logprobs.tolist() == [0.0, -300.0, -500.0]


def test_rows_that_are_no_numbers_are_seen_and_stay_alone() -> None:
    hidden = normal(CHUNK + 5, H, seed=1)
    head, rows, tokens = make_head("plain"), torch.arange(CHUNK + 5), torch.zeros(CHUNK + 5, dtype=torch.long)
    expected, expected_entropy = chosen_logprobs(hidden, head, rows, tokens, 1.0)
    hidden[3] = float("nan")
    logprobs, entropy = chosen_logprobs(hidden, head, rows, tokens, 1.0)
    others = rows != 3
    assert bool(logprobs[3].isnan())
    assert bool(entropy[3].isnan())
    assert torch.equal(logprobs[others], expected[others])
    torch.testing.assert_close(entropy[others], expected_entropy[others], atol=1e-6, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ dtypes and gradients


def test_bfloat16_hidden_states() -> None:
    """Logits are rounded to bf16 as in the model's own pass: the same in both, so only sums differ; the gradient comes
    back in bf16."""
    head = Head(normal(V, H, seed=1).bfloat16(), None, 1.0, 0.0)
    hidden, chosen = normal(CHUNK + 9, H, seed=2).bfloat16(), choose(CHUNK + 9, 100)
    ours, theirs = both(hidden, head, *chosen, 0.8)
    assert ours[2].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-4, rtol=1e-4)
    size = float(theirs[2].float().abs().max())
    assert float((ours[2].float() - theirs[2].float()).abs().max()) < 0.02 * size


def test_the_head_gets_no_gradient() -> None:
    weight, bias = normal(V, H, seed=1).requires_grad_(), normal(V, seed=2).requires_grad_()
    hidden = normal(5, H, seed=3).requires_grad_()
    chosen_logprobs(hidden, Head(weight, bias), *choose(5, 4), 1.0)[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert bias.grad is None


def test_without_gradients_nothing_is_kept() -> None:
    logprobs, _ = chosen_logprobs(normal(5, H, seed=3), make_head("all"), *choose(5, 4), 1.0)
    assert not logprobs.requires_grad


# ------------------------------------------------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """The largest tensor that any operation hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("kind", HEADS)
def test_no_more_than_a_chunk_of_logits_exists(kind: str) -> None:
    """Forward and backward, by every operation's output; the reference shows that the measure sees a full matrix."""
    rows, size, width = 6 * CHUNK + 7, 200, 4
    hidden, chosen = normal(rows, width, seed=1).requires_grad_(), choose(rows, 2 * rows, size=size)
    head = make_head(kind, size, width)
    with Largest() as ours:
        logprobs, entropy = chosen_logprobs(hidden, head, *chosen, 0.7)
        (logprobs.sum() + entropy.sum()).backward()
    assert ours.numel == CHUNK * size
    with Largest() as theirs:
        chosen_logprobs_reference(head(hidden), *chosen, 0.7)[0].sum().backward()
    assert theirs.numel == rows * size


def test_the_head_reads_each_row_once() -> None:
    seen: list[torch.Tensor] = []

    class Watched(Head):
        def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
            seen.append(hidden.detach().clone())
            return super().__call__(hidden)

    hidden = normal(2 * CHUNK + 7, H, seed=1).requires_grad_()
    plain = make_head("plain")
    logprobs, _ = chosen_logprobs(hidden, Watched(plain.weight), *choose(2 * CHUNK + 7, 9), 1.0)
    logprobs.sum().backward()
    assert [len(part) for part in seen] == [CHUNK, CHUNK, 7]
    assert torch.equal(torch.cat(seen), hidden)
