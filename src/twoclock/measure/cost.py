"""What a run cost, added up from the ledger: for each channel, each clock, and measuring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from twoclock.types import Cost, Evaluation, LedgerEntry, total

__all__ = ["CostLine", "CostTable", "cost_table"]


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """The sum over some entries of the ledger."""

    cost: Cost
    """Proposing and judging."""
    entries: int
    actions: Mapping[str, int]
    """How many entries of each action: commit, reject, decline, rollback, init."""


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs by who caused them. ``learning`` + ``measuring`` is everything that the ledger's entries and evaluations
    say; rollouts of the loop itself that no entry bears stand in the rounds' metrics."""

    by_channel: Mapping[str, CostLine]
    by_clock: Mapping[str, CostLine]
    learning: CostLine
    measuring: Cost
    evaluations: int


def cost_table(entries: Iterable[LedgerEntry], evaluations: Iterable[Evaluation] = ()) -> CostTable:
    """Channels and clocks in the order in which they first appear."""
    listed, measured = list(entries), list(evaluations)
    return CostTable(
        by_channel={name: _line(e for e in listed if e.channel == name) for name in _names(e.channel for e in listed)},
        by_clock={
            name: _line(e for e in listed if str(e.timescale) == name)
            for name in _names(str(e.timescale) for e in listed)
        },
        learning=_line(listed),
        measuring=total(evaluation.cost for evaluation in measured),
        evaluations=len(measured),
    )


def _names(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _line(entries: Iterable[LedgerEntry]) -> CostLine:
    listed = list(entries)
    return CostLine(
        cost=total(entry.cost for entry in listed),
        entries=len(listed),
        actions=dict(Counter(entry.action for entry in listed)),
    )
