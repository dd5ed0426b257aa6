"""The first three steps of a round: which items, under which prompts, sampled or taken up again, and graded.

Two things go beyond sampling a batch. *Reuse*: rollouts that a prompt search made on items yet to come up are kept in
the ledger with the sampler's log-probabilities; when the items come up they stand in for new ones, marked with
their age. *Dynamic sampling* (DAPO, arXiv:2503.14476): groups without reward variance are replaced by groups of further
items, up to a limit.

Everything follows from (seed, round) and the ledger, so a resumed run gathers the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from twoclock.bench import grade_rollouts, sample_items, sampling_cost
from twoclock.contracts import Policy, Task, TaskStream
from twoclock.errors import ConfigError, unknown_name
from twoclock.seeding import child_rng, child_seed
from twoclock.store import KeptRollout
from twoclock.types import Completion, Conditioning, Cost, Delta, Evidence, Group, Item, Request, Rollout, Sampling

__all__ = ["Gathered", "Gathering", "Keeper", "RolloutSettings"]

Keeper = Callable[[str, Sequence[str], int], Sequence[KeptRollout]]
"""(task, item ids, since which round) → the rollouts that searches have kept."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """What a round rolls out: ``items`` groups of ``per_item`` rollouts, each group over ``prompts_per_item`` of the
    fast clock's alternatives (the deployed one first)."""

    items: int = 8
    per_item: int = 8
    prompts_per_item: int = 1
    under: Literal["deployed", "none"] = "deployed"
    """``none``: without any prompt that was learned, such as for distilling it."""
    reuse: bool = False
    """Whether rollouts that a search made on upcoming items take the places of new ones."""
    max_age: int = 6
    """The most rounds that a rollout is kept for."""
    dynamic: int = 0
    """Dynamic sampling: at most so many further batches a round, until ``items`` groups have reward variance."""

    def __post_init__(self) -> None:
        problems = [
            f"rollouts.{name} = {getattr(self, name)}: expected at least {least}"
            for name, least in (("items", 1), ("per_item", 1), ("prompts_per_item", 1), ("max_age", 1), ("dynamic", 0))
            if getattr(self, name) < least
        ]
        if not problems and self.per_item % self.prompts_per_item:
            problems.append(
                f"rollouts.per_item = {self.per_item} must divide by prompts_per_item = {self.prompts_per_item}"
            )
        if self.under not in ("deployed", "none"):
            problems.append(unknown_name("rollouts.under", self.under, ("deployed", "none")))
        elif self.under == "none" and (self.reuse or self.prompts_per_item > 1):
            problems.append(
                'rollouts.under = "none" shows no learned prompt, so prompts_per_item must be 1 and reuse false'
            )
        if problems:
            raise ConfigError(problems)


@dataclass
class Gathered:
    """The groups of a round, and what they cost."""

    groups: list[Group] = field(default_factory=list)
    conditionings: dict[str, Conditioning] = field(default_factory=dict)
    deployed: dict[str, str] = field(default_factory=dict)
    """By item id, the id of what is deployed."""
    cost: Cost = field(default_factory=Cost)
    reused: int = 0
    sampled_groups: int = 0
    dead_groups: int = 0
    """Of all that were sampled, the replaced ones included."""


class Gathering:
    """Gathers rounds of one stream with one policy."""

    def __init__(
        self, policy: Policy, stream: TaskStream, settings: RolloutSettings, sampling: Sampling, seed: int
    ) -> None:
        self.policy, self.stream, self.settings, self.sampling, self.seed = policy, stream, settings, sampling, seed

    def items(self, number: int) -> tuple[Item, ...]:
        """The training items of a round."""
        return self.stream.batch(number, self.settings.items, self.seed)

    def upcoming(self, number: int, count: int) -> tuple[Item, ...]:
        """The first ``count`` items that the rounds after ``number`` read in its phase, each once."""
        phase = self.stream.phase(number)
        found: dict[str, Item] = {}
        after = number + 1
        while len(found) < count and after <= self.stream.num_rounds and self.stream.phase(after) == phase:
            found |= {item.id: item for item in self.items(after) if item.id not in found}
            after += 1
        return tuple(found.values())[:count]

    # --------------------------------------------------------------------------------------------------- reading again

    def take_up(
        self, number: int, items: Sequence[Item], conditionings: Sequence[Conditioning], keeper: Keeper
    ) -> dict[tuple[str, int], list[KeptRollout]]:
        """By (item id, place of the conditioning) the kept rollouts that stand for new ones: of that item, under that
        prompt, whole, not too old, and never used before."""
        if not self.settings.reuse:
            return {}
        since = max(1, number - self.settings.max_age)
        task = self.stream.phase(number).task
        seen = {n: {item.id for item in self.items(n)} for n in range(since, number) if self._same_task(n, number)}
        free: dict[tuple[str, str], list[KeptRollout]] = {}
        for kept in keeper(task, [item.id for item in items], since):
            used = any(kept.item_id in seen.get(n, ()) for n in range(kept.round + 1, number))
            whole = len(kept.completion.logprobs) == len(kept.completion.tokens) and kept.completion.finish != "error"
            if whole and not used and kept.round < number:
                free.setdefault((kept.item_id, _recalled(kept).text_id), []).append(kept)
        each = self.settings.per_item // len(conditionings)
        taken: dict[tuple[str, int], list[KeptRollout]] = {}
        for item in items:
            for place, conditioning in enumerate(_places(item, conditionings)):
                there = free.get((item.id, conditioning.text_id), [])
                # The newest first: the weights have moved least since.
                taken[item.id, place] = [there.pop() for _ in range(min(each, len(there)))]
        return taken

    def _same_task(self, one: int, other: int) -> bool:
        return self.stream.phase(one).task == self.stream.phase(other).task

    # -------------------------------------------------------------------------------------------------------- sampling

    def sample(
        self,
        number: int,
        items: Sequence[Item],
        conditionings: Sequence[Conditioning],
        taken: Mapping[tuple[str, int], Sequence[KeptRollout]],
    ) -> tuple[list[Request], list[tuple[Completion, ...]]]:
        """What is missing, sampled: requests and their completions."""
        each = self.settings.per_item // len(conditionings)
        places = [(item, place) for item in items for place in enumerate(_places(item, conditionings))]
        requests = [
            Request(
                prompt=item.prompt,
                conditioning=conditioning,
                seeds=tuple(
                    child_seed("rollout", self.seed, number, item.id, place * each + n)
                    for n in range(len(taken.get((item.id, place), ())), each)
                ),
            )
            for item, (place, conditioning) in places
        ]
        wanted = [(item, r) for (item, _), r in zip(places, requests, strict=True) if r.seeds]
        task = self.stream.tasks[self.stream.phase(number).task]
        about, asked = [item for item, _ in wanted], [request for _, request in wanted]
        answers = iter(sample_items(self.policy, task, about, asked, self.sampling) if asked else [])
        return requests, [next(answers) if request.seeds else () for request in requests]

    def grade(
        self,
        number: int,
        task: Task,
        items: Sequence[Item],
        requests: Sequence[Request],
        completions: Sequence[tuple[Completion, ...]],
        taken: Mapping[tuple[str, int], Sequence[KeptRollout]],
    ) -> Gathered:
        """The groups: graded rollouts, and the kept ones with the grades that they had."""
        result = Gathered(cost=sampling_cost([row for row in completions if row]))
        fresh = grade_rollouts(task, items, requests, completions)
        result.conditionings = {request.conditioning.id: request.conditioning for request in requests}
        places = len(requests) // len(items) if items else 0
        # Of an item's requests the first is under what is deployed.
        result.deployed = {
            item.id: request.conditioning.id for item, request in zip(items, requests[:: max(places, 1)], strict=True)
        }
        live = {request.conditioning.text_id: request.conditioning for request in requests}
        for group in fresh:
            again = [k for (item_id, _), rows in taken.items() if item_id == group.item.id for k in rows]
            result.conditionings |= {k.conditioning_id: _recalled(k, live) for k in again}
            old = tuple(_rollout(kept, number - kept.round) for kept in again)
            result.groups.append(Group(item=group.item, rollouts=old + group.rollouts))
            result.reused += len(old)
        result.sampled_groups = len(result.groups)
        result.dead_groups = sum(group.is_dead for group in result.groups)
        return result

    def replace_dead(
        self, number: int, task: Task, items: Sequence[Item], conditionings: Sequence[Conditioning], first: Gathered
    ) -> Gathered:
        """Dynamic sampling: groups of further training items until ``items`` groups are alive or the limit is reached.
        Where no group at all is alive the first batch stands, so that the round says so."""
        seen = {item.id for item in items}
        alive = [group for group in first.groups if not group.is_dead]
        result = first
        for batch in range(self.settings.dynamic):
            missing = self.settings.items - len(alive)
            others = [item for item in task.split("train") if item.id not in seen]
            if missing <= 0 or not others:
                break
            rng = child_rng("dynamic", self.seed, number, batch)
            more = rng.sample(others, min(len(others), self.settings.items))
            seen |= {item.id for item in more}
            requests, completions = self.sample(number, more, conditionings, {})
            found = self.grade(number, task, more, requests, completions, {})
            alive += [group for group in found.groups if not group.is_dead]
            result = Gathered(
                groups=first.groups,
                conditionings=first.conditionings | found.conditionings,
                deployed=first.deployed | found.deployed,
                cost=result.cost + found.cost,
                reused=first.reused,
                sampled_groups=result.sampled_groups + found.sampled_groups,
                dead_groups=result.dead_groups + found.dead_groups,
            )
        if self.settings.dynamic and alive:
            result.groups = alive[: self.settings.items]
        return result

    def evidence(self, number: int, gathered: Gathered) -> Evidence:
        phase = self.stream.phase(number)
        return Evidence(
            round=number,
            phase=phase.index,
            task=phase.task,
            groups=tuple(gathered.groups),
            conditionings=gathered.conditionings,
            sampling=self.sampling,
            deployed=gathered.deployed,
        )


def _places(item: Item, conditionings: Sequence[Conditioning]) -> list[Conditioning]:
    """What the item is rolled out under, with memory asked about it. A conditioning that shows the item with its
    answer, as an exemplar of an earlier round or a memory may, would teach to copy: in its place stands the first that
    does not, or no prompt at all."""
    asked = [c.for_item(item) for c in conditionings]
    clean = [c for c in asked if not _shows(c, item)]
    first = conditionings[0]
    instead = clean[0] if clean else replace(first, system=None, exemplars=(), notes=(), recall=(), recalled=())
    return [instead if _shows(c, item) else c for c in asked]


def _shows(conditioning: Conditioning, item: Item) -> bool:
    return any(question == item.prompt for question, _ in conditioning.exemplars)


def _recalled(kept: KeptRollout, live: Mapping[str, Conditioning] | None = None) -> Conditioning:
    """What the rollout was sampled under. Of its weights only the name is known here: they cannot be mounted. The
    changes that its shifts are made of, the memory beside the model and the experts mixed in are those of ``live``, by
    text id."""
    delta = Delta(kept.delta, "recalled", "", None) if kept.delta else None
    told = Conditioning(
        system=kept.system,
        exemplars=kept.exemplars,
        notes=kept.notes,
        recalled=kept.recalled,
        delta=delta,
        shifts=kept.shifts,
        soft=kept.soft,
        mixture=Delta(kept.mixture, "recalled", "", None) if kept.mixture else None,
    )
    same = (live or {}).get(told.text_id)
    return told if same is None else replace(told, shifts=same.shifts, soft=same.soft, mixture=same.mixture)


def _rollout(kept: KeptRollout, age: int) -> Rollout:
    return Rollout(
        item_id=kept.item_id,
        conditioning_id=kept.conditioning_id,
        seed=kept.seed,
        completion=kept.completion,
        grade=kept.grade,
        age=age,
    )
