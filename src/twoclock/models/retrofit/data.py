"""Texts to train and test a memory on, without any file: facts that are stated among other sentences and asked for
later, when the text itself is out of sight.

A fact gives a person a number of four random digits, so that a model without the text cannot say it: each right digit
is log2 10 bits that were remembered. A text is a function of (seed, purpose, index); training and test name different
people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from twoclock.seeding import child_rng

__all__ = ["DIGITS", "Fact", "Lesson", "Purpose", "filler", "lesson"]

Purpose = Literal["train", "test"]

DIGITS = 4

# fmt: off
PEOPLE = (
    "Alice", "Boris", "Clara", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "Jacob", "Karen", "Laura",
    "Maria", "Nina", "Oscar", "Peter", "Quentin", "Rosa", "Simon", "Tessa", "Victor", "Wendy", "Adam", "Bella",
    "Carl", "Diana", "Edith", "Felix", "Gina", "Hugo", "Ivan", "Julia", "Kevin", "Linda", "Martin", "Nora", "Oliver",
    "Paula", "Robert", "Sarah", "Thomas", "Vera", "Walter", "Anna", "Bruno", "Chloe", "Daniel", "Emma", "George",
    "Helen",
)
# fmt: on
KINDS = (
    "pass key",
    "locker number",
    "room number",
    "gate code",
    "badge number",
    "extension",
    "account number",
    "safe code",
)
STATED = ("The {kind} of {name} is {number}.", "{name}'s {kind} is {number}.")
ASKED = ("The {kind} of {name} is {number}", "Question: What is {name}'s {kind}?\nAnswer: {name}'s {kind} is {number}")

PARTS = (
    ["old", "small", "quiet", "green", "heavy", "distant", "narrow", "wooden", "bright", "empty"],
    ["farmer", "teacher", "captain", "river", "garden", "engine", "market", "letter", "window", "bridge"],
    ["watched", "followed", "painted", "carried", "repaired", "crossed", "found", "left", "moved", "kept"],
    [
        "before noon",
        "after the rain",
        "near the harbour",
        "without a word",
        "every spring",
        "in the valley",
        "by the road",
        "at night",
    ],
)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number to remember, and the question that is answered with it."""

    name: str
    stated: str
    """The sentence."""
    asked: str
    """What stands before the number where it is asked for."""
    number: str


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A text and what it can be asked."""

    text: str
    facts: tuple[Fact, ...]


def filler(rng: Random, sentences: int) -> list[str]:
    """Sentences that say nothing that is asked."""
    found = []
    for _ in range(sentences):
        adjective, noun, verb, when = (rng.choice(part) for part in PARTS)
        found.append(f"The {adjective} {noun} {verb} the {rng.choice(PARTS[0])} {rng.choice(PARTS[1])} {when}.")
    return found


def lesson(seed: int, purpose: Purpose, index: int, *, facts: int = 6, sentences: int = 4, behind: int = 0) -> Lesson:
    """Facts about different people and other sentences, mixed; then ``behind`` more sentences, so that the facts stand
    that far back. Raises ValueError for more facts than there are people."""
    rng = child_rng("models.retrofit.data", seed, purpose, index)
    people = _people(purpose)
    if not 1 <= facts <= len(people):
        raise ValueError(f"facts = {facts}: expected 1 to {len(people)}, the people there are")
    made = []
    for name in rng.sample(people, facts):
        parts = {"name": name, "kind": rng.choice(KINDS), "number": f"{rng.randrange(10**DIGITS):0{DIGITS}d}"}
        asked = rng.choice(ASKED).format(**{**parts, "number": ""})
        made.append(Fact(name=name, stated=rng.choice(STATED).format(**parts), asked=asked, number=parts["number"]))
    sentences_all = [fact.stated for fact in made] + filler(rng, sentences)
    rng.shuffle(sentences_all)
    return Lesson(text=" ".join(sentences_all + filler(rng, behind)), facts=tuple(made))


def _people(purpose: Purpose) -> Sequence[str]:
    return PEOPLE[:30] if purpose == "train" else PEOPLE[30:]
