"""Attention over packed trees without the mask: rectangles, forward and gradients, against dense masked attention.

Promises: the rectangles are the mask, each pair once; outputs and gradients are those of softmax attention in float64
under that mask; trees side by side do not see each other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

torch = pytest.importorskip("torch")

from twoclock.models.packing import Packed, pack, side_by_side  # noqa: E402
from twoclock.nn.tree_attention import tree_attention, tree_attention_applies  # noqa: E402

Prompts = list[list[int]]
Completions = list[list[list[int]]]


def random_texts(rng: random.Random) -> tuple[Prompts, Completions]:
    """With and without a common root, one-token stems, prompts that are prefixes of others, empty completions and none;
    lengths from 0 to beyond the kernel's blocks."""
    long = rng.random() < 0.05
    root = [rng.randrange(3) for _ in range(rng.choice([0, 0, 1, 4, 90 if long else 9]))]
    prompts, completions = [], []
    for _ in range(rng.randint(1, 5)):
        stem = rng.choice([1, 1, 2, 5, 70 if long else 8])
        prompts.append([*root, *(rng.randrange(3) for _ in range(stem))])
        answers = [[rng.randrange(3) for _ in range(rng.choice([0, 1, 2, 3, 12]))] for _ in range(rng.randint(0, 4))]
        completions.append(answers)
    return prompts, completions


def random_tree(seed: int) -> Packed:
    """One tree, or several side by side."""
    rng = random.Random(seed)
    trees = [pack(*random_texts(rng)) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return trees[0] if len(trees) == 1 else side_by_side(trees)[0]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(size: int, seed: int, heads: int, kv_heads: int, width: int = 8) -> list[torch.Tensor]:
    return [normal(1, h, size, width, seed=seed + n) for n, h in enumerate((heads, kv_heads, kv_heads))]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf")).softmax(-1) @ v


def both(
    parts: Sequence[torch.Tensor], packed: Packed, scale: float, weight: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(output, dq, dk, dv) of tree attention, and of dense attention in float64."""
    ours = [x.clone().requires_grad_() for x in parts]
    out = tree_attention(*ours, packed.rectangles, scale)
    out.backward(weight.to(out.dtype))
    theirs = [x.double().requires_grad_() for x in parts]
    plain = dense(*theirs, packed.mask, scale)
    plain.backward(weight.double())
    return [out.detach(), *(x.grad for x in ours)], [plain.detach(), *(x.grad for x in theirs)]


# --------------------------------------------------------------------------------------------------------- rectangles


def seen_by_rectangles(packed: Packed) -> torch.Tensor:
    """How often each query meets each key."""
    count = torch.zeros(len(packed.tokens), len(packed.tokens), dtype=torch.long)
    for rectangle in packed.rectangles:
        for queries, keys in zip(rectangle.queries.tolist(), rectangle.keys.tolist(), strict=True):
            for t, query in enumerate(queries):
                for u, key in enumerate(keys):
                    if query >= 0 and key >= 0 and (not rectangle.causal or u <= t):
                        count[query, key] += 1
    return count


def test_the_rectangles_are_the_mask_each_pair_once() -> None:
    for seed in range(150):
        packed = random_tree(seed)
        assert torch.equal(seen_by_rectangles(packed), packed.mask.long())


def test_the_form_of_rectangles() -> None:
    """A place is a query once; padding stands at the end; causal ones are square; a row is never padding alone."""
    padded = 0
    for seed in range(300):
        packed = random_tree(seed)
        for r in packed.rectangles:
            for index in (r.queries, r.keys):
                assert bool((index[:, 0] >= 0).all())
                assert bool(((index[:, 1:] < 0) | (index[:, :-1] >= 0)).all())
                padded += int((index < 0).any())
            real = r.queries[r.queries >= 0]
            assert len(real) == len(real.unique())
            assert r.queries.shape[0] == r.keys.shape[0]
            assert not r.causal or torch.equal(r.queries, r.keys)
        everyone = torch.cat([r.queries[r.queries >= 0] for r in packed.rectangles])
        assert set(everyone.tolist()) == set(range(len(packed.tokens)))
    assert padded > 100


def test_most_of_what_is_computed_is_wanted() -> None:
    """Rows of like size go together: padding costs at most as much again as the pairs themselves."""
    wanted = computed = 0
    for seed in range(300):
        packed = random_tree(seed)
        for r in packed.rectangles:
            wanted += int(((r.queries >= 0).sum(1) * (r.keys >= 0).sum(1)).sum())
            computed += r.queries.numel() * r.keys.shape[1]
    assert computed < 2 * wanted


def test_few_rectangles_for_a_group() -> None:
    """Two prompts of 8 answers: segments with themselves, all with the root, answers with stems; not one a leaf."""
    packed = pack([[1] * 9 + [2] * 5, [1] * 9 + [3] * 6], [[[4] * 7] * 8, [[5] * 6] * 8])
    assert len(packed.rectangles) <= 5


def test_a_small_tree_by_hand() -> None:
    #                 root  stem 0  leaf 0.0  leaf 0.1  stem 1
    packed = pack([[1, 2, 3], [1, 2, 4]], [[[7, 8], [9, 10]], [[12]]])
    assert packed.tokens.tolist() == [1, 2, 3, 7, 9, 4]
    causal = [r for r in packed.rectangles if r.causal]
    behind = [r for r in packed.rectangles if not r.causal]
    assert sorted(q for r in causal for q in r.queries.tolist()) == [[0, 1], [2], [3], [4], [5]]
    assert [(r.queries.tolist(), r.keys.tolist()) for r in behind] == [
        ([[2, 3, 4, 5]], [[0, 1]]),
        ([[3, 4]], [[2]]),
    ]


# ----------------------------------------------------------------------------------------------- forward and backward


def test_outputs_and_gradients_are_those_of_dense_attention() -> None:
    """300 trees; the number of query heads a key head goes round."""
    for seed in range(300):
        packed = random_tree(seed)
        heads, kv_heads = ((4, 4), (4, 2), (3, 1), (6, 2))[seed % 4]
        parts = inputs(len(packed.tokens), 10 * seed, heads, kv_heads)
        weight = normal(1, heads, len(packed.tokens), 8, seed=seed)
        for ours, theirs in zip(*both(parts, packed, 0.5, weight), strict=True):
            assert ours.shape == theirs.shape
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("width", [4, 16, 64, 80])
def test_head_widths(width: int) -> None:
    packed = random_tree(3)
    parts = inputs(len(packed.tokens), 7, 4, 2, width)
    for ours, theirs in zip(
        *both(parts, packed, width**-0.5, normal(1, 4, len(packed.tokens), width, seed=1)), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [30.0, -30.0])
def test_huge_scores(size: float) -> None:
    """Scores of thousands, where exp of any of them alone would be infinite or 0. float32 knows such a score, and the
    log-sum-exp, to some 2^-23 of itself, and so the logarithm of a weight to no more; dq is weights times keys."""
    for seed in range(40):
        packed = random_tree(seed)
        q, k, v = inputs(len(packed.tokens), 10 * seed, 4, 2)
        q, k = q.abs() * abs(size), k.abs() * size
        largest = float((q[:, ::2] @ k.transpose(-1, -2)).abs().max())
        assert largest > 3000
        weight = normal(1, 4, len(packed.tokens), 8, seed=seed)
        found = both([q, k, v], packed, 1.0, weight)
        for ours, theirs, factor in zip(*found, (v, k, q, weight), strict=True):
            assert bool(ours.isfinite().all())
            bound = largest * 2**-22 * float(factor.abs().max())
            torch.testing.assert_close(ours.double(), theirs, atol=bound, rtol=bound)


def test_gradients_are_those_of_finite_differences() -> None:
    """Along random directions, of a sum that bends: no oracle is believed but the forward pass itself."""
    for seed in range(12):
        packed = random_tree(seed)
        parts = [x.requires_grad_() for x in inputs(len(packed.tokens), 10 * seed, 4, 2)]

        def value(*xs: torch.Tensor, tree: Packed = packed) -> torch.Tensor:
            return tree_attention(*xs, tree.rectangles, 0.5).sin().sum()

        value(*parts).backward()
        for which in range(3):
            direction = normal(*parts[which].shape, seed=seed + which)
            direction /= direction.norm()
            with torch.no_grad():
                moved = [
                    float(value(*(x + sign * 2e-2 * direction if n == which else x for n, x in enumerate(parts))))
                    for sign in (1, -1)
                ]
            slope = (moved[0] - moved[1]) / 4e-2
            assert float((parts[which].grad * direction).sum()) == pytest.approx(slope, abs=4e-3)


def test_bfloat16_is_float32_rounded_once() -> None:
    for seed in range(20):
        packed = random_tree(seed)
        parts = [x.bfloat16() for x in inputs(len(packed.tokens), 10 * seed, 4, 2)]
        weight = normal(1, 4, len(packed.tokens), 8, seed=seed).bfloat16()
        low = [x.clone().requires_grad_() for x in parts]
        high = [x.float().requires_grad_() for x in parts]
        for xs in (low, high):
            out = tree_attention(*xs, packed.rectangles, 0.5)
            out.backward(weight.to(out.dtype))
        assert torch.equal(
            tree_attention(*low, packed.rectangles, 0.5), tree_attention(*high, packed.rectangles, 0.5).bfloat16()
        )
        for one, other in zip(low, high, strict=True):
            assert one.grad.dtype == torch.bfloat16
            assert torch.equal(one.grad, other.grad.bfloat16())


def test_only_what_is_asked_gets_a_gradient() -> None:
    packed = random_tree(3)
    q, k, v = inputs(len(packed.tokens), 1, 4, 2)
    v.requires_grad_()
    tree_attention(q, k, v, packed.rectangles, 0.5).sum().backward()
    assert q.grad is None
    assert k.grad is None
    # Each query's weights sum to 1.
    assert float(v.grad.sum()) == pytest.approx(4 * len(packed.tokens) * 8, rel=1e-4)


def test_twice_gives_the_same_bits() -> None:
    packed = random_tree(5)
    results = []
    for _ in range(2):
        parts = [x.requires_grad_() for x in inputs(len(packed.tokens), 1, 4, 2)]
        out = tree_attention(*parts, packed.rectangles, 0.5)
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in parts)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_where_the_kernels_apply() -> None:
    assert tree_attention_applies(torch.zeros(1), 0.0)
    assert not tree_attention_applies(torch.zeros(1), 30.0)
    assert not tree_attention_applies(torch.zeros(1, device="meta"), 0.0)


# ------------------------------------------------------------------------------------------------------- side by side


def test_trees_side_by_side_are_the_trees_alone() -> None:
    for seed in range(40):
        rng = random.Random(seed)
        trees = [pack(*random_texts(rng)) for _ in range(rng.randint(1, 4))]
        row, places = side_by_side(trees)
        assert places[0].start == 0
        assert places[-1].stop == len(row.tokens)
        assert torch.equal(seen_by_rectangles(row), row.mask.long())
        assert torch.equal(row.mask, torch.block_diag(*(t.mask.long() for t in trees)).bool())
        parts = inputs(len(row.tokens), seed, 4, 2)
        out = tree_attention(*parts, row.rectangles, 0.5)
        shifted = []
        for tree, at in zip(trees, places, strict=True):
            assert torch.equal(row.tokens[at], tree.tokens)
            assert torch.equal(row.positions[at], tree.positions)
            alone = tree_attention(*(x[:, :, at] for x in parts), tree.rectangles, 0.5)
            torch.testing.assert_close(out[:, :, at], alone, atol=2e-6, rtol=1e-5)
            shifted += [tuple(tuple(i + at.start for i in r) for r in rows) for rows in tree.predicted_from]
        assert row.predicted_from == tuple(shifted)


def two_trees() -> tuple[Packed, slice, slice]:
    """Parts of unequal length, so that there is padding."""
    one = pack([[1, 2]], [[[3, 4], [5, 6, 7]]])
    other = pack([[1, 2], [1, 5, 6]], [[[3, 4, 5], [5]], [[5, 6], [5, 6, 7, 8]]])
    row, (first, second) = side_by_side([one, other])
    assert any(bool((r.keys < 0).any()) for r in row.rectangles)
    return row, first, second


@pytest.mark.parametrize("poisoned", [0, 1])
@pytest.mark.parametrize("which", [[1], [2], [1, 2]], ids=["keys", "values", "both"])
def test_nan_in_one_tree_does_not_reach_the_other(poisoned: int, which: list[int]) -> None:
    """Nor by the padding, which has to read some token."""
    row, *places = two_trees()
    parts = inputs(len(row.tokens), 1, 4, 2)
    expected = tree_attention(*parts, row.rectangles, 0.5)
    for n in which:
        parts[n][:, :, places[poisoned]] = float("nan")
    out = tree_attention(*parts, row.rectangles, 0.5)
    assert not torch.equal(out[:, :, places[poisoned]], expected[:, :, places[poisoned]])
    assert torch.equal(out[:, :, places[1 - poisoned]], expected[:, :, places[1 - poisoned]])


def test_nan_behind_one_prompt_does_not_reach_another() -> None:
    """The first stem shares no token with the second, and its first token is the row's first."""
    packed = pack([[1, 2, 4], [5, 6]], [[[3, 4, 5, 6], [5, 6]], [[5, 6, 7], [5, 6, 7, 8], [9]]])
    assert any(bool((r.keys < 0).any()) for r in packed.rectangles)
    parts = inputs(len(packed.tokens), 1, 4, 2)
    expected = tree_attention(*parts, packed.rectangles, 0.5)
    for x in parts[1:]:
        x[:, :, 0] = float("nan")
    out = tree_attention(*parts, packed.rectangles, 0.5)
    apart = ~packed.mask[:, 0]
    assert int(apart.sum()) > 5
    assert torch.equal(out[:, :, apart], expected[:, :, apart])
