"""Policy losses by hand at every branch of every clip, by finite differences, and against one another on-policy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import pytest

torch = pytest.importorskip("torch")

from objective_batch import batch  # noqa: E402

from twoclock.nn.objective_table import OBJECTIVES, Objective, ObjectiveName, tau_from_trl, tau_from_verl  # noqa: E402
from twoclock.nn.objectives import denominator, policy_loss  # noqa: E402

NAMES = tuple(OBJECTIVES)
WEIGHED = tuple(name for name in NAMES if not OBJECTIVES[name].on_policy_only)
LN2 = 0.6931471805599453


def doubles(*rows: Any) -> Any:
    return torch.tensor(rows, dtype=torch.float64)


def test_the_table() -> None:
    """The defaults, and that every name of the type has its row."""
    assert get_args(ObjectiveName) == NAMES == tuple(row.name for row in OBJECTIVES.values())
    read = {
        name: (o.advantage, o.ratio, o.clip, o.clip_low, o.clip_high, o.aggregation) for name, o in OBJECTIVES.items()
    }
    assert read == {
        "grpo": ("std", "token", "ppo", 0.2, 0.2, "sequence_mean"),
        "dr_grpo": ("centred", "token", "ppo", 0.2, 0.2, "constant"),
        "dapo": ("std", "token", "ppo", 0.2, 0.28, "token_mean"),
        "cispo": ("std", "token", "cap", 0.0, 4.0, "token_mean"),
        "gspo": ("std", "sequence", "ppo", 3e-4, 4e-4, "sequence_value"),
        "rloo": ("leave_one_out", "none", "none", 0.0, 0.0, "sequence_sum"),
        "reinforce": ("batch", "none", "none", 0.0, 0.0, "sequence_sum"),
    }
    assert [name for name in NAMES if OBJECTIVES[name].on_policy_only] == ["rloo", "reinforce"]
    with pytest.raises(TypeError):
        OBJECTIVES["mine"] = OBJECTIVES["grpo"]  # type: ignore[index]


# One token that has probability ½ now, so log π = −ln 2, and had ½/ρ; A = ±2. Each row: the loss, its derivative by
# log π, and whether the clip is active. ppo: −min(ρA, bound · A), with ρ's derivative ρ; cap: −bound(ρ) · A · log π.
PPO_02 = {
    (0.5, 2.0): (-1.0, -1.0, 0),  # min(1, 1.6)
    (0.5, -2.0): (1.6, 0.0, 1),  # min(−1, −1.6): held at 0.8
    (1.0, 2.0): (-2.0, -2.0, 0),
    (1.0, -2.0): (2.0, 2.0, 0),
    (2.0, 2.0): (-2.4, 0.0, 1),  # min(4, 2.4): held at 1.2
    (2.0, -2.0): (4.0, 4.0, 0),  # min(−4, −2.4)
    (10.0, 2.0): (-2.4, 0.0, 1),
    (10.0, -2.0): (20.0, 20.0, 0),
}
WORKED = {
    "grpo": PPO_02,
    "dr_grpo": PPO_02,
    "dapo": PPO_02 | {(2.0, 2.0): (-2.56, 0.0, 1), (10.0, 2.0): (-2.56, 0.0, 1)},  # held at 1.28
    "cispo": {
        (0.5, 2.0): (LN2, -1.0, 0),
        (0.5, -2.0): (-LN2, 1.0, 0),
        (1.0, 2.0): (2 * LN2, -2.0, 0),
        (1.0, -2.0): (-2 * LN2, 2.0, 0),
        (2.0, 2.0): (4 * LN2, -4.0, 0),
        (2.0, -2.0): (-4 * LN2, 4.0, 0),
        (10.0, 2.0): (8 * LN2, -8.0, 1),  # a weight of 4 in place of 10: capped, not removed, for either sign
        (10.0, -2.0): (-8 * LN2, 8.0, 1),
    },
    "gspo": {
        (0.5, 2.0): (-1.0, -1.0, 0),
        (0.5, -2.0): (1.9994, 0.0, 1),  # held at 0.9997
        (1.0, 2.0): (-2.0, -2.0, 0),
        (1.0, -2.0): (2.0, 2.0, 0),
        (2.0, 2.0): (-2.0008, 0.0, 1),  # held at 1.0004
        (2.0, -2.0): (4.0, 4.0, 0),
        (10.0, 2.0): (-2.0008, 0.0, 1),
        (10.0, -2.0): (20.0, 20.0, 0),
    },
    # Without a ratio: −A log π, whatever the token's probability was.
    "rloo": {(rho, a): (a * LN2, -a, 0) for rho in (0.5, 1.0, 2.0, 10.0) for a in (2.0, -2.0)},
    "reinforce": {(rho, a): (a * LN2, -a, 0) for rho in (0.5, 1.0, 2.0, 10.0) for a in (2.0, -2.0)},
}


def one_token(objective: Objective, rho: float, advantage: float, **clip: float) -> tuple[float, float, int]:
    new = doubles([math.log(0.5)]).requires_grad_()
    old, mask = doubles([math.log(0.5 / rho)]), torch.ones(1, 1, dtype=torch.float64)
    loss, clipped = policy_loss(objective, new, old, torch.tensor([advantage], dtype=torch.float64), mask, **clip)
    (gradient,) = torch.autograd.grad(loss, new)
    assert clipped.shape == ()
    assert not clipped.requires_grad
    return float(loss.detach()), float(gradient), int(clipped)


@pytest.mark.parametrize(("name", "rho", "advantage"), [(n, *case) for n, table in WORKED.items() for case in table])
def test_every_branch_by_hand(name: str, rho: float, advantage: float) -> None:
    assert one_token(OBJECTIVES[name], rho, advantage) == pytest.approx(WORKED[name][rho, advantage], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rho", [0.01, 1.0, 100.0])
def test_no_advantage_no_gradient_and_nothing_clipped(name: str, rho: float) -> None:
    assert one_token(OBJECTIVES[name], rho, 0.0) == (0.0, 0.0, 0)


def test_both_conventions_of_the_cap() -> None:
    """TRL caps at epsilon_high itself; verl at 1 + clip_ratio_high, with a floor of 1 − clip_ratio_low."""
    assert tau_from_trl(5.0) == (0.0, 5.0)
    assert tau_from_verl(1.0, 3.0) == (0.0, 4.0) == (OBJECTIVES["cispo"].clip_low, OBJECTIVES["cispo"].clip_high)
    assert tau_from_verl(0.25, 3.0) == (0.75, 4.0)
    assert tau_from_verl(10.0, 0.2) == (0.0, 1.2)
    cispo = OBJECTIVES["cispo"]
    # A = 2: the gradient is −2 times the weight.
    for bounds, weights in (
        (tau_from_trl(3.0), {0.5: (0.5, 0), 2.0: (2.0, 0), 10.0: (3.0, 1)}),
        (tau_from_verl(0.25, 3.0), {0.5: (0.75, 1), 2.0: (2.0, 0), 10.0: (4.0, 1)}),
    ):
        for rho, (weight, clipped) in weights.items():
            _, gradient, count = one_token(cispo, rho, 2.0, clip_low=bounds[0], clip_high=bounds[1])
            assert (gradient, count) == (pytest.approx(-2 * weight), clipped)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_caps_that_make_no_sense_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="epsilon_high"):
        tau_from_trl(bad)
    if bad != 0.0:
        with pytest.raises(ValueError, match="distances from 1"):
            tau_from_verl(1.0, bad)
        with pytest.raises(ValueError, match="distances from 1"):
            tau_from_verl(bad, 3.0)


def test_a_sequence_has_one_ratio_the_geometric_mean() -> None:
    # Ratios 2 and 8: s = 4. Ratios 2 and ½: s = 1. Ratios ¼ and (padding) 100: s = ¼.
    old = doubles([math.log(0.25), math.log(0.05)], [math.log(0.25), math.log(0.8)], [math.log(0.8), math.log(0.001)])
    ratios = doubles([2.0, 8.0], [2.0, 0.5], [0.25, 100.0])
    new = (old + ratios.log()).requires_grad_()
    mask = doubles([1.0, 1.0], [1.0, 1.0], [1.0, 0.0])
    gspo = OBJECTIVES["gspo"]
    # A < 0 keeps 4 and 1 and holds ¼ at 1 − ½; one value a sequence: 4·1, 1·2, 0.5·3.
    advantages = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    loss, clipped = policy_loss(gspo, new, old, advantages, mask, clip_low=0.5, clip_high=0.5)
    (gradient,) = torch.autograd.grad(loss, new)
    assert float(loss.detach()) == pytest.approx(4.0 + 2.0 + 1.5)
    # d s / d log π_t = s / |y|.
    torch.testing.assert_close(gradient, doubles([2.0, 2.0], [1.0, 1.0], [0.0, 0.0]))
    assert int(clipped) == 1
    # A > 0 holds 4 at 1.5 and keeps 1 and ¼: two tokens beyond, one sequence counted.
    loss, clipped = policy_loss(gspo, new, old, -advantages, mask, clip_low=0.5, clip_high=0.5)
    assert float(loss.detach()) == pytest.approx(-(1.5 + 2.0 + 0.75))
    assert int(clipped) == 1


def test_gspo_with_an_advantage_a_token() -> None:
    """GSPO-token: the sequence's ratio, each token's own advantage and gradient. s = 4, held at 1.5 where A > 0."""
    old = doubles([math.log(0.25), math.log(0.05)])
    new = (old + doubles([2.0, 8.0]).log()).requires_grad_()
    loss, clipped = policy_loss(
        OBJECTIVES["gspo"], new, old, doubles([1.0, -1.0]), torch.ones_like(old), clip_low=0.5, clip_high=0.5
    )
    (gradient,) = torch.autograd.grad(loss, new)
    assert float(loss.detach()) == pytest.approx(-(1.5 - 4.0) / 2)
    torch.testing.assert_close(gradient, doubles([0.0, 4.0 / 2]))
    assert int(clipped) == 1


# What the derivative of the *sum* by log π of a token is divided by, in a rollout of |y| tokens.
PER_TOKEN = {"grpo": True, "gspo": True, "dapo": False, "cispo": False, "dr_grpo": False}


@pytest.mark.parametrize("name", WEIGHED)
def test_on_policy_all_gradients_are_equal_up_to_the_aggregation(name: str) -> None:
    """At ρ = 1 the derivative is −A_i, over |y_i| where each sequence is averaged by itself."""
    new, _, advantages, mask = batch()
    leaf = new.clone().requires_grad_()
    loss, clipped = policy_loss(OBJECTIVES[name], leaf, new, advantages, mask)
    (gradient,) = torch.autograd.grad(loss, leaf)
    lengths = mask.sum(-1, keepdim=True).clamp(min=1.0) if PER_TOKEN[name] else 1.0
    torch.testing.assert_close(gradient, -advantages[:, None] * mask / lengths)
    assert int(clipped) == 0
    # Divided by the batch's own denominator, at equal lengths T: 1/(N T) for all, for Dr. GRPO 1/(N max_tokens).
    equal = torch.ones_like(new)
    loss, _ = policy_loss(OBJECTIVES[name], leaf, new, advantages, equal)
    (gradient,) = torch.autograd.grad(loss, leaf)
    divided = gradient / denominator(OBJECTIVES[name], rollouts=6, tokens=24, max_tokens=8)
    torch.testing.assert_close(divided, -advantages[:, None] * equal / (48 if name == "dr_grpo" else 24))


@pytest.mark.parametrize("name", NAMES)
def test_the_old_log_probabilities_may_be_the_very_same_tensor(name: str) -> None:
    """Nothing flows through them, so that ρ = 1 does not cancel its own gradient."""
    new, _, advantages, mask = batch()
    leaf = new.clone().requires_grad_()
    (same,) = torch.autograd.grad(policy_loss(OBJECTIVES[name], leaf, leaf, advantages, mask)[0], leaf)
    (apart,) = torch.autograd.grad(policy_loss(OBJECTIVES[name], leaf, new, advantages, mask)[0], leaf)
    assert torch.equal(same, apart)
    assert float(same.abs().sum()) > 0


CHOSEN = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])
TOKENS = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
FOR_TWO_TOKENS = {"gspo": {"clip_low": 0.05, "clip_high": 0.05}, "cispo": {"clip_low": 0.5, "clip_high": 1.1}}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finite_differences_on_a_softmax_of_two_tokens(name: str, sign: float) -> None:
    objective, clip = OBJECTIVES[name], FOR_TWO_TOKENS.get(name, {})
    at = torch.tensor([0.5, -0.4], dtype=torch.float64)
    old = torch.log_softmax(torch.tensor([0.0, 0.1], dtype=torch.float64), -1)[CHOSEN]
    advantages = sign * torch.tensor([0.7, -1.1, 0.4, -0.3], dtype=torch.float64)

    def logprobs(x: Any) -> Any:
        return torch.log_softmax(x, -1)[CHOSEN]

    # The weights at this point, by the formula: CISPO's derivative holds them where they are.
    held = torch.exp(logprobs(at) - old).clamp(0.5, 1.1)

    def loss(x: Any) -> Any:
        if name == "cispo":
            return -(held * advantages[:, None] * logprobs(x) * TOKENS).sum()
        return policy_loss(objective, logprobs(x), old, advantages, TOKENS, **clip)[0]

    leaf = at.clone().requires_grad_()
    total, clipped = policy_loss(objective, logprobs(leaf), old, advantages, TOKENS, **clip)
    (gradient,) = torch.autograd.grad(total, leaf)
    for index in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[index] = 1e-6
        slope = float(loss(at + step) - loss(at - step)) / 2e-6
        assert float(gradient[index]) == pytest.approx(slope, rel=1e-6, abs=1e-9)
    live = 4 if objective.ratio == "sequence" else int(TOKENS.sum())
    # Some are clipped and some are not, so that both kinds of branch were differentiated.
    assert objective.on_policy_only or 0 < int(clipped) < live
    assert float(gradient.abs().sum()) > 1e-3


def test_an_unclipped_ratio_weighs_and_counts_nothing() -> None:
    plain = dataclasses.replace(OBJECTIVES["grpo"], clip="none")
    assert one_token(plain, 10.0, 2.0) == pytest.approx((-20.0, -20.0, 0))


@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_counted_where_the_clip_acts(seed: int) -> None:
    new, old, advantages, mask = batch(seed, spread=3.0)
    _, clipped = policy_loss(OBJECTIVES["grpo"], new, old, advantages, mask, clip_low=0.1, clip_high=0.4)
    ratio, sign = (new - old).exp(), advantages[:, None].expand_as(new)
    by_hand = sum(
        (a > 0 and r > 1.4) or (a < 0 and r < 0.9)
        for r, a, m in zip(ratio.flatten().tolist(), sign.flatten().tolist(), mask.flatten().tolist(), strict=True)
        if m
    )
    assert int(clipped) == by_hand > 0
