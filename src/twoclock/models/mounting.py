"""Puts a change of weights into a model for the length of a block: terms beside the products of linear layers (low-rank
changes, changes of singular values), whole parameters by standing in their place. Outside, and for no change, the
model runs untouched.

Three ways, each a context manager of :class:`Mounting`: ``mount(change)`` for a whole pass; ``mount.apart([(slice,
change), ...])`` for parts of a pass's tokens; and ``mount.rows([None, change, other])`` for a batch whose rows are
under different changes, or none::

    with mount.rows([None, expert]) as rows:
        rows.assign([0, 1, 1, 0])  # before each pass: for each row (each token, where a row has several) its change
        model(tokens)

A memory that is read beside a change (:class:`~twoclock.models.retrofit.hooks.Softened`) is mounted for a whole pass.
Rows under None take the module's own product, bit for bit. :meth:`Mounting.has_rows` says which changes can stand in a
batch of others. See :mod:`twoclock.nn.rowwise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from twoclock.models.retrofit.hooks import Softened, reading
from twoclock.models.svd import Spectra
from twoclock.nn.full import FullChange, changed_weights, in_place_of
from twoclock.nn.lowrank import LowRank, low_rank_terms
from twoclock.nn.rowwise import Rows, mounted_rows
from twoclock.nn.summed import Summed
from twoclock.nn.svf import SingularChange, singular_terms
from twoclock.nn.terms import Term, mounted_terms, together

__all__ = ["CHANGES", "Change", "Mounting"]

Change = LowRank | SingularChange | FullChange | Softened | Summed
CHANGES = (LowRank, SingularChange, FullChange, Softened, Summed)


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
        if isinstance(change, Softened):
            return self._softened(change)
        if isinstance(change, FullChange):
            return in_place_of(self.model, self._weights(change))
        if isinstance(change, Summed) and change.whole is not None:
            return self._beside_whole(change, change.whole)
        return mounted_terms(self.linears, self._placed(None, change))

    def apart(self, changes: Sequence[tuple[slice, Change | None]]) -> AbstractContextManager[None]:
        """Each change on its own tokens only: a slice of axis 1 of what the modules read [B, T, I]."""
        return mounted_terms(self.linears, [placed for at, change in changes for placed in self._placed(at, change)])

    def rows(self, changes: Sequence[Change | None], *, bare: bool = False) -> AbstractContextManager[Rows]:
        """Each change on the rows that are assigned to its place in ``changes``. ``bare``: rows under a change of all
        singular values go without the base's product, which costs less and rounds differently."""
        return mounted_rows(self.linears, [self._all_terms(change) for change in changes], bare=bare)

    def has_rows(self, change: Change | None) -> bool:
        """Whether the change can be put on some tokens of a pass alone: it is no change of whole parameters, none with
        a memory beside it, nor of the head, which is handed other rows than the layers are."""
        if isinstance(change, Summed):
            return all(self.has_rows(part) for part in change.parts)
        return not isinstance(change, FullChange | Softened) and (
            change is None or self._head_name not in change.tensors
        )

    def terms(self, change: Change) -> dict[str, Term]:
        """What the change adds to each module. Raises TypeError for one that adds nothing but replaces."""
        if isinstance(change, LowRank):
            return low_rank_terms(self.linears, change)
        if isinstance(change, SingularChange):
            return singular_terms(change, self.spectra.of(change))
        raise TypeError("a change of whole parameters, or one beside a memory, has no terms; mount it alone")

    def _all_terms(self, change: Change | None) -> dict[str, tuple[Term, ...]]:
        """By module, what the change and all its parts add."""
        parts = change.parts if isinstance(change, Summed) else () if change is None else (change,)
        found: dict[str, tuple[Term, ...]] = {}
        for part in parts:
            for name, term in self.terms(part).items():
                found[name] = (*found.get(name, ()), term)
        return {name: together(terms) for name, terms in found.items()}

    def _placed(self, at: slice | None, change: Change | None) -> list[tuple[slice | None, dict[str, Term]]]:
        """The terms of a change, layer upon layer: each mapping has one a module."""
        terms = self._all_terms(change)
        deepest = max(map(len, terms.values()), default=0)
        return [(at, {n: some[depth] for n, some in terms.items() if len(some) > depth}) for depth in range(deepest)]

    @contextmanager
    def _beside_whole(self, change: Summed, whole: FullChange) -> Iterator[None]:
        # What is added belongs to the base's own matrices: it is found before others stand in their place.
        added = [placed for part in change.added for placed in self._placed(None, part)]
        with ExitStack() as held:
            held.enter_context(in_place_of(self.model, self._weights(whole)))
            held.enter_context(mounted_terms(self.linears, added))
            yield

    @contextmanager
    def _softened(self, change: Softened) -> Iterator[None]:
        with self(change.change), reading(self.model, change.memory):
            yield

    def _weights(self, change: FullChange) -> dict[str, torch.Tensor]:
        if any(t.requires_grad for t in change.tensors.values()):
            return changed_weights(self.model, change)
        if self._last is None or self._last[0] is not change:
            with torch.no_grad():
                self._last = (change, changed_weights(self.model, change))
        return self._last[1]
