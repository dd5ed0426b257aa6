"""The parts of a reward's variance: by hand, against the definitions, unbiased, calibrated under noise, recovered."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest

from planted_worlds import KINDS, Kind, World, planted_world
from twoclock.measure import Interval, RewardTable, by_task, conditioning_p, decompose_rewards
from twoclock.seeding import child_seed
from twoclock.types import Conditioning, Delta, Evidence, Grade, Group, Rollout

PARTS = ("between", "average", "by_item", "within", "items")


def covers(interval: Interval, truth: float) -> bool:
    return interval.low - 1e-12 <= truth <= interval.high + 1e-12


# --------------------------------------------------------------------------------------------------------- by hand


def test_two_items_under_two_conditionings_worked_by_hand() -> None:
    """Item x: a gives 1, 1 and b gives 0, 1; item y: a gives 1, 0 and b gives 0, 0.

    Cell means 1, ½, ½, 0 with noise 0, ½, ½, 0. Each difference a - b is ½, and each squared difference ¼ - ½/2 = 0.
    So between = (C-1)/2C · 0 = 0 and average = ¼ (½·½ over the two different items) = 1/16, within = ¼. The variance of
    an item's rate: within a column E p² = (1 + ¼ - ¼)/2 = ½ less 1·½ gives 0, across columns E p p' = (½ + 0)/2 = ¼
    less (1·0 + ½·½)/2 = 1/8 gives 1/8; half of each is 1/16.
    """
    table = RewardTable.of(
        [
            (i, c, float(r))
            for i, c, rs in (("x", "a", "11"), ("x", "b", "01"), ("y", "a", "10"), ("y", "b", "00"))
            for r in rs
        ]
    )
    found = decompose_rewards(table)
    assert found.between.estimate == pytest.approx(0)
    assert found.average.estimate == pytest.approx(1 / 16)
    assert found.by_item.estimate == pytest.approx(-1 / 16)
    assert found.within.estimate == pytest.approx(1 / 4)
    assert found.items.estimate == pytest.approx(1 / 16)
    assert found.total == pytest.approx(5 / 16)
    assert (found.conditionings, found.rollouts, found.pairs) == (2, 8, 1)


def naive_parts(table: RewardTable) -> dict[str, float]:
    """The definitions with loops, over pairs of rollouts and of items; nothing shared with the fast code."""
    cells: dict[tuple[int, int], list[float]] = {}
    for i, c, y in zip(table.item_of, table.conditioning_of, table.rewards, strict=True):
        cells.setdefault((int(i), int(c)), []).append(float(y))
    items, columns = range(table.shape[0]), range(table.shape[1])

    def square(cell: list[float]) -> float:  # an unbiased p²: products of different rollouts
        return float(np.mean([a * b for a, b in itertools.permutations(cell, 2)]))

    def mean(cell: list[float]) -> float:
        return float(np.mean(cell))

    average, between, across = [], [], []  # with their weights: a pair counts by its items
    for c, k in itertools.combinations(columns, 2):
        both = [i for i in items if (i, c) in cells and (i, k) in cells]
        twice = [i for i in both if min(len(cells[i, c]), len(cells[i, k])) > 1]
        if len(both) < 2 or not twice:
            continue
        d = {i: mean(cells[i, c]) - mean(cells[i, k]) for i in both}
        average.append((len(both), np.mean([d[i] * d[j] for i, j in itertools.permutations(both, 2)])))
        squares = [square(cells[i, c]) + square(cells[i, k]) - 2 * mean(cells[i, c]) * mean(cells[i, k]) for i in twice]
        between.append((len(twice), np.mean(squares)))
        apart = [mean(cells[i, c]) * mean(cells[j, k]) for i, j in itertools.permutations(both, 2)]
        across.append((len(both), np.mean([mean(cells[i, c]) * mean(cells[i, k]) for i in both]) - np.mean(apart)))
    noise, alone = [], []
    for c in columns:
        twice = [i for i in items if len(cells.get((i, c), ())) > 1]
        if twice:
            noise.append((len(twice), np.mean([np.var(cells[i, c], ddof=1) for i in twice])))
        if len(twice) < 2:
            continue
        apart = [mean(cells[i, c]) * mean(cells[j, c]) for i, j in itertools.permutations(twice, 2)]
        alone.append((len(twice), np.mean([square(cells[i, c]) for i in twice]) - np.mean(apart)))

    def weighted(parts: list[tuple[int, Any]]) -> float:
        return float(sum(w * x for w, x in parts) / sum(w for w, _ in parts))

    C = len(columns)
    scale = (C - 1) / (2 * C)
    return {
        "average": scale * weighted(average),
        "between": scale * weighted(between),
        "by_item": scale * (weighted(between) - weighted(average)),
        "within": weighted(noise),
        "items": weighted(alone) / C + (1 - 1 / C) * weighted(across),
    }


@pytest.mark.parametrize("seed", range(12))
def test_the_fast_code_is_the_definitions_on_random_unbalanced_tables(seed: int) -> None:
    generator = np.random.default_rng(child_seed("test.tables", seed))
    items, columns = int(generator.integers(6, 14)), int(generator.integers(2, 6))
    counts = generator.choice([0, 1, 2, 4], p=[0.1, 0.2, 0.4, 0.3], size=(items, columns))
    values = (0.0, 1.0) if seed % 2 else (0.0, 0.25, 0.5, 1.0)
    table = RewardTable.of(
        (str(i), str(c), float(generator.choice(values)))
        for i in range(items)
        for c in range(columns)
        for _ in range(counts[i, c])
    )
    found, truth = decompose_rewards(table, resamples=20), naive_parts(table)
    for name in PARTS:
        assert getattr(found, name).estimate == pytest.approx(truth[name], abs=1e-12), name
    assert found.total == pytest.approx(truth["between"] + truth["within"] + truth["items"])


def test_a_balanced_tables_parts_add_to_the_variance_of_its_rewards() -> None:
    """With every cell of the same size the total is the unbiased variance of a rollout of a random item."""
    world = planted_world("both", seed=3, items=30)
    table = world.table(3, seed=1)
    y = table.rewards.reshape(30, -1)
    mean, across = y.mean(), y.mean(axis=1).var(ddof=1) / 30  # E ȳ² is too large by the variance of ȳ over items
    assert decompose_rewards(table, resamples=20).total == pytest.approx((y**2).mean() - (mean**2 - across))


def test_the_order_of_rollouts_does_not_matter() -> None:
    table = planted_world("both", items=20).table(3, seed=1)
    triples = [
        (table.items[i], table.conditionings[c], y)
        for i, c, y in zip(table.item_of, table.conditioning_of, table.rewards, strict=True)
    ]
    np.random.default_rng(5).shuffle(triples)  # type: ignore[arg-type]
    a, b = decompose_rewards(table), decompose_rewards(RewardTable.of(triples))
    for name in PARTS:
        assert getattr(a, name).estimate == pytest.approx(getattr(b, name).estimate, abs=1e-12)


# ------------------------------------------------------------------------------------------------- in planted worlds


def simulate(world: World, sims: int, counts: str) -> list[dict[str, Interval]]:
    generator = np.random.default_rng(child_seed("test.counts", 0))
    shape, made = world.rates.shape, []
    for s in range(sims):
        n = 2 if counts == "balanced" else generator.choice([0, 1, 2, 4], p=[0.1, 0.2, 0.4, 0.3], size=shape)
        found = decompose_rewards(world.table(n, seed=s), seed=s, resamples=300)
        made.append({name: getattr(found, name) for name in (*PARTS, "between_share", "explained")})
    return made


@pytest.mark.parametrize("counts", ["balanced", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_planted_components_are_recovered_without_bias_and_covered(kind: Kind, counts: str) -> None:
    world = planted_world(kind, items=60)
    truth = world.components()
    sims = simulate(world, 80, counts)
    for name in PARTS:
        estimates = np.array([one[name].estimate for one in sims])
        error = estimates.std(ddof=1) / math.sqrt(len(sims))
        assert abs(estimates.mean() - truth[name]) < 4 * error + 1e-9, name
        assert np.mean([covers(one[name], truth[name]) for one in sims]) >= 0.87, name
    for name in ("between_share", "explained"):
        assert np.mean([covers(one[name], truth[name]) for one in sims]) >= 0.87, name


@pytest.mark.parametrize("items", [8, 24, 80])
def test_under_pure_noise_the_share_between_conditionings_covers_zero(items: int) -> None:
    generator = np.random.default_rng(child_seed("test.null", items))
    sims, missed, p_small = 150, 0, 0
    for s in range(sims):
        world = World(kind="neither", ease=tuple(generator.beta(1, 1, size=items)), lift=(0.0, 0.0, 0.0), learns=0.0)
        counts = generator.choice([1, 2, 4], size=(items, 3))
        table = world.table(counts, seed=s)
        found = decompose_rewards(table, seed=s, resamples=300)
        missed += not covers(found.between_share, 0.0)
        p_small += conditioning_p(table, seed=s, permutations=99) <= 0.05
    assert missed / sims <= 0.05
    assert p_small / sims <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sims)


def test_one_rollout_a_cell_tells_the_average_effect_and_nothing_of_the_rest() -> None:
    world = planted_world("prompt", items=200)
    found = decompose_rewards(world.table(1, seed=0))
    assert covers(found.average, world.components()["average"])
    assert found.average.low > 0
    for part in (found.between, found.by_item, found.within, found.items, found.between_share):
        assert not part.is_known
        assert math.isnan(part.low)
        assert part.method == "one rollout a cell"
    assert math.isnan(found.total)


def test_weights_and_noise_have_the_same_table() -> None:
    """What the module says cannot be told apart, is not: a step tells, no table does."""
    a = World(kind="weights", ease=(0.4,) * 40, lift=(0.0,) * 4, learns=0.1)
    b = planted_world("neither", items=40)
    assert a.components() == b.components()
    assert a.train(5).rates.mean() > a.rates.mean()
    assert (b.train(5).rates == b.rates).all()


# ------------------------------------------------------------------------------------------------ is it more than noise


def test_the_permutation_p_is_the_share_of_all_deals_worked_by_hand() -> None:
    """One item, a: 1, 1 and b: 0, 0. Of the 6 ways to deal two successes to four places, 2 are as uneven: p = 1/3."""
    table = RewardTable.of([("x", "a", 1.0), ("x", "a", 1.0), ("x", "b", 0.0), ("x", "b", 0.0)])
    for of in ("average", "any"):
        assert conditioning_p(table, of=of, permutations=4_000) == pytest.approx(1 / 3, abs=0.03)  # type: ignore[arg-type]


def test_each_permutation_test_sees_what_it_looks_for() -> None:
    helps = planted_world("prompt", items=24).table(2, seed=0)
    assert conditioning_p(helps) < 0.01
    rows = [(f"{i}", c, float((i % 2 == 0) == (c == "a"))) for i in range(20) for c in ("a", "b") for _ in range(2)]
    crossed = RewardTable.of(rows)  # a is right on the even items, b on the odd ones
    assert conditioning_p(crossed, of="average") > 0.3
    assert conditioning_p(crossed, of="any") < 0.01
    assert decompose_rewards(crossed).by_item.low > 0.1
    assert conditioning_p(RewardTable.of([("x", "a", 1.0), ("y", "b", 0.0)])) == 1.0


# --------------------------------------------------------------------------------------------------- degenerate tables


def test_what_varies_nowhere_has_no_shares_and_is_not_proof() -> None:
    found = decompose_rewards(RewardTable.of((str(i), c, 0.0) for i in range(10) for c in "ab" for _ in range(2)))
    assert found.between.estimate == 0
    assert 0 < found.between.high < 0.25
    assert not found.between_share.is_known
    assert found.between_share.method == "nothing varies"


def test_one_conditioning_one_item_and_no_rollout() -> None:
    alone = decompose_rewards(RewardTable.of((str(i), "a", float(i % 2)) for i in range(8) for _ in range(2)))
    assert not alone.between.is_known
    assert alone.between.method == "one conditioning"
    assert alone.items.estimate == pytest.approx(2 / 7)
    one = decompose_rewards(RewardTable.of([("x", "a", 1.0), ("x", "a", 0.0), ("x", "b", 0.0), ("x", "b", 0.0)]))
    assert math.isnan(one.between.low)
    with pytest.raises(ValueError, match="without rollouts"):
        decompose_rewards(RewardTable.of([]))
    with pytest.raises(ValueError, match="confidence level"):
        decompose_rewards(planted_world("both").table(2, seed=0), level=95)


def test_conditionings_that_share_no_item_are_not_compared() -> None:
    rows = [(f"a{i}", "a", float(i % 2)) for i in range(6) for _ in range(2)]
    rows += [(f"b{i}", "b", 1.0) for i in range(6) for _ in range(2)]
    found = decompose_rewards(RewardTable.of(rows))
    assert not found.average.is_known
    assert "share" in found.average.method
    assert found.pairs == 0


@pytest.mark.parametrize("bad", [1.5, -0.1, math.nan, math.inf])
def test_a_reward_that_is_none_is_named(bad: float) -> None:
    with pytest.raises(ValueError, match=r"item 'y' under 'b' \(rollout 1\)"):
        RewardTable.of([("x", "a", 1.0), ("y", "b", bad)])


def test_an_estimate_below_zero_is_no_certainty_of_zero() -> None:
    """Rollouts that never agree: less alike than chance allows, so the estimate is negative, the interval is not."""
    table = RewardTable.of((str(i), c, float(r)) for i in range(30) for c in "ab" for r in (0, 1))
    noisy = table + RewardTable.of((f"n{i}", c, float(i < 3)) for i in range(6) for c in "ab" for _ in range(2))
    found = decompose_rewards(noisy)
    assert found.between.estimate < -0.05
    assert found.between.low == 0
    assert found.between.high > 0.01


def test_many_conditionings_that_seldom_meet_are_no_trouble() -> None:
    generator = np.random.default_rng(child_seed("test.sparse", 0))
    table = RewardTable.of(
        (f"i{i}", f"c{c}", float(generator.random() < 0.5))
        for i in range(100)
        for c in generator.choice(60, size=3, replace=False)
        for _ in range(2)
    )
    found = decompose_rewards(table)
    assert 0 < found.pairs < 60 * 59 / 2
    assert covers(found.between_share, 0.0)


def test_a_thousand_groups_of_eight_take_a_moment() -> None:
    table = planted_world("both", items=1000).table(2, seed=0)
    decompose_rewards(table)
    start = time.perf_counter()
    decompose_rewards(table)
    assert time.perf_counter() - start < 2.0  # some 0.08 s on a quiet core


# ------------------------------------------------------------------------------------------------------ from evidence


def test_evidence_becomes_a_table_by_item_and_text_of_the_conditioning() -> None:
    world = planted_world("prompt", items=5)
    rounds = [world.evidence(2, seed=1, round=r) for r in (1, 2)]
    one, both = RewardTable.from_evidence(rounds[0]), RewardTable.from_evidence(rounds)
    assert one.shape == both.shape == (5, 4)
    assert (one.counts == 2).all()
    assert (both.counts == 4).all()
    assert both.items[0] == ("prompt", "item-0")
    named = RewardTable.from_evidence(rounds, label=lambda c: c.system or "")
    assert named.conditionings == world.labels
    assert named.rewards.tolist() == both.rewards.tolist()
    assert set(by_task(named)) == {"prompt"}
    assert named.only(conditionings=["prompt-1"]).shape == (5, 1)
    assert ((one + one).counts == 4).all()
    with pytest.raises(ValueError, match=r"no rollout was sampled under the conditioning 'prompt-9'; there are"):
        named.only(conditionings=["prompt-9"])


def test_scores_do_not_outlive_a_change_of_weights() -> None:
    world = planted_world("prompt", items=3)
    evidence = world.evidence(1, seed=1)
    delta = Delta(id="d1", kind="lora", base="b", payload=None)

    def trained(one: Evidence) -> Evidence:
        new = {id_: Conditioning(system=c.system, delta=delta) for id_, c in one.conditionings.items()}
        return Evidence(round=2, phase=1, task=one.task, groups=one.groups, conditionings=new)

    with pytest.raises(ValueError, match="two versions of the weights"):
        RewardTable.from_evidence([evidence, trained(evidence)])
    apart = RewardTable.from_evidence(
        [evidence, trained(evidence)], label=lambda c: f"{c.system}|{c.delta.id if c.delta else 'base'}"
    )
    assert apart.shape == (3, 8)


def test_old_rollouts_and_failed_grades_are_left_out() -> None:
    evidence = planted_world("prompt", items=1).evidence(2, seed=1)
    first, second, *others = evidence.groups[0].rollouts

    def changed(rollout: Rollout, **more: object) -> Rollout:
        fields = {name: getattr(rollout, name) for name in Rollout.__dataclass_fields__}
        return Rollout(**{**fields, **more})  # type: ignore[arg-type]

    broken = Grade(reward=0.0, failure="the verifier raised")
    rollouts = (changed(first, age=1), changed(second, grade=broken), *others)
    groups = (Group(item=evidence.groups[0].item, rollouts=rollouts),)
    partial = Evidence(round=1, phase=1, task="t", groups=groups, conditionings=evidence.conditionings)
    assert len(RewardTable.from_evidence(partial).rewards) == len(others)
    assert len(RewardTable.from_evidence(partial, max_age=1).rewards) == len(others) + 1
    unknown = Evidence(round=1, phase=1, task="t", groups=groups, conditionings={})
    with pytest.raises(ValueError, match="does not hold"):
        RewardTable.from_evidence(unknown)
