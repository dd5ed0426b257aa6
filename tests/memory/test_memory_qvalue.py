"""The Q network: loss by hand, gradients by finite differences, Adam by its definition, what it learns."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest

from twoclock.errors import ConfigError
from twoclock.memory.calibration import auc
from twoclock.memory.parametric import ParametricRetriever
from twoclock.memory.qvalue import Adam, Net, adam_step, features, first_net, gradient, logits, loss, sigmoid
from twoclock.memory.retrieval import Candidate, Outcome
from twoclock.seeding import child_seed


def rng(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(child_seed(name, 0)))


def test_loss_and_logit_by_hand() -> None:
    # Two features, two units: relu(1·2 − 1·1 + 0) = 1 and relu(−1·2 + 0 + .5) = 0; z = 3·1 + 5·0 − 2 = 1.
    net = Net(np.array([[1.0, -1.0], [-1.0, 0.0]]), np.array([0.0, 0.5]), np.array([3.0, 5.0]), np.array([-2.0]))
    x = np.array([[2.0, 1.0]])
    assert logits(net, x) == pytest.approx([1.0])
    p = 1 / (1 + math.exp(-1.0))
    assert loss(net, x, np.array([1.0]), np.array([1.0])) == pytest.approx(-math.log(p))
    assert loss(net, x, np.array([0.25]), np.array([7.0])) == pytest.approx(
        -0.25 * math.log(p) - 0.75 * math.log(1 - p)
    )
    # δ = p − 1 through the first unit alone: ∂w₂ = δ·h, ∂W₁ = δ·w₂·x.
    slope = gradient(net, x, np.array([1.0]), np.array([1.0]))
    assert slope.w2 == pytest.approx([p - 1, 0.0])
    assert slope.w1 == pytest.approx(np.array([[6.0 * (p - 1), 0.0], [3.0 * (p - 1), 0.0]]))


def test_gradients_are_finite_differences() -> None:
    draw = rng("gradient")
    net = Net(*(draw.normal(size=s) for s in ((7, 5), (5,), (5,), (1,))))
    x, labels, weights = draw.normal(size=(9, 7)), draw.random(9), draw.random(9) * 3
    offset = draw.normal(size=9)
    slope = gradient(net, x, labels, weights, offset)
    for f in fields(net):
        array = getattr(net, f.name)
        for index in np.ndindex(array.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = array.copy()
                moved[index] += step
                parts = {g.name: moved if g.name == f.name else getattr(net, g.name) for g in fields(net)}
                sides.append(loss(Net(**parts), x, labels, weights, offset))
            assert getattr(slope, f.name)[index] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_adam_by_its_definition() -> None:
    net = Net(*(np.full(s, 2.0) for s in ((1, 1), (1,), (1,), (1,))))
    zeros = net.map(np.zeros_like)
    slopes = [Net(*(np.full(s, g) for s in ((1, 1), (1,), (1,), (1,)))) for g in (0.3, -0.1)]
    adam, p, m, v = Adam(zeros, zeros), 2.0, 0.0, 0.0
    for t, g in enumerate((0.3, -0.1), 1):  # norms .6 and .2: below the clip
        net, adam = adam_step(net, adam, slopes[t - 1], rate=0.01, decay=0.1)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p -= 0.01 * (m / (1 - 0.9**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.1 * p)
        assert net.b2[0] == pytest.approx(p)
    clipped = adam_step(net, Adam(zeros, zeros), net.map(lambda a: a * 0 + 5.0), rate=0.01, decay=0.0)[1]
    assert clipped.m.b1[0] == pytest.approx(0.1 * 5.0 / 10.0)  # the norm of four fives is 10


def test_features_by_hand() -> None:
    x = features(np.array([0.6, 0.8], np.float32), np.array([[1.0, 0.0]], np.float32), np.array([[1, 2, 3, 4.0]]))
    root = math.sqrt(2)
    expected = [0.6 * root, 0.8 * root, root, 0.0, 1.2, 0.0, 0.4 * root, 0.8 * root, 1, 2, 3, 4]
    assert x[0] == pytest.approx(expected, abs=1e-6)


def test_sigmoid_of_extremes() -> None:
    assert sigmoid([-1e9, -2.0, 0.0, 1e9]) == pytest.approx([0.0, 1 / (1 + math.e**2), 0.5, 1.0])


def test_the_first_net_follows_from_the_seed() -> None:
    one, same, other = first_net(40, 8, 1), first_net(40, 8, 1), first_net(40, 8, 2)
    assert np.array_equal(one.w1, same.w1)
    assert not np.array_equal(one.w1, other.w1)
    assert abs(one.w1).max() <= math.sqrt(6 / 40)
    assert one.w1.std() == pytest.approx(math.sqrt(2 / 40), rel=0.1)


# -------------------------------------------------------------------------------------------------- what it learns

D = 8


def planted(
    shuffled: bool, episodes: int = 400, seed: int = 0, **options: object
) -> tuple[ParametricRetriever, object]:
    """Cases succeed where their fifth number is positive, whatever the query."""
    retriever = ParametricRetriever(encoder="e", dimension=D, with_record=False, **options)  # type: ignore[arg-type]
    draw = rng(f"planted {seed}")
    state = retriever.init(seed)
    for n in range(episodes):
        query, case = draw.normal(size=(2, D)).astype(np.float32)
        case /= np.linalg.norm(case)
        reward = float(draw.random() < 0.5) if shuffled else float(case[4] > 0)
        outcome = Outcome(
            query=query / np.linalg.norm(query), shown=(Candidate(id=str(n), vector=case),), reward=reward
        )
        state = retriever.learn(state, [outcome])
    return retriever, state


def score(retriever: ParametricRetriever, state: object) -> float:
    """AUC on cases that were never shown."""
    draw = rng("fresh")
    cases = draw.normal(size=(300, D)).astype(np.float32)
    cases /= np.linalg.norm(cases, axis=1, keepdims=True)
    query = cases[0]
    values = retriever.values(state, query, [Candidate(id=f"n{n}", vector=c) for n, c in enumerate(cases)])  # type: ignore[arg-type]
    found = auc(values.tolist(), (cases[:, 4] > 0).tolist())
    assert found is not None
    return found


def test_it_carries_over_to_cases_never_shown() -> None:
    assert score(*planted(shuffled=False)) > 0.85


def test_shuffled_labels_teach_nothing() -> None:
    # Of one stream the direction is chance, and so is its AUC; over streams it is ½.
    scores = [score(*planted(shuffled=True, episodes=200, seed=seed)) for seed in range(8)]
    assert np.mean(scores) == pytest.approx(0.5, abs=0.12)


def test_class_weights_leave_probabilities_alone() -> None:
    """One episode in ten succeeds, whatever is shown: the weighted network says so too."""
    means = {}
    for balanced in (False, True):
        retriever = ParametricRetriever(encoder="e", dimension=D, balanced=balanced)
        draw, state = rng("rare"), None
        state = retriever.init(0)
        for n in range(300):
            case = draw.normal(size=D).astype(np.float32)
            case /= np.linalg.norm(case)
            outcome = Outcome(query=case, shown=(Candidate(id=str(n % 9), vector=case),), reward=float(n % 10 == 0))
            state = retriever.learn(state, [outcome])
        fresh = draw.normal(size=(200, D)).astype(np.float32)
        fresh /= np.linalg.norm(fresh, axis=1, keepdims=True)
        means[balanced] = np.mean(
            retriever.values(state, fresh[0], [Candidate(id="f", vector=c, similarity=0.0) for c in fresh])
        )
    assert means[False] == pytest.approx(0.1, abs=0.08)
    assert means[True] == pytest.approx(0.1, abs=0.08)


def test_the_buffer_and_the_records_are_bounded() -> None:
    retriever, state = planted(shuffled=False, episodes=90, capacity=32, updates=1)
    assert len(state.labels) == len(state.pairs) == 32 == len(state.ids)  # type: ignore[attr-defined]
    assert len(state.vectors) == 64  # type: ignore[attr-defined]
    assert state.ids[-1] == "89"  # type: ignore[attr-defined]
    assert retriever.dump(retriever.load(retriever.dump(state))) == retriever.dump(state)  # type: ignore[arg-type]


def test_a_state_of_other_settings_is_refused() -> None:
    retriever = ParametricRetriever(encoder="e", dimension=D, hidden=8)
    blob = retriever.dump(retriever.init(0))
    with pytest.raises(ConfigError, match="open it with the settings"):
        ParametricRetriever(encoder="e", dimension=D, hidden=9).load(blob)


def test_the_record_is_what_was_known_before_the_outcome() -> None:
    """A label must not be among its own inputs."""
    retriever = ParametricRetriever(encoder="e", dimension=D, updates=0)
    case = Candidate(id="a", vector=np.eye(D, dtype=np.float32)[0])
    state = retriever.init(0)
    for reward in (1.0, 0.0):
        state = retriever.learn(state, [Outcome(query=case.vector, shown=(case,), reward=reward)])
    assert state.scalars[0].tolist() == [0.0, 0.0, 0.0, 0.0]
    # Before the second: one success, the mean of all 1: nothing above the mean.
    assert state.scalars[1] == pytest.approx([0.0, 0.0, 0.0, 0.2])
    third = retriever.learn(state, [Outcome(query=case.vector, shown=(case,), reward=0.0)])
    assert third.scalars[2] == pytest.approx([0.0, 0.0, 4 * (1.0 - 2 * 0.5) / 3, 2 / 6])
