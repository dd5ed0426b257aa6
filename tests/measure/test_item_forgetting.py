"""Churn by hand, the noise that fakes it, the null pair that takes it away, and guessing."""

from __future__ import annotations

import numpy as np
import pytest

from twoclock.measure import forgotten_items, guessing_ceiling, guessing_floor


def test_transitions_by_hand() -> None:
    before = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.25, "e": 0.75}
    after = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0, "e": 0.5, "f": 1.0}
    found = forgotten_items(before, after)
    assert found.items == found.lost.n == 5
    assert found.lost.estimate == pytest.approx(2 / 5)  # b, and e: half is not more than half
    assert found.gained.estimate == pytest.approx(2 / 5)
    assert found.change.estimate == pytest.approx(found.gained.estimate - found.lost.estimate)
    assert not found.excess.is_known
    assert found.by_guessing == 0


@pytest.mark.parametrize(("samples", "published"), [(1, 0.140), (4, 0.107), (8, 0.076), (16, 0.055), (32, 0.038)])
def test_an_unchanged_policy_seems_to_forget(samples: int, published: float) -> None:
    rng = np.random.default_rng(1)
    skill = rng.beta(1.2, 0.6, 6000)
    before, after, again = (dict(enumerate(rng.binomial(samples, skill) / samples)) for _ in range(3))
    found = forgotten_items(before, after, again)  # type: ignore[arg-type]
    assert found.lost.estimate == pytest.approx(published, abs=0.01)
    assert found.lost.low > 0
    assert abs(found.excess.estimate) < 0.012


def test_the_null_pair_hardly_ever_raises_an_alarm() -> None:
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng([7, seed])
        skill = rng.beta(1.2, 0.6, 150)
        runs = [{str(i): v for i, v in enumerate(rng.binomial(8, skill) / 8)} for _ in range(3)]
        alarms += forgotten_items(*runs, seed=seed).excess.excludes_zero
    assert 0.02 <= alarms / 200 <= 0.08


def test_planted_forgetting_is_seen_beyond_the_noise() -> None:
    rng = np.random.default_rng(3)
    skill = rng.beta(1.2, 0.6, 800)
    broken = np.where(rng.random(800) < 0.15, 0.0, skill)
    before, after, again = ({str(i): v for i, v in enumerate(rng.binomial(8, p) / 8)} for p in (skill, broken, skill))
    found = forgotten_items(before, after, again)
    assert found.excess.low > 0
    truth = 0.15 * np.mean([v > 0.5 for v in before.values()])
    assert found.excess.low < truth < found.excess.high


@pytest.mark.parametrize("same", [True, False])
def test_guessing_explains_what_a_guesser_loses(same: bool) -> None:
    rng, k, n = np.random.default_rng(4), 4, 20_000
    first, second = rng.random(n) < 0.5, rng.random(n) < 0.5
    before, after = (
        {str(i): float(v) for i, v in enumerate(known | (rng.random(n) < 1 / k))}
        for known in (first, first if same else second)
    )
    found = forgotten_items(before, after, choices=k)
    assert found.by_guessing == pytest.approx(0.375**2 / 3, abs=0.003)
    assert found.by_guessing_most == pytest.approx(0.375 / 4, abs=0.003)
    assert found.corrected.estimate == pytest.approx(found.lost.estimate - found.by_guessing)
    if same:  # nothing was forgotten, and guessing explains all of it
        assert found.lost.estimate == pytest.approx(found.by_guessing_most, abs=0.008)
    else:  # half of what was known is not known now, whether or not it is guessed right
        forgotten = 0.5 * 0.5 * (1 - 1 / k)
        assert found.corrected.estimate == pytest.approx(forgotten, abs=0.008)


def test_guessing_by_hand() -> None:
    assert guessing_floor(0.625, 0.625, 4) == pytest.approx(0.375**2 / 3)
    assert guessing_ceiling(0.625, 0.5, 4) == pytest.approx(0.375 / 4)
    for bound in (guessing_floor, guessing_ceiling):
        assert bound(0.0, 0.0, 2) == 0.0  # what was never right cannot be lost
        assert bound(1.0, 0.0, 2) == 0.0


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="no item in common"):
        forgotten_items({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ValueError, match=r"item 'a' has 1\.5"):
        forgotten_items({"a": 1.5}, {"a": 1.0})
    with pytest.raises(ValueError, match="at least 2 choices"):
        forgotten_items({"a": 1.0}, {"a": 1.0}, choices=1)
    with pytest.raises(ValueError, match="rates lie"):
        guessing_floor(1.2, 0.5, 4)
