"""Watching a write after it was made: what its rounds say of it, and taking it back where it did harm.

A gate judges once. What a write does shows in every round after it, for nothing: of a fast write in groups that hold
rollouts under what was deployed before it (the *anchor*) beside those under what is deployed now; of a slow one by
weighing. A rollout y of an item, drawn from the live weights, tells what the anchor's would have earned when it counts
w(y) = π_anchor(y) / π_live(y) times:

    E_live[(r − b)(1 − w)]  =  J(live) − J(anchor),

with b the mean reward of the *other* rollouts of the item under the same prompt, which are independent of y; w is cut
at ``MOST_WEIGHT``. If rewards have nothing to do with the answers the left side is exactly 0, cut or not. Where all
rewards are alike nothing is told and nothing counted. So one number an item, prompt and round; they are compared with 0
by a confidence sequence, which holds at every look (asymptotically: Waudby-Smith et al., arXiv:2103.06476, Theorem
2.2). Below 0: the write is taken back. Above 0: it is proven, and the next change has the live state as its anchor. A
slow version that is not proven within ``probation`` rounds is taken back as well.

Weights are shared by tasks, so they have sentinels too: a few trial items of each earlier task, answered under the
live weights and under those with which the task was last up, every ``sentinel_every`` rounds. What was learned since
is given up where the task has lost by it: its prompts and memories stay.

What was counted stands among the round's metrics, so that a resumed run goes on with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twoclock.bench import Bench
from twoclock.contracts import Channel, Policy, Population, Remembering, Task, Trainable
from twoclock.errors import ConfigError, StoreError
from twoclock.evaluation import conditioning_of
from twoclock.seeding import child_seed
from twoclock.store import RunStore
from twoclock.types import Conditioning, Cost, Delta, Evidence, Phase, Rollout, Sampling, Timescale

__all__ = ["TakenBack", "Watch", "WatchSettings", "Watcher", "bounds", "weighed_differences"]

MOST_WEIGHT = 4.0
PLANNED = 64
"""The number of differences at which the confidence sequence is at its narrowest."""
ANY_TASK = "*"
WEIGHED: Mapping[str, Any] = {"least": 32, "ends": 0.0}


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """What is watched, and what is done about it."""

    fast: bool = False
    """Fast channels with alternatives that hold no memory (a memory credits each entry by itself): a group then holds
    the prompt from before the last change, which takes one of its ``prompts_per_item`` places."""
    slow: bool = False
    """Slow channels, by weighing each round's rollouts: one more forward pass over them."""
    alpha: float = 0.05
    """The chance, over all looks together, that a write that does nothing is taken for harmful."""
    probation: int = 0
    """Rounds after which a slow version that nothing speaks for is taken back; 0: it stays."""
    sentinel_items: int = 0
    """Trial items of each earlier task that watch over the weights; 0: none."""
    sentinel_every: int = 6
    """Rounds from one look at the sentinels to the next; they are also looked at before a version counts as proven,
    and when a task returns, that task's own among them."""
    sentinel_margin: float = 0.1
    """A loss of mean reward on a sentinel below this is let pass."""

    def __post_init__(self) -> None:
        problems = [
            f"watch.{name} = {getattr(self, name)}: expected at least {least}"
            for name, least in (("probation", 0), ("sentinel_items", 0), ("sentinel_every", 1), ("sentinel_margin", 0))
            if not getattr(self, name) >= least
        ]
        if not 0 < self.alpha < 1:
            problems.append(f"watch.alpha = {self.alpha}: expected a chance between 0 and 1, such as 0.05")
        if self.probation and not self.slow:
            problems.append(f"watch.probation = {self.probation} is for slow versions: set watch.slow = true as well")
        if self.sentinel_items and not self.slow:
            problems.append(
                f"watch.sentinel_items = {self.sentinel_items} guards slow versions: set watch.slow = true as well"
            )
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What was counted of one write: sums of differences, live minus anchor."""

    since: int
    """The round that made the first change that is watched; its anchor is what the round before left behind."""
    rounds: int = 0
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, differences: Sequence[float]) -> Watch:
        return replace(
            self,
            rounds=self.rounds + 1,
            count=self.count + len(differences),
            total=self.total + math.fsum(differences),
            squares=self.squares + math.fsum(d * d for d in differences),
        )

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True, kw_only=True)
class TakenBack:
    """One channel's return to an earlier state."""

    state: Any
    cause: str
    reason: str
    metrics: Mapping[str, float]


def bounds(watch: Watch, alpha: float, *, least: int = 2, ends: float = 1.0) -> tuple[float, float]:
    """The interval of the mean difference that holds at every look together with probability 1 − ``alpha``; infinite
    below ``least`` differences. The variance is the sample's with one difference of ±``ends`` more at each end, without
    which a few equal ones would be a certainty; weighed differences have no natural ends, so they take none and more of
    them."""
    n = watch.count
    if n < max(2, least):
        return -math.inf, math.inf
    more = 2 if ends else 0
    variance = (watch.squares + more * ends**2) / (n + more) - (watch.total / (n + more)) ** 2
    level = -2 * math.log(alpha)
    rho = (level + math.log(level) + 1) / PLANNED
    wide = n * rho + 1
    half = math.sqrt(variance * 2 * wide / (n * n * rho) * math.log(math.sqrt(wide) / alpha))
    return watch.mean - half, watch.mean + half


class Watcher:
    """Keeps the watches of a run. Holds nothing that the ledger does not say."""

    def __init__(
        self,
        store: RunStore,
        policy: Policy,
        channels: Mapping[str, Channel[Any]],
        tasks: Mapping[str, Task],
        settings: WatchSettings,
        sampling: Sampling,
        seed: int,
    ) -> None:
        self.store, self.policy, self.channels, self.tasks = store, policy, channels, tasks
        self.settings, self.sampling, self.seed = settings, sampling, seed
        self._open: dict[tuple[str, str], Watch] | None = None
        self._anchors: dict[tuple[str, int], Any] = {}
        self._spent = Cost()

    def forget(self) -> None:
        """Ends every watch: states have changed between rounds."""
        self._open, self._anchors = None, {}

    def watched(self, name: str) -> bool:
        """Whether the channel's writes are watched at all."""
        channel = self.channels[name]
        if channel.timescale is Timescale.SLOW:
            return self.settings.slow
        return self.settings.fast and isinstance(channel, Population) and not isinstance(channel, Remembering)

    @property
    def open(self) -> Mapping[tuple[str, str], Watch]:
        """The watches that are under way, by channel and task (``*`` for weights)."""
        return dict(self._watches())

    def anchors(self, task: str) -> dict[str, Conditioning]:
        """By fast channel, what it said on the task before the writes that are being watched."""
        if not self.settings.fast:
            return {}
        found = {}
        for (name, told), watch in self._watches().items():
            if told == task and (state := self._anchor(name, watch.since)) is not None:
                found[name] = self.channels[name].condition(state, task)
        return found

    # --------------------------------------------------------------------------------------------------------- looking

    def look(self, number: int, phase: Phase, evidence: Evidence, states: Mapping[str, Any]) -> dict[str, TakenBack]:
        """What the round says of the watched writes; returns the channels to be taken back."""
        back: dict[str, TakenBack] = {}
        self._spent = Cost()
        watches = self._watches()
        for name, channel in self.channels.items():
            slow = channel.timescale is Timescale.SLOW
            key = (name, ANY_TASK if slow else evidence.task)
            if not self.watched(name) or key not in watches:
                continue
            anchor = self._anchor(name, watches[key].since)
            if anchor is None:
                del watches[key]
                continue
            differences = (
                self._slow_differences(channel, states[name], anchor, evidence)
                if slow
                else _fast_differences(channel.condition(anchor, evidence.task), evidence)
            )
            watches[key] = watch = watches[key].add(differences)
            low, high = bounds(watch, self.settings.alpha, **(WEIGHED if slow else {}))
            numbers = {"watch_mean": watch.mean, "watch_count": float(watch.count), "watch_rounds": float(watch.rounds)}
            told = (
                f"{watch.mean:+.3f} [{low:.3f}, {high:.3f}] of reward against the state before round {watch.since}, "
                f"{watch.count} comparisons in {watch.rounds} rounds"
            )
            taken: TakenBack | None = None
            if high < 0:
                taken = TakenBack(state=anchor, cause="its effect is negative", reason=told, metrics=numbers)
            elif (
                slow
                # What is proven on the task at hand is to be proven harmless elsewhere before it becomes an anchor.
                and (low > 0 or number % self.settings.sentinel_every == 0 or self._returned(number, phase))
                and (broken := self._sentinels(number, phase, channel, states))
            ):
                taken = broken
            elif low > 0:
                del watches[key]
            elif slow and self.settings.probation and watch.rounds >= self.settings.probation:
                cause = f"nothing spoke for it within {self.settings.probation} rounds"
                taken = TakenBack(state=anchor, cause=cause, reason=told, metrics=numbers)
            if taken:
                back[name] = taken
                del watches[key]
        return back

    def committed(
        self, number: int, task: str, before: Mapping[str, Any], after: Mapping[str, Any], back: Mapping[str, TakenBack]
    ) -> dict[str, float]:
        """Opens the watches of what the round has changed; returns what is kept of all of them as metrics."""
        watches = self._watches()
        for name, channel in self.channels.items():
            if not self.watched(name) or name in back:
                continue
            slow = channel.timescale is Timescale.SLOW
            key = (name, ANY_TASK if slow else task)
            if channel.condition(before[name], task).id == channel.condition(after[name], task).id:
                continue
            if key not in watches:
                watches[key] = Watch(since=number)
                self._anchors[name, number] = before[name]
            elif not slow:
                anchor = self._anchor(name, watches[key].since)
                returned = anchor is not None and (
                    channel.condition(anchor, task).id == channel.condition(after[name], task).id
                )
                if returned:
                    del watches[key]
                else:  # another prompt, counted anew against the same anchor
                    watches[key] = Watch(since=watches[key].since)
        spent = {"watch_rollouts": float(self._spent.rollouts), "watch_tokens": float(self._spent.tokens)}
        return {
            **(spent if self._spent.rollouts else {}),
            **{
                f"watch:{name}:{told}:{part}": float(getattr(watch, part))
                for (name, told), watch in watches.items()
                for part in ("since", "rounds", "count", "total", "squares")
            },
        }

    # ------------------------------------------------------------------------------------------------------ its parts

    def _watches(self) -> dict[tuple[str, str], Watch]:
        if self._open is None:
            self._open = {}
            rounds = self.store.rounds() if self.settings.fast or self.settings.slow else []
            last = max((e.round for e in self.store.entries() if e.is_by_hand), default=-1)
            if (
                rounds and rounds[-1].round > last
            ):  # what was counted before a change between rounds belongs to another history
                parts: dict[tuple[str, str], dict[str, float]] = {}
                for name, value in rounds[-1].metrics.items():
                    if name.startswith("watch:"):
                        _, channel, rest = name.split(":", 2)
                        task, part = rest.rsplit(":", 1)
                        parts.setdefault((channel, task), {})[part] = value
                whole = ("since", "rounds", "count")
                self._open = {
                    key: Watch(**{part: int(v) if part in whole else v for part, v in found.items()})  # type: ignore[arg-type]
                    for key, found in parts.items()
                    if key[0] in self.channels
                }
        return self._open

    def _anchor(self, name: str, since: int) -> Any:
        """The channel's state before that round; None where the ledger no longer has it."""
        if (name, since) not in self._anchors:
            try:
                digest = self.store.snapshot_at(since - 1).states[name]
                self._anchors[name, since] = self.channels[name].load(self.store.get_blob(digest))
            except StoreError:  # thinned
                self._anchors[name, since] = None
        return self._anchors[name, since]

    def _slow_differences(self, channel: Channel[Any], live: Any, anchor: Any, evidence: Evidence) -> list[float]:
        if not isinstance(self.policy, Trainable):
            return []
        now, then = (channel.condition(state, evidence.task).delta for state in (live, anchor))
        return weighed_differences(self.policy, evidence, now, then)

    def _sentinels(
        self, number: int, phase: Phase, channel: Channel[Any], states: Mapping[str, Any]
    ) -> TakenBack | None:
        """A return to the weights as they were when an earlier task was last up, where that task has lost since, by a
        paired test at ``alpha``."""
        from twoclock.measure.statistics import paired_permutation_p

        settings = self.settings
        if not settings.sentinel_items:
            return None
        for task, last in self._earlier(number, phase).items():
            then = self._anchor(channel.name, last + 1)
            sides = [
                conditioning_of(self.channels, {**states, channel.name: state}, task, ("live", "learned"))
                for state in (then, states[channel.name])
            ]
            if then is None or sides[0].id == sides[1].id:
                continue
            bench = Bench(self.policy, self.tasks[task], others=Conditioning(), sampling=self.sampling)
            items = bench.items("trial", settings.sentinel_items, child_seed("sentinels", self.seed, number, task))
            groups = bench.roll_out(items, sides, 1, child_seed("sentinel", self.seed, number, task))
            self._spent = self._spent + bench.spent
            before, now = [g.rewards[0] for g in groups], [g.rewards[1] for g in groups]
            mean = (math.fsum(now) - math.fsum(before)) / max(1, len(groups))
            if mean > -settings.sentinel_margin or mean >= 0:
                continue
            p = paired_permutation_p(before, now, child_seed("sentinel.test", self.seed, number), alternative="greater")
            if p <= settings.alpha:
                told = f"{mean:+.3f} on {len(groups)} sentinel items of '{task}', p = {p:.3g} ≤ α = {settings.alpha:g}"
                numbers = {"sentinel_mean": mean, "sentinel_items": float(len(groups)), "sentinel_p": p}
                return TakenBack(state=then, cause=f"it broke what '{task}' had", reason=told, metrics=numbers)
        return None

    def _earlier(self, number: int, phase: Phase) -> dict[str, int]:
        """The tasks that were up before, each with its last round; the one at hand in the round in which it returns."""
        seen = {row.task: row.round for row in self.store.rounds() if row.round < number}
        returned = self._returned(number, phase)
        return {t: last for t, last in seen.items() if t in self.tasks and (t != phase.task or returned)}

    def _returned(self, number: int, phase: Phase) -> bool:
        """Whether this is the first round of a task that was up before, and not just now."""
        tasks = [row.task for row in self.store.rounds() if row.round < number]
        return bool(tasks) and tasks[-1] != phase.task and phase.task in tasks


def _fast_differences(anchor: Conditioning, evidence: Evidence) -> list[float]:
    """An item: mean reward under what is deployed minus that under the anchor's text, where the group has both."""
    found = []
    for group in evidence.groups:
        told = evidence.deployed.get(group.item.id)
        live = [r.reward for r in group.rollouts if r.age == 0 and r.conditioning_id == told]
        then = [
            r.reward
            for r in group.rollouts
            if r.age == 0
            and _same_text(evidence.conditionings[r.conditioning_id], anchor)
            and r.conditioning_id != told
        ]
        if live and then:
            found.append(math.fsum(live) / len(live) - math.fsum(then) / len(then))
    return found


def _same_text(joint: Conditioning, own: Conditioning) -> bool:
    """Whether a group's conditioning says what this channel's own part says; what others add does not matter."""
    own_turns = own.exemplars
    return (
        joint.system == own.system
        and (not own_turns or joint.exemplars[: len(own_turns)] == own_turns)
        and (bool(own_turns) or not joint.exemplars)
    )


def weighed_differences(model: Trainable, evidence: Evidence, live: Delta | None, anchor: Delta | None) -> list[float]:
    """An item: the estimate of J(live) − J(anchor) from rollouts of the live weights; see the module. One number for
    each item and prompt with fresh rollouts that differ in reward."""
    units: list[list[Rollout]] = []
    prompts: dict[int, str] = {}
    for group in evidence.groups:
        by_text: dict[str, list[Rollout]] = {}
        for rollout in group.rollouts:
            if rollout.age == 0 and rollout.completion.tokens:
                by_text.setdefault(rollout.conditioning_id, []).append(rollout)
                prompts[id(rollout)] = group.item.prompt
        units += [unit for unit in by_text.values() if len({r.reward for r in unit}) > 1]
    ratio: dict[int, float] = {}
    for told in {r.conditioning_id for unit in units for r in unit}:
        mine = [r for unit in units for r in unit if r.conditioning_id == told]
        own = evidence.conditionings[told]
        now, then = model.logprobs_under(
            [prompts[id(r)] for r in mine],
            [r.completion.tokens for r in mine],
            [replace(own, delta=live), replace(own, delta=anchor)],
            temperature=evidence.sampling.temperature,
        )
        for rollout, new, old in zip(mine, now, then, strict=True):
            ratio[id(rollout)] = min(MOST_WEIGHT, math.exp(min(50.0, math.fsum(old) - math.fsum(new))))
    found = []
    for unit in units:
        whole = math.fsum(r.reward for r in unit)
        parts = [(r.reward - (whole - r.reward) / (len(unit) - 1)) * (1 - ratio[id(r)]) for r in unit]
        found.append(math.fsum(parts) / len(parts))
    return found
