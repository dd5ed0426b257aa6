"""What the channel ``proxy`` can be told: which experts there are, and which amounts are tried."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from twoclock.errors import ConfigError, unknown_name

__all__ = ["ProxyConfig", "ShiftConfig"]

SCOPES = ("task", "stream")


@dataclass(frozen=True, kw_only=True)
class ShiftConfig:
    """``[[channels.proxy.shifts]]``: one expert and what it is compared with."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # a mistyped name must not be passed over

    name: str
    """What the ledger calls it."""
    expert: str = ""
    """A run's folder (its trained weights), an adapter's folder, a model's folder, a GGUF file or a hub id. Empty: the
    model ``on``, or the policy's own base."""
    anti: str = ""
    """The anti-expert, as ``expert``."""
    on: str = ""
    """The model that runs and adapters among the two are changes of. Empty: the policy's own base."""
    plausible: float = 0.0
    """Above 0, only tokens that the expert finds at least so likely, relative to its most likely one, may be drawn."""
    mapped: bool = False
    """Whether tokens are matched by what they spell, for models of another vocabulary."""

    def __post_init__(self) -> None:
        problems = []
        if not self.name.strip():
            problems.append('a shift has no name: give each one, such as name = "terse"')
        if self.expert == self.anti:
            problems.append(f"shift '{self.name}': expert and anti are the same, so it would shift nothing")
        if not 0.0 <= self.plausible <= 1.0:
            problems.append(f"shift '{self.name}': plausible = {self.plausible}: expected a share from 0 to 1")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """``[channels.proxy]``"""

    shifts: tuple[ShiftConfig, ...] = ()
    """Those that may be deployed, each by itself or with others."""
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5)
    """The amounts that are tried, beside 0, which is no shift."""
    scope: Literal["task", "stream"] = "task"
    """Whether each task has amounts of its own, or all tasks the same."""
    search_items: int = 12
    """Training items that amounts are compared on, at most."""
    search_samples: int = 1
    """Answers to each of them under each amount."""
    base_dir: str = "."
    """The folder that paths are relative to; set to that of the configuration file."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: expected at least {least}"
            for name, least in (("search_items", 2), ("search_samples", 1))
            if getattr(self, name) < least
        ]
        if not self.alphas or not all(math.isfinite(a) and a != 0.0 for a in self.alphas):
            problems.append(f"alphas = {list(self.alphas)}: expected finite numbers other than 0, such as [0.5, 1.0]")
        if self.scope not in SCOPES:
            problems.append(unknown_name("scope", self.scope, SCOPES))
        names = [shift.name for shift in self.shifts]
        problems += [f"two shifts are called '{name}'" for name in sorted(set(names)) if names.count(name) > 1]
        if problems:
            raise ConfigError(problems)

    @property
    def grid(self) -> tuple[float, ...]:
        """All amounts, 0 among them, ascending."""
        return tuple(sorted({0.0, *(float(alpha) for alpha in self.alphas)}))
