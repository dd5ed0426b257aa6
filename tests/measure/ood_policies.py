"""Policies whose skill is known by construction, and how they answer a suite of variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from twoclock.seeding import child_rng
from twoclock.tasks.library import FAMILIES
from twoclock.tasks.variants import VariantSuite
from twoclock.tasks.variants_task import VariantTask
from twoclock.types import Completion, Group, Item, Rollout

Policy = Callable[[Item, str, Random], str]
"""(item, variant, randomness) to a text. Known-answer policies may look at an item's metadata."""

SPECS: Mapping[str, dict[str, Any]] = {
    "mod_sum": {"max_value": 99},
    "sum": {"max_value": 99},
    "compare": {"count": 3, "want": "either"},
    "next_number": {"max_start": 400},
    "sort_digits": {"min_digits": 5, "max_digits": 5},
    "count_letter": {"min_length": 8, "max_length": 8},
    "letter_position": {"min_length": 6, "max_length": 6},
    "reverse_word": {"min_length": 5, "max_length": 5},
    "pick_word": {"min_words": 4, "max_words": 4},
    "lookup": {"min_words": 4, "max_words": 4, "digits": 2},
}
"""A config of one size for each own family, with room for a few thousand problems."""


def spec(family: str, **more: Any) -> dict[str, Any]:
    size = {"train": 300, "trial": 20, "heldout": 60}
    return {"source": "family", "family": family, "config": SPECS[family], "size": size, **more}


def gold(item: Item) -> str:
    return FAMILIES[item.metadata["family"]].answer(item.metadata["latent"])


def solver(item: Item, variant: str, rng: Random) -> str:
    return gold(item)


def template_matcher(item: Item, variant: str, rng: Random) -> str:
    """Solves every problem as if it had the trained form: what was removed, added or ruled goes past it."""
    stale = item.metadata.get("stale")
    return gold(item) if stale is None else str(stale)


def distractor_user(item: Item, variant: str, rng: Random) -> str:
    tempting = item.metadata.get("tempting")
    return gold(item) if tempting is None else str(tempting)


def format_breaker(item: Item, variant: str, rng: Random) -> str:
    return f"Well, that would have to be {gold(item)}, I should say!"


def guesser(suite: VariantSuite) -> Policy:
    """The answer of another item of the same variant."""

    def policy(item: Item, variant: str, rng: Random) -> str:
        others = [entry.item for entry in suite[variant].items if entry.item.id != item.id]
        return gold(rng.choice(others))

    return policy


def memoriser(suite: VariantSuite) -> Policy:
    """Knows the training prompts by heart and guesses otherwise."""
    known = {entry.item.prompt: gold(entry.item) for entry in suite["seen"].items}
    guess = guesser(suite)

    def policy(item: Item, variant: str, rng: Random) -> str:
        return known.get(item.prompt) or guess(item, variant, rng)

    return policy


def half(policy: Policy, otherwise: Policy, share: float = 0.5) -> Policy:
    """One policy on a random share of items, another on the rest."""
    return lambda item, variant, rng: (policy if rng.random() < share else otherwise)(item, variant, rng)


def groups(task: VariantTask, policy: Policy, name: str, seed: int = 0) -> list[Group]:
    """One graded rollout an item, as the loop would make it."""
    items = task.split("heldout")
    texts = [policy(item, task.variant, child_rng(name, seed, task.variant, item.id)) for item in items]
    return [
        Group(
            item=item,
            rollouts=(
                Rollout(
                    item_id=item.id,
                    conditioning_id="c",
                    seed=0,
                    completion=Completion(tokens=(1, 2), logprobs=(), text=text, finish="stop", prompt_tokens=3),
                    grade=grade,
                ),
            ),
        )
        for item, text, grade in zip(items, texts, task.grade(items, texts), strict=True)
    ]


def rows(suite: VariantSuite, policy: Policy, name: str, seed: int = 0) -> list[dict[str, Any]]:
    """What one system answered on the whole suite."""
    return [row for task in suite.values() for row in task.rows(groups(task, policy, name, seed))]
