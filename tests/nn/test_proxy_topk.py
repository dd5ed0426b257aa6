"""Top log-probabilities alone: what is certified is exact, whatever is hidden; what is not is said to be a model."""

from __future__ import annotations

import math
import random

import pytest

torch = pytest.importorskip("torch")

from twoclock.nn.proxy_topk import Choice, choose, hidden_bound, hidden_mass, tail_logprobs  # noqa: E402


def top_of(logprobs: torch.Tensor, k: int) -> dict[int, float]:
    values, ids = torch.topk(logprobs, k)
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def distribution(seed: int, vocab: int = 30, sharp: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(sharp * torch.randn(vocab, generator=generator, dtype=torch.float64), -1)


def test_a_case_worked_by_hand() -> None:
    """Told: .6 and .3, so .1 is hidden. A shift of 2 on a hidden token reaches .1·e² = .739 > .6, one of 1.5 .448."""
    top = {0: math.log(0.6), 1: math.log(0.3)}
    assert hidden_mass(top) == pytest.approx(0.1)
    shift = torch.zeros(4)
    shift[3] = 1.5
    found = choose(top, shift, torch.zeros(4))
    assert (found.token, found.certified) == (0, True)
    assert found.margin == pytest.approx(math.log(0.6) - (math.log(0.1) + 1.5), abs=0.02)
    shift[3] = 2.0
    found = choose(top, shift, torch.log(torch.tensor([0.1, 0.1, 0.7, 0.1])))
    assert not found.certified
    assert found.margin < 0.0
    assert found.token == 0  # the tail model gives token 3 an eighth of what is hidden: .0125·e²
    found = choose(top, shift, torch.log(torch.tensor([0.1, 0.1, 0.1, 0.7])))
    assert found.token == 3  # and here seven eighths


@pytest.mark.parametrize("seed", range(300))
def test_certified_steps_are_exact_whatever_is_hidden(seed: int) -> None:
    rng = random.Random(seed)
    base = distribution(seed, sharp=rng.choice([0.5, 2.0, 4.0]))
    shift = rng.choice([0.3, 1.0, 3.0]) * (distribution(seed + 1000) - distribution(seed + 2000)).float()
    top = top_of(base, rng.choice([1, 2, 5, 12]))
    rounded = {token: round(value, 3) for token, value in top.items()}
    exact = int((base + shift).argmax())
    for told in (top, rounded):
        found = choose(told, shift, distribution(seed + 3000))
        if found.certified:
            assert found.token == exact
            assert found.margin > 0.0


def test_it_certifies_often_where_the_base_is_sure_and_never_without_reason() -> None:
    counts = []
    for sharp in (0.3, 4.0):
        found = [
            choose(top_of(distribution(s, sharp=sharp), 5), 0.5 * distribution(s + 9, sharp=0.5), distribution(s + 5))
            for s in range(100)
        ]
        counts.append(sum(f.certified for f in found))
    assert counts[0] < 50
    assert counts[1] > 80


def test_everything_told_is_everything_known() -> None:
    for seed in range(50):
        base, shift = distribution(seed), distribution(seed + 1).float()
        found = choose(top_of(base, 30), shift, torch.zeros(30))
        assert found == Choice(int((base + shift).argmax()), True, math.inf)


def test_no_hidden_token_exceeds_the_bound() -> None:
    for seed in range(200):
        base = distribution(seed, sharp=random.Random(seed).choice([0.2, 3.0, 8.0]))
        for k in (1, 3, 20):
            top = {token: round(value, 3) for token, value in top_of(base, k).items()}
            hidden = [float(v) for i, v in enumerate(base) if i not in top]
            assert max(hidden) <= hidden_bound(top)


def test_where_told_tokens_could_not_be_identified_a_hidden_one_may_have_all_that_is_left() -> None:
    """The most likely token is among them: nothing can be certified against it."""
    base = torch.log(torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64))
    named = {1: float(base[1]), 2: float(base[2])}
    assert choose(named, torch.zeros(3), torch.zeros(3), complete=False).certified is False
    assert choose(named, torch.zeros(3), torch.zeros(3)).certified  # what it would have claimed
    assert choose({0: float(base[0])}, torch.zeros(3), torch.zeros(3), complete=False).certified


def test_what_may_not_be_drawn_is_out_of_the_question() -> None:
    top = {0: math.log(0.6), 1: math.log(0.3)}
    shift = torch.tensor([-math.inf, 0.0, -math.inf, -math.inf])
    assert choose(top, shift, torch.zeros(4)) == Choice(1, True, math.inf)
    shift = torch.tensor([-math.inf, -math.inf, 0.0, -math.inf])
    found = choose(top, shift, torch.zeros(4))
    assert (found.token, found.certified) == (2, False)


def test_the_tail_model_by_hand() -> None:
    found = tail_logprobs({0: math.log(0.5)}, torch.log(torch.tensor([0.4, 0.4, 0.2])))
    assert found.exp().tolist() == pytest.approx([0.5, 1 / 3, 1 / 6])
    assert tail_logprobs({0: 0.0}, torch.zeros(3)).exp().tolist() == [1.0, 0.0, 0.0]
    over = tail_logprobs({0: 0.001, 1: -9.0}, torch.zeros(3))
    assert not over.isnan().any()


def test_a_margin_may_be_asked_for() -> None:
    top = {0: math.log(0.6), 1: math.log(0.3)}
    assert choose(top, torch.zeros(4), torch.zeros(4), least_margin=1.0).certified
    assert not choose(top, torch.zeros(4), torch.zeros(4), least_margin=5.0).certified


def test_nothing_told_is_an_error() -> None:
    with pytest.raises(ValueError, match="told no token"):
        choose({}, torch.zeros(3), torch.zeros(3))
