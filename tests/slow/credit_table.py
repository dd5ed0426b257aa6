"""Evidence as a table: rewards, lengths and prompts that a test can work out by hand, and no model."""

from __future__ import annotations

from collections.abc import Sequence

from twoclock.types import Completion, Conditioning, Evidence, Grade, Group, Item, Rollout, Sampling

PLAIN, BRIEF = Conditioning(), Conditioning(system="Answer briefly.")

Cell = tuple[Conditioning, float, int]
"""(what it was sampled under, its reward, how many tokens it has)"""


def told(conditioning: Conditioning, reward: float, length: int = 2) -> Cell:
    return conditioning, reward, length


def table(*groups: Sequence[Cell], limit: int = 6) -> Evidence:
    """One group a row; a completion of ``limit`` tokens was cut off there."""
    rows = []
    for index, cells in enumerate(groups):
        item = Item(id=f"item-{index}", prompt=f"question {index}")
        rollouts = tuple(
            Rollout(
                item_id=item.id,
                conditioning_id=under.id,
                seed=n,
                completion=Completion(
                    tokens=tuple(range(10, 10 + length)),
                    logprobs=(-1.0,) * length,
                    text="x" * length,
                    finish="length" if length == limit else "stop",
                    prompt_tokens=3,
                ),
                grade=Grade(reward=reward),
            )
            for n, (under, reward, length) in enumerate(cells)
        )
        rows.append(Group(item=item, rollouts=rollouts))
    return Evidence(
        round=1,
        phase=0,
        task="sums",
        groups=tuple(rows),
        conditionings={under.id: under for cells in groups for under, _, _ in cells},
        sampling=Sampling(max_new_tokens=limit),
    )
