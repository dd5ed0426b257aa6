"""From a name and a plain table (as a config file holds it) to a task; every mistake of a table is told at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoclock.contracts import Task
from twoclock.errors import ConfigError, unknown_name
from twoclock.tasks.code_task import CodeTask
from twoclock.tasks.env_task import EpisodeTask
from twoclock.tasks.env_worlds import check_episode, check_world, episode_rules, make_world
from twoclock.tasks.families import FamilyTask, check_family
from twoclock.tasks.grid import GridTask, check_grid
from twoclock.tasks.jsonl import JsonlTask
from twoclock.tasks.reasoning_gym import ReasoningGymTask
from twoclock.tasks.rg_source import check_source
from twoclock.tasks.splits import SplitSizes, check_sizes
from twoclock.tasks.verifiers import Verifier
from twoclock.tasks.wording import check_wording
from twoclock.types import Grade, Item, SplitName

__all__ = ["SOURCES", "TaskSource", "VerifiedTask", "build_task"]

Spec = Mapping[str, Any]


class VerifiedTask:
    """The items of one task, graded by a verifier of the user's own."""

    def __init__(self, task: Task, verifier: Verifier) -> None:
        self._task = task
        self._verifier = verifier
        self.notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self._task.name

    @property
    def description(self) -> str:
        return f"{self._task.description} Graded by '{self._verifier.name}' instead."

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self._task.split(name)

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return self._verifier.grade(items, texts)

    def close(self) -> None:
        self._verifier.close()


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Where items come from: the keys that its table may have beside the common ones, those that it must have, what is
    wrong with a well-typed table, and how it makes the task."""

    keys: tuple[str, ...]
    required: tuple[str, ...]
    check: Callable[[Spec], list[str]]
    make: Callable[[str, Spec, int, Path, Verifier | None], Task]


# Each key with its type and how a person calls that type.
_TYPES: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "source": (str, "a text"),
    "family": (str, "a text"),
    "config": (Mapping, "a table"),
    "size": (Mapping, "a table such as { train = 512, trial = 64, heldout = 128 }"),
    "shares": (Mapping, "a table such as { train = 0.8, trial = 0.1, heldout = 0.1 }"),
    "verifier": (str, "a text such as 'number' or 'path/to/file.py:function'"),
    "verifier_timeout_s": ((int, float), "a number of seconds"),
    "extract": (str, "a text"),
    "scoring": (str, "a text"),
    "instruction": (str, "a text"),
    "instruction_at": (str, "a text"),
    "path": (str, "a text"),
    "casefold": (bool, "true or false"),
    "convention": (str, "a text"),
    "templates": (list, "a list of whole numbers"),
    "episode": (Mapping, 'a table such as { max_steps = 30, repeats = 3, reward = "success" }'),
}
_COMMON = ("source", "size", "extract", "instruction", "instruction_at", "verifier", "verifier_timeout_s")


def build_task(name: str, spec: Spec, seed: int, base_dir: Path = Path()) -> Task:
    """The task that a table describes. Paths are taken from ``base_dir``.

    Raises ConfigError with every mistake of the table, each under ``tasks.NAME``, and DataError for a bad data file.
    """
    problems, clean = _well_typed(name, spec)
    source = SOURCES.get(str(clean.get("source", "")))
    verifier = None
    if source is not None:
        missing = [key for key in source.required if key not in spec]
        problems += [f"'{key}' is missing: source '{clean['source']}' needs it, {_TYPES[key][1]}" for key in missing]
        if not missing and all(key in clean for key in source.required):
            problems += source.check(clean)
    if "size" in clean:
        problems += check_sizes(clean["size"])
    problems += check_wording(
        instruction_at=clean.get("instruction_at", "end"),
        scoring=clean.get("scoring", "strict"),
        extract=clean.get("extract", "text"),
    )
    if "verifier" in clean:
        timeout_s = float(clean.get("verifier_timeout_s", 30.0))
        try:
            verifier = Verifier.load(clean["verifier"], base_dir=base_dir, timeout_s=timeout_s)
        except ConfigError as error:
            problems += error.problems
    if problems or source is None:
        raise ConfigError([f"tasks.{name}: {text}" for text in dict.fromkeys(problems)])
    try:
        return source.make(name, clean, seed, base_dir, verifier)
    except ConfigError as error:
        raise ConfigError([f"tasks.{name}: {text}" for text in error.problems]) from error


def _well_typed(name: str, spec: Spec) -> tuple[list[str], dict[str, Any]]:
    """(mistakes of keys and types, the entries that are all right)."""
    if "source" not in spec:
        problems = [f"'source' is missing; it is one of: {', '.join(SOURCES)}"]
    elif str(spec["source"]) not in SOURCES:
        problems = [unknown_name("source", str(spec["source"]), SOURCES)]
    else:
        problems = []
    source = SOURCES.get(str(spec.get("source", "")))
    known = (*_COMMON, *source.keys) if source else tuple(_TYPES)
    clean: dict[str, Any] = {}
    for key, value in spec.items():
        if key not in known:
            elsewhere = f" (of source '{spec['source']}')" if key in _TYPES else ""
            problems.append(f"{unknown_name('key', str(key), known)}{elsewhere}")
            continue
        expected, called = _TYPES[key]
        accepts_bool = expected is bool
        if not isinstance(value, expected) or (isinstance(value, bool) and not accepts_bool):
            problems.append(f"'{key}' must be {called}; got {value!r}")
            continue
        clean[key] = value
    return problems, clean


def _sizes(spec: Spec) -> SplitSizes | None:
    return SplitSizes(**spec["size"]) if "size" in spec else None


def _wording(spec: Spec, *more: str) -> dict[str, Any]:
    return {key: spec[key] for key in ("instruction", "instruction_at", "extract", *more) if key in spec}


def _verified(task: Task, verifier: Verifier | None) -> Task:
    if verifier is None:
        return task
    missing = verifier.check_columns({"answer", *task.split("train")[0].metadata})
    if missing:
        raise ConfigError(missing)
    return VerifiedTask(task, verifier)


def _make_reasoning_gym(name: str, spec: Spec, seed: int, base_dir: Path, verifier: Verifier | None) -> Task:
    task = ReasoningGymTask(
        spec["family"], spec.get("config"), name=name, sizes=_sizes(spec), seed=seed, **_wording(spec, "scoring")
    )
    return _verified(task, verifier)


def _make_family(name: str, spec: Spec, seed: int, base_dir: Path, verifier: Verifier | None) -> Task:
    more = _wording(spec, "scoring", "convention", "templates")
    task = FamilyTask(spec["family"], spec.get("config"), name=name, sizes=_sizes(spec), seed=seed, **more)
    return _verified(task, verifier)


def _make_grid(name: str, spec: Spec, seed: int, base_dir: Path, verifier: Verifier | None) -> Task:
    more = _wording(spec, "templates")
    task = GridTask(spec["family"], spec.get("config"), name=name, sizes=_sizes(spec), seed=seed, **more)
    return _verified(task, verifier)


def _make_jsonl(name: str, spec: Spec, seed: int, base_dir: Path, verifier: Verifier | None) -> Task:
    path = base_dir / Path(spec["path"]).expanduser()
    more = _wording(spec, "casefold", "shares")
    return JsonlTask(path, name=name, sizes=_sizes(spec), seed=seed, verifier=verifier, **more)


def _make_code(name: str, spec: Spec, seed: int, base_dir: Path, verifier: Verifier | None) -> Task:
    path = base_dir / Path(spec["path"]).expanduser() if "path" in spec else None
    more = {key: spec[key] for key in ("instruction", "instruction_at", "scoring") if key in spec}
    return CodeTask(path, name=name, sizes=_sizes(spec), seed=seed, **more)


def _check_code(spec: Spec) -> list[str]:
    return [
        f"'{key}' has no meaning for source 'code': programs are judged by their tests; leave it out"
        for key in ("verifier", "extract")
        if key in spec
    ]


def _make_environment(name: str, spec: Spec, seed: int, base_dir: Path, verifier: Verifier | None) -> Task:
    world = make_world(spec["family"], spec.get("config", {}), base_dir)
    rules = episode_rules(spec.get("episode", {}))
    more = {key: spec[key] for key in ("instruction", "instruction_at") if key in spec}
    return EpisodeTask(world, name=name, rules=rules, sizes=_sizes(spec), seed=seed, **more)


def _check_environment(spec: Spec) -> list[str]:
    problems = check_world(spec["family"], spec.get("config", {})) + check_episode(spec.get("episode", {}))
    problems += [
        f"'{key}' has no meaning for source 'environment': an episode is graded by its environment; leave it out"
        for key in ("verifier", "extract")
        if key in spec
    ]
    return problems


def _check_family_spec(spec: Spec) -> list[str]:
    return check_family(
        spec["family"],
        spec.get("config", {}),
        convention_name=spec.get("convention", "plain"),
        templates=spec.get("templates"),
    )


SOURCES: Mapping[str, TaskSource] = {
    "reasoning_gym": TaskSource(
        keys=("family", "config", "scoring"),
        required=("family",),
        check=lambda spec: check_source(spec["family"], spec.get("config", {})),
        make=_make_reasoning_gym,
    ),
    "family": TaskSource(
        keys=("family", "config", "scoring", "convention", "templates"),
        required=("family",),
        check=_check_family_spec,
        make=_make_family,
    ),
    "jsonl": TaskSource(
        keys=("path", "casefold", "shares"),
        required=("path",),
        check=lambda spec: [],
        make=_make_jsonl,
    ),
    "code": TaskSource(keys=("path", "scoring"), required=(), check=_check_code, make=_make_code),
    "environment": TaskSource(
        keys=("family", "config", "episode"),
        required=("family",),
        check=_check_environment,
        make=_make_environment,
    ),
    "grid": TaskSource(
        keys=("family", "config", "templates"),
        required=("family",),
        check=lambda spec: check_grid(spec["family"], spec.get("config", {}), templates=spec.get("templates")),
        make=_make_grid,
    ),
}
"""By the name that ``source`` gives; a new source is a row here."""
