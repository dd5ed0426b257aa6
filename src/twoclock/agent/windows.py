"""Lessons and how an attempt is shown them: the window, whose they are, compression, and their place in the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from twoclock.memory.records import Entry
from twoclock.memory.rendering import Bounds, render
from twoclock.seeding import child_rng
from twoclock.types import Conditioning

__all__ = ["Lesson", "first_words", "notes_of", "shown_lessons"]

BOUNDS = Bounds(entry_characters=8000, characters=32_000)
"""Wide enough that no lesson is ever cut: what is shown is verbatim."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One reflection that was kept."""

    item_id: str
    trial: int
    """The failed trial that it was written after."""
    text: str


def shown_lessons(
    lessons: Mapping[str, Sequence[Lesson]],
    item_id: str,
    others: Sequence[str],
    memory: Literal["own", "shuffled", "random"],
    window: int,
    seed: int,
) -> list[Lesson]:
    """The lessons that an attempt at an item is shown: its own last ``window``; instead of each of these one of another
    item, as near to it in length as there is; or as many drawn from all others'. An item without lessons of its own is
    shown none in any arm, so that the arms differ in what a lesson says and not in who gets one."""
    own = list(lessons[item_id])[-window:] if window else []
    if memory == "own" or not own:
        return own
    texts = {lesson.text for lesson in lessons[item_id]}
    pool = [lesson for other in others for lesson in lessons[other] if lesson.text not in texts]
    rng = child_rng("other-lessons", seed)
    rng.shuffle(pool)
    if memory == "random":
        return pool[: len(own)]
    chosen: list[Lesson] = []
    for lesson in own:
        left = [other for other in pool if other not in chosen]
        if left:
            chosen.append(min(left, key=lambda other: abs(len(other.text) - len(lesson.text))))
    return chosen


def notes_of(
    lessons: Sequence[Lesson],
    last: tuple[str, str] | None = None,
    compress: Callable[[Sequence[str]], str] | None = None,
) -> Conditioning:
    """The conditioning that shows lessons, oldest first, after the last attempt (its text and feedback) where that is
    to be shown. Nothing to show is the empty conditioning."""
    entries = []
    if last is not None:
        text, feedback = last
        told = f"{text}\n\nOutcome: {feedback}" if feedback else text
        entries.append(Entry(kind="note", key="last attempt", text=f"My last attempt at this task:\n{told}"))
    texts = [lesson.text for lesson in lessons]
    if texts and compress is not None:
        texts = [made] if (made := compress(texts).strip()) else []
    entries += [Entry(kind="reflection", key="this task", text=text) for text in texts]
    shown = render(entries, bounds=BOUNDS)
    # The ids would name entries that stand in no store; what is credited here is the item's own window.
    return Conditioning(notes=shown.notes)


def first_words(limit: int) -> Callable[[Sequence[str]], str]:
    """A compressor that needs no model: the first ``limit`` words of each lesson, one lesson a line."""

    def compress(texts: Sequence[str]) -> str:
        return "\n".join(" ".join(text.split()[:limit]) for text in texts)

    return compress
