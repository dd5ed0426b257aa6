"""What the channel ``neural_memory`` can be told: which memory, what is written into it, and for whom."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from twoclock.errors import ConfigError, unknown_name

__all__ = ["RANDOM", "NeuralMemoryConfig"]

SCOPES = ("task", "stream")
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class NeuralMemoryConfig:
    """``[channels.neural_memory]``"""

    retrofit: str = ""
    """The file of a retrofit trained for the policy's base. ``random``: untrained projections by seed, the control."""
    scope: Literal["task", "stream"] = "task"
    """Whether each task has a memory of its own, or all tasks share one."""
    success: float = 1.0
    """The reward from which an answer is right, and written."""
    gold: bool = True
    """Whether the reference is written where nobody was right and there is one."""
    max_texts: int = 32
    """Questions written in one round, at most."""
    layers: tuple[int, ...] = ()
    """Of a random memory: the layers that it is read behind; none: one, two thirds of the way up."""
    heads: int = 1
    """Of a random memory."""
    width: int = 64
    """Of a random memory: of a head's keys and values."""
    gate: float = 1.0
    """Of a random memory: how loud it is. 0 is closed: the model is the base."""
    base_dir: str = "."
    """The folder that paths are relative to; set to that of the configuration file."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: expected at least 1"
            for name in ("max_texts", "heads", "width")
            if getattr(self, name) < 1
        ]
        if self.scope not in SCOPES:
            problems.append(unknown_name("scope", self.scope, SCOPES))
        if not 0.0 < self.success <= 1.0:
            problems.append(f"success = {self.success}: expected a reward above 0, at most 1")
        if not math.isfinite(self.gate):
            problems.append(f"gate = {self.gate}: expected a finite number")
        if list(self.layers) != sorted(set(self.layers)) or any(at < 0 for at in self.layers):
            problems.append(f"layers = {list(self.layers)}: expected numbers from 0 on, each once and ascending")
        if problems:
            raise ConfigError(problems)
