"""The channel's state: what is mixed in on each task, as a value with canonical bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from twoclock.errors import StoreError
from twoclock.hashing import canonical_json

__all__ = ["ExpertsState", "Mixture", "dump_state", "load_state"]

FORMAT = 1
GRAINS = ("expert", "layer", "vector")


@dataclass(frozen=True)
class Mixture:
    """``amounts``: by expert, one number or one for each of its places (:func:`twoclock.nn.mixing.places`); experts of
    which nothing is mixed in are not there."""

    grain: str
    amounts: tuple[tuple[str, tuple[float, ...]], ...]

    @classmethod
    def of(cls, grain: str, amounts: Mapping[str, tuple[float, ...]]) -> Mixture:
        some = {name: tuple(float(a) + 0.0 for a in row) for name, row in amounts.items()}
        return cls(grain, tuple(sorted((name, row) for name, row in some.items() if any(row))))

    @property
    def is_base(self) -> bool:
        return not self.amounts

    @property
    def norm(self) -> float:
        """Root of the summed mean squares of each expert's amounts: how far from the base it is, 1 for one expert."""
        return math.sqrt(math.fsum(math.fsum(a * a for a in row) / len(row) for _, row in self.amounts))

    def __str__(self) -> str:
        return " + ".join(f"{_told(row)} {name}" for name, row in self.amounts) or "the base"


def _told(row: tuple[float, ...]) -> str:
    if len(set(row)) == 1:
        return f"{row[0]:.3g}"
    return f"{math.fsum(row) / len(row):.3g} ({min(row):.2g} to {max(row):.2g})"


BASE = Mixture("expert", ())


@dataclass(frozen=True)
class ExpertsState:
    """``mixtures``: by task (``*``: every one); where the base is deployed there is none. ``known``: the id of each
    expert that is deployed: the experts themselves are kept in the library."""

    base: str
    """Content hash of the policy's base weights."""
    mixtures: tuple[tuple[str, Mixture], ...] = ()
    known: tuple[tuple[str, str], ...] = ()

    def mixture(self, key: str) -> Mixture:
        return dict(self.mixtures).get(key, BASE)

    def with_mixture(self, key: str, mixture: Mixture, ids: Mapping[str, str]) -> ExpertsState:
        """The state with one task's mixture; ``ids`` has that of each expert in it."""
        all_of = {k: m for k, m in {**dict(self.mixtures), key: mixture}.items() if not m.is_base}
        names = {name for m in all_of.values() for name, _ in m.amounts}
        known = {n: i for n, i in {**dict(self.known), **ids}.items() if n in names}
        return replace(self, mixtures=tuple(sorted(all_of.items())), known=tuple(sorted(known.items())))


def dump_state(state: ExpertsState) -> bytes:
    """Canonical JSON: equal states give equal bytes."""
    mixtures = {
        key: {"grain": m.grain, "amounts": {name: list(row) for name, row in m.amounts}} for key, m in state.mixtures
    }
    data = {
        "channel": "experts", "format": FORMAT, "base": state.base, "mixtures": mixtures, "known": dict(state.known),
    }  # fmt: skip
    return canonical_json(data).encode("utf-8")


def load_state(blob: bytes) -> ExpertsState:
    """The inverse of :func:`dump_state`. Raises StoreError for other bytes, and for another format."""
    try:
        data = json.loads(blob)
        if data["channel"] != "experts":
            raise ValueError(f"it is a state of the channel {data['channel']!r}")
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, this version reads {FORMAT}")
        known = {str(name): str(digest) for name, digest in data["known"].items()}
        mixtures = []
        for key, m in sorted(data["mixtures"].items()):
            rows = {str(name): tuple(map(float, row)) for name, row in m["amounts"].items()}
            right = rows and m["grain"] in GRAINS and all(n in known and any(r) for n, r in rows.items())
            if not right or not all(math.isfinite(a) for row in rows.values() for a in row):
                raise ValueError(f"the mixture of {key!r} is {m!r}")
            mixtures.append((str(key), Mixture.of(m["grain"], rows)))
        return ExpertsState(str(data["base"]), tuple(mixtures), tuple(sorted(known.items())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"not a state of the channel 'experts' ({len(blob)} bytes): {error}") from error
