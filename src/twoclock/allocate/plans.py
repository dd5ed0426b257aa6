"""What every allocator hands out alike: budgets by timescale, and assignments in the order in which channels act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twoclock.errors import ConfigError
from twoclock.types import Assignment, Budget, Timescale

__all__ = ["BudgetConfig", "assign", "learns_for_free"]


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Budgets of one proposal, by timescale; None is no limit."""

    fast_rollouts: int | None = 256
    """Rollouts that one fast search may spend."""
    fast_tokens: int | None = None
    slow_rollouts: int | None = None
    """Rollouts of a slow channel's own, beyond the round's evidence."""
    slow_tokens: int | None = None
    drift: float | None = None
    """KL to the base, in nats a token, that a slow version may not pass; None measures nothing at the gate."""

    def _problems(self) -> list[str]:
        limits = {name: getattr(self, name) for name in BudgetConfig.__dataclass_fields__}
        return [
            f"{name} = {value}: expected a number of at least 0, or none at all for no limit"
            for name, value in limits.items()
            if value is not None and not value >= 0
        ]

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ConfigError(problems)

    def budget(self, timescale: Timescale) -> Budget:
        if timescale is Timescale.FAST:
            return Budget(rollouts=self.fast_rollouts, tokens=self.fast_tokens)
        return Budget(rollouts=self.slow_rollouts, tokens=self.slow_tokens, drift=self.drift)


def learns_for_free(name: str, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a fast channel has written something and never rolled anything out: a memory, which learns from what the
    round saw and costs nothing to ask."""
    outcomes = [row["outcomes"][name] for row in history if name in row.get("outcomes", {})]
    wrote = any(outcome["action"] == "commit" for outcome in outcomes)
    return wrote and not any(outcome["rollouts"] for outcome in outcomes)


def assign(
    config: BudgetConfig,
    channels: Mapping[str, Timescale],
    reasons: Iterable[tuple[str, str]],
    alphas: Mapping[str, float] | None = None,
) -> tuple[Assignment, ...]:
    """Assignments for (channel, reason) pairs: fast channels first, as a search is to run on the policy as it is before
    the round's own gradient step; by name within a clock. ``alphas`` are the chances that trials of some channels are
    held to."""
    order = sorted(reasons, key=lambda pair: (channels[pair[0]] is Timescale.SLOW, pair[0]))
    return tuple(
        Assignment(
            channel=name, budget=replace(config.budget(channels[name]), alpha=(alphas or {}).get(name)), reason=reason
        )
        for name, reason in order
    )
