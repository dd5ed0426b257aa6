"""Canonical bytes of a record of arrays: how the states of learned retrieval are kept. Exact, and no pickle.

The form: 8 bytes that name it, the length of the head (8 bytes, little-endian), the head as canonical JSON (what it is,
plain values, and of each array its name, type and shape), then the arrays' bytes, little-endian, in the order of their
names. Equal records give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from twoclock.errors import NumericsError, StoreError
from twoclock.hashing import canonical_json

__all__ = ["frozen", "pack", "unpack"]

_MAGIC = b"2CLKARR1"
_TYPES = {"<f4", "<f8", "<i4", "<i8"}


def frozen(array: np.ndarray) -> np.ndarray:
    """``array`` as a contiguous array that nobody can write to: part of a state that is a value."""
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


def pack(kind: str, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of ``values`` (plain JSON) and ``arrays`` (float32, float64, int32 or int64), of the form ``kind``.
    Raises NumericsError for NaN or infinity: no state has any."""
    heads, bodies = [], []
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if array.dtype.str not in _TYPES:
            raise TypeError(f"the array '{name}' is of type {array.dtype}; expected one of {sorted(_TYPES)}")
        if not np.isfinite(array).all():
            raise NumericsError(f"the array '{name}' of a {kind} state holds NaN or infinity; it is not written")
        heads.append([name, array.dtype.str, list(array.shape)])
        bodies.append(array.tobytes())
    head = canonical_json({"kind": kind, "values": dict(values), "arrays": heads}).encode("utf-8")
    return b"".join([_MAGIC, len(head).to_bytes(8, "little"), head, *bodies])


def unpack(kind: str, blob: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of :func:`pack`, the arrays read-only. Raises StoreError for bytes that are no such record, or one of
    another kind."""
    try:
        if blob[:8] != _MAGIC:
            raise ValueError("they do not begin as one")
        end = 16 + int.from_bytes(blob[8:16], "little")
        head = json.loads(blob[16:end].decode("utf-8"))
        found, values, heads = head["kind"], head["values"], head["arrays"]
        if found != kind:
            raise ValueError(f"they hold a '{found}' state")
        arrays: dict[str, np.ndarray] = {}
        for name, dtype, shape in heads:
            if dtype not in _TYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
                raise ValueError(f"the array '{name}' has type {dtype} and shape {shape}")
            size = math.prod(shape) * np.dtype(dtype).itemsize
            if len(blob) < end + size:
                raise ValueError(f"the array '{name}' is cut off")
            raw = np.frombuffer(blob, dtype, math.prod(shape), end).reshape(shape)
            if not np.isfinite(raw).all():
                raise ValueError(f"the array '{name}' holds NaN or infinity")
            arrays[name] = frozen(raw.astype(raw.dtype.newbyteorder("=")))
            end += size
        if end != len(blob):
            raise ValueError(f"{len(blob) - end} bytes are left over")
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise StoreError(f"these {len(blob)} bytes are no '{kind}' retrieval state: {problem}") from problem
    return values, arrays
