"""The fast clock: channels that change no weights. One file or folder a channel, one row in the table below.

A row names a :class:`~twoclock.fast.spec.FastSpec` as ``module:attribute``, the form of an entry point, so that listing
the names imports no channel. Other packages add channels through the entry point group ``twoclock.channels``; a name in
the table wins over one of theirs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from twoclock.contracts import Channel, Reflector
from twoclock.errors import ConfigError, unknown_name
from twoclock.fast.spec import FastSpec
from twoclock.options import read_options

__all__ = ["ENTRY_POINTS", "FAST_CHANNELS", "FastSpec", "build_fast", "fast_names", "fast_spec"]

ENTRY_POINTS = "twoclock.channels"

FAST_CHANNELS: dict[str, str] = {
    "cases": "twoclock.fast.memory.cases:SPEC",
    "neural_memory": "twoclock.fast.neural_memory:SPEC",
    "null": "twoclock.fast.null:SPEC",
    "prompts": "twoclock.fast.prompts:SPEC",
    "reflections": "twoclock.fast.memory.reflections:SPEC",
    # It opens what other rooms keep, so it stands above this one; a name is no import.
    "proxy": "twoclock.experts:PROXY",
    "experts": "twoclock.library:EXPERTS",
    # They read what an agent did, so they stand above this room too.
    "subtasks": "twoclock.agent.channels:SUBTASKS",
    "tools": "twoclock.agent.channels:TOOLS",
}


def fast_names() -> list[str]:
    """Every name that :func:`build_fast` knows, those of other packages included."""
    return sorted({*FAST_CHANNELS, *_foreign()})


def fast_spec(name: str) -> FastSpec:
    """The spec of a fast channel. Raises ConfigError for a name that is not known, with the nearest ones that are."""
    if name in FAST_CHANNELS:
        module, _, attribute = FAST_CHANNELS[name].partition(":")
        spec = getattr(importlib.import_module(module), attribute)
    elif name in (foreign := _foreign()):
        spec = foreign[name].load()
    else:
        raise ConfigError(unknown_name("fast channel", name, fast_names()))
    if not isinstance(spec, FastSpec):
        raise ConfigError(f"the entry point '{name}' of group {ENTRY_POINTS} names no FastSpec but {spec!r}")
    return spec


def build_fast(
    name: str, options: Mapping[str, Any], *, reflector: Reflector | None = None, base_dir: str | None = None
) -> Channel[Any]:
    """A fast channel from its name and plain options. ``base_dir`` is the folder that paths among them are relative to,
    for a channel whose config has a field of that name. Raises ConfigError with every mistake in the options at once.
    """
    spec = fast_spec(name)
    if base_dir is not None and any(f.name == "base_dir" for f in fields(spec.config)):
        options = {"base_dir": base_dir, **options}
    return spec.build(read_options(spec.config, options, f"channel '{name}'"), reflector)


def _foreign() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
