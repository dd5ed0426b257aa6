"""The operators that a family needs for probes, as one record, and the helpers that families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from twoclock.tasks.library import Latent, Params

__all__ = ["TRIES", "Decoy", "Parametric", "Removal", "exercise", "without"]

TRIES = 50
"""Draws until an operator gives up and the base problem has no such variant."""


@dataclass(frozen=True)
class Removal:
    """A latent without its element at ``index``, counted from 0."""

    latent: Latent
    index: int


@dataclass(frozen=True)
class Decoy:
    """A true and irrelevant sentence, and the wrong answer of somebody who takes it for part of the problem."""

    sentence: str
    tempting: str


@dataclass(frozen=True, kw_only=True)
class Parametric:
    """The operators of one family. Each gives ``None`` where this latent has no such variant."""

    element: str
    """What N counts, in one word."""
    low: str
    """The parameter that holds the smallest N; ``high`` the greatest. They may be one."""
    high: str
    least: int
    """The smallest N that still poses a problem."""
    size: Callable[[Latent], int]
    remove: Callable[[Latent, Params, Random], Removal | None]
    add: Callable[[Latent, Params, Random], Latent | None]
    decoy: Callable[[Latent, Params, Random], Decoy | None]
    wordings: tuple[str, ...]
    """Templates that are reserved for probes, over the same fields as the family's own."""
    values: Callable[[Latent], list[int]] = lambda latent: []
    """The numbers that a problem is made of, whose distribution ought not to change between splits."""
    can_leave_out: bool = True
    """Whether "leave out the second one" is a rule that can be stated for it."""


def without(values: list[Any], index: int) -> list[Any]:
    return values[:index] + values[index + 1 :]


def exercise(number: int, rng: Random) -> str:
    return rng.choice(("(This is exercise {}.)", "(Page {}.)", "(Sheet {}.)")).format(number)
