"""Attempts: one answer or one whole episode to each of many items, sampled together and graded.

This is the layer on which trials and planners stand: it does not matter to them whether a task's items are answered in
one turn or played over several (:class:`~twoclock.contracts.Interactive`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twoclock.bench import grade_rollouts, sample_items
from twoclock.contracts import Policy, Task
from twoclock.seeding import child_seed
from twoclock.types import Conditioning, Item, Request, Sampling

__all__ = ["Attempt", "attempt_seed", "run_attempts"]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One graded attempt at one item."""

    item_id: str
    trial: int
    """From 1."""
    seed: int
    conditioning_id: str
    text: str
    """The answer, or the transcript of the episode."""
    reward: float
    feedback: str = ""
    failure: str | None = None
    """Why there is no reward to speak of: the policy or the verifier failed."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    turns: int = 1

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def attempt_seed(seed: int, item_id: str, trial: int) -> int:
    """The seed of a trial at an item. It does not depend on the arm: arms are compared under common random numbers."""
    return child_seed("attempt", seed, item_id, trial)


def run_attempts(
    policy: Policy,
    task: Task,
    items: Sequence[Item],
    sampling: Sampling,
    *,
    seed: int,
    trial: int,
    conditionings: Mapping[str, Conditioning] | None = None,
) -> list[Attempt]:
    """One attempt at each item, in order, each under its own conditioning (by item id; none is the empty one). Raises
    ValueError for an item that stands twice."""
    if len({item.id for item in items}) < len(items):
        raise ValueError("an item stands twice among the items to attempt; give each once")
    told = conditionings or {}
    requests = [
        Request(
            prompt=item.prompt,
            conditioning=told.get(item.id, Conditioning()).for_item(item),
            seeds=(attempt_seed(seed, item.id, trial),),
        )
        for item in items
    ]
    completions = sample_items(policy, task, items, requests, sampling)
    groups = grade_rollouts(task, items, requests, completions)
    return [
        Attempt(
            item_id=group.item.id,
            trial=trial,
            seed=rollout.seed,
            conditioning_id=rollout.conditioning_id,
            text=rollout.completion.text,
            reward=rollout.reward,
            feedback=rollout.grade.feedback,
            failure=rollout.grade.failure,
            prompt_tokens=rollout.completion.prompt_tokens,
            completion_tokens=len(rollout.completion.tokens),
            turns=rollout.completion.turns,
        )
        for group in groups
        for rollout in group.rollouts
    ]
