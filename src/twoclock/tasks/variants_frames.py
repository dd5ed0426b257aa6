"""Template shift and distractors for sources whose problems are finished texts: by what stands around the question.

This shifts less than new wordings of the problem itself would: the question is the same to the letter. It shows
whether a skill hangs on the instruction and the layout it was learned with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from twoclock.errors import ConfigError
from twoclock.hashing import content_hash
from twoclock.seeding import child_rng
from twoclock.tasks.text import clip
from twoclock.tasks.variants_task import VariantItem
from twoclock.tasks.wording import instruct
from twoclock.types import Item

__all__ = ["SLOT", "bare_question", "check_rewordings", "distracted", "framed"]

SLOT = "{question}"
_FRAMES = (
    "Here is a problem to work on.\n{question}",
    "Please read the following carefully, then answer it.\n{question}",
    "A friend asks for your help with this:\n\n{question}",
    "Task\n----\n{question}",
)
_SENTENCES = (
    "(This is exercise {a} on page {b}.)",
    "(The sheet has {a} pages; the next one is number {b}.)",
    "(Filed under {a}-{b}.)",
)


def check_rewordings(rewordings: Sequence[str]) -> list[str]:
    """What is wrong with a user's own wordings; empty when nothing is."""
    return [
        f"a rewording holds {SLOT} once, where the question goes; got {clip(text, 60)!r}, expected something like "
        f"'Solve this. {SLOT} Give only the number.'"
        for text in rewordings
        if text.count(SLOT) != 1
    ]


def bare_question(item: Item, instruction: str, place: str) -> str:
    """The prompt without the task's instruction around it."""
    before, after = instruct("\0", instruction, place).split("\0")
    return item.prompt.removeprefix(before).removesuffix(after)


def framed(
    items: Sequence[Item],
    rewordings: Sequence[str],
    question: Callable[[Item], str],
    seed: int,
    *,
    own_grading: bool,
) -> tuple[VariantItem, ...]:
    """The same items in other words around the question: the user's, which replace the instruction, or else one of our
    own around question and instruction both. ``own_grading``: the task only grades items that it made."""
    problems = check_rewordings(rewordings)
    if problems:
        raise ConfigError(problems)

    def prompt(item: Item) -> str:
        rng = child_rng("variant-frame", seed, item.id)
        if rewordings:
            return rng.choice(list(rewordings)).replace(SLOT, question(item))
        return rng.choice(_FRAMES).replace(SLOT, item.prompt)

    return tuple(_shown(item, prompt(item), "template", own_grading) for item in items)


def distracted(items: Sequence[Item], seed: int, *, own_grading: bool) -> tuple[VariantItem, ...]:
    """The same items below a sentence about the sheet they stand on, with numbers in it."""

    def prompt(item: Item) -> str:
        rng = child_rng("variant-distractor", seed, item.id)
        return f"{rng.choice(_SENTENCES).format(a=rng.randint(2, 99), b=rng.randint(2, 99))}\n{item.prompt}"

    return tuple(_shown(item, prompt(item), "distractor", own_grading) for item in items)


def _shown(item: Item, prompt: str, variant: str, own_grading: bool) -> VariantItem:
    identity = content_hash({"prompt": prompt, "variant": variant, "of": item.id})[:16]
    metadata = {**item.metadata, "variant": variant, "partner": item.id}
    shown = replace(item, id=identity, prompt=prompt, metadata=metadata)
    return VariantItem(item=shown, partner=item.id, graded_as=item if own_grading else None)
