"""TextWorldExpress: eight fast text games with train, dev and test folds, played in one Java process.

Source: Jansen and Cote, *TextWorldExpress* (arXiv:2208.01174); the package ``textworld-express`` brings the games and
needs Java 8 or newer. One JVM serves every live game of this process and ends with it. A score below 0 counts as 0.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from twoclock.errors import ConfigError, MissingExtraError, unknown_name
from twoclock.seeding import child_rng
from twoclock.tasks.environments import (
    Action,
    Environment,
    EnvironmentFaultError,
    Observation,
    Step,
    ToolCall,
    answers_with_words,
    environment_item,
)
from twoclock.tasks.text import clip
from twoclock.types import Item, SplitName

__all__ = ["GAMES", "TextWorldExpressWorld", "check_textworld_express"]

GAMES = ("cookingworld", "twc", "coin", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder")

FOLDS: Mapping[SplitName, str] = {"train": "train", "trial": "dev", "heldout": "test"}
"""The package's fold of each split: 1,000 seeds each, with other words in each fold."""

_KEYS = ("game", "params")
_LOOKS = ("look around", "inventory")
SEARCHED = 60
"""States that are searched for the shortest solution."""
_JAVA_OPTIONS = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx1g"]


def check_textworld_express(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with this world's ``config``; empty when nothing is. The game itself checks its parameters."""
    problems = [unknown_name("key in config", str(key), _KEYS) for key in config if key not in _KEYS]
    game = config.get("game")
    if game is None:
        problems.append(f"config.game is missing; it is one of: {', '.join(GAMES)}")
    elif game not in GAMES:
        problems.append(unknown_name("game", str(game), GAMES))
    params = config.get("params", {})
    if not isinstance(params, Mapping):
        problems.append(f"config.params must be a table such as {{ numLocations = 11 }}; got {params!r}")
    else:
        problems += [
            f"config.params.{key} must be a whole number or true or false; got {value!r}"
            for key, value in params.items()
            if not isinstance(value, bool | int)
        ]
    return problems


class _Jvm:
    """The Java process of this Python process. Begun on first use, and again where it has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gateway: Any = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def interface(self) -> Any:
        """A new game interface. Raises MissingExtraError where the package or Java is missing."""
        with self._lock:
            alive = self._process is not None and self._process.poll() is None and self._owner == os.getpid()
            if not alive:
                self._start()
            return self._gateway.jvm.textworldexpress.runtime.PythonInterface()

    def let_go(self, thing: Any) -> None:
        """Free an object of the JVM; one of a JVM that has died is gone already."""
        with self._lock, contextlib.suppress(Exception):
            self._gateway.detach(thing)

    def listed(self, things: Any) -> list[Any]:
        """A Java list as a Python one."""
        copied = list(things)
        self.let_go(things)
        return copied

    def _start(self) -> None:
        try:
            py4j = import_module("py4j.java_gateway")
            games = import_module("textworld_express.constants")
        except ImportError as error:
            raise MissingExtraError.of("textworld-express", "games", "the world 'textworld_express'") from error
        if shutil.which("java") is None:
            raise MissingExtraError(
                "the world 'textworld_express' needs Java 8 or newer and there is no 'java' on the PATH; type: "
                "apt-get install default-jre-headless (or: conda install openjdk)"
            )
        logging.getLogger("py4j").addHandler(logging.NullHandler())  # what fails is raised; it need not be printed too
        self._clear_up()
        port, process = py4j.launch_gateway(
            classpath=games.JAR_PATH, die_on_exit=True, cwd=games.BASEPATH, javaopts=_JAVA_OPTIONS, return_proc=True
        )
        # Without py4j's own memory management: its finalizers call Java wherever Python collects garbage, also when the
        # process is dead. What is no longer needed is let go of by hand instead.
        parameters = py4j.GatewayParameters(auto_field=True, port=port, enable_memory_management=False)
        self._gateway = py4j.JavaGateway(gateway_parameters=parameters, java_process=process)
        self._process, self._owner = process, os.getpid()

    def _clear_up(self) -> None:
        """Let go of a process that has died; one that belongs to a parent is left alone."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        with contextlib.suppress(Exception):
            self._gateway.close()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


_JVM = _Jvm()


class TextWorldExpressWorld:
    """One game. ``config`` has ``game`` and ``params``, the game's own (``coin`` has ``numLocations``,
    ``numDistractorItems``, ``includeDoors``, ``limitInventorySize``)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        problems = check_textworld_express(config)
        if problems:
            raise ConfigError(problems)
        self._game = str(config["game"])
        params = config.get("params", {})
        self._params = ",".join(f"{key}={int(params[key])}" for key in sorted(params))
        self._drawer: _Game | None = None
        self._seeds: dict[tuple[str, int], list[int]] = {}
        self._gold: dict[str, tuple[str, ...]] = {}
        self.name = f"textworld_express:{self._game}"

    @property
    def description(self) -> str:
        return f"The text game '{self._game}' of TextWorldExpress, played by actions such as 'look around'."

    def draw(self, split: SplitName, index: int, seed: int) -> Item | None:
        """The fold's seeds in a seeded order."""
        fold = FOLDS[split]
        order = self._seeds.get((fold, seed))
        if order is None:
            order = self._own().seeds(fold)
            child_rng("textworld-express", seed, self._game, fold).shuffle(order)
            self._seeds[fold, seed] = order
        return self.item(fold, order[index]) if index < len(order) else None

    def item(self, fold: str, seed: int) -> Item:
        """The item that is this seed of this fold."""
        spec = {"game": self._game, "params": self._params, "fold": fold, "seed": seed}
        game = self._own()
        opening = game.begin(spec).text
        how = "Answer with one action a turn, in the words of the game."
        return environment_item("textworld_express", spec, f"{game.goal} {how}\n\n{opening}")

    def make(self) -> Environment:
        return _Game()

    def gold(self, item: Item) -> tuple[Action, ...] | None:
        """The shortest solution where a search over states (what is seen, what is held) finds one soon; elsewhere the
        game's own path, which wanders, without its detours."""
        spec = item.metadata["spec"]
        if item.id not in self._gold:
            game = self._own()
            self._gold[item.id] = tuple(game.shortest(spec) or game.straightened(spec))
        return self._gold[item.id]

    def _own(self) -> _Game:
        self._drawer = self._drawer or _Game()
        return self._drawer

    def close(self) -> None:
        drawer, self._drawer = self._drawer, None
        if drawer is not None:
            drawer.close()


class _Game:
    """One live game in the JVM."""

    def __init__(self) -> None:
        self._interface = _JVM.interface()
        self._loaded: tuple[str, str] | None = None

    def reset(self, item: Item) -> Observation:
        return self.begin(item.metadata["spec"])

    def begin(self, spec: Mapping[str, Any], gold: bool = False) -> Observation:
        """Raises ConfigError for parameters that the game refuses."""
        wanted = (str(spec["game"]), str(spec["params"]))
        if wanted != self._loaded:
            message = self._interface.load(*wanted)
            if message:
                raise ConfigError(f"the game '{wanted[0]}' refuses params '{wanted[1]}': {clip(str(message), 300)}")
            self._loaded = wanted
        state = self._read(self._interface.generateNewGameJSON(int(spec["seed"]), str(spec["fold"]), gold))
        return _observation(state)

    @property
    def goal(self) -> str:
        return " ".join(str(self._interface.getTaskDescription()).split())

    def step(self, action: Action) -> Step:
        if isinstance(action, ToolCall):
            action = f"use {answers_with_words(action)}"  # the game answers that it does not know this
        state = self._act(action)
        score = min(1.0, max(0.0, float(state["score"])))
        success = bool(state["tasksuccess"])
        done = success or bool(state["taskfailure"])
        return Step(observation=_observation(state), reward=1.0 if success else score, done=done, success=success)

    def close(self) -> None:
        interface, self._interface = self._interface, None
        if interface is not None:
            _JVM.let_go(interface)

    def seeds(self, fold: str) -> list[int]:
        if self._loaded is None:  # the JVM knows its folds only with a game
            self._interface.load("coin", "")
        found = getattr(self._interface, f"getSeeds{fold.capitalize()}")()
        return [int(seed) for seed in _JVM.listed(found)]

    def shortest(self, spec: Mapping[str, Any]) -> list[str] | None:
        """Breadth-first search by playing; None after ``SEARCHED`` states. A state is told apart by what can be seen
        from it, so that a path is tried once more before it is believed."""
        seen: set[tuple[str, str]] = set()
        queue: deque[list[str]] = deque([[]])
        while queue and len(seen) <= SEARCHED:
            path = queue.popleft()
            opening = self.begin(spec)
            state: Mapping[str, Any] = {"look": opening.text, "inventory": "", "validActions": opening.actions}
            for action in path:
                state = self._act(action)
            if state.get("tasksuccess"):
                return path if self.solves(spec, path) else None
            if (place := self._place(state)) in seen or state.get("taskfailure"):
                continue
            seen.add(place)
            queue.extend([*path, action] for action in sorted(map(str, state["validActions"])) if action not in _LOOKS)
        return None

    def straightened(self, spec: Mapping[str, Any]) -> list[str]:
        """The game's own path; where the state was the same before, what lies between is left out, if the rest still
        leads to the goal."""
        self.begin(spec, gold=True)
        path = [str(action) for action in _JVM.listed(self._interface.getGoldActionSequence())]
        self.begin(spec)
        states = [self._place(self._act("look around"))]
        self.begin(spec)
        kept: list[str] = []
        for action in path:
            place = self._place(self._act(action))
            if place in states:
                at = states.index(place)
                del states[at + 1 :], kept[at:]
            else:
                states.append(place)
                kept.append(action)
        return kept if self.solves(spec, kept) else path

    def solves(self, spec: Mapping[str, Any], path: list[str]) -> bool:
        self.begin(spec)
        return any(self._act(action)["tasksuccess"] for action in path)

    def _act(self, action: str) -> dict[str, Any]:
        return self._read(self._interface.stepJSON(action))

    @staticmethod
    def _place(state: Mapping[str, Any]) -> tuple[str, str]:
        return str(state["look"]), str(state["inventory"])

    @staticmethod
    def _read(text: Any) -> dict[str, Any]:
        state = json.loads(str(text))
        if not isinstance(state, dict) or "observation" not in state:
            raise EnvironmentFaultError(f"the game answered {clip(str(text), 200)}")
        return state


def _observation(state: Mapping[str, Any]) -> Observation:
    lines = [line.rstrip() for line in str(state["observation"]).strip().split("\n")]
    return Observation(text="\n".join(lines), actions=tuple(sorted(map(str, state["validActions"]))))
