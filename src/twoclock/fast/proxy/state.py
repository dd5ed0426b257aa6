"""The channel's state: how much of each shift is deployed on each task, as a value with canonical bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from twoclock.errors import StoreError
from twoclock.hashing import canonical_json

__all__ = ["ProxyState", "dump_state", "load_state"]

FORMAT = 1


@dataclass(frozen=True)
class ProxyState:
    """``amounts``: by task (``*``: every one), by shift, its alpha; what is 0 is not there. ``known``: for each shift
    that was ever deployed, the id of what it is at alpha 1: the experts themselves are kept where they came from."""

    base: str
    """Content hash of the policy's base weights."""
    amounts: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()
    known: tuple[tuple[str, str], ...] = ()

    def alphas(self, key: str) -> dict[str, float]:
        return dict(dict(self.amounts).get(key, ()))

    def with_alpha(self, key: str, name: str, alpha: float, shift_id: str) -> ProxyState:
        """The state with one amount changed."""
        here = {**self.alphas(key), name: alpha}
        all_of = {**dict(self.amounts), key: tuple(sorted((n, a) for n, a in here.items() if a != 0.0))}
        return replace(
            self,
            amounts=tuple(sorted((k, some) for k, some in all_of.items() if some)),
            known=tuple(sorted({**dict(self.known), name: shift_id}.items())),
        )


def dump_state(state: ProxyState) -> bytes:
    """Canonical JSON: equal states give equal bytes."""
    amounts = {key: dict(some) for key, some in state.amounts}
    data = {"channel": "proxy", "format": FORMAT, "base": state.base, "amounts": amounts, "known": dict(state.known)}
    return canonical_json(data).encode("utf-8")


def load_state(blob: bytes) -> ProxyState:
    """The inverse of :func:`dump_state`. Raises StoreError for other bytes, and for another format."""
    try:
        data = json.loads(blob)
        if data["channel"] != "proxy":
            raise ValueError(f"it is a state of the channel {data['channel']!r}")
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, this version reads {FORMAT}")
        known: Mapping[str, str] = {str(name): str(digest) for name, digest in data["known"].items()}
        amounts = []
        for key, some in sorted(data["amounts"].items()):
            if not some or not all(math.isfinite(a) and a != 0.0 and n in known for n, a in some.items()):
                raise ValueError(f"the amounts of {key!r} are {some!r}")
            amounts.append((key, tuple(sorted((n, float(a)) for n, a in some.items()))))
        return ProxyState(str(data["base"]), tuple(amounts), tuple(sorted(known.items())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"not a state of the channel 'proxy' ({len(blob)} bytes): {error}") from error
