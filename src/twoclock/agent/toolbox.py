"""The tools that one agent has, and the boundary that every call crosses: nothing that a tool does ends the episode.

A call is checked, timed, bounded and turned into a :class:`~twoclock.agent.tools.ToolResult`, whatever happens. A tool
runs in a daemon thread of its own; one that hangs is left behind, since a thread cannot be ended, and after
``MAX_HANGING`` of those the tool is refused. A tool that may crash the process or hold the interpreter belongs behind
an MCP server, in a process that can be ended (:mod:`twoclock.agent.mcp`).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pydantic_core

from twoclock.agent.quoting import bounded
from twoclock.agent.tool_calls import CALL_FORMAT
from twoclock.agent.tools import Problem, Tool, ToolResult, as_tool
from twoclock.errors import ConfigError, unknown_name
from twoclock.memory.rendering import neutral
from twoclock.tasks.environments import ToolCall
from twoclock.tasks.text import clip

__all__ = ["Known", "Results", "ToolError", "Toolbox"]

MAX_HANGING = 4
"""Calls of one tool that may be left behind hanging before it is refused."""


NOTHING = "(nothing)"
"""What is shown of an empty result."""


class ToolError(Exception):
    """What a tool raises to say to the model that it failed, in words of its own."""

    def __init__(self, text: str, problem: Problem = "raised") -> None:
        super().__init__(text)
        self.problem: Problem = problem


class Results(Protocol):
    """Where results of pure calls are remembered; see :class:`~twoclock.agent.result_cache.ResultCache`."""

    def get(self, tool: Tool, arguments: Mapping[str, Any]) -> Known | None: ...

    def put(self, tool: Tool, arguments: Mapping[str, Any], value: Any, *, provenance: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Known:
    """A remembered result, and the episodes that it came from."""

    value: Any
    provenance: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Outcome:
    value: Any = None
    error: str | None = None
    problem: Problem = ""


class Toolbox:
    """Tools by name, each called within limits. May be used from several threads."""

    def __init__(
        self,
        tools: Sequence[Tool | Callable[..., Any]] = (),
        *,
        timeout_s: float = 10.0,
        max_result_chars: int = 4000,
        cache: Results | None = None,
    ) -> None:
        """``max_result_chars`` bounds what a prompt shows of one result. Raises ConfigError with every mistake."""
        made = [as_tool(t) for t in tools]
        problems = [
            f"two tools are called '{name}': give one another name"
            for name, n in Counter(t.name for t in made).items()
            if n > 1
        ]
        if not timeout_s > 0:
            problems.append(f"timeout_s must be above 0; got {timeout_s!r}")
        if max_result_chars < 1:
            problems.append(f"max_result_chars must be at least 1; got {max_result_chars!r}")
        if problems:
            raise ConfigError(problems)
        self._tools = {t.name: t for t in made}
        self.timeout_s, self.max_result_chars, self.cache = timeout_s, max_result_chars, cache
        self._hanging: dict[str, list[threading.Thread]] = {}
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        """How many calls there were: ``calls``, ``ran``, ``cached``, and ``problem:NAME`` for each kind of problem."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def describe(self) -> str:
        """The tools as a prompt lists them, and how to call one; empty where there are none."""
        if not self._tools:
            return ""
        lines = [line for t in self._tools.values() for line in _described(t)]
        return "\n".join(["Tools:", *lines, f"To call a tool, write {CALL_FORMAT}"])

    def openai(self) -> list[dict[str, Any]]:
        """The tools in the form that OpenAI-compatible servers take."""
        return [t.openai() for t in self._tools.values()]

    def call(self, call: ToolCall, *, provenance: str = "") -> ToolResult:
        """Runs one call. ``provenance`` names the episode, for what is remembered of it. Never raises on a call's
        account: what went wrong is a result whose text says it to the model."""
        result = self._call(call, provenance)
        with self._lock:
            self.counts["calls"] += 1
            self.counts["cached" if result.cached else "ran"] += result.problem not in ("unknown", "arguments", "busy")
            if result.problem:
                self.counts[f"problem:{result.problem}"] += 1
        return result

    def _call(self, call: ToolCall, provenance: str) -> ToolResult:
        tool = self._tools.get(call.name)
        if tool is None:
            none = "there are no tools; answer without" if not self._tools else ""
            return self._failed("unknown", none or unknown_name("tool", clip(call.name), self._tools))
        try:
            arguments = tool.check(call.arguments)
        except Exception as error:  # a type of the user's own may raise what it likes
            text = f"wrong arguments for {tool.name}: {clip(str(error), 600)}. Expected: {tool.signature}"
            return self._failed("arguments", text)
        if tool.pure and self.cache is not None:
            known = self.cache.get(tool, arguments.plain)
            if known is not None:
                return replace(self._shown(known.value, 0.0), cached=True, arguments=arguments.plain)
        result = replace(self._run(tool, arguments.values), arguments=arguments.plain)
        whole = result.ok and (result.value is not None or result.text == NOTHING)
        if tool.pure and self.cache is not None and whole:
            self.cache.put(tool, arguments.plain, result.value, provenance=provenance)
        return result

    def _run(self, tool: Tool, values: Mapping[str, Any]) -> ToolResult:
        limit = tool.timeout_s if tool.timeout_s is not None else self.timeout_s
        with self._lock:
            self._hanging[tool.name] = [t for t in self._hanging.get(tool.name, []) if t.is_alive()]
            if len(self._hanging[tool.name]) >= MAX_HANGING:
                text = f"{tool.name} is not called: {MAX_HANGING} of its calls have not ended; use another way"
                return self._failed("busy", text)
        done: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        work = threading.Thread(
            target=lambda: done.put(_perform(tool, values)), name=f"twoclock-tool-{tool.name}", daemon=True
        )
        began = time.monotonic()
        work.start()
        try:
            outcome = done.get(timeout=limit)
        except queue.Empty:
            with self._lock:
                self._hanging[tool.name].append(work)
            outcome = _Outcome(error=f"{tool.name} gave no result within {limit:g} s", problem="timeout")
        seconds = time.monotonic() - began
        if outcome.error is not None:
            return self._failed(outcome.problem, outcome.error, seconds)
        return self._shown(outcome.value, seconds)

    def _shown(self, value: Any, seconds: float) -> ToolResult:
        """A result that is larger than four times what is shown is not kept whole, and so never remembered."""
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
        kept = value if len(text) <= 4 * self.max_result_chars else None
        shown = neutral(bounded(text, self.max_result_chars))
        return ToolResult(text=shown if shown.strip() else NOTHING, value=kept, seconds=seconds)

    def _failed(self, problem: Problem, error: str, seconds: float = 0.0) -> ToolResult:
        text = neutral(bounded(f"error: {error}", self.max_result_chars))
        return ToolResult(text=text, error=error, problem=problem, seconds=seconds)


def _described(tool: Tool) -> list[str]:
    about = [f"- {tool.signature}" + (f": {clip(tool.description, 400)}" if tool.description else "")]
    for key, part in tool.parameters.get("properties", {}).items():
        if isinstance(part, Mapping) and part.get("description"):
            about.append(f"    {key}: {clip(str(part['description']), 200)}")
    return [neutral(line) for line in about]


def _perform(tool: Tool, values: Mapping[str, Any]) -> _Outcome:
    """Calls, awaits where that is asked for, and makes plain JSON of what comes: all under the call's time limit."""
    try:
        value = tool.run(values)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        if isinstance(value, str):
            return _Outcome(value.encode("utf-8", "replace").decode("utf-8"))
        if inspect.isgenerator(value) or inspect.isasyncgen(value) or hasattr(value, "__next__"):
            return _Outcome(error=f"{tool.name} gave a {type(value).__name__}, which is no data", problem="value")
        plain = pydantic_core.to_jsonable_python(value, fallback=repr, inf_nan_mode="strings")
        json.dumps(plain, ensure_ascii=False).encode("utf-8")
        return _Outcome(plain)
    except ToolError as error:
        return _Outcome(error=str(error) or f"{tool.name} failed", problem=error.problem)
    except (Exception, SystemExit) as error:
        try:
            text = clip(str(error), 400)
        except Exception:
            text = "(its message cannot be read)"
        return _Outcome(error=f"{tool.name} raised {type(error).__name__}: {text}", problem="raised")


async def _awaited(value: Any) -> Any:
    return await value
