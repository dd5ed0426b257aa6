"""A small text game with hidden structure, written here so that tests and examples need nothing installed: a house of
rooms, doors that are locked, keys that lie about, and a coin to take. What a house is like follows from its seed.

What one attempt finds out (where the coin and the keys are) holds for the next attempt at the same item, and tells
nothing about another: the setting that memory within an item is for.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from twoclock.errors import unknown_name
from twoclock.seeding import child_rng, child_seed
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

__all__ = ["MAZE_DEFAULTS", "House", "MazeWorld", "check_maze"]

MAZE_DEFAULTS: Mapping[str, int] = {"rooms": 9, "doors": 1}

_ROOMS = (
    "hall", "kitchen", "pantry", "study", "attic", "cellar", "garden", "library", "workshop", "bedroom", "bathroom",
    "gallery", "garage", "laundry", "nursery", "balcony", "chapel", "parlour", "stable", "tower", "vault", "wardrobe",
    "greenhouse", "boathouse", "observatory",
)  # fmt: skip
_COLOURS = ("red", "blue", "green", "yellow", "black", "white")
_WAYS: Mapping[str, tuple[int, int]] = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}

GOAL = (
    "You are in a house of {rooms} rooms. Somewhere in it lies a coin: find it and take it. {doors}You can go north, "
    "east, south and west where there is a way, take what you see, and look. Answer with one action a turn, such as "
    "'go north' or 'take coin'."
)


def check_maze(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with a maze's ``config``; empty when nothing is."""
    problems = [unknown_name("key in config", str(key), MAZE_DEFAULTS) for key in config if key not in MAZE_DEFAULTS]
    most = {"rooms": (2, len(_ROOMS)), "doors": (0, len(_COLOURS))}
    for key, (low, high) in most.items():
        value = config.get(key, MAZE_DEFAULTS[key])
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            problems.append(f"config.{key} must be a whole number from {low} to {high}; got {value!r}")
    if not problems and config.get("doors", MAZE_DEFAULTS["doors"]) >= config.get("rooms", MAZE_DEFAULTS["rooms"]):
        problems.append(f"config.doors must be fewer than the rooms; got {dict(MAZE_DEFAULTS) | dict(config)}")
    return problems


@dataclass(frozen=True)
class House:
    """One house. Rooms are numbered in the order they were built; the start is room 0."""

    names: tuple[str, ...]
    ways: tuple[Mapping[str, int], ...]
    """For each room, where each way leads."""
    locks: Mapping[frozenset[int], str]
    """The colour of the door between two rooms, where there is one."""
    things: tuple[tuple[str, ...], ...]
    """What lies in each room."""


@lru_cache(maxsize=256)
def build_house(seed: int, rooms: int, doors: int) -> House:
    """The house of a seed: a random tree of rooms on a grid, in which every key can be reached before its door."""
    rng = child_rng("key-maze", seed, rooms, doors)
    names = (_ROOMS[0], *rng.sample(_ROOMS[1:], rooms - 1))
    ways: list[dict[str, int]] = [{} for _ in range(rooms)]
    places = {(0, 0): 0}
    for room in range(1, rooms):
        free = [
            (spot, way, (spot[0] + dx, spot[1] + dy))
            for spot in places
            for way, (dx, dy) in _WAYS.items()
            if (spot[0] + dx, spot[1] + dy) not in places
        ]
        origin, way, target = rng.choice(free)
        places[target] = room
        ways[places[origin]][way] = room
        ways[room][_back(way)] = places[origin]
    locks, things = _lock(rng, ways, rooms, doors)
    coin = rng.randrange(1, rooms)
    things[coin].append("coin")
    return House(names, tuple(ways), locks, tuple(tuple(sorted(lying)) for lying in things))


def _back(way: str) -> str:
    return {"north": "south", "south": "north", "east": "west", "west": "east"}[way]


def _lock(
    rng: random.Random, ways: list[dict[str, int]], rooms: int, doors: int
) -> tuple[dict[frozenset[int], str], list[list[str]]]:
    """Doors and keys: each door borders on what can be reached by then, and its key lies there."""
    edges = [frozenset((a, b)) for a in range(rooms) for b in ways[a].values() if a < b]
    shut = set(rng.sample(edges, min(doors, len(edges))))
    locks: dict[frozenset[int], str] = {}
    things: list[list[str]] = [[] for _ in range(rooms)]
    for colour in rng.sample(_COLOURS, len(shut)):
        reached = _reach(ways, shut)
        door = rng.choice(sorted((edge for edge in shut if len(edge & reached) == 1), key=sorted))
        things[rng.choice(sorted(reached))].append(f"{colour} key")
        locks[door] = colour
        shut.remove(door)
    return locks, things


def _reach(ways: list[dict[str, int]], shut: set[frozenset[int]]) -> set[int]:
    seen, queue = {0}, [0]
    while queue:
        room = queue.pop()
        for other in ways[room].values():
            if other not in seen and frozenset((room, other)) not in shut:
                seen.add(other)
                queue.append(other)
    return seen


class MazeWorld:
    """Houses by seed. ``config`` has ``rooms`` (2 to 25) and ``doors`` that are locked (0 to 6)."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self._config = dict(MAZE_DEFAULTS) | dict(config or {})
        self.name = "maze"

    @property
    def description(self) -> str:
        return "A text game: find the coin in a house whose rooms, doors and keys are unknown, and take it."

    def draw(self, split: SplitName, index: int, seed: int) -> Item | None:
        house_seed = child_seed("maze-item", seed, split, index)
        return self.item(house_seed)

    def item(self, house_seed: int) -> Item:
        """The item that is the house of this seed."""
        spec = {"seed": house_seed, **self._config}
        doors = self._config["doors"]
        said = "Some doors are locked: each opens to whoever holds the key of its colour. " if doors else ""
        goal = GOAL.format(rooms=self._config["rooms"], doors=said)
        opening = _Maze().begin(spec).text
        house = build_house(**spec)
        content = [house.names, house.ways, sorted([*sorted(d), c] for d, c in house.locks.items()), house.things]
        return environment_item(self.name, spec, f"{goal}\n\n{opening}", content)

    def make(self) -> Environment:
        return _Maze()

    def gold(self, item: Item) -> tuple[Action, ...] | None:
        """The shortest solution, by breadth-first search over (room, keys)."""
        house = build_house(**item.metadata["spec"])
        first: tuple[int, frozenset[str]] = (0, frozenset())
        came: dict[tuple[int, frozenset[str]], tuple[tuple[int, frozenset[str]], str]] = {}
        queue = deque([first])
        seen = {first}
        while queue:
            state = queue.popleft()
            room, held = state
            if "coin" in house.things[room]:
                path = ["take coin"]
                while state != first:
                    state, action = came[state]
                    path.append(action)
                return tuple(reversed(path))
            for action, follower in _moves(house, room, held):
                if follower not in seen:
                    seen.add(follower)
                    came[follower] = (state, action)
                    queue.append(follower)
        return None

    def close(self) -> None:
        pass


def _moves(house: House, room: int, held: frozenset[str]) -> list[tuple[str, tuple[int, frozenset[str]]]]:
    moves = [(f"take {thing}", (room, held | {thing})) for thing in house.things[room] if thing not in held]
    for way, other in house.ways[room].items():
        colour = house.locks.get(frozenset((room, other)))
        if colour is None or f"{colour} key" in held:
            moves.append((f"go {way}", (other, held)))
    return moves


class _Maze:
    """One live game."""

    def __init__(self) -> None:
        self._house = build_house(0, 2, 0)
        self._room = 0
        self._held: set[str] = set()

    def reset(self, item: Item) -> Observation:
        return self.begin(item.metadata["spec"])

    def begin(self, spec: Mapping[str, Any]) -> Observation:
        self._house = build_house(**spec)
        self._room, self._held = 0, set()
        return self._observation(self._look())

    def step(self, action: Action) -> Step:
        if isinstance(action, ToolCall):
            return self._step(answers_with_words(action))
        words = action.casefold().split()
        match words:
            case ["look", *_]:
                return self._step(self._look())
            case ["go", way] if way in _WAYS:
                return self._step(self._go(way))
            case ["take", *rest] if rest:
                return self._step(self._take(" ".join(word for word in rest if word != "the")))
        return self._step(f"'{action}' is nothing you can do here.")

    def close(self) -> None:
        pass

    def _go(self, way: str) -> str:
        other = self._house.ways[self._room].get(way)
        if other is None:
            return f"There is no way {way}."
        colour = self._house.locks.get(frozenset((self._room, other)))
        if colour is not None and f"{colour} key" not in self._held:
            return f"The {colour} door is locked."
        self._room = other
        return self._look()

    def _take(self, thing: str) -> str:
        if thing not in self._lying():
            return f"There is no {thing} here."
        self._held.add(thing)
        return f"You take the {thing}."

    def _lying(self) -> list[str]:
        return [thing for thing in self._house.things[self._room] if thing not in self._held]

    def _look(self) -> str:
        exits = []
        for way in _WAYS:
            if way in self._house.ways[self._room]:
                colour = self._house.locks.get(frozenset((self._room, self._house.ways[self._room][way])))
                exits.append(f"{way} ({colour} door)" if colour else way)
        lying = self._lying()
        seen = f" You see: {', '.join(lying)}." if lying else ""
        return f"You are in the {self._house.names[self._room]}.{seen} Ways out: {', '.join(exits)}."

    def _observation(self, text: str) -> Observation:
        ways = [f"go {way}" for way in self._house.ways[self._room]]
        return Observation(text=text, actions=tuple(sorted([*ways, *(f"take {t}" for t in self._lying()), "look"])))

    def _step(self, text: str) -> Step:
        found = "coin" in self._held
        keys = len(self._house.locks)
        return Step(
            observation=self._observation(text),
            reward=1.0 if found else len(self._held) / (keys + 1),
            done=found,
            success=found,
        )
