"""Drawing tokens: the fast way against the slow one, the law of large numbers, and the corners of float arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from scipy import stats  # noqa: E402

from twoclock.nn.sampling import filter_logits, sample_tokens, sample_tokens_reference, uniforms  # noqa: E402

TOP = 1.0 - 2.0**-53
"""The largest float64 below 1, which a generator can hand out."""

FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 5},
    {"top_p": 0.7},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    {"temperature": 0.0},
]


def normal_logits(rows: int, vocab: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def draws(count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(uniforms(seed, count))


def assert_like_reference(logits: torch.Tensor, u: torch.Tensor, **how: float) -> None:
    """Equal, but for draws that lie on a token's border to float32's rounding; there, the neighbour is as right."""
    tokens, logprobs = sample_tokens(logits, u, **how)
    expected, expected_logprobs = sample_tokens_reference(logits, u, **how)
    same = tokens == expected
    torch.testing.assert_close(logprobs[same], expected_logprobs[same], atol=2e-6, rtol=1e-5)
    filtered = filter_logits(logits, how.get("temperature", 1.0), int(how.get("top_k", 0)), how.get("top_p", 1.0))
    for row in (~same).nonzero()[:, 0].tolist():
        ends = torch.softmax(filtered[row].double(), -1).cumsum(-1)
        low, high = sorted((int(tokens[row]), int(expected[row])))
        assert torch.isfinite(filtered[row, int(tokens[row])])
        assert ends[high - 1] - ends[low] < 1e-6
        assert abs(float(ends[low] - u[row])) < 1e-6
    assert int((~same).sum()) <= max(1, len(u) // 500)


@pytest.mark.parametrize("vocab", [2, 255, 256, 257, 1000])
@pytest.mark.parametrize("how", FILTERS, ids=str)
def test_fast_is_the_reference(vocab: int, how: dict[str, float]) -> None:
    assert_like_reference(normal_logits(200, vocab, seed=vocab), draws(200, seed=vocab), **how)


@pytest.mark.parametrize("u", [0.0, 1e-300, 1e-12, 0.5, 1 - 1e-12, TOP])
@pytest.mark.parametrize("how", FILTERS[:6], ids=str)
def test_extreme_uniforms(u: float, how: dict[str, float]) -> None:
    logits = normal_logits(40, 700, seed=3)
    logits[:, :300] = float("-inf")
    logits[:, 650:] = float("-inf")
    tokens, logprobs = sample_tokens(logits, torch.full((40,), u, dtype=torch.float64), **how)
    assert bool(torch.isfinite(logprobs).all())
    filtered = filter_logits(logits, how.get("temperature", 1.0), int(how.get("top_k", 0)), how.get("top_p", 1.0))
    possible = torch.isfinite(filtered)
    if u <= 1e-300:
        assert torch.equal(tokens, possible.int().argmax(-1))
    if u == TOP:
        after = torch.softmax(filtered.double(), -1).flip(-1).cumsum(-1).flip(-1)
        assert bool((after.gather(1, tokens[:, None] + 1) < 1e-6).all())


@pytest.mark.parametrize("drop", [0.0, 10.0, 22.0])
def test_a_border_between_blocks_never_gives_a_token_without_mass(drop: float) -> None:
    """Draws that fall exactly on the end of one block, where the next one begins with excluded tokens; ``drop`` makes
    each block that much less likely than the one before, so that sums of their masses round."""
    rows = 2000
    logits = normal_logits(rows, 4 * 256, seed=11)
    for block in range(1, 4):
        logits[:, block * 256 :] -= drop
        logits[:, block * 256 : block * 256 + 9] = float("-inf")
    mass = (logits - logits.amax(-1, keepdim=True)).exp().view(rows, 4, 256).sum(-1).double()
    ends = mass.cumsum(-1)
    for block in range(3):
        u = ends[:, block] / ends[:, -1]
        for shift in (-1, 0, 1):
            near = torch.from_numpy(np.nextafter(u.numpy(), shift * np.inf) if shift else u.numpy())
            _, logprobs = sample_tokens(logits, near)
            assert bool(torch.isfinite(logprobs).all())


def test_only_one_token_is_possible() -> None:
    logits = torch.full((3, 600), float("-inf"))
    logits[0, 0] = logits[1, 599] = logits[2, 300] = -5.0
    for u in (0.0, 0.5, TOP):
        tokens, logprobs = sample_tokens(logits, torch.full((3,), u, dtype=torch.float64))
        assert tokens.tolist() == [0, 599, 300]
        assert logprobs.tolist() == [0.0, 0.0, 0.0]


def test_ties_share_the_unit_interval_evenly() -> None:
    u = torch.arange(0.0, 1.0, 1 / 1024, dtype=torch.float64)
    tokens, logprobs = sample_tokens(torch.zeros(1024, 512), u)
    assert tokens.tolist() == [i // 2 for i in range(1024)]
    assert logprobs.tolist() == pytest.approx([-math.log(512)] * 1024)


def test_top_k_keeps_all_that_tie_at_its_border() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 0.0]])
    kept = torch.isfinite(filter_logits(logits, 1.0, 2, 1.0))
    assert kept.tolist() == [[True, True, True, False]]


def test_top_p_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    for p, kept in [(0.4, [1]), (0.5, [1]), (0.6, [1, 3]), (0.76, [1, 2, 3]), (0.99, [0, 1, 2, 3]), (1e-9, [1])]:
        assert torch.isfinite(filter_logits(logits, 1.0, 0, p)).nonzero()[:, 1].tolist() == kept, p


def test_top_p_counts_after_top_k() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    # Of the two that top-k leaves, the first has 0.625 of the mass: enough for 0.6, not for 0.65.
    assert torch.isfinite(filter_logits(logits, 1.0, 2, 0.6)).sum() == 1
    assert torch.isfinite(filter_logits(logits, 1.0, 2, 0.65)).sum() == 2


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.8}], ids=str)
def test_frequencies_are_the_probabilities(how: dict[str, float]) -> None:
    logits = normal_logits(1, 300, seed=5, spread=1.5)
    count = 20_000
    tokens, logprobs = sample_tokens(logits.expand(count, -1), draws(count, seed=8), **how)
    filtered = filter_logits(logits, how.get("temperature", 1.0), int(how.get("top_k", 0)), how.get("top_p", 1.0))
    probs = torch.softmax(filtered[0].double(), -1).numpy()
    seen = np.bincount(tokens.numpy(), minlength=300)
    assert seen[probs == 0].sum() == 0
    common = probs * count >= 5
    observed, expected = list(seen[common]), list(probs[common] * count)
    if (rare := (probs > 0) & ~common).any():
        observed, expected = [*observed, seen[rare].sum()], [*expected, probs[rare].sum() * count]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    # The log-probabilities are those of the distribution drawn from.
    assert logprobs.double().exp().numpy() == pytest.approx(probs[tokens.numpy()], rel=1e-5)


def test_greedy_reports_the_log_probability_at_temperature_one() -> None:
    logits = normal_logits(6, 500, seed=2)
    tokens, logprobs = sample_tokens(logits, draws(6, seed=0), temperature=0.0)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0])


@pytest.mark.parametrize("how", FILTERS, ids=str)
def test_a_draw_does_not_depend_on_the_other_rows(how: dict[str, float]) -> None:
    logits, u = normal_logits(64, 1000, seed=6), draws(64, seed=6)
    tokens, logprobs = sample_tokens(logits, u, **how)
    for rows in ([5], [9, 5, 3], list(range(63, -1, -1))):
        some, some_logprobs = sample_tokens(logits[rows], u[rows], **how)
        assert torch.equal(some, tokens[rows])
        assert torch.equal(some_logprobs, logprobs[rows])


def test_bfloat16_logits_are_sampled_in_float32() -> None:
    logits, u = normal_logits(50, 400, seed=9).bfloat16(), draws(50, seed=9)
    for got, wanted in zip(sample_tokens(logits, u), sample_tokens(logits.float(), u), strict=True):
        assert torch.equal(got, wanted)


def test_logits_that_are_no_numbers_give_no_finite_log_probability() -> None:
    logits = normal_logits(4, 300, seed=1)
    logits[1, 7] = float("nan")
    logits[2] = float("-inf")
    for how in FILTERS:
        tokens, logprobs = sample_tokens(logits, draws(4, seed=1), **how)
        assert torch.isfinite(logprobs).tolist() == [True, False, False, True]
        assert bool(((tokens >= 0) & (tokens < 300)).all())


def test_streams_are_keyed_by_their_seed() -> None:
    assert np.array_equal(uniforms(7, 5), uniforms(7, 9)[:5])
    assert not np.array_equal(uniforms(7, 5), uniforms(8, 5))
    many = np.concatenate([uniforms(seed, 50) for seed in range(400)])
    assert stats.kstest(many, "uniform").pvalue > 1e-3
    assert 0.0 <= many.min() < many.max() < 1.0
    assert np.isfinite(uniforms(2**63 - 1, 3)).all()
