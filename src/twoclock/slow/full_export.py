"""A model folder that transformers loads: the base with changes added to its parameters, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError
from twoclock.nn.full import changed_weights
from twoclock.slow.full import FullState

__all__ = ["export_model", "write_model"]


def export_model(state: FullState, folder: str | Path, base: str, dtype: str | None = None) -> Path:
    """Write the changed model into ``folder``, made if need be, and return it. ``base`` is where transformers finds the
    model that the state was trained on, ``dtype`` the one that the run computed in (None: the base's own).

    The weights are what the run computed with: W + D summed in float32 and rounded once. Raises ConfigError for a state
    that changes nothing yet, and for a folder that holds anything.
    """
    delta = state.delta
    if delta is None:
        raise ConfigError("there is nothing to export: this state has taken no step, so it is the base model itself")
    return write_model(folder, base, dtype, lambda model: changed_weights(model, delta.payload))


def write_model(folder: str | Path, base: str, dtype: str | None, changed: Callable[[Any], Mapping[str, Any]]) -> Path:
    """Write the model at ``base`` with the parameters that ``changed(model)`` gives by name, and its tokenizer. Raises
    ConfigError for a folder that holds anything, before the model is read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already and not an empty folder; name a new one")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype or "auto")
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in changed(model).items():
            own[name].copy_(weight)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)
    return target
