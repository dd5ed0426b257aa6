"""Shifts of the logits as plain JSON and back. Of changes of weights only the names are kept: what comes back has the
ids that it had, but its changes cannot be mounted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twoclock.types import Delta, Shift, Side, SideModel

__all__ = ["plain_shifts", "shifts_of"]


def plain_shifts(shifts: Sequence[Shift]) -> list[dict[str, Any]]:
    """One mapping a shift, whose ``expert`` and ``anti`` are mappings too, empty for the policy's own base."""
    return [
        {
            "expert": _plain(shift.expert),
            "anti": _plain(shift.anti),
            "alpha": list(shift.alphas),
            "plausible": float(shift.plausible),
            "mapped": shift.mapped,
            "name": shift.name,
        }
        for shift in shifts
    ]


def shifts_of(plain: Sequence[dict[str, Any]]) -> tuple[Shift, ...]:
    """The inverse of :func:`plain_shifts`, up to the payloads."""
    return tuple(
        Shift(
            expert=_side(one["expert"]),
            anti=_side(one["anti"]),
            alpha=tuple(one["alpha"]),
            plausible=one["plausible"],
            mapped=one["mapped"],
            name=one["name"],
        )
        for one in plain
    )


def _plain(side: Side) -> dict[str, Any]:
    if side is None:
        return {}
    if isinstance(side, Delta):
        return {"delta": side.id, "kind": side.kind, "base": side.base}
    return {"weights": side.weights, "source": side.source} | (_plain(side.delta) if side.delta else {})


def _side(plain: dict[str, Any]) -> Side:
    delta = Delta(plain["delta"], plain["kind"], plain["base"], None) if "delta" in plain else None
    return SideModel(weights=plain["weights"], source=plain["source"], delta=delta) if "weights" in plain else delta
