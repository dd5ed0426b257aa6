"""A search for amounts on a few training items: candidates as rows of one batch, what it finds checked on others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from twoclock.contracts import Workbench
from twoclock.fast.experts.config import ExpertsConfig
from twoclock.fast.experts.mixer import Mixer
from twoclock.fast.experts.state import Mixture
from twoclock.seeding import child_seed
from twoclock.types import Conditioning, Item

__all__ = ["Found", "MixtureSearch"]

FINALISTS = 3
"""What is deployed, the search's best candidate and its mean."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a choice came to: a mixture, or None; why; and numbers for the ledger."""

    mixture: Mixture | None
    told: str
    metrics: dict[str, float]


class MixtureSearch:
    """One search. Raises BudgetError where a call would pass the budget."""

    def __init__(self, config: ExpertsConfig, mixer: Mixer, bench: Workbench, seed: int) -> None:
        self.config, self.mixer, self.bench, self.seed = config, mixer, bench, seed

    def run(self, now: Mixture, limit: int | None) -> Found:
        """From what is deployed, within so many rollouts."""
        config = self.config
        sizes = self.sizes(limit)
        if sizes is None:
            return _nothing(f"the budget of {limit} rollouts is too small to compare mixtures")
        shots, iterations, checks = sizes
        items = self.bench.items("train", shots + checks, child_seed("experts.items", self.seed))
        if len(items) < 4:
            return _nothing(f"{len(items)} training items are too few to compare mixtures on")
        shots = min(shots, len(items) // 2)
        best, mean = self._climb(now, items[:shots], iterations)
        told = f"{iterations} iterations of {config.population} candidates on {shots} training items"
        return self._checked(now, [best, mean], items[shots:], told)

    def sizes(self, limit: int | None) -> tuple[int, int, int] | None:
        """(shots, iterations, items to check on) that a number of rollouts pays for; None where it pays for too few.
        First iterations are given up, then shots and items."""
        c = self.config
        if limit is None:
            return c.shots, c.iterations, c.check_items
        for shots, checks in ((c.shots, c.check_items), (min(c.shots, 4), min(c.check_items, 4)), (2, 2)):
            left = limit - FINALISTS * checks * c.samples
            iterations = min(c.iterations, left // (c.population * shots * c.samples))
            if iterations >= 1:
                return shots, iterations, checks
        return None

    def _climb(self, now: Mixture, items: Sequence[Item], iterations: int) -> tuple[list[float], list[float]]:
        """The best candidate of the last iteration, and the mean that the search ends with. Each iteration has its own
        random numbers, the same for all its candidates; the best one of the last is among them."""
        import numpy as np

        from twoclock.fast.experts.cem import Cem

        config, grain = self.config, self.config.grain
        given = self._given(now)
        corners = given[2:]
        start = given[0] if not now.is_base else [sum(column) / len(corners) for column in zip(*corners, strict=True)]
        search = Cem.start(start, config.start_sd, config.low, config.high)
        for iteration in range(iterations):
            drawn = search.draw(config.population, child_seed("experts.cem", self.seed)).tolist()
            some: list[list[float]] = [*given, *drawn][: config.population]
            # Of equal scores the first counts: the nearest to the base.
            some.sort(key=lambda x: self.mixer.mixture(x, grain).norm)
            mixtures = [self.mixer.mixture(x, grain) for x in some]
            scores = self.compared(mixtures, items, child_seed("experts.iteration", self.seed, iteration))
            given = [some[max(range(len(some)), key=lambda i: scores[i])]]
            search = search.moved(np.asarray(some), scores, config.num_elite)
        return given[0], search.mean.tolist()

    def _checked(self, now: Mixture, found: Sequence[list[float]], items: Sequence[Item], told: str) -> Found:
        """What the search found against what is deployed, on items that it did not see."""
        finalists = [now]
        mixtures = [self.mixer.mixture(x, self.config.grain) for x in found]
        for mixture in sorted(mixtures, key=lambda m: m.norm):
            if self.mixer.change(mixture) not in [self.mixer.change(m) for m in finalists]:
                finalists.append(mixture)
        if len(finalists) == 1:
            return _nothing(f"{told} came back to what is deployed: {now}")
        means = self.compared(finalists, items, child_seed("experts.check", self.seed))
        place = max(range(len(means)), key=lambda i: means[i])
        listed = "; ".join(f"{m}: {mean:.3g}" for m, mean in zip(finalists, means, strict=True))
        told = f"{told}; on {len(items)} further ones {listed}"
        if place == 0:
            return _nothing(f"nothing beat what is deployed: {told}")
        metrics = {"search_gain": means[place] - means[0], "check_items": float(len(items))}
        return Found(mixture=finalists[place], told=told, metrics=metrics)

    def compared(self, mixtures: Sequence[Mixture], items: Sequence[Item], seed: int) -> list[float]:
        """The mean reward of each, on the same items under the same random numbers."""
        conditionings = [Conditioning(mixture=self.mixer.change(m)) for m in mixtures]
        distinct = list({c.id: c for c in conditionings}.values())
        samples = self.config.samples
        groups = self.bench.roll_out(items, distinct, samples, seed)
        means = {
            c.id: math.fsum(r.reward for g in groups for r in g.rollouts[n * samples : (n + 1) * samples])
            / (len(items) * samples)
            for n, c in enumerate(distinct)
        }
        return [means[c.id] for c in conditionings]

    def _given(self, now: Mixture) -> list[list[float]]:
        """What is deployed, the base, and each expert alone, as candidates inside the box."""
        low, high, grain = self.config.low, self.config.high, self.config.grain
        alone = [Mixture.of("expert", {name: (1.0,)}) for name in self.mixer.names]
        known = [now, Mixture.of("expert", {}), *alone]
        return [[min(max(x, low), high) for x in self.mixer.candidate(mixture, grain)] for mixture in known]


def _nothing(told: str) -> Found:
    return Found(mixture=None, told=told, metrics={})
