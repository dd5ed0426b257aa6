"""A ``lora`` state as an adapter folder that PEFT, and what reads its format, can load onto the same base model.

Two files, as PEFT writes them: ``adapter_config.json`` and ``adapter_model.safetensors``. Only what speaks to the model
is exported; the optimizer's moments stay in the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError
from twoclock.slow.lora import LoraState

__all__ = ["export_peft"]


def export_peft(state: LoraState, folder: str | Path, base_name: str) -> Path:
    """Write the state into ``folder``, made if need be, and return it. ``base_name`` is the model's hub id or path, for
    PEFT's ``base_model_name_or_path``; the weights must be those that the state was trained on.

    Raises ConfigError for a state that changes nothing yet, and for a folder that holds anything.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    if state.delta is None:
        raise ConfigError("there is nothing to export: this state has taken no step, so it is the base model itself")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already and not an empty folder; name a new one")
    target.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name}.lora_{part}.weight": tensor.contiguous()
        for name, pair in state.tensors.items()
        for part, tensor in zip("AB", pair, strict=True)
    }
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps(_adapter_config(state, base_name), indent=2, sort_keys=True)
    (target / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    return target


def _adapter_config(state: LoraState, base_name: str) -> dict[str, Any]:
    rank = next(iter(state.tensors.values()))[0].shape[0]
    alpha = state.scale * rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        # The last name part picks the same layers: the channel changes all that bear the name.
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in state.tensors}),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
