"""A memory beside the model as plain JSON and back. Only its name is kept: what comes back has the id that it had, but
cannot be read."""

from __future__ import annotations

from collections.abc import Mapping

from twoclock.types import SoftState

__all__ = ["plain_soft", "soft_of"]


def plain_soft(soft: SoftState | None) -> dict[str, str]:
    """Empty for none."""
    return {} if soft is None else {"id": soft.id, "kind": soft.kind, "base": soft.base}


def soft_of(plain: Mapping[str, str]) -> SoftState | None:
    """The inverse of :func:`plain_soft`, up to the payload."""
    return SoftState(plain["id"], plain["kind"], plain["base"], None) if plain else None
