"""The out-of-distribution probe's items: from a task's table to a suite of variants of it.

====================  =====================================================================================
``seen``              training items again: what a memory of instances knows
``id``                new items of the training distribution: what all others are held against
``n-1``, ``n+1``      one element fewer or more than any training item, derived from ``id`` items where it can
``template``          the problems of ``id`` in words that no task trains on
``distractor``        the problems of ``id`` beside a true sentence about something else
``rule``              the problems of ``id`` with a changed rule stated, which changes the answer
====================  =====================================================================================

Own families and power networks derive all variants from the latents of ``id``. Reasoning-gym families draw N±1 by
config, without partners, and JSON-lines tasks take files of the user's; their ``template`` and ``distractor`` change
only what stands around the question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from twoclock.contracts import Task
from twoclock.errors import ConfigError, unknown_name
from twoclock.tasks.sources import SOURCES
from twoclock.tasks.variants_base import Base, check_disjoint, draw_base
from twoclock.tasks.variants_family import FamilyVariants
from twoclock.tasks.variants_frames import check_rewordings
from twoclock.tasks.variants_gym import GymVariants
from twoclock.tasks.variants_jsonl import JsonlVariants
from twoclock.tasks.variants_task import VARIANTS, Parsed, VariantItem, VariantTask

__all__ = ["COUNT", "VariantSuite", "build_variants"]

COUNT = 360
"""Base items: 314 show a change of a gap of 10 points (discordance .2, 80 % power), and a tenth may tell nothing."""


_PROBED = ("family", "grid", "reasoning_gym", "jsonl")


class Maker(Protocol):
    """Makes the variants of one source."""

    graders: dict[str, Task]
    """The task that grades a variant, where it is not the one of the base items."""
    notes: dict[str, list[str]]
    """What there is to say of a variant."""

    @property
    def parsed(self) -> Parsed: ...

    def problem(self, variant: str) -> str | None:
        """Why there is no such variant; ``None`` where there is."""
        ...

    def make(self, variant: str) -> tuple[VariantItem, ...]: ...


class VariantSuite(Mapping[str, VariantTask]):
    """The variants by name, in the order of ``VARIANTS``; ``notes`` say what is missing or small, and why."""

    def __init__(self, tasks: Mapping[str, VariantTask], notes: Sequence[str]) -> None:
        self._tasks, self.notes = dict(tasks), tuple(notes)

    def __getitem__(self, name: str) -> VariantTask:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def close(self) -> None:
        """Ends the graders' child processes, where there are any."""
        for task in self._tasks.values():
            task.close()


def build_variants(
    spec: Mapping[str, Any],
    names: Sequence[str] | None = None,
    *,
    name: str = "task",
    seed: int = 0,
    base_dir: Path = Path(),
    count: int = COUNT,
    n_parameter: Sequence[str] = (),
    rewordings: Sequence[str] = (),
    files: Mapping[str, str | Path] | None = None,
    seen: Collection[str] | None = None,
) -> VariantSuite:
    """The variants of the task that ``spec``, ``name`` and ``seed`` describe, as ``build_task`` takes them.

    ``names`` None makes all that the task has, and notes the others; with names, one that cannot be made raises
    ConfigError with the reason (all reasons at once), and ``id`` is made in any case. ``count`` base items, or fewer,
    noted, where the task has no more. ``n_parameter`` names the option that is a reasoning-gym family's N,
    ``rewordings`` are instructions with ``{question}`` for ``template``, ``files`` JSON lines by variant. ``seen``
    holds the ids of the training items that were learned from; None takes all. No item but those of ``seen`` is a
    training or trial item, whatever its spelling: that raises ConfigError, for a file DataError.
    """
    problems = _check(names, count, n_parameter, rewordings, files or {}, spec)
    if problems:
        raise ConfigError([f"tasks.{name}: {text}" for text in problems])
    files = files or {}
    base = draw_base(name, spec, seed, base_dir, count=count, seen=seen, can_draw=spec["source"] != "jsonl")
    maker: Maker
    if spec["source"] == "family":
        maker = FamilyVariants(base, spec, seed)
    elif spec["source"] == "grid":
        from twoclock.tasks.variants_grid import GridVariants

        maker = GridVariants(base, spec, seed)
    elif spec["source"] == "reasoning_gym":
        maker = GymVariants(
            base, name, spec, seed, base_dir, count=count, n_parameter=n_parameter, rewordings=rewordings
        )
    else:
        maker = JsonlVariants(base, spec, seed, base_dir, files=files, rewordings=rewordings)
    wanted = VARIANTS if names is None else tuple(v for v in VARIANTS if v in names or v == "id")
    return _suite(maker, base, name, wanted, count, explicit=names is not None)


def _suite(maker: Maker, base: Base, name: str, wanted: Sequence[str], count: int, *, explicit: bool) -> VariantSuite:
    tasks: dict[str, VariantTask] = {}
    missing: list[str] = []
    notes: list[str] = []
    learned = [*base.task.split("train"), *base.task.split("trial")]
    for variant in wanted:
        try:
            items = _items(maker, variant)
        except ConfigError as error:
            missing += error.problems
            continue
        if variant != "seen":
            check_disjoint(learned, [entry.item for entry in items], f"variant '{variant}' of '{name}'")
        tasks[variant] = VariantTask(
            name=f"{name}/{variant}",
            variant=variant,
            items=items,
            task=maker.graders.get(variant, base.grader),
            parsed=maker.parsed,
            notes=tuple(maker.notes.get(variant, ())),
        )
        notes += tasks[variant].notes
        most = count if variant == "id" else min(count, len(base.items))
        if len(items) < most:
            notes.append(_few(variant, len(items), most))
    if missing and explicit:
        raise ConfigError([f"tasks.{name}: {text}" for text in missing])
    return VariantSuite(tasks, [f"{name}: {text}" for text in [*missing, *notes]])


def _items(maker: Maker, variant: str) -> tuple[VariantItem, ...]:
    problem = maker.problem(variant)
    if problem:
        raise ConfigError(problem)
    items = maker.make(variant)
    if not items:
        raise ConfigError(f"none of the items has a variant '{variant}'; ask for more items, or leave it out")
    return items


def _few(variant: str, found: int, wanted: int) -> str:
    if variant == "id":
        return f"'id' has {found} of the {wanted} items asked for: there are no more that were not learned from"
    reason = {
        "seen": "there are no more training items that were learned from",
        "n-1": "one element fewer than in training needs a problem of the smallest trained size; each stands once",
        "n+1": "one element more than in training needs a problem of the greatest trained size; each stands once",
    }.get(variant, "not every problem has one; each stands once")
    return f"'{variant}' has {found} items to the {wanted} of 'id': {reason}"


def _check(
    names: Sequence[str] | None,
    count: int,
    n_parameter: Sequence[str],
    rewordings: Sequence[str],
    files: Mapping[str, str | Path],
    spec: Mapping[str, Any],
) -> list[str]:
    problems: list[str] = []
    for what, given in (("names", names), ("n_parameter", n_parameter), ("rewordings", rewordings)):
        if isinstance(given, str):
            problems.append(f"{what} must be a list of texts; got the text {given!r}: write [{given!r}]")
    if problems:
        return problems
    known = [name for name in VARIANTS if name not in ("seen", "id")]
    problems += [unknown_name("variant", str(name), VARIANTS) for name in names or () if name not in VARIANTS]
    problems += [unknown_name("variant in files", str(name), known) for name in files if name not in known]
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        problems.append(f"count must be a whole number of at least 2 base items; got {count!r}")
    problems += check_rewordings(rewordings)
    source = str(spec.get("source"))
    if source in SOURCES and source not in _PROBED:
        problems.append(f"source '{source}' has no variants; those that have: {', '.join(_PROBED)}")
    only: tuple[tuple[str, object, Collection[str]], ...] = (
        ("files", files, ("jsonl",)),
        ("n_parameter", n_parameter, ("reasoning_gym",)),
        ("rewordings", rewordings, ("jsonl", "reasoning_gym")),
    )
    for what, value, sources in only:
        if value and source not in sources:
            problems.append(f"{what} is for source {' and '.join(sources)}; this task's source is '{source}'")
    return problems
