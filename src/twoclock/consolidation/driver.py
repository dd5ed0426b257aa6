"""Distil, verify, retire: lessons of a fast channel move to the weights, or everything stays as it was.

    worth      each lesson is better than none, under the weights as they are: else it is false, or does nothing
    distil     copies of the slow state, on-policy (:mod:`twoclock.consolidation.distil`)
    drift      the new weights are within the budget of the base, in both directions
    score      without the lessons under the new weights, no worse than with them under the old
    retention  on every other task of the stream, no worse than before
    commit     one transaction: new slow state, the fast state without the lessons

States are values, so nothing live is touched before the commit, and a process that is killed leaves the old head. The
first check that fails ends it. What was refused is in the ledger with its reason and its cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twoclock.bench import Bench
from twoclock.consolidation.checks import Check, drift_check, kept_check, worth_check
from twoclock.consolidation.distil import Distillation, Distilled
from twoclock.consolidation.plan import CAUSE, ConsolidationPlan, plan_consolidation
from twoclock.consolidation.savings import Savings, savings
from twoclock.consolidation.settings import ConsolidationSettings
from twoclock.contracts import Channel, Policy, Task, TaskStream, Teaching, Trainable
from twoclock.errors import BudgetError, ConfigError, NumericsError, UnsupportedError
from twoclock.evaluation import Evaluator, conditioning_of, general_prompts
from twoclock.seeding import child_rng, child_seed
from twoclock.store import RunStore
from twoclock.types import Conditioning, Cost, Item, LedgerEntry, Lesson, Sampling, Snapshot, Timescale, Write

__all__ = ["Consolidated", "Consolidation"]


@dataclass
class Consolidated:
    """What came of one plan."""

    plan: ConsolidationPlan
    accepted: bool = False
    reason: str = ""
    lessons: tuple[Lesson, ...] = ()
    """Those that were moved, or that the attempt failed with."""
    dropped: tuple[tuple[Lesson, str], ...] = ()
    """Lessons that were not moved because nothing shows that they help, each with the reason."""
    checks: list[Check] = field(default_factory=list)
    distilled: Distilled | None = None
    saved: Savings | None = None
    states: Mapping[str, Any] = field(default_factory=dict)
    """What is live now, by channel."""
    snapshot: Snapshot | None = None
    cost: Cost = field(default_factory=Cost)

    def as_dict(self) -> dict[str, Any]:
        found = self.distilled
        return {
            "accepted": self.accepted,
            "reason": self.reason,
            "lessons": [lesson.id for lesson in self.lessons],
            "dropped": [{"lesson": lesson.id, "reason": reason} for lesson, reason in self.dropped],
            "checks": [check.as_dict() for check in self.checks],
            "distilled": found and {
                "steps": found.steps, "best": found.best, "kl": found.kl, "reward": found.reward, "reason": found.reason
            },
            "saved": self.saved.as_dict() if self.saved else None,
            "cost": {name: getattr(self.cost, name) for name in Cost.__dataclass_fields__},
        }  # fmt: skip


class Consolidation:
    """Consolidates one run. ``store`` must be open for writing. Everything random follows from ``seed`` and the plan,
    so the same plan on the same states gives the same result."""

    def __init__(
        self,
        store: RunStore,
        policy: Policy,
        stream: TaskStream,
        channels: Mapping[str, Channel[Any]],
        evaluator: Evaluator,
        *,
        sampling: Sampling,
        seed: int,
        settings: ConsolidationSettings | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if not (policy.card.trainable and isinstance(policy, Trainable)):
            raise UnsupportedError(
                f"the policy '{policy.card.name}' is behind an endpoint: its weights cannot take a lesson in. "
                "Consolidation needs a local model ([model] source = ...)"
            )
        self.store, self.policy, self.stream, self.channels = store, policy, stream, dict(channels)
        self.evaluator, self.sampling, self.seed = evaluator, sampling, seed
        self.settings = settings or ConsolidationSettings()
        self.progress: Callable[[str], None] = progress or (lambda text: None)

    def by_itself(self, states: Mapping[str, Any]) -> Consolidated | None:
        """What a run does at the end of a phase: moves the lessons that the evidence speaks for, those of the first
        channel that has some, and returns what came of it; None where there are none, or where the same attempt was
        refused before. The states that are live afterwards are the result's."""
        for name, channel in self.channels.items():
            if not isinstance(channel, Teaching) or channel.timescale is not Timescale.FAST:
                continue
            try:
                plan = plan_consolidation(
                    self.store, self.stream, self.channels, states, self.settings, seed=self.seed, channel=name
                )
            except (ConfigError, UnsupportedError):  # no lesson, no slow channel, a task that is played
                continue
            if plan.lessons and plan.tried is None:
                return self.carry_out(plan, states)
        return None

    def carry_out(self, plan: ConsolidationPlan, states: Mapping[str, Any], *, again: bool = False) -> Consolidated:
        """Carries the plan out on ``states``, the live ones, by channel. Raises ConfigError for a plan without lessons,
        and for one that was refused before, unless ``again``."""
        if not plan.lessons:
            reasons = "; ".join(f"{choice.lesson.id}: {choice.reason}" for choice in plan.choices)
            raise ConfigError(f"no lesson is to be moved ({reasons}); name one with --lesson")
        if plan.tried is not None and not again:
            raise ConfigError(
                f"the same lessons on the same weights with the same settings were refused after round "
                f"{plan.tried.round}: {plan.tried.reason}. Change a setting, or try it once more with --again"
            )
        began = time.perf_counter()
        result = Consolidated(plan=plan, states=dict(states), lessons=plan.lessons)
        attempt = _Attempt(self, plan, dict(states), result)
        try:
            after = attempt.run()
        except (BudgetError, NumericsError) as error:
            after, result.reason = None, f"{type(error).__name__}: {error}"
        result.cost = replace(result.cost, seconds=time.perf_counter() - began)
        if after is None:
            self._refuse(result, attempt.offered)
        else:
            self._commit(result, after)
        return result

    # ------------------------------------------------------------------------------------------------- the two endings

    def _commit(self, result: Consolidated, after: Mapping[str, Any]) -> None:
        plan, head = result.plan, result.plan.head
        hashes = {
            name: self.store.put_blob(self.channels[name].dump(after[name])) for name in (plan.slow, plan.channel)
        }
        moved = ", ".join(lesson.id for lesson in result.lessons)
        cause = f"{CAUSE} {plan.key}: {moved} of '{plan.channel}' into '{plan.slow}'"
        entries = [
            self._entry(plan.slow, "consolidate", head.states[plan.slow], hashes[plan.slow], cause, result),
            self._entry(plan.channel, "consolidate", head.states[plan.channel], hashes[plan.channel], cause, result),
        ]
        entries += self._dropped(result, after=hashes[plan.slow])
        result.snapshot = self.store.append_consolidation(entries, hashes, expected=head, cause=cause)
        result.accepted, result.states = True, {**result.states, **{name: after[name] for name in hashes}}

    def _refuse(self, result: Consolidated, offered: Any) -> None:
        plan, head = result.plan, result.plan.head
        cause = f"{CAUSE} {plan.key}: {', '.join(one.id for one in plan.lessons)} of '{plan.channel}'"
        live = head.states[plan.slow]
        entry = self._entry(plan.slow, "refuse", live, live, cause, result)
        if offered is not None:
            entry = replace(entry, offered=self.store.put_blob(self.channels[plan.slow].dump(offered)))
        result.snapshot = self.store.append_consolidation([entry], {}, expected=head, cause=cause)

    def _entry(
        self, channel: str, action: Any, before: str, after: str, cause: str, result: Consolidated
    ) -> LedgerEntry:
        slow = channel == result.plan.slow
        kind = "consolidate" if slow else "retire"
        return LedgerEntry(
            round=0,  # the store sets the round, which is the last one before this
            channel=channel,
            timescale=str(self.channels[channel].timescale),
            action=action,
            before=before,
            after=after,
            offered=after if before != after else "",
            cause=cause,
            reason=result.reason,
            cost=result.cost if slow else Cost(),
            task=result.plan.tasks[0] if result.plan.tasks else "",
            writes=tuple(Write(text=one.text, kind=kind, lesson=one.id) for one in result.lessons),
            metrics=_metrics(result) if slow else {},
        )

    def _dropped(self, result: Consolidated, *, after: str) -> list[LedgerEntry]:
        """An entry for each lesson of the plan that was left where it is while others were moved."""
        plan = result.plan
        return [
            replace(
                self._entry(plan.slow, "refuse", after, after, f"{CAUSE} {plan.key}: {lesson.id}", result),
                reason=reason,
                cost=Cost(),
                writes=(Write(text=lesson.text, kind="consolidate", lesson=lesson.id),),
                metrics={},
            )
            for lesson, reason in result.dropped
        ]


class _Attempt:
    """One plan being carried out: everything up to the commit."""

    def __init__(
        self, owner: Consolidation, plan: ConsolidationPlan, states: dict[str, Any], result: Consolidated
    ) -> None:
        self.owner, self.plan, self.states, self.result = owner, plan, states, result
        self.settings = plan.settings
        self.seed = child_seed("consolidate", owner.seed, plan.key)
        self.tasks: list[Task] = [owner.stream.tasks[name] for name in plan.tasks]
        self.others: list[Task] = [owner.stream.tasks[name] for name in plan.others]
        self.offered: Any = None
        self._old: dict[str, list[float]] = {}

    def run(self) -> dict[str, Any] | None:
        """The states after, or None with the reason in the result."""
        result, plan = self.result, self.plan
        if not self._worth():
            return None
        fast = self._without([lesson.id for lesson in result.lessons])
        result.distilled = found = self._distil(fast)
        result.cost += found.cost
        if found.state is None:
            result.reason = f"distillation did not bring the KL to the teacher down ({found.reason})"
            return None
        self.offered = found.state
        after = {**self.states, plan.channel: fast, plan.slow: found.state}
        for checks in (self._drift, self._score, self._retention):
            if failed := [c for c in self._add(checks(after)) if not c.passed]:
                result.reason = "; ".join(f"{c.name} of {c.about}: {c.reason}" for c in failed)
                return None
        result.saved = self._saved(after)
        told = [c for c in result.checks if c.name == "score"]
        result.reason = "; ".join(f"{c.about}: {c.interval.estimate:+.3f} to before" for c in told if c.interval)
        return after

    # ---------------------------------------------------------------------------------------------------- its steps

    def _worth(self) -> bool:
        """Keeps the lessons that are better than none; False where no lesson is."""
        result, lessons = self.result, self.plan.lessons
        arms = {lesson.id: ([], []) for lesson in lessons}  # type: dict[str, tuple[list[float], list[float]]]
        for task in self.tasks:
            self.owner.progress(f"{task.name}: trial items with the lessons and without")
            items = self._items(task, self.settings.trial_items)
            told = self._told(self.states, task)
            bare = [self._told({**self.states, self.plan.channel: self._without([one.id])}, task) for one in lessons]
            rows = self._roll(task, items, [told, *bare])
            self._old[task.name] = rows[0]
            for lesson, without, row in zip(lessons, bare, rows[1:], strict=True):
                for item, old, new in zip(items, rows[0], row, strict=True):
                    if told.for_item(item).id != without.for_item(item).id:
                        arms[lesson.id][0].append(old)
                        arms[lesson.id][1].append(new)
        seed, alpha = child_seed("consolidate.worth", self.seed), self.settings.alpha
        checks = self._add(
            [worth_check(k, *arms[k], alpha=alpha, seed=seed, looks=len(lessons)) for k in (x.id for x in lessons)]
        )
        good = {check.about for check in checks if check.passed}
        reasons = {check.about: _told(check) for check in checks}
        if not good:
            result.reason = "; ".join(f"{lesson.id}: {reasons[lesson.id]}" for lesson in lessons)
            return False
        result.dropped = tuple((one, reasons[one.id]) for one in lessons if one.id not in good)
        result.lessons = tuple(one for one in lessons if one.id in good)
        return True

    def _distil(self, fast: Any) -> Distilled:
        owner, plan = self.owner, self.plan

        def student(slow: Any, task: str) -> Conditioning:
            return conditioning_of(owner.channels, {**self.states, plan.channel: fast, plan.slow: slow}, task)

        def teacher(slow: Any, task: str) -> Conditioning:
            return conditioning_of(owner.channels, {**self.states, plan.slow: slow}, task)

        distillation = Distillation(
            owner.policy,
            owner.channels[plan.slow],
            self.tasks,
            self.others if self.settings.anchors else [],
            self.settings,
            owner.sampling,
            self.seed,
            # What drift is measured on is never trained on.
            general_prompts()[owner.evaluator.settings.drift_prompts :],
        )
        return distillation.run(self.states[plan.slow], student, teacher, owner.progress)

    def _drift(self, after: Mapping[str, Any]) -> list[Check]:
        self.owner.progress("measuring drift on the general prompts")
        number, slow = self.plan.head.round, self.plan.slow
        records = []
        for states in (self.states, after):
            weights = self.owner.channels[slow].condition(states[slow], self.plan.tasks[0])
            records.append(self.owner.evaluator.drift(number, weights, [])[0])
        old, new = records
        return [drift_check(new.live_base, new.base_live, (old.live_base, old.base_live), self.settings.drift)]

    def _score(self, after: Mapping[str, Any]) -> list[Check]:
        checks = []
        for task in self.tasks:
            self.owner.progress(f"{task.name}: the same trial items without the lessons, under the new weights")
            (row,) = self._roll(task, self._items(task, self.settings.trial_items), [self._told(after, task)])
            checks.append(self._kept("score", task, self._old[task.name], row))
        return checks

    def _retention(self, after: Mapping[str, Any]) -> list[Check]:
        checks = []
        for task in self.others:
            self.owner.progress(f"{task.name}: under the weights before and after")
            items = self._items(task, self.settings.sentinel_items)
            old, new = self._roll(task, items, [self._told(self.states, task), self._told(after, task)])
            checks.append(self._kept("retention", task, old, new))
        return checks

    def _saved(self, after: Mapping[str, Any]) -> Savings:
        self.owner.progress("timing answers before and after")
        task = self.tasks[0]
        items = self._items(task, self.settings.trial_items)
        told = self._told(self.states, task), self._told(after, task)
        return savings(self.owner.policy, items, *told, self.owner.sampling, self.seed)

    # -------------------------------------------------------------------------------------------------- small parts

    def _without(self, lessons: Sequence[str]) -> Any:
        channel = self.owner.channels[self.plan.channel]
        assert isinstance(channel, Teaching)
        return channel.without(self.states[self.plan.channel], lessons)

    def _told(self, states: Mapping[str, Any], task: Task) -> Conditioning:
        return conditioning_of(self.owner.channels, states, task.name)

    def _items(self, task: Task, count: int) -> list[Item]:
        pool = task.split("trial")
        return child_rng("consolidate.trial", self.seed, task.name).sample(pool, min(count, len(pool)))

    def _roll(self, task: Task, items: Sequence[Item], arms: Sequence[Conditioning]) -> list[list[float]]:
        """For each arm the mean reward of each item, all with the same random numbers."""
        samples = self.settings.trial_samples
        bench = Bench(self.owner.policy, task, others=Conditioning(), sampling=self.owner.sampling)
        groups = bench.roll_out(items, arms, samples, child_seed("consolidate.roll", self.seed)) if items else ()
        self.result.cost += bench.spent
        return [
            [sum(group.rewards[place * samples : (place + 1) * samples]) / samples for group in groups]
            for place in range(len(arms))
        ]

    def _kept(self, name: str, task: Task, old: Sequence[float], new: Sequence[float]) -> Check:
        settings, seed = self.settings, child_seed("consolidate.kept", self.seed, name, task.name)
        return kept_check(name, task.name, old, new, margin=settings.margin, alpha=settings.alpha, seed=seed)

    def _add(self, checks: list[Check]) -> list[Check]:
        self.result.checks += checks
        return checks


def _told(check: Check) -> str:
    found = check.interval
    return check.reason + (f": {found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]" if found else "")


def _metrics(result: Consolidated) -> dict[str, float]:
    """The numbers of the attempt for the ledger."""
    numbers: dict[str, float] = {"checks": float(len(result.checks))}
    if found := result.distilled:
        numbers |= {
            "steps": float(found.steps),
            "kl_first": found.kl[0],
            "kl_last": found.kl[-1],
            "kl_best": min(found.kl),
        }
    for check in result.checks:
        if check.name == "drift":
            numbers |= {"drift_live_base": check.numbers["live_base"], "drift_base_live": check.numbers["base_live"]}
        elif check.interval is not None:
            numbers |= {f"{check.name}.{check.about}": check.interval.estimate}
            numbers |= {f"{check.name}.{check.about}.low": check.interval.low}
    if saved := result.saved:
        numbers |= {"prompt_tokens_before": saved.tokens_before, "prompt_tokens_after": saved.tokens_after}
        numbers |= {"speedup": saved.speedup}
    return {name: value for name, value in numbers.items() if abs(value) < float("inf")}
