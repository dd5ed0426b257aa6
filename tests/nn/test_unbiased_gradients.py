"""Which objectives follow the gradient of the expected reward: every outcome of a tiny policy, enumerated.

The policy writes one or two tokens out of three, the first of which ends the answer; its logits depend on the token
before. So there are seven answers, of both lengths, and 7^G groups of G rollouts, each with a known probability.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.advantages import advantages  # noqa: E402
from twoclock.nn.objective_table import OBJECTIVES, Objective  # noqa: E402
from twoclock.nn.objectives import denominator, policy_loss  # noqa: E402

ANSWERS = ((0,), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2))
MASK = torch.tensor([[1.0, float(len(a) > 1)] for a in ANSWERS], dtype=torch.float64)
REWARDS = (1.0, 0.0, 0.5, 0.25, 0.0, 1.0, 0.75)
OTHER_REWARDS = (0.25, 1.0, 0.0, 0.0, 0.5, 0.0, 1.0)
TOKENS = 2


def policy() -> tuple[Any, Any]:
    """(logits [3, 3], a leaf: at the start, after token 1, after token 2; log-probabilities of the answers [7, 2])."""
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
    table = torch.log_softmax(logits, -1)
    rows = [torch.stack([table[0, a[0]], table[a[0], a[1]] if len(a) > 1 else table[0, 0] * 0]) for a in ANSWERS]
    return logits, torch.stack(rows)


def exact_gradient(logits: Any, logprobs: Any, rewards: Sequence[float]) -> Any:
    """∇ of minus the expected reward of one answer."""
    chance = (logprobs * MASK).sum(-1).exp()
    assert float(chance.detach().sum()) == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad(-(chance * torch.tensor(rewards).double()).sum(), logits, retain_graph=True)
    return gradient


def expected_gradient(objective: Objective, logits: Any, logprobs: Any, tables: Sequence[Sequence[Sequence[float]]]):  # type: ignore[no-untyped-def]
    """The expectation of the batch's gradient over all outcomes. ``tables`` has a group for each item, and in it the
    item's rewards once a rollout."""
    rollouts = [table for group in tables for table in group]
    chance = (logprobs.detach() * MASK).sum(-1).exp()
    total = torch.zeros((), dtype=torch.float64)
    for outcome in itertools.product(range(len(ANSWERS)), repeat=len(rollouts)):
        drawn = iter([table[i] for table, i in zip(rollouts, outcome, strict=True)])
        rows = advantages(objective, [[next(drawn) for _ in group] for group in tables])
        flat = torch.tensor([a for row in rows for a in row], dtype=torch.float64)
        chosen, mask = logprobs[list(outcome)], MASK[list(outcome)]
        loss, clipped = policy_loss(objective, chosen, chosen.detach(), flat, mask)
        assert int(clipped) == 0
        divisor = denominator(objective, rollouts=len(rollouts), tokens=float(mask.sum()), max_tokens=TOKENS)
        total = total + chance[list(outcome)].prod() * loss / divisor
    return torch.autograd.grad(total, logits, retain_graph=True)[0]


@pytest.mark.parametrize("count", [2, 3])
def test_leaving_one_out_is_unbiased_and_centring_shrinks(count: int) -> None:
    logits, logprobs = policy()
    exact = exact_gradient(logits, logprobs, REWARDS)
    assert float(exact.norm()) > 0.1
    rloo = OBJECTIVES["rloo"]
    torch.testing.assert_close(expected_gradient(rloo, logits, logprobs, [[REWARDS] * count]), exact)
    centred = dataclasses.replace(rloo, advantage="centred")
    shrunk = (count - 1) / count * exact
    torch.testing.assert_close(expected_gradient(centred, logits, logprobs, [[REWARDS] * count]), shrunk)


def test_reinforce_is_unbiased_with_one_rollout_of_each_item() -> None:
    """Every group is of one rollout, where the group-relative objectives learn nothing."""
    logits, logprobs = policy()
    items = [[REWARDS], [OTHER_REWARDS]]
    exact = sum(exact_gradient(logits, logprobs, table) for (table,) in items) / 2
    torch.testing.assert_close(expected_gradient(OBJECTIVES["reinforce"], logits, logprobs, items), exact)
    for name in ("rloo", "grpo", "dr_grpo"):
        assert float(expected_gradient(OBJECTIVES[name], logits, logprobs, items).norm()) == 0.0


def test_reinforce_is_unbiased_over_groups_of_different_sizes() -> None:
    logits, logprobs = policy()
    exact = (2 * exact_gradient(logits, logprobs, REWARDS) + exact_gradient(logits, logprobs, OTHER_REWARDS)) / 3
    batch = [[REWARDS, REWARDS], [OTHER_REWARDS]]
    torch.testing.assert_close(expected_gradient(OBJECTIVES["reinforce"], logits, logprobs, batch), exact)


def test_dr_grpo_is_the_gradient_up_to_its_two_constants() -> None:
    logits, logprobs = policy()
    ours = expected_gradient(OBJECTIVES["dr_grpo"], logits, logprobs, [[REWARDS] * 2])
    torch.testing.assert_close(ours, exact_gradient(logits, logprobs, REWARDS) / 2 / TOKENS)


@pytest.mark.parametrize("name", ["grpo", "dapo", "cispo", "gspo"])
def test_dividing_by_lengths_or_deviations_is_biased(name: str) -> None:
    """The control: were the comparison blind, these would pass it too. Another direction, not only another length."""
    logits, logprobs = policy()
    ours = expected_gradient(OBJECTIVES[name], logits, logprobs, [[REWARDS] * 3]).flatten()
    exact = exact_gradient(logits, logprobs, REWARDS).flatten()
    assert float(torch.nn.functional.cosine_similarity(ours, exact, dim=0)) < 0.999
