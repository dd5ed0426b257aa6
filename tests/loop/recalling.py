"""Memory in miniature: what is recalled of an item follows from its id, and a channel that deploys it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twoclock.types import Budget, Conditioning, Cost, Declined, Evidence, Item, Proposal, Recall, Timescale

__all__ = ["RECALL", "REMEMBERED", "Remembering", "remembers"]


def remembers(word: str = "note") -> Callable[[Item], Conditioning]:
    """What is told of each item: a note and an exemplar, and the entry that they came from."""
    return lambda item: Conditioning(
        notes=(f"{word} on {item.id}",), exemplars=((f"like {item.id}?", "7"),), recalled=(f"{word} of {item.id}",)
    )


RECALL = Recall("memory", remembers())
REMEMBERED = Conditioning(recall=(RECALL,))


class Remembering:
    """A fast channel that deploys a memory, and searches on the items to come; its state counts what it has learned.
    ``learns``: whether the memory says something else after each round."""

    name = "memory"
    timescale = Timescale.FAST

    def __init__(self, *, learns: bool = False, samples: int = 2) -> None:
        self.learns, self.samples = learns, samples

    def init(self, card: Any, seed: int) -> int:
        return 0

    def condition(self, state: int, task: str) -> Conditioning:
        word = f"note {state}" if self.learns else "note"
        return Conditioning(recall=(Recall(word, remembers(word)),))

    def propose(self, bench: Any, state: int, evidence: Evidence, budget: Budget, seed: int) -> Any:
        ahead = bench.upcoming(2)
        if ahead:
            bench.roll_out(ahead, [self.condition(state, evidence.task)], self.samples, seed, paired=False)
        if not self.learns:
            return Declined(channel=self.name, reason="it learns nothing")
        return Proposal(channel=self.name, state=state + 1, cause="always", cost=Cost())

    def dump(self, state: int) -> bytes:
        return str(state).encode()

    def load(self, blob: bytes) -> int:
        return int(blob)
