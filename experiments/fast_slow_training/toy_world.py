"""The two-token world: its tasks, and a reflector that follows a script; its model is ``toy_policy.py``.

A completion is a format and an answer, such as ``f7 a3``. The reward is 1 where both are right: the one format that the
task wants, and the answer that a planted map gives the input. The base prefers a wrong format, strongly. A system
prompt shifts the formats' logits: ``Use format 7.`` helps format 7, any other text shifts all of them a little, by its
hash. So what a prompt can carry (the format) and what only weights can (the map) are known beforehand, and accuracy and
KL are exact sums over the world's distributions, not samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from twoclock.contracts import Reflector
from twoclock.hashing import content_hash
from twoclock.seeding import child_rng
from twoclock.types import Grade, Item, SplitName

__all__ = ["NUM_ANSWERS", "NUM_FORMATS", "NUM_INPUTS", "TASKS", "ToyTask", "World", "scripted_reflector"]

NUM_FORMATS, NUM_ANSWERS, NUM_INPUTS = 24, 12, 16
TASKS = ("first", "second")
"""Both ask for the same map, each for another format."""
SIZES: Mapping[SplitName, int] = {"train": 512, "trial": 128, "heldout": 32}

_COMPLETION = re.compile(r"f(\d+) a(\d+)")
_COMPLAINT = re.compile(r"the format is wrong: use format (\d+)")


@dataclass(frozen=True, kw_only=True)
class World:
    """What makes one world; all else is hashed from ``seed``."""

    seed: int = 0
    wrong_logit: float = 5.0
    """By how much the base prefers the wrong format."""
    known_logit: float = 1.5
    """How much of the map the base knows already: the right answers' logit above the others."""
    prompt_bias: float = 6.0
    """What ``Use format N.`` adds to the logit of format N."""
    other_bias: float = 0.25
    """The standard deviation of what any other text adds to each format's logit."""
    noise: float = 0.3
    """The standard deviation of the base's logits."""

    @cached_property
    def formats(self) -> tuple[int, ...]:
        """The wrong format, then the right one of each task."""
        return tuple(child_rng("toy-formats", self.seed).sample(range(NUM_FORMATS), 1 + len(TASKS)))

    @cached_property
    def answers(self) -> tuple[int, ...]:
        """The planted map: the right answer of each input."""
        rng = child_rng("toy-answers", self.seed)
        return tuple(rng.randrange(NUM_ANSWERS) for _ in range(NUM_INPUTS))

    def right_format(self, task: str) -> int:
        return self.formats[1 + TASKS.index(task)]


class ToyTask:
    """Items of one right format. An item is one draw of an input: what is held out are draws, as a planted map says
    nothing of an input that was never seen."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.description = "Write the right format and the right answer."
        self._splits = {split: self._items(split, count) for split, count in SIZES.items()}

    def _items(self, split: SplitName, count: int) -> tuple[Item, ...]:
        want = self.world.right_format(self.name)
        return tuple(
            Item(
                id=f"{self.name}-{split}-{n}",
                prompt=f"{split} draw {n}: what belongs to input {n % NUM_INPUTS}?",
                reference=f"f{want} a{self.world.answers[n % NUM_INPUTS]}",
            )
            for n in range(count)
        )

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self._splits[name]

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [self._grade(item, text) for item, text in zip(items, texts, strict=True)]

    def _grade(self, item: Item, text: str) -> Grade:
        written, wanted = (_COMPLETION.fullmatch(t or "") for t in (text, item.reference))
        assert wanted is not None
        problems = []
        if written is None or written[1] != wanted[1]:
            problems.append(f"the format is wrong: use format {wanted[1]}")
        if written is None or written[2] != wanted[2]:
            problems.append("the answer is wrong")
        return Grade(reward=float(not problems), feedback="; ".join(problems) or "right")


def scripted_reflector(chance: float, seed: int) -> Reflector:
    """Reads a reflection prompt's feedback. With probability ``chance`` it proposes the instruction that the feedback
    names, where it names one; else words without a meaning. The same prompt always gets the same reply."""
    words = ("calm", "river", "stone", "early", "light", "under", "quiet", "amber", "north", "paper", "slow", "copper")

    def reflect(prompt: str) -> str:
        rng = child_rng("toy-reflector", seed, content_hash(prompt))
        named = _COMPLAINT.search(prompt)
        helps = rng.random() < chance
        text = f"Use format {named[1]}." if named and helps else f"Mind the {' '.join(rng.sample(words, 4))}."
        return f"```\n{text}\n```"

    return reflect
