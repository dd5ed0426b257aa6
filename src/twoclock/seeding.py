"""Seeds: plain integers hashed from ``(name, seed, index)``, never added.

Adding makes neighbours share their randomness: ``Random(seed + i)`` gives streams 42 and 43 all but one of their items
in common. A hash gives every purpose a stream of its own, so nothing in the library keeps a live random state, and a
run resumes to the same numbers because the seed of each draw follows from where it stands.
"""

from __future__ import annotations

import hashlib
import random

__all__ = ["child_seed", "child_rng"]

SEED_BITS = 63


def child_seed(name: str, seed: int, *index: int | str) -> int:
    """An integer in ``[0, 2**63)`` for the purpose ``name``, the parent ``seed`` and a position ``index``.

    The same arguments give the same value on every machine and Python version.
    """
    text = "\x1f".join([name, str(seed), *(f"{type(part).__name__}:{part}" for part in index)])
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def child_rng(name: str, seed: int, *index: int | str) -> random.Random:
    """A generator of its own for one purpose; see :func:`child_seed`."""
    return random.Random(child_seed(name, seed, *index))
