"""A memory channel's state: its bank and what it has learned about retrieving, as a value with canonical bytes."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field

from twoclock.errors import StoreError
from twoclock.hashing import canonical_json
from twoclock.memory.bank import Bank

__all__ = ["MemoryState", "dump_state", "load_state"]

FORMAT = 1


@dataclass(frozen=True)
class MemoryState:
    """``learned`` is the retrieval policy's state as its own bytes; empty where it has learned nothing."""

    bank: Bank = field(default_factory=Bank)
    learned: bytes = b""


def dump_state(channel: str, state: MemoryState) -> bytes:
    """Canonical JSON around the parts' own canonical bytes: equal states give equal bytes."""
    parts = {"bank": state.bank.dump(), "learned": state.learned}
    told = {name: base64.b64encode(part).decode("ascii") for name, part in parts.items()}
    return canonical_json({"channel": channel, "format": FORMAT, **told}).encode("utf-8")


def load_state(channel: str, blob: bytes) -> MemoryState:
    """The inverse of :func:`dump_state`. Raises StoreError for other bytes, another channel's, and another format."""
    try:
        data = json.loads(blob)
        if data["channel"] != channel:
            raise ValueError(f"it is a state of the channel {data['channel']!r}")
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, this version reads {FORMAT}")
        bank, learned = (base64.b64decode(data[name], validate=True) for name in ("bank", "learned"))
        state = MemoryState(Bank.load(bank), learned)
    except (ValueError, KeyError, TypeError, AttributeError, StoreError) as error:
        raise StoreError(f"not a state of the channel '{channel}' ({len(blob)} bytes): {error}") from error
    return state
