"""Learned retrieval with weights: a small network predicts whether an episode will succeed if this case is shown.

Memento's parametric memory (arXiv:2508.16153, section 2.4), trained online: after every episode each case that was
shown becomes an example with the episode's reward as its label, and a few minibatch steps follow over a bounded replay
buffer. The network is ``qvalue``'s. It carries over to cases that were never shown, as ``kernel`` does not.

Where we depart: the network adds to a prior's logit, that of the mean reward tilted by similarity, so that it begins as
top-K and a network that has learned nothing cannot prefer what is far away; what a case earned so far, as known
*before* the outcome, is an input beside the vectors, so that two cases with equal vectors can differ; class weights,
where on, are taken out of the logit again (King & Zeng, 2001), so that Q stays a probability. ``baseline`` plays no
part: a probability is of the reward itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.errors import ConfigError, NumericsError, StoreError
from twoclock.memory.arrays import frozen, pack, unpack
from twoclock.memory.learned import Floats, nearness, require_settings, same_encoder
from twoclock.memory.qvalue import SCALARS, Adam, Net, adam_step, features, first_net, gradient, logits, sigmoid
from twoclock.memory.records import Hit
from twoclock.memory.retrieval import Candidate, Chosen, Outcome, Selection, Vector, candidates_of, nearest, query_of
from twoclock.seeding import child_rng

__all__ = ["ParametricRetriever", "ParametricState"]

# M examples in the buffer, U distinct vectors, E entries with a record, D dimensions, N candidates.


@dataclass(frozen=True, kw_only=True, eq=False)
class ParametricState:
    """The network, its optimizer, the replay buffer and what each case earned. A value."""

    encoder: str
    seed: int
    net: Net
    adam: Adam
    vectors: np.ndarray
    """[U, D] queries and cases of the buffer."""
    pairs: np.ndarray
    """[M, 2] rows of ``vectors``: query and case, oldest first."""
    scalars: np.ndarray
    """[M, 4] as of before the outcome."""
    nearness: np.ndarray
    """[M] similarity minus that of the nearest candidate of its episode."""
    labels: np.ndarray
    """[M] rewards."""
    weights: np.ndarray
    """[M]"""
    ids: tuple[str, ...] = ()
    """[E] entries that were shown, the one longest ago first."""
    shown: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[E] how often."""
    earned: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """[E] the sum of rewards."""
    outcomes: int = 0
    mean: float = 0.0
    """Of the rewards of all episodes."""

    @cached_property
    def record(self) -> dict[str, tuple[int, float]]:
        return {i: (int(n), float(r)) for i, n, r in zip(self.ids, self.shown, self.earned, strict=True)}


@dataclass(frozen=True, kw_only=True)
class ParametricRetriever:
    """A network's Q, blended with a prior; see the module. A final :class:`~twoclock.memory.retrieval.Retriever`."""

    encoder: str
    """The id of the encoder whose vectors it is given."""
    dimension: int
    selection: Selection = field(default_factory=Selection)
    hidden: int = 64
    """Published: 512."""
    rate: float = 1e-3
    decay: float = 3.0
    """Towards 0, by rate × decay a step: rewards are noisy, and a network that may memorises them."""
    batch: int = 16
    updates: int = 1
    """Minibatch steps an episode."""
    balanced: bool = False
    """Weight the rarer class up, as published."""
    by_propensity: bool = False
    """Weight an example by 1/propensity, at most 20."""
    with_record: bool = True
    """Whether what a case earned so far is an input; published: no."""
    tilt: float = 5.0
    """How much lower the prior's logit is for each unit of similarity below the nearest candidate."""
    capacity: int = 2048
    """Examples in the buffer at most, and entries with a record; the oldest go first."""
    name: str = "parametric"

    def __post_init__(self) -> None:
        require_settings(
            self,
            dimension=(1, None),
            hidden=(1, None),
            rate=(0, 0.1),
            decay=(0, 9),
            batch=(1, None),
            updates=(0, None),
            tilt=(0, None),
            capacity=(1, None),
        )

    def init(self, seed: int) -> ParametricState:
        net = first_net(4 * self.dimension + len(SCALARS), self.hidden, seed)
        zeros = net.map(np.zeros_like)
        empty = frozen(np.zeros((0, self.dimension), np.float32))
        none, pairs = frozen(np.zeros(0, np.float32)), frozen(np.zeros((0, 2), np.int32))
        return ParametricState(
            encoder=self.encoder,
            seed=seed,
            net=net,
            adam=Adam(zeros, zeros),
            vectors=empty,
            pairs=pairs,
            scalars=frozen(np.zeros((0, len(SCALARS)), np.float32)),
            nearness=none,
            labels=none,
            weights=none,
        )

    # ------------------------------------------------------------------------------------------------------ reading

    def choose(
        self,
        state: ParametricState,
        query: Vector | None,
        hits: Sequence[Hit],
        k: int,
        seed: int,
        *,
        vectors: npt.ArrayLike | None = None,
    ) -> Chosen:
        same_encoder(state.encoder, self.encoder)
        situation = query_of(query, self.dimension, self.name)
        candidates = candidates_of(hits, k, vectors)
        if candidates:
            self._cases(candidates)
        if not state.outcomes:
            return nearest(situation, hits, candidates, k)
        values = self.values(state, situation, candidates)
        return self.selection.choose(values, situation, hits, candidates, k, seed)

    def values(self, state: ParametricState, query: Vector, candidates: Sequence[Candidate]) -> Floats:
        """Q = σ(z) [N]."""
        if not candidates:
            return np.zeros(0)
        x = features(query, self._cases(candidates), self._scalars(state.record, state.mean, candidates))
        return sigmoid(logits(state.net, x, self._offset(state, nearness(candidates))).astype(np.float64))

    def _offset(self, state: ParametricState, near: np.ndarray) -> np.ndarray:
        """The prior's logit [N]; as if one success and one failure had been seen besides."""
        mean = (state.mean * state.outcomes + 1.0) / (state.outcomes + 2.0)
        return np.asarray(math.log(mean / (1.0 - mean)) + self.tilt * near)

    def _cases(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """The case vectors [N, D]."""
        for candidate in candidates:
            if candidate.vector is None or candidate.vector.shape != (self.dimension,):
                given = "none" if candidate.vector is None else f"one of shape {candidate.vector.shape}"
                raise ConfigError(
                    f"the retriever 'parametric' needs the vector of every case, of shape ({self.dimension},), and got "
                    f"{given} for {candidate.id}; pass vectors=encoder.encode([...]) to choose"
                )
            if not np.isfinite(candidate.vector).all():
                raise NumericsError(f"the vector of {candidate.id} holds NaN or infinity")
        return np.stack([c.vector for c in candidates if c.vector is not None]).astype(np.float32)

    def _scalars(
        self, record: dict[str, tuple[int, float]], mean: float, candidates: Sequence[Candidate]
    ) -> np.ndarray:
        rows = []
        for case in candidates:
            shown, earned = record.get(case.id, (0, 0.0)) if self.with_record else (0, 0.0)
            rewarded = 0.0 if case.reward is None else case.reward - 0.5
            # One outcome of the mean kind is added, so that a case that was shown once is not believed altogether.
            earned_above = 4.0 * (earned - shown * mean) / (shown + 1)
            rows.append([case.similarity or 0.0, rewarded, earned_above, shown / (shown + 4)])
        return np.array(rows, np.float32).reshape(len(rows), len(SCALARS))

    # ----------------------------------------------------------------------------------------------------- learning

    def learn(self, state: ParametricState, outcomes: Sequence[Outcome]) -> ParametricState:
        same_encoder(state.encoder, self.encoder)
        if not outcomes:
            return state
        record, mean, count = dict(state.record), state.mean, state.outcomes
        queries, cases, scalars, near, labels, weights = [], [], [], [], [], []
        for outcome in outcomes:
            if outcome.shown:
                query = query_of(outcome.query, self.dimension, self.name)
                cases += list(self._cases(outcome.shown))
                queries += [query] * len(outcome.shown)
                scalars.append(self._scalars(record, mean, outcome.shown))
                found = [*outcome.shown, *outcome.held]
                near.append(nearness(found)[: len(outcome.shown)])
                labels += [outcome.reward] * len(outcome.shown)
                weights += [
                    min(1.0 / max(c.propensity, 1e-9), 20.0) if self.by_propensity else 1.0 for c in outcome.shown
                ]
            for case in outcome.shown:
                shown, earned = record.pop(case.id, (0, 0.0))
                record[case.id] = (shown + 1, earned + outcome.reward)
            count += 1
            mean += (outcome.reward - mean) / count
        after = self._buffered(state, queries, cases, scalars, near, labels, weights)
        kept = list(record.items())[-self.capacity :]
        after = replace(
            after,
            ids=tuple(i for i, _ in kept),
            shown=frozen(np.array([n for _, (n, _) in kept], np.int64)),
            earned=frozen(np.array([r for _, (_, r) in kept], np.float64)),
            outcomes=count,
            mean=mean,
        )
        return self._trained(after, self.updates * len(outcomes))

    def _buffered(
        self,
        state: ParametricState,
        queries: list[np.ndarray],
        cases: list[np.ndarray],
        scalars: list[np.ndarray],
        near: list[np.ndarray],
        labels: list[float],
        weights: list[float],
    ) -> ParametricState:
        """With these examples in the buffer, the oldest of too many dropped, and the vectors that are left."""
        table = list(state.vectors)
        places = {v.tobytes(): n for n, v in enumerate(table)}
        new = np.zeros((len(queries), 2), np.int32)
        for row, pair in zip(new, zip(queries, cases, strict=True), strict=True):
            for side, vector in enumerate(pair):
                row[side] = places.setdefault(vector.tobytes(), len(table))
                if row[side] == len(table):
                    table.append(vector)
        pairs = np.concatenate([state.pairs, new])[-self.capacity :]
        used, numbered = np.unique(pairs, return_inverse=True)
        vectors = np.array([table[u] for u in used], np.float32).reshape(len(used), self.dimension)
        return replace(
            state,
            vectors=frozen(vectors),
            pairs=frozen(numbered.reshape(pairs.shape).astype(np.int32)),
            scalars=frozen(np.concatenate([state.scalars, *scalars])[-self.capacity :].astype(np.float32)),
            nearness=frozen(np.concatenate([state.nearness, *near])[-self.capacity :].astype(np.float32)),
            labels=frozen(np.append(state.labels, np.array(labels, np.float32))[-self.capacity :]),
            weights=frozen(np.append(state.weights, np.array(weights, np.float32))[-self.capacity :]),
        )

    def _trained(self, state: ParametricState, steps: int) -> ParametricState:
        net, adam, size = state.net, state.adam, len(state.labels)
        if not size:
            return state
        rarer = _class_weight(state.labels) if self.balanced else 1.0
        for _ in range(steps):
            rng = child_rng("replay", state.seed, adam.steps)
            rows = [rng.randrange(size) for _ in range(min(self.batch, size))]
            queries, cases = state.vectors[state.pairs[rows, 0]], state.vectors[state.pairs[rows, 1]]
            labels = state.labels[rows]
            weights = state.weights[rows] * (1.0 + (rarer - 1.0) * labels)
            x = features(queries, cases, state.scalars[rows])
            # Weighted by class, the best logit is higher by the log of the weight; so is the offset, while it learns.
            offset = self._offset(state, state.nearness[rows]) + math.log(rarer)
            slope = gradient(net, x, labels, weights, offset)
            net, adam = adam_step(net, adam, slope, rate=self.rate, decay=self.decay)
        if not all(np.isfinite(getattr(net, f.name)).all() for f in fields(net)):
            raise NumericsError("the Q network's weights became NaN or infinite; the state before is intact")
        return replace(state, net=net, adam=adam)

    # ------------------------------------------------------------------------------------------------------- storing

    def dump(self, state: ParametricState) -> bytes:
        same_encoder(state.encoder, self.encoder)
        arrays = {n: getattr(state, n) for n in _ARRAYS}
        for prefix, net in (("net", state.net), ("m", state.adam.m), ("v", state.adam.v)):
            arrays |= {f"{prefix}.{f.name}": getattr(net, f.name) for f in fields(net)}
        plain = {n: getattr(state, n) for n in ("encoder", "seed", "outcomes", "mean")}
        return pack(self.name, {**plain, "ids": list(state.ids), "steps": state.adam.steps}, arrays)

    def load(self, blob: bytes) -> ParametricState:
        values, arrays = unpack(self.name, blob)
        plain: dict[str, Any] = values
        try:
            nets = [Net(*(arrays.pop(f"{p}.{f.name}") for f in fields(Net))) for p in ("net", "m", "v")]
            adam = Adam(nets[1], nets[2], plain.pop("steps"))
            whole: dict[str, Any] = {**plain, **arrays, "ids": tuple(plain["ids"])}
            state = ParametricState(net=nets[0], adam=adam, **whole)
            same_encoder(state.encoder, self.encoder)
            shape = (4 * self.dimension + len(SCALARS), self.hidden)
            if state.net.w1.shape != shape:
                raise ConfigError(
                    f"this retrieval state has a network of shape {state.net.w1.shape}, and the retriever's is "
                    f"{shape}; open it with the settings that it was made with"
                )
            lengths = {len(getattr(state, n)) for n in ("pairs", "scalars", "nearness", "labels", "weights")}
            if len(lengths) > 1 or not len(state.ids) == len(state.shown) == len(state.earned):
                raise TypeError("its arrays do not fit together")
        except (KeyError, TypeError) as problem:
            raise StoreError(f"these bytes are no state of the retriever '{self.name}': {problem}") from problem
        return state


_ARRAYS = ("vectors", "pairs", "scalars", "nearness", "labels", "weights", "shown", "earned")


def _class_weight(labels: np.ndarray) -> float:
    """Failures to successes, between 1/20 and 20: what a success is weighted with."""
    good = float(labels.sum())
    return min(max((len(labels) - good) / max(good, 1e-9), 0.05), 20.0)
