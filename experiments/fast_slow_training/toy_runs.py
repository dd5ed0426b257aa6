"""Runs in the two-token world: our own loop and channels in a temporary store, measured by enumeration.

One setting for all arms; an arm only says which channels there are, and how good the reflector is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toy_policy import ToyPolicy
from toy_world import NUM_INPUTS, TASKS, ToyTask, World, scripted_reflector

from twoclock.allocate import GateConfig, build_allocator, gate_for
from twoclock.contracts import Channel
from twoclock.evaluation import CELLS, Cell, EvaluationSettings, conditioning_of
from twoclock.fast import build_fast
from twoclock.gathering import RolloutSettings
from twoclock.loop import Loop
from twoclock.measure import CurvePoint, Effects, LearningCurve, effects
from twoclock.probing.curves import spent_by_round
from twoclock.seeding import child_seed
from twoclock.slow import build_slow
from twoclock.store import RunStore
from twoclock.tasks import Stream
from twoclock.types import Conditioning, LedgerEntry, Sampling

__all__ = ["ARMS", "TARGET", "Result", "Settings", "play"]

TARGET = 0.6
"""The accuracy at which arms are compared, stated beforehand."""
SAMPLING = Sampling(max_new_tokens=2)

ARMS: Mapping[str, tuple[str, ...]] = {
    "null": ("null",),
    "prompt_only": ("prompts",),
    "rl_only": ("lora",),
    "fst": ("lora", "prompts"),
    "fst_random": ("lora", "prompts"),
}
"""Arm → channels. ``fst_random`` is ``fst`` with a reflector that never says anything of use."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One setting for every arm."""

    rollouts: RolloutSettings = field(
        default_factory=lambda: RolloutSettings(items=8, per_item=8, prompts_per_item=4)
    )  # B, G, P
    lora: Mapping[str, Any] = field(
        default_factory=lambda: {"rank": 8, "alpha": 16.0, "learning_rate": 0.02, "targets": ["formats", "answers"]}
    )
    prompts: Mapping[str, Any] = field(
        default_factory=lambda: {
            "proposers": ["reflective"],
            "pool_size": 4,
            "search_items": 24,
            "gold_items": 0,
            "num_reflections": 2,
        }
    )
    allocator: Mapping[str, Any] = field(default_factory=lambda: {"slow_steps": 6, "warmstart": 6})
    gates: GateConfig = field(default_factory=GateConfig)
    evaluation: EvaluationSettings = field(default_factory=lambda: EvaluationSettings(heldout_items=32, drift_every=0))
    reflector: float = 0.5
    """The chance that the reflector says what the feedback names."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run, as far as it went. Accuracies and KL are exact."""

    arm: str
    seed: int
    curve: LearningCurve
    """The accuracy of what is deployed after each round, against all that learning had spent."""
    reached: int | None
    """The round after which TARGET was first met."""
    cells: Mapping[Cell, float]
    """The accuracies of weights × prompt at the end."""
    kl: float
    """KL(weights‖base) without any prompt, in nats a completion of two tokens."""
    kl_deployed: float
    """The same with the deployed prompt on both sides."""
    entries: tuple[LedgerEntry, ...]
    conditioning: Conditioning
    """What is deployed at the end."""
    policy: ToyPolicy
    """What it is deployed on; ``settled`` writes the weights in."""
    digest: str
    """One hash over the ledger: equal for two runs of the same numbers."""

    @property
    def split(self) -> Effects:
        return effects(*(self.cells[cell] for cell in CELLS))

    @property
    def steps(self) -> int:
        """Optimizer steps that were committed."""
        return sum(e.cost.optimizer_steps for e in self.entries if e.action == "commit")


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for runs that are not kept: in memory where the system has such a place."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


def play(
    arm: str,
    seed: int,
    rounds: int,
    *,
    settings: Settings | None = None,
    world: World | None = None,
    policy: ToyPolicy | None = None,
    task: str = TASKS[0],
    until: float | None = TARGET,
    start: str = "",
) -> Result:
    """One run of ``arm``, of at most ``rounds`` rounds, ended where the deployed accuracy meets ``until``.

    ``policy`` is what it begins from in the place of the seed's own base, ``start`` that policy's name (none: the
    arm's)."""
    world = replace(world or World(), seed=child_seed("toy-world", seed))
    policy = policy or ToyPolicy(world)
    with scratch() as folder, RunStore.create(Path(folder) / "run", config={}) as store:
        loop = _loop(store, arm, seed, rounds, settings or Settings(), policy, task)
        loop.begin()
        scores = [policy.accuracy(_deployed(loop, task), task)]
        while len(scores) <= rounds and (until is None or scores[-1] < until):
            loop.run(until=len(scores))
            scores.append(policy.accuracy(_deployed(loop, task), task))
        return _result(arm, seed, loop, scores, task, start or arm)


def _deployed(loop: Loop, task: str, cell: Cell = ("live", "learned")) -> Conditioning:
    return conditioning_of(loop.channels, loop.states, task, cell)


def _loop(store: RunStore, arm: str, seed: int, rounds: int, settings: Settings, policy: ToyPolicy, task: str) -> Loop:
    reflector = scripted_reflector(0.0 if arm == "fst_random" else settings.reflector, seed)
    options = {"prompts": settings.prompts, "lora": settings.lora}
    channels: dict[str, Channel[Any]] = {
        name: build_slow(name, options[name])
        if name == "lora"
        else build_fast(name, options.get(name, {}), reflector=reflector)
        for name in ARMS[arm]
    }
    tasks = {task: ToyTask(policy.world, task)}
    return Loop(
        store,
        policy,
        Stream([(task, rounds)], tasks),
        channels,
        build_allocator("alternate", settings.allocator),
        {name: gate_for(channel.timescale, settings.gates) for name, channel in channels.items()},
        seed=child_seed("toy-run", seed),
        sampling=SAMPLING,
        rollouts=settings.rollouts,
        evaluation=settings.evaluation,
    )


def _result(arm: str, seed: int, loop: Loop, scores: list[float], task: str, start: str) -> Result:
    assert isinstance(loop.policy, ToyPolicy)
    policy, now = loop.policy, _deployed(loop, task)
    weights = Conditioning(delta=now.delta)
    spent = spent_by_round(loop.store)
    points = [
        CurvePoint(
            problems=sum(line.problems for line in spent[:n]),
            rollouts=sum(line.rollouts for line in spent[:n]),
            tokens=sum(line.tokens for line in spent[:n]),
            score=score,
            n=NUM_INPUTS,
        )
        for n, score in enumerate(scores)
    ]
    dead = [line.dead_groups or 0.0 for line in spent]
    curve = LearningCurve(
        task=task, start=start, seed=seed, points=tuple(points), dead_groups=sum(dead) / len(dead) if dead else None
    )
    reached = next((n for n, score in enumerate(scores) if score >= TARGET), None)
    return Result(
        arm=arm,
        seed=seed,
        curve=curve,
        reached=reached,
        cells={cell: policy.accuracy(_deployed(loop, task, cell), task) for cell in CELLS},
        kl=policy.divergence(weights, Conditioning()),
        kl_deployed=policy.divergence(now, replace(now, delta=None)),
        entries=tuple(loop.store.entries()),
        conditioning=now,
        policy=policy,
        digest=loop.store.digest(),
    )
