"""Environments that are played over several turns: the protocol, its records, and how a model's text becomes an action.

A *world* has items and makes environments; an *environment* is one live episode at a time. Everything follows from the
item: the same item and the same actions give the same observations and the same reward, whenever and wherever they are
replayed. That is a law, and the tests run it over every world. A reward is a *level*, not an increment: what the
episode is worth as it stands, in [0, 1], so that the last one grades it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from twoclock.hashing import canonical_json, content_hash
from twoclock.tasks.text import clip
from twoclock.types import Item, SplitName

__all__ = [
    "Action",
    "Environment",
    "EnvironmentFaultError",
    "Guide",
    "Observation",
    "Step",
    "ToolCall",
    "World",
    "action_text",
    "answers_with_words",
    "environment_item",
    "level",
    "read_action",
    "read_tool_call",
]

MAX_ACTION_CHARS = 2000
"""A longer line is no action; what is stored of it is cut to this."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A structured action: which tool, with which arguments (plain JSON)."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(action_text(self))


Action = str | ToolCall


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the agent is told."""

    text: str
    actions: tuple[str, ...] | None = None
    """What can be done now, sorted; None where the environment does not list it."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one action led to. Raises ValueError for a reward outside [0, 1]."""

    observation: Observation
    reward: float
    """What the episode is worth as it stands, in [0, 1]: a level, not an increment."""
    done: bool
    success: bool | None = None
    """Whether the goal is reached; None where the environment does not say."""
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.reward, bool) or not isinstance(self.reward, int | float) or not 0.0 <= self.reward <= 1.0:
            raise ValueError(f"a step's reward must be a number in [0, 1]; got {self.reward!r}")


class EnvironmentFaultError(Exception):
    """An environment broke: it raised, hung or said what it must not. It costs that episode, never its siblings."""


class Environment(Protocol):
    """One live episode at a time."""

    def reset(self, item: Item) -> Observation:
        """Begin the item's episode from its start, whatever was going on."""
        ...

    def step(self, action: Action) -> Step:
        """Act. What is no action here is answered with an observation that says so, and costs a step."""
        ...

    def close(self) -> None:
        """Free what it holds; closing twice is all right."""
        ...


class World(Protocol):
    """A family of episodes: its items, and environments to play them in."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str:
        """One or two sentences for people and reflectors."""
        ...

    def draw(self, split: SplitName, index: int, seed: int) -> Item | None:
        """The ``index``-th candidate of a split's own stream; None where there is none. Pure."""
        ...

    def make(self) -> Environment:
        """A new environment, independent of the others that are live."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Guide(Protocol):
    """An optional ability of a world: it knows how an item is solved, for oracle arms."""

    def gold(self, item: Item) -> tuple[Action, ...] | None:
        """Actions that solve the item; None where the world does not know."""
        ...


def environment_item(world: str, spec: Mapping[str, Any], prompt: str, content: Any = None) -> Item:
    """An item that is the episode ``spec`` of ``world``. Its id follows from the two, not from the prompt: two episodes
    may well begin with the same words. ``content`` is what makes two specs the same episode in other words, where a
    world can tell: no two splits share it."""
    identity = content_hash({"world": world, "spec": dict(spec)})[:16]
    twin = {} if content is None else {"content": content_hash(content)[:16]}
    return Item(id=identity, prompt=prompt, metadata={"world": world, "spec": dict(spec), **twin})


# ------------------------------------------------------------------------------------------- from text to an action

_LABEL = re.compile(r"^(?:next\s+)?(?:action|act|command|move)\s*:\s*", re.IGNORECASE)
_THOUGHT = re.compile(r"^(?:thought|think|reasoning|observation)\s*:", re.IGNORECASE)
_THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_ENDS = " \t\"'`*.,;!"


def action_text(action: Action) -> str:
    """The action on one line, as a transcript holds it: a tool call as canonical JSON."""
    if isinstance(action, ToolCall):
        return canonical_json({"tool": action.name, "arguments": dict(action.arguments)})
    return " ".join(action.split())


def read_action(text: str, actions: Sequence[str] | None = None) -> Action | None:
    """The action in a completion: the first line labelled ``Action:``, else the first that is no thought; None where
    there is none. Of the actions that can be done now the one that differs in case, spaces and quotes alone is taken as
    it is spelt there, and so is the one that the line names where it names one alone. A JSON object with ``tool`` (or
    ``name``) and ``arguments`` is a tool call."""
    text = _THINKING.sub("", text)
    call = read_tool_call(text)
    if call is not None:
        return call
    lines = [line.strip().lstrip(">").strip() for line in text.split("\n")]
    lines = [line for line in lines if any(ch.isalnum() for ch in line)]
    labelled = [rest for line in lines if _LABEL.match(line) and (rest := _LABEL.sub("", line).strip(_ENDS))]
    plain = [line for line in lines if not _THOUGHT.match(line) and not _LABEL.match(line)]
    chosen = (labelled or plain or [""])[0]
    if not chosen or len(chosen) > MAX_ACTION_CHARS:
        return None
    known = {_plain(name): name for name in actions or ()}
    if _plain(chosen) not in known:
        within = [
            name for plain, name in known.items() if re.search(rf"(?<!\w){re.escape(plain)}(?!\w)", _plain(chosen))
        ]
        if len(within) == 1 and len(chosen) <= 200:
            return within[0]
    return known.get(_plain(chosen)) or " ".join(chosen.strip(_ENDS).split()) or None


def _plain(text: str) -> str:
    return " ".join(text.strip(_ENDS).split()).casefold()


def read_tool_call(text: str) -> ToolCall | None:
    """The tool call in a text, if it is one: the whole text, what stands in a ``<tool_call>`` tag or a ``json`` block,
    or the first line that is such an object."""
    candidates = re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
    candidates += re.findall(r"```(?:json)?\s*(\{.*?\})\s*```", text, re.DOTALL)
    candidates += [text, *(_LABEL.sub("", line.strip().lstrip(">").strip()) for line in text.split("\n"))]
    for candidate in candidates:
        call = _tool_call(candidate.strip())
        if call is not None:
            return call
    return None


def _tool_call(text: str) -> ToolCall | None:
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
        canonical_json(value).encode("utf-8")  # NaN and lone surrogates load, but have no canonical form
    except (ValueError, RecursionError):
        return None
    name, arguments = value.get("tool", value.get("name")), value.get("arguments", {})
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        return None
    return ToolCall(name=name.strip(), arguments=arguments)


def answers_with_words(call: ToolCall) -> str:
    """What an environment without tools says to a tool call."""
    return f"There are no tools here, and so no '{call.name}': answer with an action in words."


def level(value: Any, what: str) -> float:
    """A reward as a level. Raises EnvironmentFaultError for anything that is no number in [0, 1]."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, str | bytes) or not 0.0 <= number <= 1.0:
        raise EnvironmentFaultError(f"{what} gave the reward {clip(repr(value))}; expected a number in [0, 1]")
    return number
