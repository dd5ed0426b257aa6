"""The kernel's Q against cases worked by hand; temporal differences; credit among cases shown together."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from twoclock.errors import ConfigError, StoreError
from twoclock.memory.arrays import pack
from twoclock.memory.credit import contrasts, importance_estimate
from twoclock.memory.kernel import BANDWIDTHS, KernelRetriever, kernel, kernel_value
from twoclock.memory.records import Entry, Hit
from twoclock.memory.retrieval import Candidate, Outcome, Selection, build_retriever
from twoclock.seeding import child_rng


def at(degrees: float) -> np.ndarray:
    angle = math.radians(degrees)
    return np.array([math.cos(angle), math.sin(angle)], np.float32)


def retriever(**options: object) -> KernelRetriever:
    return KernelRetriever(**{"encoder": "e", "dimension": 2, "bandwidth": 0.5, "credit": "shared", **options})  # type: ignore[arg-type]


def outcome(degrees: float, reward: float, *ids: str, propensity: float = 1.0, baseline: float = 0.0) -> Outcome:
    shown = tuple(Candidate(id=i, propensity=propensity) for i in ids)
    return Outcome(query=at(degrees), shown=shown, reward=reward, baseline=baseline)


def test_the_kernel_by_hand() -> None:
    assert kernel([1.0, 0.5, -1.0], 0.5) == pytest.approx([1.0, math.exp(-1.0), math.exp(-4.0)])
    assert kernel([1.0 + 1e-6], 0.01)[0] == 1.0  # rounding of a float32 dot product is no weight above 1
    assert kernel_value([1.0, 0.5], [1.0, 0.0], 0.0, 0.0) == pytest.approx(1.0 / 1.5)
    assert kernel_value([1.0, 0.5], [1.0, 0.0], 0.2, 2.0) == pytest.approx((0.4 + 1.0) / 3.5)
    assert kernel_value([0.0], [1.0], 0.2, 0.0) == 0.2


def test_the_estimate_by_hand() -> None:
    """Two outcomes of one case at 0° and 60°, asked at 0°: weights 1 and exp(−(1 − ½)/½) = e⁻¹."""
    r = retriever(prior_weight=0.0)
    state = r.learn(r.init(0), [outcome(0, 1.0, "a"), outcome(60, 0.0, "a"), outcome(0, 0.0, "b")])
    values, evidence = r.values(state, at(0), [Candidate(id="a"), Candidate(id="b"), Candidate(id="c")])
    weight = math.exp(-1.0)
    assert values == pytest.approx([1 / (1 + weight), 0.0, 1 / 3 - 1 / 3], abs=1e-6)
    assert evidence == pytest.approx([1 + weight, 1.0, 0.0], abs=1e-6)
    mean = 1 / 3
    with_prior = retriever(prior_weight=2.0)
    values, _ = with_prior.values(state, at(0), [Candidate(id="a", similarity=0.3), Candidate(id="b", similarity=0.7)])
    assert values == pytest.approx([(2 * (mean - 0.4) + 1) / (3 + weight), (2 * mean) / 3], abs=1e-6)


def test_the_same_situation_moves_its_value() -> None:
    r = retriever()
    state = r.learn(r.init(0), [outcome(10, x, "a") for x in (1.0, 0.0, 0.0, 1.0)])
    assert state.value.tolist() == [0.5]
    assert state.visits.tolist() == [4]
    fixed = retriever(step=0.25)
    state = fixed.learn(fixed.init(0), [outcome(10, x, "a") for x in (1.0, 0.0, 1.0)])
    assert state.value == pytest.approx([1.0 - 0.25 + 0.25 * 0.25])  # 1, .75, .8125
    one_by_one = r.init(0)
    for x in (1.0, 0.0, 0.0, 1.0):
        one_by_one = r.learn(one_by_one, [outcome(10, x, "a")])
    assert r.dump(one_by_one) == r.dump(r.learn(r.init(0), [outcome(10, x, "a") for x in (1.0, 0.0, 0.0, 1.0)]))


def test_a_baseline_is_taken_off() -> None:
    r = retriever()
    state = r.learn(r.init(0), [outcome(0, 1.0, "a", baseline=0.75), outcome(0, 0.0, "b", baseline=0.75)])
    assert state.value.tolist() == [0.25, -0.75]
    assert state.mean == pytest.approx(-0.25)


def test_the_soft_temporal_difference_by_hand() -> None:
    """γ α log Σ exp(Q(s',c')/α) with Q(s', b) = .8 known exactly and Q(s', c) the prior."""
    r = retriever(discount=0.9, prior_weight=0.0, selection=Selection(temperature=0.5))
    state = r.learn(r.init(0), [replace(outcome(90, 0.8, "b"), following=None)])
    later = (at(90), (Candidate(id="b"), Candidate(id="c")))
    after = r.learn(state, [replace(outcome(0, 0.1, "a"), following=later)])
    prior = 0.8 - 0.25  # the mean of all targets, half-way down the search's order
    future = 0.5 * math.log(math.exp(0.8 / 0.5) + math.exp(prior / 0.5))
    assert after.value.tolist() == pytest.approx([0.8, 0.1 + 0.9 * future])
    myopic = retriever(prior_weight=0.0).learn(state, [replace(outcome(0, 0.1, "a"), following=later)])
    assert myopic.value.tolist() == pytest.approx([0.8, 0.1])


def test_values_converge_to_the_fixed_point_of_a_chain() -> None:
    """s₀ → s₁ → end with reward 1 at the end: Q(s₁) = 1, Q(s₀) = γ(1 + 0) for a single candidate, whatever α."""
    r = retriever(discount=0.5, prior_weight=0.0, bandwidth=0.01, step=0.5)
    state = r.init(0)
    for _ in range(40):
        last = (at(90), (Candidate(id="b"),))
        state = r.learn(state, [replace(outcome(0, 0.0, "a"), following=last), outcome(90, 1.0, "b")])
    values, _ = r.values(state, at(0), [Candidate(id="a")])
    assert values == pytest.approx([0.5], abs=1e-6)


def test_propensities_weigh_outcomes_and_are_no_evidence() -> None:
    r = retriever(by_propensity=True, prior_weight=1.0)
    rare, usual = outcome(0, 1.0, "a", propensity=0.1), outcome(0, 0.0, "a", propensity=0.5)
    state = r.learn(r.init(0), [rare, usual, usual])
    # 10·1 over 10 + 2 + 2, with the evidence of three outcomes beside one of the prior.
    values, evidence = r.values(state, at(0), [Candidate(id="a")])
    assert evidence == pytest.approx([3.0])
    assert values == pytest.approx([(3 * 10 / 14 + state.mean) / 4])


def test_additive_credit_is_ridge_regression() -> None:
    """Against the normal equations written out as least squares with the priors as extra rows."""
    r = retriever(credit="additive", prior_weight=0.7)
    rng = child_rng("slates", 0)
    outcomes = [outcome(rng.uniform(0, 60), rng.random(), *rng.sample("abcd", rng.randrange(1, 4))) for _ in range(30)]
    state = r.learn(r.init(0), outcomes)
    query, ids = at(20), "abx"
    values, _ = r.values(
        state, query, [Candidate(id=i, similarity=s) for i, s in zip(ids, (0.9, 0.7, 0.6), strict=True)]
    )
    names, rows, targets = ["b", *"abcd"], [], []
    for o in outcomes:
        shown = {c.id for c in o.shown}
        if shown & set(ids):  # the others say nothing of a candidate
            weight = math.sqrt(math.exp(-(1 - float(query @ o.query)) / 0.5))
            rows.append(
                [weight * (n == "b" or n in shown) for n in names[:1]] + [weight * (n in shown) for n in names[1:]]
            )
            targets.append(weight * o.reward)
    for n, prior in enumerate((state.mean, 0.0, -0.2, 0.0, 0.0)):
        rows.append([math.sqrt(0.7) * (m == n) for m in range(5)])
        targets.append(math.sqrt(0.7) * prior)
    b, *effects = np.linalg.lstsq(np.array(rows, float), np.array(targets), rcond=None)[0]
    for row in rows[: len(targets) - 5]:
        assert row[0] > 0  # every outcome has the intercept
    assert values == pytest.approx([b + effects[0], b + effects[1], b - 0.3], abs=1e-6)


def test_additive_credit_by_hand() -> None:
    """One outcome 1 of one case, prior mean 1: b = a prior + 0, so Q = 1. Then one of 0: mean ½, and by symmetry
    b + a with n₀ = 1: minimise (b − ½)² + a² + (1 − b − a)² + (0 − b − a)², so a = b − ½ = 0."""
    r = retriever(credit="additive", prior_weight=1.0)
    state = r.learn(r.init(0), [outcome(0, 1.0, "a"), outcome(0, 0.0, "a")])
    assert r.values(state, at(0), [Candidate(id="a")])[0] == pytest.approx([0.5])
    # "a" earned 1 and 1, "b" 0 and 0: a = −b' by symmetry, intercept ½; 2(a − ½) + a = 0 gives a = 1/3.
    state = r.learn(r.init(0), [outcome(0, float(i == "a"), i) for i in "abab"])
    same = [Candidate(id=i, similarity=0.5) for i in "ab"]
    assert r.values(state, at(0), same)[0] == pytest.approx([0.5 + 1 / 3, 0.5 - 1 / 3])


def test_far_from_all_evidence_the_search_s_order_stands() -> None:
    r = retriever(bandwidth=0.01)
    hits = [Hit(entry=Entry(kind="case", key=str(n), text=str(n)), score=-n, similarity=0.5) for n in range(4)]
    state = r.learn(r.init(0), [outcome(0, 1.0, hits[3].entry.id)] * 9)
    near = r.choose(state, at(1), hits, 1, 0)
    far = r.choose(state, at(90), hits, 1, 0)
    assert near.entries[0].id == hits[3].entry.id
    assert far.entries[0].id == hits[0].entry.id
    assert far.propensities == (1.0,)


def test_the_store_is_bounded_and_the_oldest_go_first() -> None:
    r = retriever(capacity=10)
    state = r.init(0)
    for n in range(40):
        state = r.learn(state, [outcome(n, 1.0, "abcd"[n % 4] if n < 30 else "a")])
    assert len(state.value) == 10
    assert state.outcomes == 40
    assert len(state.situations) == 10
    kept = np.degrees(np.arctan2(state.situations[:, 1], state.situations[:, 0])).round().astype(int).tolist()
    assert kept == list(range(30, 40))
    assert state.ids == ("a",)
    assert r.dump(r.load(r.dump(state))) == r.dump(state)


def test_the_bandwidth_is_fitted_by_leave_one_out() -> None:
    """Values that change within ten degrees need a narrow kernel, values that are noise around a mean a wide one."""
    narrow = retriever(bandwidth=None, fit_every=32)
    rng = child_rng("angles", 0)
    angles = [rng.uniform(0, 90) for _ in range(288)]
    state = narrow.learn(narrow.init(0), [outcome(a, float(a // 15 % 2), "a") for a in angles])
    assert state.bandwidth == min(BANDWIDTHS)
    noisy = narrow.learn(narrow.init(0), [outcome(a, float(rng.random() < 0.5), "a") for a in angles])
    assert noisy.bandwidth == max(BANDWIDTHS)
    for h, n in ((0.01, 1.0), (0.1, 1.0), (0.5, 16.0)):
        slow = _slow_error(state.situations, state.value, h, state.mean, n)
        assert narrow._errors(state, h, n).sum() == pytest.approx(slow, rel=1e-5)


def _slow_error(points: np.ndarray, values: np.ndarray, h: float, mean: float, n: float) -> float:
    total = 0.0
    for i in range(len(points)):
        up, down = n * mean, n
        for j in range(len(points)):
            if j != i:
                weight = math.exp(-(1 - float(points[i] @ points[j])) / h)
                up, down = up + weight * values[j], down + weight
        total += (values[i] - up / down) ** 2
    return total


def test_bytes_that_do_not_fit_together_are_refused() -> None:
    r = retriever()
    state = r.learn(r.init(0), [outcome(0, 1.0, "a")])
    plain = {"encoder": "e", "seed": 0, "bandwidth": 0.1, "outcomes": 1, "targets": 1, "mean": 1.0, "ids": ["a"]}
    arrays = {n: getattr(state, n) for n in ("situations", "situation", "value", "visits", "size", "case", "weight")}
    assert r.load(pack("kernel", plain, arrays)).ids == ("a",)
    for broken in (
        {**arrays, "value": np.zeros(3)},
        {**arrays, "case": np.array([7], np.int32)},
        {**arrays, "size": np.array([2], np.int32)},
        {k: v for k, v in arrays.items() if k != "visits"},
        {**arrays, "extra": np.zeros(1)},
    ):
        with pytest.raises(StoreError, match="no state of the retriever 'kernel'"):
            r.load(pack("kernel", plain, broken))


# ------------------------------------------------------------------------------------------------------------ credit

CASES = [Hit(entry=Entry(kind="case", key="k", text=t), score=1.0, similarity=0.9) for t in ("good", "n1", "n2", "n3")]
GOOD, *NEUTRAL = (h.entry.id for h in CASES)


def world(hold_out: float, episodes: int, seed: int = 0) -> list[Outcome]:
    """One helpful and three neutral cases, always found together: success .8 with the helpful one, .2 without."""
    topk, outcomes = build_retriever("topk"), []
    for n in range(episodes):
        rng = child_rng("world", seed, n)
        chosen = topk.choose(None, at(0), CASES, 4, n)
        held = [h.entry.id for h in CASES if rng.random() < hold_out]
        reward = float(rng.random() < (0.2 if GOOD in held else 0.8))
        outcomes.append(chosen.outcome(reward, held=held, hold_out=hold_out))
    return outcomes


def test_credit_separates_under_exploration() -> None:
    outcomes = world(0.25, 300)
    # The same by regression, which needs fewer episodes to see it.
    r = retriever(credit="additive")
    values, _ = r.values(r.learn(r.init(0), outcomes[:80]), at(0), [Candidate(id=i) for i in (GOOD, *NEUTRAL)])
    assert values[0] > values[1:].max() + 0.25
    found = contrasts(outcomes)
    assert found[GOOD].claims == "helps"
    assert found[GOOD].difference == pytest.approx(0.6, abs=0.15)
    assert all(found[n].claims == "unknown" for n in NEUTRAL)
    r = retriever()
    values, _ = r.values(r.learn(r.init(0), outcomes), at(0), [Candidate(id=i) for i in (GOOD, *NEUTRAL)])
    assert values[0] > values[1:].max() + 0.08


def test_without_exploration_nothing_is_claimed() -> None:
    outcomes = world(0.0, 300)
    assert contrasts(outcomes) == {}
    for credit in ("shared", "additive"):
        r = retriever(credit=credit)
        state = r.learn(r.init(0), outcomes)
        values, _ = r.values(state, at(0), [Candidate(id=i, similarity=0.9) for i in (GOOD, *NEUTRAL)])
        assert values == pytest.approx([values[0]] * 4)
        chosen = r.choose(state, at(0), CASES, 2, 0)
        assert [c.propensity for c in chosen.candidates] == pytest.approx([0.5] * 4)


def test_neutral_cases_are_rarely_claimed_to_help() -> None:
    """95 % intervals of three neutral cases in 60 worlds: about 9 of 180 leave 0 out."""
    claims = [contrasts(world(0.3, 60, seed))[n].claims for seed in range(60) for n in NEUTRAL]
    assert sum(c != "unknown" for c in claims) <= 18
    assert sum(contrasts(world(0.3, 60, seed))[GOOD].claims == "helps" for seed in range(20)) >= 18


def test_contrasts_weigh_by_propensity() -> None:
    """Shown with p = .9 in episodes that succeed at .9, with p = .1 where at .1: showing does nothing, and the plain
    means differ by .64; weighted, they do not."""
    rng, outcomes = child_rng("confounded", 0), []
    for n in range(4000):
        p = 0.9 if n % 2 else 0.1
        case = (Candidate(id="a", propensity=p),)
        shown = rng.random() < p
        reward = float(rng.random() < p)
        outcomes.append(Outcome(query=None, shown=case if shown else (), held=() if shown else case, reward=reward))
    shown, held = ([o.reward for o in outcomes if bool(o.shown) == s] for s in (True, False))
    assert np.mean(shown) - np.mean(held) > 0.5
    found = contrasts(outcomes)["a"]
    assert found.difference == pytest.approx(0.0, abs=0.06)
    assert found.claims == "unknown"


def test_two_equal_rewards_are_no_certainty() -> None:
    case = (Candidate(id="a", propensity=0.5),)
    two = [Outcome(query=None, shown=case, reward=1.0), Outcome(query=None, shown=(), held=case, reward=0.0)]
    assert contrasts(two)["a"].difference is None
    assert contrasts(two * 2)["a"].claims == "unknown"
    assert contrasts(two * 15)["a"].claims == "helps"
    with pytest.raises(ConfigError, match="confidence"):
        contrasts(two, confidence=95)


def test_what_another_policy_would_have_earned() -> None:
    """Two cases that earn 1 and 0, logged by a policy that shows them with .25 and .75."""
    rewards, logged = [1.0] + [0.0] * 3, [0.25] + [0.75] * 3
    value, effective = importance_estimate(rewards, logged, [0.5] * 4)
    assert value == pytest.approx(2.0 / (2.0 + 3 * (2 / 3)))
    assert effective == pytest.approx((2 + 2) ** 2 / (4 + 3 * 4 / 9))
    for wrong in (([1.0], [0.0], [1.0]), ([1.0], [0.5], [0.0]), ([1.0], [0.5], []), ([math.nan], [0.5], [0.5])):
        with pytest.raises(ConfigError):
            importance_estimate(*wrong)


def test_logged_propensities_value_another_policy() -> None:
    """Softmax choices are logged; the greedy policy's true value comes out of the log."""
    r = retriever()
    earns = dict(zip((GOOD, *NEUTRAL), (0.9, 0.4, 0.3, 0.2), strict=True))
    state = r.learn(r.init(0), [outcome(0, x, i) for i, x in earns.items()])
    rng = child_rng("logged", 0)
    rewards, logged, target = [], [], []
    for seed, hot in itertools.product(range(1500), [True]):
        chosen = r.choose(state, at(0), CASES, 1, seed)
        rewards.append(float(rng.random() < earns[chosen.entries[0].id]))
        logged.append(chosen.propensities[0])
        target.append(float(hot and chosen.entries[0].id == NEUTRAL[0]))
    assert importance_estimate(rewards, logged, target)[0] == pytest.approx(0.4, abs=0.1)
