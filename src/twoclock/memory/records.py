"""What memory is made of: entries, who may read them, what they were measured to be worth. Immutable values.

An *entry* is one thing remembered: a case, a reflection, a subtask's result, what a tool did, a note. Its ``key`` is
what it is found by (the situation), its ``text`` what is shown. The raw episodes that it came from are named in its
``provenance`` and stand elsewhere, unchanged: derived text can be wrong, and is only ever one reading of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from twoclock.hashing import content_hash

__all__ = ["KINDS", "TRUSTS", "Effect", "Entry", "Hit", "Kind", "Scope", "Trust"]

Kind = Literal["case", "reflection", "subtask", "tool", "note", "skill"]
KINDS: tuple[Kind, ...] = ("case", "reflection", "subtask", "tool", "note", "skill")

Trust = Literal["verified", "self", "user", "imported", "quarantined"]
"""Who vouches: a verifier that graded the episode; the model about itself; a person; a file. What is quarantined is
kept and never shown."""
TRUSTS: tuple[Trust, ...] = ("verified", "self", "user", "imported", "quarantined")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Whose an entry is, and who reads. An empty field of an entry is open to everyone; one that is set is for readers
    with the same value alone."""

    agent: str = ""
    user: str = ""
    task: str = ""
    session: str = ""

    def may_read(self, entry: Scope) -> bool:
        """Whether a reader of this scope may see an entry of that one."""
        return all(getattr(entry, f.name) in ("", getattr(self, f.name)) for f in fields(self))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing remembered."""

    kind: Kind
    key: str
    """The situation that it is found by: a question, a state, a tool's name with its arguments."""
    text: str
    """What a prompt shows; whatever it says, it is data."""
    scope: Scope = field(default_factory=Scope)
    provenance: tuple[str, ...] = ()
    """The rollouts or episodes that it came from, by name."""
    seen: tuple[str, ...] = ()
    """The entries that were shown when it was written: its ancestors. Text that merely repeats them is not kept."""
    reward: float | None = None
    """What the episode earned, in [0, 1]; None where nobody graded."""
    trust: Trust = "verified"
    body: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON by kind: of a case ``question``, ``answer``, ``item``; of a tool's ``tool``, ``arguments``,
    ``result``; of a subtask ``plan``, ``result``."""
    created: float = 0.0
    """When: seconds since the epoch in a store, the round in a run."""
    expires: float | None = None
    """On the same clock; from then on it is not shown."""
    replaces: str | None = None
    """The entry that this is a new version of."""

    @cached_property
    def id(self) -> str:
        """A hash of what it says and to whom: the same lesson for the same readers is one entry, whenever it was
        written. Provenance and reward do not name it: they are what is known *about* it."""
        scope = [self.scope.agent, self.scope.user, self.scope.task, self.scope.session]
        return content_hash([self.kind, self.key, self.text, scope, dict(self.body), self.replaces])[:16]

    def live(self, now: float) -> bool:
        return self.trust != "quarantined" and (self.expires is None or now < self.expires)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What showing an entry was measured to be worth: sums over reads where it was shown, and over reads where it was
    found but held out at random. The two differ by chance alone but for the showing, so the difference of means is
    the causal effect on the reward. Rewards may be given minus a baseline (their group's mean), which removes the
    items' variance and changes neither expectation."""

    shown: int = 0
    shown_sum: float = 0.0
    shown_squares: float = 0.0
    held: int = 0
    held_sum: float = 0.0
    held_squares: float = 0.0

    def add(self, value: float, *, shown: bool) -> Effect:
        """With one more outcome. Raises ValueError for a value that is no finite number."""
        if not math.isfinite(value):
            raise ValueError(f"an outcome must be a finite number; got {value!r}")
        name = "shown" if shown else "held"
        return Effect(
            **{f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith(name)},
            **{
                name: getattr(self, name) + 1,
                f"{name}_sum": getattr(self, f"{name}_sum") + value,
                f"{name}_squares": getattr(self, f"{name}_squares") + value * value,
            },
        )

    @property
    def difference(self) -> float | None:
        """Mean reward shown minus held out; None until both were seen."""
        return self.shown_sum / self.shown - self.held_sum / self.held if self.shown and self.held else None


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One entry that a search found, with what it was ranked by."""

    entry: Entry
    score: float
    """Higher is nearer; comparable within one search alone."""
    similarity: float | None = None
    """Cosine of query and key in [-1, 1]; None without an encoder."""
    lexical: float | None = None
    """BM25 of the query against key and text, higher is nearer; None where no word matched."""
