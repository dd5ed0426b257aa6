"""What a probe measures and how much of it; every mistake in it is reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from twoclock.errors import ConfigError, unknown_name
from twoclock.probe_file import PROBES

__all__ = ["Estimate", "ProbeSettings"]


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """The defaults are what the figures need to say something; all but ``probes`` may be left alone."""

    probes: tuple[str, ...] = ()
    """Of :data:`~twoclock.probe_file.PROBES`; empty is all that the run allows."""
    tasks: tuple[str, ...] = ()
    """Only these tasks; empty is the tasks of the stream, and for plasticity the first task outside it."""
    items: int | None = None
    """Items a task (for ``ood`` base items a task); None is 360 for ``ood`` and the run's own ``heldout_items``."""
    samples: int = 1
    """Rollouts an item; for ``retention`` and ``decomposition`` the run's own number counts."""
    prompts: int = 32
    """Prompts of each set that drift is measured on."""
    tokens: int = 32
    """Tokens of each continuation that drift is measured along."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds of ``plasticity``; sampling follows the first one."""
    rounds: int | None = None
    """Rounds of training on the probe task; None is as many as the run's shortest phase, at most 12."""
    points: int = 4
    """Evaluations on the way, at equal distances."""
    budget: int | None = None
    """The most rollouts that all probes together may sample; None is no limit."""
    n_parameter: tuple[str, ...] = ()
    rewordings: tuple[str, ...] = ()
    files: Mapping[str, str | Path] = field(default_factory=dict)
    """The last three as :func:`~twoclock.tasks.build_variants` takes them; for a single task."""
    overrides: tuple[str, ...] = ()
    """``tasks.NAME.option=value``: tasks that the run does not have, to train plasticity on or to measure."""

    def __post_init__(self) -> None:
        problems = [unknown_name("probe", name, PROBES) for name in self.probes if name not in PROBES]
        problems += [
            f"{name} = {value}: expected at least {least}"
            for name, value, least in (
                ("items", self.items, 2),
                ("samples", self.samples, 1),
                ("prompts", self.prompts, 2),
                ("tokens", self.tokens, 1),
                ("rounds", self.rounds, 1),
                ("points", self.points, 1),
                ("budget", self.budget, 0),
            )
            if value is not None and value < least
        ]
        if not self.seeds:
            problems.append("seeds names no seed; give whole numbers, such as 0,1,2")
        if len(set(self.seeds)) < len(self.seeds):
            problems.append(f"seeds has one twice: {', '.join(map(str, self.seeds))}; each is one training run")
        problems += [
            f"--set {text}: a probe measures the run as it is; only new tasks can be added: tasks.NAME.option=value"
            for text in self.overrides
            if not text.strip().startswith("tasks.")
        ]
        if (self.n_parameter or self.rewordings or self.files) and len(self.tasks) != 1:
            problems.append("variant files, rewordings and the name of N are those of one task; name it with --task")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a probe is expected to cost, from the run's own recorded speeds."""

    rollouts: int = 0
    tokens: int = 0
    """Read and written by the model; 0 where the run has recorded no speed."""
    seconds: float | None = 0.0
    """None where the run has recorded no speed."""

    def __add__(self, other: Estimate) -> Estimate:
        known = self.seconds is not None and other.seconds is not None
        return Estimate(
            rollouts=self.rollouts + other.rollouts,
            tokens=self.tokens + other.tokens,
            seconds=(self.seconds or 0.0) + (other.seconds or 0.0) if known else None,
        )

    def as_dict(self) -> dict[str, float | int | None]:
        return {"rollouts": self.rollouts, "tokens": self.tokens, "seconds": self.seconds}
