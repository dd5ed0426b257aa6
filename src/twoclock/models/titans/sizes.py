"""How large models of this family are, and one made as large as another: comparisons are at equal parameters, and
controls at equal bytes of state.
"""

from __future__ import annotations

import copy

import torch

from twoclock.errors import ConfigError
from twoclock.models.titans.config import TitansConfig
from twoclock.models.titans.model import TitansForCausalLM

__all__ = ["changed", "count_parameters", "matched", "state_bytes", "window_of_bytes"]


def changed(config: TitansConfig, **fields: object) -> TitansConfig:
    """A config with other values in these fields, checked anew."""
    given = copy.deepcopy(config.to_dict())
    return TitansConfig(**{name: value for name, value in given.items() if name != "model_type"} | fields)


def count_parameters(config: TitansConfig) -> int:
    """Parameters that training moves, tied ones once."""
    with torch.device("meta"):
        model = TitansForCausalLM(config)
    return sum(p.numel() for p in model.parameters())


def matched(config: TitansConfig, parameters: int) -> TitansConfig:
    """The config with the ``intermediate_size`` at which it has as near to so many parameters as can be.

    Raises ConfigError where even without the gated networks it has more.
    """
    bare = count_parameters(changed(config, intermediate_size=0))
    one = count_parameters(changed(config, intermediate_size=1))
    two = count_parameters(changed(config, intermediate_size=2))
    fixed = one - (two - one)
    size = round((parameters - fixed) / (two - one))
    if size < 1:
        raise ConfigError(
            f"{config.architecture} of width {config.hidden_size} has {bare:,} parameters without gated networks; "
            f"{parameters:,} cannot be reached"
        )
    return changed(config, intermediate_size=size)


def state_bytes(config: TitansConfig, tokens: int) -> int:
    """Bytes of one text's state after so many tokens, in float32."""
    model = TitansForCausalLM(config).eval()
    with torch.no_grad():
        found = model(torch.zeros(1, tokens, dtype=torch.long), use_cache=True)
    return int(found.past_key_values.bytes)


def window_of_bytes(config: TitansConfig, size: int) -> TitansConfig:
    """The Transformer with a window whose keys and values take up as near to ``size`` bytes as can be, at least the
    config's own window."""
    token = 2 * config.hidden_size * 4 * config.num_hidden_layers
    return changed(config, architecture="window", window=max(config.window, round(size / token) + 1))
