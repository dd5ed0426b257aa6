"""Learned retrieval without weights: what a case is worth here is what it earned in situations like this one.

For each case c the episodic store 𝒟_c holds situations s_i with what was earned when c was shown in them, and

    Q(s,c) = (n₀·prior(s,c) + Σ_i w_i k(s,s_i) Q_i) / (n₀ + Σ_i w_i k(s,s_i)),     k(s,s_i) = exp(−(1 − cos(s,s_i))/h)

(Memento, arXiv:2508.16153, section 2.3, after neural episodic control, Pritzel et al., 2017), with the target

    r − baseline + γ·α log Σ_c' exp(Q(s',c')/α),        γ = 0 by default: one decision an episode, a contextual bandit.

Where we depart: the paper divides by Σ k alone, which says as much after one remote outcome as after a hundred near
ones; we add a prior of weight n₀ (n₀ = 0 gives the paper's), the mean of all targets, tilted by similarity. θ of k_θ is
one bandwidth h, chosen from a grid by the leave-one-out squared error of Q, which is the paper's loss with gradient
steps and target network replaced by a search in one dimension. A situation that comes again moves its Q_i by
η(target − Q_i), η = 1/(visits + 1) by default: the mean.

Credit, where several cases were shown: ``shared`` gives each the episode's whole outcome, as published. ``additive``
solves for what each added, r ≈ b + Σ_{c shown} a_c, over the outcomes near s with weights k(s,s_i), each a_c held to
its prior with the weight n₀ (ridge regression), and takes Q(s,c) = b + a_c; of one case an episode both are nearly the
same. Where always equally many are shown, b and the sum of the a_c cannot be told apart: then additive Q ranks, and its
level means little, so set no floor. Without exploration cases that are always shown together keep equal values under
both: nothing else is in the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.errors import ConfigError, StoreError, unknown_name
from twoclock.memory.arrays import frozen, pack, unpack
from twoclock.memory.learned import Floats, nearness, require_settings, same_encoder
from twoclock.memory.records import Hit
from twoclock.memory.retrieval import Candidate, Chosen, Outcome, Selection, Vector, candidates_of, nearest, query_of
from twoclock.memory.softmax import soft_value

__all__ = ["BANDWIDTHS", "KernelRetriever", "KernelState", "kernel", "kernel_value"]

# M stored outcomes, each of a slate of cases, P cases in all of them, U situations, D dimensions, N candidates.

BANDWIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""h is one of these where it is fitted: with h = .1, a cosine of .9 counts for e⁻¹ of the same situation."""
_FITTED_FROM, _FITTED_ON = 256, 512
"""Outcomes: from how many the kernel is fitted, and on how many of the newest."""
_PRIOR_WEIGHTS = (1.0, 4.0, 16.0, 64.0)
_LARGEST_WEIGHT = 20.0
_FAR = 1e-3
"""Outcomes with a smaller k are left out of the regression: a thousand of them count for one."""


def kernel(similarities: npt.ArrayLike, bandwidth: float) -> Floats:
    """k = exp(−(1 − cos)/h), a Gaussian of the distance of unit vectors; 1 at the same situation."""
    return np.asarray(np.exp(np.minimum(np.asarray(similarities, dtype=np.float64) - 1.0, 0.0) / bandwidth))


def kernel_value(weights: npt.ArrayLike, values: npt.ArrayLike, prior: float, prior_weight: float) -> float:
    """(n₀·prior + Σ w Q) / (n₀ + Σ w); the prior where all weights are 0."""
    w, q = np.asarray(weights, dtype=np.float64), np.asarray(values, dtype=np.float64)
    total = prior_weight + float(w.sum())
    return (prior_weight * prior + float(w @ q)) / total if total > 0.0 else prior


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelState:
    """What was earned, by case and situation, oldest first. A value."""

    encoder: str
    seed: int
    bandwidth: float
    situations: Vector
    """[U, D]."""
    ids: tuple[str, ...] = ()
    """The entries that ``case`` numbers."""
    situation: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """[M] rows of ``situations``."""
    value: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """[M] Q_i."""
    visits: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """[M] how many episodes Q_i is of: the same slate in the very same situation."""
    size: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """[M] how many cases were shown."""
    case: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """[P] places in ``ids``, slate after slate."""
    weight: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """[P] of the case in each visit."""
    outcomes: int = 0
    """Episodes learned from, also those whose outcomes were dropped since."""
    targets: int = 0
    mean: float = 0.0
    """Of all targets."""

    @cached_property
    def slate(self) -> np.ndarray:
        """[P] the outcome that each case of ``case`` belongs to."""
        return np.repeat(np.arange(len(self.size)), self.size)

    @cached_property
    def places(self) -> dict[str, np.ndarray]:
        """Where each entry stands in ``case``, oldest first."""
        order = np.argsort(self.case, kind="stable")
        cuts = np.searchsorted(self.case[order], np.arange(1, len(self.ids)))
        return dict(zip(self.ids, np.split(order, cuts), strict=True)) if self.ids else {}


@dataclass(frozen=True, kw_only=True)
class KernelRetriever:
    """Kernel-weighted soft Q over outcomes; see the module. A final :class:`~twoclock.memory.retrieval.Retriever`."""

    encoder: str
    """The id of the encoder whose vectors it is given."""
    dimension: int
    selection: Selection = field(default_factory=Selection)
    bandwidth: float | None = None
    """h; None is 0.2 until there are 256 outcomes, and is then fitted every ``fit_every`` episodes."""
    fit_every: int = 64
    prior_weight: float = 1.0
    """n₀: how many outcomes in this very situation the prior counts for."""
    tilt: float = 1.0
    """How much lower the prior is for each unit of similarity below the nearest candidate."""
    discount: float = 0.0
    """γ."""
    step: float | None = None
    """η; None is the mean."""
    credit: str = "shared"
    """``shared``, or ``additive``: better where few cases are found again and again and held out at random."""
    by_propensity: bool = False
    """With shared credit, weight an outcome by 1/propensity, at most 20."""
    least_evidence: float = 0.5
    """Where all candidates together have fewer outcomes near this situation, the search's order stands."""
    capacity: int = 2048
    """Stored outcomes at most; the oldest go first."""
    name: str = "kernel"

    def __post_init__(self) -> None:
        require_settings(
            self,
            dimension=(1, None),
            fit_every=(1, None),
            prior_weight=(0 if self.credit == "shared" else 1e-6, None),
            tilt=(0, None),
            discount=(0, 1),
            least_evidence=(0, None),
            capacity=(1, None),
            **({} if self.step is None else {"step": (0, 1)}),
            **({} if self.bandwidth is None else {"bandwidth": (1e-6, None)}),
        )

        if self.credit not in ("additive", "shared"):
            raise ConfigError(unknown_name("kind of credit", self.credit, ("additive", "shared")))

    def init(self, seed: int) -> KernelState:
        empty = frozen(np.zeros((0, self.dimension), np.float32))
        return KernelState(encoder=self.encoder, seed=seed, bandwidth=self.bandwidth or 0.2, situations=empty)

    # ------------------------------------------------------------------------------------------------------ reading

    def choose(
        self,
        state: KernelState,
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
        values, evidence = self.values(state, situation, candidates)
        if not state.outcomes or evidence.sum() < self.least_evidence:
            return nearest(situation, hits, candidates, k)
        return self.selection.choose(values, situation, hits, candidates, k, seed)

    def values(self, state: KernelState, query: Vector, candidates: Sequence[Candidate]) -> tuple[Floats, Floats]:
        """Q [N] of each candidate in the situation ``query``, and the kernel-weighted outcomes [N] behind it."""
        near = kernel(state.situations @ query, state.bandwidth)[state.situation] if len(state.value) else np.zeros(0)
        priors = state.mean + self.tilt * nearness(candidates)
        evidence = np.array([self._evidence(state, near, c) for c in candidates])
        if self.credit == "additive":
            return self._additive(state, near, candidates), evidence
        values = priors.copy()
        for n, candidate in enumerate(candidates):
            places = state.places.get(candidate.id)
            if places is not None:
                rows = state.slate[places]
                # A propensity weighs an outcome against the others of its case, and is no evidence by itself.
                share = state.weight[places] * state.visits[rows]
                weights = near[rows] * share * (state.visits[rows].sum() / share.sum())
                values[n] = kernel_value(weights, state.value[rows], float(priors[n]), self.prior_weight)
        return values, evidence

    def _evidence(self, state: KernelState, near: Floats, candidate: Candidate) -> float:
        places = state.places.get(candidate.id)
        if places is None:
            return 0.0
        rows = state.slate[places]
        return float(near[rows] @ state.visits[rows])

    def _additive(self, state: KernelState, near: Floats, candidates: Sequence[Candidate]) -> Floats:
        """b + a_c of each candidate: the ridge solution over the outcomes near here in which any of them was shown."""
        ours = [state.places[c.id] for c in candidates if c.id in state.places]
        rows = np.unique(state.slate[np.concatenate(ours)]) if ours else np.zeros(0, np.int64)
        rows = rows[near[rows] > _FAR]
        inside = np.isin(state.slate, rows)
        cases, column = np.unique(state.case[inside], return_inverse=True)
        x = np.zeros((len(rows), 1 + len(cases)))
        x[:, 0] = 1.0
        x[np.searchsorted(rows, state.slate[inside]), 1 + column] = 1.0
        # Cases that were shown beside a candidate and are none themselves have a share too, with a prior of no effect.
        effects = dict(zip((c.id for c in candidates), self.tilt * nearness(candidates), strict=True))
        prior = np.array([state.mean, *(effects.get(state.ids[c], 0.0) for c in cases)])
        weighted = x * (near[rows] * state.visits[rows])[:, None]
        normal = weighted.T @ x + self.prior_weight * np.eye(len(prior))
        found = prior + np.linalg.solve(normal, weighted.T @ (state.value[rows] - x @ prior))
        effects |= {state.ids[c]: a for c, a in zip(cases, found[1:], strict=True) if state.ids[c] in effects}
        return np.array([found[0] + effects[c.id] for c in candidates])

    # ----------------------------------------------------------------------------------------------------- learning

    def learn(self, state: KernelState, outcomes: Sequence[Outcome]) -> KernelState:
        same_encoder(state.encoder, self.encoder)
        if not outcomes:
            return state
        store = _Store(state)
        for outcome in outcomes:
            if outcome.shown:
                query = query_of(outcome.query, self.dimension, self.name)
                target = outcome.reward - outcome.baseline + self.discount * self._future(state, outcome)
                store.put(query, {c.id: self._weight(c) for c in outcome.shown}, target, self.step)
        after = store.state(state, len(outcomes), self.capacity)
        due = state.outcomes // self.fit_every < after.outcomes // self.fit_every
        if self.bandwidth is None and due and len(after.value) >= _FITTED_FROM:
            after = replace(after, bandwidth=self.fit(after))
        return after

    def _weight(self, case: Candidate) -> float:
        return min(1.0 / max(case.propensity, 1e-9), _LARGEST_WEIGHT) if self.by_propensity else 1.0

    def _future(self, state: KernelState, outcome: Outcome) -> float:
        """α log Σ exp(Q(s',c')/α) under the state before these outcomes, which so is the target network."""
        if outcome.following is None or not self.discount:
            return 0.0
        query, candidates = outcome.following
        values, _ = self.values(state, query_of(query, self.dimension, self.name), candidates)
        return soft_value(values, self.selection.temperature)

    def fit(self, state: KernelState) -> float:
        """The widest h of the grid whose leave-one-out error Σ w_i (Q_i − Q_{−i}(s_i, c_i))² of the shared Q, over the
        newest 512 outcomes, is within one standard error of the least (Breiman et al., 1984).

        Each h is tried at the prior weight that suits it best. With one weight for all the narrowest kernel would win
        wherever rewards are noisy: with no neighbours a guess is the mean of all, which errs little and ranks nothing.
        """
        errors = {
            h: min((self._errors(state, h, n) for n in _PRIOR_WEIGHTS), key=lambda e: float(e.sum()))
            for h in BANDWIDTHS
        }
        best = min(BANDWIDTHS, key=lambda h: float(errors[h].sum()))
        within = [best]
        for h, found in errors.items():
            more = found - errors[best]
            if more.sum() <= math.sqrt(len(more)) * float(more.std()):
                within.append(h)
        return max(within)

    def _errors(self, state: KernelState, bandwidth: float, prior_weight: float) -> Floats:
        newest, found = len(state.value) - _FITTED_ON, [np.zeros(0)]
        for places in state.places.values():
            places = places[state.slate[places] >= newest]
            rows = state.slate[places]
            share = state.weight[places] * state.visits[rows]
            points = state.situations[state.situation[rows]]
            weights = kernel(points @ points.T, bandwidth) * share
            np.fill_diagonal(weights, 0.0)
            guess = (prior_weight * state.mean + weights @ state.value[rows]) / (prior_weight + weights.sum(axis=1))
            found.append(share * (state.value[rows] - guess) ** 2)
        return np.concatenate(found)

    # ------------------------------------------------------------------------------------------------------- storing

    def dump(self, state: KernelState) -> bytes:
        same_encoder(state.encoder, self.encoder)
        arrays = {n: getattr(state, n) for n in _ARRAYS}
        plain = {n: getattr(state, n) for n in ("encoder", "seed", "bandwidth", "outcomes", "targets", "mean")}
        return pack(self.name, {**plain, "ids": list(state.ids)}, arrays)

    def load(self, blob: bytes) -> KernelState:
        values, arrays = unpack(self.name, blob)
        fields: dict[str, Any] = {**values, **arrays}
        try:
            state = KernelState(**{**fields, "ids": tuple(fields["ids"])})
            _fit_together(state, self.dimension)
        except (KeyError, TypeError, ValueError) as problem:
            raise StoreError(f"these bytes are no state of the retriever '{self.name}': {problem}") from problem
        same_encoder(state.encoder, self.encoder)
        return state


_ARRAYS = ("situations", "situation", "value", "visits", "size", "case", "weight")


def _fit_together(state: KernelState, dimension: int) -> None:
    """ValueError for arrays that are of no one state."""
    rows, cases = len(state.value), len(state.case)
    if not (
        state.situations.shape[1:] == (dimension,)
        and all(len(getattr(state, n)) == rows for n in ("situation", "visits", "size"))
        and cases == len(state.weight) == int(state.size.sum())
        and all(
            i.size == 0 or 0 <= i.min() <= i.max() < n
            for i, n in ((state.situation, len(state.situations)), (state.case, len(state.ids)))
        )
    ):
        raise ValueError("its arrays do not fit together")


class _Store:
    """A state while outcomes are added to it: what was there as arrays, what is new beside them."""

    def __init__(self, state: KernelState) -> None:
        self.before = state
        self.value, self.visits = state.value.copy(), state.visits.copy()
        self.ends = np.cumsum(state.size)
        self.vectors: list[Vector] = []
        self.places: dict[bytes, int] = {}
        # (value, visits) by situation, the cases in order and their weights.
        self.added: dict[tuple[int, tuple[str, ...], tuple[float, ...]], tuple[float, int]] = {}
        self.targets, self.mean = state.targets, state.mean

    def put(self, query: Vector, weights: dict[str, float], target: float, step: float | None) -> None:
        place = self._place(query)
        slate = tuple(sorted(weights))
        key = (place, slate, tuple(weights[c] for c in slate))
        row = self._row(*key)
        value, visits = (self.value[row], self.visits[row]) if row is not None else self.added.get(key, (target, 0))
        share = 1.0 / (visits + 1) if step is None else step
        value, visits = float(value + share * (target - value)), int(visits) + 1
        if row is not None:
            self.value[row], self.visits[row] = value, visits
        else:
            self.added[key] = (value, visits)
        self.targets += 1
        self.mean += (target - self.mean) / self.targets

    def _place(self, query: Vector) -> int:
        """The number of this very situation, a new one if need be."""
        known = self.before.situations
        near = np.flatnonzero(known[:, 0] == query[0])
        same = near[(known[near] == query).all(axis=1)]
        if len(same):
            return int(same[0])
        place = self.places.setdefault(query.tobytes(), len(known) + len(self.vectors))
        if place == len(known) + len(self.vectors):
            self.vectors.append(query)
        return place

    def _row(self, place: int, slate: tuple[str, ...], weights: tuple[float, ...]) -> int | None:
        """The stored outcome of this slate in this situation with these weights: visits with other weights stand
        apart, as their mean would be of no one propensity."""
        state = self.before
        for row in np.flatnonzero(state.situation == place):
            inside = slice(self.ends[row] - state.size[row], self.ends[row])
            if tuple(state.ids[c] for c in state.case[inside]) == slate and tuple(state.weight[inside]) == weights:
                return int(row)
        return None

    def state(self, before: KernelState, episodes: int, capacity: int) -> KernelState:
        numbers = {c: n for n, c in enumerate(before.ids)}
        cases = [numbers.setdefault(c, len(numbers)) for _, slate, _ in self.added for c in slate]
        situations = np.concatenate([before.situations, np.array(self.vectors).reshape(-1, before.situations.shape[1])])
        situation = np.append(before.situation, [s for s, _, _ in self.added])
        size = np.append(before.size, [len(slate) for _, slate, _ in self.added])
        case = np.append(before.case, cases)
        weight = np.append(before.weight, [w for _, _, weights in self.added for w in weights])
        value = np.append(self.value, [v for v, _ in self.added.values()])
        visits = np.append(self.visits, [n for _, n in self.added.values()])
        ids = tuple(numbers)
        if len(value) > capacity:
            dropped = int(size[:-capacity].sum())
            value, visits, size = value[-capacity:], visits[-capacity:], size[-capacity:]
            kept, situation = np.unique(situation[-capacity:], return_inverse=True)
            situations, weight = situations[kept.astype(int)], weight[dropped:]
            named, case = np.unique(case[dropped:], return_inverse=True)
            ids = tuple(ids[int(n)] for n in named)
        return replace(
            before,
            situations=frozen(situations.astype(np.float32)),
            ids=ids,
            situation=frozen(situation.astype(np.int32)),
            value=frozen(value.astype(np.float64)),
            visits=frozen(visits.astype(np.int32)),
            size=frozen(size.astype(np.int32)),
            case=frozen(case.astype(np.int32)),
            weight=frozen(weight.astype(np.float64)),
            outcomes=before.outcomes + episodes,
            targets=self.targets,
            mean=self.mean,
        )
