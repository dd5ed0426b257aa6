"""Which of the found entries to show, by what showing them was measured to be worth; and what to find out next.

A memory that shows whatever it finds pays for every wrong lesson until it is forgotten, and one that shows only what
is proven never learns of a new one. So what is proven is shown, and beside it now and then one entry that is not, held
out half of the time: the quickest way to measure it, at the price of at most one wrong entry in a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twoclock.memory.effects import Prior, estimate
from twoclock.memory.records import Effect
from twoclock.seeding import child_rng

__all__ = ["Showing"]


@dataclass(frozen=True, kw_only=True)
class Showing:
    """The rule. A probability of 1 - ``sure`` or less that an entry does no good makes it *proven*."""

    k: int = 3
    """How many proven entries are shown, those of the highest estimate."""
    hold_out: float = 0.1
    """How often a proven one is held out all the same: what keeps its measurement alive when the world changes."""
    explore: float = 0.2
    """How often one that is not proven is tried; always, where nothing is proven."""
    sure: float = 0.8
    hopeless: float = 0.05
    """An entry is not tried that helps with a lower probability than this."""

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"k is a number of entries, 0 or more; got {self.k}")
        for name in ("hold_out", "explore", "sure", "hopeless"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability in [0, 1]; got {getattr(self, name)!r}")

    def hold_outs(
        self,
        found: Sequence[str],
        effects: Mapping[str, Effect],
        priors: Mapping[str, Prior],
        *,
        seed: int,
    ) -> dict[str, float]:
        """For each entry that may be shown the probability of holding it out, proven ones first, best first. Entries
        that are not named are left out by choice, not by chance: their outcome says nothing about them and is not to
        be credited.

        ``priors`` are those of :func:`~twoclock.memory.effects.pool_priors`; an id without one has the prior of
        nothing. Tried is the entry of the most promise, the mean of max(0, effect): one that did well at its first
        tries is tried on, one that did not gives way to one that nothing is known of. The same arguments give the same
        answer; k = 0 shows nothing.
        """
        if self.k == 0:
            return {}
        judged = {name: estimate(effects.get(name, Effect()), priors.get(name)) for name in found}
        known = [
            name
            for name in judged
            if effects.get(name, Effect()).difference is not None and judged[name].helps >= self.sure
        ]
        proven = sorted(known, key=lambda name: (-judged[name].value, name))[: self.k]
        chances = dict.fromkeys(proven, self.hold_out)
        open_ = [name for name in judged if name not in known and judged[name].helps >= self.hopeless]
        rng = child_rng("showing", seed)
        if open_ and (rng.random() < self.explore or not proven):
            rng.shuffle(open_)  # of entries that nothing is known of, none is always the first
            chances[max(open_, key=lambda name: round(judged[name].promise, 12))] = 0.5
        return chances
