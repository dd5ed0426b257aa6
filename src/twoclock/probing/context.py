"""What every probe works with: one run opened to read, its live states, a metered policy, and the run's own speeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from twoclock.bench import grade_rollouts, sample_items
from twoclock.build import Session
from twoclock.contracts import Policy, Task
from twoclock.evaluation import Cell, Evaluator, conditioning_of
from twoclock.probing.meter import Meter
from twoclock.probing.settings import Estimate, ProbeSettings
from twoclock.seeding import child_seed
from twoclock.store import RunStore
from twoclock.types import Conditioning, Evaluation, Group, Item, Request, Snapshot, Timescale

__all__ = ["ProbeContext"]


class _Later:
    """A policy that is loaded when it is first asked for something."""

    def __init__(self, load: Callable[[], Policy]) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


class ProbeContext:
    """A run as the probes see it. Nothing here can write: the store is open for reading."""

    def __init__(self, session: Session, settings: ProbeSettings, progress: Callable[[str], None]) -> None:
        self.session, self.settings, self.say = session, settings, progress
        self.parts = session.parts
        self.store: RunStore = session.store
        self.head: Snapshot = self.store.head()
        self.meter = Meter(settings.budget)

    @cached_property
    def policy(self) -> Policy:
        """Loaded when something first asks for it: the recorded figures need no model."""
        return self.meter.attach(self.session.policy)

    @cached_property
    def states(self) -> dict[str, Any]:
        return self.states_at(self.head)

    def states_at(self, snapshot: Snapshot) -> dict[str, Any]:
        """Each channel's state in a snapshot."""
        return {n: c.load(self.store.get_blob(snapshot.states[n])) for n, c in self.parts.channels.items()}

    @cached_property
    def evaluator(self) -> Evaluator:
        """The run's own, on as many held-out items as asked for. It loads the model when it first samples: which items
        it measures on, and what is known of them, it says without."""
        settings = self.parts.evaluation
        if self.settings.items is not None:
            settings = replace(settings, heldout_items=self.settings.items)
        later: Any = _Later(lambda: self.policy)
        return Evaluator(later, self.parts.tasks, settings, self.parts.sampling, self.parts.seed)

    @property
    def phases(self) -> list[str]:
        """The task of each phase."""
        return [phase.task for phase in self.parts.stream.phases]

    @property
    def tasks(self) -> list[str]:
        """The tasks asked for, or those of the stream."""
        return list(self.settings.tasks) or list(dict.fromkeys(self.phases))

    @property
    def begun(self) -> list[str]:
        """The task of each round that the live states come from, in order: a task may come more than once."""
        return [row.task for row in self.store.rounds() if row.round <= self.head.round]

    @property
    def seed(self) -> int:
        return self.settings.seeds[0]

    @property
    def slow(self) -> list[str]:
        """The names of the slow channels."""
        return [n for n, c in self.parts.channels.items() if c.timescale is Timescale.SLOW]

    def conditioning(self, task: str, cell: Cell, states: Mapping[str, Any] | None = None) -> Conditioning:
        return conditioning_of(self.parts.channels, states or self.states, task, cell)

    # ---------------------------------------------------------------------------------------------------------- rolling

    def roll(
        self,
        task: Task,
        items: Sequence[Item],
        conditioning: Conditioning,
        *,
        purpose: str,
        samples: int | None = None,
    ) -> tuple[Group, ...]:
        """Sampled and graded; the seeds follow from the purpose, the item and the sample, not from the conditioning:
        common random numbers for what is compared under one purpose."""
        count = samples or self.settings.samples
        self.meter.require(count * len(items))  # before a model is loaded for nothing
        requests = [
            Request(
                prompt=item.prompt,
                conditioning=conditioning.for_item(item),
                seeds=tuple(child_seed("probe", self.seed, purpose, item.id, n) for n in range(count)),
            )
            for item in items
        ]
        completions = sample_items(self.policy, task, items, requests, self.parts.sampling)
        return grade_rollouts(task, items, requests, completions)

    # ------------------------------------------------------------------------------------------------------------ speed

    @cached_property
    def recorded(self) -> list[Evaluation]:
        return self.store.evaluations()

    @cached_property
    def speed(self) -> tuple[float, float, float | None]:
        """(tokens read, tokens written, seconds) a rollout of one sample, as the run's evaluations went; seconds None
        where none did."""
        timed = [e.cost for e in self.recorded if e.cost.rollouts and e.cost.seconds]
        rollouts = sum(cost.rollouts for cost in timed)
        if not rollouts:
            return 0.0, 0.0, None
        read, written = (sum(getattr(cost, f"{k}_tokens") for cost in timed) for k in ("prompt", "completion"))
        return read / rollouts, written / rollouts, math.fsum(cost.seconds for cost in timed) / rollouts

    def estimate(self, rollouts: int, *, passes: int = 0, new_tokens: int | None = None) -> Estimate:
        """Of so many rollouts, and so many readings of a prompt with its completion, which take half as long as writing
        it; ``new_tokens`` is the length of a completion where it is not that of the run's own."""
        read, written, seconds = self.speed
        tokens = read + (written if new_tokens is None else new_tokens)
        slower = tokens / (read + written) if read + written else 1.0
        work = rollouts + passes / 2
        return Estimate(
            rollouts=rollouts,
            tokens=round((rollouts + passes) * tokens) if seconds is not None else 0,
            seconds=0.0 if work == 0 else None if seconds is None else work * seconds * slower,
        )
