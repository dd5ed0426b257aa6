"""What each clock could still gain: identities by hand, unbiased over planted rates, honest where nothing is there."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from planted_worlds import World, planted_world
from twoclock.measure import Headroom, Interval, RewardTable, find_headroom
from twoclock.seeding import child_seed


def rows(item: str, label: str, rewards: str | list[float]) -> list[tuple[str, str, float]]:
    return [(item, label, float(r)) for r in rewards]


def test_groups_of_two_worked_by_hand() -> None:
    """Rates 2/4, 0/4, 4/4 in groups of 2: all-wrong pairs 1/6, 1, 0; all-right pairs 1/6, 0, 1 (of C(4,2) = 6)."""
    table = RewardTable.of([*rows("x", "a", "1100"), *rows("y", "a", "0000"), *rows("z", "a", "1111")])
    found = find_headroom(table, "a", group=2)
    assert found.stuck.estimate == pytest.approx((1 / 6 + 1 + 0) / 3)
    assert found.slow.estimate == pytest.approx((1 / 2 + 1 + 0) / 3 - (1 / 6 + 1) / 3)
    assert found.dead.estimate == pytest.approx((1 / 6 + 1) / 3)
    assert found.solved.estimate == pytest.approx((1 / 6 + 1) / 3)
    assert (found.best, found.group) == ("a", 2)
    assert not found.fast.is_known
    assert not found.fast_by_item.is_known


def test_graded_rewards_are_stuck_on_any_value_they_agree_on() -> None:
    """½, ½, ½, 1 in pairs: three of the six agree on ½ and miss ½ each; all else is a difference to learn from."""
    found = find_headroom(RewardTable.of(rows("x", "a", [0.5, 0.5, 0.5, 1.0])), "a", group=2)
    assert found.stuck.estimate == pytest.approx(3 / 6 * 0.5)
    assert found.slow.estimate == pytest.approx((1 - 2.5 / 4) - 3 / 6 * 0.5)
    assert found.dead.estimate == 0


@pytest.mark.parametrize("seed", range(6))
def test_the_chance_of_equal_groups_is_that_of_all_groups_that_can_be_drawn(seed: int) -> None:
    generator = np.random.default_rng(child_seed("test.groups", seed))
    n, G = int(generator.integers(3, 8)), int(generator.integers(1, 4))
    items = [[float(y) for y in generator.choice([0, 0.5, 1], size=n)] for _ in range(4)]
    found = find_headroom(
        RewardTable.of([r for i, ys in enumerate(items) for r in rows(str(i), "a", ys)]), "a", group=G
    )
    groups = [list(itertools.combinations(ys, min(G, n))) for ys in items]
    stuck = [np.mean([(1 - g[0]) * (len(set(g)) == 1) for g in of_item]) for of_item in groups]
    missing = 1 - np.mean(items)
    assert found.stuck.estimate == pytest.approx(np.mean(stuck))
    assert found.slow.estimate + found.stuck.estimate == pytest.approx(missing)
    assert found.dead.estimate == pytest.approx(np.mean([np.mean([not any(g) for g in o]) for o in groups]))
    assert found.solved.estimate == pytest.approx(np.mean([np.mean([min(g) == 1 for g in o]) for o in groups]))


def over_seeds(world: World, sims: int, rollouts: int, group: int) -> list[Headroom]:
    return [find_headroom(world.table(rollouts, seed=s), "prompt-0", group=group, seed=s) for s in range(sims)]


def test_slow_stuck_dead_and_solved_are_unbiased_for_their_rates() -> None:
    world = planted_world("weights", items=30)
    p = world.rates
    one, G = p[:, 0], 3
    truth = {
        "stuck": np.mean((1 - one) ** G),
        "slow": np.mean((1 - one) - (1 - one) ** G),
        "dead": np.mean(((1 - p) ** G).prod(axis=1)),
        "solved": np.mean(one**G),
    }
    tables = [world.table(5, seed=s, prompts=[0]) for s in range(100)]
    alone = [find_headroom(table, "prompt-0", group=G) for table in tables]
    every = over_seeds(world, 100, 5, G)
    for name, value in truth.items():
        found = [getattr(h, name) for h in (every if name == "dead" else alone)]
        estimates = np.array([interval.estimate for interval in found])
        assert abs(estimates.mean() - value) < 4 * estimates.std(ddof=1) / math.sqrt(len(estimates)) + 1e-9, name
        assert np.mean([i.low <= value <= i.high for i in found]) > 0.88, name


def false_alarms(intervals: list[Interval]) -> float:
    return float(np.mean([interval.low > 0 for interval in intervals]))


def test_under_noise_no_prompt_gains_though_the_best_of_many_looks_good() -> None:
    worlds = [
        World(kind="neither", ease=(0.5,) * 24, lift=(0.0,) * 8, learns=0.0),
        World(kind="neither", ease=(0.05,) * 24, lift=(0.0,) * 8, learns=0.0),
    ]
    for world in worlds:
        found = over_seeds(world, 200, 3, 2)
        assert false_alarms([h.fast for h in found]) <= 0.05
        assert false_alarms([h.fast_by_item for h in found]) <= 0.06
        assert abs(np.mean([h.fast_by_item.estimate for h in found])) < 0.01


def test_planted_prompts_are_found_and_their_gain_is_covered() -> None:
    for kind in ("prompt", "both"):
        world = planted_world(kind)  # type: ignore[arg-type]
        found = over_seeds(world, 40, 4, 2)
        assert np.mean([h.best == world.best for h in found]) > 0.95
        assert np.mean([h.fast.low <= world.prompt_gain <= h.fast.high for h in found]) >= 0.9
        assert np.mean([h.fast.low > 0 for h in found]) > 0.95
        assert np.mean([h.fast.estimate for h in found]) == pytest.approx(world.prompt_gain, abs=0.03)
        deployed = [find_headroom(world.table(4, seed=s), world.best, group=2) for s in range(20)]
        assert false_alarms([h.fast for h in deployed]) == 0


def test_choosing_by_item_sees_what_no_single_prompt_gains() -> None:
    right = {(i, c): (i % 2 == 0) == (c == "a") for i in range(20) for c in ("a", "b")}
    table = RewardTable.of([r for (i, c), ok in right.items() for r in rows(str(i), c, "1111" if ok else "0000")])
    found = find_headroom(table, "a", group=4)
    assert found.fast_by_item.estimate == pytest.approx(0.5)
    assert found.fast_by_item.low > 0.2
    assert found.fast.low == 0
    assert found.slow.estimate == 0  # every group is all right or all wrong
    assert found.dead.estimate == 0
    assert found.dead.high > 0


def test_items_with_fewer_rollouts_than_a_group_are_left_out() -> None:
    table = RewardTable.of([*rows("x", "a", "10"), *rows("y", "a", "1000"), *rows("z", "a", "1")])
    assert find_headroom(table, "a", group=4).slow.n == 1
    assert find_headroom(table, "a").group == 2
    none = find_headroom(table, "a", group=9)
    assert not none.slow.is_known
    assert none.slow.method == "no item has 9 rollouts under 'a'"


def test_a_prompt_that_always_wins_has_an_interval_all_the_same() -> None:
    table = RewardTable.of([r for i in range(6) for r in (*rows(str(i), "a", "0"), *rows(str(i), "b", "1"))])
    found = find_headroom(table, "a")
    assert found.best == "b"
    assert found.fast.estimate == 1
    assert 0 < found.fast.low < 0.6  # six items alike are no proof of all


def test_mistakes_are_named() -> None:
    table = planted_world("both", items=4).table(2, seed=0)
    with pytest.raises(ValueError, match="no rollout was sampled under the conditioning 'promt-0'"):
        find_headroom(table, "promt-0")
    with pytest.raises(ValueError, match="at least 1 rollout"):
        find_headroom(table, "prompt-0", group=0)
    with pytest.raises(ValueError, match="there are: none"):
        find_headroom(RewardTable.of([]), "a")
