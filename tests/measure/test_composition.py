"""The interference matrix of a small case worked by hand; rewards that are no such table."""

from __future__ import annotations

import pytest

from twoclock.measure.composition import Composition
from twoclock.measure.pairs import paired_difference

REWARDS = {
    "sums": {"base": [0, 0, 0, 1], "sums": [1, 1, 0, 1], "words": [0, 0, 0, 0], "sum": [1, 0, 0, 1]},
    "words": {"base": [0, 1, 0, 0], "sums": [0, 1, 0, 0], "words": [1, 1, 1, 1], "sum": [1, 1, 1, 1]},
}
OWN = {"sums": "sums", "words": "words"}


def test_a_matrix_by_hand() -> None:
    found = Composition(REWARDS, OWN)
    matrix = found.matrix()
    assert {t: {e: i.estimate for e, i in row.items()} for t, row in matrix.items()} == {
        "sums": {"sums": 0.5, "words": -0.25},
        "words": {"sums": 0.0, "words": 0.75},
    }
    assert found.interference("sums", "sum").estimate == -0.25
    assert found.interference("words", "sum").estimate == 0.0
    assert found.interference("sums", "sum") == paired_difference(REWARDS["sums"]["sum"], REWARDS["sums"]["sums"])
    assert (found.kept("sums", "sum"), found.kept("words", "sum")) == (0.5, 1.0)
    assert found.score("sums", "base").estimate == 0.25
    assert (found.best_single("sums"), found.best_single("words")) == ("sums", "words")
    assert found.columns == ("base", "sums", "words", "sum")


def test_an_expert_that_gained_nothing_has_no_share() -> None:
    same = Composition({"t": {"base": [1, 0], "e": [1, 0], "sum": [1, 1]}}, {"t": "e"})
    assert same.kept("t", "sum") is None
    assert same.best_single("t") == "base"


@pytest.mark.parametrize(
    ("rewards", "own", "told"),
    [
        ({"t": {"e": [1.0]}}, {"t": "e"}, "no column 'base'"),
        ({"t": {"base": [1.0], "e": [1.0, 0.0]}}, {}, "different lengths"),
        ({"t": {"base": [], "e": []}}, {}, "without items"),
        ({"t": {"base": [1.5]}}, {}, "outside"),
        ({"t": {"base": [float("nan")]}}, {}, "outside"),
        ({"t": {"base": [1.0]}}, {"t": "e"}, "has no column"),
        ({"t": {"base": [1.0]}, "u": {"base": [1.0], "e": [1.0]}}, {}, "differ from task to task"),
    ],
)
def test_tables_that_are_none(rewards: dict[str, dict[str, list[float]]], own: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Composition(rewards, own)
