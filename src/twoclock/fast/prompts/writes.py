"""What a search would write, in words: what the ledger shows to a person."""

from __future__ import annotations

from twoclock.fast.prompts.state import Candidate, Pool
from twoclock.types import Write

__all__ = ["told_writes"]


def _describe(candidate: Candidate) -> str:
    if candidate.is_empty:
        return "(no prompt)"
    lines = [f"system: {candidate.system}"] if candidate.system is not None else []
    return "\n".join([*lines, *(f"user: {q}\nassistant: {a}" for q, a in candidate.exemplars)])


def told_writes(before: Pool, after: Pool) -> tuple[Write, ...]:
    """In words: what is deployed now (system and each exemplar), who entered the pool and who left it."""
    writes: list[Write] = []
    if after.deployed != before.deployed:
        now = after.deployed_candidate
        if now.is_empty:
            writes.append(Write(kind="system", text=_describe(now), lesson=now.id))
        if now.system is not None:
            writes.append(Write(kind="system", text=now.system, lesson=now.id))
        writes += [Write(kind="exemplar", text=f"user: {q}\nassistant: {a}", lesson=now.id) for q, a in now.exemplars]
    old, new = ({c.id: c for c in pool.candidates} for pool in (before, after))
    writes += [
        Write(kind="pool", text=_describe(c), lesson=key)
        for key, c in new.items()
        if key not in old and key != after.deployed
    ]
    writes += [Write(kind="retire", text=_describe(c), lesson=key) for key, c in old.items() if key not in new]
    return tuple(writes)
