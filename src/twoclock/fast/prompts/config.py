"""What a user may set of the prompts channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoclock.errors import ConfigError, unknown_name

__all__ = ["PROPOSERS", "PromptsConfig"]

PROPOSERS = ("exemplars", "edits", "reflective", "self")
_WINDOWS = ("random", "ahead")


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Settings of one prompt search and of the pool it keeps.

    Whether a change of the deployed prompt is kept is not decided here: see the paired-trial gate in
    ``twoclock.allocate``.
    """

    scope: Literal["task", "stream"] = "task"
    """One pool a task name, or one pool for the whole stream."""
    proposers: tuple[str, ...] = ("exemplars",)
    """Who makes new candidates, in any order: ``exemplars`` (few-shot turns) and ``edits`` (templated system prompts)
    need no strong model; ``reflective`` asks a reflector for a system prompt, ``self`` the policy. Where the pool has
    system prompts and exemplars, they are crossed as well."""
    pool_size: int = 4
    """Candidates kept, the empty one included."""
    num_new: int = 8
    """New candidates a search makes from exemplars and edits, half of each where both are named; crossings and
    reflections come on top, and a small budget tries fewer."""
    num_exemplars: tuple[int, ...] = (4, 8)
    """Sizes of exemplar sets to try."""
    gold_items: int = 24
    """Training items whose gold answers may become exemplars, or tell edits the form of an answer, in one search (at
    most half of what was drawn)."""
    instructions: tuple[str, ...] = ()
    """Short system prompts to try as they are, and together with exemplars."""
    window: Literal["random", "ahead"] = "random"
    """What candidates are scored on: ``random`` training items, or those that the next rounds will read, in their order
    (``ahead``); random ones fill up the end of a phase."""
    search_items: int = 32
    """Training items that the finalists are scored on."""
    search_samples: int = 1
    """Rollouts an item and candidate in the search."""
    first_items: int = 8
    """Items of the first stage; each further stage doubles what has been seen."""
    halving: int = 2
    """Each stage keeps one candidate in ``halving``, but never fewer than ``pool_size``."""
    num_reflections: int = 2
    """Calls a search, of the reflector and of the policy each, where they are named."""
    reflection_examples: int = 4
    """Rollouts shown in one call; fewer where the policy's context is too short for its own reflection."""
    self_tokens: int = 160
    """The longest reply of the policy's own reflection, in tokens; one that is cut off there is refused."""
    max_prompt_chars: int = 6000
    """Cap on a candidate's text; held to two characters a token of the policy's context as well."""
    copy_ngram: int = 5
    """A proposed instruction that shares this many tokens in a row with one item's own text is refused as a copy."""
    memory: int = 64
    """How many losers are remembered, so that the same text is not tried again on the same weights."""
    empty_alternative: bool = True
    """Whether the empty prompt is among the alternatives that groups roll out under."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: expected at least {least}"
            for name, least in _LEAST.items()
            if getattr(self, name) < least
        ]
        problems += [unknown_name("proposer", p, PROPOSERS) for p in self.proposers if p not in PROPOSERS]
        if not self.proposers:
            problems.append(f"proposers is empty: name at least one of {', '.join(PROPOSERS)}")
        if twice := sorted({p for p in self.proposers if self.proposers.count(p) > 1}):
            problems.append(f"proposers names {', '.join(map(repr, twice))} more than once: name each once")
        if not self.num_exemplars or min(self.num_exemplars) < 1:
            problems.append(f"num_exemplars = {list(self.num_exemplars)}: expected one or more sizes, each at least 1")
        if any(not text.strip() for text in self.instructions):
            problems.append("instructions holds an empty text: remove it (the empty prompt is always tried)")
        if self.scope not in ("task", "stream"):
            problems.append(unknown_name("scope", self.scope, ("task", "stream")))
        if self.window not in _WINDOWS:
            problems.append(unknown_name("window", self.window, _WINDOWS))
        if problems:
            raise ConfigError(problems)


_LEAST = {
    "pool_size": 2,
    "num_new": 1,
    "gold_items": 0,
    "search_items": 4,
    "search_samples": 1,
    "first_items": 4,
    "halving": 2,
    "num_reflections": 1,
    "reflection_examples": 1,
    "self_tokens": 1,
    "max_prompt_chars": 16,
    "copy_ngram": 2,
    "memory": 0,
}
