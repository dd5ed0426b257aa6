"""Which of the entries that a search found are shown: the contract of a retriever, and the two that learn nothing.

A search proposes N hits; a retriever shows K of them. ``topk`` takes the nearest, as everybody does; ``random`` any of
them, the control; ``kernel`` and ``parametric`` learn from how episodes ended which entry is worth showing in which
situation (``kernel``, ``qvalue``; Memento, arXiv:2508.16153, sections 2.2 to 2.4). All give the probability with which
each entry was shown, without which nothing can be said about what would have happened otherwise (``credit``).

A retriever's state is a value. ``choose`` is pure; ``learn`` returns a new state. Until something was learned, learned
retrievers show what ``topk`` shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from twoclock.errors import ConfigError, NumericsError, unknown_name
from twoclock.memory.arrays import frozen, pack, unpack
from twoclock.memory.records import Entry, Hit
from twoclock.memory.softmax import gumbel_top_k, inclusion_probabilities, log_weights, order_log_probability
from twoclock.seeding import child_rng

__all__ = [
    "RETRIEVERS",
    "Candidate",
    "Chosen",
    "Outcome",
    "Random",
    "Retriever",
    "Selection",
    "TopK",
    "build_retriever",
    "candidates_of",
    "query_of",
]

# N hits, K of them shown, D dimensions.
Vector = npt.NDArray[np.float32]
StateT = TypeVar("StateT")


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """What a retriever knows of one entry that was found."""

    id: str
    similarity: float | None = None
    """Cosine of query and key; None without an encoder."""
    vector: Vector | None = None
    """[D] of length 1, of key and text: what tells a case from its near-duplicates is often the text alone."""
    reward: float | None = None
    """What the entry's own episode earned."""
    propensity: float = 1.0
    """The probability with which it was to be shown, the choice and every hold-out taken together."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.propensity <= 1.0:
            raise ConfigError(f"the propensity of {self.id} is {self.propensity!r}; expected a probability")
        for name in ("similarity", "reward"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise NumericsError(f"the {name} of {self.id} is {value!r}; expected a finite number")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """How an episode ended, and what was shown in it."""

    query: Vector | None
    shown: tuple[Candidate, ...]
    reward: float
    """In [0, 1]."""
    held: tuple[Candidate, ...] = ()
    """What was found and not shown, by the choice or by a hold-out, each with its propensity of being shown."""
    baseline: float = 0.0
    """Taken off the reward where values are compared, such as the mean reward of the item's group."""
    following: tuple[Vector, tuple[Candidate, ...]] | None = None
    """Where the episode goes on: the next query, and what was found for it. None ends the episode."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.reward <= 1.0:  # NaN is refused too
            raise NumericsError(f"the reward of an episode is {self.reward!r}; expected a number in [0, 1]")
        if not math.isfinite(self.baseline):
            raise NumericsError(f"the baseline of an episode is {self.baseline!r}; expected a finite number")
        ids = [c.id for c in (*self.shown, *self.held)]
        if len(set(ids)) < len(ids):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise ConfigError(f"an outcome names the same entry twice, as shown or as held: {', '.join(twice)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """The hits to show, best or first drawn first."""

    hits: tuple[Hit, ...]
    query: Vector | None
    candidates: tuple[Candidate, ...]
    """All that were found, in the order of the hits, each with its propensity."""
    values: tuple[float, ...] = ()
    """The value of each candidate, where the retriever has one."""
    log_probability: float = 0.0
    """Of exactly these hits in this order, in nats; 0 where the choice was certain."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(hit.entry for hit in self.hits)

    @property
    def propensities(self) -> tuple[float, ...]:
        """Of each entry that is shown."""
        by_id = {c.id: c.propensity for c in self.candidates}
        return tuple(by_id[hit.entry.id] for hit in self.hits)

    def outcome(
        self, reward: float, *, baseline: float = 0.0, held: Collection[str] = (), hold_out: float = 0.0
    ) -> Outcome:
        """How the episode ended. ``held`` are the ids that were chosen and then held out at random, which happened to
        each of them with probability ``hold_out``."""
        shown = {hit.entry.id for hit in self.hits}
        if strange := sorted(set(held) - shown):
            raise ConfigError(f"{', '.join(strange)} cannot have been held out: not among the entries that were chosen")
        if not 0.0 <= hold_out < 1.0 or (held and not hold_out):
            raise ConfigError(
                f"hold_out is {hold_out!r} and {len(held)} were held out; expected the probability, in [0, 1)"
            )
        all_of_them = [replace(c, propensity=c.propensity * (1.0 - hold_out)) for c in self.candidates]
        seen = shown - set(held)
        return Outcome(
            query=self.query,
            shown=tuple(c for c in all_of_them if c.id in seen),
            held=tuple(c for c in all_of_them if c.id not in seen),
            reward=reward,
            baseline=baseline,
        )


class Retriever(Protocol[StateT]):
    """Chooses which hits to show, and learns from outcomes. Final classes implement it; none is inherited from."""

    @property
    def name(self) -> str: ...

    def init(self, seed: int) -> StateT: ...

    def choose(
        self,
        state: StateT,
        query: Vector | None,
        hits: Sequence[Hit],
        k: int,
        seed: int,
        *,
        vectors: npt.ArrayLike | None = None,
    ) -> Chosen:
        """Up to ``k`` of ``hits``, which stand best first; none for k = 0. ``query`` is the query's vector [D],
        ``vectors`` [N, D] those of the hits. The same arguments give the same choice. Raises ConfigError for a negative
        k, vectors that are missing or of another shape or encoder, NumericsError for NaN."""
        ...

    def learn(self, state: StateT, outcomes: Sequence[Outcome]) -> StateT:
        """The state after these outcomes; ``state`` itself where there are none. Touches nothing."""
        ...

    def dump(self, state: StateT) -> bytes:
        """Canonical: equal states give equal bytes."""
        ...

    def load(self, blob: bytes) -> StateT:
        """The inverse of :meth:`dump`, exactly. StoreError for other bytes, ConfigError for another encoder's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How values become a choice. ``softmax`` draws without replacement at ``temperature``; ``greedy`` takes the
    largest, ties in the order of the search, as the published system does. Below ``floor`` nothing is shown."""

    rule: str = "softmax"
    temperature: float = 0.1
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in ("softmax", "greedy"):
            raise ConfigError(unknown_name("rule of selection", self.rule, ("softmax", "greedy")))
        log_weights([0.0], self.temperature)

    def choose(
        self,
        values: npt.NDArray[np.float64],
        query: Vector | None,
        hits: Sequence[Hit],
        candidates: Sequence[Candidate],
        k: int,
        seed: int,
    ) -> Chosen:
        allowed = np.flatnonzero(values >= self.floor) if self.floor is not None else np.arange(len(values))
        weights = log_weights(values[allowed], self.temperature)
        chances = np.zeros(len(values))
        log_probability = 0.0
        if self.rule == "greedy":
            order = sorted(range(len(allowed)), key=lambda i: (-weights[i], i))[:k]
            chances[allowed[order]] = 1.0
        else:
            order = list(gumbel_top_k(weights, k, child_rng("retrieval", seed)))
            chances[allowed] = inclusion_probabilities(weights, k)
            log_probability = order_log_probability(weights, order)
        return Chosen(
            hits=tuple(hits[int(allowed[i])] for i in order),
            query=query,
            candidates=tuple(replace(c, propensity=float(p)) for c, p in zip(candidates, chances, strict=True)),
            values=tuple(float(v) for v in values),
            log_probability=log_probability,
        )


def candidates_of(hits: Sequence[Hit], k: int, vectors: npt.ArrayLike | None = None) -> tuple[Candidate, ...]:
    """The hits as candidates, checked: ``k`` at least 0, no entry twice, ``vectors`` one finite row a hit."""
    if not isinstance(k, int) or k < 0:
        raise ConfigError(f"k is {k!r}; expected how many entries to show, 0 or more")
    ids = [hit.entry.id for hit in hits]
    if len(set(ids)) < len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise ConfigError(f"the hits name the same entry twice: {', '.join(twice)}")
    rows: Sequence[Vector | None] = [None] * len(ids)
    if vectors is not None:
        array = np.asarray(vectors, dtype=np.float32)
        if array.ndim != 2 or len(array) != len(ids):
            raise ConfigError(f"vectors have the shape {array.shape} for {len(ids)} hits; expected one row a hit")
        if not np.isfinite(array).all():
            raise NumericsError("the vectors of the hits hold NaN or infinity")
        rows = [frozen(row.copy()) for row in array]
    return tuple(
        Candidate(id=hit.entry.id, similarity=hit.similarity, vector=row, reward=hit.entry.reward)
        for hit, row in zip(hits, rows, strict=True)
    )


def query_of(query: npt.ArrayLike | None, dimension: int, name: str) -> Vector:
    """A query's vector [D] as a learned retriever takes it, read-only; ConfigError and NumericsError as in
    :meth:`Retriever.choose`."""
    if query is None:
        raise ConfigError(
            f"the retriever '{name}' learns by situation, so it needs the query's vector; give an encoder"
        )
    array = np.array(query, dtype=np.float32)
    if array.shape != (dimension,):
        raise ConfigError(f"the query's vector has the shape {array.shape}; the retriever '{name}' takes [{dimension}]")
    if not np.isfinite(array).all():
        raise NumericsError("the query's vector holds NaN or infinity")
    length = float(np.linalg.norm(array))
    if length and abs(length - 1.0) > 0.01:
        raise ConfigError(f"the query's vector has length {length:.3g}; expected 1, as encoders give, or a zero vector")
    return frozen(array)


# ------------------------------------------------------------------------------------------- those that learn nothing


@dataclass(frozen=True)
class TopK:
    """The first K hits, in the order of the search."""

    name: str = "topk"

    def init(self, seed: int) -> None:
        return None

    def choose(
        self,
        state: None,
        query: Vector | None,
        hits: Sequence[Hit],
        k: int,
        seed: int,
        *,
        vectors: npt.ArrayLike | None = None,
    ) -> Chosen:
        return nearest(query, hits, candidates_of(hits, k, vectors), k)

    def learn(self, state: None, outcomes: Sequence[Outcome]) -> None:
        return None

    def dump(self, state: None) -> bytes:
        return pack(self.name, {}, {})

    def load(self, blob: bytes) -> None:
        unpack(self.name, blob)


def nearest(query: Vector | None, hits: Sequence[Hit], candidates: Sequence[Candidate], k: int) -> Chosen:
    """The first ``k`` hits, with certainty."""
    known = tuple(replace(c, propensity=float(i < k)) for i, c in enumerate(candidates))
    return Chosen(hits=tuple(hits[:k]), query=query, candidates=known)


@dataclass(frozen=True)
class Random:
    """K of the hits, all sets alike: what a retriever must beat to have chosen anything."""

    name: str = "random"

    def init(self, seed: int) -> None:
        return None

    def choose(
        self,
        state: None,
        query: Vector | None,
        hits: Sequence[Hit],
        k: int,
        seed: int,
        *,
        vectors: npt.ArrayLike | None = None,
    ) -> Chosen:
        known = candidates_of(hits, k, vectors)
        chosen = Selection(rule="softmax", temperature=1.0).choose(np.zeros(len(hits)), query, hits, known, k, seed)
        return replace(chosen, values=())

    def learn(self, state: None, outcomes: Sequence[Outcome]) -> None:
        return None

    def dump(self, state: None) -> bytes:
        return pack(self.name, {}, {})

    def load(self, blob: bytes) -> None:
        unpack(self.name, blob)


# ------------------------------------------------------------------------------------------------------- the table


def _kernel(**options: Any) -> Retriever[Any]:
    from twoclock.memory.kernel import KernelRetriever

    return KernelRetriever(**options)


def _parametric(**options: Any) -> Retriever[Any]:
    from twoclock.memory.parametric import ParametricRetriever

    return ParametricRetriever(**options)


RETRIEVERS: Mapping[str, Callable[..., Retriever[Any]]] = {
    "topk": TopK,
    "random": Random,
    "kernel": _kernel,
    "parametric": _parametric,
}


def build_retriever(name: str, **options: Any) -> Retriever[Any]:
    """The retriever of that name. ``kernel`` and ``parametric`` take ``encoder`` (an encoder's id), ``dimension`` and
    their settings. Raises ConfigError for an unknown name or option."""
    if name not in RETRIEVERS:
        raise ConfigError(unknown_name("retriever", name, RETRIEVERS))
    try:
        return RETRIEVERS[name](**options)
    except TypeError as problem:
        raise ConfigError(f"the retriever '{name}' cannot be built with {sorted(options)}: {problem}") from problem
