"""Changes of whole parameters: W' = W + D, with D as large as W.

The base parameter is never edited: while a change is mounted another tensor stands in its place, and afterwards the
same object stands there again, so taking a change back restores the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

__all__ = ["FullChange", "changed_weights", "in_place_of"]


@dataclass(frozen=True)
class FullChange:
    """The payload of a ``full`` delta: for each parameter name what is added to it, float32, of its shape."""

    tensors: Mapping[str, torch.Tensor] = field(repr=False)


def changed_weights(model: nn.Module, change: FullChange) -> dict[str, torch.Tensor]:
    """W + D in the parameter's own dtype, by name; differentiable in D. The sum is taken in float32: a small change of
    a bf16 weight would be lost in bf16."""
    own = dict(model.named_parameters())
    return {
        name: (own[name].detach().float() + d.to(own[name].device)).to(own[name].dtype)
        for name, d in change.tensors.items()
    }


@contextmanager
def in_place_of(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """While inside, each named parameter is the given tensor, in every module that shares it (tied embeddings)."""
    own = dict(model.named_parameters())
    replaced = {id(own[name]): tensor for name, tensor in weights.items()}
    places = [
        (module, key, parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in replaced
    ]
    try:
        for module, key, parameter in places:
            module._parameters[key] = replaced[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for module, key, parameter in places:
            module._parameters[key] = parameter
