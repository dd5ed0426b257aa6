"""Several changes of weights as one: W' x = W x + Σ_k Δ_k x.

Each Δ_k is a change of the base's own matrices, so the sum does not depend on the order, and taking one part out leaves
the others as they were. A change of whole parameters may be among them once: what else adds, adds to the base's
matrices there too, not to those that were put in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twoclock.nn.full import FullChange

__all__ = ["Summed", "summed"]


@dataclass(frozen=True, eq=False)
class Summed:
    """The payload of a sum: at least two payloads of deltas of one base."""

    parts: tuple[Any, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ValueError(f"a sum has at least two changes; got {len(self.parts)}")
        if any(isinstance(part, Summed) for part in self.parts):
            raise ValueError("a sum of sums is one sum; make it with summed()")
        if sum(isinstance(part, FullChange) for part in self.parts) > 1:
            raise ValueError("two changes of whole parameters would each stand in the other's place: they have no sum")

    @property
    def tensors(self) -> Mapping[str, Any]:
        """The first part's by module name, then the next's: what names are changed."""
        return {name: tensor for part in reversed(self.parts) for name, tensor in part.tensors.items()}

    @property
    def whole(self) -> FullChange | None:
        """The part that stands in the place of parameters, where there is one."""
        return next((part for part in self.parts if isinstance(part, FullChange)), None)

    @property
    def added(self) -> tuple[Any, ...]:
        """The parts that are added beside the base's products."""
        return tuple(part for part in self.parts if not isinstance(part, FullChange))


def summed(*changes: Any) -> Any:
    """The sum of payloads; None, the base, adds nothing. One alone is itself."""
    parts: list[Any] = []
    for change in changes:
        parts += change.parts if isinstance(change, Summed) else [] if change is None else [change]
    return Summed(tuple(parts)) if len(parts) > 1 else parts[0] if parts else None
