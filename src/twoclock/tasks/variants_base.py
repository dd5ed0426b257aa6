"""The base problems of a probe: what the model has seen, what it has not, and the check that the two stay apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoclock.contracts import Task
from twoclock.errors import ConfigError
from twoclock.hashing import canonical_json
from twoclock.tasks.sources import build_task
from twoclock.tasks.text import clip, normalised
from twoclock.types import Item

__all__ = ["Base", "check_disjoint", "draw_base", "draw_heldout"]

FEWEST = 20
"""With fewer items than this no interval says anything, so shrinking a request stops here."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """The run's own task, and the items that a probe starts from."""

    task: Task
    seen: tuple[Item, ...]
    """Items that the run learned from."""
    items: tuple[Item, ...]
    """New items of the same distribution: the held-out ones first, then further draws."""
    grader: Task
    """The task that grades ``items``."""


def identity(item: Item) -> str:
    """What makes two items the same problem: the latent where there is one, else the wording up to spaces and case."""
    if "base" in item.metadata:  # power networks: the N question, whatever was drawn to change it
        return str(item.metadata["base"])
    if "latent" in item.metadata:
        return canonical_json(item.metadata["latent"])
    return normalised(str(item.metadata.get("question", item.prompt)))


def draw_base(
    name: str,
    spec: Mapping[str, Any],
    seed: int,
    base_dir: Path,
    *,
    count: int,
    seen: Collection[str] | None,
    can_draw: bool,
) -> Base:
    """``count`` items, or as many as there are. ``seen`` names the training items that were learned from by id (None:
    all). Where the source can draw (no file), further items follow the held-out ones in the same stream of draws."""
    task = build_task(name, spec, seed, base_dir)
    train = task.split("train")
    learned = tuple(item for item in train if seen is None or item.id in seen)
    if seen and not learned:
        raise ConfigError(
            f"none of the {len(seen)} item ids given as seen is a training item of '{name}'; give ids of its train "
            "split, or leave seen out for all of them"
        )
    held = task.split("heldout")
    if len(held) >= count or not can_draw:
        return Base(task=task, seen=learned[:count], items=held[:count], grader=task)
    taken = {identity(item) for split in ("train", "trial") for item in task.split(split)}
    # Own families are quick to draw from, and often small, so that much of what is drawn was learned from.
    spare = 2 * count if spec["source"] == "family" else count + count // 4
    wider = draw_heldout(name, spec, seed, base_dir, (spare, count))
    fresh = tuple(item for item in wider.split("heldout") if identity(item) not in taken) if wider else ()
    if wider is None or len(fresh) < len(held):
        return Base(task=task, seen=learned[:count], items=held, grader=task)
    return Base(task=task, seen=learned[:count], items=fresh[:count], grader=wider)


def draw_heldout(name: str, spec: Mapping[str, Any], seed: int, base_dir: Path, counts: Iterable[int]) -> Task | None:
    """The task with the first of these held-out counts that its space allows; ``None`` when it allows none."""
    for count in counts:
        task = build_task(name, {**spec, "size": {"train": 1, "trial": 1, "heldout": count}}, seed, base_dir)
        try:
            task.split("heldout")
        except ConfigError:
            continue
        return task
    return None


def check_disjoint(
    learned: Iterable[Item], measured: Iterable[Item], what: str, error: Callable[[str], Exception] = ConfigError
) -> None:
    """Raises unless no prompt that is measured on is one that was learned from, up to spaces and case."""
    known = {normalised(item.prompt) for item in learned}
    shared = [item for item in measured if normalised(item.prompt) in known]
    if shared:
        raise error(
            f"{what}: {len(shared)} of its items are training or trial items too, so it would measure memory; the "
            f"first: {clip(shared[0].prompt)!r}; take them out, or draw with another seed"
        )
