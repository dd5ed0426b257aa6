"""The prompts channel: a population of prompts, searched on the policy as it is now.

One search: candidates (survivors of the pool and new ones) → successive halving on training items → Pareto pool →
an offer. ``propose`` never decides that a change of the deployed prompt is kept: the best of many noisy scores is too
good by selection, so a gate compares the two prompts on fresh items (``twoclock.allocate.gates``).

Two rules against noise and staleness: a score lives no longer than the search that measured it, and what is offered was
best on all items of the search, by more than nothing.

What a search drops is remembered with the weights it was measured under and is not tried again on them. What a *gate*
rejects is not in the live state, as a rejected state is dropped whole; the same exemplars do not come back all the
same, because each round draws them from its own seed and its own evidence.

References: GEPA arXiv:2507.19457; Fast-Slow Training arXiv:2605.12484. Departures are told in ``pareto.py`` and
``reflective.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from twoclock.contracts import Reflector, Workbench
from twoclock.errors import BudgetError, ConfigError
from twoclock.fast.prompts.config import PromptsConfig
from twoclock.fast.prompts.exemplars import gold_turns, new_candidates, proven_turns
from twoclock.fast.prompts.pareto import choose_pool
from twoclock.fast.prompts.reflective import Reflections, reflect, require_gepa
from twoclock.fast.prompts.search import MIN_ITEMS, MIN_ROLLOUTS, Scores, SearchPlan, halve, plan_search
from twoclock.fast.prompts.state import EMPTY, Candidate, Pool, PromptsState, Score, dump_state, load_state
from twoclock.seeding import child_rng, child_seed
from twoclock.types import (
    Budget,
    Conditioning,
    Cost,
    Declined,
    Evidence,
    Item,
    PolicyCard,
    Proposal,
    Timescale,
    Write,
)

__all__ = ["PromptsChannel"]

CHARS_PER_TOKEN = 2
"""A cautious guess that keeps a prompt inside the policy's context whatever its tokenizer."""


@dataclass(frozen=True)
class _Material:
    """What a search starts from."""

    fresh: tuple[Candidate, ...]
    items: tuple[Item, ...]
    """Items to score on; none of them stands in a candidate."""
    reflections: Reflections


class PromptsChannel:
    """Learns which system prompt and which exemplars to show; see the module.

    ``reflector`` is needed by the proposer ``reflective`` alone: any callable from prompt to text.
    """

    name = "prompts"
    timescale = Timescale.FAST

    def __init__(self, config: PromptsConfig | None = None, reflector: Reflector | None = None) -> None:
        self.config = config or PromptsConfig()
        self.reflector = reflector
        if "reflective" in self.config.proposers:
            if reflector is None:
                raise ConfigError(
                    "the proposer 'reflective' needs a reflector: give one, or set proposers = [\"exemplars\"]"
                )
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
        reflections = Reflections()

        def declined(reason: str) -> Declined:
            return Declined(channel=self.name, reason=reason, cost=_cost(bench, started, reflections))

        if not evidence.rollouts:
            return declined("no evidence: there are no rollouts to learn from")
        if all(r.reward >= 1.0 for r in evidence.rollouts):
            return declined(f"every one of {len(evidence.rollouts)} rollouts was right: nothing to search for")
        limits = [n for n in (budget.rollouts, bench.rollouts_left) if n is not None]
        limit = min(limits) if limits else None
        if limit is not None and limit < MIN_ROLLOUTS:
            return declined(f"the budget of {limit} rollouts is too small: a search needs at least {MIN_ROLLOUTS}")
        pool = state.pool(self._key(evidence.task))
        weights = bench.others.delta.id if bench.others.delta else "base"
        material = self._material(bench, pool, evidence, weights, seed)
        reflections = material.reflections
        candidates = _order(pool, material.fresh)
        if len(candidates) < 2:
            return declined("no candidate beside the deployed prompt could be made" + _notes(reflections))
        plan = self._plan(len(candidates), len(material.items), limit)
        if plan is None:
            return declined(f"{len(material.items)} training items are left to score on: at least {MIN_ITEMS} needed")
        try:
            scores = halve(bench, candidates[: plan.candidates], material.items, plan, seed)
        except BudgetError as error:
            return declined(f"the budget ended before anything was compared: {error}")
        unscored = candidates[plan.candidates :]
        after = self._next_pool(pool, scores, [c for c in unscored if c in pool.candidates], weights)
        if (after.candidates, after.deployed, after.losers) == (pool.candidates, pool.deployed, pool.losers):
            return declined("the search changed nothing: the pool stands as it was" + _notes(reflections))
        return self._offer(
            state.with_pool(self._key(evidence.task), after), pool, after, scores, reflections, bench, started
        )

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

    def _material(self, bench: Workbench, pool: Pool, evidence: Evidence, weights: str, seed: int) -> _Material:
        """New candidates, and items to score on that no candidate shows."""
        config = self.config
        max_chars = min(config.max_prompt_chars, CHARS_PER_TOKEN * bench.card.context_tokens)
        known = {c.id for c in pool.candidates} | {c for c, w in pool.losers if w == weights}
        proven = proven_turns(evidence)
        shown = {q for c in pool.candidates for q, _ in c.exemplars} | {q for q, _ in proven}
        drawn = bench.items(
            "train", config.search_items + config.gold_items + len(shown), child_seed("prompts.items", seed)
        )
        clear = [item for item in drawn if item.prompt not in shown]
        num_gold = min(config.gold_items, len(clear) // 2)
        for_gold, for_search = clear[:num_gold], clear[num_gold:]
        fresh: list[Candidate] = []
        if "exemplars" in config.proposers:
            fresh += new_candidates(
                deployed=pool.deployed_candidate,
                proven=proven,
                gold=gold_turns(bench.task, for_gold),
                sizes=config.num_exemplars,
                instructions=config.instructions,
                count=config.num_new,
                max_chars=max_chars,
                known=known,
                rng=child_rng("prompts.exemplars", seed),
            )
        reflections = self._reflect(pool, evidence, drawn, max_chars, known, seed)
        fresh = [*reflections.candidates, *fresh]  # the dearer ones first, should the budget cut
        return _Material(tuple(fresh), tuple(_distinct_prompts(for_search)), reflections)

    def _reflect(
        self, pool: Pool, evidence: Evidence, drawn: Sequence[Item], max_chars: int, known: set[str], seed: int
    ) -> Reflections:
        if "reflective" not in self.config.proposers or self.reflector is None:
            return Reflections()
        rng = child_rng("prompts.reflective", seed)
        others = [c for c in pool.candidates if c.id != pool.deployed]
        parents = [pool.deployed_candidate, *rng.sample(others, len(others))]
        return reflect(
            self.reflector,
            evidence=evidence,
            parents=[parents[i % len(parents)] for i in range(self.config.num_reflections)],
            items=[*(g.item for g in evidence.groups), *drawn],
            examples=self.config.reflection_examples,
            max_chars=max_chars,
            ngram=self.config.copy_ngram,
            known=known,
            rng=rng,
        )

    def _next_pool(self, pool: Pool, scores: Scores, unscored: Sequence[Candidate], weights: str) -> Pool:
        """The pool after a search: best mean deployed (the deployed one where it is as good), the empty prompt kept."""
        size = self.config.pool_size
        order = choose_pool(scores.rows, len(scores.finalists))
        winner = min(  # row 0 is the deployed one: it wins ties; then the shorter text does
            range(len(scores.finalists)), key=lambda k: (-scores.mean(k), k > 0, scores.finalists[k].chars, k)
        )
        ranked = [scores.finalists[winner], *(scores.finalists[k] for k in order if k != winner), *unscored]
        kept = [c for c in ranked if not c.is_empty][: size - 1]
        at = ranked.index(EMPTY) if EMPTY in ranked else len(kept)
        kept.insert(min(at, len(kept)), EMPTY)
        kept_ids = {c.id for c in kept}
        dropped = [c for c in (*scores.finalists, *scores.eliminated) if c.id not in kept_ids]
        losers = dict.fromkeys([*pool.losers, *((c.id, weights) for c in dropped)])
        measured = {c.id: k for k, c in enumerate(scores.finalists)}
        return Pool(
            candidates=tuple(kept),
            deployed=scores.finalists[winner].id,
            losers=tuple(losers)[max(0, len(losers) - self.config.memory) :],
            scores=tuple(
                Score(candidate=c.id, mean=scores.mean(k), items=len(scores.rows[k]), weights=weights)
                for c in kept
                if (k := measured.get(c.id)) is not None
            ),
        )

    def _offer(
        self,
        state: PromptsState,
        before: Pool,
        after: Pool,
        scores: Scores,
        reflections: Reflections,
        bench: Workbench,
        started: Cost,
    ) -> Proposal[PromptsState]:
        best = max(scores.mean(k) for k in range(len(scores.finalists)))
        tried = len(scores.finalists) + len(scores.eliminated)
        items = len(scores.rows[0])
        if after.deployed != before.deployed:
            numbers = f"{best:.3f} on {items} training items, the deployed one {scores.mean(0):.3f}"
            cause = f"the best of {tried} prompts scored {numbers}"
        else:
            cause = f"pool only: of {tried} prompts none scored above the deployed one ({best:.3f} on {items} items)"
        return Proposal(
            channel=self.name,
            state=state,
            cause=cause + _notes(reflections),
            cost=_cost(bench, started, reflections),
            writes=_writes(before, after),
            metrics={
                "candidates": float(tried),
                "search_items": float(items),
                "search_best": best,
                "search_deployed": scores.mean(0),
                "pool": float(len(after.candidates)),
                "reflections_refused": float(len(reflections.problems)),
            },
        )


def _order(pool: Pool, fresh: Sequence[Candidate]) -> list[Candidate]:
    """Whom a shrinking budget cuts last: the deployed one, then new ones and survivors by turns, the empty one."""
    survivors = [c for c in pool.candidates if c.id != pool.deployed and not c.is_empty]
    mixed: list[Candidate] = []
    for i in range(max(len(fresh), len(survivors))):
        mixed += [*fresh[i : i + 1], *survivors[i : i + 1]]
    empty = [] if pool.deployed_candidate.is_empty else [EMPTY]
    return [pool.deployed_candidate, *mixed, *empty]


def _distinct_prompts(items: Sequence[Item]) -> list[Item]:
    return list({item.prompt: item for item in items}.values())


def _notes(reflections: Reflections) -> str:
    distinct = list(dict.fromkeys(reflections.problems))
    return f"; reflective: {'; '.join(distinct)}" if distinct else ""


def _cost(bench: Workbench, started: Cost, reflections: Reflections) -> Cost:
    """What the bench counted since ``started``, and the reflector calls, which it cannot see."""
    spent = bench.spent
    counted = Cost(**{f.name: getattr(spent, f.name) - getattr(started, f.name) for f in fields(Cost)})
    return counted + Cost(reflector_calls=reflections.calls)


def _describe(candidate: Candidate) -> str:
    if candidate.is_empty:
        return "(no prompt)"
    lines = [f"system: {candidate.system}"] if candidate.system is not None else []
    return "\n".join([*lines, *(f"user: {q}\nassistant: {a}" for q, a in candidate.exemplars)])


def _writes(before: Pool, after: Pool) -> tuple[Write, ...]:
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
