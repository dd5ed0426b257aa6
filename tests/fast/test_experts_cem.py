"""The cross-entropy search: a step by hand, bounds, no NaN, seeds, and a planted optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twoclock.fast.experts.cem import FIRST_FLOOR, Cem


def test_a_step_by_hand() -> None:
    search = Cem.start([0.5, 0.5], 0.4, 0.0, 1.0)
    candidates = np.array([[0.0, 1.0], [0.2, 0.6], [1.0, 0.0], [0.6, 0.4]])
    moved = search.moved(candidates, [0.1, 0.9, 0.3, 0.8], 2)
    assert moved.mean.tolist() == pytest.approx([0.4, 0.5])
    assert moved.sd.tolist() == pytest.approx([0.2, 0.1]), "standard deviations of the elite, no less than the floor"
    assert moved.iteration == 1
    tight = search.moved(np.array([[0.3, 0.3], [0.3, 0.3]]), [1.0, 1.0], 2)
    assert tight.sd.tolist() == [FIRST_FLOOR, FIRST_FLOOR]
    assert tight.moved(np.array([[0.3, 0.3]]), [1.0], 1).sd.tolist() == [FIRST_FLOOR / 2] * 2


def test_ties_go_to_the_first() -> None:
    moved = Cem.start([0.5], 0.4, 0.0, 1.0).moved(np.array([[0.0], [0.9], [0.8]]), [1.0, 1.0, 1.0], 1)
    assert moved.mean.tolist() == [0.0]


def test_candidates_stay_in_the_box_and_are_numbers() -> None:
    search = Cem.start([0.5] * 50, 5.0, -0.25, 1.5)
    for _ in range(30):
        drawn = search.draw(40, 1)
        assert np.isfinite(drawn).all()
        assert drawn.min() >= -0.25
        assert drawn.max() <= 1.5
        search = search.moved(drawn, [0.0] * 40, 2)
    assert np.isfinite(search.mean).all()
    assert (search.sd > 0).all()


def test_draws_follow_from_the_seed_and_the_iteration() -> None:
    search = Cem.start([0.5, 0.5], 0.4, 0.0, 1.0)
    assert (search.draw(4, 7) == search.draw(4, 7)).all()
    assert not (search.draw(4, 7) == search.draw(4, 8)).all()
    later = search.moved(np.array([[0.5, 0.5]]), [1.0], 1)
    assert not (search.draw(4, 7) == later.draw(4, 7)).any()


@pytest.mark.parametrize("width", [2, 9, 30])
def test_a_planted_optimum_is_found_in_twenty_iterations(width: int) -> None:
    target = np.linspace(0.0, 1.0, width)
    errors = []
    for seed in range(5):
        search = Cem.start([0.5] * width, 0.5, 0.0, 1.0)
        for _ in range(20):
            drawn = search.draw(64, seed)
            search = search.moved(drawn, (-((drawn - target) ** 2).sum(axis=1)).tolist(), 13)
        errors.append(float(((search.mean - target) ** 2).mean()))
    assert max(errors) < 0.01, "the start is at 0.09 or more"


def test_numbers_that_are_no_search() -> None:
    for mean, sd, low, high in (([], 0.5, 0, 1), ([math.nan], 0.5, 0, 1), ([0.5], 0.0, 0, 1), ([0.5], 0.5, 1, 1)):
        with pytest.raises(ValueError, match="finite numbers"):
            Cem.start(mean, sd, low, high)
    search = Cem.start([0.5], 0.5, 0, 1)
    with pytest.raises(ValueError, match="finite"):
        search.moved(np.array([[0.1], [0.2]]), [0.1, math.nan], 1)
    with pytest.raises(ValueError, match="1 scores"):
        search.moved(np.array([[0.1], [0.2]]), [0.1], 1)
