"""Options as a user types them (a TOML table, ``--set``) → a component's frozen config, with every mistake at once.

Leaves to each config what its values mean: a config checks ranges in ``__post_init__`` and raises ConfigError there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from twoclock.errors import ConfigError, unknown_name

__all__ = ["read_options"]

ConfigT = TypeVar("ConfigT")


def read_options(config_type: type[ConfigT], options: Mapping[str, Any], where: str) -> ConfigT:
    """An instance of the dataclass ``config_type`` from plain values; lists become tuples.

    ``where`` names the table in messages, such as ``channel 'prompts'``. Raises ConfigError with one problem for each
    unknown name (the nearest known ones beside it), each value of a wrong type and each value out of range.
    """
    from pydantic import TypeAdapter, ValidationError  # here: a heavy import that --help does not need

    known = [f.name for f in fields(config_type)]  # type: ignore[arg-type]
    problems = [f"{where}: {unknown_name('option', name, known)}" for name in options if name not in known]
    result: ConfigT | None = None
    try:
        result = TypeAdapter(config_type).validate_python({k: v for k, v in options.items() if k in known})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            cause = detail.get("ctx", {}).get("error")
            if isinstance(cause, ConfigError):
                problems.extend(f"{where}: {text}" for text in cause.problems)
            else:
                place = ".".join(str(part) for part in detail["loc"]) or "value"
                problems.append(f"{where}: {place} = {detail['input']!r}: {detail['msg']}")
    if problems or result is None:
        raise ConfigError(problems)
    return result
