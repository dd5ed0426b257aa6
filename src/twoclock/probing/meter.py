"""Counting what a probe samples, reads and trains, and stopping it before it samples beyond its budget."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from twoclock.bench import sampling_cost
from twoclock.contracts import Policy
from twoclock.errors import TwoclockError
from twoclock.types import Completion, Cost, Request, Sampling

__all__ = ["Meter", "OutOfBudgetError"]


class OutOfBudgetError(TwoclockError):
    """The next call would pass the budget. No BudgetError: the loop takes that for a channel's decline and goes on."""


class Meter:
    """Counts every rollout of the policies that it is attached to, a training loop's and its channels' included."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.spent = Cost()

    @property
    def left(self) -> int | None:
        """None is no limit."""
        return None if self.budget is None else self.budget - self.spent.rollouts

    def fits(self, rollouts: int) -> bool:
        return self.left is None or rollouts <= self.left

    def require(self, rollouts: int) -> None:
        """OutOfBudgetError unless so many are left."""
        if not self.fits(rollouts):
            raise OutOfBudgetError(f"{rollouts} rollouts were asked for and {self.left} are left of {self.budget}")

    def add(self, cost: Cost) -> None:
        """Counts what was done beside sampling, such as reading completions to score them, or optimizer steps."""
        self.spent += replace(cost, rollouts=0)

    def attach(self, policy: Policy) -> Policy:
        """The same policy with its sampling counted. A shallow copy, so that whatever else the policy can do, a local
        model's scoring and training for one, is there unchanged, and the given one is left as it was."""
        counted, sample = copy.copy(policy), policy.sample

        def metered(requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
            asked = sum(len(request.seeds) for request in requests)
            self.require(asked)
            started = time.perf_counter()
            completions = sample(requests, sampling)
            self.spent += replace(sampling_cost(completions), seconds=time.perf_counter() - started)
            return completions

        shadow: Any = counted
        shadow.sample = metered
        return counted
