"""The stream: ordered phases over tasks, and which training items each round reads.

A round's items are a pure function of (stream, round, count, seed): a resumed run reads what an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from twoclock.contracts import Task
from twoclock.errors import ConfigError, unknown_name
from twoclock.seeding import child_seed
from twoclock.types import Item, Phase

__all__ = ["Stream"]


class Stream:
    """Phases ``(task name, rounds)`` in order; a task may come again. Raises ConfigError with all mistakes at once."""

    def __init__(self, phases: Sequence[tuple[str, int]], tasks: Mapping[str, Task]) -> None:
        problems = [] if phases else ["a stream needs at least one phase, such as ('gcd', 10): a task and its rounds"]
        for index, (task, rounds) in enumerate(phases, 1):
            if task not in tasks:
                problems.append(f"phase {index}: {unknown_name('task', task, tasks)}")
            if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
                problems.append(
                    f"phase {index} ('{task}'): rounds must be a whole number of at least 1; got {rounds!r}"
                )
        if problems:
            raise ConfigError(problems)
        self._phases = tuple(Phase(index=i, task=task, rounds=rounds) for i, (task, rounds) in enumerate(phases))
        self._tasks = MappingProxyType(dict(tasks))
        self._order = lru_cache(maxsize=16)(self._make_order)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self._phases

    @property
    def num_rounds(self) -> int:
        return sum(phase.rounds for phase in self._phases)

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._tasks

    def phase(self, round: int) -> Phase:
        left = round
        for phase in self._phases:
            if 1 <= left <= phase.rounds:
                return phase
            left -= phase.rounds
        raise ValueError(f"round {round} is not in the stream; its rounds are 1 to {self.num_rounds}")

    def check(self, count: int) -> None:
        """Raises ConfigError when a batch of ``count`` is not possible on every task of the stream."""
        problems = []
        if count < 1:
            problems.append(f"a batch has at least 1 item; got {count}")
        for name in dict.fromkeys(phase.task for phase in self._phases):
            there = len(self._tasks[name].split("train"))
            if count > there:
                problems.append(
                    f"task '{name}' has {there} training items, fewer than the {count} of one batch: a batch holds "
                    "different items; make the batch smaller or its train split larger"
                )
        if problems:
            raise ConfigError(problems)

    def batch(self, round: int, count: int, seed: int) -> tuple[Item, ...]:
        """``count`` different training items. Counted over the rounds of the round's task, every item is used once
        before any is used again, in an order hashed from seed, task and epoch. Raises ConfigError where ``count`` is
        more than the task has."""
        task = self.phase(round).task
        items = self._tasks[task].split("train")
        if not 1 <= count <= len(items):
            self.check(count)
        start = self._rounds_before(round, task) * count
        batch = []
        for position in range(start, start + count):
            epoch, offset = divmod(position, len(items))
            batch.append(items[self._order(task, epoch, count, seed)[offset]])
        return tuple(batch)

    def _rounds_before(self, round: int, task: str) -> int:
        before, first = 0, 1
        for phase in self._phases:
            if phase.task == task:
                before += max(0, min(phase.rounds, round - first))
            first += phase.rounds
        return before

    def _make_order(self, task: str, epoch: int, count: int, seed: int) -> tuple[int, ...]:
        """The items of one epoch as indices. A batch may straddle two epochs; then what it took from the first is kept
        out of the part it takes from the second, so that a batch never holds an item twice."""
        items = self._tasks[task].split("train")
        order = sorted(range(len(items)), key=lambda i: child_seed("stream", seed, task, epoch, items[i].id))
        straddled = epoch * len(items) % count  # how many of the straddling batch stand in the epoch before
        if straddled == 0:
            return tuple(order)
        tail = set(self._order(task, epoch - 1, count, seed)[-straddled:])
        fresh = [i for i in order if i not in tail]
        head = fresh[: count - straddled]
        return (*head, *(i for i in order if i not in set(head)))
