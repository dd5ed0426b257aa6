"""Environments as TRL's ``environment_factory`` takes them: a class with ``reset`` and tools as methods.

The contract is TRL's (``GRPOTrainer``, 1.x): the factory takes nothing and gives an instance; ``reset(**row)`` gives
None, or a text that is appended to the row's prompt; every other public method is a tool, by its name, type hints and
docstring; ``get_reward()`` without arguments, where there is one, pays the rollout from the instance's state. TRL
itself is not needed. As there, an answer without a tool call ends the episode; so does an instance whose ``done`` is
true. Other than there, ``get_reward`` is asked after every step, so that an episode that is cut short is paid too.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twoclock.errors import ConfigError
from twoclock.hashing import canonical_json
from twoclock.tasks.environments import (
    Action,
    Environment,
    EnvironmentFaultError,
    Observation,
    Step,
    ToolCall,
    environment_item,
    level,
)
from twoclock.tasks.splits import dealt
from twoclock.tasks.text import clip
from twoclock.types import Item, SplitName

__all__ = ["TrlWorld", "tool_methods", "tool_lines"]

NOT_TOOLS = ("reset", "get_reward", "close")

HOW = (
    "Call a tool by answering with one JSON object and nothing else, such as "
    '{"tool": "NAME", "arguments": {"ARGUMENT": "value"}}. An answer that is no such object ends the episode.'
)


def tool_methods(instance: Any) -> dict[str, Callable[..., Any]]:
    """The public methods of an instance's class that are tools, by name."""
    found = inspect.getmembers(type(instance), predicate=inspect.isfunction)
    return {name: getattr(instance, name) for name, _ in found if not name.startswith("_") and name not in NOT_TOOLS}


def tool_lines(methods: Mapping[str, Callable[..., Any]]) -> str:
    """A line a tool: its name, its arguments as they are annotated, the first line of its docstring."""
    lines = []
    for name, method in methods.items():
        parameters = ", ".join(str(p) for p in inspect.signature(method).parameters.values())
        about = (inspect.getdoc(method) or "").split("\n")[0]
        lines.append(f"- {name}({parameters})" + (f": {about}" if about else ""))
    return "\n".join(lines)


class TrlWorld:
    """Episodes of one factory, one a row. A row is plain JSON: its ``prompt`` is a text or a list of chat messages, and
    all of it is given to ``reset``. ``reward_range`` maps what ``get_reward`` gives to [0, 1]; what lies outside of it
    fails the episode. Raises ConfigError for a factory or rows that are none."""

    def __init__(
        self,
        factory: Callable[[], Any],
        rows: Sequence[Mapping[str, Any]],
        *,
        name: str = "",
        reward_range: tuple[float, float] = (0.0, 1.0),
        success_at: float = 1.0,
        description: str = "",
    ) -> None:
        self._factory, self._range, self._success_at = factory, reward_range, success_at
        self._rows = tuple(dict(row) for row in rows)
        problems = _row_problems(self._rows)
        given: Any = factory
        if not callable(given):
            problems.append(f"factory must be a class or a function without arguments; got {clip(repr(factory))}")
        if not reward_range[0] < reward_range[1]:
            problems.append(f"reward_range must be (low, high) with low < high; got {reward_range!r}")
        if problems:
            raise ConfigError(problems)
        probe = self._instance()
        self._methods = tool_methods(probe)
        if not callable(getattr(probe, "reset", None)):
            problems.append(f"{type(probe).__name__} has no method 'reset'")
        if not self._methods:
            problems.append(f"{type(probe).__name__} has no public method beside reset, and so no tool")
        if problems:
            raise ConfigError(problems)
        self.name = name or f"trl:{type(probe).__name__}"
        about = (inspect.getdoc(type(probe)) or "").split("\n")[0]
        self.description = description or about or f"Episodes of {type(probe).__name__}, played by calling its tools."

    def _instance(self) -> Any:
        try:
            return self._factory()
        except Exception as error:
            raise ConfigError(
                f"factory {getattr(self._factory, '__name__', self._factory)!r} must give an instance when called "
                f"without arguments; it raised {type(error).__name__}: {clip(str(error))}"
            ) from error

    def draw(self, split: SplitName, index: int, seed: int) -> Item | None:
        mine = dealt(self._rows, split, seed)
        if index >= len(mine):
            return None
        row = mine[index]
        opening = _TrlEnvironment(self._factory(), self._range, self._success_at).begin(row)
        parts = (_prompt_text(row), opening, f"Tools:\n{tool_lines(self._methods)}", HOW)
        return environment_item(self.name, row, "\n\n".join(part for part in parts if part))

    def make(self) -> Environment:
        return _TrlEnvironment(self._factory(), self._range, self._success_at)

    def close(self) -> None:
        pass


def _row_problems(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    problems = [] if rows else ["rows is empty; give one mapping an episode"]
    for index, row in enumerate(rows):
        try:
            canonical_json(row)
            _prompt_text(row)
        except (TypeError, ValueError) as error:
            problems.append(f"rows[{index}] is not usable: {clip(str(error))}")
    return problems


def _prompt_text(row: Mapping[str, Any]) -> str:
    prompt = row.get("prompt", "")
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Sequence) or not all(isinstance(m, Mapping) and "content" in m for m in prompt):
        raise ValueError(f"'prompt' must be a text or a list of messages with 'content'; got {clip(repr(prompt))}")
    return "\n\n".join(_content_text(message["content"]) for message in prompt)


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(
        isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content
    ):
        return "\n".join(str(part["text"]) for part in content)
    raise ValueError(f"a message's content must be text; got {clip(repr(content))}")


class _TrlEnvironment:
    """One live episode of one instance, which is reset for the next."""

    def __init__(self, instance: Any, reward_range: tuple[float, float], success_at: float) -> None:
        self._instance, self._range, self._success_at = instance, reward_range, success_at
        self._tools = tool_methods(instance)

    def reset(self, item: Item) -> Observation:
        return Observation(text=self.begin(item.metadata["spec"]))

    def begin(self, row: Mapping[str, Any]) -> str:
        told = _settled(self._instance.reset(**row))
        if told is None or isinstance(told, str):
            return told or ""
        raise EnvironmentFaultError(f"reset returned {clip(repr(told))}; expected None or a text")

    def step(self, action: Action) -> Step:
        if not isinstance(action, ToolCall):
            return self._step("The episode is over: you answered without calling a tool.", done=True)
        tool = self._tools.get(action.name)
        if tool is None:
            return self._step(f"error: there is no tool '{action.name}'; there are: {', '.join(self._tools)}")
        try:
            inspect.signature(tool).bind(**action.arguments)
        except TypeError as error:
            return self._step(f"error: {action.name}{inspect.signature(tool)}: {error}")
        try:
            result = _settled(tool(**action.arguments))
        except Exception as error:  # as TRL does: what a tool raises is told to the model
            result = f"error: {type(error).__name__}: {clip(str(error), 300)}"
        return self._step(str(result))

    def close(self) -> None:
        close = getattr(self._instance, "close", None)
        if callable(close):
            _settled(close())

    def _step(self, text: str, done: bool = False) -> Step:
        done = done or getattr(self._instance, "done", False) is True
        reward = self._reward()
        return Step(
            observation=Observation(text=text), reward=reward, done=done, success=done and reward >= self._success_at
        )

    def _reward(self) -> float:
        method = getattr(self._instance, "get_reward", None)
        raw = _settled(method()) if callable(method) else getattr(self._instance, "reward", 0.0)
        low, high = self._range
        if isinstance(raw, bool | int | float) and (low, high) != (0.0, 1.0):
            raw = (float(raw) - low) / (high - low)
        return level(raw, f"get_reward of {type(self._instance).__name__} (with reward_range = ({low:g}, {high:g}))")


def _settled(result: Any) -> Any:
    """A result, awaited where the method was asynchronous."""
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())
