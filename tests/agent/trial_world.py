"""A task whose items are answered with a number, and policies that use what their notes say."""

from __future__ import annotations

import re
from collections.abc import Sequence

from twoclock.agent.reflectors import Failure, ScriptedWriter
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng
from twoclock.types import Conditioning, Grade, Item, SplitName

NUMBERS = 8


class Guessing:
    """Each item hides a number from 0 to 7; nothing in its prompt tells which."""

    name = "guessing"
    description = "Guess a number."

    def __init__(self, count: int = 40) -> None:
        self._items = tuple(
            Item(id=f"item{i}", prompt=f"Guess the number of item {i}.", reference=str((i * 5 + 3) % NUMBERS))
            for i in range(count)
        )

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self._items if name == "train" else ()

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [self._grade(item, text) for item, text in zip(items, texts, strict=True)]

    def _grade(self, item: Item, text: str) -> Grade:
        if text == item.reference:
            return Grade(reward=1.0, feedback="Right.")
        return Grade(reward=0.25 if text.isdigit() else 0.0, feedback=f"{text} is wrong.")


def guesser(*, reads: bool = True, name: str = "guesser") -> ScriptedPolicy:
    """Draws a number that its notes do not rule out; takes one that they swear by."""

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        notes = "\n".join(conditioning.notes) if reads else ""
        sworn = re.search(r"take number (\d)", notes)
        if sworn:
            return sworn[1]
        out = {int(n) for n in re.findall(r"not number (\d)", notes)}
        left = [n for n in range(NUMBERS) if n not in out] or list(range(NUMBERS))
        return str(child_rng("guess", seed).choice(left))

    return ScriptedPolicy(script, name=name)


def rule_out(failure: Failure) -> str:
    """A lesson that is worth something: the number that was wrong, in words that do not repeat the lesson before."""
    return f"Attempt {failure.trial} at {failure.item.id}: not number {failure.text}."


def writer() -> ScriptedWriter:
    return ScriptedWriter(rule_out)


def noted(policy: ScriptedPolicy, trial_prompt: str) -> list[tuple[str, ...]]:
    """The notes of every request with this prompt, in order."""
    return [conditioning.notes for prompt, conditioning, _ in policy.asked if prompt == trial_prompt]
