"""Where a run stands, as numbers: what both views show. Reads the store, draws nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twoclock.cli.output import duration, one_line

if TYPE_CHECKING:
    from twoclock.store import RunStore
    from twoclock.types import DriftRecord, LedgerEntry, Phase

__all__ = ["Standing", "sparkline"]

RECENT = 20
"""Rounds whose mean time is taken for the rounds to come: long enough to hold a fast search now and then."""
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#%"
JUDGED = ("decline", "reject", "commit")
"""The actions that judging ends in, the one that says most last."""


def sparkline(rewards: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """Rewards in [0, 1] as one row of blocks on that fixed scale; neighbours are averaged where there are more of them
    than ``width``."""
    if width < 1:
        return ""
    count = min(width, len(rewards))
    shares = [rewards[i * len(rewards) // count : (i + 1) * len(rewards) // count] for i in range(count)]
    means = [sum(share) / len(share) for share in shares]
    return "".join(blocks[min(len(blocks) - 1, max(0, int(mean * len(blocks))))] for mean in means)


@dataclass
class Standing:
    """Filled from the store, then kept up round by round."""

    store: RunStore
    phases: Sequence[Phase]
    clocks: frozenset[str] = frozenset(("fast", "slow"))
    """Those that some channel of the run writes to."""
    round: int = 0
    """The round under way, or the last one when none is."""
    step: str = ""
    rewards: dict[str, list[float]] = field(default_factory=dict)
    """Mean reward of each round, by task, in the order of the stream."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Those of the last committed round."""
    fast: LedgerEntry | None = None
    """The last judged entry of each clock."""
    slow: LedgerEntry | None = None
    steps: int = 0
    """Optimizer steps committed by this run."""
    drift: DriftRecord | None = None
    seconds: list[float] = field(default_factory=list)
    """Of each round."""
    began: float = field(default_factory=time.monotonic)
    step_began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.rewards = {phase.task: [] for phase in self.phases}
        for row in self.store.rounds():
            self._count_round(row.round, row.task, row.metrics)
        self._count_entries(self.store.entries())
        self._read_drift()

    @property
    def total(self) -> int:
        return sum(phase.rounds for phase in self.phases)

    @property
    def phase(self) -> Phase | None:
        """The phase of :attr:`round`; None before the first."""
        left = self.round
        for phase in self.phases:
            if 1 <= left <= phase.rounds:
                return phase
            left -= phase.rounds
        return None

    @property
    def left_s(self) -> float | None:
        """Seconds to the end of the stream at the pace of the recent rounds; None before the first is done."""
        recent = self.seconds[-RECENT:]
        done = sum(len(rewards) for rewards in self.rewards.values())
        return sum(recent) / len(recent) * (self.total - done) if recent else None

    def enter(self, round: int, step: str) -> None:
        self.round, self.step, self.step_began = round, step, time.monotonic()

    def advance(self, round: int, metrics: Mapping[str, float]) -> None:
        """Takes in a round that was committed."""
        self.round = round
        phase = self.phase
        self._count_round(round, phase.task if phase else "", metrics)
        self._count_entries(self.store.entries(round=round))
        self._read_drift()
        self.enter(round, "")

    def _count_round(self, round: int, task: str, metrics: Mapping[str, float]) -> None:
        self.round, self.metrics = round, metrics
        if "reward" in metrics:
            self.rewards.setdefault(task, []).append(metrics["reward"])
        if "round_s" in metrics:
            self.seconds.append(metrics["round_s"])

    def _count_entries(self, entries: Sequence[LedgerEntry]) -> None:
        for entry in entries:
            if entry.action in JUDGED and entry.timescale == "fast":
                self.fast = _telling(self.fast, entry)
            elif entry.action in JUDGED:
                self.slow = _telling(self.slow, entry)
            if entry.action == "commit":
                self.steps += entry.cost.optimizer_steps

    def _read_drift(self) -> None:
        general = [record for record in self.store.drift() if record.prompts == "general"]
        self.drift = general[-1] if general else None

    # -------------------------------------------------------------------------------------------------------- in words

    def fast_words(self, width: int = 200) -> str:
        """The fast clock's last verdict."""
        if self.fast is None:
            return "nothing proposed yet" if "fast" in self.clocks else "no channel of this run is fast"
        entry = self.fast
        return one_line(f"round {entry.round}: {entry.channel} {past(entry.action)}: {entry.reason}", width)

    def slow_words(self, width: int = 200) -> str:
        """Steps committed, the last gradient norm, dead groups; the reason where the last step was refused."""
        if self.slow is None:
            return "nothing proposed yet" if "slow" in self.clocks else "no channel of this run is slow"
        entry = self.slow
        parts = [f"{self.steps} step{'' if self.steps == 1 else 's'}"]
        if "grad_norm" in entry.metrics:
            parts.append(f"gradient norm {entry.metrics['grad_norm']:.2g}")
        if "dead_groups" in entry.metrics:
            parts.append(f"dead groups {entry.metrics['dead_groups']:.0%}")
        if entry.action != "commit":
            parts.append(f"round {entry.round} {past(entry.action)}: {entry.reason}")
        return one_line(", ".join(parts), width)

    def drift_words(self) -> str:
        if self.drift is None:
            return "not measured yet"
        record = self.drift
        return f"{record.live_base:.4f} live‖base, {record.base_live:.4f} base‖live nats a token (round {record.round})"

    def speed_words(self) -> str:
        metrics = self.metrics
        if "decode_per_s" not in metrics:
            return "–"
        clocks = [
            f"{name} {duration(metrics[key])}"
            for name, key in (
                ("rollouts", "rollout_s"),
                ("fast", "fast_s"),
                ("slow", "slow_s"),
                ("measuring", "measure_s"),
            )
            if metrics.get(key, 0.0) >= 0.05
        ]
        return ", ".join([f"{metrics['decode_per_s']:,.0f} tokens/s", *clocks])

    def left_words(self) -> str:
        left = self.left_s
        gone = f"{duration(time.monotonic() - self.began)} gone"
        if left is None:
            return gone
        return f"about {duration(left)}, {gone}" if left else f"no round, {gone}"


def _telling(known: LedgerEntry | None, entry: LedgerEntry) -> LedgerEntry:
    """The later one; of one round's entries the one that says more: null beside a channel that learned is no news."""
    if known and known.round == entry.round and JUDGED.index(known.action) > JUDGED.index(entry.action):
        return known
    return entry


def past(action: str) -> str:
    """An action of the ledger as something that happened."""
    return {"commit": "committed", "reject": "rejected", "decline": "declined"}.get(action, action)
