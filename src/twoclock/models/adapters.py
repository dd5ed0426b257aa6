"""LoRA adapters as PEFT writes them, read as a change of weights: ``adapter_config.json`` and
``adapter_model.safetensors``. What would be more than a low-rank change of linear layers is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from twoclock.errors import ModelError
from twoclock.hashing import content_hash
from twoclock.nn.lowrank import LowRank
from twoclock.types import Delta

__all__ = ["is_adapter", "read_adapter"]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {".lora_A.weight": 0, ".lora_B.weight": 1}


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read_adapter(folder: Path, base_hash: str) -> Delta:
    """The adapter in ``folder`` as a change of the weights ``base_hash``: an adapter names its base, but not by its
    content, so it is taken at the user's word. Raises ModelError for one that is damaged or more than a low-rank
    change."""
    config = _config(folder)
    if problems := _more_than_low_rank(config):
        raise ModelError(f"the adapter in {folder} cannot be used as a change of weights: {'; '.join(problems)}")
    pairs: dict[str, list[torch.Tensor | None]] = {}
    for key, tensor in _tensors(folder).items():
        part = next((p for p in PARTS if key.endswith(p)), None)
        if part is None or not key.startswith(PREFIX):
            raise ModelError(f"the adapter in {folder} has the tensor {key!r}, which is no part of a LoRA")
        name = key[len(PREFIX) : -len(part)]
        pairs.setdefault(name, [None, None])[PARTS[part]] = tensor.float()
    tensors = {}
    for name, (a, b) in sorted(pairs.items()):
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise ModelError(f"the adapter in {folder} is damaged: the two parts of {name} do not fit together")
        tensors[name] = (a, b * _scale(config, name, a.shape[0]))
    if not tensors:
        raise ModelError(f"the adapter in {folder} holds no LoRA")
    digest = [f"{base_hash} adapter"]
    for name, pair in tensors.items():
        digest += [f"{name} {content_hash(t.contiguous().numpy().tobytes())}" for t in pair]
    return Delta(content_hash("\n".join(digest)), "lora", base_hash, LowRank(tensors, 1.0))


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelError(f"{folder / CONFIG} cannot be read: {problem}") from problem
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ModelError(f"the adapter in {folder} is of the type {kind!r}; only 'LORA' can be read")
    return config


def _more_than_low_rank(config: Mapping[str, Any]) -> list[str]:
    problems = [f"{name} is set" for name in ("use_dora", "fan_in_fan_out", "modules_to_save") if config.get(name)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']!r}")
    return problems


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    if not (folder / TENSORS).is_file():
        raise ModelError(f"the adapter in {folder} has no {TENSORS}; save it as safetensors")
    try:
        return dict(load_file(folder / TENSORS))
    except Exception as problem:  # the library raises kinds of its own
        raise ModelError(f"{folder / TENSORS} cannot be read: {problem}") from problem


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha / rank, or alpha / √rank (rank-stabilised LoRA)."""
    alpha = next((v for k, v in (config.get("alpha_pattern") or {}).items() if _meant(k, name)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _meant(pattern: str, name: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}")
