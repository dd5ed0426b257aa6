"""When an episode is given up: the same action with the same response again and again, or too many steps.

Source: Reflexion (arXiv:2303.11366), section 4.1: an attempt is given up where the same action gets the same response
for more than three cycles, or takes more than 30 actions. The released code differs: one identical action in a row,
whatever the response, and 49 steps. :data:`PAPER` and :data:`RELEASED` are both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twoclock.errors import ConfigError
from twoclock.tasks.env_transcript import Turn
from twoclock.tasks.environments import action_text

__all__ = ["PAPER", "RELEASED", "StuckRule"]


@dataclass(frozen=True, kw_only=True)
class StuckRule:
    """Raises ConfigError for numbers that make no rule."""

    repeats: int | None = 3
    """Given up when a cycle has come more than this many times in a row; None never."""
    same_response: bool = True
    """Whether the responses must be the same too."""
    period: int = 1
    """Cycles of up to this many actions count: 2 also finds going to and fro."""
    max_steps: int | None = 30
    """The most actions; None is no limit."""

    def __post_init__(self) -> None:
        problems = []
        for name, least in (("repeats", 1), ("period", 1), ("max_steps", 1)):
            value = getattr(self, name)
            if value is None and name != "period":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                problems.append(f"{name} must be a whole number of at least {least}; got {value!r}")
        same: Any = self.same_response
        if not isinstance(same, bool):
            problems.append(f"same_response must be true or false; got {same!r}")
        if problems:
            raise ConfigError(problems)

    def verdict(self, turns: Sequence[Turn]) -> str | None:
        """Why the episode is given up after these turns, or None. A pure function, so a replay says the same."""
        if self.repeats is not None:
            for period in range(1, self.period + 1):
                if self._cycles(turns, period):
                    return self._said(turns, period)
        if self.max_steps is not None and len(turns) >= self.max_steps:
            return f"out of steps: {self.max_steps} are allowed"
        return None

    def _cycles(self, turns: Sequence[Turn], period: int) -> bool:
        assert self.repeats is not None
        length = (self.repeats + 1) * period
        if len(turns) < length:
            return False
        marks = [self._mark(turn) for turn in turns[-length:]]
        return all(marks[i] == marks[i - period] for i in range(period, length))

    def _mark(self, turn: Turn) -> tuple[str, str | None]:
        return turn.line, turn.observation if self.same_response else None

    def _said(self, turns: Sequence[Turn], period: int) -> str:
        assert self.repeats is not None
        did = ", ".join(
            "no action at all" if turn.action is None else f"'{action_text(turn.action)}'" for turn in turns[-period:]
        )
        same = " with the same response" if self.same_response else ""
        return f"stuck: {did} {self.repeats + 1} times in a row{same}"


PAPER = StuckRule()
RELEASED = StuckRule(repeats=1, same_response=False, max_steps=49)
