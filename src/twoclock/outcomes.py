"""What became of a round's proposals and searches, and how the ledger tells it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from twoclock.bench import Bench
from twoclock.gathering import Gathered
from twoclock.types import (
    TAKEN_BACK,
    Assignment,
    Conditioning,
    Cost,
    Declined,
    Evidence,
    Group,
    LedgerEntry,
    Phase,
    Proposal,
    Timescale,
    Verdict,
)
from twoclock.watching import TakenBack

__all__ = ["Outcome", "Searched", "summary", "taken_back", "waits"]


@dataclass
class Outcome:
    """What became of one assignment."""

    assignment: Assignment
    offer: Proposal[Any] | Declined
    verdict: Verdict | None = None
    cost: Cost = field(default_factory=Cost)
    falls_back: bool = False
    """Whether the gate refused the proposal, and its fallback is kept."""
    changes_deployed: bool = False
    """Whether what the channel says on the round's task is another thing now."""

    @property
    def accepted(self) -> bool:
        return self.verdict is not None and self.verdict.accepted

    def kept(self, live: Any) -> Any:
        """The state that the channel has after this."""
        if not isinstance(self.offer, Proposal):
            return live
        return self.offer.state if self.accepted else self.offer.fallback if self.falls_back else live

    def entry(
        self, number: int, phase: Phase, timescale: Timescale, before: str, after: str, offered: str
    ) -> LedgerEntry:
        """The ledger's line; ``before``, ``after`` and ``offered`` are hashes of states."""
        offer, verdict = self.offer, self.verdict
        common: dict[str, Any] = {
            "round": number,
            "phase": phase.index,
            "task": phase.task,
            "channel": self.assignment.channel,
            "timescale": str(timescale),
            "before": before,
            "after": after,
            "cost": self.cost,
        }
        if isinstance(offer, Declined):
            return LedgerEntry(
                **common,
                action="decline",
                cause=self.assignment.reason,
                reason=offer.reason,
                metrics=_finite(offer.metrics),
            )
        reason, writes = verdict.reason if verdict else "", offer.writes
        if self.falls_back:
            reason = f"kept beside what is deployed, whose change was refused: {reason}"
            writes = tuple(w if w.kind in ("pool", "retire") else replace(w, kind="pool") for w in writes)
        return LedgerEntry(
            **common,
            action="commit" if self.accepted or self.falls_back else "reject",
            cause=f"{self.assignment.reason}; {offer.cause}",
            reason=reason,
            offered=offered,
            writes=writes,
            metrics=_finite(
                {
                    **offer.metrics,
                    **(verdict.metrics if verdict else {}),
                    **({"changes_deployed": float(self.changes_deployed)} if self.accepted or self.falls_back else {}),
                }
            ),
        )


@dataclass
class Searched:
    """What the round's searches have rolled out on items that are yet to come up."""

    groups: list[Group] = field(default_factory=list)
    conditionings: dict[str, Conditioning] = field(default_factory=dict)

    def add(self, bench: Bench) -> None:
        self.groups += bench.kept
        self.conditionings |= bench.conditionings

    def evidence(self, of: Evidence) -> Evidence | None:
        """For the ledger; None where nothing was kept."""
        if not self.groups:
            return None
        return replace(of, groups=tuple(self.groups), conditionings=self.conditionings)


def taken_back(
    number: int, phase: Phase, channel: str, timescale: Timescale, before: str, after: str, taken: TakenBack
) -> LedgerEntry:
    """The ledger's line of a write that its own evidence has undone."""
    return LedgerEntry(
        round=number,
        phase=phase.index,
        task=phase.task,
        channel=channel,
        timescale=str(timescale),
        action="rollback",
        before=before,
        after=after,
        cause=f"{TAKEN_BACK}: {taken.cause}",
        reason=taken.reason,
        cost=Cost(),
        metrics=_finite(taken.metrics),
    )


def waits(number: int, phase: Phase, channel: str, timescale: Timescale, live: str, reason: str) -> LedgerEntry:
    """The ledger's line of a channel that is passed over from now on."""
    return LedgerEntry(
        round=number,
        phase=phase.index,
        task=phase.task,
        channel=channel,
        timescale=str(timescale),
        action="wait",
        before=live,
        after=live,
        cause="the allocator passes it over",
        reason=reason,
        cost=Cost(),
    )


def summary(evidence: Evidence, gathered: Gathered) -> dict[str, float]:
    """A round in numbers; see ``docs/rollouts.md``."""
    cost, rollouts = gathered.cost, evidence.rollouts
    texts = [r.completion.text.strip() for r in rollouts]
    common = max((texts.count(t) for t in set(texts)), default=0)
    return {
        "reward": evidence.mean_reward,
        "rollouts": float(cost.rollouts),
        "prompt_tokens": float(cost.prompt_tokens),
        "completion_tokens": float(cost.completion_tokens),
        # Of all groups sampled, those included that dynamic sampling has replaced.
        "dead_groups": gathered.dead_groups / gathered.sampled_groups if gathered.sampled_groups else 0.0,
        "groups": float(gathered.sampled_groups),
        "reused": float(gathered.reused),
        "failed_grades": float(sum(r.grade.failure is not None for r in rollouts)),
        # A policy that collapsed to one answer shows here before it shows in the reward.
        "commonest_answer": common / len(texts) if texts else 0.0,
        "conditionings": float(len(evidence.conditionings)),
    }


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers; a ledger holds no other, and a gate's reason names those that are none."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
