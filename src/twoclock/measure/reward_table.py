"""Rewards by item and conditioning: the table that the statistics of an allocator are computed from.

Shapes: ``I`` items, ``C`` conditionings (by label), ``N`` rollouts. A *cell* is one item under one conditioning; it may
hold any number of rollouts, none included. An item is named by its task and its id, a conditioning by a label of the
caller's, and never by prompt text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from twoclock.types import Conditioning, Evidence

__all__ = ["RewardTable"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Label = Callable[[Conditioning], str]


@dataclass(frozen=True, kw_only=True, eq=False)
class RewardTable:
    """Graded rollouts, each in one cell. Build it with :meth:`of` or :meth:`from_evidence`, which check it."""

    items: tuple[tuple[str, str], ...]
    """The task and id of each row, in order of first appearance."""
    conditionings: tuple[str, ...]
    """The label of each column, in order of first appearance."""
    item_of: Index
    """The row of each rollout, shape (N,)."""
    conditioning_of: Index
    """The column of each rollout, shape (N,)."""
    rewards: Array
    """In [0, 1], shape (N,); rollouts of one cell keep the order they came in."""

    @classmethod
    def of(cls, rollouts: Iterable[tuple[str | tuple[str, str], str, float]]) -> RewardTable:
        """From (item, label of the conditioning, reward in [0, 1]) triples; an item is an id, or a task and an id."""
        triples = [
            ((item if isinstance(item, tuple) else ("", item)), label, reward) for item, label, reward in rollouts
        ]
        rows = {item: i for i, item in enumerate(dict.fromkeys(item for item, _, _ in triples))}
        columns = {label: c for c, label in enumerate(dict.fromkeys(label for _, label, _ in triples))}
        rewards = np.array([reward for _, _, reward in triples], dtype=np.float64)
        bad = np.flatnonzero(~((rewards >= 0) & (rewards <= 1)))
        if len(bad):
            item, label, reward = triples[bad[0]]
            raise ValueError(
                f"a reward lies in [0, 1]; got {reward!r} for item {item[1]!r} under {label!r} (rollout {bad[0]})"
            )
        return cls(
            items=tuple(rows),
            conditionings=tuple(columns),
            item_of=np.array([rows[item] for item, _, _ in triples], dtype=np.int64),
            conditioning_of=np.array([columns[label] for _, label, _ in triples], dtype=np.int64),
            rewards=rewards,
        )

    @classmethod
    def from_evidence(
        cls, evidence: Evidence | Iterable[Evidence], label: Label | None = None, *, max_age: int = 0
    ) -> RewardTable:
        """From the groups of one round or of several; the same item of several rounds is one row.

        ``label`` names a conditioning; without it that is its ``text_id``, the same whatever the weights. Then one
        label must not stand for two versions of the weights: that is a ValueError, because a score does not outlive a
        change of weights. Rollouts older than ``max_age`` rounds come from earlier weights and are left out, and so
        are those whose grading failed: their 0 says nothing of the answer.
        """
        rounds = [evidence] if isinstance(evidence, Evidence) else list(evidence)
        versions: dict[str, str | None] = {}
        triples: list[tuple[str | tuple[str, str], str, float]] = []
        for one in rounds:
            names = {id_: (label(c) if label else c.text_id) for id_, c in one.conditionings.items()}
            for group in one.groups:
                for rollout in group.rollouts:
                    if rollout.age > max_age or rollout.grade.failure is not None:
                        continue
                    if rollout.conditioning_id not in names:
                        raise ValueError(
                            f"round {one.round} has a rollout under the conditioning {rollout.conditioning_id!r}, "
                            "which its evidence does not hold; keep the conditionings of all its rollouts"
                        )
                    name = names[rollout.conditioning_id]
                    delta = one.conditionings[rollout.conditioning_id].delta
                    version = delta.id if delta else None
                    if label is None and versions.setdefault(name, version) != version:
                        raise ValueError(
                            f"the conditioning {name!r} was sampled under two versions of the weights; take the "
                            "rounds since the last commit of the slow clock, or give label= that tells them apart"
                        )
                    triples.append(((one.task, group.item.id), name, rollout.reward))
        return cls.of(triples)

    # ------------------------------------------------------------------------------------------------- views by cell

    @property
    def shape(self) -> tuple[int, int]:
        """(I, C)."""
        return len(self.items), len(self.conditionings)

    @cached_property
    def counts(self) -> Array:
        """Rollouts a cell, shape (I, C)."""
        return self._per_cell(np.ones_like(self.rewards))

    @cached_property
    def means(self) -> Array:
        """The mean reward of each cell, shape (I, C); 0 where it has no rollout (ask :attr:`counts`)."""
        return self._per_cell(self.rewards) / np.maximum(self.counts, 1)

    @cached_property
    def noise(self) -> Array:
        """The unbiased variance of one rollout within its cell, shape (I, C), by the division by n - 1; NaN below two
        rollouts. Its expectation for rewards of 0 and 1 is p(1 - p)."""
        residual = self.rewards - self.means[self.item_of, self.conditioning_of]
        squares = self._per_cell(residual * residual)
        return np.where(self.counts > 1, squares / np.maximum(self.counts - 1, 1), np.nan)

    @cached_property
    def cell_of(self) -> Index:
        """The cell of each rollout, as row times C plus column."""
        return self.item_of * self.shape[1] + self.conditioning_of

    @cached_property
    def rank_of(self) -> Index:
        """How many rollouts came before each one in its own cell."""
        order = np.argsort(self.cell_of, kind="stable")
        ranks = np.empty_like(self.cell_of)
        starts = np.searchsorted(self.cell_of[order], self.cell_of[order], side="left")
        ranks[order] = np.arange(len(order)) - starts
        return ranks

    def _per_cell(self, values_N: Array) -> Array:
        total = np.bincount(self.cell_of, weights=values_N, minlength=self.shape[0] * self.shape[1])
        return np.asarray(total, dtype=np.float64).reshape(self.shape)

    def column(self, label: str) -> int:
        """The place of a label; ValueError with those that exist for one that does not."""
        if label not in self.conditionings:
            known = ", ".join(map(repr, self.conditionings[:8])) + (" …" if len(self.conditionings) > 8 else "")
            raise ValueError(f"no rollout was sampled under the conditioning {label!r}; there are: {known or 'none'}")
        return self.conditionings.index(label)

    # ----------------------------------------------------------------------------------------------------- selections

    def only(self, *, task: str | None = None, conditionings: Sequence[str] | None = None) -> RewardTable:
        """The rollouts of one task, or under some conditionings, or both."""
        if conditionings is not None:
            for label in conditionings:
                self.column(label)
        return RewardTable.of(
            (self.items[i], self.conditionings[c], float(reward))
            for i, c, reward in zip(self.item_of, self.conditioning_of, self.rewards, strict=True)
            if (task is None or self.items[i][0] == task)
            and (conditionings is None or self.conditionings[c] in conditionings)
        )

    def __add__(self, other: RewardTable) -> RewardTable:
        """The rollouts of both; cells of the same item and label are joined."""
        return RewardTable.of(
            (part.items[i], part.conditionings[c], float(reward))
            for part in (self, other)
            for i, c, reward in zip(part.item_of, part.conditioning_of, part.rewards, strict=True)
        )

    def __str__(self) -> str:
        filled = int(np.count_nonzero(self.counts))
        items, conditionings = self.shape
        return f"{len(self.rewards)} rollouts of {items} items under {conditionings} conditionings ({filled} cells)"
