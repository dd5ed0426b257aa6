"""Slow states as bytes: canonical safetensors with one JSON header, so that equal states give equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from twoclock.errors import StoreError
from twoclock.hashing import canonical_json

__all__ = ["dump_tensors", "load_tensors"]


def dump_tensors(head: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bytes:
    """``head`` is plain JSON."""
    from safetensors.torch import save

    # One key: the library writes several in no fixed order, and equal states must give equal bytes.
    flat = {name: t.contiguous() for name, t in tensors.items()}
    return bytes(save(flat, metadata={"twoclock": canonical_json(dict(head))}))


def load_tensors(blob: bytes, channel: str, formats: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The inverse of :func:`dump_tensors`. Raises StoreError for other bytes, and for a format not in ``formats``."""
    from safetensors.torch import load

    try:
        length = int.from_bytes(blob[:8], "little")
        head = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["twoclock"])
        tensors = load(blob)
        if head["format"] not in formats:
            raise ValueError(f"its format is {head['format']}, and this version reads {', '.join(map(str, formats))}")
    except Exception as problem:
        raise StoreError(f"this is not a dumped state of the channel '{channel}': {problem!r}") from problem
    return head, tensors
