"""From a function's type hints and docstring to the schema of its arguments, and from arguments to checked ones."""

from __future__ import annotations

import functools
import inspect
import re
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
import pydantic_core

from twoclock.errors import ConfigError
from twoclock.hashing import canonical_json
from twoclock.tasks.text import clip

__all__ = ["Arguments", "ArgumentsModel", "arguments_of", "described", "signature_line"]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments that were checked: ``values`` as the function takes them, ``plain`` as canonical JSON has them."""

    values: Mapping[str, Any]
    plain: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ArgumentsModel:
    """The schema of a function's arguments, and the check against it."""

    schema: Mapping[str, Any]
    check: Callable[[Mapping[str, Any]], Arguments]


def arguments_of(function: Callable[..., Any], name: str, descriptions: Mapping[str, str]) -> ArgumentsModel:
    """The model of a function's arguments; raises ConfigError with everything that keeps it from having one."""
    parameters = _parameters(function, name)
    hints = _hints(function, name)
    problems = [
        f"parameter '{p.name}' of tool '{name}' {trouble}" for p in parameters if (trouble := _trouble(p, hints))
    ]
    if problems:
        raise ConfigError(problems)
    # Fields have names of our own and the parameters' as aliases: a parameter may be called what a model's method is.
    fields: dict[str, Any] = {}
    for index, p in enumerate(parameters):
        said = {"description": descriptions[p.name]} if p.name in descriptions else {}
        about: Any = pydantic.Field(alias=p.name, **said)  # type: ignore[call-overload]
        fields[f"a{index}"] = (Annotated[hints[p.name], about], ... if p.default is p.empty else p.default)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a default that JSON cannot hold is left out of the schema, no more
            model = pydantic.create_model(
                "Arguments", __config__=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False), **fields
            )
            schema = _untitled(model.model_json_schema(by_alias=True))
    except (pydantic.PydanticUserError, pydantic_core.SchemaError, TypeError, NameError) as error:
        raise ConfigError(
            f"the arguments of tool '{name}' have no JSON Schema: {clip(str(error), 300)}; use str, int, float, bool, "
            "list, dict, Literal, dataclasses or pydantic models"
        ) from error
    schema.setdefault("properties", {})
    schema.pop("description", None)
    return ArgumentsModel(schema=schema, check=functools.partial(_check, model, [p.name for p in parameters], schema))


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"tool '{name}': the parameters of {function!r} cannot be read: wrap it in a def") from error


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    plain = function.func if isinstance(function, functools.partial) else function
    plain = plain if inspect.isroutine(plain) else type(plain).__call__
    try:
        return typing.get_type_hints(plain, include_extras=True)
    except Exception as error:
        raise ConfigError(f"tool '{name}': its type hints cannot be read: {type(error).__name__}: {error}") from error


def _trouble(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> str:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return f"is '{parameter}': a model cannot be told what to give there; name the parameters"
    if parameter.kind is parameter.POSITIONAL_ONLY:
        return "takes its argument by position alone; a call gives names: remove the '/'"
    if parameter.name not in hints:
        return f"has no type hint: write '{parameter.name}: str', or whatever it is"
    return ""


def _check(
    model: type[pydantic.BaseModel], names: list[str], schema: Mapping[str, Any], given: Mapping[str, Any]
) -> Arguments:
    try:
        canonical_json(dict(given)).encode("utf-8")
        checked = model.model_validate(dict(given))
        plain = checked.model_dump(mode="json", by_alias=True)
        canonical_json(plain).encode("utf-8")
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(_sentence(e, schema) for e in error.errors(include_url=False)[:8])) from error
    except (ValueError, TypeError, RecursionError) as error:  # NaN inside Any, a lone surrogate, what JSON cannot hold
        raise ValueError(f"they are no plain JSON: {clip(str(error), 200)}") from error
    return Arguments(values={name: getattr(checked, f"a{index}") for index, name in enumerate(names)}, plain=plain)


def _sentence(error: Any, schema: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "arguments"
    if error["type"] == "missing":
        return f"'{where}' is missing"
    if error["type"] == "extra_forbidden":
        known = ", ".join(f"'{name}'" for name in schema["properties"]) or "none"
        return f"'{clip(where)}' is no argument of it (it has: {known})"
    return f"'{where}': {error['msg']}, got {clip(repr(error['input']))}"


def _untitled(schema: Any) -> Any:
    """Without the titles that pydantic adds, which cost tokens and say nothing."""
    if isinstance(schema, list):
        return [_untitled(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: part if key in ("default", "enum", "const", "examples") else _untitled(part)
        for key, part in schema.items()
        if not (key == "title" and isinstance(part, str))
    }


# --------------------------------------------------------------------------------------------------- words for prompts


def signature_line(name: str, schema: Mapping[str, Any]) -> str:
    """``name(a: integer, b: string = 'x')`` of a JSON Schema."""
    required = schema.get("required", ())
    parts = []
    for key, part in schema.get("properties", {}).items():
        part = part if isinstance(part, Mapping) else {}
        default = f" = {clip(repr(part['default']), 40)}" if "default" in part else ""
        optional = "" if key in required or default else "?"
        parts.append(f"{key}{optional}: {_type(part)}{default}")
    return f"{name}({', '.join(parts)})"


def _type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(repr(value) for value in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " | ".join(_type(part) for part in schema[key])
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of {_type(items)}" if isinstance(items, Mapping) and items else "list"
    kind = schema.get("type", "object" if "$ref" in schema else "any")
    return " | ".join(kind) if isinstance(kind, list) else str(kind)


_SPHINX = re.compile(r"^:param\s+(?:[\w\[\], .|]+\s)?(\w+)\s*:\s*(.*)$")
_GOOGLE = re.compile(r"^(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_SECTION = re.compile(r"^(args|arguments|parameters|returns|raises|yields|examples?|notes?)\s*:\s*$", re.IGNORECASE)


def described(docstring: str) -> tuple[str, dict[str, str]]:
    """(first paragraph on one line, what is said of each parameter) of a docstring in Google's or Sphinx's form."""
    paragraph: list[str] = []
    about: dict[str, str] = {}
    section, current, depth, opening = "", "", 0, True
    for line in docstring.splitlines():
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if found := _SECTION.match(text):
            section, current, depth, opening = found[1].lower(), "", 0, False
        elif found := _SPHINX.match(text):
            section, current, depth, opening = "sphinx", found[1], indent, False
            about[current] = found[2]
        elif text.startswith(":"):
            section, current, opening = "", "", False
        elif not text:
            opening, current = opening and not paragraph, "" if section == "sphinx" else current
        elif section in ("args", "arguments", "parameters"):
            found = _GOOGLE.match(text) if indent and (not depth or indent <= depth) else None
            if found:
                current, depth = found[1], indent
                about[current] = found[2]
            elif current:
                about[current] = f"{about[current]} {text}".strip()
        elif section == "sphinx" and current:
            about[current] = f"{about[current]} {text}".strip()
        elif opening:
            paragraph.append(text)
    return " ".join(paragraph), about
