"""What the memory channels share: a bank that is asked item by item, credited by what a round compared, and bounded.

A round's proposal does four things, in this order: it credits the entries that the round showed and held out, retires
those that are measured to harm and those that the budget has no room for, adds what the channel has learned from the
evidence, and teaches the retrieval policy. Nothing of it is judged by a trial: that would cost more than a round. What
an entry is worth is measured while it is used (``alternatives``), and what does harm is taken back.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import ClassVar

from twoclock.contracts import Reflector, Workbench
from twoclock.errors import BudgetError
from twoclock.fast.memory.config import MemoryConfig
from twoclock.fast.memory.credit import contrasts, whole_effect
from twoclock.fast.memory.finding import Finder
from twoclock.fast.memory.state import MemoryState, dump_state, load_state
from twoclock.hashing import content_hash
from twoclock.memory.bank import Bank
from twoclock.memory.eviction import evict
from twoclock.memory.records import Entry, Kind, Scope
from twoclock.memory.rendering import Bounds, render
from twoclock.seeding import child_rng, child_seed
from twoclock.types import (
    Budget,
    Conditioning,
    Cost,
    Declined,
    Evidence,
    Item,
    Lesson,
    PolicyCard,
    Proposal,
    Recall,
    Timescale,
    Write,
)

__all__ = ["Learned", "MemoryChannel"]


@dataclass
class Learned:
    """What a channel makes of a round: entries, what they cost, and what was refused and why."""

    entries: list[Entry] = field(default_factory=list)
    gone: dict[str, str] = field(default_factory=dict)
    """Ids of entries that no longer hold, each with its reason."""
    refused: list[str] = field(default_factory=list)
    reflector_calls: int = 0


class MemoryChannel(ABC):
    """A fast channel over a bank of entries of one kind. A subclass says what a round teaches, and which of the found
    entries an item may be shown."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    timescale = Timescale.FAST

    def __init__(self, config: MemoryConfig, reflector: Reflector | None = None) -> None:
        self.config, self.reflector = config, reflector
        self._finder = Finder(config)

    # ------------------------------------------------------------------------------------------------- what differs

    @abstractmethod
    def learn(self, bench: Workbench, bank: Bank, evidence: Evidence, budget: Budget, seed: int) -> Learned:
        """The entries that the round's evidence gives rise to."""

    @property
    def shows(self) -> bool:
        """Whether an item may be shown anything at all; where not, this is no memory, exactly."""
        return self.config.k > 0

    def may_show(self, entry: Entry, item: Item) -> bool:
        """Whether the item may be shown the entry at all: by default not what was learned on the item itself, which
        would be the answer and not a lesson."""
        return entry.body.get("item") != item.id

    # ------------------------------------------------------------------------------------------------- the contract

    def init(self, card: PolicyCard, seed: int) -> MemoryState:
        return MemoryState()

    def condition(self, state: MemoryState, task: str) -> Conditioning:
        return self._conditioning(state, task, None)

    def alternatives(self, state: MemoryState, task: str, count: int, seed: int) -> tuple[Conditioning, ...]:
        """What is deployed, then the same with one entry held out for each item (or all of them), drawn at random by
        item: what tells an entry's effect from the item's."""
        if count < 1:
            raise ValueError(f"count = {count}: expected at least 1")
        if not self._speaks(state, task):
            return (Conditioning(),)
        held = [self._conditioning(state, task, child_seed("hold-out", seed, n)) for n in range(count - 1)]
        return (self.condition(state, task), *held)

    def dump(self, state: MemoryState) -> bytes:
        return dump_state(self.name, state)

    def load(self, blob: bytes) -> MemoryState:
        return load_state(self.name, blob)

    def bank(self, state: MemoryState) -> Bank:
        return state.bank

    def with_bank(self, state: MemoryState, bank: Bank) -> MemoryState:
        return MemoryState(bank, state.learned)

    def lessons(self, state: MemoryState) -> tuple[Lesson, ...]:
        """Each entry of the bank, in its order."""
        return tuple(
            Lesson(
                id=entry.id,
                channel=self.name,
                text=_told(entry),
                tasks=(entry.scope.task or "*",),
                live=self.shows and entry.trust != "quarantined",
                since=entry.created,
            )
            for entry in state.bank.entries
        )

    def without(self, state: MemoryState, lessons: Collection[str]) -> MemoryState:
        """The bank without these entries; the ledger keeps the state that had them."""
        return MemoryState(state.bank.retire(lessons), state.learned) if lessons else state

    def propose(
        self, bench: Workbench, state: MemoryState, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[MemoryState] | Declined:
        """The next bank, or a reason for none."""
        if not evidence.rollouts:
            return Declined(channel=self.name, reason="no evidence: there are no rollouts to learn from")
        started, now = bench.spent, float(evidence.round)
        credited = state.bank
        for entry_id, difference in contrasts(evidence):
            if credited.get(entry_id) is not None:
                credited = credited.credit(entry_id, difference, shown=True).credit(entry_id, 0.0, shown=False)
        try:
            learned = self.learn(bench, credited, evidence, budget, seed)
        except BudgetError as error:
            learned = Learned(refused=[f"the budget ended: {error}"])
        bank, added = credited, []
        for entry in learned.entries:
            if problem := bank.refusal(entry):
                learned.refused.append(problem)
            elif bank.get(entry.id) is None:
                added.append(entry)
            bank = bank.add(entry)
        bank = bank.retire(learned.gone)
        evicted = evict(bank.entries, bank.effects, now, self.config.max_entries)
        bank, gone = bank.retire(evicted), {**learned.gone, **evicted}
        after = MemoryState(bank, self._finder.learn(state.learned, state.bank, evidence))
        cost = Cost(
            **{n: getattr(bench.spent, n) - getattr(started, n) for n in ("rollouts", "prompt_tokens")},
            completion_tokens=bench.spent.completion_tokens - started.completion_tokens,
            reflector_calls=learned.reflector_calls,
        )
        notes = f"; refused: {'; '.join(sorted(set(learned.refused)))}" if learned.refused else ""
        if self.dump(after) == self.dump(state):
            return Declined(channel=self.name, reason=f"the round taught nothing new{notes}", cost=cost)
        kept = {e.id for e in bank.entries}
        return Proposal(
            channel=self.name,
            state=after,
            cause=f"{len(added)} new, {len(gone)} retired, {len(bank.entries)} kept{notes}",
            cost=cost,
            writes=(
                *(Write(kind=e.kind, text=_told(e), lesson=e.id) for e in added if e.id in kept),
                *(Write(kind="retire", text=reason, lesson=entry_id) for entry_id, reason in gone.items()),
            ),
            metrics=self._metrics(evidence, bank, len(added), len(gone)),
        )

    # ------------------------------------------------------------------------------------------------------ its parts

    def _scope(self, task: str) -> Scope:
        return Scope(task=task if self.config.scope == "task" else "")

    def _speaks(self, state: MemoryState, task: str) -> bool:
        """Whether any entry could be shown on the task: a bank that has nothing for it is no memory."""
        if not self.shows:
            return False
        reader = self._scope(task)
        return any(reader.may_read(e.scope) for e in state.bank.entries)

    def _conditioning(self, state: MemoryState, task: str, held: int | None) -> Conditioning:
        if not self._speaks(state, task):
            return Conditioning()
        settings = asdict(self.config)
        name = content_hash([self.name, state.bank.id, content_hash(state.learned), settings, task, held])[:16]
        return Conditioning(recall=(Recall(name, partial(self._ask, state, task, held)),))

    def _ask(self, state: MemoryState, task: str, held: int | None, item: Item) -> Conditioning:
        if held is None:
            return self.shown(self.found(state, task, item))
        rng = child_rng("hold-out", held, item.id)
        everything, explores, place = rng.random() < self.config.hold_all, rng.random() < 0.5, rng.random()
        if everything:
            return Conditioning()
        if explores and self.config.temperature > 0 and self.config.retrieval in ("kernel", "parametric"):
            return self.shown(self.found(state, task, item, explore=held))
        entries = self.found(state, task, item)
        out = int(place * len(entries))
        return self.shown([entry for n, entry in enumerate(entries) if n != out])

    def found(self, state: MemoryState, task: str, item: Item, explore: int | None = None) -> list[Entry]:
        """The entries to show for an item, best first; drawn by their learned values where ``explore`` is a seed."""

        def may(entry: Entry) -> bool:
            return self.may_show(entry, item)

        return self._finder.find(state.bank, state.learned, item, self._scope(task), may, explore)

    def shown(self, entries: Sequence[Entry]) -> Conditioning:
        """What the model reads of the entries: nothing where there are none. The best exemplar stands next to the item,
        where a small model reads it best."""
        told = render(entries, mode=self.config.show, bounds=Bounds(entry_characters=self.config.max_chars))
        return replace(told, exemplars=told.exemplars[::-1])

    def _metrics(self, evidence: Evidence, bank: Bank, added: int, retired: int) -> dict[str, float]:
        gain, groups = whole_effect(evidence)
        told = [len(c.recalled) for c in evidence.conditionings.values()]
        metrics = {
            "entries": float(len(bank.entries)),
            "added": float(added),
            "retired": float(retired),
            "recalled": math.fsum(told) / len(told) if told else 0.0,
            "measured": float(sum(1 for e in bank.effects.values() if e.shown and e.held)),
        }
        return metrics | ({"memory_gain": gain, "memory_gain_groups": float(groups)} if groups else {})


def _told(entry: Entry) -> str:
    reward = "" if entry.reward is None else f" (reward {entry.reward:.2f})"
    return f"{entry.key}\n→ {entry.text}{reward}" if entry.key != entry.text else f"{entry.text}{reward}"
