"""Attention in parts: the fused kernel against the reference, and the merge of parts against the whole."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.attention import attend, attend_reference, fold_heads, merge, unfold_heads  # noqa: E402

B, K, T, S, D = 3, 2, 5, 11, 8
SCALE = D**-0.5


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.fixture
def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return normal(B, K, T, D, seed=1), normal(B, K, S, D, seed=2), normal(B, K, S, D, seed=3)


def seeing_mask(seed: int = 4) -> torch.Tensor:
    """[B, 1, T, S], random, each query sees something."""
    mask = torch.rand(B, 1, T, S, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[..., 0] |= ~mask.any(-1)
    return mask


def test_one_query_by_hand() -> None:
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([0.0, 2.0]).view(1, 1, 2, 1)
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    out, lse = attend_reference(q, k, v, None, scale=0.5)
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(out.flatten(), torch.stack([1 / (1 + e), e / (1 + e)]))
    torch.testing.assert_close(lse.flatten(), torch.log(1 + e)[None])
    capped, _ = attend_reference(q, k, v, None, scale=0.5, softcap=0.7)
    c = (0.7 * torch.tanh(torch.tensor(1 / 0.7))).exp()
    torch.testing.assert_close(capped.flatten(), torch.stack([1 / (1 + c), c / (1 + c)]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_the_reference_is_softmax_attention(qkv: tuple[torch.Tensor, ...], masked: bool, softcap: float) -> None:
    q, k, v = qkv
    mask = seeing_mask() if masked else None
    scores = q @ k.transpose(-1, -2) * SCALE
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    scores = scores.masked_fill(~mask, float("-inf")) if mask is not None else scores
    out, lse = attend_reference(q, k, v, mask, SCALE, softcap)
    torch.testing.assert_close(out, scores.softmax(-1) @ v)
    torch.testing.assert_close(lse, scores.logsumexp(-1))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 5, 70])
@pytest.mark.parametrize("keys", [1, 11, 600])
def test_the_fused_kernel_is_the_reference(masked: bool, queries: int, keys: int) -> None:
    q, k, v = normal(B, K, queries, D, seed=1), normal(B, K, keys, D, seed=2), normal(B, K, keys, D, seed=3)
    mask = None
    if masked:
        mask = torch.rand(B, 1, queries, keys, generator=torch.Generator().manual_seed(5)) < 0.5
        mask[..., -1] = True
    with torch.no_grad():
        fast = attend(q, k, v, mask, SCALE)
    torch.testing.assert_close(fast, attend_reference(q, k, v, mask, SCALE), atol=2e-6, rtol=1e-5)


def test_bfloat16_stays_bfloat16_and_close(qkv: tuple[torch.Tensor, ...]) -> None:
    q, k, v = (x.bfloat16() for x in qkv)
    with torch.no_grad():
        out, lse = attend(q, k, v, seeing_mask(), SCALE)
    exact, exact_lse = attend_reference(q.float(), k.float(), v.float(), seeing_mask(), SCALE)
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.float(), exact, atol=0.05, rtol=0.02)
    torch.testing.assert_close(lse, exact_lse, atol=0.02, rtol=0.02)


def test_with_gradients_and_with_a_softcap_the_reference_answers(qkv: tuple[torch.Tensor, ...]) -> None:
    q, k, v = qkv
    with torch.no_grad():
        assert torch.equal(attend(q, k, v, None, SCALE, 1.5)[0], attend_reference(q, k, v, None, SCALE, 1.5)[0])
    q = q.clone().requires_grad_()
    out, _ = attend(q, k, v, None, SCALE)
    out.sum().backward()
    assert q.grad is not None
    assert bool(q.grad.abs().sum() > 0)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("cuts", [[5], [1, 2], [0, 4, 11], [1, 2, 3, 10]])
def test_merged_parts_are_the_whole(qkv: tuple[torch.Tensor, ...], cuts: list[int], softcap: float) -> None:
    q, k, v = qkv
    mask = seeing_mask()
    whole, _ = attend_reference(q, k, v, mask, SCALE, softcap)
    edges = [0, *cuts, S]
    parts = [
        attend_reference(q, k[:, :, a:b], v[:, :, a:b], mask[..., a:b], SCALE, softcap)
        for a, b in pairwise(edges)
        if b > a
    ]
    torch.testing.assert_close(merge(parts), whole, atol=2e-6, rtol=1e-5)
    assert merge(parts).dtype == q.dtype


def test_a_query_that_sees_nothing_in_one_part(qkv: tuple[torch.Tensor, ...]) -> None:
    q, k, v = qkv
    mask = seeing_mask()
    mask[0, :, :, :6] = False
    mask[0, :, :, 6] = True
    mask[1, :, :, 6:] = False
    mask[1, :, :, 0] = True
    parts = [attend_reference(q, k[:, :, s], v[:, :, s], mask[..., s], SCALE) for s in (slice(0, 6), slice(6, S))]
    assert bool((parts[0][1][0] == float("-inf")).all())
    assert bool((parts[0][0][0] == 0).all())
    assert bool((parts[1][1][1] == float("-inf")).all())
    torch.testing.assert_close(merge(parts), attend_reference(q, k, v, mask, SCALE)[0], atol=2e-6, rtol=1e-5)


def test_scores_that_would_overflow_without_care() -> None:
    q, k = torch.full((1, 1, 1, 1), 60.0), torch.tensor([50.0, 49.0, -50.0]).view(1, 1, 3, 1)
    v = torch.eye(3).view(1, 1, 3, 3)
    whole, lse = attend_reference(q, k, v, None, 1.0)
    parts = [attend_reference(q, k[:, :, i : i + 1], v[:, :, i : i + 1], None, 1.0) for i in range(3)]
    assert lse.item() == pytest.approx(3000.0)
    torch.testing.assert_close(merge(parts), whole)
    assert whole.flatten().tolist() == pytest.approx([1.0, 0.0, 0.0])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_folded_heads_are_grouped_query_attention(groups: int) -> None:
    heads = K * groups
    q, k, v = normal(B, heads, T, D, seed=1), normal(B, K, S, D, seed=2), normal(B, K, S, D, seed=3)
    folded = fold_heads(q, K)
    assert folded.shape == (B, K, groups * T, D)
    assert torch.equal(unfold_heads(folded, heads), q)
    mask = seeing_mask()
    out, _ = attend_reference(folded, k, v, mask.repeat(1, 1, groups, 1), SCALE)
    plain = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), attn_mask=mask, scale=SCALE
    )
    torch.testing.assert_close(unfold_heads(out, heads), plain, atol=2e-6, rtol=1e-5)
