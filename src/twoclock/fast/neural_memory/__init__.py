"""The channel ``neural_memory``: right answers, written into a memory beside the model. See :mod:`.channel`.

torch is imported when the channel is made, so that its name and options can be listed without it.
"""

from __future__ import annotations

from typing import Any

from twoclock.contracts import Channel
from twoclock.errors import MissingExtraError
from twoclock.fast.neural_memory.config import NeuralMemoryConfig
from twoclock.fast.spec import FastSpec

__all__ = ["SPEC", "NeuralMemoryConfig"]


def _build(config: NeuralMemoryConfig) -> Channel[Any]:
    try:
        from twoclock.fast.neural_memory.channel import NeuralMemoryChannel
    except ModuleNotFoundError as missing:
        raise MissingExtraError.of(missing.name or "torch", "local", "the channel 'neural_memory'") from missing
    return NeuralMemoryChannel(config)


SPEC = FastSpec(
    config=NeuralMemoryConfig,
    build=lambda config, reflector: _build(config),
    summary="writes right answers into a neural memory beside the frozen model, which reads it at every token",
)
