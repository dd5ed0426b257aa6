"""Tools: typed Python functions that a model may call, as values with a name, a description and a schema.

A :class:`Tool` knows how to check arguments and how to call; what a call may cost and what becomes of its result is the
:class:`~twoclock.agent.toolbox.Toolbox`'s part. Argument types come from type hints through pydantic, so that a model
reads the same JSON Schema that its arguments are checked against.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, overload

from twoclock.agent.tool_schema import Arguments, arguments_of, described, signature_line
from twoclock.errors import ConfigError
from twoclock.hashing import content_hash

__all__ = ["Problem", "Tool", "ToolResult", "as_tool", "tool"]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
"""What a tool may be called: what every format of calls can carry."""

Problem = Literal["", "unknown", "arguments", "raised", "timeout", "busy", "value"]
"""Why a call gave no result: no such tool, wrong arguments, it raised, it took too long, too many of its earlier calls
still hang, it gave something that is no data."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class ToolResult:
    """What a call came to; an error is a result too, whose text tells the model what to do differently."""

    text: str
    """What a prompt may show: bounded, without anything that could pass for the prompt's own structure."""
    value: Any = None
    """The result as plain JSON, untouched; None where it was too large to keep, or where there was an error."""
    error: str | None = None
    """What went wrong, in full; None where nothing did."""
    problem: Problem = ""
    seconds: float = 0.0
    """Wall clock of the call; 0 where nothing was run. No part of any transcript: it differs from run to run."""
    cached: bool = False
    """Whether it is the remembered result of an earlier call."""
    arguments: Mapping[str, Any] | None = None
    """The arguments as they were understood, defaults included; None where they were not."""

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, kw_only=True, eq=False)
class Tool:
    """One thing that a model may do. Two tools are equal when their versions and names are.

    ``check`` turns arguments into :class:`~twoclock.agent.tool_schema.Arguments` or raises ValueError with a sentence
    for the model; ``run`` takes what ``check`` gave and returns anything, or raises.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments, an object."""
    check: Callable[[Mapping[str, Any]], Arguments] = field(repr=False)
    run: Callable[[Mapping[str, Any]], Any] = field(repr=False)
    pure: bool = False
    """Whether the result follows from the arguments and the call changes nothing: then it may be remembered. What is
    not pure is *effectful*: never cached, never replayed."""
    version: str = ""
    """Changes when what the tool does may have changed: results of another version are stale."""
    timeout_s: float | None = None
    """The longest a call may take; None leaves it to the toolbox."""
    function: Callable[..., Any] | None = field(default=None, repr=False)
    """What it was made from, where that was a function."""

    def __post_init__(self) -> None:
        _require_name(self.name)
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ConfigError(f"timeout_s of tool '{self.name}' must be above 0; got {self.timeout_s!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tool) and (other.name, other.version) == (self.name, self.version)

    def __hash__(self) -> int:
        return hash((self.name, self.version))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls what the tool was made from, as if it were no tool."""
        if self.function is None:
            return self.run(self.check(kwargs).values)
        return self.function(*args, **kwargs)

    @property
    def signature(self) -> str:
        """``name(a: integer, b: string = 'x')``: how a prompt names it."""
        return signature_line(self.name, self.parameters)

    def openai(self) -> dict[str, Any]:
        """The form in which OpenAI-compatible servers take tools."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@overload
def tool(function: FunctionT, /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    pure: bool = False,
    version: str | None = None,
    timeout_s: float | None = None,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """A tool from a function, as a decorator (``@tool`` or ``@tool(pure=True)``); see :func:`as_tool`."""
    if function is not None:
        return as_tool(function)
    return functools.partial(as_tool, **options)


def as_tool(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    pure: bool = False,
    version: str | None = None,
    timeout_s: float | None = None,
) -> Tool:
    """The tool that calls ``function``; a tool stays as it is.

    Every parameter needs a type hint that JSON can express. The description is the docstring's first paragraph; those
    of the parameters are its ``Args:`` section (or ``:param x:`` lines). ``version`` stands for what the function
    does; by default that is the hash of its source, which does not see a change of what the function calls: declare a
    version, and change it, where that matters. Raises ConfigError for a function that cannot be a tool.
    """
    if isinstance(function, Tool):
        return function
    if inspect.isclass(function) or not callable(function):
        raise ConfigError(f"a tool is made from a function; got {function!r}")
    called = name or getattr(function, "__name__", "") or type(function).__name__
    _require_name(called)
    text, of_parameters = described(inspect.getdoc(function) or "")
    arguments = arguments_of(function, called, of_parameters)
    return Tool(
        name=called,
        description=description if description is not None else text,
        parameters=arguments.schema,
        check=arguments.check,
        run=lambda values: function(**values),
        pure=pure,
        version=content_hash([arguments.schema, version if version is not None else _source(function)])[:16],
        timeout_s=timeout_s,
        function=function,
    )


def _require_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a tool's name is a letter or '_' and then at most 63 letters, digits, '_', '-' or '.'; got {name!r}: "
            "give it a name, tool(name=...)"
        )


def _source(function: Callable[..., Any]) -> str:
    """The text of a function, or of its code where there is no text: what a version is the hash of by default."""
    plain = function.func if isinstance(function, functools.partial) else function
    plain = plain if inspect.isroutine(plain) else type(plain).__call__
    bound = [repr(function.args), repr(function.keywords)] if isinstance(function, functools.partial) else []
    try:
        return "\n".join([inspect.getsource(plain), *bound])
    except (OSError, TypeError):
        code = getattr(plain, "__code__", None)
        digest = hashlib.sha256(code.co_code).hexdigest() + repr(code.co_names) if code is not None else repr(plain)
        return "\n".join([digest, *bound])
