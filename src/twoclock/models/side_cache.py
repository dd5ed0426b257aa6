"""A model read through transformers' own cache, for callers that do not tell it what became of its rows.

Each row of the cache carries the tokens that it has read. A call takes up those rows whose tokens its own continue,
whichever rows they are now (beams that split, rows that changed places), drops what was taken back, and reads anew what
it cannot find. So it is right whatever happens between two calls, and quick where little does.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from twoclock.models.mounting import Change, Mounting
from twoclock.models.shared_attention import head_module

__all__ = ["Row", "SideCache", "head_rows"]

Row = tuple[int, ...]


@dataclass
class _Cached:
    """What a side has read: rows of tokens behind padding on the left, and the keys and values of its layers."""

    rows: list[Row]
    mask: torch.Tensor = field(repr=False)
    """[R, C] int64, 0 at padding."""
    cache: Any = field(repr=False)


class SideCache:
    """One model under one change of its weights; see the module. ``mount``: what mounts changes on this model, where
    there is one already."""

    def __init__(self, model: Any, change: Change | None, mount: Mounting | None = None) -> None:
        self.model, self.change = model, change
        self.rows = head_rows(model)
        linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        self._mount = mount or Mounting(model, linears)
        self._placed = "position_ids" in inspect.signature(model.forward).parameters
        self._cached: _Cached | None = None

    def forget(self) -> None:
        self._cached = None

    @torch.no_grad()
    def logits(self, rows: Sequence[Row]) -> torch.Tensor:
        """The logits [R, S] after the last token of each row."""
        with self._mount(self.change):
            held, self._cached = self._continued(rows), None
            return self._read_on(rows, held) if held is not None else self._read_anew(rows)

    def _continued(self, rows: Sequence[Row]) -> _Cached | None:
        """The cache's rows that these continue, in their order, cut back to what they share; None where there is no
        such cache, or where its rows would have to be cut at different places."""
        cached = self._cached
        if cached is None:
            return None
        at = {row: i for i, row in enumerate(cached.rows)}
        parents = [at.get(row[:-1], -1) for row in rows]
        if -1 not in parents:
            return _picked(cached, parents, 0)
        return self._cut_back(rows, cached)

    def _cut_back(self, rows: Sequence[Row], cached: _Cached) -> _Cached | None:
        """Where tokens were taken back or several were added: all rows by as many."""
        best = [max(range(len(cached.rows)), key=lambda i, row=row: _common(row, cached.rows[i])) for row in rows]  # type: ignore[misc]
        drop = max(
            len(cached.rows[i]) - min(_common(row, cached.rows[i]), len(row) - 1)
            for row, i in zip(rows, best, strict=True)
        )
        kept = [cached.rows[i][: len(cached.rows[i]) - drop] for i in best]
        more = {len(row) - len(some) for row, some in zip(rows, kept, strict=True)}
        if len(more) != 1 or min(map(len, kept)) < 1 or (drop and not _can_crop(cached.cache)):
            return None
        return _picked(cached, best, drop)

    def _read_on(self, rows: Sequence[Row], held: _Cached) -> torch.Tensor:
        new = len(rows[0]) - len(held.rows[0])
        ids = torch.tensor([row[-new:] for row in rows], device=self.model.device)
        mask = torch.cat([held.mask, held.mask.new_ones(len(rows), new)], dim=1)
        return self._pass(rows, ids, mask, held.cache)

    def _read_anew(self, rows: Sequence[Row]) -> torch.Tensor:
        width = max(map(len, rows))
        ids = torch.tensor([(0,) * (width - len(row)) + row for row in rows], device=self.model.device)
        real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        return self._pass(rows, ids, real, None)

    def _pass(self, rows: Sequence[Row], ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        told = {} if bool(mask.all()) else {"attention_mask": mask}
        if self._placed:
            told["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **told)
        made = getattr(out, "past_key_values", None)
        # A model without a cache, or with one that cannot follow its rows, reads everything anew each time.
        self._cached = None if not hasattr(made, "reorder_cache") else _Cached(list(rows), mask, made)
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits


def _picked(cached: _Cached, parents: Sequence[int], drop: int) -> _Cached:
    """These rows of the cache, in this order, without their last ``drop`` tokens."""
    for layer in cached.cache.layers if drop else ():
        layer.keys, layer.values = layer.keys[:, :, :-drop], layer.values[:, :, :-drop]
    if list(parents) != list(range(len(cached.rows))):
        cached.cache.reorder_cache(torch.tensor(parents, device=cached.mask.device))
    mask = cached.mask[list(parents)]
    kept = [cached.rows[i][: len(cached.rows[i]) - drop] for i in parents]
    return _Cached(kept, mask[:, : mask.shape[1] - drop], cached.cache)


def _can_crop(cache: Any) -> bool:
    """Only layers that keep every key can be cut back; those with a window or a running state cannot."""
    layers = getattr(cache, "layers", None) or ()
    return len(layers) > 0 and all(type(layer).__name__ == "DynamicLayer" for layer in layers)


def _common(one: Row, other: Row) -> int:
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])


def head_rows(model: Any) -> int:
    """How many ids the model has logits for."""
    weight: torch.Tensor = head_module(model).weight  # type: ignore[assignment]
    return int(weight.shape[0])
