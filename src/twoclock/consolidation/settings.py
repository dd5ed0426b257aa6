"""What a user may set of consolidation: ``[consolidation]``, and the options of ``twoclock consolidate``."""

from __future__ import annotations

from dataclasses import dataclass

from twoclock.errors import ConfigError

__all__ = ["ConsolidationSettings"]


@dataclass(frozen=True, kw_only=True)
class ConsolidationSettings:
    """Which lessons are moved, how they are distilled, and what they are held to."""

    at_phase_ends: bool = False
    """Whether a run consolidates by itself at the end of each phase."""

    min_age: int = 4
    """Rounds since a lesson was written, below which it is too young."""
    min_rounds: int = 2
    """Rounds in which it must have been compared with going without it."""
    horizon: int = 8
    lasting: float = 0.5
    """The least chance that it stays true through the next ``horizon`` rounds."""

    rounds: int = 40
    """At most so many rounds of distillation: rollouts without the lessons, then one optimizer step."""
    items: int = 16
    """Training items a round, of each task that the lessons are shown on."""
    samples: int = 4
    """Rollouts an item."""
    anchors: int = 4
    """Training items a round of each other task, on which the weights are held where they were; 0: none."""
    general_anchors: int = 4
    """General prompts a round on which they are held as well; never those that drift is measured on. 0: none."""
    learning_rate: float | None = None
    """None: the slow channel's own."""
    forward: float = 0.5
    """The share of KL(teacher‖policy) in what is minimised, where the policy tells it: on the reverse KL alone, what
    the policy never says without the lesson is learned very slowly."""
    patience: int = 6
    """Rounds over which the KL to the teacher must have fallen, or distillation stops."""

    trial_items: int = 128
    """Trial items of each task of the lessons: never trained on."""
    trial_samples: int = 2
    sentinel_items: int = 64
    """Trial items of each other task."""
    margin: float = 0.05
    """The loss of score that is shown to be excluded, on the lessons' own tasks and on the others."""
    drift: float | None = 0.5
    """The most that the weights may have moved from the base in all, KL in nats a token on the general prompts, in
    either direction. None: no bound."""
    alpha: float = 0.05
    """The chance at which each check passes that should not."""

    def __post_init__(self) -> None:
        least = {"min_rounds": 1, "rounds": 1, "items": 1, "samples": 1, "patience": 1, "trial_samples": 1}
        least |= {"min_age": 0, "horizon": 0, "anchors": 0, "general_anchors": 0, "trial_items": 8, "sentinel_items": 8}
        problems = [
            f"{name} = {getattr(self, name)}: expected at least {bound}"
            for name, bound in least.items()
            if not getattr(self, name) >= bound
        ]
        problems += [
            f"{name} = {getattr(self, name)}: expected a number between 0 and 1"
            for name in ("margin", "alpha", "lasting")
            if not 0 < getattr(self, name) < 1
        ]
        if not 0 <= self.forward <= 1:
            problems.append(f"forward = {self.forward}: expected a share from 0 to 1")
        problems += [
            f"{name} = {value}: expected a number above 0"
            for name, value in (("drift", self.drift), ("learning_rate", self.learning_rate))
            if value is not None and not value > 0
        ]
        if problems:
            raise ConfigError(problems)
