"""One variant of a task as a task: items to measure on and never to learn from, and how its answers are read.

A variant's items name their *partner*, the item of the ``id`` variant that poses the same latent problem, and the
*stale* answer: what somebody says who overlooked the element that was removed or added, or the rule that was stated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from twoclock.contracts import Task
from twoclock.tasks.text import extract, is_number, last_number, normalised
from twoclock.types import Grade, Group, Item, SplitName

__all__ = ["DESCRIPTIONS", "RIGHT", "VARIANTS", "Parsed", "VariantItem", "VariantTask", "plain_parse"]

DESCRIPTIONS: Mapping[str, str] = {
    "seen": "the training items again",
    "id": "new items of the training distribution",
    "n-1": "one element fewer than in training",
    "n+1": "one element more than in training",
    "template": "the same problems in other words",
    "distractor": "the same problems beside a true but irrelevant sentence",
    "rule": "the same problems with a changed rule in the prompt",
}
"""What each variant holds, by name, in the order in which they are made and shown."""
VARIANTS: tuple[str, ...] = tuple(DESCRIPTIONS)

RIGHT = 0.999
"""An answer is right from this reward on; partial credit is for learning, not for measuring."""

Parsed = Callable[[Item, str], bool]
"""Whether an answer can be read from a text at all, right or wrong."""


@dataclass(frozen=True, kw_only=True)
class VariantItem:
    """An item of a variant with what measuring needs beside it."""

    item: Item
    partner: str | None = None
    """The id of the ``id`` variant's item that it was derived from; ``None`` where it has none."""
    stale: Item | None = None
    """The same item as if the stale answer were right; ``None`` where that answer is right, or is not known."""
    tempting: Item | None = None
    """The same item as if the answer that uses the distractor were right."""
    graded_as: Item | None = None
    """The item that the task knows it by, where that is not ``item`` itself."""
    telling: bool = True
    """Whether overlooking the change gives another answer: where not, nothing can be told from a right one."""
    values: tuple[int, ...] = ()
    """The numbers the problem is made of."""


@dataclass(frozen=True, eq=False)
class VariantTask:
    """A variant; see :class:`twoclock.contracts.Task`. Its items are all held-out: nothing may learn from them."""

    name: str
    variant: str
    items: tuple[VariantItem, ...]
    task: Task
    """Grades the answers."""
    parsed: Parsed
    notes: tuple[str, ...] = ()
    _by_id: dict[str, VariantItem] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._by_id.update({entry.item.id: entry for entry in self.items})
        if len(self._by_id) < len(self.items):
            raise ValueError(f"variant '{self.name}' holds an item twice")

    @property
    def description(self) -> str:
        return f"{self.task.description} Variant '{self.variant}': {DESCRIPTIONS[self.variant]}."

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return tuple(entry.item for entry in self.items) if name == "heldout" else ()

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return self.task.grade([self._entry(item).graded_as or item for item in items], texts)

    def close(self) -> None:
        """Ends the grader's child process, where there is one."""
        close = getattr(self.task, "close", None)
        if close is not None:
            close()

    @cached_property
    def chance(self) -> float | None:
        """How often another item's right answer would be right: what guessing by the answers' distribution scores. An
        item's own ``chance`` counts, where its metadata has one. ``None`` without reference answers."""
        known = [entry.item.metadata["chance"] for entry in self.items if "chance" in entry.item.metadata]
        if len(known) == len(self.items):
            return float(sum(known) / len(known))
        answers = [entry.item.reference for entry in self.items]
        n = len(answers)
        if n < 2 or None in answers:
            return None
        counts = Counter(normalised(str(answer)) for answer in answers)
        return sum(c * (c - 1) for c in counts.values()) / (n * (n - 1))

    def rows(self, groups: Sequence[Group]) -> list[dict[str, Any]]:
        """One plain JSON row an item from its graded rollouts: the shares of its samples that are right, stale,
        tempted, parsed and truncated, mean tokens, and how it was paired. ``measure.Answer(**row)`` takes each.

        ``stale`` is None where the stale answer is right too, ``tempted`` where the item has no distractor of that
        kind. A completion that failed counts as not parsed.
        """
        empty = [group.item.id for group in groups if not group.rollouts]
        if empty:
            raise ValueError(f"item {empty[0]} of variant '{self.name}' has no rollouts to measure")
        stale, tempted = (self._hits(groups, name) for name in ("stale", "tempting"))
        return [self._row(group, stale, tempted) for group in groups]

    def _row(self, group: Group, stale: Mapping[str, float], tempted: Mapping[str, float]) -> dict[str, Any]:
        entry, count = self._entry(group.item), len(group.rollouts)
        done = [rollout.completion for rollout in group.rollouts]
        parsed = [c.finish != "error" and self.parsed(entry.item, c.text) for c in done]
        return {
            "variant": self.variant,
            "item": entry.item.id,
            "partner": entry.partner,
            "right": sum(rollout.reward >= RIGHT for rollout in group.rollouts) / count,
            "stale": stale.get(entry.item.id),
            "tempted": tempted.get(entry.item.id),
            "parsed": sum(parsed) / count,
            "truncated": sum(c.finish == "length" for c in done) / count,
            "tokens": sum(len(c.tokens) for c in done) / count,
            "samples": count,
            "telling": entry.telling,
            "chance": self.chance,
            "values": list(entry.values),
        }

    def _hits(self, groups: Sequence[Group], kind: str) -> dict[str, float]:
        """The share of each item's samples that give its stale (or tempting) answer: graded as if that were right.
        Where a problem has several right answers one may be right both ways; that one is right, not stale."""
        asked = [(g, twin) for g in groups if (twin := getattr(self._entry(g.item), kind)) is not None]
        open_ones = [
            (g.item.id, twin, r.completion.text)
            for g, twin in asked
            for r in g.rollouts
            if r.completion.finish != "error" and r.reward < RIGHT
        ]
        grades = self.task.grade([o[1] for o in open_ones], [o[2] for o in open_ones]) if open_ones else []
        hits = Counter(o[0] for o, grade in zip(open_ones, grades, strict=True) if grade.reward >= RIGHT)
        return {g.item.id: hits[g.item.id] / len(g.rollouts) for g, _ in asked}

    def _entry(self, item: Item) -> VariantItem:
        try:
            return self._by_id[item.id]
        except KeyError:
            raise ValueError(
                f"item {item.id} is not one of variant '{self.name}', which only grades its own; was it built with "
                "another seed, count or config?"
            ) from None


def plain_parse(how: str) -> Parsed:
    """The reading for tasks without a form of their own: something is there, and a number where one is asked for."""

    def parsed(item: Item, text: str) -> bool:
        answer = extract(text, how)
        gold = extract(item.reference or "", how)
        return bool(answer) and (not is_number(gold) or last_number(answer) is not None)

    return parsed
