"""Small random models of every architecture and ablation, in float64, and texts for them."""

from __future__ import annotations

from typing import Any

import torch

from twoclock.models.titans.config import DELTA_MEMORY, TitansConfig
from twoclock.models.titans.model import TitansForCausalLM

VOCAB = 40
PLAIN: dict[str, Any] = {"chunk": 4, "residual": False, "norm": False}

MODELS: dict[str, dict[str, Any]] = {
    "mac": {"architecture": "mac"},
    "mag": {"architecture": "mag"},
    "mal": {"architecture": "mal"},
    "lmm": {"architecture": "lmm"},
    "window": {"architecture": "window"},
    "full": {"architecture": "full"},
    "delta": {"architecture": "lmm", "memory": DELTA_MEMORY},
    "mag, the preprint's memory": {"architecture": "mag", "memory": PLAIN},
    "lmm, the preprint's matrix": {"architecture": "lmm", "memory": PLAIN | {"depth": 1}},
    "mac, segments across chunks": {"architecture": "mac", "segment": 7},
    "mag, a delta memory": {"architecture": "mag", "memory": DELTA_MEMORY},
    "mag, sigmoid gate, clipped": {
        "architecture": "mag",
        "memory_gate": "sigmoid",
        "memory": {"chunk": 4, "clip": 1.0},
    },
    "lmm without momentum": {"architecture": "lmm", "memory": {"chunk": 4, "momentum": False}},
    "lmm without forgetting": {"architecture": "lmm", "forgetting": False},
    "lmm without convolution": {"architecture": "lmm", "memory": {"chunk": 4, "conv": 1}},
    "lmm without persistent tokens": {"architecture": "lmm", "persistent_tokens": 0},
    "lmm of a matrix": {"architecture": "lmm", "memory": {"chunk": 4, "depth": 1}},
    "mac without persistent tokens": {"architecture": "mac", "persistent_tokens": 0},
    "mac, memory zeroed": {"architecture": "mac", "memory_zeroed": True},
    "mag, memory zeroed": {"architecture": "mag", "memory_zeroed": True},
    "memory in the second layer alone": {"architecture": "mag", "memory_layers": [1]},
    "window of one, no network": {"architecture": "window", "window": 1, "intermediate_size": 0},
}


def config_of(name: str, **changes: Any) -> TitansConfig:
    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "window": 5,
        "segment": 6,
        "persistent_tokens": 3,
        "memory": {"chunk": 4, "expansion": 2},
    }
    return TitansConfig(**common | MODELS[name] | changes)


def model_of(name: str, **changes: Any) -> Any:
    return TitansForCausalLM(config_of(name, **changes)).double().eval()


def text(rows: int = 3, length: int = 23, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def in_pieces(
    model: Any, ids: torch.Tensor, cuts: list[int], mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, Any]:
    """The logits of a text fed in pieces, and the cache after it."""
    cache, parts = model.new_cache(), []
    for start, stop in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        given = None if mask is None else mask[:, :stop]
        parts.append(model(ids[:, start:stop], attention_mask=given, past_key_values=cache, use_cache=True).logits)
    return torch.cat(parts, dim=1), cache
