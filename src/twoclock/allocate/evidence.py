"""The allocator that decides from evidence: each round it asks the channels whose learning is believed to be worth it.

What it holds (:mod:`~twoclock.allocate.beliefs` has the numbers):

- *What is solved is not paid for.* Nobody is asked while the reward that is missing is below ``worth``.
- *The fast clock goes first.* In a new regime (the run's first round, another task, a reward that fell) the fast
  channels search and the weights wait, until a search has changed what is deployed or ``patience`` searches in a row
  brought nothing. A lesson that a prompt can hold is thereby held by a prompt before any gradient sees it: what is
  written to weights first is wrong there when the world changes back. A search that brought nothing doubles the wait
  for the next.
- *The slow clock learns what is left.* It is asked where answers to one item differ in reward under what is deployed
  (``room_slow``), as a policy gradient has nothing to compare elsewhere; and for as long as a gain is still likely:
  the slope of the reward in its steps has a posterior, and where the best that it credibly brings within ``horizon``
  steps is below ``worth``, the weights are left alone, to be tried again after as long a pause.
- *What nobody can learn is not paid for.* Both rules end in pauses that double, and the trials of a regime share one
  chance of being taken in by luck.

Fast channels that roll nothing out (memories) cost nothing to ask: they are asked in every round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twoclock.allocate.beliefs import Beliefs, Searches, believe
from twoclock.allocate.plans import BudgetConfig, assign
from twoclock.allocate.signals import signals
from twoclock.types import Evidence, Plan, Timescale

__all__ = ["EvidenceAllocator", "EvidenceConfig"]


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig(BudgetConfig):
    worth: float = 0.03
    """A gain in mean reward below this is not worth paying for."""
    search_worth: float = 0.05
    """The least gain that is expected of a search (its chance times the reward that is missing) for it to be paid."""
    horizon: int = 32
    """Slow steps within which a gain counts."""
    patience: int = 2
    """Searches in a row without a change after which the slow clock is let in."""
    every: int = 4
    """Rounds from one search to the next, after a search that has changed something; beyond ``patience`` the wait
    doubles with each in a row that has not."""
    longest: int = 64
    """The longest pause of either clock, in rounds."""
    fall: float = 3.5
    """Standard errors by which the reward must fall for a new regime to begin."""
    steps: int = 12
    """Slow steps of a regime before its slope may end them."""
    alpha: float = 0.05
    """The chance that in a regime in which nothing has an effect any trial accepts a change."""
    credible: float = 1.645
    """Standard deviations of the slope's posterior that are given to the slow clock as the benefit of the doubt."""

    def _problems(self) -> list[str]:
        problems = super()._problems()
        problems += [
            f"{name} = {getattr(self, name)}: expected at least {least}"
            for name, least in (("horizon", 1), ("patience", 1), ("every", 1), ("longest", 1), ("steps", 2))
            if getattr(self, name) < least
        ]
        problems += [
            f"{name} = {getattr(self, name)}: expected a number above 0"
            for name in ("worth", "search_worth", "fall", "credible")
            if not getattr(self, name) > 0
        ]
        if not 0 < self.alpha < 1:
            problems.append(f"alpha = {self.alpha}: expected a chance between 0 and 1, such as 0.05")
        return problems


class EvidenceAllocator:
    """See the module."""

    def __init__(self, config: EvidenceConfig | None = None) -> None:
        self.config = config or EvidenceConfig()

    def plan(self, evidence: Evidence, channels: Mapping[str, Timescale], history: Sequence[Mapping[str, Any]]) -> Plan:
        beliefs = believe(history, evidence.task, signals(evidence), channels, errors=self.config.fall)
        asked: list[tuple[str, str]] = []
        passed: list[tuple[str, str]] = []
        for name, clock in channels.items():
            decide = self._fast if clock is Timescale.FAST else self._slow
            ask, reason = decide(name, beliefs, channels)
            (asked if ask else passed).append((name, reason))
        alphas = {
            name: self._alpha(beliefs.searches.get(name, Searches()).lost)
            for name, clock in channels.items()
            if clock is Timescale.FAST
        }
        return Plan(assignments=assign(self.config, channels, asked, alphas), passed=tuple(sorted(passed)))

    def _alpha(self, lost: int) -> float:
        """The chance that the next trial is held to: ``alpha`` divided so that the shares of all trials that could
        follow add up to it, Σ 6 / (π k)² = 1. A won trial begins anew, as a discovery pays for further ones."""
        return self.config.alpha * 6 / (math.pi * (1 + lost)) ** 2

    # -------------------------------------------------------------------------------------------------- the two clocks

    def _fast(self, name: str, beliefs: Beliefs, channels: Mapping[str, Timescale]) -> tuple[bool, str]:
        found = beliefs.searches.get(name, Searches())
        if found.free:
            return True, "it learns from the round's own rollouts"
        missing = 1.0 if beliefs.reward is None else 1 - beliefs.reward
        if missing < self.config.worth:
            return False, f"solved: {missing:.3f} of the reward is missing, worth is {self.config.worth:g}"
        if found.chance * missing < self.config.search_worth:
            return False, f"too little to find: {missing:.2f} is missing, chance {found.chance:.2f} that a search helps"
        if found.since is None:
            told = f"first search since {beliefs.why} (round {beliefs.start})"
            return True, f"{told}, {missing:.2f} of the reward is missing"
        wait = self._wait(found)
        if found.since < wait:
            kind = f"{found.barren} searches in a row changed nothing" if found.barren else "a search has just paid"
            return False, f"waiting: {kind}, {found.since} of {wait} rounds over"
        return True, f"{found.since} rounds since the last search, chance {found.chance:.2f} of {missing:.2f} missing"

    def _wait(self, found: Searches) -> int:
        """Rounds from the last search to the next: none but one while the weights wait for this channel, then the usual
        time, doubled with each search in vain beyond ``patience``."""
        if 0 < found.barren < self.config.patience:
            return 1
        return self._pause(self.config.every, max(0, found.barren - self.config.patience + 1))

    def _slow(self, name: str, beliefs: Beliefs, channels: Mapping[str, Timescale]) -> tuple[bool, str]:
        room, reward = beliefs.room_slow, beliefs.reward
        if reward is not None and 1 - reward < self.config.worth:
            return False, f"solved: {1 - reward:.3f} of the reward is missing, worth is {self.config.worth:g}"
        if room is not None and room < self.config.worth / 2:
            return False, f"no gradient: {room:.3f} of the reward is missing where answers to one item differ"
        if waiting := self._waits_for(beliefs, channels):
            return False, f"the fast clock goes first: {beliefs.why}, and '{waiting}' has not settled"
        return self._progress(beliefs, room)

    def _waits_for(self, beliefs: Beliefs, channels: Mapping[str, Timescale]) -> str | None:
        """The fast channel that a search is still expected of, in a regime that has just begun."""
        for name, clock in channels.items():
            found = beliefs.searches.get(name, Searches())
            searching = clock is Timescale.FAST and name != "null" and not found.free
            missing = 1.0 if beliefs.reward is None else 1 - beliefs.reward
            open_to = found.barren < self.config.patience and found.chance * missing >= self.config.search_worth
            if searching and not beliefs.settled(name) and open_to:
                return name
        return None

    def _progress(self, beliefs: Beliefs, room: float | None) -> tuple[bool, str]:
        """Whether a gain is still likely."""
        config = self.config
        room = 0.5 if room is None else room
        told = f"{room:.2f} of the reward is missing where answers differ"
        if beliefs.taken_back:
            pause = self._pause(config.steps, beliefs.taken_back)
            if beliefs.since_taken_back < pause:
                return False, f"its last version was taken back; {beliefs.since_taken_back} of {pause} rounds over"
        if beliefs.slope.steps < config.steps:
            return True, told
        # Before anything is seen: half the room within the horizon, give or take as much.
        prior = max(room, 2 * config.worth) / 2 / config.horizon
        mean, deviation = beliefs.slope.posterior(prior, prior)
        best = (mean + config.credible * deviation) * config.horizon
        if best >= config.worth:
            return True, f"{told}; {mean * config.horizon:+.2f} expected of {config.horizon} steps"
        pause = min(config.longest, 2 * beliefs.slope.steps)
        over = beliefs.rounds - beliefs.slope.steps
        if over and over % pause == 0:
            return True, f"tried again after {pause} rounds"
        return (
            False,
            f"no progress: at best {best:+.3f} within {config.horizon} steps, after {beliefs.slope.steps} of them",
        )

    def _pause(self, first: int, times: int) -> int:
        return int(min(self.config.longest, first * 2 ** min(times, 16)))
