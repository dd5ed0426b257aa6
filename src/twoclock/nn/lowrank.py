"""Low-rank changes of linear layers (LoRA; Hu et al., arXiv:2106.09685): W' x = W x + scale · B A x.

The base weight is never edited: the change is added to the layer's output, and without one the layer runs untouched, so
taking a change back restores the same bits. Legend: I in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import nn

from twoclock.nn.terms import Term, mounted_terms

__all__ = ["LowRank", "low_rank_term", "low_rank_terms", "mounted", "mounted_apart", "mounted_change"]


@dataclass(frozen=True)
class LowRank:
    """The payload of a ``lora`` delta: for each module name (A [R, I], B [O, R]), and the scale alpha / R."""

    tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(repr=False)
    scale: float


def low_rank_term(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """scale · B A x for x [..., I]: what :func:`mounted` adds, written down; the tests hold it to this."""
    return nn.functional.linear(nn.functional.linear(x, a), b) * scale


def low_rank_terms(modules: Mapping[str, nn.Module], change: LowRank) -> dict[str, Term]:
    """The change as terms in each module's dtype and device; gradients flow back through the casts."""
    terms = {}
    for name, (a, b) in change.tensors.items():
        weight = modules[name].get_parameter("weight")
        # The scale goes into the small matrix once, not into the large output at every pass.
        q = (b * change.scale).to(weight.device, weight.dtype).t()
        terms[name] = Term(a.to(weight.device, weight.dtype), q)
    return terms


def mounted(modules: Mapping[str, nn.Module], change: LowRank | None) -> AbstractContextManager[None]:
    """While inside, each named module's output has its change added; outside, and for ``None``, it is untouched.

    The tensors are cast to the module's dtype for the products; gradients flow back through the cast.
    """
    return mounted_terms(modules, [] if change is None else [(None, low_rank_terms(modules, change))])


def mounted_apart(
    modules: Mapping[str, nn.Module], changes: Sequence[tuple[slice, LowRank | None]]
) -> AbstractContextManager[None]:
    """As :func:`mounted`, each change on its own tokens only: a slice of axis 1 of what the modules read [B, T, I]. So
    one pass carries several models that differ by their changes."""
    some = [(at, low_rank_terms(modules, change)) for at, change in changes if change is not None]
    return mounted_terms(modules, some)


def mounted_change(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(A [R, I], scale · Bᵀ [R, O]) where :func:`mounted` has put one change on the module and there is no other hook;
    None where there is nothing of the kind."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    terms = getattr(hooks[0], "terms", None) if len(hooks) == 1 else None
    if not terms or len(terms) > 1 or terms[0][0] is not None or terms[0][1].gate is not None:
        return None
    return terms[0][1].p, terms[0][1].q
