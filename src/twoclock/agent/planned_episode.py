"""What a planner and an executor did with one problem: a record that is its own transcript.

``loads(dumps(e)) == e`` for every episode, and equal episodes give equal text, so a transcript can stand in the ledger
as a completion's text and everything that is learned from an episode follows from it. Wall clock is no part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter

from twoclock.errors import DataError
from twoclock.hashing import canonical_json
from twoclock.tasks.text import clip

__all__ = ["HEADER", "CallRecord", "PlannedEpisode", "SubtaskRecord", "Turn", "is_transcript"]

HEADER = "twoclock planner transcript 1"
"""The first line of every transcript."""

Role = Literal["planner", "executor"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One reply of a policy, as it was."""

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True)
class CallRecord:
    """One tool call. ``arguments`` are as they were understood, or as given where they were not."""

    name: str
    arguments: Mapping[str, Any]
    result: str
    """What the executor was shown."""
    problem: str = ""
    """Empty where the call gave a result; see :data:`~twoclock.agent.tools.Problem`."""


@dataclass(frozen=True, kw_only=True)
class SubtaskRecord:
    """One subtask: what planner and executor share of it is ``task`` and ``result``."""

    task: str
    result: str
    done: bool
    """False where the executor came to no result within its bounds; ``result`` then says why."""
    calls: tuple[CallRecord, ...] = ()
    recalled: tuple[str, ...] = ()
    """Memory entries that the executor was shown for it."""


@dataclass(frozen=True, kw_only=True)
class PlannedEpisode:
    """A whole episode. Exactly one of ``answer``, ``failure`` and ``error`` says how it ended."""

    answer: str | None = None
    failure: str = ""
    """Why there is no answer: no plan after a repair, cycles or tokens spent."""
    error: str = ""
    """A policy that gave no reply, and why: such an episode teaches nothing."""
    plans: tuple[tuple[str, ...], ...] = ()
    """Every plan that was run, in order."""
    subtasks: tuple[SubtaskRecord, ...] = ()
    turns: tuple[Turn, ...] = ()
    recalled: tuple[str, ...] = ()
    """Memory entries that the planner was shown."""
    repairs: int = 0
    """Replies of the planner that were no plan and were asked for again."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """The sampled tokens of all turns; not in the transcript."""

    @property
    def calls(self) -> tuple[CallRecord, ...]:
        return tuple(call for subtask in self.subtasks for call in subtask.calls)

    @property
    def seen(self) -> tuple[str, ...]:
        """The memory entries that anybody was shown in it, each once."""
        return tuple(dict.fromkeys([*self.recalled, *(i for s in self.subtasks for i in s.recalled)]))

    def dumps(self) -> str:
        """The transcript: the header, then canonical JSON."""
        content = asdict(self)
        del content["tokens"]
        return f"{HEADER}\n{canonical_json(content)}"

    @classmethod
    def loads(cls, text: str) -> PlannedEpisode:
        """The episode of a transcript. Raises DataError for a text that is none, saying what is wrong."""
        if not is_transcript(text):
            raise DataError(f"a planner's transcript begins with '{HEADER}'; got {clip(text)!r}")
        try:
            content = json.loads(text.partition("\n")[2])
            if set(content) != {f.name for f in fields(cls)} - {"tokens"}:
                raise ValueError("it has other fields than a transcript")
            return _reader().validate_python(content)
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"a damaged planner's transcript: {type(error).__name__}: {clip(str(error))}") from error


def is_transcript(text: str) -> bool:
    """Whether a text says that it is a transcript."""
    return text.partition("\n")[0] == HEADER


@cache
def _reader() -> TypeAdapter[PlannedEpisode]:
    return TypeAdapter(PlannedEpisode)
