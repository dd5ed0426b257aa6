"""Mixtures of changes of singular values: z' − 1 = Σ_k α_k (z_k − 1), an α for a whole expert, a layer or a vector.

What is mixed is what was trained, the offset from z = 1. So α = 0 is the base, a single α = 1 is that expert, and the
mixture's matrices are the same mixture of the experts' matrices, whatever the sum of the α (Transformer²,
arXiv:2501.06252, section 3.2, mixes z itself and agrees where the α sum to 1). Nothing is divided by, so no finite α
gives NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch

from twoclock.errors import ConfigError, NumericsError, unknown_name
from twoclock.nn.summed import Summed, summed
from twoclock.nn.svf import Factoring, SingularChange

__all__ = ["GRAINS", "amounts_by_module", "mixed", "places"]

GRAINS = ("expert", "layer", "vector")
"""What has an α of its own: a whole expert, each layer of it, or each of its vectors (one a matrix)."""


def places(change: SingularChange, grain: str) -> tuple[str, ...]:
    """The names of what has an α of its own, in a fixed order; a layer's is the first number in its modules' names."""
    if grain not in GRAINS:
        raise ConfigError(unknown_name("grain", grain, GRAINS))
    if grain == "expert":
        return ("*",)
    found = {_place(name, grain) for name in change.offsets}
    return tuple(sorted(found, key=lambda place: (len(place), place) if place.isdigit() else (1000, place)))


def amounts_by_module(change: SingularChange, grain: str, amounts: Sequence[float]) -> dict[str, float]:
    """The α of each module. Raises ConfigError for another number of amounts than there are places, NumericsError for
    one that is not finite."""
    known = places(change, grain)
    if len(amounts) != len(known):
        raise ConfigError(f"a mixture by {grain} of this expert has {len(known)} amounts; got {len(amounts)}")
    if wrong := [amount for amount in amounts if not math.isfinite(amount)]:
        raise NumericsError(f"an expert cannot be mixed in by {wrong[0]}: amounts are finite numbers")
    by_place = dict(zip(known, map(float, amounts), strict=True))
    return {name: by_place["*" if grain == "expert" else _place(name, grain)] for name in change.offsets}


def mixed(experts: Sequence[tuple[SingularChange, Mapping[str, float]]]) -> SingularChange | Summed | None:
    """The payload of a mixture: each expert with the α of each of its modules; None where nothing is left of any.

    Experts of the same matrices are one change; others, of other layers or other factorings, stand beside each other as
    a sum. Raises NumericsError where the mixture would hold NaN or infinity.
    """
    found: dict[tuple[str, Factoring], dict[str, torch.Tensor]] = {}
    for change, amounts in experts:
        if not any(amounts.values()):
            continue
        into = found.setdefault((change.spectrum, change.factoring), {})
        for name, offset in change.offsets.items():
            part = offset if amounts[name] == 1.0 else offset * amounts[name]
            into[name] = into[name] + part if name in into else part
    for offsets in found.values():
        for name, offset in offsets.items():
            if not bool(torch.isfinite(offset).all()):
                raise NumericsError(f"the mixture of experts has NaN or infinity in it at {name}; it was refused")
    mixture: SingularChange | Summed | None = summed(
        *(SingularChange(offsets, factoring, s) for (s, factoring), offsets in found.items())
    )
    return mixture


def _place(module: str, grain: str) -> str:
    if grain == "vector":
        return module
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    return number[1] if number else module
