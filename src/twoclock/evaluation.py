"""Measuring a policy under given conditionings: held-out scores by cell, and drift. Changes nothing.

Held-out items, seeds and prompts are functions of the run's seed alone, so two evaluations of the same conditioning
give the same numbers, and two conditionings are compared on the same items with the same random numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

from twoclock.bench import grade_rollouts, sample_items, sampling_cost
from twoclock.contracts import Channel, Policy, Task, Trainable
from twoclock.errors import ConfigError, UnsupportedError
from twoclock.seeding import child_rng, child_seed
from twoclock.types import Conditioning, Cost, DriftRecord, Evaluation, Item, Request, Sampling, Timescale

__all__ = ["CELLS", "Cell", "EvaluationSettings", "Evaluator", "conditioning_of", "conditionings_of", "general_prompts"]

Cell = tuple[Literal["base", "live"], Literal["none", "learned"]]
CELLS: tuple[Cell, ...] = (("base", "none"), ("base", "learned"), ("live", "none"), ("live", "learned"))


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How much is measured."""

    heldout_items: int = 120
    """Held-out items a task and cell."""
    samples: int = 1
    """Rollouts an item, at the training temperature."""
    every: int = 0
    """Rounds from one evaluation of all tasks to the next, beside those at the ends of phases. 0: none."""
    drift_every: int = 4
    """Rounds from one drift measurement to the next; the last round of a phase is always measured. 0: never."""
    drift_prompts: int = 12
    """Prompts of each set."""
    drift_tokens: int = 24
    """Tokens of continuation that drift is averaged over."""
    gate_prompts: int = 6
    """General prompts on which the slow gate holds each proposal to its drift budget: few, as it does so each round."""
    gate_tokens: int = 12
    """Tokens of their continuations."""

    def __post_init__(self) -> None:
        problems = [
            f"measure.{name} = {getattr(self, name)}: expected at least {least}"
            for name, least in (
                ("heldout_items", 2),
                ("samples", 1),
                ("every", 0),
                ("drift_every", 0),
                ("drift_prompts", 2),
                ("drift_tokens", 1),
                ("gate_prompts", 1),
                ("gate_tokens", 1),
            )
            if getattr(self, name) < least
        ]
        if problems:
            raise ConfigError(problems)


def general_prompts() -> tuple[str, ...]:
    """The packaged set of general prompts, one a line; part of the measurement's definition, so it never changes."""
    text = resources.files("twoclock").joinpath("data/general_prompts.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())


def conditioning_of(
    channels: Mapping[str, Channel[Any]], states: Mapping[str, Any], task: str, cell: Cell = ("live", "learned")
) -> Conditioning:
    """What the channels do together: slow ones where weights are 'live', fast ones where the prompt is 'learned'."""
    joined = Conditioning()
    for name, channel in channels.items():
        slow = channel.timescale is Timescale.SLOW
        if (cell[0] if slow else cell[1]) in ("live", "learned"):
            joined = joined.join(channel.condition(states[name], task))
    return joined


def conditionings_of(
    channels: Mapping[str, Channel[Any]], states: Mapping[str, Any], tasks: Sequence[str], cells: Sequence[Cell]
) -> dict[str, Conditioning]:
    """What is measured in these cells, by id: for the ledger, so that an evaluation's conditioning has a text."""
    found = [conditioning_of(channels, states, task, cell) for task in tasks for cell in cells]
    return {c.id: c for c in found}


class Evaluator:
    """Measures one policy on a run's tasks."""

    def __init__(
        self, policy: Policy, tasks: Mapping[str, Task], settings: EvaluationSettings, sampling: Sampling, seed: int
    ) -> None:
        self.policy, self.tasks, self.settings = policy, tasks, settings
        self.sampling, self.seed = sampling, seed
        self._base_drafts: dict[str, list[tuple[int, ...]]] = {}

    def heldout(self, task: str) -> tuple[Item, ...]:
        pool = self.tasks[task].split("heldout")
        return tuple(child_rng("heldout", self.seed, task).sample(pool, min(self.settings.heldout_items, len(pool))))

    def cell(self, round: int, task: str, cell: Cell, conditioning: Conditioning, purpose: str) -> Evaluation:
        """The held-out scores of one cell."""
        started = time.perf_counter()
        items = self.heldout(task)
        requests = [
            Request(
                prompt=item.prompt,
                conditioning=conditioning.for_item(item),
                seeds=tuple(child_seed("evaluate", self.seed, task, item.id, n) for n in range(self.settings.samples)),
            )
            for item in items
        ]
        completions = sample_items(self.policy, self.tasks[task], items, requests, self.sampling)
        groups = grade_rollouts(self.tasks[task], items, requests, completions)
        cost = replace(sampling_cost(completions), seconds=time.perf_counter() - started)
        return Evaluation(
            round=round,
            task=task,
            weights=cell[0],
            prompt=cell[1],
            item_ids=tuple(g.item.id for g in groups),
            rewards=tuple(g.mean_reward for g in groups),
            samples=self.settings.samples,
            conditioning_id=conditioning.id,
            cost=cost,
            purpose=purpose,
        )

    def cells(
        self,
        round: int,
        channels: Mapping[str, Channel[Any]],
        states: Mapping[str, Any],
        *,
        tasks: Sequence[str],
        cells: Sequence[Cell],
        purpose: str,
        known: Sequence[Evaluation] = (),
        progress: Callable[[str], None] | None = None,
    ) -> list[Evaluation]:
        """The cells of each task. Cells with the same conditioning are one measurement; ``known`` ones, of the same
        items and sampling, count as measured: a conditioning's id covers the weights, so none can be stale."""
        done = {(e.task, e.conditioning_id): e for e in known}
        result = []
        for task in tasks:
            for cell in cells:
                conditioning = conditioning_of(channels, states, task, cell)
                found = done.get((task, conditioning.id))
                if found is None:
                    if progress:
                        progress(
                            f"evaluating {task}: {cell[0]} weights, {'no' if cell[1] == 'none' else cell[1]} prompt"
                        )
                    found = self.cell(round, task, cell, conditioning, purpose)
                    done[task, conditioning.id] = found
                else:
                    found = replace(found, round=round, weights=cell[0], prompt=cell[1], purpose=purpose, cost=Cost())
                result.append(found)
        return result

    def drift(self, round: int, weights: Conditioning, tasks: Sequence[str]) -> list[DriftRecord]:
        """KL between the weights of ``weights`` and the base, both directions, without any prompt conditioning.

        Empty for a policy that cannot be scored. Each direction runs along continuations sampled from its own first
        argument, exact over the vocabulary at each place.
        """
        if not isinstance(self.policy, Trainable):
            return []
        live = Conditioning(delta=weights.delta)
        count = self.settings.drift_prompts
        sets = {"general": list(general_prompts()[:count])}
        for task in tasks:
            sets[f"task:{task}"] = [item.prompt for item in self.heldout(task)[:count]]
        tokens = self.settings.drift_tokens
        return [self._drift_on(round, name, prompts, tokens, live, self.policy)[0] for name, prompts in sets.items()]

    def gate_drift(self, weights: Conditioning) -> tuple[float, float, Cost]:
        """(KL(live‖base), KL(base‖live)) on a few general prompts, what a slow gate holds a proposal to, and what it
        cost. The base's continuations are made once and charged to nobody: a resumed run charges the same."""
        if not isinstance(self.policy, Trainable):
            raise UnsupportedError(f"the policy '{self.policy.card.name}' cannot be scored, so drift has no value")
        prompts = list(general_prompts()[: self.settings.gate_prompts])
        live = Conditioning(delta=weights.delta)
        record, cost = self._drift_on(0, "gate", prompts, self.settings.gate_tokens, live, self.policy)
        return record.live_base, record.base_live, cost

    def _drift_on(
        self, round: int, name: str, prompts: Sequence[str], tokens: int, live: Conditioning, model: Trainable
    ) -> tuple[DriftRecord, Cost]:
        """The record, and what sampling the live model's continuations cost."""
        if name not in self._base_drafts:
            self._base_drafts[name], _ = self._continuations(name, prompts, tokens, Conditioning())
        base_drafts = self._base_drafts[name]
        # Identity needs no sampling: the base drafts are the live ones, and each KL is exactly 0.
        same = (base_drafts, Cost())
        live_drafts, cost = same if live.is_identity else self._continuations(name, prompts, tokens, live)
        forward = model.exact_kl(prompts, live_drafts, live, Conditioning())
        backward = model.exact_kl(prompts, base_drafts, Conditioning(), live)
        record = DriftRecord(
            round=round,
            prompts=name,
            live_base=sum(forward) / len(forward),
            base_live=sum(backward) / len(backward),
            per_prompt_live_base=tuple(forward),
            per_prompt_base_live=tuple(backward),
            tokens=sum(len(d) for d in live_drafts) + sum(len(d) for d in base_drafts),
        )
        return record, cost

    def _continuations(
        self, name: str, prompts: Sequence[str], tokens: int, who: Conditioning
    ) -> tuple[list[tuple[int, ...]], Cost]:
        requests = [
            Request(prompt=p, conditioning=who, seeds=(child_seed("drift", self.seed, name, i),))
            for i, p in enumerate(prompts)
        ]
        plain = Sampling(max_new_tokens=tokens)
        completions = self.policy.sample(requests, plain)
        return [row[0].tokens for row in completions], sampling_cost(completions)
