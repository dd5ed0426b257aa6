"""Reading tool calls out of a model's text, in the formats that models write: none of it is trusted to be well formed.

- ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Qwen, Hermes), the closing tag forgotten or not;
- a fenced block (three backticks, whatever language it names) of such an object or a list of them;
- ``{"tool_calls": [{"function": {"name": ..., "arguments": "..."}}]}``, the message form of OpenAI-compatible servers;
- such an object bare in the text.

Tags win over fences and fences over bare objects: a model that explains its call in prose is not called twice.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from twoclock.tasks.environments import ToolCall
from twoclock.tasks.text import clip

__all__ = ["CALL_FORMAT", "CallsRead", "json_values", "parse_calls", "read_json"]

CALL_FORMAT = '<tool_call>{"name": "TOOL", "arguments": {"NAME": VALUE}}</tool_call>'
"""The format that prompts ask for."""

MAX_CHARS = 20_000
"""Text beyond this is not looked at: no answer needs more, and reading nonsense must not take long."""
MAX_STARTS = 200
"""Places in a text where a JSON value is tried."""
MAX_LITERAL = 2_000
"""The longest text that is tried as a Python literal; its parser is slow on nonsense."""

_TAG = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_CALLED = ("name", "tool", "tool_name", "function")
_GIVEN = ("arguments", "args", "parameters", "input", "tool_input")


@dataclass(frozen=True)
class CallsRead:
    """The calls in their order, and what looked like a call and was none, each in a sentence for the model."""

    calls: tuple[ToolCall, ...] = ()
    problems: tuple[str, ...] = ()


def parse_calls(text: str) -> CallsRead:
    """The calls in a text; never raises, whatever the text is. No calls and no problems is a text without calls."""
    text = text[:MAX_CHARS]
    tagged = [found[1].strip() for found in _TAG.finditer(text)]
    if tagged:
        return _of_parts(tagged, "between <tool_call> and </tool_call>", certain=True)
    fenced = [found[1].strip() for found in _FENCE.finditer(text)]
    read = _of_parts(fenced, "in the fenced block", certain=False)
    if read.calls or read.problems:
        return read
    return _gathered(value for value in json_values(text))


def _of_parts(parts: list[str], where: str, *, certain: bool) -> CallsRead:
    """Calls of texts that should each be one JSON value; ``certain`` where each is meant as a call."""
    calls: list[ToolCall] = []
    problems: list[str] = []
    for part in parts:
        value = read_json(part)
        if value is None:
            value = next(json_values(part), None)
        if value is None:
            if certain:
                problems.append(f"the text {where} is no JSON: {clip(part)!r}; write {CALL_FORMAT}")
            continue
        read = _calls_of(value, certain)
        if certain and not (read.calls or read.problems):
            problems.append(f"the JSON {where} names no tool: {clip(part)!r}; write {CALL_FORMAT}")
        calls += read.calls
        problems += read.problems
    return CallsRead(tuple(calls), tuple(problems))


def _gathered(values: Iterator[Any]) -> CallsRead:
    read = [_calls_of(value, False) for value in values]
    return CallsRead(tuple(c for r in read for c in r.calls), tuple(p for r in read for p in r.problems))


def _calls_of(value: Any, certain: bool) -> CallsRead:
    """The calls that a JSON value is; ``certain`` also takes an object without arguments for one."""
    if isinstance(value, list):
        return _gathered(iter(value)) if not certain else _merged([_calls_of(v, True) for v in value[:MAX_STARTS]])
    if not isinstance(value, Mapping):
        return CallsRead()
    if isinstance(value.get("tool_calls"), list):
        return _merged([_calls_of(part, True) for part in value["tool_calls"][:MAX_STARTS]])
    if isinstance(value.get("function"), Mapping):
        return _calls_of(value["function"], True)
    name = next((value[key] for key in _CALLED if isinstance(value.get(key), str)), None)
    given = next((key for key in _GIVEN if key in value), None)
    if not name or (given is None and not certain):
        return CallsRead()
    arguments = value[given] if given else {}
    if isinstance(arguments, str):  # OpenAI's form: the arguments are JSON in a string
        arguments = read_json(arguments) if arguments.strip() else {}
    if arguments is None and given is not None and value[given] is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        return CallsRead(
            problems=(f"the arguments of '{clip(name)}' must be a JSON object; got {clip(repr(value[given or '']))}",)
        )
    return CallsRead((ToolCall(name=name.strip(), arguments=dict(arguments)),))


def _merged(reads: list[CallsRead]) -> CallsRead:
    return CallsRead(tuple(c for r in reads for c in r.calls), tuple(p for r in reads for p in r.problems))


# ---------------------------------------------------------------------------------------------------------------- JSON


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refused)


def read_json(text: str) -> Any:
    """The JSON value that a text is, or the plain Python literal (small models write single quotes); None for neither.
    A text with what UTF-8 cannot hold is neither: nothing could store it."""
    for read in (_DECODER.decode, _literal):
        try:
            value = read(text.strip())
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
            return value
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _literal(text: str) -> Any:
    if len(text) > MAX_LITERAL or not text.startswith(("{", "[")):
        raise ValueError("no literal that is tried")
    return json.loads(json.dumps(ast.literal_eval(text), allow_nan=False))


def json_values(text: str) -> Iterator[Any]:
    """The JSON objects and lists that stand in a text, in order, none inside another."""
    at, tried = 0, 0
    text = text[:MAX_CHARS]
    while tried < MAX_STARTS and (found := re.compile(r"[{\[]").search(text, at)):
        tried += 1
        try:
            value, at = _DECODER.raw_decode(text, found.start())
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError, MemoryError):
            at = found.start() + 1
            continue
        yield value
