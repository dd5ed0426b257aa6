"""The interleaving of Fast-Slow Training (arXiv:2605.12484): a fast search after every T slow rounds.

The counter c of the published code grows by one with each round in which slow channels learn; the search fires in the
round in which c reaches the warm-start (before the first search) or T (after it), before that round's own gradient
step, and c starts again. So T = 6 with a warm-start of 6 searches in rounds 6, 12, 18 ..., and the found prompts are
used from the next round. Where we depart: a warm-start of 0 searches in the first round; a change of phase may trigger
a search as well (the published one does not detect it); in a run without slow channels every round counts.

c is computed from the history, so a resumed run plans the same. A memory that has once written is asked in every
round: it learns from the round's own rollouts and costs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twoclock.allocate.plans import BudgetConfig, assign, learns_for_free
from twoclock.types import Evidence, Plan, Timescale

__all__ = ["AlternateAllocator", "AlternateConfig"]


@dataclass(frozen=True, kw_only=True)
class AlternateConfig(BudgetConfig):
    slow_steps: int = 6
    """T: slow rounds from one fast search to the next."""
    warmstart: int = 6
    """Slow rounds up to the first search, that round included; 0 searches in the first round."""
    search_on_switch: bool = False
    """Also search in the first round of a new phase; counting starts again from there."""

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.slow_steps < 1:
            problems.append(f"slow_steps = {self.slow_steps}: expected at least 1")
        if self.warmstart < 0:
            problems.append(f"warmstart = {self.warmstart}: expected 0 (search first) or a number of slow rounds")
        return problems


class AlternateAllocator:
    """Slow channels each round, fast channels as the module says."""

    def __init__(self, config: AlternateConfig | None = None) -> None:
        self.config = config or AlternateConfig()

    def plan(self, evidence: Evidence, channels: Mapping[str, Timescale], history: Sequence[Mapping[str, Any]]) -> Plan:
        slow = [name for name, clock in channels.items() if clock is Timescale.SLOW]
        fast = [name for name, clock in channels.items() if clock is Timescale.FAST]
        due = self._search_reason(evidence, set(slow), set(fast), history)
        reasons = [(name, "each round") for name in slow]
        if due:
            reasons += [(name, due) for name in fast]
        else:
            reasons += [(n, "it learns from the round's own rollouts") for n in fast if learns_for_free(n, history)]
        return Plan(assignments=assign(self.config, channels, reasons))

    def _search_reason(
        self, evidence: Evidence, slow: set[str], fast: set[str], history: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """Why a search is due this round, or None."""
        config = self.config
        if config.search_on_switch and history and history[-1]["phase"] != evidence.phase:
            return "the phase has changed"
        # A memory is asked in every round and is no search; of a run that has nothing else its turns are all there is.
        fast = {name for name in fast if not learns_for_free(name, history)} or fast
        searches = [i for i, past in enumerate(history) if fast & set(past["proposed"])]
        since = history[searches[-1] + 1 :] if searches else history
        count = 1 + sum(1 for past in since if not slow or slow & set(past["proposed"]))
        if searches:
            return f"{count} slow rounds since the last search" if count >= config.slow_steps else None
        return f"the warm-start of {config.warmstart} slow rounds is over" if count >= config.warmstart else None
