"""What a row of the table of fast channels names: how to configure a channel and how to make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twoclock.contracts import Channel, Reflector

__all__ = ["FastSpec"]


@dataclass(frozen=True, kw_only=True)
class FastSpec:
    """A fast channel's config type and constructor. A channel from another package offers one of these under the entry
    point group ``twoclock.channels``, by the channel's name."""

    config: type
    """A frozen, keyword-only dataclass; every field has a default. It raises ConfigError for values out of range."""
    build: Callable[[Any, Reflector | None], Channel[Any]]
    """(config, reflector) → channel. The reflector is None where the user has given none."""
    summary: str
    """One line for listings."""
