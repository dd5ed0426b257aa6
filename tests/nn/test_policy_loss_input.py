"""Policy losses over pieces, padding, extremes and mistakes; and what their sums are divided by."""

from __future__ import annotations

import dataclasses
import math

import pytest

torch = pytest.importorskip("torch")

from objective_batch import batch  # noqa: E402

from twoclock.nn.objective_table import OBJECTIVES  # noqa: E402
from twoclock.nn.objectives import denominator, policy_loss  # noqa: E402

NAMES = tuple(OBJECTIVES)
WEIGHED = tuple(name for name in NAMES if not OBJECTIVES[name].on_policy_only)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_add_up_to_the_whole(name: str) -> None:
    objective = OBJECTIVES[name]
    new, old, advantages, mask = batch()
    leaf = new.clone().requires_grad_()
    whole, count = policy_loss(objective, leaf, old, advantages, mask)
    cuts = (slice(0, 1), slice(1, 4), slice(4, 4), slice(4, 6))
    pieces = [policy_loss(objective, leaf[s], old[s], advantages[s], mask[s]) for s in cuts]
    torch.testing.assert_close(sum(loss for loss, _ in pieces), whole)
    assert sum(int(n) for _, n in pieces) == int(count)
    (together,) = torch.autograd.grad(whole, leaf)
    (apart,) = torch.autograd.grad(sum(loss for loss, _ in pieces), leaf)
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("name", NAMES)
def test_one_advantage_a_token_of_one_value_is_one_a_rollout(name: str) -> None:
    new, old, advantages, mask = batch()
    leaf = new.clone().requires_grad_()
    spread = advantages[:, None].expand(-1, 4).clone()
    spread[mask == 0] = math.nan
    one, some = (policy_loss(OBJECTIVES[name], leaf, old, a, mask) for a in (advantages, spread))
    assert torch.equal(one[0], some[0])
    assert int(one[1]) == int(some[1])
    assert torch.equal(torch.autograd.grad(one[0], leaf)[0], torch.autograd.grad(some[0], leaf)[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gspo"])
def test_advantages_of_tokens_weigh_their_own_tokens(name: str) -> None:
    """A token's derivative is what it would be, had the whole rollout its advantage."""
    new, old, _, mask = batch()
    by_token = torch.randn(6, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    leaf = new.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(policy_loss(OBJECTIVES[name], leaf, old, by_token, mask)[0], leaf)
    for column in range(4):
        loss, _ = policy_loss(OBJECTIVES[name], leaf, old, by_token[:, column], mask)
        torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0][:, column], gradient[:, column])


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_not_read_and_empty_completions_are_nothing(name: str) -> None:
    objective = OBJECTIVES[name]
    new, old, advantages, mask = batch()
    clean, count = policy_loss(objective, new, old, advantages, mask)
    for junk in (math.nan, math.inf, -math.inf, 1e30):
        dirty_new, dirty_old = (x.masked_fill(mask == 0, junk) for x in (new, old))
        leaf = dirty_new.requires_grad_()
        loss, n = policy_loss(objective, leaf, dirty_old, advantages, mask.bool())
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert float(loss.detach()) == float(clean)
        assert int(n) == int(count)
        assert bool(torch.isfinite(gradient).all())
        assert bool((gradient[mask == 0] == 0).all())
    nothing, n = policy_loss(objective, new, old, advantages, torch.zeros_like(mask))
    assert (float(nothing), int(n)) == (0.0, 0)
    for shape in ((0, 4), (3, 0)):
        empty = torch.zeros(shape, requires_grad=True)
        nothing, n = policy_loss(objective, empty, empty.detach(), torch.ones(shape[0]), torch.ones(shape))
        nothing.backward()
        assert (float(nothing.detach()), int(n)) == (0.0, 0)


@pytest.mark.parametrize("name", WEIGHED)
@pytest.mark.parametrize("gap", [-1000.0, -30.0, 30.0, 1000.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_out_of_bounds_overflows_nowhere_and_is_counted(name: str, gap: float, advantage: float) -> None:
    old = torch.full((1, 2), -1000.0)
    leaf = (old + gap).requires_grad_()
    loss, clipped = policy_loss(OBJECTIVES[name], leaf, old, torch.tensor([advantage]), torch.ones(1, 2))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradient).all())
    if name == "cispo":
        # Within [0, 4] a weight of nearly nothing is no clip.
        assert int(clipped) == (2 if gap > 0 else 0)
        assert gradient.flatten().tolist() == pytest.approx([-advantage * (4.0 if gap > 0 else 0.0)] * 2, abs=1e-6)
    else:
        assert int(clipped) == (1 if name == "gspo" else 2)
        assert bool((gradient == 0).all())


def test_a_log_probability_that_is_no_number_shows_in_the_loss() -> None:
    """Only padding is forgiven: a NaN at a real token must reach whoever checks the loss."""
    new, old, advantages, mask = batch()
    new[0, 0] = math.nan
    for objective in OBJECTIVES.values():
        assert bool(torch.isnan(policy_loss(objective, new, old, advantages, mask)[0]))


@pytest.mark.parametrize("name", ["rloo", "reinforce"])
def test_without_a_ratio_the_old_policy_is_not_read(name: str) -> None:
    new, old, advantages, mask = batch()
    loss, clipped = policy_loss(OBJECTIVES[name], new, None, advantages, mask)
    for other in (old, old * math.nan, old[:1]):
        assert float(policy_loss(OBJECTIVES[name], new, other, advantages, mask)[0]) == float(loss)
    assert float(loss) == pytest.approx(-float((advantages[:, None] * new * mask).sum()))
    assert int(clipped) == 0


@pytest.mark.parametrize(
    ("name", "divisor"),
    [
        ("grpo", 6.0),
        ("gspo", 6.0),
        ("rloo", 6.0),
        ("reinforce", 6.0),
        ("dapo", 100.0),
        ("cispo", 100.0),
        ("dr_grpo", 384.0),
    ],
)
def test_denominators(name: str, divisor: float) -> None:
    assert denominator(OBJECTIVES[name], rollouts=6, tokens=100.0, max_tokens=64) == divisor


def test_denominators_that_make_no_sense_are_refused() -> None:
    for objective in OBJECTIVES.values():
        with pytest.raises(ValueError, match="at least one rollout"):
            denominator(objective, rollouts=0, tokens=0.0, max_tokens=8)
    with pytest.raises(ValueError, match="max_tokens"):
        denominator(OBJECTIVES["dr_grpo"], rollouts=1, tokens=1.0, max_tokens=0)
    with pytest.raises(ValueError, match="tokens is a count"):
        denominator(OBJECTIVES["dapo"], rollouts=1, tokens=math.nan, max_tokens=8)
    assert denominator(OBJECTIVES["dapo"], rollouts=3, tokens=0.0, max_tokens=8) == 1.0


def test_shapes_that_do_not_match_are_named() -> None:
    new, old, advantages, mask = batch()
    grpo = OBJECTIVES["grpo"]
    with pytest.raises(ValueError, match=r"\[rollouts, tokens\]; got \(4,\)"):
        policy_loss(grpo, new[0], old[0], advantages[:1], mask[0])
    with pytest.raises(ValueError, match=r"mask must be \(6, 4\).*got \(6, 3\)"):
        policy_loss(grpo, new, old, advantages, mask[:, :3])
    with pytest.raises(ValueError, match=r"old_logprobs must be \(6, 4\).*got \(5, 4\)"):
        policy_loss(grpo, new, old[:5], advantages, mask)
    with pytest.raises(ValueError, match="'grpo' weighs by"):
        policy_loss(grpo, new, None, advantages, mask)
    # Columns: a [T] or an [N, 1] would broadcast without a word.
    for wrong in (advantages[:4], advantages[:, None], advantages[:1]):
        with pytest.raises(ValueError, match=r"advantages must be \(6,\) or"):
            policy_loss(grpo, new, old, wrong, mask)


@pytest.mark.parametrize(
    ("name", "clip", "said"),
    [
        ("rloo", {"clip_high": 0.2}, "clips nothing"),
        ("reinforce", {"clip_low": 0.0}, "clips nothing"),
        ("grpo", {"clip_low": -0.1}, "distances from 1"),
        ("gspo", {"clip_high": math.nan}, "distances from 1"),
        ("cispo", {"clip_low": 5.0}, "weight itself"),
        ("cispo", {"clip_low": -1.0}, "weight itself"),
        ("cispo", {"clip_high": 0.0}, "weight itself"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(name: str, clip: dict[str, float], said: str) -> None:
    new, old, advantages, mask = batch()
    with pytest.raises(ValueError, match=said):
        policy_loss(OBJECTIVES[name], new, old, advantages, mask, **clip)


def test_rows_that_make_no_sense_are_refused_with_all_their_mistakes() -> None:
    with pytest.raises(ValueError, match="nothing to clip") as caught:
        dataclasses.replace(OBJECTIVES["gspo"], ratio="none", clip_low=-1.0)
    assert len(caught.value.problems) == 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="sequence_value"):
        dataclasses.replace(OBJECTIVES["grpo"], aggregation="sequence_value")
