"""The worlds themselves: houses, lakes, TRL classes, the Java games; and configs that name them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from env_bench import HAS_GYMNASIUM, HAS_TWX, Guess, guess

from twoclock.errors import ConfigError, MissingExtraError
from twoclock.tasks import build_task
from twoclock.tasks.env_gymnasium import GymnasiumWorld
from twoclock.tasks.env_maze import MazeWorld, build_house
from twoclock.tasks.env_task import EpisodeTask
from twoclock.tasks.env_textworld_express import TextWorldExpressWorld
from twoclock.tasks.env_trl import TrlWorld, tool_lines, tool_methods
from twoclock.tasks.env_worlds import check_episode, check_world, episode_rules
from twoclock.tasks.splits import SplitSizes

SIZE = {"train": 3, "trial": 1, "heldout": 1}
needs_games = pytest.mark.skipif(not HAS_TWX, reason="needs textworld-express and Java")
needs_gymnasium = pytest.mark.skipif(not HAS_GYMNASIUM, reason="needs gymnasium")


# --------------------------------------------------------------------------------------------------------------- maze


def test_every_house_can_be_solved() -> None:
    world = MazeWorld({"rooms": 12, "doors": 4})
    task = EpisodeTask(world, sizes=SplitSizes(train=40, trial=5, heldout=5))
    lengths = {len(task.gold(item) or ()) for item in task.split("train")}
    assert len(lengths) > 5


def test_a_door_is_shut_without_its_key() -> None:
    world = MazeWorld({"rooms": 6, "doors": 1})
    for index in range(50):
        item = world.draw("train", index, 0)
        assert item is not None
        gold = [str(action) for action in world.gold(item) or ()]
        key = next((i for i, action in enumerate(gold) if action.endswith("key")), None)
        if key is None:
            continue  # the coin is on this side of the door
        environment = world.make()
        environment.reset(item)
        said = [environment.step(action) for action in gold[:key] + gold[key + 1 :]]
        assert any("door is locked" in step.observation.text for step in said)
        assert not said[-1].success
        return
    pytest.fail("no house of 50 has its coin behind the door")


def test_keys_and_coin_are_the_score() -> None:
    world = MazeWorld({"rooms": 6, "doors": 1})
    task = EpisodeTask(world, rules=episode_rules({"reward": "score"}), sizes=SplitSizes(train=20, trial=1, heldout=1))
    scores = set()
    for item in task.split("train"):
        gold = [str(action) for action in world.gold(item) or ()]
        until_key = [i for i, action in enumerate(gold) if action.endswith("key")]
        if until_key:
            scores.add(task.grade([item], ["\n".join(f"> {a}" for a in gold[: until_key[0] + 1])])[0].reward)
    assert scores == {0.5}


def test_a_house_is_a_tree_with_ways_back() -> None:
    back = {"north": "south", "south": "north", "east": "west", "west": "east"}
    house = build_house(7, 20, 6)
    assert sum(len(ways) for ways in house.ways) == 2 * 19
    assert len(house.locks) == 6
    for room, ways in enumerate(house.ways):
        for way, other in ways.items():
            assert house.ways[other][back[way]] == room
    assert sorted(thing for lying in house.things for thing in lying if thing == "coin") == ["coin"]


# ----------------------------------------------------------------------------------------------------------- gymnasium


@needs_gymnasium
def test_a_lake_hides_its_map() -> None:
    hidden = GymnasiumWorld({"env": "frozen_lake", "size": 4}).item(5)
    open_ = GymnasiumWorld({"env": "frozen_lake", "size": 4, "show_map": True}).item(5)
    assert "S start" not in hidden.prompt
    assert "\nS" in open_.prompt
    assert hidden.prompt.endswith("You are at row 1, column 1.")


@needs_gymnasium
def test_walking_by_the_map() -> None:
    world = GymnasiumWorld({"env": "frozen_lake", "size": 2, "frozen": 1.0})
    task = EpisodeTask(world)
    assert task.grade([world.item(1)], ["> right\n> down"])[0].reward == 1.0
    assert task.grade([world.item(1)], ["> Go Right\n> move down"])[0].reward == 1.0
    assert task.grade([world.item(1)], ["> right\n> swim"])[0].feedback.endswith(
        "'swim' is no action here. Answer with one action a turn: left, down, right, up.\""
    )


@needs_gymnasium
def test_equal_maps_stand_in_one_split() -> None:
    task = EpisodeTask(GymnasiumWorld({"env": "frozen_lake", "size": 2}), sizes=SplitSizes(train=9, trial=9, heldout=9))
    with pytest.raises(ConfigError, match="distinct items"):
        task.split("train")


# ----------------------------------------------------------------------------------------------------------------- TRL


def test_tools_are_the_public_methods() -> None:
    methods = tool_methods(Guess())
    assert sorted(methods) == ["guess", "hint"]
    assert "- guess(number: 'int'): Say a number." in tool_lines(methods)


def test_a_trl_episode_is_played_by_tool_calls() -> None:
    world = guess()
    task = EpisodeTask(world, sizes=SplitSizes(train=4, trial=2, heldout=2))
    item = task.split("train")[0]
    number = item.metadata["spec"]["number"]
    assert item.prompt.startswith("Play.\n\nI think of a number from 1 to 9.\n\nTools:\n- guess(")

    def call(n: object) -> str:
        return f'> {{"tool": "guess", "arguments": {{"number": {n}}}}}'

    assert task.grade([item], [call(number)])[0].reward == 1.0
    other = 1 if number != 1 else 2
    assert task.grade([item], [f'{call(other)}\n> {{"tool": "hint"}}\n{call(number)}'])[0].reward == 1.0
    wrong = task.grade([item], ["> I give up"])[0]
    assert wrong.reward == 0.0
    assert "you answered without calling a tool" in wrong.feedback
    assert "TypeError" in task.grade([item], [call('"x"')])[0].feedback
    assert "missing a required argument: 'number'" in task.grade([item], ['> {"tool": "guess"}'])[0].feedback
    assert "there is no tool 'gues'; there are: guess, hint" in task.grade([item], ['> {"tool": "gues"}'])[0].feedback


def test_a_reward_outside_its_range_fails_the_episode() -> None:
    class Rich(Guess):
        def get_reward(self) -> float:
            return self.reward * 5

    rows = [{"prompt": "p", "number": n} for n in range(1, 9)]
    item = TrlWorld(Rich, rows, name="rich").draw("train", 0, 0)
    assert item is not None
    said = f'> {{"tool": "guess", "arguments": {{"number": {item.metadata["spec"]["number"]}}}}}'
    failed = EpisodeTask(TrlWorld(Rich, rows)).grade([item], [said])[0]
    assert failed.failure is not None
    assert "get_reward of Rich (with reward_range = (0, 1)) gave the reward 5.0" in failed.failure
    assert EpisodeTask(TrlWorld(Rich, rows, reward_range=(0, 5))).grade([item], [said])[0].reward == 1.0


def test_what_is_no_trl_environment() -> None:
    class NoReset:
        def act(self) -> str:
            return ""

    class NoTool:
        def reset(self, **row: Any) -> None:
            return None

    rows = [{"prompt": "p"}]
    for factory, said in (
        (NoReset, "NoReset has no method 'reset'"),
        (NoTool, "NoTool has no public method beside reset"),
        (lambda x: x, "must give an instance when called without arguments"),
        (3, "factory must be a class"),
    ):
        with pytest.raises(ConfigError, match=said):
            TrlWorld(factory, rows)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rows is empty"):
        TrlWorld(Guess, [])
    with pytest.raises(ConfigError, match=r"rows\[0\] is not usable"):
        TrlWorld(Guess, [{"prompt": 3}])


# ------------------------------------------------------------------------------------------------------ Java text games


@needs_games
def test_folds_are_splits() -> None:
    task = EpisodeTask(TextWorldExpressWorld({"game": "coin"}), sizes=SplitSizes(train=5, trial=2, heldout=2))
    folds = {split: {i.metadata["spec"]["fold"] for i in task.split(split)} for split in ("train", "trial", "heldout")}
    assert folds == {"train": {"train"}, "trial": {"dev"}, "heldout": {"test"}}


@needs_games
def test_detours_are_left_out_of_the_gold_path() -> None:
    world = TextWorldExpressWorld({"game": "coin", "params": {"numLocations": 11, "includeDoors": 0}})
    task = EpisodeTask(world, sizes=SplitSizes(train=20, trial=1, heldout=1))
    paths = [[str(a) for a in task.gold(item) or ()] for item in task.split("train")]
    assert all(path[-1] == "take coin" and "look around" not in path for path in paths)
    assert max(map(len, paths)) <= 11


@needs_games
def test_a_game_says_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match=r"refuses params 'rooms=3': Unrecognized property name \(rooms\)"):
        TextWorldExpressWorld({"game": "coin", "params": {"rooms": 3}}).draw("train", 0, 0)


@needs_games
def test_a_dead_java_process_costs_its_episodes_and_is_begun_again() -> None:
    import twoclock.tasks.env_textworld_express as games

    world = TextWorldExpressWorld({"game": "coin", "params": {"numLocations": 3}})
    task = EpisodeTask(world, sizes=SplitSizes(train=3, trial=1, heldout=1))
    item = task.split("train")[0]
    gold = "\n".join(f"> {action}" for action in task.gold(item) or ())
    process = games._JVM._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    failed = task.grade([item], [gold])[0]
    assert failed.failure is not None
    grades = [task.grade([item], [gold])[0] for _ in range(3)]
    assert grades[-1].reward == 1.0


@needs_games
def test_no_java_process_outlives_a_killed_parent() -> None:
    code = (
        "import time\nfrom twoclock.tasks.env_textworld_express import TextWorldExpressWorld, _JVM\n"
        "TextWorldExpressWorld({'game': 'coin'}).draw('train', 0, 0)\nprint(_JVM._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    java = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        try:
            os.kill(java, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{java}/stat").read_text(encoding="utf-8").split(") ")[1].startswith("Z"):
            return
        time.sleep(0.05)
    pytest.fail("the Java process is still there")


@pytest.mark.parametrize("missing", ["textworld_express", "gymnasium"])
def test_a_package_that_is_missing_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    import twoclock.tasks.env_textworld_express as games

    monkeypatch.setattr(games, "_JVM", games._Jvm())
    spec = {"textworld_express": {"game": "coin"}, "gymnasium": {"env": "taxi"}}[missing]
    task = build_task("g", {"source": "environment", "family": missing, "config": spec, "size": SIZE}, 0)
    with pytest.raises(MissingExtraError, match=r"pip install 'twoclock\[games\]'"):
        task.split("train")


@needs_games
def test_java_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import twoclock.tasks.env_textworld_express as games

    monkeypatch.setattr(games, "_JVM", games._Jvm())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtraError, match="needs Java 8 or newer and there is no 'java' on the PATH"):
        TextWorldExpressWorld({"game": "coin"}).draw("train", 0, 0)


# ------------------------------------------------------------------------------------------------------------- configs


def problems(spec: dict[str, Any], base_dir: Path = Path()) -> str:
    with pytest.raises(ConfigError) as caught:
        build_task("mine", {"source": "environment", **spec}, 0, base_dir)
    return "\n".join(caught.value.problems)


def test_a_task_from_a_table() -> None:
    spec = {"source": "environment", "family": "maze", "config": {"rooms": 5}, "size": SIZE}
    task: Any = build_task("house", {**spec, "episode": {"max_steps": 7, "repeats": 0, "period": 2}}, 1)
    assert task.name == "house"
    assert len(task.split("train")) == 3
    stuck = task.rules.stuck
    assert (stuck.max_steps, stuck.repeats, stuck.period) == (7, None, 2)
    told: Any = build_task("house", {**spec, "instruction": "Be quick."}, 1)
    assert told.split("train")[0].prompt == task.split("train")[0].prompt + "\nBe quick."
    assert told.split("train")[0].id == task.split("train")[0].id


def test_all_mistakes_of_a_table_at_once() -> None:
    found = problems(
        {"family": "maze", "config": {"room": 3, "doors": 99}, "episode": {"steps": 1}, "verifier": "number"}
    )
    for said in ("'room'", "config.doors must be a whole number from 0 to 6; got 99", "'steps'", "leave it out"):
        assert said in found
    assert "did you mean 'maze'" in problems({"family": "mase"})
    assert "episode.max_steps must be a whole number" in problems({"family": "maze", "episode": {"max_steps": "x"}})
    assert "fewer than the rooms" in "".join(check_world("maze", {"rooms": 2, "doors": 3}))
    assert "config.game is missing" in "".join(check_world("textworld_express", {}))
    assert "unknown game 'con'; did you mean 'coin'" in "".join(check_world("textworld_express", {"game": "con"}))
    assert "config.params.x must be" in "".join(
        check_world("textworld_express", {"game": "coin", "params": {"x": 1.5}})
    )
    assert "unknown env 'taxy'; did you mean 'taxi'" in "".join(check_world("gymnasium", {"env": "taxy"}))
    assert "config.size" in "".join(check_world("gymnasium", {"env": "frozen_lake", "size": 0}))
    assert "'size'" in "".join(check_world("gymnasium", {"env": "taxi", "size": 4}))
    assert check_episode({"max_steps": True})


def test_worlds_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from twoclock.tasks.env_python import PythonWorld\n"
        "def world():\n"
        "    step = lambda state, action: (state, 'no', 0.0, False) if action != 'go' else (state, 'yes', 1.0, True)\n"
        "    return PythonWorld('mine', lambda spec: (0, 'Go.'), step, specs=[{'n': n} for n in range(12)])\n"
        "def other():\n    return 3\n"
        "class Bell:\n"
        "    def reset(self, times, **row):\n        self.rung, self.times, self.done = 0, times, False\n"
        "    def ring(self) -> str:\n        self.rung += 1\n        return 'ding'\n"
        "    def get_reward(self) -> float:\n        return float(self.rung == self.times)\n"
    )
    task = build_task(
        "m",
        {"source": "environment", "family": "python", "config": {"function": "mine.py:world"}, "size": SIZE},
        0,
        tmp_path,
    )
    assert task.grade([task.split("train")[0]], ["> go"])[0].reward == 1.0
    assert "must return a world" in problems({"family": "python", "config": {"function": "mine.py:other"}}, tmp_path)
    assert "config.function must name" in problems({"family": "python"}, tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "Ring.", "times": {n}}}\n' for n in range(1, 9)))
    config = {"factory": "mine.py:Bell", "rows": "rows.jsonl"}
    bells = build_task("b", {"source": "environment", "family": "trl", "config": config, "size": SIZE}, 0, tmp_path)
    item = bells.split("train")[0]
    rings = "\n".join(['> {"tool": "ring"}'] * item.metadata["spec"]["times"])
    assert bells.grade([item], [f"{rings}\n> done"])[0].reward == 1.0
    assert "config.rows must be a text" in problems({"family": "trl", "config": {"factory": "mine.py:Bell"}}, tmp_path)
