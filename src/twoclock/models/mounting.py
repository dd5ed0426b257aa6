"""Puts a change of weights into a model for the length of a block: terms beside the products of linear layers (low-rank
changes, changes of singular values), whole parameters by standing in their place. Outside, and for no change, the
model runs untouched.

Three ways, each a context manager of :class:`Mounting`: ``mount(change)`` for a whole pass; ``mount.apart([(slice,
change), ...])`` for parts of a pass's tokens; and ``mount.rows([None, change, other])`` for a batch whose rows are
under different changes, or none::

    with mount.rows([None, expert]) as rows:
        rows.assign([0, 1, 1, 0])  # before each pass: for each row (each token, where a row has several) its change
        model(tokens)

Rows under None take the module's own product, bit for bit. :meth:`Mounting.has_rows` says which changes can stand in a
batch of others. See :mod:`twoclock.nn.rowwise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from twoclock.models.svd import Spectra
from twoclock.nn.full import FullChange, changed_weights, in_place_of
from twoclock.nn.lowrank import LowRank, low_rank_terms
from twoclock.nn.rowwise import Rows, mounted_rows
from twoclock.nn.svf import SingularChange, singular_terms
from twoclock.nn.terms import Term, mounted_terms

__all__ = ["CHANGES", "Change", "Mounting"]

Change = LowRank | SingularChange | FullChange
CHANGES = (LowRank, SingularChange, FullChange)


class Mounting:
    """Mounts changes on one model. Remembers the last whole-parameter change's weights: a round mounts the same one
    many times, and the sum costs as much as it reads."""

    def __init__(self, model: Any, linears: Mapping[str, torch.nn.Module], spectra: Spectra | None = None) -> None:
        self.model, self.linears = model, linears
        self.spectra = spectra or Spectra(linears)
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        self._head_name = next((n for n, m in linears.items() if m is head), "")
        self._last: tuple[FullChange, dict[str, torch.Tensor]] | None = None

    def __call__(self, change: Change | None) -> AbstractContextManager[None]:
        """The whole model under one change."""
        if isinstance(change, FullChange):
            return in_place_of(self.model, self._weights(change))
        return mounted_terms(self.linears, [] if change is None else [(None, self.terms(change))])

    def apart(self, changes: Sequence[tuple[slice, Change | None]]) -> AbstractContextManager[None]:
        """Each change on its own tokens only: a slice of axis 1 of what the modules read [B, T, I]."""
        return mounted_terms(self.linears, [(at, self.terms(change)) for at, change in changes if change is not None])

    def rows(self, changes: Sequence[Change | None], *, bare: bool = False) -> AbstractContextManager[Rows]:
        """Each change on the rows that are assigned to its place in ``changes``. ``bare``: rows under a change of all
        singular values go without the base's product, which costs less and rounds differently."""
        return mounted_rows(self.linears, [{} if c is None else self.terms(c) for c in changes], bare=bare)

    def has_rows(self, change: Change | None) -> bool:
        """Whether the change can be put on some tokens of a pass alone: it is no change of whole parameters, nor of the
        head, which is handed other rows than the layers are."""
        return not isinstance(change, FullChange) and (change is None or self._head_name not in change.tensors)

    def terms(self, change: Change) -> dict[str, Term]:
        """What the change adds to each module. Raises TypeError for one that adds nothing but replaces."""
        if isinstance(change, LowRank):
            return low_rank_terms(self.linears, change)
        if isinstance(change, SingularChange):
            return singular_terms(change, self.spectra.of(change))
        raise TypeError("a change of whole parameters has no terms; mount it alone")

    def _weights(self, change: FullChange) -> dict[str, torch.Tensor]:
        if any(t.requires_grad for t in change.tensors.values()):
            return changed_weights(self.model, change)
        if self._last is None or self._last[0] is not change:
            with torch.no_grad():
                self._last = (change, changed_weights(self.model, change))
        return self._last[1]
