"""One round in seven steps: the only place where live state changes.

1 read · 2 roll out · 3 grade · 4 allocate · 5 propose · 6 judge · 7 commit

Everything random follows from (seed, round), and states are values in the store, so a run that was killed continues
from its last committed round to the numbers it would have had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

from twoclock.allocate.signals import PREFIX, signals, signals_of
from twoclock.bench import Bench
from twoclock.contracts import Allocator, Channel, Gate, LoopObserver, Policy, Population, Task, TaskStream
from twoclock.errors import BudgetError, ConfigError, NumericsError, UnsupportedError, unknown_name
from twoclock.evaluation import Cell, EvaluationSettings, Evaluator, conditioning_of, conditionings_of
from twoclock.gathering import Gathering, RolloutSettings
from twoclock.outcomes import Outcome, Searched, summary, taken_back, waits
from twoclock.refusals import Refusals
from twoclock.seeding import child_seed
from twoclock.store import KeptRollout, RunStore
from twoclock.types import (
    Assignment,
    Budget,
    Conditioning,
    Cost,
    Declined,
    DriftRecord,
    Evaluation,
    Evidence,
    LedgerEntry,
    Phase,
    Plan,
    Proposal,
    RoundRecord,
    Sampling,
    Snapshot,
    Timescale,
)
from twoclock.watching import Watcher, WatchSettings

__all__ = ["STEPS", "Consolidate", "Loop", "StoreSettings", "sampling_problems"]

Consolidate = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
"""The live states, by channel → those after a consolidation; None where nothing was moved."""

STEPS = ("read", "roll out", "grade", "allocate", "propose", "judge", "commit")


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """What a run's folder keeps."""

    keep: int = 0
    """The newest versions of each slow channel that are kept, beside those at the ends of phases; 0: every one."""

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise ConfigError(f"store.keep = {self.keep}: expected 0 (every version) or a number of versions")


class Silent:
    """An observer that does nothing."""

    def step(self, round: int, step: str) -> None:
        return None

    def committed(self, round: int, metrics: Mapping[str, float], snapshot: Snapshot) -> None:
        return None


class Loop:
    """Runs a stream over a policy with channels, into a store. ``channels`` keep the order they are given in."""

    def __init__(
        self,
        store: RunStore,
        policy: Policy,
        stream: TaskStream,
        channels: Mapping[str, Channel[Any]],
        allocator: Allocator,
        gates: Mapping[str, Gate],
        *,
        seed: int,
        sampling: Sampling,
        rollouts: RolloutSettings,
        evaluation: EvaluationSettings,
        keeping: StoreSettings | None = None,
        watch: WatchSettings | None = None,
        consolidate: Consolidate | None = None,
        observer: LoopObserver | None = None,
    ) -> None:
        self.store, self.policy, self.stream = store, policy, stream
        self.channels, self.allocator, self.gates = dict(channels), allocator, dict(gates)
        self.seed, self.sampling, self.rollouts = seed, sampling, rollouts
        self.evaluator = Evaluator(policy, stream.tasks, evaluation, sampling, seed)
        self.gathering = Gathering(policy, stream, rollouts, sampling, seed)
        self.keeping = keeping or StoreSettings()
        watching = watch or WatchSettings()
        self._consolidate = consolidate
        self.watcher = Watcher(store, policy, self.channels, stream.tasks, watching, sampling, seed)
        self.observer: LoopObserver = observer or Silent()
        self.refusals = Refusals(store, self.channels)
        self._clocks = {name: channel.timescale for name, channel in self.channels.items()}
        self._check()
        self.states: dict[str, Any] = {}
        self._hashed: dict[str, tuple[Any, str]] = {}
        self._history: list[dict[str, Any]] | None = None
        self._rolled_back: int | None = None
        self._waiting: dict[str, str] | None = None

    def _check(self) -> None:
        slow = [name for name, clock in self._clocks.items() if clock is Timescale.SLOW]
        if slow and not self.policy.card.trainable:
            raise UnsupportedError(
                f"the slow channel '{slow[0]}' trains weights, but the policy '{self.policy.card.name}' is behind an "
                "endpoint: remove the channel, or use a local model ([model] source = ...)"
            )
        if slow and (problems := sampling_problems(self.sampling)):
            raise ConfigError(problems)

    # ---------------------------------------------------------------------------------------------------- life cycle

    def begin(self, states: Mapping[str, Any] | None = None) -> None:
        """Round 0: the states that change nothing, and the base's scores. ``states``, by channel, are begun from
        instead, such as what another run has learned."""
        given = states or {}
        if unknown := [unknown_name("channel to begin from", name, self.channels) for name in given
                       if name not in self.channels]:  # fmt: skip
            raise ConfigError(unknown)
        self.states = {
            name: given[name] if name in given else channel.init(self.policy.card, child_seed("init", self.seed, name))
            for name, channel in self.channels.items()
        }
        hashes = self._hashes()
        entries = [
            LedgerEntry(
                round=0,
                channel=name,
                timescale=str(channel.timescale),
                action="init",
                before="",
                after=hashes[name],
                cause="the run begins",
                reason="a state that was given" if name in given else "the state that changes nothing",
                cost=Cost(),
            )
            for name, channel in self.channels.items()
        ]
        cells: list[Cell] = [("base", "none"), ("live", "none"), ("live", "learned")]
        evaluations = self.evaluator.cells(
            0, self.channels, self.states, tasks=self._tasks(), cells=cells, purpose="phase"
        )
        weights = conditioning_of(self.channels, self.states, self._tasks()[0], ("live", "none"))
        drift = self.evaluator.drift(0, weights, self._tasks()) if self._measures_drift() else []
        snapshot = Snapshot(round=0, states=hashes, next_round=1, cause="init")
        measured = conditionings_of(self.channels, self.states, self._tasks(), cells)
        self.store.begin(snapshot, entries, evaluations, drift, measured)

    def restore(self) -> None:
        """Takes up the store's head."""
        head = self.store.head()
        self.states = {
            name: channel.load(self.store.get_blob(head.states[name])) for name, channel in self.channels.items()
        }
        self._hashed = {name: (state, head.states[name]) for name, state in self.states.items()}

    def run(self, until: int | None = None) -> None:
        """Runs what is left of the stream, or up to round ``until``."""
        if not self.states:
            self.restore()
        last = self.stream.num_rounds if until is None else min(until, self.stream.num_rounds)
        for number in range(self.store.head().next_round, last + 1):
            self._between(number)
            self.round(number)
        if until is None:
            self._between(self.stream.num_rounds + 1)

    def _between(self, number: int) -> None:
        """Before a round that begins another phase, and after the last one: what has proved lasting may move to the
        weights. Before, and not after, so that a run that was killed in between does it when it is taken up."""
        over = number > self.stream.num_rounds
        if self._consolidate is None or number == 1:
            return
        if not over and self.stream.phase(number).index == self.stream.phase(number - 1).index:
            return
        if self.store.head().next_round != number or any(e.is_by_hand for e in self.store.entries(round=number - 1)):
            return  # somebody has been there already
        states = self._consolidate(self.states)
        if states is not None:
            self.states = dict(states)
            # What was counted and kept so far belongs to states that are no longer live.
            self._rolled_back = None
            self.watcher.forget()

    # ----------------------------------------------------------------------------------------------------- one round

    def round(self, number: int) -> None:
        """The seven steps."""
        started = time.perf_counter()
        clock: dict[str, float] = {}
        phase = self.stream.phase(number)
        task = self.stream.tasks[phase.task]

        self.observer.step(number, "read")
        gathering = self.gathering
        items = gathering.items(number)
        conditionings = self._conditionings(number, phase.task)
        taken = gathering.take_up(number, items, conditionings, self._kept)

        self.observer.step(number, "roll out")
        began = time.perf_counter()
        requests, completions = gathering.sample(number, items, conditionings, taken)
        clock["rollout_s"] = time.perf_counter() - began

        self.observer.step(number, "grade")
        began = time.perf_counter()
        gathered = gathering.grade(number, task, items, requests, completions, taken)
        clock["grade_s"] = time.perf_counter() - began
        began = time.perf_counter()
        gathered = gathering.replace_dead(number, task, items, conditionings, gathered)
        clock["rollout_s"] += time.perf_counter() - began
        evidence, cost = gathering.evidence(number, gathered), gathered.cost

        self.observer.step(number, "allocate")
        seen = {f"{PREFIX}{name}": value for name, value in signals(evidence).items()}
        back = self.watcher.look(number, phase, evidence, self.states)
        plan = self._plan(evidence)

        self.observer.step(number, "propose")
        searched = Searched()
        outcomes = [
            self._propose(number, task, evidence, assignment, clock, searched)
            for assignment in plan.assignments
            if assignment.channel not in back  # what it would propose stands on a state that is no longer live
        ]

        self.observer.step(number, "judge")
        for outcome in outcomes:
            self._judge(number, task, evidence, outcome, clock)

        self.observer.step(number, "commit")
        before = self._hashes()
        after = {**self.states, **{name: taken.state for name, taken in back.items()}}
        for outcome in outcomes:
            if isinstance(outcome.offer, Proposal):
                name = outcome.assignment.channel
                after[name] = outcome.kept(after[name])
                outcome.changes_deployed = self._speaks_anew(name, phase.task, after)
        hashes = {name: self._hash(name, state) for name, state in after.items()}
        entries = [
            taken_back(number, phase, name, self._clocks[name], before[name], hashes[name], taken)
            for name, taken in back.items()
        ]
        entries += [
            outcome.entry(number, phase, self._clocks[name], before[name], hashes[name], self._offered(outcome))
            for outcome in outcomes
            for name in [outcome.assignment.channel]
        ]
        entries += self._passed(number, phase, plan, back, hashes)
        watched = self.watcher.committed(number, phase.task, self.states, after, back)
        began = time.perf_counter()
        evaluations, drift, measured = self._measure(number, phase, after)
        clock["measure_s"] = time.perf_counter() - began
        clock["round_s"] = time.perf_counter() - started
        clock["decode_per_s"] = cost.completion_tokens / max(clock["rollout_s"], 1e-9)
        metrics = {**summary(evidence, gathered), **seen, **watched, **clock}
        snapshot = Snapshot(round=number, states=hashes, next_round=number + 1)
        self.store.commit_round(
            RoundRecord(
                round=number,
                phase=phase.index,
                task=phase.task,
                snapshot=snapshot,
                entries=tuple(entries),
                evidence=evidence,
                metrics=metrics,
                evaluations=tuple(evaluations),
                drift=tuple(drift),
                evaluated=measured,
                searched=searched.evidence(evidence),
            )
        )
        self.states = after
        if any(self._clocks[name] is Timescale.SLOW for name in back):
            self._rolled_back = number
        if self._history is not None:
            self._history.append(_past(number, phase.index, phase.task, metrics, entries))
        if self.keeping.keep:
            for name, timescale in self._clocks.items():
                if timescale is Timescale.SLOW:
                    self.store.thin(name, self.keeping.keep)
        self.observer.committed(number, metrics, snapshot)

    def _conditionings(self, number: int, task: str) -> list[Conditioning]:
        """The joint conditionings of a round's groups: the deployed one, what was deployed before a write that is being
        watched, then alternatives, each of one fast channel; channels that have some take turns."""
        count = self.rollouts.prompts_per_item
        if self.rollouts.under == "none":
            return [conditioning_of(self.channels, self.states, task, ("live", "none"))]
        deployed = conditioning_of(self.channels, self.states, task)
        anchors = [self._joined(name, task, c) for name, c in self.watcher.anchors(task).items()]
        offered: list[list[Conditioning]] = []
        for name, channel in self.channels.items():
            if count > 1 and isinstance(channel, Population):
                seed = child_seed("alternatives", self.seed, number, name)
                found = channel.alternatives(self.states[name], task, count, seed)
                offered.append([self._joined(name, task, c) for c in found])
        joint = [deployed, *anchors, *(c for row in zip_longest(*offered) for c in row if c is not None)]
        distinct = list({c.id: c for c in joint}.values())[:count]
        # Where there are fewer than asked for, the first ones get a second share: a group is always whole.
        return [distinct[i % len(distinct)] for i in range(count)]

    def _kept(self, task: str, item_ids: Sequence[str], since: int) -> Sequence[KeptRollout]:
        """What searches have kept, since the last rollback: what came before it belongs to another history. Nobody can
        roll back while this loop holds the run's lock, so it is looked up once."""
        if self._rolled_back is None:
            changes = [e.round for e in self.store.entries() if e.action in ("rollback", "consolidate")]
            self._rolled_back = max(changes, default=-1)
        return self.store.kept_rollouts(task, item_ids, since=max(since, self._rolled_back + 1))

    def _plan(self, evidence: Evidence) -> Plan:
        if self._history is None:  # read once: a ledger grows, and the lock is ours
            by_round: dict[int, list[LedgerEntry]] = {}
            for entry in self.store.entries():
                by_round.setdefault(entry.round, []).append(entry)
            rows = sorted(self.store.rounds(), key=lambda row: row.round)
            self._history = [_past(r.round, r.phase, r.task, r.metrics, by_round.get(r.round, [])) for r in rows]
        return self.allocator.plan(evidence, self._clocks, tuple(self._history))

    def _bench(self, channel: str, task: Task, budget: Budget | None = None, number: int | None = None) -> Bench:
        return Bench(
            self.policy,
            task,
            others=self._joined(channel, task.name, Conditioning()),
            sampling=self.sampling,
            budget=budget,
            join=partial(self._joined, channel, task.name),
            upcoming=None if number is None else partial(self.gathering.upcoming, number),
            keeps_upcoming=self.rollouts.reuse,
        )

    def _propose(
        self,
        number: int,
        task: Task,
        evidence: Evidence,
        assignment: Assignment,
        clock: dict[str, float],
        searched: Searched,
    ) -> Outcome:
        began = time.perf_counter()
        name = assignment.channel
        channel = self.channels[name]
        bench = self._bench(name, task, assignment.budget, number)
        seed = child_seed("propose", self.seed, number, name)
        offer: Proposal[Any] | Declined
        try:
            offer = channel.propose(bench, self.states[name], evidence, assignment.budget, seed)
        except (BudgetError, NumericsError) as error:
            # Refused before anything was spent or taken in: the channel has nothing to offer, and the run goes on.
            offer = Declined(channel=name, reason=f"{type(error).__name__}: {error}")
        searched.add(bench)
        seconds = time.perf_counter() - began
        _count(clock, channel.timescale, seconds)
        # What the bench counted stands, whatever the channel says of itself; it adds what a bench cannot see.
        spent = bench.spent
        cost = replace(
            offer.cost,
            rollouts=spent.rollouts,
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.completion_tokens,
            seconds=seconds,
        )
        return Outcome(assignment, offer, cost=cost)

    def _judge(self, number: int, task: Task, evidence: Evidence, outcome: Outcome, clock: dict[str, float]) -> None:
        if isinstance(outcome.offer, Declined):
            return
        began = time.perf_counter()
        name = outcome.assignment.channel
        bench = self._bench(name, task)
        change = self.refusals.change(name, task.name, self.states, outcome.offer.state)
        outcome.verdict = self.refusals.verdict(change) or self.gates[name].judge(
            bench,
            self.channels[name],
            self.states[name],
            outcome.offer,
            evidence,
            outcome.assignment.budget,
            child_seed("judge", self.seed, number, name),
        )
        self.refusals.note(change, number, outcome.verdict)
        if not outcome.accepted and outcome.offer.fallback is not None:
            # Nobody has judged it, so it may only be kept where it speaks to the model as the live state does.
            channel, fallback = self.channels[name], outcome.offer.fallback
            silent = channel.condition(fallback, task.name).id == channel.condition(self.states[name], task.name).id
            outcome.falls_back = silent
        seconds = time.perf_counter() - began
        _count(clock, self.channels[name].timescale, seconds)
        outcome.cost = outcome.cost + replace(bench.spent, seconds=seconds)

    def _speaks_anew(self, name: str, task: str, after: Mapping[str, Any]) -> bool:
        """Whether what the channel says on the task has changed."""
        channel = self.channels[name]
        return channel.condition(self.states[name], task).id != channel.condition(after[name], task).id

    def _passed(
        self, number: int, phase: Phase, plan: Plan, back: Collection[str], hashes: Mapping[str, str]
    ) -> list[LedgerEntry]:
        """An entry for each channel that the allocator passes over for another reason than the last time: the numbers
        in a reason change each round, what it is about does not."""
        if self._waiting is None:
            last = {entry.channel: entry for entry in self.store.entries()}
            self._waiting = {n: entry.reason for n, entry in last.items() if entry.action == "wait"}
        for name in [*(assignment.channel for assignment in plan.assignments), *back]:
            self._waiting.pop(name, None)
        entries = []
        for name, reason in plan.passed:
            if self._waiting.get(name, "").partition(":")[0] != reason.partition(":")[0]:
                entries.append(waits(number, phase, name, self._clocks[name], hashes[name], reason))
            self._waiting[name] = reason
        return entries

    def _offered(self, outcome: Outcome) -> str:
        """The hash of the state that was proposed, which is put where nothing keeps it."""
        if not isinstance(outcome.offer, Proposal):
            return ""
        name, state = outcome.assignment.channel, outcome.offer.state
        if outcome.accepted:
            return self._hash(name, state)
        return self.store.put_blob(self.channels[name].dump(state))

    # -------------------------------------------------------------------------------------------------- measurements

    def _measure(
        self, number: int, phase: Phase, states: Mapping[str, Any]
    ) -> tuple[list[Evaluation], list[DriftRecord], dict[str, Conditioning]]:
        """At a phase's end the held-out cells of every task; drift there and every ``drift_every`` rounds. Also the
        conditionings of those cells."""
        settings = self.evaluator.settings
        ends = sum(p.rounds for p in self.stream.phases[: phase.index + 1]) == number
        evaluations: list[Evaluation] = []
        measured: dict[str, Conditioning] = {}
        if ends or (settings.every and number % settings.every == 0):
            cells: list[Cell] = [("live", "none"), ("live", "learned")]
            measured = conditionings_of(self.channels, states, self._tasks(), cells)
            evaluations = self.evaluator.cells(
                number,
                self.channels,
                states,
                tasks=self._tasks(),
                cells=cells,
                purpose="phase" if ends else "probe",
                known=[e for e in self.store.evaluations() if e.samples == settings.samples],
            )
        drift: list[DriftRecord] = []
        if self._measures_drift() and (ends or number % settings.drift_every == 0):
            weights = conditioning_of(self.channels, states, phase.task, ("live", "none"))
            drift = self.evaluator.drift(number, weights, self._tasks())
        return evaluations, drift, measured

    def _measures_drift(self) -> bool:
        return self.evaluator.settings.drift_every > 0

    # ---------------------------------------------------------------------------------------------------- small parts

    def _tasks(self) -> list[str]:
        """The stream's tasks in the order in which they first come up."""
        return list(dict.fromkeys(p.task for p in self.stream.phases))

    def _joined(self, channel: str, task: str, own: Conditioning) -> Conditioning:
        """What is deployed, with ``own`` in the place of one channel's part: in the order of the channels, as exemplars
        in another order are another prompt, and a trial must judge the prompt that would be deployed."""
        joined = Conditioning()
        for name, other in self.channels.items():
            joined = joined.join(own if name == channel else other.condition(self.states[name], task))
        return joined

    def _hashes(self) -> dict[str, str]:
        return {name: self._hash(name, self.states[name]) for name in self.channels}

    def _hash(self, name: str, state: Any) -> str:
        """The hash of a state's blob, which is put where it is new. States are values: the same object has the same."""
        known = self._hashed.get(name)
        if known is None or known[0] is not state:
            self._hashed[name] = known = (state, self.store.put_blob(self.channels[name].dump(state)))
        return known[1]


def sampling_problems(sampling: Sampling) -> list[str]:
    """What keeps slow channels from learning on rollouts that were sampled so; empty when nothing does."""
    if sampling.top_p >= 1.0 and sampling.top_k == 0 and sampling.temperature > 0.0:
        return []
    return [
        f"slow channels learn from the whole distribution: sampling must have temperature > 0, top_p = 1 and "
        f"top_k = 0; got temperature {sampling.temperature}, top_p {sampling.top_p}, top_k {sampling.top_k}"
    ]


def _past(
    round: int, phase: int, task: str, metrics: Mapping[str, float], entries: Sequence[LedgerEntry]
) -> dict[str, Any]:
    """A past round as an allocator sees it."""
    asked = [entry for entry in entries if entry.action in ("commit", "reject", "decline")]
    outcomes = {
        entry.channel: {
            "action": entry.action,
            "metrics": dict(entry.metrics),
            "rollouts": entry.cost.rollouts,
            "tokens": entry.cost.tokens,
            "trained_tokens": entry.cost.trained_tokens,
        }
        for entry in asked
    }
    return {
        "round": round,
        "phase": phase,
        "task": task,
        "proposed": [entry.channel for entry in asked],
        "outcomes": outcomes,
        "signals": signals_of(metrics),
        "taken_back": [entry.channel for entry in entries if entry.action == "rollback"],
    }


def _count(clock: dict[str, float], timescale: Timescale, seconds: float) -> None:
    key = f"{timescale}_s"
    clock[key] = clock.get(key, 0.0) + seconds
