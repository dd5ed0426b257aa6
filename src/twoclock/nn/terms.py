"""What a change adds to one linear module, whatever kind of change it is: x ↦ (g ∘ P x) Q.

For a low-rank change P is A and Q the scaled Bᵀ, without a gate; for a change of singular values P is Vᵀ, the gate
s ∘ (z − 1) and Q is Uᵀ. Mounting, row-wise mounting and the lean decoder know this form alone.
Legend: I in, O out, R rank, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

__all__ = ["Term", "added", "mounted_terms", "together"]


@dataclass(frozen=True, eq=False)
class Term:
    """P [R, I] and Q [R, O] in the module's dtype and on its device; the gate [R] float32, None: ones."""

    p: torch.Tensor = field(repr=False)
    q: torch.Tensor = field(repr=False)
    gate: torch.Tensor | None = field(repr=False, default=None)
    base: torch.Tensor | None = field(repr=False, default=None)
    """What the gate takes more [R] for the same P and Q to give the module's whole output (less its bias), the base's
    product included; None where they cannot."""

    @property
    def lasts(self) -> bool:
        """Whether P and Q are the base's own, shared by all changes of the kind, and not the change's."""
        return self.gate is not None


def together(terms: Iterable[Term]) -> tuple[Term, ...]:
    """The fewest terms with the same sum: of those that share P and Q the gates add up."""
    found: list[Term] = []
    for term in terms:
        at = next((i for i, one in enumerate(found) if one.p is term.p and one.gate is not None), None)
        mine = None if at is None else found[at].gate
        if at is None or mine is None or term.gate is None:
            found.append(term)
        else:
            found[at] = replace(found[at], gate=mine + term.gate)
    return tuple(found)


Place = slice | None
"""Tokens of axis 1 that a term is for; None: all."""


@contextmanager
def mounted_terms(
    modules: Mapping[str, nn.Module], terms: Sequence[tuple[Place, Mapping[str, Term]]]
) -> Iterator[None]:
    """While inside, each named module's output has its terms added, each at its place of what the module reads
    [B, T, I], or all at None; outside it is untouched. Gradients flow into the terms."""
    by_module: dict[str, list[tuple[Place, Term]]] = {}
    for at, some in terms:
        for name, term in some.items():
            by_module.setdefault(name, []).append((at, term))
    handles = []
    try:
        for name, mine in by_module.items():
            handles.append(modules[name].register_forward_hook(_adder(mine)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(terms: Sequence[tuple[Place, Term]]) -> Callable[..., torch.Tensor]:
    def add(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if terms[0][0] is None:
            for _place, term in terms:
                output = added(output, args[0], term)
            return output
        output = output.clone()
        for at, term in terms:
            output[:, at] = added(output[:, at], args[0][:, at], term)
        return output

    add.terms = terms  # type: ignore[attr-defined]
    return add


def added(output: torch.Tensor, x: torch.Tensor, term: Term) -> torch.Tensor:
    """output [..., O] and the term of x [..., I]: the thin product first, the sum in the second's epilogue."""
    thin = nn.functional.linear(x, term.p)
    if term.gate is not None:
        thin = thin * term.gate.to(thin.dtype)
    flat = output.reshape(-1, output.shape[-1])
    return torch.addmm(flat, thin.reshape(-1, thin.shape[-1]), term.q).view(output.shape)
