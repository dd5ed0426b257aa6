"""What an allocator believes of a stretch in which nothing outside has changed, folded from the history alone.

A *regime* is such a stretch: it ends where the task changes, and where the reward of what is deployed falls by more
than chance allows. Inside it one keeps, of each fast channel, how its searches ended, and of the slow clock, how the
reward moved with its steps while the fast state stood still.

The slope of the reward in slow steps is estimated inside *segments* between two changes of what is deployed by the
fast clock, each with a level of its own: what a better prompt brings is not the weights' merit. With the rounds' own
standard errors the least-squares slope over all segments is normal, and so is its posterior under the prior of
:func:`Slope.posterior`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twoclock.allocate.plans import learns_for_free
from twoclock.types import Timescale

__all__ = ["Beliefs", "Searches", "Slope", "believe", "fell"]

RECENT = 4
"""Rounds that the level before a fall is taken from."""
LEAST_FALL = 0.1
"""A fall of the mean reward by less than this is none, however sure."""


@dataclass(frozen=True, kw_only=True)
class Searches:
    """How a fast channel's proposals ended in this regime."""

    asked: int = 0
    changed: int = 0
    """Those that changed what is deployed."""
    gain: float = 0.0
    """The sum of the gains that trials measured of those."""
    barren: int = 0
    """How many in a row, up to now, changed nothing."""
    lost: int = 0
    """Trials in a row that were lost, up to now: each was a chance to be taken in by luck."""
    since: int | None = None
    """Rounds since the last one; None where there was none."""
    cost: float = 0.0
    """Tokens, all proposals together."""
    free: bool = False
    """Whether the channel never rolls anything out: it learns from what the round saw, as a memory does."""

    @property
    def chance(self) -> float:
        """The chance that the next one changes something: the mean of Beta(1 + changed, 1 + asked − changed), which
        begins at one half."""
        return (1 + self.changed) / (2 + self.asked)


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Sums for the least-squares slope of the reward in slow steps; see the module."""

    steps: int = 0
    precision: float = 0.0
    """Σ w (x − x̄)², over segments with their own means, w the inverse variance of a round's mean reward."""
    product: float = 0.0
    """Σ w (x − x̄)(y − ȳ)."""

    def posterior(self, mean: float, deviation: float) -> tuple[float, float]:
        """Mean and standard deviation of the slope, reward a step, given a normal prior."""
        prior = 1 / deviation**2
        total = prior + self.precision
        return (prior * mean + self.product) / total, 1 / math.sqrt(total)


@dataclass(frozen=True, kw_only=True)
class Beliefs:
    """What is believed before a round's proposals are asked for."""

    start: int
    """The round that the regime began with."""
    why: str
    rounds: int
    """Past rounds of the regime; the one at hand is not counted."""
    reward: float | None
    """The deployed state's, in the round at hand; None where it is not known."""
    room_slow: float | None
    """The mean of the last rounds."""
    searches: Mapping[str, Searches] = field(default_factory=dict)
    slope: Slope = field(default_factory=Slope)
    changed_outside: bool = False
    """Whether the regime began with a fall of the reward, and not with the run or a task's name."""
    taken_back: int = 0
    """Slow versions that were taken back in this regime."""
    since_taken_back: int = 0
    """Rounds since the last of them."""

    def settled(self, channel: str) -> bool:
        """Whether the fast channel has changed what is deployed since the regime began."""
        return self.searches.get(channel, Searches()).changed > 0


def fell(level: float, level_error: float, now: float, now_error: float, errors: float) -> bool:
    """Whether a mean reward of ``now`` lies below ``level`` by more than ``errors`` standard errors of the
    difference."""
    return level - now > max(LEAST_FALL, errors * math.hypot(level_error, now_error))


def believe(
    history: Sequence[Mapping[str, Any]],
    task: str,
    now: Mapping[str, float],
    channels: Mapping[str, Timescale],
    *,
    errors: float = 3.5,
) -> Beliefs:
    """Beliefs before the round that ``now`` are the signals of, on ``task``."""
    start, why, outside = _regime(history, task, now, errors)
    rows = history[start:]
    fast = [name for name, clock in channels.items() if clock is Timescale.FAST]
    slow = {name for name, clock in channels.items() if clock is Timescale.SLOW}
    rooms = [r for r in ([row.get("signals", {}) for row in rows[-2:]] + [now]) if "room_slow" in r]
    taken = [i for i, row in enumerate(rows) if slow & set(row.get("taken_back", ()))]
    return Beliefs(
        start=rows[0]["round"] if rows else (history[-1]["round"] + 1 if history else 1),
        why=why,
        rounds=len(rows),
        reward=now.get("deployed"),
        room_slow=math.fsum(r["room_slow"] for r in rooms) / len(rooms) if rooms else None,
        searches={name: replace(_searches(name, rows), free=learns_for_free(name, history)) for name in fast},
        slope=_slope(rows, now, set(fast), slow),
        changed_outside=outside,
        taken_back=len(taken),
        since_taken_back=len(rows) - taken[-1] if taken else 0,
    )


def _regime(
    history: Sequence[Mapping[str, Any]], task: str, now: Mapping[str, float], errors: float
) -> tuple[int, str, bool]:
    """Where in the history the regime at hand begins, why, and whether by a fall that nothing announced."""
    start, why, outside = 0, "the run begins", False
    rounds = [*((row.get("task", task), row.get("signals", {})) for row in history), (task, now)]
    level: list[tuple[float, float]] = []
    for place, (name, found) in enumerate(rounds):
        if place and name != rounds[place - 1][0]:
            start, why, outside, level = place, f"the task changed to '{name}'", False, []
        if "deployed" not in found:
            continue
        reward, error = found["deployed"], found.get("deployed_se", 0.0)
        if len(level) >= 2:
            recent = level[-RECENT:]
            before = math.fsum(r for r, _ in recent) / len(recent)
            of_it = math.sqrt(math.fsum(e * e for _, e in recent)) / len(recent)
            if fell(before, of_it, reward, error, errors):
                start, outside, level = place, True, []
                why = f"the reward fell from {before:.2f} to {reward:.2f}"
        level.append((reward, error))
    return start, why, outside


def _searches(name: str, rows: Sequence[Mapping[str, Any]]) -> Searches:
    asked = changed = barren = lost = 0
    gain = cost = 0.0
    since = None
    for place, row in enumerate(rows):
        outcome = row.get("outcomes", {}).get(name)
        if outcome is None and name not in row["proposed"]:
            continue
        outcome = outcome or {}
        metrics = outcome.get("metrics", {})
        asked, since = asked + 1, len(rows) - place
        cost += outcome.get("tokens", 0)
        if outcome.get("action") == "commit" and _changes(metrics):
            changed, barren, lost, gain = changed + 1, 0, 0, gain + max(0.0, metrics.get("trial_gain", 0.0))
        else:
            barren, lost = barren + 1, lost + ("trial_p" in metrics)
    return Searches(asked=asked, changed=changed, gain=gain, barren=barren, lost=lost, since=since, cost=cost)


def _changes(metrics: Mapping[str, float]) -> bool:
    """Whether a committed proposal changed what is deployed, as the loop has noted it: a pool that was kept beside a
    refused change has not."""
    return metrics.get("changes_deployed", 1.0) > 0


def _slope(rows: Sequence[Mapping[str, Any]], now: Mapping[str, float], fast: set[str], slow: set[str]) -> Slope:
    precision = product = 0.0
    steps = 0
    for segment in _segments(rows, now, fast, slow):
        weight = math.fsum(w for _, _, w in segment)
        if weight <= 0:
            continue
        x0 = math.fsum(w * x for x, _, w in segment) / weight
        y0 = math.fsum(w * y for _, y, w in segment) / weight
        precision += math.fsum(w * (x - x0) ** 2 for x, _, w in segment)
        product += math.fsum(w * (x - x0) * (y - y0) for x, y, w in segment)
        steps += round(segment[-1][0] - segment[0][0])
    return Slope(steps=steps, precision=precision, product=product)


def _segments(
    rows: Sequence[Mapping[str, Any]], now: Mapping[str, float], fast: set[str], slow: set[str]
) -> Iterator[list[tuple[float, float, float]]]:
    """(slow steps so far, reward, inverse variance) of the rounds between two changes by the fast clock."""
    segment: list[tuple[float, float, float]] = []
    steps = 0
    for row in [*rows, {"signals": now, "outcomes": {}}]:
        found = row.get("signals", {})
        if "deployed" in found:
            segment.append((steps, found["deployed"], 1 / max(found.get("deployed_se", 0.0), 1e-3) ** 2))
        outcomes = row.get("outcomes", {})
        steps += any(outcomes[name].get("action") == "commit" for name in slow & outcomes.keys())
        moved = [name for name in fast & outcomes.keys() if outcomes[name].get("action") == "commit"]
        back = set(row.get("taken_back", ())) & (fast | slow)
        if back or any(_changes(outcomes[name].get("metrics", {})) for name in moved):
            if segment:
                yield segment
            segment = []
    if segment:
        yield segment
