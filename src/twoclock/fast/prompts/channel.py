"""The prompts channel: a population of prompts, searched on the policy as it is now.

One search: candidates (survivors of the pool and new ones) → successive halving on training items → Pareto pool →
an offer. ``propose`` never decides that a change of the deployed prompt is kept: the best of many noisy scores is too
good by selection, so a gate compares the two prompts on fresh items (``twoclock.allocate.gates``).

Two rules against noise and staleness: a score lives no longer than the search that measured it, and what is offered was
best on all items of the search, by more than nothing.

Where the gate refuses the change, the new pool may still be kept with the old prompt deployed: the offer's fallback,
which speaks to the model exactly as the live state does. So survivors are carried over, and each search re-scores them.

What a search drops is remembered with the weights it was measured under and is not tried again on them. What a *gate*
refuses the channel cannot see; such a prompt stays in the fallback's pool as one candidate among others.

References: GEPA arXiv:2507.19457; Fast-Slow Training arXiv:2605.12484. Departures are told in ``pareto.py`` and
``reflective.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace

from twoclock.contracts import Reflector, Workbench
from twoclock.errors import BudgetError, ConfigError, unknown_name
from twoclock.fast.prompts.config import PromptsConfig
from twoclock.fast.prompts.material import Material, Search, gather
from twoclock.fast.prompts.pareto import choose_pool
from twoclock.fast.prompts.reflective import require_gepa
from twoclock.fast.prompts.search import MIN_ITEMS, MIN_ROLLOUTS, Scores, SearchPlan, halve, plan_search
from twoclock.fast.prompts.state import EMPTY, Candidate, Pool, PromptsState, Score, dump_state, load_state
from twoclock.fast.prompts.writes import told_writes
from twoclock.types import (
    Budget,
    Conditioning,
    Cost,
    Declined,
    Evidence,
    Lesson,
    PolicyCard,
    Proposal,
    Timescale,
)

__all__ = ["PromptsChannel"]


class PromptsChannel:
    """Learns which system prompt and which exemplars to show; see the module.

    ``reflector`` is needed by the proposer ``reflective`` alone: any callable from prompt to text. Raises ConfigError
    where it is missing, MissingExtraError where the package that reflection prompts come from is.
    """

    name = "prompts"
    timescale = Timescale.FAST

    def __init__(self, config: PromptsConfig | None = None, reflector: Reflector | None = None) -> None:
        self.config = config or PromptsConfig()
        self.reflector = reflector
        if "reflective" in self.config.proposers and reflector is None:
            raise ConfigError(
                "the proposer 'reflective' needs a reflector: give one, or set proposers = [\"exemplars\"]; "
                "'self' lets the policy reflect"
            )
        if {"reflective", "self"} & set(self.config.proposers):
            require_gepa()

    # ------------------------------------------------------------------------------------------------- the contract

    def init(self, card: PolicyCard, seed: int) -> PromptsState:
        return PromptsState()

    def condition(self, state: PromptsState, task: str) -> Conditioning:
        return state.pool(self._key(task)).deployed_candidate.conditioning

    def alternatives(self, state: PromptsState, task: str, count: int, seed: int) -> tuple[Conditioning, ...]:
        """The deployed prompt, then the rest of the pool in the order of the last search; ``seed`` is not needed."""
        if count < 1:
            raise ValueError(f"count = {count}: expected at least 1")
        pool = state.pool(self._key(task))
        others = [c for c in pool.candidates if c.id != pool.deployed]
        if not self.config.empty_alternative:
            others = [c for c in others if not c.is_empty]
        return tuple(c.conditioning for c in [pool.deployed_candidate, *others][:count])

    def dump(self, state: PromptsState) -> bytes:
        return dump_state(state)

    def load(self, blob: bytes) -> PromptsState:
        return load_state(blob)

    def propose(
        self, bench: Workbench, state: PromptsState, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[PromptsState] | Declined:
        """One search, or a reason for none. Spends at most ``budget.rollouts`` (and what the bench has left)."""
        started = bench.spent
        material = Material()

        def declined(reason: str) -> Declined:
            return Declined(channel=self.name, reason=reason, cost=_cost(bench, started, material))

        if not evidence.rollouts:
            return declined("no evidence: there are no rollouts to learn from")
        if all(r.reward >= 1.0 for r in evidence.rollouts):
            return declined(f"every one of {len(evidence.rollouts)} rollouts was right: nothing to search for")
        limit = min((n for n in (budget.rollouts, bench.rollouts_left) if n is not None), default=None)
        if limit is not None and limit < MIN_ROLLOUTS:
            return declined(f"the budget of {limit} rollouts is too small: a search needs at least {MIN_ROLLOUTS}")
        pool = state.pool(self._key(evidence.task))
        parts = [part.id for part in (bench.others.delta, bench.others.mixture) if part]
        weights = "*".join(parts) or "base"
        search = Search(bench, self.config, self.reflector, pool, evidence, weights, limit, started.rollouts, seed)
        material = gather(search)
        candidates = _order(pool, material.fresh)
        if len(candidates) < 2:
            return declined("no candidate beside the deployed prompt could be made" + material.notes)
        plan = self._plan(len(candidates), len(material.items), search.left)
        if plan is None:
            return declined(f"{len(material.items)} training items are left to score on: at least {MIN_ITEMS} needed")
        kept = material.upcoming if bench.keeps_upcoming else frozenset()
        try:
            scores = halve(bench, candidates[: plan.candidates], material.items, plan, seed, kept=kept)
        except BudgetError as error:
            return declined(f"the budget ended before anything was compared: {error}")
        unscored = [c for c in candidates[plan.candidates :] if c in pool.candidates]
        after = self._next_pool(pool, scores, unscored, weights)
        if _same(after, pool):
            return declined("the search changed nothing: the pool stands as it was" + material.notes)
        key, fallback = self._key(evidence.task), None
        if after.deployed != pool.deployed:
            beside = self._next_pool(pool, scores, unscored, weights, deployed=0)
            fallback = None if _same(beside, pool) else state.with_pool(key, beside)
        return Proposal(
            channel=self.name,
            state=state.with_pool(key, after),
            cause=_cause(pool, after, scores) + material.notes,
            cost=_cost(bench, started, material),
            writes=told_writes(pool, after),
            metrics=_metrics(after, scores, material),
            fallback=fallback,
        )

    # ------------------------------------------------------------------------------------------------------- lessons

    def lessons(self, state: PromptsState) -> tuple[Lesson, ...]:
        """Each prompt of a pool but the empty one; live is the one that is deployed. A prompt that several tasks have
        is one lesson."""
        tasks: dict[str, list[str]] = {}
        live: dict[str, list[str]] = {}
        known = {c.id: c for _, pool in state.pools for c in pool.candidates if not c.is_empty}
        for key, pool in state.pools:
            for candidate in pool.candidates:
                tasks.setdefault(candidate.id, []).append(key)
            live.setdefault(pool.deployed, []).append(key)
        found = [
            Lesson(
                id=c.id,
                channel=self.name,
                text=_told(c),
                tasks=tuple(live.get(c.id) or tasks[c.id]),
                live=c.id in live,
                says=c.conditioning,
            )
            for c in known.values()
        ]
        return tuple(sorted(found, key=lambda lesson: (not lesson.live, lesson.id)))

    def without(self, state: PromptsState, lessons: Collection[str]) -> PromptsState:
        """The empty prompt is deployed in their place; they stay in their pools, and a search may find them again."""
        known = {lesson.id for lesson in self.lessons(state)}
        if unknown := [unknown_name("prompt", name, known) for name in lessons if name not in known]:
            raise ConfigError(unknown)
        for key, pool in state.pools:
            if pool.deployed in lessons:
                there = pool.candidates if EMPTY in pool.candidates else (*pool.candidates, EMPTY)
                state = state.with_pool(key, replace(pool, candidates=there, deployed=EMPTY.id))
        return state

    # ------------------------------------------------------------------------------------------------------ its parts

    def _key(self, task: str) -> str:
        return task if self.config.scope == "task" else "*"

    def _plan(self, candidates: int, items: int, limit: int | None) -> SearchPlan | None:
        config = self.config
        return plan_search(
            candidates=candidates,
            items=min(items, config.search_items),
            samples=config.search_samples,
            first=config.first_items,
            halving=config.halving,
            finalists=config.pool_size,
            budget=limit,
        )

    def _next_pool(
        self,
        pool: Pool,
        scores: Scores,
        unscored: Sequence[Candidate],
        weights: str,
        deployed: int | None = None,
    ) -> Pool:
        """The pool after a search: best mean deployed (the deployed one where it is as good), the empty prompt kept.

        ``deployed`` names the finalist that is deployed instead; 0 is the one that is deployed now. It is kept, and
        where that makes one too many the last of the others goes.
        """
        size = self.config.pool_size
        order = choose_pool(scores.rows, len(scores.finalists))
        winner = min(  # row 0 is the deployed one: it wins ties; then the shorter text does
            range(len(scores.finalists)), key=lambda k: (-scores.mean(k), k > 0, scores.finalists[k].chars, k)
        )
        first = winner if deployed is None else deployed
        places = dict.fromkeys([first, winner, *order])
        ranked = [*(scores.finalists[k] for k in places), *unscored]
        kept = [c for c in ranked if not c.is_empty][: size - 1]
        at = ranked.index(EMPTY) if EMPTY in ranked else len(kept)
        kept.insert(min(at, len(kept)), EMPTY)
        kept_ids = {c.id for c in kept}
        dropped = [c for c in (*scores.finalists, *scores.eliminated) if c.id not in kept_ids]
        losers = dict.fromkeys([*pool.losers, *((c.id, weights) for c in dropped)])
        measured = {c.id: k for k, c in enumerate(scores.finalists)}
        return Pool(
            candidates=tuple(kept),
            deployed=scores.finalists[first].id,
            losers=tuple(losers)[max(0, len(losers) - self.config.memory) :],
            scores=tuple(
                Score(candidate=c.id, mean=scores.mean(k), items=len(scores.rows[k]), weights=weights)
                for c in kept
                if (k := measured.get(c.id)) is not None
            ),
        )


def _told(candidate: Candidate) -> str:
    turns = [f"{question}\n→ {answer}" for question, answer in candidate.exemplars]
    return "\n".join([*([candidate.system] if candidate.system is not None else []), *turns])


def _cause(before: Pool, after: Pool, scores: Scores) -> str:
    best = max(scores.mean(k) for k in range(len(scores.finalists)))
    tried, items = len(scores.finalists) + len(scores.eliminated), len(scores.rows[0])
    if after.deployed == before.deployed:
        return f"pool only: of {tried} prompts none scored above the deployed one ({best:.3f} on {items} items)"
    numbers = f"{best:.3f} on {items} training items, the deployed one {scores.mean(0):.3f}"
    return f"the best of {tried} prompts scored {numbers}"


def _metrics(after: Pool, scores: Scores, material: Material) -> dict[str, float]:
    items = len(scores.rows[0])
    scored = {item.id for item in material.items[:items]}
    return {
        "candidates": float(len(scores.finalists) + len(scores.eliminated)),
        "search_items": float(items),
        "search_upcoming": float(len(scored & material.upcoming)),
        "search_best": max(scores.mean(k) for k in range(len(scores.finalists))),
        "search_deployed": scores.mean(0),
        "pool": float(len(after.candidates)),
        "reflections_refused": float(sum(name != "edits" for name, _ in material.refused)),
    }


def _same(one: Pool, other: Pool) -> bool:
    """Whether two pools are the same but for their scores, which nothing reads."""
    return (one.candidates, one.deployed, one.losers) == (other.candidates, other.deployed, other.losers)


def _order(pool: Pool, fresh: Sequence[Candidate]) -> list[Candidate]:
    """Whom a shrinking budget cuts last: the deployed one, then new ones and survivors by turns, the empty one."""
    survivors = [c for c in pool.candidates if c.id != pool.deployed and not c.is_empty]
    mixed: list[Candidate] = []
    for i in range(max(len(fresh), len(survivors))):
        mixed += [*fresh[i : i + 1], *survivors[i : i + 1]]
    empty = [] if pool.deployed_candidate.is_empty else [EMPTY]
    return [pool.deployed_candidate, *mixed, *empty]


def _cost(bench: Workbench, started: Cost, material: Material) -> Cost:
    """What the bench counted since ``started``, and the reflector calls, which it cannot see."""
    spent = bench.spent
    counted = Cost(**{f.name: getattr(spent, f.name) - getattr(started, f.name) for f in fields(Cost)})
    return counted + Cost(reflector_calls=material.reflector_calls)
