"""What is forgotten: by measured usefulness, within the budget always, with a reason, the same each time."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from twoclock.memory.effects import Prior
from twoclock.memory.eviction import evict, usefulness
from twoclock.memory.records import Effect, Entry, Trust
from twoclock.seeding import child_rng


def lesson(name: str, **more: object) -> Entry:
    return replace(Entry(kind="reflection", key=f"about {name}", text=f"lesson {name}"), **more)  # type: ignore[arg-type]


def coins(shown: int, rights: int, held: int, held_rights: int) -> Effect:
    return Effect(
        shown=shown, shown_sum=rights, shown_squares=rights, held=held, held_sum=held_rights, held_squares=held_rights
    )


HELPS = coins(80, 64, 20, 8)
NOTHING = coins(80, 40, 20, 10)
HARMS = coins(80, 8, 20, 12)


def test_within_the_budget_nothing_goes() -> None:
    entries = [lesson(str(n)) for n in range(5)]
    effects = {entries[0].id: HELPS, entries[1].id: NOTHING}
    assert evict(entries, effects, 10.0, 5) == {}
    assert evict([], {}, 0.0, 0) == {}


def test_what_is_measured_harmful_goes_though_there_is_room() -> None:
    entries = [lesson(str(n)) for n in range(5)]
    dropped = evict(entries, {entries[2].id: HARMS}, 10.0, 100)
    assert list(dropped) == [entries[2].id]
    assert "measured harmful: showing it changed the reward by -0." in dropped[entries[2].id]
    assert "(80 reads with it, 20 without)" in dropped[entries[2].id]


def test_the_useless_go_before_the_useful_and_before_the_new() -> None:
    useful, useless, new = lesson("useful"), lesson("useless"), lesson("new", created=99.0)
    effects = {useful.id: HELPS, useless.id: NOTHING}
    assert list(evict([useful, useless, new], effects, 100.0, 2)) == [useless.id]
    assert list(evict([useful, useless, new], effects, 100.0, 1)) == [useless.id, new.id]


def test_age_alone_drops_nothing() -> None:
    """The oldest entry of all stays where it is useful and still found as often as the rest."""
    old = lesson("old")
    others = [lesson(f"young {n}", created=990.0) for n in range(5)]
    effects = {old.id: coins(8000, 6400, 2000, 800)} | {entry.id: NOTHING for entry in others}
    assert old.id not in evict([old, *others], effects, 1000.0, 1)


def test_of_equals_the_one_that_is_found_stays() -> None:
    """A lesson about what never comes up goes before one that is found and not yet measured. Only of equals: a reader
    may have chosen to show others."""
    never, found = lesson("never"), lesson("found")
    others = [lesson(f"other {n}") for n in range(8)]
    effects = {entry.id: HELPS for entry in others} | {found.id: coins(60, 30, 0, 0)}
    dropped = evict([never, found, *others], effects, 100.0, 9)
    assert list(dropped) == [never.id]
    assert "never found" in dropped[never.id]
    effects[found.id] = coins(600, 300, 0, 0)
    judged = usefulness([never, found, *others], effects, 1e6)
    assert (judged[never.id].rate, judged[found.id].rate) == (0.8, 1.25)


def test_a_new_entry_is_taken_to_be_found_as_often_as_the_others() -> None:
    new, others = lesson("new", created=100.0), [lesson(str(n)) for n in range(4)]
    judged = usefulness([new, *others], {entry.id: NOTHING for entry in others}, 100.0)
    assert judged[new.id].rate == 1.0
    assert judged[others[0].id].rate == pytest.approx(1.0, abs=0.02)
    assert judged[new.id].score > judged[others[0].id].score, "it may yet prove to help"


def test_what_did_well_at_its_first_tries_does_not_give_way_to_a_newcomer() -> None:
    pool = [lesson(f"pool {n}") for n in range(20)]
    tried, failed, new = lesson("tried"), lesson("failed"), lesson("new", created=100.0)
    effects = {e.id: (HELPS if n % 2 else NOTHING) for n, e in enumerate(pool)}
    effects |= {tried.id: coins(6, 6, 5, 1), failed.id: coins(6, 1, 5, 4)}
    judged = usefulness([*pool, tried, failed, new], effects, 100.0)
    order = sorted((tried, failed, new), key=lambda entry: -judged[entry.id].score)
    assert order == [tried, new, failed]


def test_what_one_episode_led_to_is_judged_by_others_of_its_kind() -> None:
    """Where lessons that were written once were measured to do nothing, the next one of that kind promises little, and
    one that several episodes led to promises what those did."""
    once = [lesson(f"once {n}", provenance=("e",)) for n in range(12)]
    again = [lesson(f"again {n}", provenance=("e", f"f{n}")) for n in range(12)]
    effects = {e.id: coins(200, 100, 200, 100) for e in once[1:]}
    effects |= {e.id: coins(200, 160 if n % 2 else 40, 200, 100) for n, e in enumerate(again[1:])}
    judged = usefulness([*once, *again], effects, 10.0)
    assert judged[again[0].id].score > 2 * judged[once[0].id].score


def test_the_priors_of_a_larger_pool_are_believed() -> None:
    """What is gone still tells of the next like it."""
    new, known = lesson("new"), lesson("known")
    effects = {known.id: coins(400, 208, 400, 200)}
    assert list(evict([new, known], effects, 1.0, 1)) == [known.id]
    junk = Prior(mean=-0.2, spread=0.05, error=0.01, variance=0.25, entries=500)
    assert list(evict([new, known], effects, 1.0, 1, {new.id: junk})) == [new.id]


def test_what_a_user_vouched_for_stays_until_it_is_measured_harmful() -> None:
    mine = lesson("mine", trust="user")
    others = [lesson(str(n)) for n in range(4)]
    effects = {mine.id: NOTHING} | {entry.id: HELPS for entry in others}
    assert mine.id not in evict([mine, *others], effects, 10.0, 1)
    assert list(evict([mine, *others], effects | {mine.id: HARMS}, 10.0, 5)) == [mine.id]


def test_the_budget_holds_even_where_a_user_vouched_for_everything() -> None:
    entries = [lesson(str(n), trust="user") for n in range(6)]
    dropped = evict(entries, {}, 10.0, 2)
    assert len(dropped) == 4
    assert all("though a user vouched for it" in reason for reason in dropped.values())


def test_the_expired_and_the_quarantined_go_first() -> None:
    expired = lesson("expired", expires=5.0, trust="user")
    quarantined = lesson("quarantined", trust="quarantined")
    plain = [lesson(str(n)) for n in range(3)]
    entries = [*plain, quarantined, expired]
    assert list(evict(entries, {expired.id: HELPS}, 10.0, 3)) == [expired.id, quarantined.id]
    assert "it had expired" in evict(entries, {}, 10.0, 4)[expired.id]
    assert evict(entries, {}, 10.0, 5) == {}


@pytest.mark.parametrize("seed", range(30))
def test_any_memory_is_bounded_and_the_order_of_its_entries_does_not_matter(seed: int) -> None:
    rng = child_rng("any memory", seed)
    trusts: list[Trust] = ["verified", "self", "user", "imported", "quarantined"]
    entries = [
        lesson(
            str(n),
            created=rng.uniform(-5, 100),
            trust=rng.choice(trusts),
            expires=rng.choice([None, rng.uniform(0, 100)]),
        )
        for n in range(rng.randrange(40))
    ]
    effects = {entry.id: any_effect(rng) for entry in entries if rng.random() < 0.7}
    budget = rng.randrange(30)
    dropped = evict(entries, effects, 50.0, budget)
    assert len(entries) - len(dropped) <= budget or len(dropped) == len(entries)
    assert set(dropped) <= {entry.id for entry in entries}
    assert all(dropped.values())
    harmful = [n for n, u in usefulness(entries, effects, 50.0).items() if u.harmful]
    assert list(dropped)[: len(harmful)] == sorted(harmful)
    assert len(dropped) == max(len(harmful), len(entries) - budget)
    rng.shuffle(entries)
    assert list(evict(entries, effects, 50.0, budget).items()) == list(dropped.items())


def any_effect(rng: random.Random) -> Effect:
    shown, held = rng.randrange(60), rng.randrange(20)
    return coins(shown, rng.randint(0, shown), held, rng.randint(0, held))


def test_streams_without_a_signal_are_no_trouble() -> None:
    entries = [lesson(str(n)) for n in range(6)]
    for rights in (0, 1):
        effects = {entry.id: coins(30, 30 * rights, 10, 10 * rights) for entry in entries}
        assert len(evict(entries, effects, 10.0, 4)) == 2
        assert evict(entries, effects, 10.0, 6) == {}


def test_an_effect_of_an_entry_that_is_gone_is_ignored() -> None:
    entries = [lesson("a"), lesson("b")]
    assert evict(entries, {"gone": HARMS}, 1.0, 2) == {}


def test_what_is_no_budget_or_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more; got -1"):
        evict([lesson("a")], {}, 0.0, -1)
    with pytest.raises(ValueError, match="finite time"):
        evict([lesson("a")], {}, math.nan, 1)
