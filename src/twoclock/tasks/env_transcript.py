"""The transcript of an episode as text: canonical, so that equal episodes have equal texts, and read back exactly.

::

    > move east
      You are in the backyard.
    ? well, I would rather not say
      That is no action. You can: look around, move west
    = success, reward 1, 2 steps

``>`` begins an action, ``?`` a turn in which no action was found, two spaces a line that the environment said, ``!`` a
fault of the environment, ``=`` how it ended. What an environment says is always indented, so it can never be taken
for an action. Everything that grading needs follows from the action lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoclock.tasks.environments import Action, action_text, read_tool_call
from twoclock.tasks.text import clip

__all__ = ["Ending", "Transcript", "Turn", "parse_transcript", "shown"]

CUT = "…"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One action and what came of it."""

    action: Action | None
    """None where the completion held no action."""
    said: str = ""
    """What the completion was instead, on one line; empty where it held an action."""
    observation: str | None = None
    """None where a transcript does not tell."""

    @property
    def line(self) -> str:
        return f"? {self.said}".rstrip() if self.action is None else f"> {action_text(self.action)}"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an episode ended."""

    success: bool
    reward: float
    steps: int
    reason: str = ""
    """Such as ``stuck: ...``; empty where the environment itself ended it."""

    @property
    def line(self) -> str:
        said = "success" if self.success else "failure"
        count = f"{self.steps} step{'' if self.steps == 1 else 's'}"
        return f"= {said}, reward {self.reward:.6g}, {count}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """An episode: its turns, a fault of the environment if there was one, and its last line."""

    turns: tuple[Turn, ...] = ()
    fault: str | None = None
    ending: str | None = None
    """The last line without its sign; None while the episode is under way."""

    @property
    def actions(self) -> tuple[Action | None, ...]:
        return tuple(turn.action for turn in self.turns)

    def text(self) -> str:
        lines = [line for turn in self.turns for line in _lines(turn)]
        if self.fault is not None:
            lines.append(f"! {clip(self.fault, 300)}")
        if self.ending is not None:
            lines.append(f"= {self.ending}")
        return "\n".join(lines)


def _lines(turn: Turn, observation: str | None = None) -> list[str]:
    told = turn.observation if observation is None else observation
    return [turn.line, *(f"  {line}" for line in told.split("\n"))] if told is not None else [turn.line]


def parse_transcript(text: str) -> Transcript:
    """The inverse of :meth:`Transcript.text`. Never raises: lines of no known form are passed over."""
    turns: list[Turn] = []
    told: list[str] | None = None
    fault = ending = None

    def flush() -> None:
        nonlocal told
        if told is not None and turns:
            last = turns.pop()
            turns.append(Turn(action=last.action, said=last.said, observation="\n".join(told)))
        told = None

    for line in text.split("\n"):
        if line.startswith("  "):
            told = [*(told or []), line[2:]]
        elif line[:2] in ("> ", "?", "? ", "! ", "= "):
            flush()
            rest = line[2:]
            if line[0] == ">":
                turns.append(Turn(action=read_tool_call(rest) or rest))
            elif line[0] == "?":
                turns.append(Turn(action=None, said=rest))
            elif line[0] == "!":
                fault = rest
            else:
                ending = rest
    flush()
    return Transcript(turns=tuple(turns), fault=fault, ending=ending)


def shown(turns: Sequence[Turn], max_chars: int) -> str:
    """The turns as a prompt shows them, in at most ``max_chars`` characters where that is possible at all.

    The longest observations are cut first, whole, the latest never; then the oldest turns go, with a line that counts
    them (after Reflexion's released code, which drops the longest observations of a long scratchpad first).
    """
    parts = [_lines(turn) for turn in turns]
    size = sum(len(line) + 1 for lines in parts for line in lines)
    by_length = sorted(range(len(parts) - 1), key=lambda i: -sum(map(len, parts[i][1:])))
    for index in by_length:
        if size <= max_chars:
            break
        short = _lines(turns[index], CUT)
        gain = sum(len(line) + 1 for line in parts[index]) - sum(len(line) + 1 for line in short)
        if gain <= 0:
            break
        parts[index] = short
        size -= gain
    dropped = 0
    while size > max_chars and len(parts) - dropped > 1:
        size -= sum(len(line) + 1 for line in parts[dropped])
        dropped += 1
    kept = [line for lines in parts[dropped:] for line in lines]
    return "\n".join(([f"({dropped} earlier turns left out)"] if dropped else []) + kept)
