"""What is compared: one config an arm, all of one width, depth and number of parameters (within one per cent)."""

from __future__ import annotations

from typing import Any

from twoclock.errors import ConfigError, unknown_name
from twoclock.models.titans.config import DELTA_MEMORY, TitansConfig
from twoclock.models.titans.sizes import matched, state_bytes, window_of_bytes

WIDTH, LAYERS, HEADS = 32, 2, 2
WINDOW, SEGMENT, CHUNK = 8, 16, 16
PARAMETERS = 48_000
"""Of every arm, the vocabulary's (two thousand symbols' worth, eight thousand for bytes) not counted."""

DEEP: dict[str, Any] = {"chunk": CHUNK, "expansion": 2, "residual": True, "norm": True}
"""M(x) = x + LN(f(x)), as in the paper's proceedings version: without the norm a memory trained on 64 tokens may grow
without bound on 256."""

MAIN = ("mac", "mag", "mal", "lmm", "delta", "window", "full")
ARMS: dict[str, dict[str, Any]] = {
    "mac": {"architecture": "mac", "memory": DEEP},
    "mag": {"architecture": "mag", "memory": DEEP},
    "mal": {"architecture": "mal", "memory": DEEP},
    "lmm": {"architecture": "lmm", "memory": DEEP},
    "delta": {"architecture": "lmm", "memory": DELTA_MEMORY},
    "window": {"architecture": "window"},
    "full": {"architecture": "full"},
    # The paper's ablations, of mag: the arm that learns all tasks.
    "mag-linear": {"architecture": "mag", "memory": DEEP | {"depth": 1}},
    "mag-no-conv": {"architecture": "mag", "memory": DEEP | {"conv": 1}},
    "mag-no-momentum": {"architecture": "mag", "memory": DEEP | {"momentum": False}},
    "mag-no-forgetting": {"architecture": "mag", "memory": DEEP, "forgetting": False},
    "mag-no-persistent": {"architecture": "mag", "memory": DEEP, "persistent_tokens": 0},
    # Controls at equal bytes of state: a window as large as mag's state, and of a size both, a delta rule's matrix
    # and a network.
    "window-bytes": {"architecture": "window"},
    "mag-delta": {"architecture": "mag", "memory": DELTA_MEMORY, "memory_heads": 1},
    "mag-small": {"architecture": "mag", "memory": DEEP | {"expansion": 1, "momentum": False}},
}


def config_of(arm: str, vocabulary: int, seed: int) -> TitansConfig:
    if arm not in ARMS:
        raise ConfigError(unknown_name("arm", arm, ARMS))
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "memory_heads": HEADS,
        "window": WINDOW,
        "segment": SEGMENT,
        "init_seed": seed,
    }
    config = TitansConfig(**common | ARMS[arm])
    if arm == "window-bytes":
        config = window_of_bytes(config, state_bytes(config_of("mag", vocabulary, seed), 4 * CHUNK))
    return matched(config, PARAMETERS + vocabulary * WIDTH)
