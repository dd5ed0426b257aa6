"""Entries of reasoning-gym families, one independent seed each. The only module that imports reasoning-gym.

reasoning-gym seeds item ``i`` with ``seed + i``, so neighbouring seeds share almost all their items. Here every item is
item 0 of a seed of its own. A few families change with Python's hash seed; they are refused unless it is pinned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from twoclock.errors import ConfigError, MissingExtraError, nearest, unknown_name
from twoclock.seeding import child_seed
from twoclock.tasks.text import clip

__all__ = ["HASH_DEPENDENT", "Entry", "Source", "check_source", "config_defaults", "plain_json"]

Entry = dict[str, Any]
"""As reasoning-gym gives it: question, answer (may be None), metadata."""

HASH_DEPENDENT = frozenset(
    {
        "isomorphic_strings",
        "polynomial_multiplication",
        "ransom_note",
        "intermediate_integration",
        "knight_swap",
        "word_ladder",
    }
)
"""Families whose questions or answers change with PYTHONHASHSEED (measured on 0.1.25)."""

_REFUSED = {
    "codeio": "its items differ from process to process even at one PYTHONHASHSEED, so a run could not be resumed",
    "composite": "it mixes other families; make one task of each instead and put them into the stream's phases",
}

_PRINTING = frozenset({"tower_of_hanoi"})
"""Families whose scorers print."""

_OURS = ("seed", "size")

# Some families make several items at once when constructed; five is the least of which all their kinds turn up.
_REBUILD_SIZE = 5


def _registry() -> Mapping[str, tuple[Any, Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingExtraError.of("reasoning-gym", "tasks", "a task of source 'reasoning_gym'") from error
    return dict(DATASETS)


def check_source(family: str, config: Mapping[str, Any]) -> list[str]:
    """What is wrong with a family name and its config; empty when nothing is."""
    registry = _registry()
    if family not in registry:
        return [unknown_name("reasoning-gym family", family, registry)]
    if family in _REFUSED:
        return [f"reasoning-gym family '{family}' cannot be used: {_REFUSED[family]}"]
    problems = []
    if family in HASH_DEPENDENT and not _hash_seed_is_pinned():
        problems.append(
            f"reasoning-gym family '{family}' makes other items in every process unless Python's hash seed is pinned; "
            "type PYTHONHASHSEED=0 in front of the command"
        )
    fields = [f.name for f in dataclasses.fields(registry[family][1]) if f.name not in _OURS]
    for key in config:
        if key in _OURS:
            problems.append(f"'{key}' is not set in a reasoning-gym config; use the task's own seed and size")
        elif key not in fields:
            close = nearest(key, fields)
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            problems.append(f"reasoning-gym family '{family}' has no option '{key}'; {hint}it has: {', '.join(fields)}")
    return problems or _check_values(family, registry[family][1], config)


def config_defaults(family: str) -> dict[str, Any]:
    """The options of a family that have a default, with it. Raises ConfigError for an unknown family."""
    problems = check_source(family, {})
    if problems:
        raise ConfigError(problems)
    fields = dataclasses.fields(_registry()[family][1])
    return {f.name: f.default for f in fields if f.name not in _OURS and f.default is not dataclasses.MISSING}


def _hash_seed_is_pinned() -> bool:
    value = os.environ.get("PYTHONHASHSEED", "")
    # Set to 0 after the start it would have no effect, which the flag gives away.
    return value not in ("", "random") and not (value == "0" and sys.flags.hash_randomization)


def _check_values(family: str, config_class: Any, config: Mapping[str, Any]) -> list[str]:
    try:
        made = config_class(**config, seed=0, size=_REBUILD_SIZE)
        if hasattr(made, "validate"):
            made.validate()
    except Exception as error:
        return [f"reasoning-gym family '{family}' refuses this config: {_said(error)}; given: {dict(config)!r}"]
    return []


def _said(error: Exception) -> str:
    return clip(str(error), 200) or type(error).__name__


class Source:
    """Makes and scores entries of one family. Raises ConfigError for a family or config that cannot be used."""

    def __init__(self, family: str, config: Mapping[str, Any]) -> None:
        problems = check_source(family, config)
        if problems:
            raise ConfigError(problems)
        self.family = family
        self._config = dict(config)
        self._dataset_class, self._config_class = _registry()[family]
        try:
            with _global_random_state():
                self._dataset = self._build(0)
                self._rebuild = not self._follows_its_seed()
        except Exception as error:
            raise ConfigError(
                f"reasoning-gym family '{family}' cannot make an item with the config {dict(config)!r}: {_said(error)}"
            ) from error

    @property
    def has_base_scorer(self) -> bool:
        """Whether its scorer is reasoning-gym's own default: exact match, else part credit by length."""
        default = self._dataset_class.__mro__[-1]
        for base in self._dataset_class.__mro__:
            if "score_answer" in vars(base):
                default = base
                break
        return bool(default.__name__ == "ProceduralDataset")

    def entry(self, seed: int) -> Entry | None:
        """The entry of this seed, a pure function of it; ``None`` where the family makes none from it."""
        with _global_random_state():
            try:
                return self._make(seed)
            except Exception:
                # Some families raise on a few seeds; the caller draws another, and gives up when too many are so.
                return None

    def entries(self, purpose: str, seed: int, count: int) -> list[Entry]:
        """A few entries drawn for a purpose of their own."""
        found: list[Entry] = []
        for index in range(20 * count):
            entry = self.entry(child_seed(purpose, seed, self.family, index))
            if entry is not None:
                found.append(entry)
            if len(found) == count:
                break
        return found

    def score(self, answer: str, entry: Entry) -> float:
        """The family's own score of a text, 0 to 1. Raises whatever the scorer raises."""
        with _quiet(stdout=self.family in _PRINTING):
            return float(self._dataset.score_answer(answer, entry))

    def _build(self, seed: int) -> Any:
        with _quiet(stdout=True):  # some show their progress
            return self._dataset_class(self._config_class(**self._config, seed=seed, size=_REBUILD_SIZE))

    def _follows_its_seed(self) -> bool:
        """Whether setting the seed of a built dataset gives what building it with that seed gives: much faster."""
        for probe in (20011, 3100000007):
            random.seed(probe)
            built = self._build(probe)[0]
            self._rebuild = False
            moved = self._make(probe)
            if (built["question"], built["answer"]) != (moved["question"], moved["answer"]):
                return False
        return True

    def _make(self, seed: int) -> Entry:
        seed %= 2**32  # some families hand their seed to NumPy, which takes 32 bits
        random.seed(seed)  # and one draws from the global generator
        if self._rebuild:
            return self._checked(self._build(seed)[0])
        self._dataset.seed = seed
        self._dataset.config.seed = seed
        return self._checked(self._dataset[0])

    @staticmethod
    def _checked(entry: Entry) -> Entry:
        question, answer = entry["question"], entry["answer"]
        if not isinstance(question, str) or not question.strip():
            raise ValueError("an entry without a question")
        return {**entry, "answer": None if answer is None else str(answer), "metadata": entry.get("metadata") or {}}


@contextmanager
def _global_random_state() -> Iterator[None]:
    """Puts the process's global generators back as they were: a few families seed or use them."""
    state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    try:
        yield
    finally:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(numpy_state)


@contextmanager
def _quiet(stdout: bool) -> Iterator[None]:
    """Scorers warn and print about the model's text, which is no mistake of anyone's. ``stdout`` is silenced only for
    the families that print: it belongs to the whole process, a live display in another thread included."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) if stdout else contextlib.nullcontext():
        warnings.simplefilter("ignore")
        yield


def plain_json(value: Any) -> Any:
    """The value as plain JSON: text keys, lists for tuples and (sorted) sets, text for what has no JSON form."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain_json(item) for item in value), key=repr)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return plain_json(value.tolist())
    return str(value)
