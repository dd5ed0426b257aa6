"""What experts do to one another: scores of every task under every expert and under their sum, paired by item.

The *interference matrix* has a row a task and a column an expert: the score of task i under expert j, less that under
the base. Its diagonal is what each expert is for; off it, what an expert does to tasks that are not its own. The
*interference* of a composition on task i is its score less that under i's own expert alone, item by item: below 0, the
other experts are in the way. Higher is better, all scores lie in [0, 1], all differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twoclock.measure.intervals import Interval, mean_interval
from twoclock.measure.pairs import paired_difference

__all__ = ["BASE", "Composition"]

BASE = "base"
"""The column of the base, without any expert."""


@dataclass(frozen=True)
class Composition:
    """``rewards[task][column]`` are the scores of that task's items, in one order for all columns. Columns are
    :data:`BASE`, the experts by name, and whatever is composed of them. Each task with an expert of its own bears the
    expert's name, or ``own`` says which."""

    rewards: Mapping[str, Mapping[str, Sequence[float]]]
    own: Mapping[str, str]

    def __post_init__(self) -> None:
        problems = []
        columns = {tuple(sorted(row)) for row in self.rewards.values()}
        if len(columns) > 1:
            problems.append("every task needs a score in every column; the columns differ from task to task")
        for task, row in self.rewards.items():
            if BASE not in row:
                problems.append(f"task '{task}' has no column '{BASE}'")
            if len({len(scores) for scores in row.values()}) > 1 or not all(row.values()):
                problems.append(f"task '{task}' has columns of different lengths, or without items: they are paired")
            if any(not 0.0 <= score <= 1.0 for scores in row.values() for score in scores):
                problems.append(f"task '{task}' has a score outside [0, 1], or none")
        problems += [
            f"the own expert of '{task}' is '{expert}', which has no column"
            for task, expert in self.own.items()
            if task in self.rewards and expert not in self.rewards[task]
        ]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.rewards)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(next(iter(self.rewards.values()), {}))

    def score(self, task: str, column: str) -> Interval:
        """The mean score with its interval over items."""
        return mean_interval(list(self.rewards[task][column]), bounds=(0.0, 1.0))

    def gain(self, task: str, column: str) -> Interval:
        """Score less the base's: an entry of the interference matrix, where the column is an expert."""
        return paired_difference(list(self.rewards[task][column]), list(self.rewards[task][BASE]))

    def matrix(self) -> dict[str, dict[str, Interval]]:
        """:meth:`gain` of each task under each expert that some task has for its own."""
        experts = list(dict.fromkeys(self.own[task] for task in self.tasks if task in self.own))
        return {task: {expert: self.gain(task, expert) for expert in experts} for task in self.tasks}

    def interference(self, task: str, composed: str) -> Interval:
        """Score under the composition less that under the task's own expert."""
        return paired_difference(list(self.rewards[task][composed]), list(self.rewards[task][self.own[task]]))

    def kept(self, task: str, composed: str) -> float | None:
        """The share of what the task's own expert gained that the composition keeps; None where it gained nothing."""
        own = self.gain(task, self.own[task]).estimate
        return self.gain(task, composed).estimate / own if own > 0 else None

    def best_single(self, task: str) -> str:
        """The expert, or the base, with the highest score; of equals the first. Chosen on the very items that it is
        reported on, so a bound and no method."""
        singles = [BASE, *dict.fromkeys(self.own.values())]
        return max((c for c in singles if c in self.rewards[task]), key=lambda c: self.score(task, c).estimate)
