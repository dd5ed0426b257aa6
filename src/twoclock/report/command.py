"""The command that runs a run again: as it was recorded, or worked out from the run's own copy of its configuration."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twoclock.report.reading import part

__all__ = ["run_command"]

AS_GIVEN = ("tasks", "rollouts", "channels", "allocator", "gates", "measure", "watch", "consolidation")
"""Tables that a run keeps as they were given: what the file lacks here was set on the command line. In the others a
run has defaults filled in, so there only what differs from the file is known to have been set."""


def run_command(run: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """The recorded command, else one from ``config.toml`` with the settings that the resolved configuration changes;
    empty when the run has no readable ``config.toml``."""
    recorded = part(environment, "command")
    if isinstance(recorded, str):
        return recorded
    if isinstance(recorded, (list, tuple)):
        return shlex.join(str(word) for word in recorded)
    copy = run / "config.toml"
    try:
        given = tomllib.loads(copy.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    words = ["twoclock", "run", str(copy)]
    for place, value in _settings(given, config):
        words += ["--set", f"{place}={json.dumps(value, ensure_ascii=False)}"]
    return shlex.join(words)


def _settings(given: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if name == "base_dir":
            # The copy lies elsewhere than the file it was made from, which relative paths start from.
            if _needs_folder(config) and name not in given:
                yield name, value
        elif name in given or name in AS_GIVEN:
            yield from _changed(given.get(name, {}), value, name, name in AS_GIVEN)
    if "seed" not in (part(given, "run") or {}) and part(config, "run", "seed"):
        yield "run.seed", part(config, "run", "seed")


def _changed(given: Any, value: Any, place: str, as_given: bool) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and isinstance(given, Mapping):
        for name, inner in value.items():
            if name in given or (as_given and inner is not None):
                missing: Any = {} if isinstance(inner, Mapping) and inner else None
                yield from _changed(given.get(name, missing), inner, f"{place}.{name}", as_given)
    elif _is_tables(value) and _is_tables(given) and len(value) == len(given):
        for i, (old, new) in enumerate(zip(given, value, strict=True)):
            yield from _changed(old, new, f"{place}.{i}", as_given)
    elif value != given:
        yield place, value


def _is_tables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(row, Mapping) for row in value)


def _needs_folder(config: Mapping[str, Any]) -> bool:
    """Whether some path or function of the configuration may be relative to the folder of its file."""
    tasks = part(config, "tasks")
    specs = [spec for spec in tasks.values() if isinstance(spec, Mapping)] if isinstance(tasks, Mapping) else []
    texts = [spec.get(name) for spec in specs for name in ("path", "verifier")]
    texts += [part(config, "reflector", "callable")]
    return any(isinstance(text, str) and not Path(text).is_absolute() for text in texts)
