"""A run as the report reads it: one pass over the store, nothing of a model.

A run may still be going on while it is read. The head is read first, and whatever was committed after it is left out,
so that all parts of a page speak of the same rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twoclock.measure import Interval, mean_interval
from twoclock.seeding import child_seed
from twoclock.store import RolloutRow, RoundRow, RunStore
from twoclock.types import Cost, DriftRecord, Evaluation, LedgerEntry, Snapshot

__all__ = ["PhaseSpan", "RewardBin", "RunData", "Sample", "part", "read_run"]

MAX_BINS = 160
"""More points than this say no more on a page that is a thousand pixels wide."""

RESAMPLES = 2_000
"""For the bands of the curve; enough for a line of a few pixels."""


@dataclass(frozen=True, kw_only=True)
class PhaseSpan:
    """A phase of the stream and how far it has come."""

    index: int
    """From 0."""
    task: str
    planned: int | None
    """Rounds; None where the configuration does not tell."""
    first: int | None
    """Its first committed round; None before it has begun."""
    last: int | None


@dataclass(frozen=True, kw_only=True)
class RewardBin:
    """The training reward of one round, or of neighbouring rounds of one phase where there are very many."""

    task: str
    phase: int
    first: int
    last: int
    rollouts: int
    reward: Interval
    """The mean over items of each item's mean reward: rollouts of one item are not independent of each other."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One rollout picked for the page."""

    phase: int
    picked: str
    """Why it stands there, such as ``best``."""
    row: RolloutRow


@dataclass(frozen=True, kw_only=True)
class RunData:
    """All that the page needs of a run."""

    path: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    head: Snapshot
    rounds: Sequence[RoundRow]
    entries: Sequence[LedgerEntry]
    evaluations: Sequence[Evaluation]
    drift: Sequence[DriftRecord]
    phases: Sequence[PhaseSpan]
    bins: Sequence[RewardBin]
    round_costs: Mapping[int, Cost]
    """What the training rollouts of each round cost, apart from proposing and judging."""
    samples: Sequence[Sample]
    conditionings: Mapping[str, Mapping[str, Any]]
    """By id: ``system``, ``exemplars``, ``delta``; not every evaluation's is recorded."""

    @property
    def planned(self) -> int | None:
        """The rounds of the whole stream; None where the configuration does not tell."""
        counts = [phase.planned for phase in self.phases]
        return None if not counts or None in counts else sum(count for count in counts if count is not None)

    @property
    def last_round(self) -> int:
        return self.rounds[-1].round if self.rounds else 0

    @property
    def tasks(self) -> list[str]:
        """In the order of the stream, then of the evaluations."""
        names = [phase.task for phase in self.phases] + [evaluation.task for evaluation in self.evaluations]
        return list(dict.fromkeys(names))

    def spent(self) -> dict[int, int]:
        """Rollouts spent on learning by the end of each round, from round 0: training, proposing and judging."""
        of_entries: dict[int, int] = {}
        for entry in self.entries:
            of_entries[entry.round] = of_entries.get(entry.round, 0) + entry.cost.rollouts
        by_round = {0: of_entries.get(0, 0)}
        running = by_round[0]
        for row in self.rounds:
            running += self.round_costs[row.round].rollouts + of_entries.get(row.round, 0)
            by_round[row.round] = running
        return by_round


def part(value: Any, *names: str) -> Any:
    """``value[names[0]][names[1]]...`` of nested mappings; None where something is missing or is no mapping."""
    for name in names:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def read_run(store: RunStore) -> RunData:
    """Everything of the run up to its head; StoreError for one that never began."""
    head = store.head()
    last = head.next_round - 1
    rounds = [row for row in store.rounds() if row.round <= last]
    costs, bins = _training(rounds, store.rollouts(), last)
    phases = _phases(store.config, rounds)
    return RunData(
        path=str(store.path),
        config=store.config,
        environment=store.environment,
        head=head,
        rounds=rounds,
        entries=[entry for entry in store.entries() if entry.round <= last],
        evaluations=[evaluation for evaluation in store.evaluations() if evaluation.round <= last],
        drift=[record for record in store.drift() if record.round <= last],
        phases=phases,
        bins=bins,
        round_costs=costs,
        samples=_samples(store, phases),
        conditionings=store.conditionings(),
    )


def _phases(config: Mapping[str, Any], rounds: Sequence[RoundRow]) -> list[PhaseSpan]:
    """The configuration's stream, and the phases of committed rounds that it does not tell of."""
    stream = part(config, "stream")
    planned = [row for row in stream if isinstance(row, Mapping)] if isinstance(stream, (list, tuple)) else []
    known: dict[int, tuple[str, int | None]] = {
        index: (str(row.get("task", "?")), row["rounds"] if isinstance(row.get("rounds"), int) else None)
        for index, row in enumerate(planned)
    }
    for row in rounds:
        known[row.phase] = (row.task, known[row.phase][1] if row.phase in known else None)
    spans = []
    for index in sorted(known):
        numbers = [row.round for row in rounds if row.phase == index]
        task, count = known[index]
        spans.append(
            PhaseSpan(
                index=index,
                task=task,
                planned=count,
                first=min(numbers, default=None),
                last=max(numbers, default=None),
            )
        )
    return spans


# -------------------------------------------------------------------------------------------------- training rollouts


def _training(
    rounds: Sequence[RoundRow], rollouts: Iterable[RolloutRow], last: int
) -> tuple[dict[int, Cost], list[RewardBin]]:
    """What each round's own rollouts cost, and the curve of their reward."""
    rewards: dict[int, dict[str, list[float]]] = {}
    counted: dict[int, Cost] = {}
    for row in rollouts:
        if row.round > last:
            break
        rewards.setdefault(row.round, {}).setdefault(row.item_id, []).append(row.reward)
        one = Cost(rollouts=1, prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens)
        counted[row.round] = counted.get(row.round, Cost()) + one
    costs = {row.round: _round_cost(row, counted.get(row.round, Cost())) for row in rounds}
    return costs, [_bin(chunk, rewards) for chunk in _chunks([row for row in rounds if row.round in rewards])]


def _round_cost(row: RoundRow, counted: Cost) -> Cost:
    """The round's own figures count a shared prompt once; where it has none the rollouts are counted one by one."""
    metrics = row.metrics

    def figure(name: str) -> int:
        return int(metrics[name]) if name in metrics else int(getattr(counted, name))

    return Cost(
        rollouts=figure("rollouts"),
        prompt_tokens=figure("prompt_tokens"),
        completion_tokens=figure("completion_tokens"),
        seconds=math.fsum(metrics.get(name, 0.0) for name in ("rollout_s", "grade_s")),
    )


def _chunks(rounds: Sequence[RoundRow]) -> list[list[RoundRow]]:
    """Neighbouring rounds of one phase, as few together as :data:`MAX_BINS` allows."""
    size = max(1, math.ceil(len(rounds) / MAX_BINS))
    chunks: list[list[RoundRow]] = []
    for row in rounds:
        if chunks and len(chunks[-1]) < size and chunks[-1][0].phase == row.phase:
            chunks[-1].append(row)
        else:
            chunks.append([row])
    return chunks


def _bin(chunk: Sequence[RoundRow], rewards: Mapping[int, Mapping[str, Sequence[float]]]) -> RewardBin:
    groups = [group for row in chunk for group in rewards[row.round].values()]
    means = [math.fsum(group) / len(group) for group in groups]
    return RewardBin(
        task=chunk[0].task,
        phase=chunk[0].phase,
        first=chunk[0].round,
        last=chunk[-1].round,
        rollouts=sum(len(group) for group in groups),
        reward=mean_interval(
            means, seed=child_seed("report.reward", 0, chunk[0].round), resamples=RESAMPLES, bounds=(0, 1)
        ),
    )


def _samples(store: RunStore, phases: Sequence[PhaseSpan]) -> list[Sample]:
    """Of each phase's first and last round: the best and the worst rollout, and the first one graded."""
    samples = []
    for phase in phases:
        for round in dict.fromkeys(number for number in (phase.first, phase.last) if number is not None):
            rows = list(store.rollouts(round))
            picked: dict[int, list[str]] = {}
            for why, choose in (("best", max), ("worst", min)):
                if rows:
                    place = choose(range(len(rows)), key=lambda i: rows[i].reward)
                    picked.setdefault(place, []).append(why)
            if rows:
                picked.setdefault(0, []).append("first")
            samples += [
                Sample(phase=phase.index, picked=" and ".join(why), row=rows[place]) for place, why in picked.items()
            ]
    return samples
