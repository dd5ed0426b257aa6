"""The table of worlds: from the name and the options that a config gives to a world, and to a task of its episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError, unknown_name
from twoclock.tasks.env_gymnasium import GymnasiumWorld, check_gymnasium
from twoclock.tasks.env_maze import MazeWorld, check_maze
from twoclock.tasks.env_play import EpisodeRules
from twoclock.tasks.env_stuck import StuckRule
from twoclock.tasks.env_textworld_express import TextWorldExpressWorld, check_textworld_express
from twoclock.tasks.env_trl import TrlWorld
from twoclock.tasks.environments import World
from twoclock.tasks.jsonl import read_rows
from twoclock.tasks.loading import load_function
from twoclock.tasks.text import clip

__all__ = ["WORLDS", "WorldSource", "check_episode", "check_world", "episode_rules", "make_world"]

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class WorldSource:
    """What is wrong with a world's ``config``, and how it is made."""

    check: Callable[[Config], list[str]]
    make: Callable[[Config, Path], World]


def _check_python(config: Config) -> list[str]:
    problems = [unknown_name("key in config", str(key), ("function",)) for key in config if key != "function"]
    if not isinstance(config.get("function"), str):
        problems.append(
            "config.function must name what makes a world, such as 'path/to/file.py:make_world'; got "
            f"{config.get('function')!r}"
        )
    return problems


def _make_python(config: Config, base_dir: Path) -> World:
    name = str(config["function"])
    made = load_function(name, base_dir)()
    missing = [part for part in ("name", "description", "draw", "make", "close") if not hasattr(made, part)]
    if missing:
        raise ConfigError(
            f"'{name}' must return a world, such as a PythonWorld; what it returned has no {', '.join(missing)}: "
            f"{clip(repr(made))}"
        )
    world: World = made
    return world


_TRL_KEYS = ("factory", "rows", "reward_range", "success_at")


def _check_trl(config: Config) -> list[str]:
    problems = [unknown_name("key in config", str(key), _TRL_KEYS) for key in config if key not in _TRL_KEYS]
    for key, example in (("factory", "package.module:Environment"), ("rows", "rows.jsonl")):
        if not isinstance(config.get(key), str):
            problems.append(f"config.{key} must be a text such as '{example}'; got {config.get(key)!r}")
    bounds = config.get("reward_range", [0.0, 1.0])
    if not isinstance(bounds, list | tuple) or len(bounds) != 2 or not all(isinstance(b, int | float) for b in bounds):
        problems.append(f"config.reward_range must be two numbers such as [0, 1]; got {bounds!r}")
    if not isinstance(config.get("success_at", 1.0), int | float):
        problems.append(f"config.success_at must be a number; got {config['success_at']!r}")
    return problems


def _make_trl(config: Config, base_dir: Path) -> World:
    rows = read_rows(base_dir / Path(str(config["rows"])).expanduser(), needs_answer=False)
    plain = [
        {"prompt": row.prompt, **row.columns}
        | ({} if row.answer is None else {"answer": row.answer})
        | ({} if row.split is None else {"split": row.split})
        for row in rows
    ]
    low, high = config.get("reward_range", [0.0, 1.0])
    return TrlWorld(
        load_function(str(config["factory"]), base_dir),
        plain,
        reward_range=(float(low), float(high)),
        success_at=float(config.get("success_at", 1.0)),
    )


WORLDS: Mapping[str, WorldSource] = {
    "maze": WorldSource(check=check_maze, make=lambda config, base_dir: MazeWorld(config)),
    "textworld_express": WorldSource(
        check=check_textworld_express, make=lambda config, base_dir: TextWorldExpressWorld(config)
    ),
    "gymnasium": WorldSource(check=check_gymnasium, make=lambda config, base_dir: GymnasiumWorld(config)),
    "trl": WorldSource(check=_check_trl, make=_make_trl),
    "python": WorldSource(check=_check_python, make=_make_python),
}
"""By the name that ``family`` gives under ``source = "environment"``; a new world is a row here."""


def check_world(family: str, config: Config) -> list[str]:
    """What is wrong with a world's name and config; empty when nothing is."""
    if family not in WORLDS:
        return [unknown_name("family", family, WORLDS)]
    return WORLDS[family].check(config)


def make_world(family: str, config: Config, base_dir: Path = Path()) -> World:
    """The world that a config names. Raises ConfigError with every mistake."""
    problems = check_world(family, config)
    if problems:
        raise ConfigError(problems)
    return WORLDS[family].make(config, base_dir)


_STUCK_KEYS = tuple(f.name for f in fields(StuckRule))
_RULE_KEYS = tuple(f.name for f in fields(EpisodeRules) if f.name != "stuck")


def check_episode(table: Config) -> list[str]:
    """What is wrong with an ``episode`` table; empty when nothing is."""
    known = (*_STUCK_KEYS, *_RULE_KEYS)
    problems = [unknown_name("key in episode", str(key), known) for key in table if key not in known]
    if not problems:
        try:
            episode_rules(table)
        except ConfigError as error:
            problems += [f"episode.{text}" for text in error.problems]
    return problems


def episode_rules(table: Config) -> EpisodeRules:
    """The rules of an ``episode`` table: ``max_steps``, ``repeats`` (0 is never), ``same_response``, ``period``,
    ``reward``, ``list_actions``, ``answers``, ``history_chars``, ``max_live``. Raises ConfigError."""
    stuck: dict[str, Any] = {key: table[key] for key in _STUCK_KEYS if key in table}
    for key in ("repeats", "max_steps"):
        if stuck.get(key) == 0 and not isinstance(stuck[key], bool):
            stuck[key] = None  # a TOML table has no null
    return EpisodeRules(stuck=StuckRule(**stuck), **{key: table[key] for key in _RULE_KEYS if key in table})
