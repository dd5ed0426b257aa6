"""Worlds in which it is known what the reward depends on: the prompt, the weights, both, or neither.

A world says the rate p of every item under every prompt at every skill of the weights; rewards are coin flips of that
rate. ``train`` is what a slow step would do to the skill; nothing else moves. So a test knows, without any model, which
clock a rollout should be spent on, how large each component of the variance is, and what every headroom is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from twoclock.measure import RewardTable
from twoclock.seeding import child_seed
from twoclock.types import Completion, Conditioning, Evidence, Grade, Group, Item, Rollout

__all__ = ["KINDS", "Kind", "World", "planted_world"]

Kind = Literal["prompt", "weights", "both", "neither"]
KINDS: tuple[Kind, ...] = ("prompt", "weights", "both", "neither")

Array = npt.NDArray[np.float64]

PROMPTS = 4
"""The plain prompt, one that helps where prompts can, and two that say nothing."""


@dataclass(frozen=True)
class World:
    """``ease`` is each item's own rate, shape (I,); ``lift`` what each prompt adds, shape (C,)."""

    kind: Kind
    ease: tuple[float, ...]
    lift: tuple[float, ...]
    learns: float
    """What a step adds to the skill, as a share of what is missing; 0 where weights cannot learn it."""
    skill: float = 0.0
    """In [0, 1]: the share of what a prompt leaves open that the weights have closed."""

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f"prompt-{c}" for c in range(len(self.lift)))

    @property
    def best(self) -> str:
        """The prompt of the highest lift; the plain one where none has any."""
        return self.labels[int(np.argmax(self.lift))]

    @property
    def rates(self) -> Array:
        """p of every item under every prompt, shape (I, C): what the prompt lifts, then what the skill closes."""
        p = np.clip(np.asarray(self.ease)[:, None] + np.asarray(self.lift)[None], 0.0, 1.0)
        return p + self.skill * (1 - p)

    @property
    def prompt_gain(self) -> float:
        """What the best prompt adds to the plain one's mean rate."""
        mean = self.rates.mean(axis=0)
        return float(mean.max() - mean[0])

    def components(self) -> dict[str, float]:
        """The true parts of the variance of a reward, by their definitions."""
        p = self.rates
        between, average = float(p.var(axis=1).mean()), float(p.mean(axis=0).var())
        within, items = float((p * (1 - p)).mean()), float(p.mean(axis=1).var())
        total = between + within + items
        return {
            "between": between,
            "average": average,
            "by_item": between - average,
            "within": within,
            "items": items,
            "between_share": between / total,
            "explained": between / (between + within),
        }

    def train(self, steps: int = 1) -> World:
        """The world after so many slow steps."""
        return replace(self, skill=1 - (1 - self.skill) * (1 - self.learns) ** steps)

    # --------------------------------------------------------------------------------------------------- what is seen

    def rewards(self, item: int, prompt: int, rollouts: int, seed: int) -> list[float]:
        """Coin flips of one cell."""
        generator = np.random.default_rng(child_seed("world.cell", seed, item, prompt))
        return [float(x) for x in generator.random(rollouts) < self.rates[item, prompt]]

    def table(
        self, rollouts: int | npt.NDArray[np.int64], seed: int, prompts: Sequence[int] | None = None
    ) -> RewardTable:
        """A reward table; ``rollouts`` a cell is one number or an array (I, C), 0 for cells that are not there."""
        p = self.rates
        columns = range(p.shape[1]) if prompts is None else prompts
        counts = np.broadcast_to(np.asarray(rollouts), p.shape)
        draws = np.random.default_rng(child_seed("world.table", seed)).random((*p.shape, max(int(counts.max()), 1)))
        return RewardTable.of(
            (f"item-{i}", self.labels[c], float(draws[i, c, r] < p[i, c]))
            for i in range(p.shape[0])
            for c in columns
            for r in range(int(counts[i, c]))
        )

    def evidence(self, rollouts: int, seed: int, *, round: int = 1, phase: int = 1) -> Evidence:
        """One round's evidence on all items, with ``rollouts`` under each prompt."""
        conditionings = [Conditioning(system=label) for label in self.labels]
        groups = []
        for i in range(len(self.ease)):
            item = Item(id=f"item-{i}", prompt=f"question {i}")
            made = [
                Rollout(
                    item_id=item.id,
                    conditioning_id=conditioning.id,
                    seed=r,
                    completion=Completion(tokens=(1,), logprobs=(0.0,), text="x", finish="stop", prompt_tokens=1),
                    grade=Grade(reward=reward),
                )
                for c, conditioning in enumerate(conditionings)
                for r, reward in enumerate(self.rewards(i, c, rollouts, child_seed("world.round", seed, round)))
            ]
            groups.append(Group(item=item, rollouts=tuple(made)))
        named = {conditioning.id: conditioning for conditioning in conditionings}
        return Evidence(round=round, phase=phase, task=self.kind, groups=tuple(groups), conditionings=named)


def planted_world(kind: Kind, seed: int = 0, *, items: int = 48) -> World:
    """A world of one kind.

    ``prompt``: one prompt lifts every item by .6 and nothing else helps. ``weights``: prompts do nothing, a step closes
    a tenth of what is missing. ``both``: the prompt lifts by .3, and steps close what it leaves. ``neither``: a coin of
    the same rate everywhere. In the first and in the last no step moves anything: between those of a table's parts
    that the weights could change, ``weights`` and ``neither`` look alike, and only the response to a step tells.
    """
    if kind not in KINDS:
        raise ValueError(f"a world is one of {', '.join(KINDS)}; got {kind!r}")
    generator = np.random.default_rng(child_seed("world.items", seed))
    spread = generator.uniform(-0.1, 0.1, size=items)
    middle = {"prompt": 0.2, "weights": 0.4, "both": 0.3, "neither": 0.4}[kind]
    lift = {"prompt": 0.6, "weights": 0.0, "both": 0.3, "neither": 0.0}[kind]
    ease = tuple(float(x) for x in (middle + (0.0 if kind == "neither" else spread)) * np.ones(items))
    lifts = (0.0, lift, *(0.0 for _ in range(PROMPTS - 2)))
    return World(kind=kind, ease=ease, lift=lifts, learns=0.1 if kind in ("weights", "both") else 0.0)
