"""Environments of the user's own: from two functions, without a class.

::

    def reset(spec):                 # what an episode begins with
        return spec["number"], "Guess a number from 1 to 9."

    def step(state, action):         # -> (state, text, reward, done) or (..., success)
        ...

    world = PythonWorld("guess", reset, step, specs=[{"number": 4}, {"number": 7}, {"number": 2}])

Functions must depend on their arguments alone: an episode is replayed to grade it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twoclock.errors import ConfigError
from twoclock.hashing import canonical_json
from twoclock.tasks.environments import (
    Action,
    Environment,
    EnvironmentFaultError,
    Observation,
    Step,
    environment_item,
    level,
)
from twoclock.tasks.splits import DRAW_ORDER, dealt
from twoclock.tasks.text import clip
from twoclock.types import Item, SplitName

__all__ = ["PythonEnvironment", "PythonWorld"]

Spec = Mapping[str, Any]
Reset = Callable[[Spec], Any]
"""spec → (state, text) or (state, text, actions)."""
Advance = Callable[[Any, Action], Any]
"""(state, action) → (state, text, reward, done) or (state, text, reward, done, success). ``text`` may be (text,
actions)."""


class PythonEnvironment:
    """One live episode of two functions. A state that is a value need not be copied; one that is changed in place is
    all right too, since every episode begins with a state of its own."""

    def __init__(self, reset: Reset, step: Advance) -> None:
        self._reset, self._advance = reset, step
        self._state: Any = None

    def reset(self, item: Item) -> Observation:
        result = self._reset(item.metadata["spec"])
        if not isinstance(result, tuple) or len(result) not in (2, 3):
            raise EnvironmentFaultError(
                f"reset returned {clip(repr(result))}; expected (state, text) or (state, text, actions)"
            )
        self._state = result[0]
        return _observation(result[1:] if len(result) == 3 else result[1])

    def step(self, action: Action) -> Step:
        result = self._advance(self._state, action)
        if not isinstance(result, tuple) or len(result) not in (4, 5):
            raise EnvironmentFaultError(
                f"step returned {clip(repr(result))}; expected (state, text, reward, done) or "
                "(state, text, reward, done, success)"
            )
        self._state, told, reward, done = result[:4]
        success = result[4] if len(result) == 5 else None
        if not isinstance(done, bool) or not isinstance(success, bool | None):
            raise EnvironmentFaultError(f"step's done and success must be true or false; got {done!r} and {success!r}")
        return Step(observation=_observation(told), reward=level(reward, "step"), done=done, success=success)

    def close(self) -> None:
        self._state = None


def _observation(told: Any) -> Observation:
    text, actions = told if isinstance(told, tuple) and len(told) == 2 else (told, None)
    if not isinstance(text, str):
        raise EnvironmentFaultError(
            f"an observation must be text; got {clip(repr(text))} of type {type(text).__name__}"
        )
    if actions is None:
        return Observation(text=text)
    if isinstance(actions, str) or not all(isinstance(action, str) for action in actions):
        raise EnvironmentFaultError(f"actions must be a list of texts; got {clip(repr(actions))}")
    return Observation(text=text, actions=tuple(sorted(actions)))


class PythonWorld:
    """Episodes of two functions, one a spec. A spec is plain JSON; its ``prompt``, where it has one, is the item's
    prompt, else ``goal`` and what ``reset`` says. Raises ConfigError for specs that are none, and for equal ones."""

    def __init__(
        self,
        name: str,
        reset: Reset,
        step: Advance,
        *,
        specs: Sequence[Spec],
        goal: str = "",
        description: str = "",
        gold: Callable[[Spec], Sequence[Action] | None] | None = None,
    ) -> None:
        self.name = name
        self.description = description or f"Episodes of '{name}'."
        self._reset, self._step, self._goal, self._gold = reset, step, goal, gold
        self._specs = tuple(dict(spec) for spec in specs)
        problems = [] if self._specs else ["specs is empty; give one mapping an episode"]
        seen: dict[str, int] = {}
        for index, spec in enumerate(self._specs):
            try:
                key = canonical_json(spec)
            except (TypeError, ValueError) as error:
                problems.append(f"specs[{index}] is no plain JSON: {clip(str(error))}")
                continue
            if key in seen:
                problems.append(f"specs[{index}] equals specs[{seen[key]}]; each episode is given once")
            seen.setdefault(key, index)
            if spec.get("split") not in (None, *DRAW_ORDER):
                problems.append(f"specs[{index}]: split must be one of {', '.join(DRAW_ORDER)}; got {spec['split']!r}")
        if problems:
            raise ConfigError(problems)

    def draw(self, split: SplitName, index: int, seed: int) -> Item | None:
        mine = dealt(self._specs, split, seed)
        return self.item(mine[index]) if index < len(mine) else None

    def item(self, spec: Spec) -> Item:
        """The item that is this spec's episode."""
        bare = environment_item(self.name, spec, "")
        prompt = spec.get("prompt")
        if not isinstance(prompt, str):
            opening = self.make().reset(bare).text
            prompt = "\n\n".join(part for part in (self._goal, opening) if part)
        return environment_item(self.name, spec, prompt)

    def make(self) -> Environment:
        return PythonEnvironment(self._reset, self._step)

    def gold(self, item: Item) -> tuple[Action, ...] | None:
        found = self._gold(item.metadata["spec"]) if self._gold else None
        return None if found is None else tuple(found)

    def close(self) -> None:
        pass
