"""Change points: two steps by hand, a slow enumeration of every path as oracle, and conventions told from skills."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import betaln

from twoclock.measure import Persistence, PersistencePrior, StepEffect, log_evidence
from twoclock.seeding import child_seed

SURE = PersistencePrior(slip=0.0)


def after(effects: list[float], error: float = 0.1, prior: PersistencePrior | None = None) -> Persistence:
    found = Persistence(prior=prior or PersistencePrior())
    for step, effect in enumerate(effects):
        found = found.update(step, effect, error)
    return found


# --------------------------------------------------------------------------------------------------------- by hand


def test_nothing_seen_is_the_prior_by_hand() -> None:
    """P(holds) = ½ and E(1 - λ) = ½ under Beta(½, ½), so P(true for one step more) = ¼; E(1 - λ)² = ½ (3/2)/2 = ⅜."""
    nothing = Persistence()
    assert nothing.holds == pytest.approx(1 / 2)
    assert nothing.lasts(0) == pytest.approx(1 / 2)
    assert nothing.lasts(1) == pytest.approx(1 / 4)
    assert nothing.lasts(2) == pytest.approx(3 / 16)
    assert nothing.holds_in(7) == pytest.approx(1 / 2)
    assert nothing.hazard().estimate == pytest.approx(1 / 2)
    assert nothing.life(10).n == 0


def test_two_steps_that_surely_held_by_hand() -> None:
    """Held, held: one stay in one chance, so λ ~ Beta(½, 3/2): E(1 - λ) = ¾, E(1 - λ)² = ¾ · (5/2)/3 = ⅝, and the mean
    life within two steps is ¾ + ⅝. Held, then not, then held again: λ ~ Beta(3/2, ½), E(1 - λ) = ¼."""
    stays = after([2.0, 2.0], error=0.05, prior=SURE)
    assert stays.holds == pytest.approx(1, abs=1e-9)
    assert stays.lasts(1) == pytest.approx(3 / 4)
    assert stays.lasts(2) == pytest.approx(5 / 8)
    assert stays.life(2).estimate == pytest.approx(3 / 4 + 5 / 8)
    assert stays.hazard().estimate == pytest.approx(1 / 4)
    flips = after([2.0, -2.0, 2.0], error=0.05, prior=SURE)
    assert flips.lasts(1) == pytest.approx(1 / 4)
    assert flips.holds_in(1) == pytest.approx(1 / 4)


@pytest.mark.parametrize(("effect", "error"), [(0.4, 0.1), (0.0, 0.1), (-0.3, 0.2), (0.02, 0.5), (1.0, 0.01)])
def test_the_evidence_of_a_step_is_the_integral_it_stands_for(effect: float, error: float) -> None:
    def likelihood(theta: float) -> float:
        return float(stats.norm.pdf(effect, theta, error))

    def half(sign: int) -> float:
        points = sorted({0.0, min(max(sign * effect, 0.0), 2.5)})
        value, _ = integrate.quad(
            lambda t: likelihood(sign * t) * 2 * stats.norm.pdf(t, 0, 0.25), 0, 2.5, points=points, limit=400
        )
        return float(value)

    holds, not_ = half(1), likelihood(0.0) / 2 + half(-1) / 2
    if not_ > 1e-200:
        assert log_evidence(effect, error, SURE) == pytest.approx(math.log(holds / not_), rel=1e-5, abs=1e-5)
    mean = (holds + not_) / 2
    assert log_evidence(effect, error) == pytest.approx(
        math.log((0.98 * holds + 0.02 * mean) / (0.98 * not_ + 0.02 * mean)), rel=1e-5, abs=1e-5
    )


def test_no_single_step_is_proof() -> None:
    for effect, error in ((1.0, 1e-3), (-1.0, 1e-3), (1e6, 1.0)):
        assert abs(log_evidence(effect, error)) <= math.log(99.01)


# ---------------------------------------------------------------------------------------------------- the slow oracle


def enumerated(observations: list[tuple[int, float, float]], prior: PersistencePrior, ahead: int) -> dict[str, float]:
    """Every path of states over every step, with λ and ρ integrated path by path through Beta functions."""
    first, last = observations[0][0], observations[-1][0]
    steps = range(first, last + ahead + 1)
    logs = dict.fromkeys(steps, 0.0)
    for step, effect, error in observations:
        logs[step] += log_evidence(effect, error, prior)

    def chance(path: tuple[int, ...]) -> float:
        stops = sum(a and not b for a, b in itertools.pairwise(path))
        stays = sum(a and b for a, b in itertools.pairwise(path))
        starts = sum(b and not a for a, b in itertools.pairwise(path))
        rests = sum(not a and not b for a, b in itertools.pairwise(path))
        log = math.log(prior.holds if path[0] else 1 - prior.holds)
        log += betaln(prior.stops[0] + stops, prior.stops[1] + stays) - betaln(*prior.stops)
        log += betaln(prior.returns[0] + starts, prior.returns[1] + rests) - betaln(*prior.returns)
        return math.exp(log + sum(logs[step] for step, state in zip(steps, path, strict=True) if state))

    paths = {path: chance(path) for path in itertools.product((0, 1), repeat=len(steps))}
    whole = sum(paths.values())
    now = last - first
    return {
        "holds": sum(p for path, p in paths.items() if path[now]) / whole,
        "lasts": sum(p for path, p in paths.items() if all(path[now:])) / whole,
        "holds_in": sum(p for path, p in paths.items() if path[-1]) / whole,
    }


@pytest.mark.parametrize("seed", range(16))
def test_the_filter_is_the_sum_over_all_paths(seed: int) -> None:
    generator = np.random.default_rng(child_seed("test.paths", seed))
    number = int(generator.integers(1, 7))
    steps = sorted(int(s) for s in generator.integers(0, 9, size=number))  # with gaps, and with several looks at one
    observations = [(s, float(generator.normal(0.1, 0.3)), float(generator.uniform(0.05, 0.4))) for s in steps]
    prior = PersistencePrior(
        stops=(float(generator.uniform(0.3, 3)), float(generator.uniform(0.3, 3))),
        returns=(float(generator.uniform(0.3, 3)), float(generator.uniform(0.3, 3))),
        holds=float(generator.uniform(0.2, 0.8)),
    )
    ahead = int(generator.integers(0, 4))
    found = Persistence(prior=prior)
    for place in generator.permutation(number):
        found = found.update(*observations[place])
    truth = enumerated(observations, prior, ahead)
    assert found.holds == pytest.approx(truth["holds"], abs=1e-10)
    assert found.lasts(ahead) == pytest.approx(truth["lasts"], abs=1e-10)
    assert found.holds_in(ahead) == pytest.approx(truth["holds_in"], abs=1e-10)


def test_a_long_record_is_exact_by_conjugacy() -> None:
    """200 sure stays: λ ~ Beta(½, 199.5), so E(1 - λ)^h is a ratio of Beta functions."""
    found = after([2.0] * 200, error=0.05, prior=SURE)
    for h in (1, 5, 50, 400):
        assert found.lasts(h) == pytest.approx(math.exp(betaln(0.5, 199.5 + h) - betaln(0.5, 199.5)), rel=1e-6)
    assert found.hazard().estimate == pytest.approx(0.5 / 200, rel=1e-6)
    life = found.life(50)
    assert life.estimate == pytest.approx(sum(found.lasts(h) for h in range(1, 51)))
    assert life.low == max(h for h in range(51) if found.lasts(h) >= 0.975 or h == 0)
    assert life.high == max(h for h in range(51) if found.lasts(h) >= 0.025)
    assert found.life(10**9).high > 1000


# ------------------------------------------------------------------------------------------ what it is to be used for


def played(holds: list[bool], seed: int, groups: int = 10) -> Persistence:
    """Effects of a lesson that adds .4 while it holds and takes .3 while it does not, from ``groups`` pairs a step."""
    generator = np.random.default_rng(child_seed("test.played", seed))
    found = Persistence()
    for step, true in enumerate(holds):
        with_it = generator.random((groups, 2)) < (0.8 if true else 0.1)
        without = generator.random((groups, 2)) < 0.4
        found = found.update(step, float(with_it.mean() - without.mean()), math.sqrt(0.25 / groups))
    return found


def test_after_a_few_phases_a_skill_and_a_convention_part() -> None:
    sims = 100
    skills = [played([True] * 5, seed) for seed in range(sims)]
    conventions = [played([True, False, True, False, True], seed) for seed in range(sims)]
    assert np.mean([one.lasts(1) > 0.75 for one in skills]) >= 0.95
    assert np.mean([one.lasts(1) < 0.5 for one in conventions]) >= 0.95
    assert np.mean([one.life(20).estimate for one in skills]) > 3 * np.mean(
        [one.life(20).estimate for one in conventions]
    )
    assert np.mean([one.holds > 0.5 for one in conventions]) >= 0.95  # it does hold now, for all that
    stopped = [played([True, True, True, False, False], seed) for seed in range(sims)]
    assert np.mean([one.holds < 0.5 for one in stopped]) >= 0.9


def test_probabilities_of_lessons_drawn_from_the_prior_are_calibrated() -> None:
    """Lessons with λ and ρ from the prior: of those said to last with p, the share p does."""
    generator = np.random.default_rng(child_seed("test.calibration", 0))
    said, did = [], []
    for _ in range(1500):
        stop, back = generator.beta(0.5, 0.5, size=2)
        state, found = bool(generator.random() < 0.5), Persistence()
        for step in range(4):
            size = abs(generator.normal(0, 0.25)) * (1 if state else -float(generator.random() < 0.5))
            found = found.update(step, float(generator.normal(size, 0.1)), 0.1)
            held = state
            state = bool(generator.random() >= stop) if state else bool(generator.random() < back)
        said.append(found.lasts(1))
        did.append(held and state)
    predicted, happened = np.array(said), np.array(did, dtype=float)
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        inside = (predicted >= low) & (predicted < high)
        error = 4 * math.sqrt(0.25 / inside.sum())
        assert abs(predicted[inside].mean() - happened[inside].mean()) < error


# ---------------------------------------------------------------------------------------- values and mistakes


def test_an_update_leaves_the_old_value_and_json_brings_all_back() -> None:
    old = after([0.3, 0.1])
    new = old.update(5, -0.2, 0.2)
    assert len(old.steps) == 2
    back = Persistence.from_dict(json.loads(json.dumps(new.as_dict(), allow_nan=False)))
    assert back == new
    assert back.lasts(3) == new.lasts(3)
    with pytest.raises(ValueError, match=r"expected what Persistence\.as_dict gives"):
        Persistence.from_dict({"steps": []})
    with pytest.raises(ValueError, match=r"expected what Persistence\.as_dict gives"):
        Persistence.from_dict({**new.as_dict(), "steps": [[0, 0.1]]})
    with pytest.raises(ValueError, match="standard error above 0"):
        Persistence.from_dict({**new.as_dict(), "steps": [[0, 0.1, 0.0]]})


@pytest.mark.parametrize(
    ("effect", "error"), [(math.nan, 0.1), (0.1, 0.0), (0.1, -1.0), (math.inf, 0.1), (0.1, math.nan)]
)
def test_an_effect_that_is_none_is_refused(effect: float, error: float) -> None:
    with pytest.raises(ValueError, match="standard error above 0"):
        StepEffect(0, effect, error)


def test_a_prior_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="two numbers above 0"):
        PersistencePrior(stops=(0.0, 1.0))
    with pytest.raises(ValueError, match="holds between 0 and 1"):
        PersistencePrior(holds=1.0)
    with pytest.raises(ValueError, match="0 or more"):
        Persistence().lasts(-1)


def test_far_apart_steps_and_very_long_records_stay_finite() -> None:
    far = after([0.4]).update(10**6, 0.4, 0.1)
    assert 0.9 < far.holds <= 1
    long = after([0.4, -0.2] * 300, error=0.2)
    assert 0 <= long.lasts(1) <= long.holds <= 1
    assert math.isfinite(long.life(10).estimate)
