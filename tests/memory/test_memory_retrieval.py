"""Choosing by value: the softmax and draws without replacement against enumeration, the laws of every retriever."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from twoclock.errors import ConfigError, NumericsError, StoreError
from twoclock.memory.calibration import auc, bins, brier, calibration_error, regret
from twoclock.memory.records import Entry, Hit
from twoclock.memory.retrieval import Candidate, Outcome, Retriever, Selection, build_retriever
from twoclock.memory.softmax import (
    entropy,
    gumbel_top_k,
    inclusion_probabilities,
    log_weights,
    order_log_probability,
    soft_value,
    softmax,
)
from twoclock.seeding import child_rng

D = 6


def hit(n: int, similarity: float | None = None, reward: float | None = None) -> Hit:
    entry = Entry(kind="case", key=f"situation {n}", text=f"do {n}", reward=reward)
    return Hit(entry=entry, score=1.0 / (1 + n), similarity=similarity)


HITS = [hit(n, similarity=0.9 - 0.05 * n, reward=float(n % 2)) for n in range(5)]


def unit(*numbers: float) -> np.ndarray:
    array = np.zeros(D, np.float32)
    array[: len(numbers)] = numbers
    return (array / np.linalg.norm(array)).astype(np.float32)


QUERY = unit(1.0, 0.2)
VECTORS = np.stack([unit(1.0, 0.1 * n, 0.3) for n in range(5)])
NAMES = ["topk", "random", "kernel", "parametric"]
LEARNED = ["kernel", "parametric"]


def make(name: str, **options: Any) -> Retriever[Any]:
    return build_retriever(name, **({"encoder": "test:6", "dimension": D} | options if name in LEARNED else options))


def choose(retriever: Retriever[Any], state: Any, k: int = 2, seed: int = 0, hits: list[Hit] = HITS) -> Any:
    return retriever.choose(state, QUERY, hits, k, seed, vectors=VECTORS[: len(hits)])


def experienced(retriever: Retriever[Any], episodes: int = 40) -> Any:
    """A state after episodes in which the third hit alone succeeds."""
    state = retriever.init(0)
    rng = child_rng("experience", 0)
    for _ in range(episodes):
        n = rng.randrange(len(HITS))
        case = Candidate(
            id=HITS[n].entry.id,
            similarity=HITS[n].similarity,
            vector=VECTORS[n],
            reward=HITS[n].entry.reward,
            propensity=0.2,
        )
        state = retriever.learn(state, [Outcome(query=QUERY, shown=(case,), reward=float(n == 2))])
    return state


# ---------------------------------------------------------------------------------------------- softmax, enumerated


def plackett_luce(weights: list[float], order: tuple[int, ...]) -> float:
    """Draw by draw, as defined."""
    probability, left = 1.0, sum(weights)
    for index in order:
        probability *= weights[index] / left
        left -= weights[index]
    return probability


def test_softmax_by_hand() -> None:
    # exp(0), exp(1), exp(2) at temperature 1/2: values 0, .5, 1.
    total = 1 + math.e + math.e**2
    assert softmax([0.0, 0.5, 1.0], 0.5) == pytest.approx([1 / total, math.e / total, math.e**2 / total])
    assert soft_value([0.0, 0.5, 1.0], 0.5) == pytest.approx(0.5 * math.log(total))
    assert entropy([0.5, 0.5, 0.0]) == pytest.approx(math.log(2))


def test_the_soft_value_is_the_expected_value_and_its_entropy() -> None:
    values, alpha = np.array([0.3, -0.2, 0.9, 0.1]), 0.37
    mu = softmax(values, alpha)
    assert soft_value(values, alpha) == pytest.approx(float(mu @ values) + alpha * entropy(mu))
    assert soft_value([], alpha) == 0.0


def test_extreme_values_and_temperatures_stay_finite() -> None:
    assert softmax([1e300, -1e300], 1e-9).tolist() == pytest.approx([1.0, 0.0], abs=1e-80)
    assert softmax([1.0, 1.0, 1.0], 1e9) == pytest.approx([1 / 3] * 3)
    assert softmax([], 1.0).tolist() == []
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="temperature"):
            softmax([1.0], bad)
    with pytest.raises(NumericsError, match="NaN or infinite"):
        softmax([1.0, math.nan], 1.0)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_inclusion_probabilities_are_those_of_enumeration(k: int) -> None:
    weights = [0.05, 1.0, 0.4, 0.4, 0.001]
    expected = np.zeros(5)
    for order in itertools.permutations(range(5), k):
        expected[list(order)] += plackett_luce(weights, order)
    found = inclusion_probabilities(np.log(weights), k)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found.sum() == pytest.approx(k, abs=1e-11)


def test_inclusion_probabilities_at_the_edges() -> None:
    assert inclusion_probabilities(np.zeros(3), 0).tolist() == [0, 0, 0]
    assert inclusion_probabilities(np.zeros(3), 3).tolist() == [1, 1, 1]
    assert inclusion_probabilities(np.zeros(0), 2).tolist() == []
    wide = inclusion_probabilities(log_weights([0.0, 1.0, 1.0, 2.0], 0.001), 2)
    assert wide == pytest.approx([0.0, 0.5, 0.5, 1.0], abs=1e-12)
    for alpha in (1e-9, 1e9):  # nothing overflows, and the sum stays
        assert inclusion_probabilities(log_weights([0.0, 1.0, 1.5, 2.0], alpha), 3).sum() == pytest.approx(3.0)
    many = inclusion_probabilities(np.linspace(-30, 0, 100), 16)
    assert many.sum() == pytest.approx(16, abs=1e-9)
    assert (np.diff(many) > 0).all()


def test_gumbel_top_k_draws_by_plackett_luce() -> None:
    weights, draws = [0.5, 1.0, 0.25], 6000
    rng = child_rng("draws", 3)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        order = gumbel_top_k(np.log(weights), 2, rng)
        counts[order] = counts.get(order, 0) + 1
    chi = 0.0
    for order in itertools.permutations(range(3), 2):
        p = plackett_luce(weights, order)
        assert order_log_probability(np.log(weights), order) == pytest.approx(math.log(p))
        chi += (counts[order] - draws * p) ** 2 / (draws * p)
    assert chi < 15.1  # the .99 quantile of chi-square with 5 degrees of freedom
    with pytest.raises(ConfigError, match="twice"):
        order_log_probability([0.0, 0.0], [1, 1])


# ------------------------------------------------------------------------------------------- laws of every retriever


@pytest.mark.parametrize("name", NAMES)
def test_none_of_nothing(name: str) -> None:
    retriever = make(name)
    for state in (retriever.init(0), experienced(retriever)):
        assert choose(retriever, state, k=0).entries == ()
        assert choose(retriever, state, hits=[]).entries == ()
        everything = choose(retriever, state, k=99)
        assert len(everything.entries) == 5
        assert everything.propensities == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("name", NAMES)
def test_k_different_hits_with_their_propensities(name: str) -> None:
    retriever = make(name)
    state = experienced(retriever)
    for k, seed in itertools.product((1, 2, 4), range(5)):
        chosen = choose(retriever, state, k=k, seed=seed)
        assert len({e.id for e in chosen.entries}) == k == len(chosen.propensities)
        assert sum(c.propensity for c in chosen.candidates) == pytest.approx(k)
        assert all(0.0 < p <= 1.0 for p in chosen.propensities)
        again = choose(retriever, state, k=k, seed=seed)
        assert [e.id for e in again.entries] == [e.id for e in chosen.entries]


@pytest.mark.parametrize("name", ["topk", "kernel", "parametric"])
def test_a_cold_start_is_the_search_s_order(name: str) -> None:
    retriever = make(name)
    for seed in range(5):
        chosen = choose(retriever, retriever.init(seed), k=3, seed=seed)
        assert [e.id for e in chosen.entries] == [h.entry.id for h in HITS[:3]]
        assert chosen.propensities == (1.0, 1.0, 1.0)
        assert chosen.log_probability == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_states_are_values_with_exact_bytes(name: str) -> None:
    retriever = make(name)
    state = experienced(retriever)
    blob = retriever.dump(state)
    assert retriever.dump(retriever.load(blob)) == blob
    before = retriever.dump(retriever.init(0))
    choose(retriever, state)
    retriever.learn(state, [])
    assert retriever.dump(state) == blob
    assert retriever.dump(retriever.init(0)) == before
    one, other = (choose(retriever, s, k=3, seed=4) for s in (state, retriever.load(blob)))
    assert [e.id for e in one.entries] == [e.id for e in other.entries]
    assert one.values == other.values


@pytest.mark.parametrize("name", LEARNED)
def test_learning_touches_nothing_and_repeats(name: str) -> None:
    retriever = make(name)
    state = experienced(retriever)
    before = retriever.dump(state)
    case = Candidate(id="x", vector=VECTORS[0], similarity=0.5)
    outcome = Outcome(query=QUERY, shown=(case,), reward=1.0)
    one, other = (retriever.learn(state, [outcome, outcome]) for _ in range(2))
    assert retriever.dump(state) == before
    assert retriever.dump(one) == retriever.dump(other) != before
    arrays = [v for v in vars(one).values() if isinstance(v, np.ndarray)]
    assert arrays
    assert not any(a.flags.writeable for a in arrays)


@pytest.mark.parametrize("name", LEARNED)
def test_the_case_that_helps_comes_first(name: str) -> None:
    retriever = make(name, selection=Selection(rule="greedy"))
    chosen = choose(retriever, experienced(retriever, 200), k=1)
    assert chosen.entries[0].id == HITS[2].entry.id
    assert chosen.propensities == (1.0,)
    soft = make(name)
    chosen = choose(soft, experienced(soft, 200), k=1)
    helpful = {c.id: c.propensity for c in chosen.candidates}[HITS[2].entry.id]
    assert 0.5 < helpful < 1.0


@pytest.mark.parametrize("name", LEARNED)
def test_below_the_floor_nothing_is_shown(name: str) -> None:
    retriever = make(name, selection=Selection(floor=0.35))
    shown = choose(retriever, experienced(retriever, 300), k=5)
    assert [e.id for e in shown.entries] == [HITS[2].entry.id]
    assert sorted(c.propensity for c in shown.candidates) == [0.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("name", LEARNED)
def test_numbers_stay_finite_whatever_the_rewards(name: str) -> None:
    retriever = make(name, by_propensity=True, **({"balanced": True} if name == "parametric" else {}))
    for rewards in ([0.0] * 60, [1.0] * 60, [0.0, 1.0] * 30):
        state = retriever.init(1)
        for n, reward in enumerate(rewards):
            case = Candidate(id=str(n % 3), vector=VECTORS[n % 3], propensity=0.0 if n % 7 == 0 else 1e-12)
            state = retriever.learn(state, [Outcome(query=QUERY, shown=(case,), reward=reward)])
        values = choose(retriever, state, k=2).values
        assert all(map(math.isfinite, values))
        retriever.dump(state)  # refuses NaN


@pytest.mark.parametrize("name", LEARNED)
def test_all_fail_and_all_pass_prefer_nobody(name: str) -> None:
    """Without signal the order stays that of the search."""
    retriever = make(name, selection=Selection(rule="greedy"))
    for reward in (0.0, 1.0):
        state = retriever.init(0)
        for n in range(50):
            case = Candidate(id=HITS[n % 5].entry.id, vector=VECTORS[n % 5], similarity=HITS[n % 5].similarity)
            state = retriever.learn(state, [Outcome(query=QUERY, shown=(case,), reward=reward)])
        values = np.array(choose(retriever, state).values)
        assert abs(values - reward).max() < 0.25


# ------------------------------------------------------------------------------------------ what a user does wrong


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_refused(name: str) -> None:
    retriever = make(name)
    state = retriever.init(0)
    with pytest.raises(ConfigError, match="k is -1"):
        choose(retriever, state, k=-1)
    with pytest.raises(ConfigError, match="same entry twice"):
        retriever.choose(state, QUERY, [HITS[0], HITS[0]], 1, 0, vectors=VECTORS[:2])
    with pytest.raises(ConfigError, match="one row a hit"):
        retriever.choose(state, QUERY, HITS, 1, 0, vectors=VECTORS[:2])
    with pytest.raises(NumericsError, match="NaN"):
        retriever.choose(state, QUERY, HITS, 1, 0, vectors=VECTORS * np.nan)
    with pytest.raises(StoreError, match="no '" + name + "' retrieval state"):
        retriever.load(b"nonsense")
    with pytest.raises(StoreError):
        retriever.load(retriever.dump(state)[:-1])
    with pytest.raises(StoreError, match="left over"):
        retriever.load(retriever.dump(state) + b"x")
    other = "random" if name == "topk" else "topk"
    with pytest.raises(StoreError, match=f"they hold a '{other}' state"):
        retriever.load(make(other).dump(make(other).init(0)))


@pytest.mark.parametrize("name", LEARNED)
def test_learned_ones_need_vectors_of_one_encoder(name: str) -> None:
    retriever = make(name)
    state = experienced(retriever)
    with pytest.raises(ConfigError, match="give an encoder"):
        retriever.choose(state, None, HITS, 1, 0, vectors=VECTORS)
    with pytest.raises(ConfigError, match=r"takes \[6\]"):
        retriever.choose(state, np.ones(4, np.float32), HITS, 1, 0, vectors=VECTORS)
    with pytest.raises(NumericsError, match="NaN"):
        retriever.choose(state, QUERY * np.float32(np.nan), HITS, 1, 0, vectors=VECTORS)
    with pytest.raises(ConfigError, match="has length 2; expected 1"):
        retriever.choose(state, QUERY * 2, HITS, 1, 0, vectors=VECTORS)
    nothing = retriever.choose(state, QUERY * 0, HITS, 2, 0, vectors=VECTORS)  # a text with nothing in it
    assert len(nothing.entries) == 2
    other = make(name, encoder="other:6")
    for call in (
        lambda: choose(other, state),
        lambda: other.learn(state, []),
        lambda: other.load(retriever.dump(state)),
        lambda: other.dump(state),
    ):
        with pytest.raises(ConfigError, match="vectors of the encoder 'test:6'"):
            call()


def test_the_parametric_one_needs_the_cases_vectors() -> None:
    retriever = make("parametric")
    with pytest.raises(ConfigError, match="pass vectors="):
        retriever.choose(retriever.init(0), QUERY, HITS, 1, 0)
    bare = Outcome(query=QUERY, shown=(Candidate(id="a"),), reward=1.0)
    with pytest.raises(ConfigError, match="pass vectors="):
        retriever.learn(retriever.init(0), [bare])


@pytest.mark.parametrize("reward", [math.nan, math.inf, -0.1, 1.5])
def test_rewards_that_are_none_are_refused(reward: float) -> None:
    with pytest.raises(NumericsError, match="reward of an episode"):
        Outcome(query=None, shown=(), reward=reward)
    with pytest.raises(NumericsError, match="baseline"):
        Outcome(query=None, shown=(), reward=0.0, baseline=math.nan)
    with pytest.raises(ConfigError, match="same entry twice"):
        Outcome(query=None, shown=(Candidate(id="a"),), held=(Candidate(id="a"),), reward=0.0)
    with pytest.raises(ConfigError, match="propensity"):
        Candidate(id="a", propensity=math.nan)
    with pytest.raises(NumericsError, match="similarity"):
        Candidate(id="a", similarity=math.nan)


def test_settings_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_retriever("kernel", encoder="", dimension=0, discount=2.0)
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="hidden is -1"):
        make("parametric", hidden=-1)
    with pytest.raises(ConfigError, match="did you mean 'kernel'"):
        build_retriever("kernels")
    with pytest.raises(ConfigError, match="cannot be built with"):
        build_retriever("topk", depth=3)
    with pytest.raises(ConfigError, match="rule of selection"):
        Selection(rule="softmin")
    with pytest.raises(ConfigError, match="temperature"):
        Selection(temperature=0.0)


def test_an_outcome_says_who_was_held_out() -> None:
    retriever = make("random")
    chosen = choose(retriever, None, k=2, seed=1)
    first, second = (e.id for e in chosen.entries)
    outcome = chosen.outcome(1.0, held=[second], hold_out=0.25)
    assert [c.id for c in outcome.shown] == [first]
    assert {c.id for c in outcome.held} == {h.entry.id for h in HITS} - {first}
    assert [c.propensity for c in outcome.shown + outcome.held] == pytest.approx([0.4 * 0.75] * 5)
    with pytest.raises(ConfigError, match="cannot have been held out"):
        chosen.outcome(1.0, held=["nobody"], hold_out=0.1)
    with pytest.raises(ConfigError, match=r"hold_out is 0\.0 and 1 were held out"):
        chosen.outcome(1.0, held=[first])


# --------------------------------------------------------------------------------------------------------- measures


def test_calibration_by_hand() -> None:
    predictions, outcomes = [0.05, 0.15, 0.95, 1.0, -3.0], [0.0, 1.0, 1.0, 0.0, 0.0]
    found = bins(predictions, outcomes, count=10)
    assert [(b.low, b.count, b.observed) for b in found] == [(0.0, 2, 0.0), (0.1, 1, 1.0), (0.9, 2, 0.5)]
    assert found[2].predicted == pytest.approx(0.975)
    assert calibration_error([0.2, 0.9], [0.0, 1.0]) == pytest.approx((0.2 + 0.1) / 2)
    assert brier([0.2, 0.9], [0.0, 1.0]) == pytest.approx((0.04 + 0.01) / 2)
    assert regret([0.2, 0.5], [0.8, 0.5]) == pytest.approx(0.3)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    scores, labels = [0.1, 0.4, 0.4, 0.8, 0.3], [False, True, False, True, True]
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, y in zip(scores, labels, strict=True)
        if y
        for b, z in zip(scores, labels, strict=True)
        if not z
    ]
    assert auc(scores, labels) == pytest.approx(sum(wins) / len(wins))
    assert auc([1.0, 2.0], [True, True]) is None
    with pytest.raises(ConfigError, match="finite"):
        auc([math.nan], [True])
    for wrong in (([], []), ([0.1], [0.1, 0.2]), ([math.nan], [0.0])):
        with pytest.raises(ConfigError):
            brier(*wrong)
