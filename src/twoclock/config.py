"""A run's configuration: a TOML file with overrides, its recipe filled in, checked as a whole.

Every mistake is reported at once.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twoclock.errors import ConfigError, nearest
from twoclock.recipes import apply_recipe

__all__ = [
    "ModelSection",
    "PhaseSection",
    "ReflectorSection",
    "RunConfig",
    "RunSection",
    "from_plain",
    "load_config",
    "overridden",
    "parse_config",
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class RunSection(Section):
    """``[run]``"""

    name: str = "run"
    seed: int = 0


class ModelSection(Section):
    """``[model]``: a local source, or an endpoint."""

    source: str = "packaged"
    """A hub id, a folder, a GGUF file, or ``packaged``."""
    dtype: str = "auto"
    device: str = "auto"
    chat_template: str | None = None
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server; then ``name`` is the model there and nothing is loaded here."""
    name: str | None = None
    api_key_env: str | None = None
    timeout_s: float = 120.0
    max_concurrency: int = 8
    context_tokens: int = 8192
    max_rows: int = Field(default=64, ge=1)
    packed_tokens: int = Field(default=2048, ge=64)
    threads: int | None = Field(default=None, ge=1)


class ReflectorSection(Section):
    """``[reflector]``: who writes new prompts for the proposer ``reflective``."""

    endpoint: str | None = None
    name: str | None = None
    api_key_env: str | None = None
    callable: str | None = None
    """``package.module:function`` or ``path/to/file.py:function``: text in, text out."""


class SamplingSection(Section):
    """``[sampling]``"""

    max_new_tokens: int = Field(default=32, ge=1)
    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    stop: tuple[str, ...] = ()


class PhaseSection(Section):
    """``[[stream]]``"""

    task: str
    rounds: int = Field(ge=1)


class RunConfig(Section):
    """The whole file. The free tables are checked by the components that they configure."""

    recipe: str | None = None
    """The comparison arm that channels, allocator, gates and rollouts are filled in from; see ``twoclock.recipes``."""
    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    sampling: SamplingSection = SamplingSection()
    tasks: dict[str, dict[str, Any]]
    stream: tuple[PhaseSection, ...]
    rollouts: dict[str, Any] = Field(default_factory=dict)
    channels: dict[str, dict[str, Any]] = {"null": {}}
    allocator: dict[str, Any] = {"name": "fixed"}
    gates: dict[str, Any] = Field(default_factory=dict)
    measure: dict[str, Any] = Field(default_factory=dict)
    store: dict[str, Any] = Field(default_factory=dict)
    consolidation: dict[str, Any] = Field(default_factory=dict)
    watch: dict[str, Any] = Field(default_factory=dict)
    reflector: ReflectorSection | None = None
    base_dir: str = "."
    """Where relative paths of the file start; set when it is read."""

    def plain(self) -> dict[str, Any]:
        """The configuration as plain JSON."""
        return self.model_dump(mode="json")


Check = Callable[[RunConfig], Sequence[str]]
"""Says what is wrong with a configuration beyond its sections' own rules, a sentence each."""


def load_config(
    path: Path | str, overrides: Sequence[str] = (), *, check: Check | None = None
) -> tuple[RunConfig, str]:
    """The configuration in a file, and the file's text. ``overrides`` are ``a.b=value``, the value in TOML.

    Where sections have mistakes, ``check`` is asked about the rest, so that one ConfigError reports them all.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        close = nearest(path.name, [p.name for p in path.parent.glob("*.toml")]) if path.parent.is_dir() else []
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"there is no configuration file '{path}'{hint}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"the configuration file '{path}' cannot be read: {problem}") from None
    return parse_config(text, overrides, base_dir=path.resolve().parent, where=str(path), check=check), text


def parse_config(
    text: str,
    overrides: Sequence[str] = (),
    *,
    base_dir: Path | None = None,
    where: str = "the configuration",
    check: Check | None = None,
) -> RunConfig:
    """The configuration in a text."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"{where} is not valid TOML: {problem}") from None
    for override in overrides:
        _override(data, override)
    data.setdefault("base_dir", str(base_dir or Path.cwd()))
    return from_plain(data, where, check=check)


def from_plain(data: Mapping[str, Any], where: str = "the configuration", *, check: Check | None = None) -> RunConfig:
    """The configuration from plain data, such as a store keeps, with what its recipe stands for filled in."""
    endless = [f"{where}: {place} = {value}: expected a finite number" for place, value in _not_finite(data)]
    problems = list(endless)
    try:
        data = apply_recipe(data)
    except ConfigError as error:
        problems += [f"{where}: {text}" for text in error.problems]
        # Which channels and allocator there are, nobody can say now; the rest is checked all the same.
        data = {key: value for key, value in data.items() if key not in ("recipe", "channels", "allocator")}
    try:
        config = RunConfig.model_validate(dict(data))
    except ValidationError as error:
        problems += [
            _sentence(dict(detail), where)
            for detail in error.errors(include_url=False)
            if detail["type"] != "finite_number"
        ]
        sound = _without(data, [detail["loc"] for detail in error.errors()]) if check else None
        raise ConfigError([*problems, *(check(sound) if check and sound else ())]) from None
    if problems:
        raise ConfigError([*problems, *(check(config) if check and not endless else ())])
    return config


def overridden(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of plain data with ``a.b=value`` settings put in. ConfigError for one that cannot be."""
    changed = deepcopy(dict(data))
    for override in overrides:
        _override(changed, override)
    return changed


def _not_finite(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Every NaN and infinity, which TOML can say and no ledger can keep, with its place."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _not_finite(part, (*place, str(key)))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _not_finite(part, (*place, str(index)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield ".".join(place), value


def _without(data: Mapping[str, Any], places: Sequence[tuple[int | str, ...]]) -> RunConfig | None:
    """What is left of the data when the settings at these places keep their defaults; None where what has none is
    among them, the tasks and the phases' tasks, because all else is said in their names."""
    rest = deepcopy(dict(data))
    for place in places:
        section, *inside = place
        if section == "tasks" or not inside or (section == "stream" and inside[1:] in ([], ["task"])):
            return None
        if section == "stream":
            phase: dict[Any, Any] = rest["stream"][inside[0]]
            phase.pop(inside[1], None)
            phase.setdefault("rounds", 1)
        else:
            rest[str(section)].pop(inside[0], None)
    try:
        return RunConfig.model_validate(rest)
    except ValidationError:
        return None


def _sentence(detail: dict[str, Any], where: str) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _names(detail["loc"][:-1])
        close = nearest(str(detail["loc"][-1]), known)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known here: {', '.join(known)}"
        return f"{where}: unknown setting '{place}'; {hint}"
    if detail["type"] == "missing":
        return f"{where}: '{place}' is missing"
    return f"{where}: {place} = {detail['input']!r}: {detail['msg']}"


def _names(place: Sequence[Any]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "run": RunSection,
        "model": ModelSection,
        "sampling": SamplingSection,
        "stream": PhaseSection,
        "reflector": ReflectorSection,
    }
    section = sections.get(str(place[0]), RunConfig) if place else RunConfig
    return [name for name in section.model_fields if name != "base_dir"]


def _override(data: dict[str, Any], text: str) -> None:
    key, sign, raw = text.partition("=")
    parts = [p.strip() for p in key.split(".")]
    if not sign or not all(parts):
        raise ConfigError(f"--set takes a.b=value, such as --set run.seed=3; got '{text}'")
    try:
        value = tomllib.loads(f"x = {raw}")["x"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()  # a bare word is a text, so that shells need no double quoting
    place: Any = data
    for depth, part in enumerate(parts[:-1]):
        if isinstance(place, list):
            place = _element(place, part, text)
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, (dict, list)):
            raise ConfigError(f"--set {text}: '{'.'.join(parts[: depth + 1])}' is {place!r}, not a table")
    if isinstance(place, list):
        raise ConfigError(f"--set {text}: '{'.'.join(parts[:-1])}' is a list; name one of its settings after a number")
    place[parts[-1]] = value


def _element(place: list[Any], part: str, text: str) -> Any:
    if not part.isdigit() or int(part) >= len(place):
        raise ConfigError(f"--set {text}: '{part}' must be a number from 0 to {len(place) - 1} here")
    return place[int(part)]
