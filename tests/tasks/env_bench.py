"""Worlds that the tests of environments run over, and a policy that acts by chance."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng
from twoclock.tasks.env_gymnasium import GymnasiumWorld
from twoclock.tasks.env_maze import MazeWorld
from twoclock.tasks.env_python import PythonWorld
from twoclock.tasks.env_textworld_express import TextWorldExpressWorld
from twoclock.tasks.env_trl import TrlWorld
from twoclock.tasks.environments import World
from twoclock.types import Conditioning


class Guess:
    """Guess a hidden number."""

    def reset(self, number: int, **row: Any) -> str:
        self._number, self.left, self.done, self.reward = number, 4, False, 0.0
        return "I think of a number from 1 to 9."

    def guess(self, number: int) -> str:
        """Say a number."""
        self.left -= 1
        self.reward = 1.0 if number == self._number else 0.0
        self.done = self.left == 0 or self.reward == 1.0
        return "right" if self.reward else "higher" if number < self._number else "lower"

    async def hint(self) -> str:
        """Whether it is even."""
        return "even" if self._number % 2 == 0 else "odd"

    def get_reward(self) -> float:
        return self.reward


def counter_reset(spec: Mapping[str, Any]) -> tuple[int, str, list[str]]:
    return 0, f"Count to {spec['goal']}.", ["one", "two"]


def counter_step(state: int, action: Any) -> tuple[int, Any, float, bool, bool]:
    by = {"one": 1, "two": 2}.get(action, 0)
    return state + by, (f"You are at {state + by}.", ["one", "two"]), min(1.0, (state + by) / 9), state + by >= 7, False


def counter() -> PythonWorld:
    specs = [{"goal": n} for n in range(12)]
    return PythonWorld("counter", counter_reset, counter_step, specs=specs, goal="Count.")


def guess() -> TrlWorld:
    return TrlWorld(Guess, [{"prompt": "Play.", "number": n} for n in range(1, 10)])


HAS_GYMNASIUM = importlib.util.find_spec("gymnasium") is not None
HAS_TWX = importlib.util.find_spec("textworld_express") is not None and shutil.which("java") is not None

MAKERS: dict[str, Callable[[], World]] = {
    "maze": MazeWorld,
    "maze-small": lambda: MazeWorld({"rooms": 4, "doors": 0}),
    "python": counter,
    "trl": guess,
}
if HAS_GYMNASIUM:
    MAKERS |= {
        "lake": lambda: GymnasiumWorld({"env": "frozen_lake", "size": 5}),
        "slippery": lambda: GymnasiumWorld({"env": "frozen_lake", "slippery": True, "show_map": True}),
        "taxi": lambda: GymnasiumWorld({"env": "taxi"}),
        "blackjack": lambda: GymnasiumWorld({"env": "blackjack"}),
    }
if HAS_TWX:
    MAKERS |= {
        "coin": lambda: TextWorldExpressWorld({"game": "coin", "params": {"numLocations": 5}}),
        "cooking": lambda: TextWorldExpressWorld({"game": "cookingworld"}),
        "simon": lambda: TextWorldExpressWorld({"game": "simonsays"}),
    }


def listed(prompt: str) -> list[str]:
    """The actions that a prompt lists."""
    lines = [line for line in prompt.split("\n") if line.startswith("You can: ")]
    return lines[-1].removeprefix("You can: ").split(", ") if lines else []


def chance_policy(extra: Sequence[str] = ()) -> ScriptedPolicy:
    """Acts by chance: what is listed, or ``extra``."""

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        return child_rng("chance", seed).choice([*listed(prompt), *extra])

    return ScriptedPolicy(script, name="chance", context_tokens=1 << 20)


NONSENSE = ("", "fly to the moon", '{"tool": "guess", "arguments": {"number": 5}}', '{"tool": "no", "arguments": {}}')
