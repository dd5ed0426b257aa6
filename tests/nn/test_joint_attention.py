"""One softmax over shared and own keys, against one row at a time over its keys side by side; and the causal kernel.

Promises: any division of the rows into parts (slices, lists of rows, rows without a part, parts of unequal length)
gives what each row alone would give; what a row does not share cannot reach it, be it NaN.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.attention import (  # noqa: E402
    KeyPart,
    attend_causal,
    attend_reference,
    fold_heads,
    joint_attention,
    joint_attention_reference,
    unfold_heads,
)

BARRED = float("-inf")


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Case:
    """The arguments of the two functions, and for each level the part (None: none) of each row."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    levels: list[list[KeyPart]]
    shared_bias: torch.Tensor | None
    own_bias: torch.Tensor
    scale: float

    def arguments(self, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        levels = [[KeyPart(p.rows, p.keys.to(dtype), p.values.to(dtype)) for p in level] for level in self.levels]
        bias = None if self.shared_bias is None else self.shared_bias.to(dtype)
        q, k, v = (x.to(dtype) for x in (self.q, self.k, self.v))
        return q, k, v, levels, bias, self.own_bias.to(dtype), self.scale


def part(rows: Sequence[int], length: int, kv_heads: int, width: int, seed: int) -> KeyPart:
    """A slice where the rows stand side by side, else a list of them, as the callers do."""
    together = list(rows) == list(range(rows[0], rows[-1] + 1))
    at: Any = slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows)
    return KeyPart(at, normal(kv_heads, length, width, seed=seed), normal(kv_heads, length, width, seed=seed + 1))


def random_case(seed: int) -> Case:
    """Up to three levels; rows divided at random among up to three parts and none; columns barred at random."""
    rng = random.Random(seed)
    rows, kv_heads, queries, width = rng.randint(1, 6), rng.randint(1, 3), rng.randint(1, 4), 4
    own = rng.randint(1, 9)
    levels, biases = [], []
    for level in range(rng.randint(0, 3)):
        owner = [rng.randrange(-1, 3) for _ in range(rows)]
        if all(o < 0 for o in owner):
            owner[0] = 0
        parts, sizes = [], {}
        for o in sorted({o for o in owner if o >= 0}):
            sizes[o] = rng.randint(1, 7)
            members = [r for r in range(rows) if owner[r] == o]
            parts.append(part(members, sizes[o], kv_heads, width, 1000 * seed + 10 * level + 2 * o))
        bias = torch.full((rows, 1, 1, max(sizes.values())), BARRED)
        for r, o in enumerate(owner):
            for column in range(sizes.get(o, 0)):
                # Most are seen; what a window hides is a column of a part that the row has.
                bias[r, 0, 0, column] = 0.0 if rng.random() < 0.8 else BARRED
        levels.append(parts)
        biases.append(bias)
    own_bias = torch.full((rows, 1, 1, own), BARRED)
    for r in range(rows):
        seen = [rng.randrange(own), *(c for c in range(own) if rng.random() < 0.6)]
        own_bias[r, 0, 0, seen] = 0.0
    return Case(
        normal(rows, kv_heads, queries, width, seed=seed) * 2,
        normal(rows, kv_heads, own, width, seed=seed + 1),
        normal(rows, kv_heads, own, width, seed=seed + 2),
        levels,
        torch.cat(biases, dim=-1) if biases else None,
        own_bias,
        rng.choice([0.5, 1.3]),
    )


def test_one_row_by_hand() -> None:
    """Scores 0 (shared) and 1 (own): the values come with weights 1/(1+e) and e/(1+e)."""
    q = torch.full((1, 1, 1, 2), 2.0)
    shared = KeyPart(slice(0, 1), torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]]))
    k, v = torch.tensor([[[[0.25, 0.75]]]]), torch.tensor([[[[0.0, 1.0]]]])
    out = joint_attention(q, k, v, [[shared]], None, torch.zeros(1, 1, 1, 1), scale=0.5)
    assert out.flatten().tolist() == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)], rel=1e-6)
    capped = joint_attention(q, k, v, [[shared]], None, torch.zeros(1, 1, 1, 1), scale=0.5, softcap=0.7)
    c = math.exp(0.7 * math.tanh(1 / 0.7))
    assert capped.flatten().tolist() == pytest.approx([1 / (1 + c), c / (1 + c)], rel=1e-6)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_any_division_is_one_row_at_a_time(softcap: float) -> None:
    levels = set()
    for seed in range(150):
        case = random_case(seed)
        levels.add(len(case.levels))
        ours = joint_attention(*case.arguments(), softcap)
        torch.testing.assert_close(ours, joint_attention_reference(*case.arguments(), softcap), atol=2e-6, rtol=2e-5)
        assert bool(ours.isfinite().all())
    assert levels == {0, 1, 2, 3}


def test_the_reference_is_attention_over_the_seen_keys() -> None:
    """Without the function that both share: float64 softmax over a list of (score, value)."""
    for seed in range(20):
        case = random_case(seed)
        out = joint_attention_reference(*case.arguments())
        for row in range(len(case.q)):
            keys, values, start = [], [], 0
            for level in case.levels:
                for p in level:
                    if row in torch.arange(len(case.q))[p.rows]:
                        assert case.shared_bias is not None
                        seen = case.shared_bias[row, 0, 0, start : start + p.keys.shape[1]] == 0
                        keys.append(p.keys[:, seen])
                        values.append(p.values[:, seen])
                start += max(p.keys.shape[1] for p in level)
            seen = case.own_bias[row, 0, 0] == 0
            k = torch.cat([*keys, case.k[row][:, seen]], dim=1).double()
            v = torch.cat([*values, case.v[row][:, seen]], dim=1).double()
            whole = (case.q[row].double() @ k.transpose(1, 2) * case.scale).softmax(-1) @ v
            torch.testing.assert_close(out[row].double(), whole, atol=2e-6, rtol=2e-5)


def test_rows_as_a_slice_and_as_a_list_are_the_same() -> None:
    for seed in range(40):
        case = random_case(seed)
        rows = torch.arange(len(case.q))
        listed = [[KeyPart(rows[p.rows], p.keys, p.values) for p in level] for level in case.levels]
        q, k, v, levels, *rest = case.arguments()
        assert torch.equal(joint_attention(q, k, v, levels, *rest), joint_attention(q, k, v, listed, *rest))


def test_where_all_is_seen_no_bias_is_needed() -> None:
    """Two levels; every row has a part of the full width in each."""
    q, k, v = (normal(4, 2, n, 8, seed=n) for n in (3, 5, 5))
    levels = [
        [part([0, 1, 2, 3], 6, 2, 8, 20)],
        [part([0, 2], 4, 2, 8, 30), part([1, 3], 4, 2, 8, 40)],
    ]
    own = torch.zeros(4, 1, 1, 5)
    ours = joint_attention(q, k, v, levels, None, own, 0.4)
    torch.testing.assert_close(ours, joint_attention_reference(q, k, v, levels, None, own, 0.4))
    with_zeros = joint_attention(q, k, v, levels, torch.zeros(4, 1, 1, 10), own, 0.4)
    assert torch.equal(ours, with_zeros)


def test_without_levels_it_is_attention_over_the_rows_own_keys() -> None:
    q, k, v = normal(3, 2, 4, 8, seed=1), normal(3, 2, 6, 8, seed=2), normal(3, 2, 6, 8, seed=3)
    own = torch.zeros(3, 1, 1, 6)
    own[1, ..., 2:] = BARRED
    ours = joint_attention(q, k, v, [], None, own, 0.4)
    torch.testing.assert_close(ours, attend_reference(q, k, v, own == 0, 0.4)[0], atol=2e-6, rtol=2e-5)


def test_bfloat16_is_within_its_rounding() -> None:
    """Scores below 16 are rounded to 2^-5 of bf16's 8 bits and so are the probabilities: 0.1 on values of size 1."""
    for seed in range(60):
        case = random_case(seed)
        q, k, v, levels, bias, own, scale = case.arguments(torch.bfloat16)
        out = joint_attention(q, k, v, levels, bias, own, scale)
        assert out.dtype == torch.bfloat16
        exact = joint_attention_reference(
            q.float(),
            k.float(),
            v.float(),
            [[KeyPart(p.rows, p.keys.float(), p.values.float()) for p in level] for level in levels],
            None if bias is None else bias.float(),
            own.float(),
            scale,
        )
        assert float((out.float() - exact).abs().max()) < 0.1
        assert float((out.float() - exact).abs().mean()) < 0.02


def test_scores_that_would_overflow_without_care() -> None:
    """Scores of ±3000: the largest takes all, wherever it stands."""
    q = torch.full((2, 1, 1, 1), 60.0)
    shared = KeyPart(slice(0, 2), torch.tensor([[[50.0], [-50.0]]]), torch.tensor([[[1.0], [2.0]]]))
    k, v = torch.tensor([49.0, 51.0]).view(2, 1, 1, 1), torch.tensor([3.0, 4.0]).view(2, 1, 1, 1)
    out = joint_attention(q, k, v, [[shared]], None, torch.zeros(2, 1, 1, 1), 1.0)
    assert out.flatten().tolist() == pytest.approx([1.0, 4.0])


def test_nothing_that_is_handed_in_is_written_to() -> None:
    for seed in range(20):
        case = random_case(seed)
        arguments = case.arguments()
        tensors = [case.q, case.k, case.v, case.own_bias, *([] if case.shared_bias is None else [case.shared_bias])]
        tensors += [t for level in case.levels for p in level for t in (p.keys, p.values)]
        before = [t.clone() for t in tensors]
        joint_attention(*arguments, 1.5)
        joint_attention(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_nothing_that_was_in_the_buffer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns beyond a short part, and of a row without one, are never filled; what stood there weighs nothing."""
    cases = [random_case(seed) for seed in range(60)]
    expected = [joint_attention(*case.arguments()) for case in cases]
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *shape, **options: self.new_full(shape, float("nan"), **options)
    )
    for case, clean in zip(cases, expected, strict=True):
        assert torch.equal(joint_attention(*case.arguments()), clean)


@pytest.mark.parametrize("where", ["keys", "values"])
def test_nan_in_a_part_reaches_those_who_share_it_only(where: str) -> None:
    reached = spared = 0
    for seed in range(60):
        case = random_case(seed)
        if case.shared_bias is None:
            continue
        expected = joint_attention(*case.arguments())
        poisoned = case.levels[0][0]
        (poisoned.keys if where == "keys" else poisoned.values)[:] = float("nan")
        out = joint_attention(*case.arguments())
        sharing = torch.zeros(len(case.q), dtype=torch.bool)
        sharing[poisoned.rows] = True
        assert torch.equal(out[~sharing], expected[~sharing])
        reached += int(out[sharing].isnan().any())
        spared += int((~sharing).sum())
    assert reached > 20
    assert spared > 20


def test_nan_in_a_rows_own_keys_stays_in_the_row() -> None:
    for seed in range(40):
        case = random_case(seed)
        expected = joint_attention(*case.arguments())
        for tensor in (case.q, case.k, case.v):
            tensor[-1] = float("nan")
        out = joint_attention(*case.arguments())
        assert bool(out[-1].isnan().all())
        assert torch.equal(out[:-1], expected[:-1])


# ------------------------------------------------------------------------------------------------------ attend_causal


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 9, 70])
def test_causal_attention_is_the_reference_under_a_triangle(gradients: bool, groups: int, size: int) -> None:
    q, k, v = normal(3, 2 * groups, size, 8, seed=1), normal(3, 2, size, 8, seed=2), normal(3, 2, size, 8, seed=3)
    with torch.set_grad_enabled(gradients):
        out, lse = attend_causal(q, k, v, 0.7)
    mask = torch.ones(size, size).tril().bool().repeat(groups, 1)
    expected, expected_lse = attend_reference(fold_heads(q, 2), k, v, mask, 0.7)
    torch.testing.assert_close(out, unfold_heads(expected, 2 * groups), atol=2e-6, rtol=1e-5)
    assert lse.shape == q.shape[:3]
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse, expected_lse.reshape(q.shape[:3]), atol=2e-6, rtol=1e-5)


def test_causal_attention_has_gradients() -> None:
    q, k, v = (normal(2, n, 5, 8, seed=n).requires_grad_() for n in (4, 2, 2))
    out, lse = attend_causal(q, k, v, 0.7)
    weight = normal(2, 4, 5, 8, seed=9)
    ((out * weight).sum() + lse.sum()).backward()
    found = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    scores = (q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.7).masked_fill(
        ~torch.ones(5, 5).tril().bool(), BARRED
    )
    plain = scores.softmax(-1) @ v.repeat_interleave(2, 1)
    ((plain * weight).sum() + scores.logsumexp(-1).sum()).backward()
    for ours, x in zip(found, (q, k, v), strict=True):
        torch.testing.assert_close(ours, x.grad, atol=1e-5, rtol=1e-4)
