"""A ``full`` state as a model folder that transformers loads: the base with its changes added, and its tokenizer."""

from __future__ import annotations

from pathlib import Path

from twoclock.errors import ConfigError
from twoclock.slow.full import FullState

__all__ = ["export_model"]


def export_model(state: FullState, folder: str | Path, base: str, dtype: str | None = None) -> Path:
    """Write the changed model into ``folder``, made if need be, and return it. ``base`` is where transformers finds the
    model that the state was trained on, ``dtype`` the one that the run computed in (None: the base's own).

    The weights are what the run computed with: W + D summed in float32 and rounded once. Raises ConfigError for a state
    that changes nothing yet, and for a folder that holds anything.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from twoclock.nn.full import changed_weights

    target = Path(folder)
    delta = state.delta
    if delta is None:
        raise ConfigError("there is nothing to export: this state has taken no step, so it is the base model itself")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already and not an empty folder; name a new one")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype or "auto")
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in changed_weights(model, delta.payload).items():
            own[name].copy_(weight)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)
    return target
