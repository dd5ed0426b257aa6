"""The proxy channel: experts that shift the logits, and how much of each is deployed on each task.

Source: proxy-tuning (arXiv:2401.08565); the equation stands in :mod:`twoclock.nn.proxy`. The experts are given: trained
elsewhere, found by the configuration. What is learned is alpha, by task: a number that is taken back by setting it to
0, exactly, since a shift of 0 is the path that no shift touches.

One proposal changes one alpha. The amounts of a grid are compared on training items under common random numbers, and
the best is offered where it beats the deployed one; a gate compares the two on fresh items. Nothing that was measured
is kept. With several shifts they take turns, round by round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace

from twoclock.contracts import Workbench
from twoclock.errors import BudgetError, ConfigError, StoreError, unknown_name
from twoclock.fast.proxy.config import ProxyConfig, ShiftConfig
from twoclock.fast.proxy.state import ProxyState, dump_state, load_state
from twoclock.seeding import child_seed
from twoclock.types import (
    Budget,
    Conditioning,
    Cost,
    Declined,
    Evidence,
    Item,
    Lesson,
    PolicyCard,
    Proposal,
    Shift,
    Side,
    Timescale,
    Write,
)

__all__ = ["OpenSides", "ProxyChannel"]

OpenSides = Callable[[ShiftConfig, str], tuple[Side, Side]]
"""(what is configured, the policy's base hash) → the expert and the anti-expert. Raises ConfigError or ModelError."""

MIN_ITEMS = 2


class ProxyChannel:
    """See the module. ``open_sides`` finds the experts; it is asked when a shift is first used."""

    name = "proxy"
    timescale = Timescale.FAST

    def __init__(self, config: ProxyConfig | None = None, open_sides: OpenSides | None = None) -> None:
        self.config = config or ProxyConfig()
        if self.config.shifts and open_sides is None:
            raise ConfigError("the proxy channel has shifts but nothing to open their experts with: give open_sides")
        self._open = open_sides
        self._shifts: dict[tuple[str, str], Shift] = {}

    # ------------------------------------------------------------------------------------------------- the contract

    def init(self, card: PolicyCard, seed: int) -> ProxyState:
        return ProxyState(card.base_hash)

    def condition(self, state: ProxyState, task: str) -> Conditioning:
        """Raises StoreError where an expert is no longer what it was when it was deployed."""
        alphas = state.alphas(self._key(task))
        return Conditioning(
            shifts=tuple(
                replace(self._known(state, s), alpha=alphas[s.name]) for s in self.config.shifts if s.name in alphas
            )
        )

    def alternatives(self, state: ProxyState, task: str, count: int, seed: int) -> tuple[Conditioning, ...]:
        """What is deployed, then the same with one amount a step of the grid further, up or down; shift by shift.
        ``seed`` is not needed."""
        if count < 1:
            raise ValueError(f"count = {count}: expected at least 1")
        key = self._key(task)
        found = [self.condition(state, task)]
        for shift in self.config.shifts:
            for alpha in _neighbours(self.config.grid, state.alphas(key).get(shift.name, 0.0)):
                if len(found) < count:
                    found.append(self.condition(self._moved(state, key, shift, alpha), task))
        return tuple(found)

    def dump(self, state: ProxyState) -> bytes:
        return dump_state(state)

    def load(self, blob: bytes) -> ProxyState:
        """Raises StoreError for other bytes, and for a shift that the configuration does not have."""
        state = load_state(blob)
        names = {shift.name for shift in self.config.shifts}
        if unknown := sorted({name for _, some in state.amounts for name, _ in some} - names):
            raise StoreError(
                f"a state of the channel 'proxy' deploys {unknown_name('shift', unknown[0], names)}: "
                "the configuration must name every shift that a state deploys"
            )
        return state

    def propose(
        self, bench: Workbench, state: ProxyState, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[ProxyState] | Declined:
        """One search over the grid, or a reason for none."""
        started = bench.spent

        def declined(reason: str) -> Declined:
            return Declined(channel=self.name, reason=reason, cost=_since(bench, started))

        if not evidence.rollouts:
            return declined("no evidence: there are no rollouts to learn from")
        if not self.config.shifts:
            return declined("no experts: [[channels.proxy.shifts]] names none")
        if not bench.card.trainable:
            return declined(f"the policy {bench.card.name} gives no logits to shift: it is behind an endpoint")
        if all(r.reward >= 1.0 for r in evidence.rollouts):
            return declined(f"every one of {len(evidence.rollouts)} rollouts was right: nothing to search for")
        key = self._key(evidence.task)
        shift = self.config.shifts[evidence.round % len(self.config.shifts)]
        now = state.alphas(key).get(shift.name, 0.0)
        grid, count = self._affordable(now, _least(budget.rollouts, bench.rollouts_left))
        items = bench.items("train", count, child_seed("proxy.items", seed)) if count else ()
        if len(items) < MIN_ITEMS:
            return declined(f"too little budget or too few items: comparing two amounts needs {2 * MIN_ITEMS} rollouts")
        states = [self._moved(state, key, shift, alpha) for alpha in grid]
        try:
            means = self._compared(bench, states, items, evidence.task, seed)
        except BudgetError as error:
            return declined(f"the budget ended before anything was compared: {error}")
        best = max(range(len(grid)), key=lambda i: (means[i], -abs(grid[i] - now), -grid[i]))
        gain = means[best] - means[grid.index(now)]
        told = f"alpha of '{shift.name}' on {len(items)} training items: {_listed(grid, means)}"
        if gain <= 0.0:
            return declined(f"no amount did better than {now:g}: {told}")
        where = f"task '{evidence.task}'" if self.config.scope == "task" else "every task"
        return Proposal(
            channel=self.name,
            state=states[best],
            cause=f"the best {told}",
            cost=_since(bench, started),
            writes=(
                Write(text=f"{shift.name}: alpha {now:g} → {grid[best]:g} on {where}", kind="alpha", lesson=shift.name),
            ),
            metrics={"alpha": grid[best], "alpha_before": now, "search_items": float(len(items)), "search_gain": gain},
        )

    # ------------------------------------------------------------------------------------------------------- lessons

    def lessons(self, state: ProxyState) -> tuple[Lesson, ...]:
        """Each shift that is deployed anywhere is one."""
        found = []
        for shift in self.config.shifts:
            tasks = {key: dict(some)[shift.name] for key, some in state.amounts if shift.name in dict(some)}
            if tasks:
                amounts = ", ".join(f"{alpha:g} on {key}" for key, alpha in tasks.items())
                text = f"logits shifted by {shift.name} ({shift.expert or 'base'} − {shift.anti or 'base'}): {amounts}"
                found.append(Lesson(id=shift.name, channel=self.name, text=text, tasks=tuple(tasks), live=True))
        return tuple(found)

    def without(self, state: ProxyState, lessons: Collection[str]) -> ProxyState:
        """These shifts at 0 on every task."""
        known = {lesson.id for lesson in self.lessons(state)}
        if unknown := [unknown_name("shift", name, known) for name in lessons if name not in known]:
            raise ConfigError(unknown)
        for key, some in state.amounts:
            for name, _ in some:
                if name in lessons:
                    state = state.with_alpha(key, name, 0.0, dict(state.known)[name])
        return state

    # ------------------------------------------------------------------------------------------------------ its parts

    def _key(self, task: str) -> str:
        return task if self.config.scope == "task" else "*"

    def _shift(self, shift: ShiftConfig, base: str) -> Shift:
        """What is configured, at alpha 1; its experts are opened once."""
        if (shift.name, base) not in self._shifts:
            assert self._open is not None
            expert, anti = self._open(shift, base)
            self._shifts[shift.name, base] = Shift(
                expert=expert, anti=anti, plausible=shift.plausible, mapped=shift.mapped, name=shift.name
            )
        return self._shifts[shift.name, base]

    def _known(self, state: ProxyState, shift: ShiftConfig) -> Shift:
        found, then = self._shift(shift, state.base), dict(state.known)[shift.name]
        if found.id != then:
            raise StoreError(
                f"the shift '{shift.name}' is {found.id[:12]} now, but {then[:12]} is deployed: its experts "
                f"({shift.expert or 'base'}, {shift.anti or 'base'}) or its settings have changed since"
            )
        return found

    def _moved(self, state: ProxyState, key: str, shift: ShiftConfig, alpha: float) -> ProxyState:
        """The state with another amount; the state itself where it is the same."""
        if state.alphas(key).get(shift.name, 0.0) == alpha:
            return state
        return state.with_alpha(key, shift.name, alpha, self._shift(shift, state.base).id)

    def _affordable(self, now: float, limit: int | None) -> tuple[list[float], int]:
        """(the amounts to compare, the deployed one among them, the number of items): all of the grid where that leaves
        enough items, else the deployed one and its neighbours, else two."""
        config = self.config
        near = _neighbours(config.grid, now)
        for others in ([alpha for alpha in config.grid if alpha != now], near, near[:1]):
            amounts = sorted({now, *others})
            count = config.search_items
            if limit is not None:
                count = min(count, limit // (len(amounts) * config.search_samples))
            if count >= min(config.search_items, 2 * MIN_ITEMS):
                return amounts, count
        return amounts, count if count >= MIN_ITEMS else 0

    def _compared(
        self, bench: Workbench, states: Sequence[ProxyState], items: Sequence[Item], task: str, seed: int
    ) -> list[float]:
        """The mean reward under each state, on the same items with the same random numbers."""
        samples = self.config.search_samples
        conditionings = [self.condition(state, task) for state in states]
        groups = bench.roll_out(items, conditionings, samples, child_seed("proxy.search", seed))
        return [
            math.fsum(r for g in groups for r in g.rewards[i * samples : (i + 1) * samples]) / (len(groups) * samples)
            for i in range(len(states))
        ]


def _neighbours(grid: Sequence[float], now: float) -> list[float]:
    """The next amount up and the next one down, where there are any."""
    above, below = [a for a in grid if a > now], [a for a in grid if a < now]
    return [*above[:1], *below[-1:]]


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _listed(grid: Sequence[float], means: Sequence[float]) -> str:
    return ", ".join(f"{alpha:g}: {mean:.3f}" for alpha, mean in zip(grid, means, strict=True))


def _since(bench: Workbench, started: Cost) -> Cost:
    spent = bench.spent
    return Cost(**{f.name: getattr(spent, f.name) - getattr(started, f.name) for f in fields(Cost)})
