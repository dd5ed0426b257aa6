"""The metered handle that channels propose with and gates judge with. It counts before it spends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from twoclock.contracts import Interactive, Policy, Task, Trainable
from twoclock.errors import BudgetError, ConfigError, UnsupportedError
from twoclock.seeding import child_rng, child_seed
from twoclock.types import (
    Budget,
    Completion,
    Conditioning,
    Cost,
    Grade,
    Group,
    Item,
    PolicyCard,
    Request,
    Rollout,
    Sampling,
    SplitName,
)

__all__ = ["Bench", "grade_rollouts", "sampling_cost"]

MESSAGE_TOKENS = 16
"""The most that a chat template is taken to add to one message."""


class Bench:
    """See :class:`twoclock.contracts.Workbench`. ``others`` is what every other channel contributes right now, and
    ``join`` puts a channel's own conditioning among them in the order in which they are deployed."""

    def __init__(
        self,
        policy: Policy,
        task: Task,
        *,
        others: Conditioning,
        sampling: Sampling,
        budget: Budget | None = None,
        join: Callable[[Conditioning], Conditioning] | None = None,
        upcoming: Callable[[int], tuple[Item, ...]] | None = None,
        keeps_upcoming: bool = False,
    ) -> None:
        self._policy, self._task, self._others = policy, task, others
        self._join = join or others.join
        self._sampling = sampling
        self._budget = budget or Budget()
        self._spent = Cost()
        self._upcoming = upcoming or (lambda count: ())
        self._keeps_upcoming = keeps_upcoming and upcoming is not None
        self.kept: list[Group] = []
        """Rollouts on upcoming items that were sampled to be kept, in the order of sampling."""
        self.conditionings: dict[str, Conditioning] = {}
        """What the kept rollouts were sampled under, by id."""

    @property
    def card(self) -> PolicyCard:
        return self._policy.card

    @property
    def task(self) -> Task:
        return self._task

    @property
    def spent(self) -> Cost:
        return self._spent

    @property
    def rollouts_left(self) -> int | None:
        return None if self._budget.rollouts is None else self._budget.rollouts - self._spent.rollouts

    @property
    def others(self) -> Conditioning:
        return self._others

    def items(self, split: SplitName, count: int, seed: int) -> tuple[Item, ...]:
        if split == "heldout":
            raise ConfigError("the held-out split is only measured on; a channel may draw from 'train' and 'trial'")
        pool = self._task.split(split)
        return tuple(child_rng("bench-items", seed, split).sample(pool, min(count, len(pool))))

    def upcoming(self, count: int) -> tuple[Item, ...]:
        return self._upcoming(count)

    @property
    def keeps_upcoming(self) -> bool:
        return self._keeps_upcoming

    def roll_out(
        self,
        items: Sequence[Item],
        conditionings: Sequence[Conditioning],
        samples: int,
        seed: int,
        *,
        paired: bool = True,
    ) -> tuple[Group, ...]:
        if len({item.id for item in items}) < len(items):
            raise ValueError("an item stands twice among the items to roll out; a group is one item's: give each once")
        asked = len(items) * len(conditionings) * samples
        left = self.rollouts_left
        if left is not None and asked > left:
            raise BudgetError(f"{asked} rollouts were asked for and {left} are left of {self._budget.rollouts}")
        joined = [self._join(c) for c in conditionings]
        requests = [
            Request(
                prompt=item.prompt,
                conditioning=conditioning.for_item(item),
                seeds=tuple(
                    child_seed("bench-rollout", seed, item.id, sample, *([] if paired else [conditioning.id]))
                    for sample in range(samples)
                ),
            )
            for item in items
            for conditioning in joined
        ]
        self._require_tokens(requests)
        about = [item for item in items for _ in joined]
        completions = sample_items(self._policy, self._task, about, requests, self._sampling)
        self._spent += sampling_cost(completions)
        groups = grade_rollouts(self._task, items, requests, completions)
        if self._keeps_upcoming and not paired:
            self.kept += groups
            self.conditionings |= {r.conditioning.id: r.conditioning for r in requests}
        return groups

    def write(self, prompt: str, *, max_new_tokens: int, seed: int, under: Conditioning | None = None) -> Completion:
        if self.rollouts_left is not None and self.rollouts_left < 1:
            raise BudgetError(f"one rollout was asked for and none is left of {self._budget.rollouts}")
        joined = self._others if under is None else self._join(under)
        told = joined.for_item(Item(id="free", prompt=prompt))
        request = Request(prompt=prompt, conditioning=told, seeds=(child_seed("bench-write", seed),))
        sampling = replace(self._sampling, max_new_tokens=max_new_tokens, stop=())
        self._require_tokens([request], sampling)
        completions = self._policy.sample([request], sampling)
        self._spent += sampling_cost(completions)
        return completions[0][0]

    def charge(self, cost: Cost) -> None:
        """Adds what was spent beside this bench on its behalf, such as by a drift meter."""
        self._spent += cost

    def _require_tokens(self, requests: Sequence[Request], sampling: Sampling | None = None) -> None:
        """Raises BudgetError unless the most that these requests can cost is left."""
        if self._budget.tokens is None:
            return
        longest = (sampling or self._sampling).max_new_tokens
        most = sum(self._most_tokens(request, longest) for request in requests)
        left = self._budget.tokens - self._spent.tokens
        if most > left:
            raise BudgetError(f"up to {most} tokens were asked for and {left} are left of {self._budget.tokens}")

    def _most_tokens(self, request: Request, longest: int) -> int:
        written = longest * len(request.seeds)
        if isinstance(self._policy, Trainable):
            return written + self._policy.prompt_tokens(request.prompt, request.conditioning)
        # Behind an endpoint nobody can count; no tokenizer makes more tokens than bytes, and a template adds a few.
        told = request.conditioning
        texts = [told.system or "", *(t for turn in told.exemplars for t in turn), told.told(request.prompt)]
        return written + sum(len(t.encode("utf-8")) + MESSAGE_TOKENS for t in texts)

    def trainable(self) -> Trainable:
        if not isinstance(self._policy, Trainable):
            raise UnsupportedError(
                f"the policy '{self.card.name}' cannot be trained or scored: it is behind an endpoint. "
                "Use fast channels with it, or a local model ([model] source = ...)"
            )
        return self._policy


def sample_items(
    policy: Policy, task: Task, items: Sequence[Item], requests: Sequence[Request], sampling: Sampling
) -> list[tuple[Completion, ...]]:
    """The completions of requests, each about the item at its place: sampled, or played where the task's items take
    several turns."""
    if isinstance(task, Interactive):
        return task.play(policy, items, requests, sampling)
    if hasattr(task, "play"):  # else its items would be answered in one turn, and nobody would know
        raise ConfigError(f"the task '{task.name}' has 'play' but no 'answer_of': an interactive task has both")
    return policy.sample(requests, sampling)


def sampling_cost(completions: Sequence[Sequence[Completion]]) -> Cost:
    """Rollouts and tokens of a sampling call; the prompt of a request is read once for all its seeds, those of episodes
    are each one's own."""
    read = [[c.prompt_tokens for c in row if c.turns > 1] or [c.prompt_tokens for c in row[:1]] for row in completions]
    return Cost(
        rollouts=sum(len(row) for row in completions),
        prompt_tokens=sum(sum(row) for row in read),
        completion_tokens=sum(len(c.tokens) for row in completions for c in row),
    )


def grade_rollouts(
    task: Task, items: Sequence[Item], requests: Sequence[Request], completions: Sequence[Sequence[Completion]]
) -> tuple[Group, ...]:
    """One group an item from the requests that are its (the same number for each item, item by item).

    A completion that failed is not shown to the verifier: it scores 0 with its error as the reason.
    """
    each = len(requests) // len(items) if items else 0
    flat = [
        (items[index // each], request, seed, completion)
        for index, (request, row) in enumerate(zip(requests, completions, strict=True))
        for seed, completion in zip(request.seeds, row, strict=True)
    ]
    gradable = [entry for entry in flat if entry[3].finish != "error"]
    grades = iter(task.grade([e[0] for e in gradable], [e[3].text for e in gradable]) if gradable else [])
    by_item: dict[str, list[Rollout]] = {item.id: [] for item in items}
    for item, request, seed, completion in flat:
        if completion.finish == "error":
            grade = Grade(reward=0.0, failure=f"no completion: {completion.error}")
        else:
            grade = next(grades)
        by_item[item.id].append(
            Rollout(
                item_id=item.id,
                conditioning_id=request.conditioning.id,
                seed=seed,
                completion=completion,
                grade=grade,
            )
        )
    return tuple(Group(item=item, rollouts=tuple(by_item[item.id])) for item in items)
