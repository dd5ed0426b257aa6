"""Runs in miniature: a loop over the tiny model or a script, both clocks, two tasks, a few rounds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_world import MEASURE, SAMPLING, make_channel, tiny_task
from twoclock.allocate import GateConfig, build_allocator, gate_for
from twoclock.contracts import Policy, Task
from twoclock.evaluation import EvaluationSettings, Evaluator
from twoclock.gathering import RolloutSettings
from twoclock.loop import Loop, StoreSettings
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng
from twoclock.store import RunStore
from twoclock.tasks import Stream
from twoclock.types import Conditioning, Snapshot
from twoclock.watching import WatchSettings

ROLLOUTS = RolloutSettings(items=4, per_item=4, prompts_per_item=2)
BOTH = ("lora", "prompts")
ALTERNATE = {"warmstart": 0, "slow_steps": 2, "fast_rollouts": 40, "drift": 5.0}
OPEN_GATES = GateConfig(fast="accept", slow="drift")
"""Fast proposals are all kept: the tiny model learns nothing from exemplars, and states must change to be tested."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What a run is made of; the rest follows from the seed."""

    policy: Policy
    channels: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {name: {} for name in BOTH})
    made: Mapping[str, Any] = field(default_factory=dict)
    """Channels as objects, beside those by name."""
    allocator: str = "alternate"
    options: Mapping[str, Any] = field(default_factory=lambda: ALTERNATE)
    gates: GateConfig = OPEN_GATES
    rollouts: RolloutSettings = ROLLOUTS
    measure: EvaluationSettings = MEASURE
    keeping: StoreSettings | None = None
    watch: WatchSettings | None = None
    tasks: Mapping[str, Task] = field(
        default_factory=lambda: {"largest": tiny_task(), "smallest": tiny_task("smallest", want="smallest")}
    )
    phases: tuple[tuple[str, int], ...] = (("largest", 3), ("smallest", 3))
    seed: int = 0

    def loop(self, store: RunStore, observer: Any = None) -> Loop:
        known = {name: make_channel(name, **options) for name, options in self.channels.items()} | dict(self.made)
        channels = {name: known[name] for name in sorted(known)}
        stream = Stream(self.phases, self.tasks)
        evaluator = Evaluator(self.policy, self.tasks, self.measure, SAMPLING, self.seed)

        def meter(_: Any, offered: Conditioning, __: int) -> tuple[float, float]:
            return evaluator.gate_drift(offered)[:2]

        return Loop(
            store,
            self.policy,
            stream,
            channels,
            build_allocator(self.allocator, self.options),
            {name: gate_for(c.timescale, self.gates, drift_meter=meter) for name, c in channels.items()},
            seed=self.seed,
            sampling=SAMPLING,
            rollouts=self.rollouts,
            evaluation=self.measure,
            keeping=self.keeping,
            watch=self.watch,
            observer=observer,
        )

    def play(self, path: Path, observer: Any = None, *, until: int | None = None) -> Loop:
        """Begins the run in ``path`` or takes it up, as the command line does, and runs what is left."""
        store = RunStore.open(path, write=True) if (path / "ledger.sqlite").exists() else None
        store = store or RunStore.create(path, config={})
        with store:
            loop = self.loop(store, observer)
            if has_begun(store):
                loop.restore()
            else:
                loop.begin()
            loop.run(until)
        return loop


def has_begun(store: RunStore) -> bool:
    return bool(store.entries())


class Killer:
    """Ends the process with SIGKILL at the moment that it is asked for: no handler runs, nothing is flushed."""

    def __init__(self, round: int, step: str) -> None:
        self.at = (round, step)

    def step(self, round: int, step: str) -> None:
        self.strike(round, step)

    def committed(self, round: int, metrics: Mapping[str, float], snapshot: Snapshot) -> None:
        self.strike(round, "committed")

    def strike(self, round: int, step: str) -> None:
        if (round, step) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class Steps:
    """Remembers the steps it was told of."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def step(self, round: int, step: str) -> None:
        self.seen.append((round, step))

    def committed(self, round: int, metrics: Mapping[str, float], snapshot: Snapshot) -> None:
        self.seen.append((round, "committed"))


def solver(chance: Callable[[Conditioning], float], *, name: str = "solver") -> ScriptedPolicy:
    """Answers rightly with a chance that the conditioning sets, by seed; the right answer begins with a digit."""

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        return "7" if child_rng("solver", seed, prompt).random() < chance(conditioning) else "\x00"

    return ScriptedPolicy(script, name=name)
