"""One clock after the other: a stretch of fast searches and then slow steps alone, or the other way round.

These are the sequences that Fast-Slow Training (arXiv:2605.12484) was not compared with: the prompt is searched first
and the weights are trained under it, or the weights are trained first and the prompt is searched for what they became.
In the fast stretch fast channels propose every ``every`` rounds, beginning with the stretch's first, and slow ones
never; in the slow stretch slow channels propose each round, and fast ones never: their state stays deployed as it is.

Where a round lies follows from the history, so a resumed run plans the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from twoclock.allocate.plans import BudgetConfig, assign
from twoclock.errors import unknown_name
from twoclock.types import Evidence, Plan, Timescale

__all__ = ["PhasedAllocator", "PhasedConfig"]

CLOCKS = ("fast", "slow")


@dataclass(frozen=True, kw_only=True)
class PhasedConfig(BudgetConfig):
    first: Literal["fast", "slow"] = "fast"
    """The clock that learns first."""
    rounds: int | tuple[int, ...] = 6
    """Rounds of the first clock. A list has one number a phase of the stream; phases beyond it take its last."""
    per_phase: bool = True
    """Each phase of the stream begins with the first clock again; off, the whole run has one change of clocks."""
    every: int = 6
    """Rounds from one fast search to the next, inside the fast stretch."""

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.first not in CLOCKS:
            problems.append(unknown_name("clock in 'first'", self.first, CLOCKS))
        if self.every < 1:
            problems.append(f"every = {self.every}: expected at least 1")
        numbers = [self.rounds] if isinstance(self.rounds, int) else list(self.rounds)
        if not numbers or min(numbers) < 1:
            problems.append(f"rounds = {numbers}: expected at least 1, or such a number a phase, as in [8, 8]")
        if len(numbers) > 1 and not self.per_phase:
            problems.append(f"rounds = {numbers}: with per_phase = false it counts over the whole run: give one number")
        return problems

    def rounds_in(self, phase: int) -> int:
        """Rounds of the first clock in a phase of the stream, which counts from 0."""
        return self.rounds if isinstance(self.rounds, int) else self.rounds[min(phase, len(self.rounds) - 1)]


class PhasedAllocator:
    """One clock at a time, as the module says."""

    def __init__(self, config: PhasedConfig | None = None) -> None:
        self.config = config or PhasedConfig()

    def plan(self, evidence: Evidence, channels: Mapping[str, Timescale], history: Sequence[Mapping[str, Any]]) -> Plan:
        clock, place = self._stretch(evidence.phase, history)
        if clock is Timescale.FAST and place % self.config.every:
            return Plan(assignments=())
        turn = f"search {place // self.config.every + 1}" if clock is Timescale.FAST else f"round {place + 1}"
        reasons = [(name, f"{turn} of the {clock} stretch") for name, its in channels.items() if its is clock]
        return Plan(assignments=assign(self.config, channels, reasons))

    def _stretch(self, phase: int, history: Sequence[Mapping[str, Any]]) -> tuple[Timescale, int]:
        """Whose stretch the next round lies in, and how many rounds of it are over."""
        config = self.config
        first = Timescale(config.first)
        second = Timescale.SLOW if first is Timescale.FAST else Timescale.FAST
        past = sum(1 for row in history if row["phase"] == phase or not config.per_phase)
        length = config.rounds_in(phase if config.per_phase else 0)
        return (first, past) if past < length else (second, past - length)
