"""The 2×2, and the tables that are made of a run's evaluations, on records worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twoclock.measure import (
    CELLS,
    cost_table,
    effects,
    score_curve,
    score_matrix,
    summarise_retention,
    task_retention,
    task_tables,
    two_by_two,
)
from twoclock.types import Cost, Evaluation, LedgerEntry

unit = st.floats(0, 1)


def ev(
    round: int, task: str, cell: tuple[str, str], rewards: list[float], purpose: str = "phase", start: int = 0
) -> Evaluation:
    items = tuple(f"{task}-{i}" for i in range(start, start + len(rewards)))
    return Evaluation(
        round=round,
        task=task,
        weights=cell[0],  # type: ignore[arg-type]
        prompt=cell[1],  # type: ignore[arg-type]
        item_ids=items,
        rewards=tuple(rewards),
        samples=4,
        conditioning_id="c",
        cost=Cost(rollouts=len(rewards) * 4, seconds=1.0),
        purpose=purpose,
    )


def four(round: int, task: str, means: tuple[float, float, float, float], n: int = 20, **more: Any) -> list[Evaluation]:
    """All four cells: the first ``mean × n`` items right."""
    return [
        ev(round, task, cell, [float(i < round_half(mean * n)) for i in range(n)], **more)
        for cell, mean in zip(CELLS, means, strict=True)
    ]


def round_half(value: float) -> int:
    return int(value + 0.5)


# -------------------------------------------------------------------------------------------------------------- the 2×2


def test_effects_by_hand() -> None:
    found = effects(0.25, 0.5, 0.375, 0.875)
    assert (found.slow, found.fast, found.total, found.interaction) == (0.125, 0.25, 0.625, 0.25)


@given(unit, unit, unit, unit)
def test_the_parts_sum_to_the_total_exactly(a: float, b: float, c: float, d: float) -> None:
    found = effects(a, b, c, d)
    assert found.slow + found.fast + found.interaction == found.total
    assert found.interaction + found.fast + found.slow == found.total
    assert found.total == pytest.approx(d - a, abs=1e-14)


def test_scores_out_of_range_are_refused() -> None:
    for wrong in (1.5, math.nan):
        with pytest.raises(ValueError, match="must lie in"):
            effects(0.0, wrong, 0.0, 0.0)


def test_a_2x2_has_an_interval_and_a_count_everywhere() -> None:
    cells = {cell: list(e.rewards) for cell, e in zip(CELLS, four(5, "sums", (0.1, 0.4, 0.3, 0.8), 100), strict=True)}
    table = two_by_two(cells, seed=1)
    assert table.slow.estimate == pytest.approx(0.2)
    assert table.fast.estimate == pytest.approx(0.3)
    assert table.interaction.estimate == pytest.approx(0.2)
    assert table.slow.estimate + table.fast.estimate + table.interaction.estimate == table.total.estimate
    assert table.residual_use.estimate == pytest.approx(0.5)
    for interval in (table.slow, table.fast, table.total, table.residual_use, *table.cells.values()):
        assert interval.n == 100
        assert interval.low < interval.estimate < interval.high
    assert table.shares is not None
    assert sum(share.estimate for share in table.shares.values()) == pytest.approx(1)
    assert table.shares["fast"].estimate == pytest.approx(0.3 / 0.7)
    assert table.shares["fast"].low < 0.3 / 0.7 < table.shares["fast"].high
    assert table.internalisation is not None
    assert table.internalisation.estimate == pytest.approx(0.2 / 0.3)
    assert two_by_two(cells, seed=1) == table


def test_a_share_of_items_that_never_gained_is_not_certain_to_be_none() -> None:
    """The weights alone gained on none of 40 items, and all with the prompt: at most the share of
    1 - .025^(1/40) of the items may be otherwise."""
    zero, one = [0.0] * 40, [1.0] * 40
    mixed = [1.0] * 30 + [0.0] * 10
    cells = dict(zip(CELLS, (zero, zero, zero, mixed), strict=True))
    shares = two_by_two(cells).shares
    assert shares is not None
    reach = (1 - 0.025 ** (1 / 40)) / 0.75
    for name in ("slow", "fast"):
        assert shares[name].estimate == 0.0
        assert (shares[name].low, shares[name].high) == pytest.approx((-reach, reach))
    sure = two_by_two(dict(zip(CELLS, (zero, one, zero, one), strict=True)))
    assert sure.shares is not None
    assert sure.shares["fast"].estimate == 1.0
    assert sure.shares["fast"].low < 1.0


def test_shares_of_nothing_are_not_given() -> None:
    rng = np.random.default_rng(1)
    table = two_by_two({cell: rng.random(30) for cell in CELLS})
    assert table.shares is None
    assert table.internalisation is None
    null = two_by_two({cell: [0.5] * 30 for cell in CELLS})
    assert null.total.estimate == 0
    assert null.total.low < 0 < null.total.high
    assert null.shares is None


def test_no_items_give_no_numbers() -> None:
    table = two_by_two({cell: [] for cell in CELLS})
    assert not table.total.is_known
    assert table.shares is None


def test_an_incomplete_or_uneven_2x2_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\('live', 'learned'\) missing"):
        two_by_two({cell: [0.5] for cell in CELLS[:3]})
    with pytest.raises(ValueError, match="same items"):
        two_by_two({cell: [0.5] * (1 + i) for i, cell in enumerate(CELLS)})


# ---------------------------------------------------------------------------------------------------- from evaluations


def stream() -> list[Evaluation]:
    """Two phases of 10 rounds, 'sums' then 'gcd', with the base measured at the start."""
    return [
        ev(0, "sums", ("base", "none"), [float(i < 2) for i in range(20)]),
        ev(0, "gcd", ("base", "none"), [float(i < 4) for i in range(20)]),
        *four(10, "sums", (0.1, 0.4, 0.3, 0.8)),
        *four(10, "gcd", (0.2, 0.2, 0.25, 0.3)),
        ev(15, "sums", ("live", "learned"), [1.0] * 5, purpose="probe"),
        *four(20, "sums", (0.1, 0.4, 0.35, 0.6)),
        *four(20, "gcd", (0.2, 0.5, 0.3, 0.9)),
    ]


def test_tables_are_of_the_latest_round_and_skip_probes() -> None:
    evaluations = stream()
    probe = ev(25, "gcd", ("live", "learned"), [0.0] * 5, purpose="probe")
    sums, gcd = task_tables([*evaluations, probe])
    assert [(t.task, t.round) for t in (sums, gcd)] == [("sums", 20), ("gcd", 20)]
    assert {cell: i.estimate for cell, i in gcd.cells.items()} == dict(zip(CELLS, (0.2, 0.5, 0.3, 0.9), strict=True))
    assert sums.split is not None
    assert sums.split.total.estimate == pytest.approx(0.5)
    (earlier, _) = task_tables(evaluations, 10)
    assert earlier.cells["live", "learned"].estimate == 0.8
    assert task_tables(evaluations, 11) == []
    assert task_tables([]) == []


def test_a_later_measurement_of_the_same_round_counts() -> None:
    sums, _ = task_tables([*stream(), *four(20, "sums", (0.1, 0.4, 0.3, 0.75), 40, purpose="final")])
    assert sums.cells["live", "learned"].estimate == 0.75
    assert sums.cells["live", "learned"].n == 40
    assert sums.evaluations["live", "learned"].purpose == "final"


def test_after_a_rollback_now_is_the_round_evaluated_last() -> None:
    back = four(0, "sums", (0.1, 0.1, 0.1, 0.1), purpose="final")
    sums, gcd = task_tables([*stream(), *back])
    assert (sums.round, gcd.round) == (0, 20)
    assert {interval.estimate for interval in sums.cells.values()} == {0.1}
    retained = task_retention([*stream(), *back])
    assert (retained[0].round, retained[0].now.estimate) == (0, 0.1)


def test_the_base_without_a_prompt_stands_in_from_the_start() -> None:
    evaluations = [e for e in stream() if e.round == 0 or (e.weights, e.prompt) != ("base", "none")]
    sums, _ = task_tables(evaluations)
    assert sums.evaluations["base", "none"].round == 0
    assert sums.split is not None
    assert sums.split.total.estimate == pytest.approx(0.5)


def test_a_table_with_missing_cells_has_no_decomposition() -> None:
    only_fast = [e for e in stream() if e.weights == "base"]
    sums, _ = task_tables(only_fast)
    assert set(sums.cells) == {("base", "none"), ("base", "learned")}
    assert sums.split is None


def test_cells_over_other_items_are_compared_where_they_meet() -> None:
    evaluations = four(3, "sums", (0.0, 0.5, 0.5, 1.0), 10)
    evaluations[3] = ev(3, "sums", CELLS[3], [1.0] * 10, start=5)
    (table,) = task_tables(evaluations)
    assert table.split is not None
    assert table.split.total.n == 5
    assert table.cells["live", "learned"].n == 10
    evaluations[3] = ev(3, "sums", CELLS[3], [1.0] * 10, start=50)
    (table,) = task_tables(evaluations)
    assert table.split is None


def test_the_matrix_has_a_row_a_phase_and_starts_from_the_base() -> None:
    matrix = score_matrix(stream())
    assert (matrix.tasks, matrix.rounds) == (("sums", "gcd"), (0, 10, 20))
    assert matrix.means == pytest.approx(np.array([[0.1, 0.2], [0.8, 0.3], [0.6, 0.9]]))
    summary = summarise_retention(matrix)
    assert summary.final_average.estimate == pytest.approx(0.75)
    assert summary.backward_transfer.estimate == pytest.approx(-0.2)
    assert summary.forgetting.estimate == pytest.approx(0.2)
    assert summary.forward_transfer.estimate == pytest.approx(0.1)
    weights = score_matrix(stream(), cell=("live", "none"))
    assert weights.means == pytest.approx(np.array([[0.1, 0.2], [0.3, 0.25], [0.35, 0.3]]))


def test_a_task_that_returns_needs_the_phases_named() -> None:
    again = [*stream(), *four(30, "sums", (0.1, 0.4, 0.5, 0.9)), *four(30, "gcd", (0.2, 0.5, 0.3, 0.8))]
    with pytest.raises(ValueError, match="3 phases were measured, but only 2 tasks"):
        score_matrix(again)
    matrix = score_matrix(again, ["sums", "gcd", "sums"])
    assert matrix.means[-1] == pytest.approx([0.9, 0.8, 0.9])
    assert summarise_retention(matrix).phases == 3


def test_retention_of_the_first_task_after_the_second() -> None:
    sums, gcd = task_retention(stream())
    assert (sums.task, sums.phase, sums.round) == ("sums", 1, 20)
    assert (sums.start.estimate, sums.learned.estimate, sums.now.estimate) == (0.1, 0.8, 0.6)
    assert sums.change.estimate == pytest.approx(-0.2)
    assert sums.gain.estimate == pytest.approx(0.5)
    assert sums.change.low < -0.2 < sums.change.high < 0.0 < sums.gain.low
    assert gcd.change.estimate == 0.0
    unfinished = task_retention([e for e in stream() if e.round < 20], ["sums", "gcd"])
    assert [r.task for r in unfinished] == ["sums"]
    assert task_retention([]) == []


def test_a_curve_has_probes_and_phases_in_order() -> None:
    curve = score_curve(stream(), "sums")
    assert [(round, interval.estimate, interval.n) for round, interval in curve] == [
        (0, 0.1, 20),
        (10, 0.8, 20),
        (15, 1.0, 5),
        (20, 0.6, 20),
    ]
    assert score_curve(stream(), "unknown") == []


# ---------------------------------------------------------------------------------------------------------------- costs


def entry(channel: str, clock: str, action: str, rollouts: int) -> LedgerEntry:
    return LedgerEntry(
        round=1,
        channel=channel,
        timescale=clock,
        action=action,  # type: ignore[arg-type]
        before="a",
        after="a",
        cause="",
        reason="",
        cost=Cost(rollouts=rollouts, seconds=0.5),
    )


def test_costs_add_up_by_channel_and_clock() -> None:
    entries = [
        entry("prompts", "fast", "commit", 8),
        entry("prompts", "fast", "reject", 4),
        entry("cases", "fast", "decline", 0),
        entry("lora", "slow", "commit", 64),
    ]
    table = cost_table(entries, [ev(1, "sums", ("live", "none"), [0.5] * 10)])
    assert {name: line.cost.rollouts for name, line in table.by_channel.items()} == {
        "prompts": 12,
        "cases": 0,
        "lora": 64,
    }
    assert {name: line.cost.rollouts for name, line in table.by_clock.items()} == {"fast": 12, "slow": 64}
    assert table.by_clock["fast"].actions == {"commit": 1, "reject": 1, "decline": 1}
    assert (table.learning.cost.rollouts, table.learning.entries, table.learning.cost.seconds) == (76, 4, 2.0)
    assert (table.measuring.rollouts, table.evaluations) == (40, 1)
    assert cost_table([]).learning.cost == Cost()
