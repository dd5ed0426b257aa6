"""The allocator: who learns next and on what budget, and the gates that judge what is proposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from twoclock.allocate.alternate import AlternateAllocator, AlternateConfig
from twoclock.allocate.bandit import BanditAllocator, BanditConfig
from twoclock.allocate.evidence import EvidenceAllocator, EvidenceConfig
from twoclock.allocate.fixed import FixedAllocator, FixedConfig
from twoclock.allocate.gates import AcceptGate, DriftGate, DriftMeter, PairedTrialGate, trial_drift
from twoclock.allocate.phased import PhasedAllocator, PhasedConfig
from twoclock.allocate.sequential import SequentialTrialGate
from twoclock.contracts import Allocator, Gate
from twoclock.errors import ConfigError, unknown_name
from twoclock.options import read_options
from twoclock.types import Timescale

__all__ = [
    "ALLOCATORS",
    "GATES",
    "AcceptGate",
    "AlternateAllocator",
    "AlternateConfig",
    "BanditAllocator",
    "BanditConfig",
    "DriftGate",
    "DriftMeter",
    "EvidenceAllocator",
    "EvidenceConfig",
    "FixedAllocator",
    "FixedConfig",
    "GateConfig",
    "PairedTrialGate",
    "PhasedAllocator",
    "PhasedConfig",
    "SequentialTrialGate",
    "build_allocator",
    "gate_for",
    "trial_drift",
]

ALLOCATORS: dict[str, tuple[type, type]] = {
    "fixed": (FixedConfig, FixedAllocator),
    "alternate": (AlternateConfig, AlternateAllocator),
    "phased": (PhasedConfig, PhasedAllocator),
    "bandit": (BanditConfig, BanditAllocator),
    "evidence": (EvidenceConfig, EvidenceAllocator),
}
"""Name → (config, allocator)."""

GATES = ("paired", "sequential", "drift", "accept")


def build_allocator(name: str, options: Mapping[str, Any]) -> Allocator:
    """An allocator from its name and plain options. Raises ConfigError for an unknown name, and with every mistake in
    the options at once."""
    if name not in ALLOCATORS:
        raise ConfigError(unknown_name("allocator", name, ALLOCATORS))
    config, make = ALLOCATORS[name]
    allocator: Allocator = make(read_options(config, options, f"allocator '{name}'"))
    return allocator


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Which gate judges which channels, and the paired trial's size."""

    fast: Literal["paired", "sequential", "drift", "accept"] = "paired"
    slow: Literal["paired", "sequential", "drift", "accept"] = "drift"
    memory: Literal["paired", "sequential", "drift", "accept"] = "accept"
    """Fast channels that remember: what each of their entries is worth is measured while it is used, which is cheaper
    and goes on for longer than a trial."""
    trial_items: int = 48
    """Fresh items of the trial split that both sides answer; of a ``sequential`` trial the most."""
    trial_samples: int = 1
    """Rollouts an item and side."""
    alpha: float = 0.05
    """The chance at which a change without effect is accepted, at most."""

    def __post_init__(self) -> None:
        problems = []
        for clock in ("fast", "slow", "memory"):
            if getattr(self, clock) not in GATES:
                problems.append(unknown_name("gate", getattr(self, clock), GATES))
        if self.trial_samples < 1:
            problems.append(f"trial_samples = {self.trial_samples}: expected at least 1")
        if not 0 < self.alpha < 1:
            problems.append(f"alpha = {self.alpha}: expected a chance between 0 and 1, such as 0.05")
        elif 2.0**-self.trial_items > self.alpha:
            problems.append(f"trial_items = {self.trial_items}: too few to reach alpha = {self.alpha}")
        if problems:
            raise ConfigError(problems)


def gate_for(
    timescale: Timescale,
    config: GateConfig | None = None,
    *,
    drift_meter: DriftMeter | None = None,
    remembers: bool = False,
) -> Gate:
    """The gate that judges proposals of a clock; of a fast channel that remembers where ``remembers``."""
    config = config or GateConfig()
    fast = config.memory if remembers else config.fast
    name = fast if timescale is Timescale.FAST else config.slow
    if name == "paired":
        return PairedTrialGate(trial_items=config.trial_items, samples=config.trial_samples, alpha=config.alpha)
    if name == "sequential":
        return SequentialTrialGate(trial_items=config.trial_items, samples=config.trial_samples, alpha=config.alpha)
    return DriftGate(meter=drift_meter) if name == "drift" else AcceptGate()
