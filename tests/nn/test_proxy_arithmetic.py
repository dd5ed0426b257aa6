"""The sum of shifts against the equation written down: one row and one token at a time, by hand where it is small.

Promises: α = 0 and equal sides are the base; base equal to the anti-expert with α = 1 is the expert; several shifts
add; the restriction never leaves a row without a token; infinities and unknown tokens make no NaN.
"""

from __future__ import annotations

import math
import random

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.proxy import (  # noqa: E402
    Difference,
    aligned,
    alphas_at,
    mixed,
    normalized,
    shifted,
    shifted_reference,
    token_shifts,
)

CPU = torch.device("cpu")


def draw(seed: int, rows: int = 5, vocab: int = 11) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def alpha(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_a_case_worked_by_hand() -> None:
    """s = (0, 1), s⁺ = (2, 0), s⁻ = (0, 0): α = 1 gives (2, 1) and p = e/(1 + e) for the first token; α = ½ a tie."""
    base, expert, anti = torch.tensor([[0.0, 1.0]] * 2), torch.tensor([[2.0, 0.0]] * 2), torch.zeros(2, 2)
    found = shifted(base, [Difference(expert, anti, alpha(1.0, 0.5))])
    assert found.tolist() == [[2.0, 1.0], [1.0, 1.0]]
    assert float(found[0].softmax(-1)[0]) == pytest.approx(math.e / (1 + math.e))


def test_it_is_a_product_of_experts() -> None:
    """p ∝ p_M (p⁺ / p⁻)^α: the same in probabilities, normalized by hand."""
    base, expert, anti = draw(1), draw(2), draw(3)
    a = 0.7
    p = base.softmax(-1) * (expert.softmax(-1) / anti.softmax(-1)) ** a
    expected = p / p.sum(-1, keepdim=True)
    found = shifted(base, [Difference(expert, anti, torch.full((5,), a))]).softmax(-1)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_any_sum_of_shifts_is_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    rows, vocab = rng.randrange(1, 5), rng.randrange(2, 9)
    differences = []
    for k in range(rng.randrange(0, 4)):
        expert, anti = draw(100 * seed + 2 * k, rows, vocab), draw(100 * seed + 2 * k + 1, rows, vocab)
        if rng.random() < 0.4:  # banned here and there, by one side or both
            expert[rng.randrange(rows), rng.randrange(vocab - 1)] = -math.inf
            anti[rng.randrange(rows), rng.randrange(vocab - 1)] = -math.inf
        covered = None
        if rng.random() < 0.5:
            covered = torch.tensor([rng.random() < 0.7 for _ in range(vocab)])
            covered[vocab - 1] = True
        weights = torch.tensor([rng.choice([0.0, 0.0, 1.0, -0.5, 2.0]) for _ in range(rows)])
        differences.append(Difference(expert, anti, weights, rng.choice([0.0, 0.1, 1.0]), covered))
    base = draw(seed + 9000, rows, vocab)
    expected = shifted_reference(base, differences)
    found = shifted(base, differences)
    assert torch.equal(found.isneginf(), expected.isneginf())
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert not found.isnan().any()
    assert (found > -math.inf).any(dim=-1).all()


def test_the_identities() -> None:
    base, expert, anti = draw(1), draw(2), draw(3)
    none, one = torch.zeros(5), torch.ones(5)
    assert torch.equal(shifted(base, [Difference(expert, anti, none, plausible=0.5)]), base)
    assert torch.equal(shifted(base, [Difference(expert, expert, one)]), base)
    assert torch.equal(shifted(base, []), base)
    assert torch.allclose(shifted(base, [Difference(expert, base, one)]), expert, atol=1e-5)


def test_a_constant_in_the_logits_cancels_where_the_whole_vocabulary_has_it() -> None:
    base, expert, anti = draw(1), draw(2), draw(3)
    one = torch.ones(5)
    raw = shifted(base, [Difference(expert + 7.0, anti - 3.0, one)]).softmax(-1)
    logs = shifted(base, [Difference(normalized(expert), normalized(anti), one)]).softmax(-1)
    assert torch.allclose(raw, logs, atol=1e-6)


def test_a_constant_in_the_logits_does_not_cancel_where_a_token_lacks_it() -> None:
    """Why log-probabilities are needed with a covered set: without them the constants move the uncovered tokens."""
    base, expert, anti = draw(1), draw(2), draw(3)
    covered = torch.arange(11) > 2
    one = torch.ones(5)
    raw, moved = (shifted(base, [Difference(expert + c, anti, one, covered=covered)]).softmax(-1) for c in (0.0, 7.0))
    assert not torch.allclose(raw, moved, atol=1e-2)
    logs = [
        shifted(base, [Difference(normalized(expert + c, covered), normalized(anti, covered), one, covered=covered)])
        for c in (0.0, 7.0)
    ]
    assert torch.allclose(*logs, atol=1e-5)
    assert torch.equal(logs[0][:, :3], base[:, :3])


def test_the_restriction_by_hand() -> None:
    """p⁺ = (.5, .25, .125, .125): β = ½ keeps two tokens, β = 1 one, β = ⅛ all."""
    expert = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    base = torch.zeros(1, 4)
    for level, kept in ((0.5, 2), (1.0, 1), (0.125, 4), (0.2, 4), (0.26, 2)):
        found = shifted(base, [Difference(expert, expert * 0, alpha(1.0), plausible=level)])
        assert int((found > -math.inf).sum()) == kept


def test_two_restrictions_leave_what_either_allows() -> None:
    one, two = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 9.0, 0.0]])
    zero = torch.zeros(1, 3)
    both = [Difference(one, zero, alpha(1.0), plausible=1.0), Difference(two, zero, alpha(1.0), plausible=1.0)]
    assert (shifted(zero, both) > -math.inf).tolist() == [[True, True, False]]
    off = [both[0], Difference(two, zero, alpha(0.0), plausible=1.0)]
    assert (shifted(zero, off) > -math.inf).tolist() == [[True, False, False]]


def test_a_token_that_both_sides_rule_out_is_no_nan_and_a_nan_stays_one() -> None:
    base, expert, anti = draw(1), draw(2), draw(3)
    expert[0, 0] = anti[0, 0] = -math.inf
    found = shifted(base, [Difference(expert, anti, torch.ones(5))])
    assert found[0, 0] == base[0, 0]
    expert[1, 4] = math.nan
    assert shifted(base, [Difference(expert, anti, torch.ones(5))])[1, 4].isnan()


def test_gradients_flow_into_the_base_alone() -> None:
    base = draw(1).double().requires_grad_()
    expert, anti = draw(2).double(), draw(3).double()

    def loss(b: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(shifted(b, [Difference(expert, anti, torch.ones(5))]), -1)[:, 3].sum()

    (grad,) = torch.autograd.grad(loss(base), base)
    expected = torch.nn.functional.one_hot(torch.tensor(3), 11) - (base + expert - anti).softmax(-1)
    assert torch.allclose(grad, expected.to(grad), atol=1e-6)


def test_a_schedule_holds_its_last_number() -> None:
    assert alphas_at([[1.0, 0.5], [2.0], [0.0, 1.0, 2.0]], [0, 7, 1], CPU).tolist() == [1.0, 2.0, 1.0]
    assert alphas_at([[1.0, 0.5]], [9], CPU).tolist() == [0.5]


def test_a_mixture_with_one_weight_of_one_is_that_model_bit_for_bit() -> None:
    one, two = draw(1).bfloat16(), draw(2).bfloat16()
    two[0, 0] = math.inf
    found = mixed([(one, alpha(1, 1, 0, 0, 1)), (two, alpha(0, 0, 1, 1, 0))])
    assert torch.equal(found, torch.cat([one[:2], two[2:4], one[4:]]).float())
    assert torch.equal(mixed([(one, torch.ones(5))]), one.float())
    sum_of = mixed([(draw(1), torch.full((5,), 0.5)), (draw(2), torch.full((5,), -2.0))])
    assert torch.allclose(sum_of, 0.5 * draw(1) - 2.0 * draw(2), atol=1e-6)


def test_rows_that_are_no_token_take_no_part() -> None:
    logits = draw(4)
    logits[:, 9:] = 50.0
    known = torch.arange(11) < 9
    assert torch.allclose(normalized(logits, known)[:, :9], logits[:, :9].log_softmax(-1), atol=1e-6)
    assert normalized(logits, known)[:, 9:].isneginf().all()


def test_aligning_by_index() -> None:
    values = torch.tensor([[10.0, 20.0, 30.0]])
    assert aligned(values, torch.tensor([2, -1, 0, 0])).tolist() == [[30.0, 0.0, 10.0, 10.0]]


def test_the_record_of_a_step_by_hand() -> None:
    base, moved = torch.log(torch.tensor([[0.7, 0.3], [0.7, 0.3]])), torch.log(torch.tensor([[0.4, 0.6], [0.9, 0.1]]))
    found = token_shifts(base, moved, torch.tensor([1, 0]))
    assert found.before.exp().tolist() == pytest.approx([0.3, 0.7])
    assert found.after.exp().tolist() == pytest.approx([0.6, 0.9])
    assert found.top.tolist() == [0, 0]
    assert found.changed.tolist() == [True, False]
