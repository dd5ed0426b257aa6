"""The prompts channel's state: candidates, pools and their bytes. Values only; nothing here searches or scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from twoclock.errors import StoreError
from twoclock.hashing import canonical_json, content_hash
from twoclock.types import Conditioning

__all__ = ["EMPTY", "Candidate", "Pool", "PromptsState", "Score", "dump_state", "load_state"]

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One prompt: a system text, few-shot turns, or both. Where it came from is no part of its identity."""

    system: str | None = None
    exemplars: tuple[tuple[str, str], ...] = ()
    parent: str | None = None
    """The id of the candidate that this one was made from."""
    origin: str = "empty"
    """``empty``, ``instruction``, ``exemplars``, ``mutation``, ``edit``, ``crossover``, ``reflective`` or ``self``."""

    @cached_property
    def id(self) -> str:
        """A hash of system text and exemplars."""
        return content_hash({"system": self.system, "exemplars": [list(turn) for turn in self.exemplars]})[:16]

    @property
    def is_empty(self) -> bool:
        return self.system is None and not self.exemplars

    @property
    def chars(self) -> int:
        return len(self.system or "") + sum(len(q) + len(a) for q, a in self.exemplars)

    @cached_property
    def conditioning(self) -> Conditioning:
        return Conditioning(system=self.system, exemplars=self.exemplars)


EMPTY = Candidate()
"""The prompt that changes nothing; every pool keeps it."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the last search measured of a candidate. For people: no search ever reads it, because a score means nothing
    once the weights have moved; ``weights`` says under which it was taken."""

    candidate: str
    mean: float
    items: int
    weights: str
    """The id of the slow delta, or ``base``."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The prompts kept for one task, best frontier weight first as of the last search."""

    candidates: tuple[Candidate, ...] = (EMPTY,)
    deployed: str = EMPTY.id
    losers: tuple[tuple[str, str], ...] = ()
    """(candidate id, weights id) of what a search has dropped, oldest first."""
    scores: tuple[Score, ...] = ()

    @property
    def deployed_candidate(self) -> Candidate:
        return next(c for c in self.candidates if c.id == self.deployed)


@dataclass(frozen=True)
class PromptsState:
    """A pool for each key (a task name, or ``*`` for the whole stream), sorted by key."""

    pools: tuple[tuple[str, Pool], ...] = ()

    def pool(self, key: str) -> Pool:
        return dict(self.pools).get(key, Pool())

    def with_pool(self, key: str, pool: Pool) -> PromptsState:
        return PromptsState(tuple(sorted({**dict(self.pools), key: pool}.items(), key=lambda pair: pair[0])))


def dump_state(state: PromptsState) -> bytes:
    """Canonical JSON: equal states give equal bytes."""
    pools = {key: _pool_out(pool) for key, pool in state.pools}
    return canonical_json({"channel": "prompts", "format": FORMAT, "pools": pools}).encode("utf-8")


def load_state(blob: bytes) -> PromptsState:
    """The inverse of :func:`dump_state`. Raises StoreError for other bytes, and for another format."""
    try:
        data = json.loads(blob)
        if data["channel"] != "prompts":
            raise ValueError(f"it is a state of the channel {data['channel']!r}")
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, this version reads {FORMAT}")
        return PromptsState(tuple(sorted(((k, _pool_in(v)) for k, v in data["pools"].items()), key=lambda kv: kv[0])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"not a state of the channel 'prompts' ({len(blob)} bytes): {error}") from error


def _pool_out(pool: Pool) -> dict[str, Any]:
    return {
        "candidates": [
            {"system": c.system, "exemplars": [list(t) for t in c.exemplars], "parent": c.parent, "origin": c.origin}
            for c in pool.candidates
        ],
        "deployed": pool.deployed,
        "losers": [list(pair) for pair in pool.losers],
        "scores": [
            {"candidate": s.candidate, "mean": s.mean, "items": s.items, "weights": s.weights} for s in pool.scores
        ],
    }


def _pool_in(data: Mapping[str, Any]) -> Pool:
    candidates = tuple(
        Candidate(
            system=c["system"],
            exemplars=tuple((q, a) for q, a in c["exemplars"]),
            parent=c["parent"],
            origin=c["origin"],
        )
        for c in data["candidates"]
    )
    if data["deployed"] not in {c.id for c in candidates}:
        raise ValueError(f"the deployed candidate {data['deployed']!r} is not in its pool")
    return Pool(
        candidates=candidates,
        deployed=data["deployed"],
        losers=tuple((c, w) for c, w in data["losers"]),
        scores=tuple(Score(**s) for s in data["scores"]),
    )
