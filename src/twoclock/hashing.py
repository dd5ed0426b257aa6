"""Canonical JSON and content hashes: the names of states, conditionings, items and blobs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["canonical_json", "content_hash", "short"]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; refuses NaN and infinity, which have no JSON form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: bytes | str | Any) -> str:
    """SHA-256 in hex of bytes as they are, of text as UTF-8 (a lone surrogate, which has no UTF-8, as its escape), of
    anything else as canonical JSON."""
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, str):
        data = value.encode("utf-8", "backslashreplace")
    else:
        data = canonical_json(value).encode("utf-8", "backslashreplace")
    return hashlib.sha256(data).hexdigest()


def short(digest: str) -> str:
    """The first 12 characters of a hash, for people."""
    return digest[:12]
