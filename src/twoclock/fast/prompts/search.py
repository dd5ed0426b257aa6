"""One search: how a budget is cut into stages, and successive halving over them.

Every candidate of a stage answers the same new items, in one call, with the same random numbers unless the rollouts are
to be learned from later; scores add up over the stages of one search and are thrown away with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from twoclock.contracts import Workbench
from twoclock.errors import BudgetError
from twoclock.fast.prompts.state import Candidate
from twoclock.seeding import child_seed
from twoclock.types import Item

__all__ = ["MIN_ITEMS", "MIN_ROLLOUTS", "Scores", "SearchPlan", "halve", "plan_search"]

MIN_ROLLOUTS = 16
"""Below this a search says nothing."""
MIN_ITEMS = 4
"""Fewest items a candidate is scored on."""


@dataclass(frozen=True)
class SearchPlan:
    """``stages`` has (candidates, new items) in order; the first has all candidates of the plan."""

    stages: tuple[tuple[int, int], ...]
    samples: int

    @property
    def rollouts(self) -> int:
        return self.samples * sum(c * n for c, n in self.stages)

    @property
    def candidates(self) -> int:
        return self.stages[0][0]


def _stages(candidates: int, items: int, first: int, halving: int, finalists: int) -> tuple[tuple[int, int], ...]:
    stages = [(candidates, min(first, items))]
    seen = stages[0][1]
    while seen < items:
        candidates = min(candidates, max(finalists, math.ceil(candidates / halving)))
        new = min(seen, items - seen)
        stages.append((candidates, new))
        seen += new
    return tuple(stages)


def plan_search(
    *, candidates: int, items: int, samples: int, first: int, halving: int, finalists: int, budget: int | None
) -> SearchPlan | None:
    """The largest plan that ``budget`` rollouts pay for; None where not even 2 candidates on 4 items fit.

    Gives up, in this order: items beyond the first stage, then candidates, then items of the first stage, then
    repeated samples.
    """
    if candidates < 2 or items < MIN_ITEMS or (budget is not None and budget < MIN_ROLLOUTS):
        return None
    for s in dict.fromkeys((samples, 1)):
        for least in dict.fromkeys((min(first, items), MIN_ITEMS)):
            for c in range(candidates, 1, -1):
                for n in range(items, least - 1, -1):
                    plan = SearchPlan(_stages(c, n, min(first, n), halving, finalists), s)
                    if budget is None or plan.rollouts <= budget:
                        return plan
    return None


@dataclass(frozen=True)
class Scores:
    """What a search measured: for each finalist one score an item, all on the same items."""

    finalists: tuple[Candidate, ...]
    rows: tuple[tuple[float, ...], ...]
    """One row a finalist, one column an item: mean rewards."""
    eliminated: tuple[Candidate, ...]
    """Scored on fewer items, and dropped on the way."""

    def mean(self, k: int) -> float:
        return math.fsum(self.rows[k]) / len(self.rows[k])


def halve(
    bench: Workbench,
    candidates: Sequence[Candidate],
    items: Sequence[Item],
    plan: SearchPlan,
    seed: int,
    *,
    kept: Collection[str] = (),
) -> Scores:
    """Run the plan. ``candidates[0]`` (the deployed one) is in every stage; the others stay by mean score so far,
    earlier ones first where means are equal. Items are taken in the order given.

    ``kept`` holds the ids of items whose rollouts are to be learned from later: on these each rollout has random
    numbers of its own, on all others candidates share theirs (see :meth:`~twoclock.contracts.Workbench.roll_out`).

    Raises BudgetError where a limit that the plan does not know (tokens) forbids even the first stage; later on it only
    ends the search early.
    """
    alive = list(candidates)
    rows: dict[str, list[float]] = {c.id: [] for c in alive}
    seen = 0
    for stage, (keep, new) in enumerate(plan.stages):
        first, *rest = alive
        ranked = sorted(rest, key=lambda c: -math.fsum(rows[c.id]))  # stable; all have seen the same items
        entering = [first, *ranked[: keep - 1]]
        try:
            for paired, batch in _parts(items[seen : seen + new], kept):
                numbers = child_seed("prompts.search", seed, stage)
                groups = bench.roll_out(batch, [c.conditioning for c in entering], plan.samples, numbers, paired=paired)
                alive, seen = entering, seen + len(batch)
                for group in groups:
                    for k, candidate in enumerate(alive):
                        drawn = group.rewards[k * plan.samples : (k + 1) * plan.samples]
                        rows[candidate.id].append(math.fsum(drawn) / plan.samples)
        except BudgetError:
            if seen == 0:
                raise
            break
    ids = {c.id for c in alive}
    return Scores(
        finalists=tuple(alive),
        rows=tuple(tuple(rows[c.id]) for c in alive),
        eliminated=tuple(c for c in candidates if c.id not in ids),
    )


def _parts(items: Sequence[Item], kept: Collection[str]) -> list[tuple[bool, Sequence[Item]]]:
    """A stage's items by whether their rollouts are paired: those to be kept first."""
    parts = [(False, [i for i in items if i.id in kept]), (True, [i for i in items if i.id not in kept])]
    return [(paired, batch) for paired, batch in parts if batch]
