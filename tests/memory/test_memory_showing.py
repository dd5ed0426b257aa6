"""What is shown and what is tried next, by the measured effect."""

from __future__ import annotations

import pytest

from twoclock.memory.effects import Prior, fit_prior
from twoclock.memory.records import Effect
from twoclock.memory.showing import Showing


def coins(shown: int, rights: int, held: int, held_rights: int) -> Effect:
    return Effect(
        shown=shown, shown_sum=rights, shown_squares=rights, held=held, held_sum=held_rights, held_squares=held_rights
    )


EFFECTS = {
    "best": coins(100, 90, 50, 20),
    "good": coins(100, 70, 50, 20),
    "nothing": coins(100, 40, 50, 20),
    "bad": coins(100, 5, 50, 25),
}
FOUND = ["bad", "new", "good", "nothing", "newer", "best"]
PRIORS = dict.fromkeys(FOUND, fit_prior(EFFECTS.values()))


def test_the_proven_are_shown_best_first_and_the_hopeless_never() -> None:
    for seed in range(200):
        chances = Showing().hold_outs(FOUND, EFFECTS, PRIORS, seed=seed)
        assert list(chances)[:2] == ["best", "good"]
        assert chances["best"] == chances["good"] == 0.1
        assert "bad" not in chances
        assert len(chances) <= 3


def test_one_in_five_reads_tries_one_that_is_not_known() -> None:
    tried = [name for seed in range(1000) for name in list(Showing().hold_outs(FOUND, EFFECTS, PRIORS, seed=seed))[2:]]
    assert 150 <= len(tried) <= 250
    assert set(tried) <= {"new", "newer", "nothing"}
    assert tried.count("new") > 40
    assert tried.count("newer") > 40
    assert all(
        c == 0.5
        for s in range(50)
        for n, c in Showing().hold_outs(FOUND, EFFECTS, PRIORS, seed=s).items()
        if n == "new"
    )


def test_where_nothing_is_proven_there_is_always_a_try() -> None:
    for seed in range(50):
        chances = Showing().hold_outs(["new", "bad"], EFFECTS, PRIORS, seed=seed)
        assert chances == {"new": 0.5}
    assert Showing().hold_outs(["bad"], EFFECTS, PRIORS, seed=0) == {}
    assert Showing().hold_outs([], EFFECTS, PRIORS, seed=0) == {}


def test_a_good_pool_alone_proves_no_entry() -> None:
    """However well the others do, what was never measured is tried, not shown."""
    good = Prior(mean=0.4, spread=0.05, error=0.01, variance=0.2, entries=100)
    assert Showing().hold_outs(["new"], {}, {"new": good}, seed=1) == {"new": 0.5}
    assert Showing().hold_outs(["new"], {"new": coins(5, 5, 0, 0)}, {"new": good}, seed=1) == {"new": 0.5}


def test_k_bounds_what_is_shown() -> None:
    assert Showing(k=0).hold_outs(FOUND, EFFECTS, PRIORS, seed=1) == {}
    assert list(Showing(k=1, explore=0.0).hold_outs(FOUND, EFFECTS, PRIORS, seed=1)) == ["best"]
    assert list(Showing(explore=0.0).hold_outs(FOUND, EFFECTS, PRIORS, seed=1)) == ["best", "good"]


def test_the_same_seed_chooses_the_same() -> None:
    first = [Showing().hold_outs(FOUND, EFFECTS, PRIORS, seed=s) for s in range(50)]
    assert first == [Showing().hold_outs(FOUND, EFFECTS, PRIORS, seed=s) for s in range(50)]


def test_settings_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or more; got -1"):
        Showing(k=-1)
    with pytest.raises(ValueError, match=r"explore is a probability in \[0, 1\]; got nan"):
        Showing(explore=float("nan"))


def test_what_did_well_is_tried_on_and_what_did_not_gives_way() -> None:
    """Some luck at the first tries beats the unknown, and the unknown beats some bad luck."""
    effects = {"up": coins(5, 5, 5, 1), "down": coins(5, 0, 5, 3)}
    rule = Showing(sure=0.99)
    for seed in range(20):
        assert rule.hold_outs(["down", "new", "up"], effects, {}, seed=seed) == {"up": 0.5}
        assert rule.hold_outs(["down", "new"], effects, {}, seed=seed) == {"new": 0.5}


def test_what_its_kind_promises_little_is_tried_last() -> None:
    dull = Prior(mean=0.01, spread=0.02, error=0.0, variance=0.25, entries=100)
    for seed in range(20):
        assert Showing().hold_outs(["dull", "open"], {}, {"dull": dull}, seed=seed) == {"open": 0.5}
