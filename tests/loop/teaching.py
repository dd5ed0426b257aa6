"""A fast channel with lessons, moved as a script says: for tests of what a ledger says of lessons."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from twoclock.types import (
    Budget,
    Conditioning,
    Cost,
    Declined,
    Evidence,
    Lesson,
    PolicyCard,
    Proposal,
    Timescale,
    Write,
)

__all__ = ["CHANCES", "State", "Teacher"]

State = tuple[str, tuple[str, ...]]
"""What is deployed (empty: nothing), and all that is kept."""

CHANCES: Mapping[str | None, float] = {None: 0.5, "good": 0.9, "poison": 0.1, "idle": 0.5}
"""How often an answer is right under each text."""


class Teacher:
    """Deploys a text in the rounds of ``moves`` (round → text), and compares it with going without it."""

    name = "teacher"
    timescale = Timescale.FAST

    def __init__(self, moves: Mapping[int, str] | None = None) -> None:
        self.moves = moves or {}

    def init(self, card: PolicyCard, seed: int) -> State:
        return "", ()

    def propose(
        self, bench: Any, state: State, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[State] | Declined:
        if evidence.round not in self.moves:
            return Declined(channel=self.name, reason="not yet")
        text = self.moves[evidence.round]
        kept = state[1] if text in state[1] else (*state[1], text)
        return Proposal(
            channel=self.name,
            state=(text, kept),
            cause="it is time",
            cost=Cost(),
            writes=(Write(text=text, kind="system", lesson=text),),
        )

    def condition(self, state: State, task: str) -> Conditioning:
        return Conditioning(system=state[0] or None)

    def alternatives(self, state: State, task: str, count: int, seed: int) -> tuple[Conditioning, ...]:
        return (self.condition(state, task), Conditioning())[:count]

    def lessons(self, state: State) -> tuple[Lesson, ...]:
        return tuple(
            Lesson(
                id=text, channel=self.name, text=text, tasks=("*",), live=text == state[0],
                says=Conditioning(system=text),
            )
            for text in sorted(state[1], key=lambda text: text != state[0])
        )  # fmt: skip

    def without(self, state: State, lessons: Collection[str]) -> State:
        return ("" if state[0] in lessons else state[0]), state[1]

    def dump(self, state: State) -> bytes:
        return json.dumps([state[0], list(state[1])]).encode()

    def load(self, blob: bytes) -> State:
        deployed, kept = json.loads(blob)
        return deployed, tuple(kept)
