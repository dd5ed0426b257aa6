"""Spares memory in training passes: the norms and gates of the model kinds listed here keep only what their backward
pass needs (:mod:`twoclock.nn.fused`). Other kinds, and modules whose forward someone else has replaced, are left as
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from twoclock.nn.fused import gated, rms_norm

__all__ = ["sparing"]

NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
GATES = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")


@contextmanager
def sparing(model: nn.Module) -> Iterator[None]:
    """While inside, with gradients on, the model's norms and gates run sparingly; the values are the same."""
    swapped: list[nn.Module] = []
    try:
        if torch.is_grad_enabled():
            for module in model.modules():
                forward = _sparing_forward(module)
                # A forward of the instance's own is someone else's doing.
                if forward is not None and "forward" not in vars(module):
                    module.forward = forward
                    swapped.append(module)
        yield
    finally:
        for module in swapped:
            del module.forward


def _sparing_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    kind = type(module).__name__
    if kind in NORMS:
        return lambda x: rms_norm(x, module.weight, module.variance_epsilon)
    if kind in GATES and module.config.hidden_act == "silu":
        return lambda x: module.down_proj(gated(module.gate_proj(x), module.up_proj(x)))
    return None
