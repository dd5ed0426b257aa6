"""Puts a change of weights into a model for the length of a block: low-rank changes by hooks, whole parameters by
standing in their place. Outside, and for no change, the model runs untouched."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from twoclock.nn.full import FullChange, changed_weights, in_place_of
from twoclock.nn.lowrank import LowRank, mounted

__all__ = ["Change", "Mounting"]

Change = LowRank | FullChange


class Mounting:
    """Mounts changes on one model. Remembers the last whole-parameter change's weights: a round mounts the same one
    many times, and the sum costs as much as it reads."""

    def __init__(self, model: Any, linears: Mapping[str, torch.nn.Module]) -> None:
        self.model, self.linears = model, linears
        self._last: tuple[FullChange, dict[str, torch.Tensor]] | None = None

    def __call__(self, change: Change | None) -> AbstractContextManager[None]:
        if isinstance(change, FullChange):
            return in_place_of(self.model, self._weights(change))
        return mounted(self.linears, change)

    def _weights(self, change: FullChange) -> dict[str, torch.Tensor]:
        if any(t.requires_grad for t in change.tensors.values()):
            return changed_weights(self.model, change)
        if self._last is None or self._last[0] is not change:
            with torch.no_grad():
                self._last = (change, changed_weights(self.model, change))
        return self._last[1]
