"""Low-rank changes of linear layers (LoRA; Hu et al., arXiv:2106.09685): W' x = W x + scale · B A x.

The base weight is never edited: the change is added to the layer's output, and without one the layer runs untouched, so
taking a change back restores the same bits. Legend: I in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

__all__ = ["LowRank", "low_rank_term", "mounted", "mounted_apart", "mounted_change"]


@dataclass(frozen=True)
class LowRank:
    """The payload of a ``lora`` delta: for each module name (A [R, I], B [O, R]), and the scale alpha / R."""

    tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(repr=False)
    scale: float


def low_rank_term(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """scale · B A x for x [..., I]: what :func:`mounted` adds, written down; the tests hold it to this."""
    return nn.functional.linear(nn.functional.linear(x, a), b) * scale


@contextmanager
def mounted(modules: Mapping[str, nn.Module], change: LowRank | None) -> Iterator[None]:
    """While inside, each named module's output has its change added; outside, and for ``None``, it is untouched.

    The tensors are cast to the module's dtype for the products; gradients flow back through the cast.
    """
    with _hooked(modules, [] if change is None else [(None, change)]):
        yield


@contextmanager
def mounted_apart(modules: Mapping[str, nn.Module], changes: Sequence[tuple[slice, LowRank | None]]) -> Iterator[None]:
    """As :func:`mounted`, each change on its own tokens only: a slice of axis 1 of what the modules read [B, T, I]. So
    one pass carries several models that differ by their changes."""
    with _hooked(modules, [(at, change) for at, change in changes if change is not None]):
        yield


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], changes: Sequence[tuple[slice | None, LowRank]]) -> Iterator[None]:
    terms: dict[str, list[tuple[slice | None, torch.Tensor, torch.Tensor]]] = {}
    for at, change in changes:
        for name, (a, b) in change.tensors.items():
            weight = modules[name].get_parameter("weight")
            # The scale goes into the small matrix once, not into the large output at every pass.
            pair = (a.to(weight.device, weight.dtype), (b * change.scale).to(weight.device, weight.dtype).t())
            terms.setdefault(name, []).append((at, *pair))
    handles = []
    try:
        for name, some in terms.items():
            handles.append(modules[name].register_forward_hook(_adder(some)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def mounted_change(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(A [R, I], scale · Bᵀ [R, O]) where :func:`mounted` has put one change on the module and there is no other hook;
    None where there is nothing of the kind."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    terms = getattr(hooks[0], "terms", None) if len(hooks) == 1 else None
    return None if not terms or terms[0][0] is not None else terms[0][1:]


def _adder(terms: Sequence[tuple[slice | None, torch.Tensor, torch.Tensor]]):  # type: ignore[no-untyped-def]
    def add(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if terms[0][0] is None:
            return _added(output, args[0], *terms[0][1:])
        output = output.clone()
        for at, a, b in terms:
            output[:, at] = _added(output[:, at], args[0][:, at], a, b)
        return output

    add.terms = terms  # type: ignore[attr-defined]
    return add


def _added(output: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """output [..., O] + x [..., I] Aᵀ b, with b [R, O]: the thin product first, the sum in the second's epilogue."""
    thin = nn.functional.linear(x, a)
    flat = output.reshape(-1, output.shape[-1])
    return torch.addmm(flat, thin.reshape(-1, thin.shape[-1]), b).view(output.shape)
