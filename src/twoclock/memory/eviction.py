"""What to forget: the entries that a bounded memory can best do without, each with its reason.

Usefulness is measured (``twoclock.memory.effects``): what showing an entry is worth, times how often it is found. An
entry that nobody measured yet is judged by what it might be worth, so that new lessons get their chance; age alone
never drops one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twoclock.memory.effects import Estimate, Prior, estimate, pool_priors, verdict
from twoclock.memory.records import Effect, Entry

__all__ = ["Usefulness", "evict", "usefulness"]

PATIENCE = 5
"""How many times an entry may fail to be found before that begins to count."""
MOST_RATE = 1.25
"""Being found often or seldom counts for at most this factor: of an entry that is not shown it says little, as a reader
may well choose to show others."""


@dataclass(frozen=True, kw_only=True)
class Usefulness:
    """What an entry is judged by."""

    estimate: Estimate
    rate: float
    """How often it is found, relative to the pool's mean: 1 is as often as any."""
    found: int
    """Reads that found it and were credited."""
    harmful: bool
    """Measured to lower the reward, at 97.5 %."""
    score: float
    """``rate × promise``: what it may add to the reward, for all reads together. Higher is better, never below 0."""


def usefulness(
    entries: Sequence[Entry],
    effects: Mapping[str, Effect],
    now: float,
    priors: Mapping[str, Prior] | None = None,
) -> dict[str, Usefulness]:
    """Each entry's usefulness, by id. ``now`` is on the clock of ``Entry.created``; ``priors`` are those of the pool,
    by id, and of these entries alone where none are given. A pool of survivors flatters: what was dropped for doing
    nothing belongs to it too (:meth:`twoclock.memory.store.MemoryStore.priors`).

    The promise is the mean of max(0, effect) given the entry's outcomes and those of its kind
    (:func:`~twoclock.memory.effects.pool_priors`). The rate is ``(found + 5) / (age × pooled rate + 5)``, within a
    factor of 1.25: an entry that has just come is taken to be found as often as the others.
    """
    if not math.isfinite(now):
        raise ValueError(f"now must be a finite time on the entries' clock; got {now!r}")
    own = {entry.id: effects.get(entry.id, Effect()) for entry in entries}
    known = pool_priors(entries, own) if priors is None else priors
    found = {name: effect.shown + effect.held for name, effect in own.items()}
    ages = {entry.id: max(0.0, now - entry.created) for entry in entries}
    total_age = math.fsum(ages.values())
    pooled = sum(found.values()) / total_age if total_age > 0 else 0.0
    return {
        name: _judge(effect, known.get(name, Prior()), (found[name] + PATIENCE) / (ages[name] * pooled + PATIENCE))
        for name, effect in own.items()
    }


def _judge(effect: Effect, prior: Prior, rate: float) -> Usefulness:
    own = estimate(effect, prior)
    rate = min(MOST_RATE, max(1 / MOST_RATE, rate))
    return Usefulness(
        estimate=own,
        rate=rate,
        found=effect.shown + effect.held,
        # Both ways of seeing it must agree: the pool's prior is no evidence against one entry, and an entry's few
        # outcomes alone are looked at too often.
        harmful=verdict(effect, prior=prior) == "harms" and verdict(effect) == "harms",
        score=rate * own.promise,
    )


def evict(
    entries: Sequence[Entry],
    effects: Mapping[str, Effect],
    now: float,
    budget: int,
    priors: Mapping[str, Prior] | None = None,
) -> dict[str, str]:
    """The ids of the entries to drop, in this order, each with its reason.

    First what is measured to be harmful, whether or not there is room. Then, until ``budget`` entries are left: what
    has expired, what is quarantined, and the least useful (:func:`usefulness`). What a user vouched for is not
    measured against the others: it goes only when measured harmful or expired, or when there is nothing else left to
    go. Deterministic: ties go by id. Raises ValueError for a budget below 0.
    """
    if budget < 0:
        raise ValueError(f"the budget is a number of entries, 0 or more; got {budget}")
    judged = usefulness(entries, effects, now, priors)
    by_id = {entry.id: entry for entry in entries}
    dropped = {name: _harm(judged[name], effects[name]) for name in sorted(by_id) if judged[name].harmful}
    rest = sorted(
        (entry for entry in by_id.values() if entry.id not in dropped),
        key=lambda entry: (_rank(entry, now), judged[entry.id].score, entry.id),
    )
    for entry in rest[: max(0, len(rest) - budget)]:
        dropped[entry.id] = _why(entry, judged[entry.id], now, budget)
    return dropped


def _rank(entry: Entry, now: float) -> int:
    """Which goes first, whatever it is worth."""
    if entry.expires is not None and now >= entry.expires:
        return 0
    if entry.trust == "quarantined":
        return 1
    return 3 if entry.trust == "user" else 2


def _harm(judged: Usefulness, effect: Effect) -> str:
    low, high = judged.estimate.interval()
    return (
        f"measured harmful: showing it changed the reward by {judged.estimate.value:+.3f} [{low:+.3f}, {high:+.3f}] "
        f"({effect.shown} reads with it, {effect.held} without)"
    )


def _why(entry: Entry, judged: Usefulness, now: float, budget: int) -> str:
    rank = _rank(entry, now)
    if rank == 0:
        return f"over the budget of {budget} entries, and it had expired"
    if rank == 1:
        return f"over the budget of {budget} entries, and it was quarantined"
    vouched = ", though a user vouched for it: every other entry is gone" if rank == 3 else ""
    own = judged.estimate
    known = f"worth {own.value:+.3f} ± {own.spread:.3f} a showing" if judged.found else "never found"
    return (
        f"over the budget of {budget} entries, and the least useful{vouched}: {known}, "
        f"found {judged.rate:.2g} times as often as the average"
    )
