"""What a search starts from: new candidates of every proposer that is named, mixed, and the items to score on.

Each proposer draws from its own seed, so the order in which they are named means nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from twoclock.contracts import Reflector, Workbench
from twoclock.fast.prompts.config import PromptsConfig
from twoclock.fast.prompts.edits import Edits, Known, hints_of, new_edits
from twoclock.fast.prompts.exemplars import Turn, gold_turns, new_candidates
from twoclock.fast.prompts.frames import shape_of
from twoclock.fast.prompts.guards import item_ngrams
from twoclock.fast.prompts.reflective import Reflections, Writer, policy_writer, reflect, reflector_writer
from twoclock.fast.prompts.search import MIN_ROLLOUTS
from twoclock.fast.prompts.state import Candidate, Pool
from twoclock.fast.prompts.window import Drawn, draw, showable
from twoclock.seeding import child_rng
from twoclock.types import Evidence, Item

__all__ = ["Material", "Search", "crossovers", "gather"]

CHARS_PER_TOKEN = 2
"""A cautious guess that keeps a prompt inside the policy's context whatever its tokenizer."""
CROSSOVERS = 2
"""The most crossings tried in one search."""


@dataclass(frozen=True)
class Search:
    """What one search is about."""

    bench: Workbench
    config: PromptsConfig
    reflector: Reflector | None
    pool: Pool
    evidence: Evidence
    weights: str
    """The id of the weights it runs on, or ``base``."""
    limit: int | None
    """The most rollouts it may spend, from ``started`` on."""
    started: int
    """What the bench had spent in rollouts before."""
    seed: int

    @property
    def left(self) -> int | None:
        return None if self.limit is None else self.limit - (self.bench.spent.rollouts - self.started)

    @property
    def max_chars(self) -> int:
        return min(self.config.max_prompt_chars, CHARS_PER_TOKEN * self.bench.card.context_tokens)

    def names(self, proposer: str) -> bool:
        return proposer in self.config.proposers


@dataclass(frozen=True)
class Material:
    """What a search starts from."""

    fresh: tuple[Candidate, ...] = ()
    items: tuple[Item, ...] = ()
    """Items to score on, in order; none of them stands in a candidate."""
    upcoming: frozenset[str] = frozenset()
    """The ids of those that the next rounds read."""
    refused: tuple[tuple[str, str], ...] = ()
    """(proposer, why) of each proposal that a guard refused."""
    reflector_calls: int = 0

    @property
    def notes(self) -> str:
        """The refusals in words, for the end of a sentence; empty where there are none."""
        reasons: dict[str, list[str]] = {}
        for proposer, reason in dict.fromkeys(self.refused):
            reasons.setdefault(proposer, []).append(reason)
        return "".join(f"; {proposer}: {'; '.join(said)}" for proposer, said in reasons.items())


def gather(search: Search) -> Material:
    """New candidates and items. May spend rollouts on the policy's own reflection, never the last of a search."""
    pool, weights = search.pool, search.weights
    drawn = draw(search.bench, pool, search.evidence, search.config, search.seed)
    seen = {c.id for c in pool.candidates} | {c for c, w in pool.losers if w == weights}
    found: dict[str, Reflections] = {}
    for name, writer in _writers(search).items():
        found[name] = _reflect(search, drawn, name, writer, seen)
        seen |= {c.id for c in found[name].candidates}
    crossed = crossovers(pool, CROSSOVERS, search.max_chars, seen, child_rng("prompts.crossover", search.seed))
    seen |= {c.id for c in crossed}
    gold = gold_turns(search.bench.task, drawn.gold) if search.names("exemplars") or search.names("edits") else []
    edits = _edits(search, drawn, gold, seen) if search.names("edits") else Edits()
    seen |= {c.id for c in edits.candidates}
    count = search.config.num_new - len(edits.candidates)
    exemplars = _exemplars(search, drawn, gold, count, seen) if search.names("exemplars") else []
    reflected = [c for reflections in found.values() for c in reflections.candidates]
    return Material(
        # The dearer ones first, should the budget cut; the others by turns.
        fresh=(*reflected, *_by_turns(crossed, exemplars, edits.candidates)),
        items=drawn.search,
        upcoming=drawn.upcoming,
        refused=(
            *((name, reason) for name, reflections in found.items() for reason in reflections.problems),
            *(("edits", reason) for reason in edits.problems),
        ),
        reflector_calls=found["reflective"].calls if "reflective" in found else 0,
    )


def crossovers(pool: Pool, count: int, max_chars: int, known: Iterable[str], rng: random.Random) -> list[Candidate]:
    """Up to ``count`` children with the system prompt of one candidate and the exemplars of another, such pairs first
    that have the deployed one in them."""
    seen = set(known)
    pairs = [(a, b) for a in pool.candidates for b in pool.candidates if a.system is not None and b.exemplars]
    rng.shuffle(pairs)
    pairs.sort(key=lambda pair: pool.deployed not in (pair[0].id, pair[1].id))
    children: list[Candidate] = []
    for a, b in pairs:
        parent = b.id if b.id == pool.deployed else a.id
        child = Candidate(system=a.system, exemplars=b.exemplars, parent=parent, origin="crossover")
        if child.id not in seen and child.chars <= max_chars and len(children) < count:
            seen.add(child.id)
            children.append(child)
    return children


def _writers(search: Search) -> dict[str, Writer]:
    writers: dict[str, Writer] = {}
    if search.names("reflective") and search.reflector is not None:
        writers["reflective"] = reflector_writer(search.reflector)
    if search.names("self"):
        writers["self"] = policy_writer(
            search.bench,
            max_new_tokens=search.config.self_tokens,
            seed=search.seed,
            spare=lambda: search.left is None or search.left > MIN_ROLLOUTS,
        )
    return writers


def _reflect(search: Search, drawn: Drawn, name: str, writer: Writer, seen: Iterable[str]) -> Reflections:
    config, pool = search.config, search.pool
    rng = child_rng(f"prompts.{name}", search.seed)
    others = [c for c in pool.candidates if c.id != pool.deployed]
    parents = [pool.deployed_candidate, *rng.sample(others, len(others))]
    room = CHARS_PER_TOKEN * max(0, search.bench.card.context_tokens - config.self_tokens)
    return reflect(
        writer,
        evidence=search.evidence,
        parents=[parents[i % len(parents)] for i in range(config.num_reflections)],
        items=[*(g.item for g in search.evidence.groups), *drawn.items],
        examples=config.reflection_examples,
        max_chars=search.max_chars,
        ngram=config.copy_ngram,
        known=seen,
        rng=rng,
        origin=name,
        max_question_chars=room if name == "self" else None,
    )


def _edits(search: Search, drawn: Drawn, gold: Sequence[Turn], seen: Iterable[str]) -> Edits:
    """Half of the new candidates, or all where no exemplars are made. The form is read from gold answers, and from the
    policy's own right ones where there are none."""
    config = search.config
    answers = [answer for _, answer in gold] or [answer for _, answer in drawn.proven]
    safe = showable(answers, drawn.search)
    shape = shape_of(answers)
    if shape is not None and shape.labels and not set(shape.labels) <= set(safe):
        shape = replace(shape, labels=())
    alone = not search.names("exemplars")
    known = Known(
        description=search.bench.task.description,
        shape=shape,
        examples=safe,
        hints=hints_of(search.evidence),
        instructions=config.instructions if alone else (),
    )
    return new_edits(
        known,
        deployed=search.pool.deployed_candidate,
        count=config.num_new if alone else config.num_new // 2,
        max_chars=search.max_chars,
        own=item_ngrams([*(g.item for g in search.evidence.groups), *drawn.items], config.copy_ngram),
        ngram=config.copy_ngram,
        seen=seen,
        rng=child_rng("prompts.edits", search.seed),
    )


def _exemplars(search: Search, drawn: Drawn, gold: Sequence[Turn], count: int, seen: Iterable[str]) -> list[Candidate]:
    return new_candidates(
        deployed=search.pool.deployed_candidate,
        proven=drawn.proven,
        gold=gold,
        sizes=search.config.num_exemplars,
        instructions=search.config.instructions,
        count=count,
        max_chars=search.max_chars,
        known=seen,
        rng=child_rng("prompts.exemplars", search.seed),
    )


def _by_turns(*rows: Sequence[Candidate]) -> list[Candidate]:
    return [c for c in chain.from_iterable(zip_longest(*rows)) if c is not None]
