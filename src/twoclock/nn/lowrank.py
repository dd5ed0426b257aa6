"""Low-rank changes of linear layers (LoRA; Hu et al., arXiv:2106.09685): W' x = W x + scale · B A x.

The base weight is never edited: the change is added to the layer's output, and without one the layer runs untouched, so
taking a change back restores the same bits. Legend: I in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

__all__ = ["LowRank", "low_rank_term", "mounted"]


@dataclass(frozen=True)
class LowRank:
    """The payload of a ``lora`` delta: for each module name (A [R, I], B [O, R]), and the scale alpha / R."""

    tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(repr=False)
    scale: float


def low_rank_term(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """scale · B A x for x [..., I]: two thin products, never the [O, I] matrix."""
    return nn.functional.linear(nn.functional.linear(x, a), b) * scale


@contextmanager
def mounted(modules: Mapping[str, nn.Module], change: LowRank | None) -> Iterator[None]:
    """While inside, each named module's output has its change added; outside, and for ``None``, it is untouched.

    The tensors are cast to the module's dtype for the products; gradients flow back through the cast.
    """
    if change is None:
        yield
        return
    handles = []
    try:
        for name, (a, b) in change.tensors.items():
            module = modules[name]
            weight = module.get_parameter("weight")
            pair = (a.to(weight.device, weight.dtype), b.to(weight.device, weight.dtype))
            handles.append(module.register_forward_hook(_adder(*pair, change.scale)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(a: torch.Tensor, b: torch.Tensor, scale: float):  # type: ignore[no-untyped-def]
    def add(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + low_rank_term(args[0], a, b, scale)

    return add
