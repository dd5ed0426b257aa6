"""The fixed allocator: each channel every so many rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twoclock.allocate.plans import BudgetConfig, assign
from twoclock.errors import ConfigError, unknown_name
from twoclock.types import Evidence, Plan, Timescale

__all__ = ["FixedAllocator", "FixedConfig"]


@dataclass(frozen=True, kw_only=True)
class FixedConfig(BudgetConfig):
    every: Mapping[str, int] = field(default_factory=dict)
    """Channel → period in rounds: 3 is rounds 3, 6, 9 ...; 0 is never. A channel that is not named: each round."""

    def _problems(self) -> list[str]:
        negative = [(name, n) for name, n in self.every.items() if n < 0]
        return super()._problems() + [f"every.{name} = {n}: expected 0 (never) or more" for name, n in negative]


class FixedAllocator:
    """Each channel in the rounds that its period divides, whatever the evidence says."""

    def __init__(self, config: FixedConfig | None = None) -> None:
        self.config = config or FixedConfig()

    def plan(self, evidence: Evidence, channels: Mapping[str, Timescale], history: Sequence[Mapping[str, Any]]) -> Plan:
        """Raises ConfigError where ``every`` names a channel that is not in the run."""
        every = self.config.every
        if unknown := [unknown_name("channel in 'every'", name, channels) for name in every if name not in channels]:
            raise ConfigError(unknown)
        due = [(name, n) for name in channels if (n := every.get(name, 1)) and evidence.round % n == 0]
        reasons = [(name, "each round" if n == 1 else f"every {n} rounds") for name, n in due]
        return Plan(assignments=assign(self.config, channels, reasons))
