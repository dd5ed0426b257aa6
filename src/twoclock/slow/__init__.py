"""The slow clock: channels that train a delta on top of immutable base weights. One row in the table each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twoclock.contracts import Channel
from twoclock.errors import ConfigError, MissingExtraError, unknown_name
from twoclock.options import read_options

__all__ = ["SLOW_CHANNELS", "build_slow"]

SLOW_CHANNELS: dict[str, str] = {
    "lora": "low-rank changes of linear layers, trained on the policy's rollouts",
    "svf": "singular values of linear layers, scaled, trained on the policy's rollouts",
    "full": "changes of all parameters, trained on the policy's rollouts",
}
"""Name → what it is."""


def build_slow(name: str, options: Mapping[str, Any]) -> Channel[Any]:
    """A slow channel from its name and plain options. Raises ConfigError with every mistake at once."""
    if name not in SLOW_CHANNELS:
        raise ConfigError(unknown_name("slow channel", name, SLOW_CHANNELS))
    where = f"channel '{name}'"
    try:
        from twoclock.slow.full import FullChannel, FullConfig
        from twoclock.slow.lora import LoraChannel, LoraConfig
        from twoclock.slow.svf import SvfChannel, SvfConfig
    except ModuleNotFoundError as missing:
        raise MissingExtraError.of(missing.name or "torch", "local", f"the slow {where}") from missing
    if name == "full":
        return FullChannel(read_options(FullConfig, options, where))
    if name == "svf":
        return SvfChannel(read_options(SvfConfig, options, where))
    return LoraChannel(read_options(LoraConfig, options, where))
