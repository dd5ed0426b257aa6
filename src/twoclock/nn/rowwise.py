"""Many changes in one pass, each on rows of its own: a batch whose rows are under different LoRA or SVF changes, or
under none, is one batch.

At each module the changes of one kind are one pair of products with a gate for each row between them: SVF changes of
one base share P = Vᵀ and Q = Uᵀ as they are, low-rank ones stand side by side (P = [A_1; A_2; ...]) and a row's gate is
1 at its own ranks and 0 at the others'. So the cost follows from the rows, not from how many changes they are under. A
change may be a sum of terms, which then stand in several groups. A row without a change is taken by the module's own
product, and nothing is added to it.

Legend: N rows of a pass (all axes of a module's input but the last, flattened), K changes, I in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from twoclock.nn.terms import Term, together

__all__ = ["Gated", "Picked", "Rows", "mounted_groups", "mounted_rows"]

FEW_ROWS = 256
"""Up to so many rows, as in decoding, the gates that were gathered for them are kept from pass to pass."""


@dataclass(frozen=True, eq=False)
class Picked:
    """The rows of a pass that are under some of the changes."""

    rows: torch.Tensor | None
    """Their numbers [n]; None: every row of the pass."""
    owners: torch.Tensor | int
    """The change of each [n], or the one of all of them."""
    rest: torch.Tensor | None
    """The numbers of the other rows; None where there is no other."""
    gates: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)
    """What :meth:`Gated.gate` has found, by the id of the group."""


class Rows:
    """Which change each row of the next passes is under: assigned before a pass, read by the mounted modules."""

    def __init__(self, num_changes: int, device: torch.device) -> None:
        self._num, self._device = num_changes, device
        self._owners: torch.Tensor | int | None = None
        self._picked: dict[tuple[int, ...], Picked | None] = {}

    def assign(self, owners: int | Sequence[int] | torch.Tensor) -> None:
        """``owners[n]`` is the number of row n's change, as :func:`mounted_rows` was given them; one number: the change
        of all rows, however many a pass has. Raises ValueError for a number that no change has."""
        if not isinstance(owners, int):
            owners = torch.as_tensor(owners, dtype=torch.long).reshape(-1)
            if isinstance(self._owners, torch.Tensor) and torch.equal(owners, self._owners.cpu()):
                return
        low, high = (owners, owners) if isinstance(owners, int) else _range(owners)
        if low < 0 or high >= self._num:
            wrong = low if low < 0 else high
            raise ValueError(f"a row was assigned to change {wrong}, and there are {self._num}, counted from 0")
        if not isinstance(owners, int):
            owners = owners.to(self._device)
        self._owners, self._picked = owners, {}

    def picked(self, members: tuple[int, ...], count: int) -> Picked | None:
        """The rows of a pass of ``count`` that are under a change in ``members``; None where there is none. Raises
        ValueError where another number of rows was assigned, or none was."""
        owners = self._owners
        if owners is None:
            raise ValueError("no rows were assigned to the mounted changes; call rows.assign(owners) before the pass")
        if isinstance(owners, int):
            return Picked(None, owners, None) if owners in members else None
        if len(owners) != count:
            raise ValueError(f"a pass has {count} rows, but {len(owners)} were assigned to changes")
        if members not in self._picked:
            table = torch.zeros(self._num, dtype=torch.bool, device=self._device)
            table[list(members)] = True
            self._picked[members] = _pick(owners, table[owners])
        return self._picked[members]


@dataclass(frozen=True, eq=False)
class Gated:
    """Changes of one kind at one module: x ↦ (gates[k] ∘ P x) Q for a row under change k."""

    p: torch.Tensor = field(repr=False)
    """[R, I]."""
    q: torch.Tensor = field(repr=False)
    """[R, O]."""
    gates: torch.Tensor = field(repr=False)
    """[K, R] in the module's dtype; zeros for changes that are no members."""
    members: tuple[int, ...]
    bare: bool
    """Whether the product is the module's whole output, less its bias, instead of something added to it."""
    lasts: bool
    """Whether P and Q outlive the mount."""

    def gate(self, picked: Picked) -> torch.Tensor:
        """[n, R], or [R] where one change has all the rows."""
        count = 1 if isinstance(picked.owners, int) else len(picked.owners)
        if self.gates.requires_grad or count > FEW_ROWS:
            return self.gates[picked.owners]
        if id(self) not in picked.gates:
            picked.gates[id(self)] = self.gates[picked.owners]
        return picked.gates[id(self)]


@contextmanager
def mounted_rows(
    modules: Mapping[str, nn.Module], changes: Sequence[Mapping[str, Term | Sequence[Term]]], *, bare: bool = False
) -> Iterator[Rows]:
    """While inside, each module's output is, row by row, that under the change which the row was assigned to; an empty
    change is the base, several terms are their sum. ``bare``: where a term can stand for the base's product, it does,
    on the rows it has.

    Raises ValueError at a pass for which no rows were assigned. Gradients flow into the terms.
    """
    names = list(dict.fromkeys(name for change in changes for name in change))
    device = modules[names[0]].get_parameter("weight").device if names else torch.device("cpu")
    rows = Rows(len(changes), device)
    mounted: list[nn.Module] = []
    try:
        for name in names:
            groups = _groups([_terms(change.get(name, ())) for change in changes], bare)
            module = modules[name]
            if "forward" in vars(module):
                raise ValueError(f"the forward pass of {name} is someone else's already; changes are mounted once")
            module.forward = _Forward(module, module.forward, groups, rows)
            mounted.append(module)
        yield rows
    finally:
        for module in mounted:
            del module.forward


def mounted_groups(module: nn.Module) -> tuple[Rows, Sequence[Gated]] | None:
    """What :func:`mounted_rows` has put on the module now."""
    forward = vars(module).get("forward")
    return (forward.rows, forward.groups) if isinstance(forward, _Forward) else None


class _Forward:
    """Stands in place of a linear module's forward pass."""

    def __init__(
        self, module: nn.Module, base: Callable[[torch.Tensor], torch.Tensor], groups: Sequence[Gated], rows: Rows
    ) -> None:
        self.bias, self.base, self.groups, self.rows = getattr(module, "bias", None), base, groups, rows

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = self._base(flat)
        for group in self.groups:
            picked = None if group.bare else self.rows.picked(group.members, len(flat))
            if picked is None:
                continue
            if picked.rows is None:
                out = torch.addmm(out, _thin(group, picked, flat), group.q)
            else:
                out.index_add_(0, picked.rows, _thin(group, picked, flat[picked.rows]) @ group.q)
        return out.view(*x.shape[:-1], out.shape[-1])

    def _base(self, flat: torch.Tensor) -> torch.Tensor:
        """The module's own product, and in place of it, on rows of a bare group, that group's."""
        group = next((g for g in self.groups if g.bare), None)
        picked = None if group is None else self.rows.picked(group.members, len(flat))
        if group is None or picked is None:
            return self.base(flat)
        if picked.rows is None:
            return self._bare(group, picked, flat)
        own = self._bare(group, picked, flat[picked.rows])
        out = own.new_empty(len(flat), own.shape[-1]).index_copy_(0, picked.rows, own)
        return out if picked.rest is None else out.index_copy_(0, picked.rest, self.base(flat[picked.rest]))

    def _bare(self, group: Gated, picked: Picked, x: torch.Tensor) -> torch.Tensor:
        thin = _thin(group, picked, x)
        return thin @ group.q if self.bias is None else torch.addmm(self.bias, thin, group.q)


def _thin(group: Gated, picked: Picked, x: torch.Tensor) -> torch.Tensor:
    thin, gate = nn.functional.linear(x, group.p), group.gate(picked)
    return thin * gate if thin.requires_grad or gate.requires_grad else thin.mul_(gate)


def _terms(some: Term | Sequence[Term]) -> tuple[Term, ...]:
    return (some,) if isinstance(some, Term) else together(some)


def _groups(terms: Sequence[tuple[Term, ...]], bare: bool) -> list[Gated]:
    """The terms of one module, by change: those with a gate that share P and Q together, all others side by side. A
    group that stands in the base's place is the first, since it is written where others are added."""
    lasting: dict[int, dict[int, Term]] = {}
    own: list[tuple[int, Term]] = []
    for k, some in enumerate(terms):
        for term in some:
            if term.lasts:
                lasting.setdefault(id(term.p), {})[k] = term
            else:
                own.append((k, term))
    found = []
    for members in lasting.values():
        first = next(iter(members.values()))
        found.append(_gated(members, len(terms), bare and first.base is not None))
    if own:
        found.append(_side_by_side(own, len(terms)))
    # One product can take the base's place; of several factorings of a base, the others are added.
    if sum(g.bare for g in found) > 1:
        return _groups(terms, False)
    return sorted(found, key=lambda group: not group.bare)


def _gated(members: Mapping[int, Term], count: int, bare: bool) -> Gated:
    first = next(iter(members.values()))
    gates = torch.stack([term.gate for term in members.values() if term.gate is not None])
    if bare and first.base is not None:
        gates = gates + first.base
    gates = gates.to(first.p)
    if len(members) < count:
        at = torch.tensor(list(members), device=gates.device)
        gates = gates.new_zeros(count, gates.shape[1]).index_copy(0, at, gates)
    return Gated(first.p, first.q, gates, tuple(members), bare, True)


def _side_by_side(own: Sequence[tuple[int, Term]], count: int) -> Gated:
    p, q = torch.cat([t.p for _, t in own]), torch.cat([t.q for _, t in own])
    gates = p.new_zeros(count, p.shape[0])
    start = 0
    for k, term in own:
        gates[k, start : start + term.p.shape[0]] = 1.0
        start += term.p.shape[0]
    return Gated(p, q, gates, tuple(dict.fromkeys(k for k, _ in own)), False, False)


def _pick(owners: torch.Tensor, mine: torch.Tensor) -> Picked | None:
    rows = mine.nonzero()[:, 0]
    if not len(rows):
        return None
    if len(rows) == len(owners):
        return Picked(None, owners, None)
    return Picked(rows, owners[rows], (~mine).nonzero()[:, 0])


def _range(owners: torch.Tensor) -> tuple[int, int]:
    return (int(owners.min()), int(owners.max())) if len(owners) else (0, 0)
