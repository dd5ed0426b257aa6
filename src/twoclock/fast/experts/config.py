"""What the channel ``experts`` can be told: where the experts are, how one is chosen or several are mixed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from twoclock.errors import ConfigError, unknown_name

__all__ = ["ExpertsConfig"]

STRATEGIES = ("prompt", "classifier", "cem")
GRAINS = ("expert", "layer", "vector")


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """``[channels.experts]``"""

    library: str = ""
    """The folder that ``twoclock experts add`` has filled."""
    experts: tuple[str, ...] = ()
    """Which of them may be mixed in; none named: all but the classifier."""
    strategy: Literal["prompt", "classifier", "cem"] = "cem"
    """``prompt``: the model is asked which expert a question is for. ``classifier``: it is asked under an expert that
    was trained to say. ``cem``: amounts are searched for on a few training items."""
    classifier: str = ""
    """Of ``classifier``: the expert that names the kind of a question."""
    ask_items: int = 8
    """Of ``prompt`` and ``classifier``: the round's questions that are asked about, at most."""
    grain: Literal["expert", "layer", "vector"] = "expert"
    """Of ``cem``: what has an amount of its own: an expert, each of its layers, or each of its vectors."""
    low: float = 0.0
    high: float = 1.0
    """Of ``cem``: the least and the greatest amount."""
    shots: int = 8
    """Of ``cem``: training items that candidates are compared on."""
    samples: int = 1
    """Of ``cem``: answers to each of them under each candidate."""
    population: int = 12
    """Of ``cem``: candidates of an iteration."""
    elite: float = 0.25
    """Of ``cem``: the share of candidates that the next iteration is drawn around."""
    iterations: int = 4
    start_sd: float = 0.5
    """Of ``cem``: the standard deviation that it starts with, around the deployed mixture or the experts' mean."""
    check_items: int = 12
    """Of ``cem``: further training items on which what was found must beat what is deployed."""
    scope: Literal["task", "stream"] = "task"
    """Whether each task has a mixture of its own, or all tasks the same."""
    base_dir: str = "."
    """The folder that ``library`` is relative to; set to that of the configuration file."""

    def __post_init__(self) -> None:
        least = {"ask_items": 1, "shots": 2, "samples": 1, "population": 4, "iterations": 1, "check_items": 2}
        problems = [
            f"{name} = {getattr(self, name)}: expected at least {n}"
            for name, n in least.items()
            if getattr(self, name) < n
        ]
        for name, known in (("strategy", STRATEGIES), ("grain", GRAINS), ("scope", ("task", "stream"))):
            if getattr(self, name) not in known:
                problems.append(unknown_name(name, getattr(self, name), known))
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= 0.0 < self.high):
            problems.append(
                f"low = {self.low}, high = {self.high}: expected finite numbers with low <= 0 < high, so that the base "
                "(every amount 0) is among the mixtures"
            )
        if not 0.0 < self.elite < 1.0:
            problems.append(f"elite = {self.elite}: expected a share between 0 and 1, such as 0.25")
        if not (math.isfinite(self.start_sd) and self.start_sd > 0.0):
            problems.append(f"start_sd = {self.start_sd}: expected a finite number above 0")
        if self.strategy == "classifier" and not self.classifier:
            problems.append(
                'strategy = "classifier" needs classifier = "NAME", an expert that names kinds of questions'
            )
        if self.classifier and self.classifier in self.experts:
            problems.append(f"the classifier '{self.classifier}' is among the experts to mix; leave it out of experts")
        if len(set(self.experts)) < len(self.experts):
            problems.append(f"experts = {list(self.experts)}: one is named twice")
        if problems:
            raise ConfigError(problems)

    @property
    def num_elite(self) -> int:
        """At least 2: one alone has no spread."""
        return max(2, round(self.elite * self.population))
