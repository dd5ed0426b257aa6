"""The Pareto pool, by hand and by law."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twoclock.fast.prompts.pareto import choose_pool, frontier


def test_a_dominated_candidate_goes_and_a_specialist_stays() -> None:
    rows = [
        [1.0, 1.0, 0.0, 0.5],  # generalist
        [1.0, 0.0, 0.0, 0.4],  # wins item 0, which the generalist wins too: dominated
        [0.0, 0.0, 1.0, 0.0],  # specialist: alone on item 2
    ]
    assert frontier(rows) == {0: 3, 2: 1}


def test_of_two_equal_rows_the_earlier_stays() -> None:
    assert frontier([[1.0, 0.0], [1.0, 0.0]]) == {0: 2}


def test_a_good_mean_without_a_win_of_its_own_is_no_frontier_member_but_tops_up() -> None:
    rows = [[0.9, 0.9, 0.9], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert frontier(rows) == {1: 2, 2: 1}
    assert choose_pool(rows, 3) == [0, 1, 2]  # best mean first, then by weight
    assert choose_pool(rows, 2) == [0, 1]


def test_domination_by_several_together_lowest_mean_first() -> None:
    rows = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]]
    assert frontier(rows) == {0: 2, 1: 2}
    rows = [[1, 1, 0, 0.5], [0, 0, 1, 1], [1, 0, 1, 0.9]]  # row 0 has the lowest mean, but is alone on item 1
    assert frontier(rows) == {0: 2, 1: 2}


def test_bad_matrices_are_refused() -> None:
    assert frontier([]) == {}
    with pytest.raises(ValueError, match="non-zero length"):
        frontier([[1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="non-zero length"):
        frontier([[], []])


matrices = st.integers(1, 6).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=width, max_size=width), min_size=1, max_size=7
    )
)


@given(matrices)
def test_every_item_keeps_a_winner_and_nobody_left_is_needless(rows: list[list[float]]) -> None:
    kept = frontier(rows)
    best = [max(column) for column in zip(*rows, strict=True)]
    winners = {k: {i for i, top in enumerate(best) if rows[k][i] == top} for k in kept}
    assert set().union(*winners.values()) == set(range(len(best)))
    for k in kept:
        assert kept[k] == len(winners[k])
        assert not winners[k] <= set().union(*(winners[o] for o in kept if o != k))


@given(matrices, st.integers(1, 8))
def test_the_pool_is_capped_and_holds_the_best_mean(rows: list[list[float]], size: int) -> None:
    pool = choose_pool(rows, size)
    assert len(pool) == len(set(pool)) == min(size, len(rows))
    assert sum(rows[pool[0]]) == pytest.approx(max(sum(row) for row in rows))
