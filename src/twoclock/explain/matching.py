"""Which lessons a recorded conditioning has, and what it says beside them.

A conditioning is taken apart into *features*: the ids of recalled entries, the shifts, the experts mixed in, and the
longest prompt of each channel that it contains. What none of them accounts for is a feature too, of nobody: two
conditionings say the same but for a lesson exactly where their features are equal but for the lesson's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twoclock.hashing import content_hash
from twoclock.types import Conditioning, Lesson

__all__ = ["Key", "Matcher", "Parts", "key_of"]

Key = tuple[str, str]
"""Channel and lesson id."""
Feature = tuple[Any, ...]


def key_of(lesson: Lesson) -> Key:
    return lesson.channel, lesson.id


@dataclass(frozen=True)
class Parts:
    """A conditioning taken apart: each feature with the lesson whose it is, or None."""

    owners: Mapping[Feature, Key | None]

    @property
    def lessons(self) -> frozenset[Key]:
        return frozenset(key for key in self.owners.values() if key is not None)

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset(self.owners)

    def without(self, lesson: Key) -> frozenset[Feature]:
        """The features of what says the same but for the lesson."""
        return frozenset(feature for feature, owner in self.owners.items() if owner != lesson)


class Matcher:
    """Takes conditionings apart, given every lesson that the run has had."""

    def __init__(self, lessons: Collection[Lesson]) -> None:
        self._by_id = {lesson.id: key_of(lesson) for lesson in lessons if lesson.says is None}
        self._mixtures = {
            lesson.says.mixture.id: key_of(lesson) for lesson in lessons if lesson.says and lesson.says.mixture
        }
        self._prompts: dict[str, list[tuple[Lesson, Conditioning]]] = {}
        for lesson in lessons:
            if lesson.says is not None and _size(lesson.says):
                self._prompts.setdefault(lesson.channel, []).append((lesson, lesson.says))

    def parts(self, told: Mapping[str, Any]) -> Parts:
        """``told`` is a conditioning as the ledger has it."""
        owners: dict[Feature, Key | None] = {}
        for entry in told["recalled"]:
            owners["recalled", entry] = self._by_id.get(entry)
        for shift in told["shifts"]:
            # Another amount of one shift is another thing said, and the same lesson.
            owners["shift", content_hash(shift)] = self._by_id.get(shift["name"])
        if mixture := told.get("mixture"):
            owners["mixture", mixture] = self._mixtures.get(mixture)
        turns = [tuple(turn) for turn in told["exemplars"]]
        system, left = told["system"], set(range(len(turns)))
        for prompts in self._prompts.values():
            found = [(lesson, says, at) for lesson, says in prompts if (at := _place(says, told, turns)) is not None]
            if found:
                lesson, says, at = max(found, key=lambda one: _size(one[1]))
                owners["prompt", lesson.channel, lesson.id] = key_of(lesson)
                left -= set(range(at, at + len(says.exemplars)))
                system = None if says.system is not None else system
        if system is not None:
            owners["system", system] = None
        if not told["recalled"]:  # what memory shows is accounted for by its ids
            if left:
                owners["turns", content_hash([turns[n] for n in sorted(left)])] = None
            if told["notes"]:
                owners["notes", content_hash(list(told["notes"]))] = None
        return Parts(owners)


def _place(says: Conditioning, told: Mapping[str, Any], turns: Sequence[tuple[Any, ...]]) -> int | None:
    """Where the prompt's exemplars stand in what was told; None where it is not in it."""
    if says.system is not None and told["system"] != says.system:
        return None
    count = len(says.exemplars)
    return next((n for n in range(len(turns) - count + 1) if tuple(turns[n : n + count]) == says.exemplars), None)


def _size(says: Conditioning) -> int:
    return len(says.exemplars) + (says.system is not None)
