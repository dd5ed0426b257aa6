"""Gymnasium's toy-text environments in words: frozen lakes by map seed, taxis, and blackjack as a negative control.

Source: the package ``gymnasium`` (Towers et al., arXiv:2407.17032). What a player sees is told, nothing else: a lake's
map is hidden unless ``show_map``, so that it has to be found out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from twoclock.errors import ConfigError, MissingExtraError, unknown_name
from twoclock.seeding import child_seed
from twoclock.tasks.environments import (
    Action,
    Environment,
    Observation,
    Step,
    ToolCall,
    answers_with_words,
    environment_item,
)
from twoclock.types import Item, SplitName

__all__ = ["GYMNASIUM", "GymnasiumWorld", "check_gymnasium"]

_LAKE = ("left", "down", "right", "up")
_TAXI = ("south", "north", "east", "west", "pick up", "drop off")
_CARDS = ("stick", "hit")
_STANDS = ("the red stand", "the green stand", "the yellow stand", "the blue stand")

GYMNASIUM: Mapping[str, Mapping[str, Any]] = {
    "frozen_lake": {"size": 4, "frozen": 0.8, "slippery": False, "show_map": False},
    "taxi": {},
    "blackjack": {},
}
"""Each environment with its options and their defaults."""

SEED_SPAN = 1 << 31


def check_gymnasium(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with this world's ``config``; empty when nothing is."""
    name = config.get("env")
    if name not in GYMNASIUM:
        known = ", ".join(GYMNASIUM)
        return [unknown_name("env", str(name), GYMNASIUM) if name else f"config.env is missing; it is one of: {known}"]
    defaults = GYMNASIUM[str(name)]
    known_keys = ("env", *defaults)
    problems = [unknown_name("key in config", str(key), known_keys) for key in config if key not in known_keys]
    size, frozen = config.get("size", 4), config.get("frozen", 0.8)
    if isinstance(size, bool) or not isinstance(size, int) or not 2 <= size <= 20:
        problems.append(f"config.size must be a whole number from 2 to 20; got {size!r}")
    if isinstance(frozen, bool) or not isinstance(frozen, int | float) or not 0.5 <= frozen <= 1:
        problems.append(f"config.frozen, the share of safe fields, must lie in [0.5, 1]; got {frozen!r}")
    for key in ("slippery", "show_map"):
        if not isinstance(config.get(key, False), bool):
            problems.append(f"config.{key} must be true or false; got {config[key]!r}")
    return problems


def _gymnasium() -> Any:
    try:
        import_module("gymnasium.envs.toy_text.frozen_lake")
        return import_module("gymnasium")
    except ImportError as error:
        raise MissingExtraError.of("gymnasium", "games", "the world 'gymnasium'") from error


class GymnasiumWorld:
    """``config`` has ``env`` (a name of :data:`GYMNASIUM`) and its options."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        problems = check_gymnasium(config)
        if problems:
            raise ConfigError(problems)
        self._env = str(config["env"])
        self._options = dict(GYMNASIUM[self._env]) | {key: config[key] for key in config if key != "env"}
        self.name = f"gymnasium:{self._env}"

    @property
    def description(self) -> str:
        return {
            "frozen_lake": "Cross a frozen lake in words: reach the goal without falling into a hole.",
            "taxi": "Drive a taxi in words: pick the passenger up and drop them off where they want to go.",
            "blackjack": "Play one hand of blackjack.",
        }[self._env]

    def draw(self, split: SplitName, index: int, seed: int) -> Item | None:
        return self.item(child_seed("gymnasium-item", seed, self._env, split, index) % SEED_SPAN)

    def item(self, seed: int) -> Item:
        """The item of one seed of the environment."""
        spec = {"env": self._env, "seed": seed, **self._options}
        game = _Game()
        opening = game.begin(spec)
        return environment_item("gymnasium", spec, f"{game.goal}\n\n{opening.text}", game.content())

    def make(self) -> Environment:
        return _Game()

    def close(self) -> None:
        pass


class _Game:
    """One live game; another environment is made only where the spec's differs."""

    def __init__(self) -> None:
        self._spec: Mapping[str, Any] = {}
        self._env: Any = None
        self._actions: tuple[str, ...] = ()
        self._tell: Callable[[int | tuple[int, ...]], str] = str
        self.goal = ""
        self._start: Any = None

    def reset(self, item: Item) -> Observation:
        return self.begin(item.metadata["spec"])

    def begin(self, spec: Mapping[str, Any]) -> Observation:
        gymnasium = _gymnasium()
        self.close()
        self._spec = spec
        if spec["env"] == "frozen_lake":
            self._lake(spec)
        elif spec["env"] == "taxi":
            self._env = gymnasium.make("Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3").unwrapped
            self._actions, self._tell = _TAXI, self._taxi_words
            self.goal = "You drive a taxi. Pick the passenger up and drop them off where they want to go. " + _how(
                _TAXI
            )
        else:
            self._env = gymnasium.make("Blackjack-v1").unwrapped
            self._actions, self._tell = _CARDS, _card_words
            self.goal = "You play one hand of blackjack against a dealer. " + _how(_CARDS)
        self._start, _ = self._env.reset(seed=int(spec["seed"]))
        return self._observation(self._tell(self._start))

    def content(self) -> Any:
        """What two seeds have in common where they are the same episode; None where nobody can tell."""
        if self._spec["env"] == "frozen_lake" and not self._spec["slippery"]:
            return self._rows()
        return int(self._start) if self._spec["env"] == "taxi" else None

    def step(self, action: Action) -> Step:
        if isinstance(action, ToolCall):
            return self._unmoved(answers_with_words(action))
        words = " ".join(action.casefold().split()).removeprefix("go ").removeprefix("move ")
        if words not in self._actions:
            return self._unmoved(f"'{action}' is no action here. {_how(self._actions)}")
        state, reward, ended, _, _ = self._env.step(self._actions.index(words))
        text = self._tell(state)
        if self._spec["env"] == "frozen_lake":
            won = float(reward) > 0
            text += " You have reached the goal." if won else " You have fallen into a hole." if ended else ""
            return Step(observation=self._observation(text), reward=float(won), done=bool(ended), success=won)
        if self._spec["env"] == "taxi":
            won = float(reward) > 0
            text += " The passenger has arrived." if won else " That is not allowed here." if reward < -1 else ""
            return Step(
                observation=self._observation(text), reward=self._taxi_level(won), done=bool(ended), success=won
            )
        level = (float(reward) + 1) / 2
        text += {1.0: " You win.", 0.5: " A draw.", 0.0: " You lose."}.get(level, "") if ended else ""
        level = min(1.0, level) if ended else 0.0
        return Step(observation=self._observation(text), reward=level, done=bool(ended), success=ended and level == 1.0)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _unmoved(self, text: str) -> Step:
        level = self._taxi_level(False) if self._spec["env"] == "taxi" else 0.0
        return Step(observation=self._observation(text), reward=level, done=False, success=False)

    def _observation(self, text: str) -> Observation:
        return Observation(text=text, actions=tuple(sorted(self._actions)))

    def _lake(self, spec: Mapping[str, Any]) -> None:
        lakes = import_module("gymnasium.envs.toy_text.frozen_lake")
        rows = lakes.generate_random_map(size=int(spec["size"]), p=float(spec["frozen"]), seed=int(spec["seed"]))
        self._env = lakes.FrozenLakeEnv(desc=rows, is_slippery=bool(spec["slippery"]))
        self._actions, self._tell = _LAKE, self._lake_words
        size = int(spec["size"])
        self.goal = (
            f"You stand on a frozen lake of {size} rows and {size} columns and want to get from row 1, column 1 to "
            f"row {size}, column {size}. Some fields are holes. {_how(_LAKE)}"
        )
        if spec["show_map"]:
            self.goal += "\n\nThe map (S start, F frozen, H hole, G goal):\n" + "\n".join(rows)

    def _rows(self) -> list[str]:
        return [b"".join(row).decode("ascii") for row in self._env.desc]

    def _lake_words(self, state: Any) -> str:
        row, column = divmod(int(state), int(self._spec["size"]))
        return f"You are at row {row + 1}, column {column + 1}."

    def _taxi_words(self, state: Any) -> str:
        row, column, passenger, target = (int(part) for part in self._env.decode(int(state)))
        riding = passenger == len(_STANDS)
        spots = [tuple(int(part) for part in spot) for spot in self._env.locs]
        who = "in the taxi" if riding else f"at {_STANDS[passenger]}, row {spots[passenger][0] + 1}, "
        who += "" if riding else f"column {spots[passenger][1] + 1}"
        where = f"{_STANDS[target]}, row {spots[target][0] + 1}, column {spots[target][1] + 1}"
        return f"The taxi is at row {row + 1}, column {column + 1}. The passenger is {who} and wants to go to {where}."

    def _taxi_level(self, won: bool) -> float:
        riding = list(self._env.decode(int(self._env.s)))[2] == len(_STANDS)
        return 1.0 if won else 0.5 * riding


def _card_words(state: Any) -> str:
    total, dealer, ace = (int(part) for part in state)
    return f"You hold {total}{' with a usable ace' if ace else ''}; the dealer shows {dealer}."


def _how(actions: tuple[str, ...]) -> str:
    return f"Answer with one action a turn: {', '.join(actions)}."
