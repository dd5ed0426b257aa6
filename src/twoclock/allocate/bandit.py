"""A bandit over the clocks: each round one clock learns, drawn by what its turns have brought for their cost.

An arm is a clock. What a turn brought is the change of the deployed state's reward from its round to the next; what
it cost is its tokens, a trained one counting three times a read one (a backward pass is about two forward ones).
Turns lose weight by ``discount`` a round, as what a clock can still bring changes. Each arm's gain per turn has a
normal posterior around the discounted mean; one draw of each, divided by the arm's mean cost, decides (Thompson
sampling). The draws are hashed from the round, so a plan follows from its arguments.

It knows nothing of regimes, of room or of what a lesson is: it is what :mod:`~twoclock.allocate.evidence` is compared
with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twoclock.allocate.plans import BudgetConfig, assign
from twoclock.seeding import child_rng
from twoclock.types import Evidence, Plan, Timescale

__all__ = ["BanditAllocator", "BanditConfig"]

TRAINED = 3.0
"""The cost of a trained token in read ones."""


@dataclass(frozen=True, kw_only=True)
class BanditConfig(BudgetConfig):
    discount: float = 0.9
    """What a turn's weight is multiplied by with each round."""
    noise: float = 0.15
    """The standard deviation of one turn's measured gain."""
    prior: float = 0.1
    """The standard deviation of a clock's gain a turn before anything is seen; its mean is 0."""
    seed: int = 0

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if not 0 < self.discount <= 1:
            problems.append(f"discount = {self.discount}: expected a number above 0, at most 1")
        problems += [
            f"{name} = {getattr(self, name)}: expected a number above 0"
            for name in ("noise", "prior")
            if not getattr(self, name) > 0
        ]
        return problems


class BanditAllocator:
    """See the module."""

    def __init__(self, config: BanditConfig | None = None) -> None:
        self.config = config or BanditConfig()

    def plan(self, evidence: Evidence, channels: Mapping[str, Timescale], history: Sequence[Mapping[str, Any]]) -> Plan:
        arms = {clock: [n for n, its in channels.items() if its is clock] for clock in Timescale}
        arms = {clock: names for clock, names in arms.items() if names}
        if not arms:
            return Plan()
        turns = self._turns(arms, history, evidence)
        untried = [clock for clock in arms if not turns[clock]]
        draws = {clock: self._draw(clock, turns[clock], evidence.round) for clock in arms}
        chosen = untried[0] if untried else max(draws, key=lambda clock: draws[clock])
        told = "its first turn" if untried else f"drawn at {draws[chosen]:+.4f} reward a thousand tokens"
        return Plan(
            assignments=assign(self.config, channels, [(name, told) for name in arms[chosen]]),
            passed=tuple(
                sorted((n, f"the other clock's turn: {told}") for c in arms if c is not chosen for n in arms[c])
            ),
        )

    def _turns(
        self, arms: Mapping[Timescale, list[str]], history: Sequence[Mapping[str, Any]], evidence: Evidence
    ) -> dict[Timescale, list[tuple[float, float, float]]]:
        """Of each clock (weight, gain, cost) of the rounds in which it alone learned. What a turn of the last round has
        brought is not known before the next one."""
        turns: dict[Timescale, list[tuple[float, float, float]]] = {clock: [] for clock in arms}
        for place, row in enumerate(history):
            asked = set(row["proposed"])
            mine = [clock for clock, names in arms.items() if asked & set(names)]
            if len(mine) != 1:
                continue
            after = history[place + 1] if place + 1 < len(history) else None
            gain = 0.0
            if after is not None and after.get("task") == row.get("task"):
                gain = after.get("signals", {}).get("deployed", 0.0) - row.get("signals", {}).get("deployed", 0.0)
            outcomes = [o for name, o in row.get("outcomes", {}).items() if name in arms[mine[0]]]
            cost = math.fsum(o["tokens"] + TRAINED * o["trained_tokens"] for o in outcomes)
            turns[mine[0]].append((self.config.discount ** (len(history) - 1 - place), gain, cost))
        return turns

    def _draw(self, clock: Timescale, turns: Sequence[tuple[float, float, float]], round: int) -> float:
        """Reward a thousand tokens."""
        config = self.config
        weight = math.fsum(w for w, _, _ in turns)
        precision = 1 / config.prior**2 + weight / config.noise**2
        mean = math.fsum(w * gain for w, gain, _ in turns) / config.noise**2 / precision
        cost = math.fsum(w * c for w, _, c in turns) / weight if weight else 0.0
        draw = child_rng("bandit", config.seed, round, str(clock)).gauss(mean, 1 / math.sqrt(precision))
        return 1000 * draw / max(cost, 1.0)
