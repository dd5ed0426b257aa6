"""What every slow channel shares: from a round's evidence to a proposal. What may move is the subclass's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Self, TypeVar

from twoclock.contracts import Trainable, WholeVocabulary, Workbench
from twoclock.errors import ConfigError, NumericsError, UnsupportedError
from twoclock.nn.objective_table import OBJECTIVES, Objective
from twoclock.seeding import child_seed
from twoclock.slow.config import TrainingConfig
from twoclock.slow.credit import Credited, between_prompts, credit_distilled, credit_rewards, scored_under
from twoclock.slow.training import Training
from twoclock.types import Budget, Conditioning, Declined, Evidence, Item, PolicyCard, Proposal, Timescale, Write

__all__ = ["SlowChannel"]

StateT = TypeVar("StateT")

FIRST_KL_COEF = 0.05
"""Where β starts when only a target is given."""
LEAST_SHARE, MOST_TIMES = 8, 64
"""The range in which β is steered, as parts and multiples of its first value."""


class SlowChannel(ABC, Generic[StateT]):
    """A channel that trains weights by :mod:`twoclock.slow.training`."""

    timescale = Timescale.SLOW

    def __init__(self, config: TrainingConfig, name: str) -> None:
        self.name = name
        self._training = config
        self._teacher: Callable[[Item], Conditioning] | None = None

    @property
    def on_policy_only(self) -> bool:
        """Whether the objective cannot learn from rollouts of earlier rounds."""
        return self._objective.on_policy_only or self._training.objective == "distill"

    @property
    def _objective(self) -> Objective:
        # A distilled token's gradient is that of −w A log π, summed over tokens and divided by all of them.
        return OBJECTIVES["cispo" if self._training.objective == "distill" else self._training.objective]

    @abstractmethod
    def init(self, card: PolicyCard, seed: int) -> StateT: ...

    @abstractmethod
    def condition(self, state: StateT, task: str) -> Conditioning: ...

    @abstractmethod
    def started(self, state: StateT, model: Trainable) -> StateT:
        """The state with its tensors, made where it has none yet; refused on other base weights."""

    def propose(
        self, bench: Workbench, state: StateT, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[StateT] | Declined:
        if not evidence.groups:
            return Declined(channel=self.name, reason="there is no evidence: the round has no rollouts")
        share = {
            "dead_groups": evidence.dead_groups / len(evidence.groups),
            "between_prompts": between_prompts(evidence),
        }
        if reason := self._unfit(evidence):
            return Declined(channel=self.name, reason=reason, metrics=share)
        model = bench.trainable()
        before: Any = self.started(state, model)
        kl_coef = self._kl_coef(before)
        try:
            credited, kl = self._credit(bench, model, evidence, before, kl_coef)
        except (ConfigError, NumericsError) as problem:
            return Declined(channel=self.name, reason=str(problem), metrics=share)
        taught = sum(any(c.teaches for c in row) for row in credited)
        # A KL in the loss is a penalty on the policy and not on what it was paid: it counts dead groups too, but has no
        # gradient where the weights are still the base's.
        whole = self._training.kl in ("k2_loss", "k3_loss") and (taught > 0 or before.step > 0)
        rows = [
            (group, [c for c in row if (c.counts if whole else c.teaches)])
            for group, row in zip(evidence.groups, credited, strict=True)
        ]
        rows = [(group, row) for group, row in rows if row]
        if not rows:
            return Declined(channel=self.name, reason=self._no_gradient(evidence), metrics=share)
        training = Training(self._training, self._objective, model, evidence, before, kl_coef)
        if self._is_exact(model):
            weights = self.condition(before, evidence.task)
            training.teacher = self._teacher or partial(_prompted, bench.others, weights)
        rows.sort(key=lambda row: child_seed("lora-order", seed, row[0].item.id))
        rows = training.affordable(rows, budget.tokens)
        if not rows:
            reason = f"the budget of {budget.tokens} tokens is too small to train on one group"
            return Declined(channel=self.name, reason=reason, metrics=share)
        steps = self._training.steps_per_round
        for part in range(steps):
            some = rows[part::steps]
            refused = training.step(some) if some else None
            if refused:
                return Declined(channel=self.name, reason=refused, cost=training.cost, metrics=share)
        return self._offer(training, min(taught, len(rows)), evidence, {**share, **kl, "kl_coef": kl_coef})

    def _offer(self, training: Training, taught: int, evidence: Evidence, shared: dict[str, float]) -> Proposal[StateT]:
        metrics = {**training.metrics(), **shared}
        state = replace(training.state, kl_coef=self._next_kl_coef(shared["kl_coef"], metrics["kl_base"]))
        kept = "a gradient" if self._training.objective == "distill" else "reward variance"
        text = (
            f"step {training.state.step}: {taught} of {len(evidence.groups)} groups with a gradient, "
            f"gradient norm {metrics['grad_norm']:.3g}, "
            + (f"entropy {metrics['entropy']:.3g} nats" if "entropy" in metrics else f"loss {metrics['loss']:.3g} nats")
        )
        return Proposal(
            channel=self.name,
            state=state,
            cause=f"{taught} groups of {evidence.task} in round {evidence.round} had {kept}",
            cost=training.cost,
            writes=(Write(text=text, kind="step"),),
            metrics=metrics,
        )

    # -------------------------------------------------------------------------------------------------- distillation

    def distilling(
        self, teacher: Callable[[Item], Conditioning], *, learning_rate: float | None = None, forward: float = 0.0
    ) -> Self:
        """See :class:`twoclock.contracts.Distilling`. The KL of each place is exact where the policy can."""
        config = replace(
            self._training,
            objective="distill",
            distill_over="vocabulary",
            distill_forward=forward,
            kl="none",
            kl_coef=0.0,
            kl_target=None,
            clip_low=None,
            clip_high=None,
            overlong="keep",
            steps_per_round=1,
            learning_rate=learning_rate or self._training.learning_rate,
        )
        channel = type(self)(config, name=self.name)
        channel._teacher = teacher
        return channel

    def rested(self, state: StateT) -> StateT:
        """See :class:`twoclock.contracts.Distilling`. The step is at most 1: Adam corrects its young moments by it, and
        0 would be the base."""
        old: Any = state
        moments = {name: tuple(t * 0.0 for t in pair) for name, pair in old.moments.items()}
        rested: StateT = replace(old, step=min(old.step, 1), moments=moments)
        return rested

    def resumed(self, before: StateT, after: StateT) -> StateT:
        """See :class:`twoclock.contracts.Distilling`."""
        old: Any = before
        new: Any = after
        rested: Any = self.rested(new)
        moments = old.moments or rested.moments
        resumed: StateT = replace(new, moments=moments, step=old.step + 1, kl_coef=old.kl_coef)
        return resumed

    def _is_exact(self, model: Trainable) -> bool:
        wanted = self._training.objective == "distill" and self._training.distill_over == "vocabulary"
        return wanted and isinstance(model, WholeVocabulary)

    # ----------------------------------------------------------------------------------------------------- its parts

    def _unfit(self, evidence: Evidence) -> str | None:
        """Why these rollouts cannot be learned from."""
        if self.on_policy_only and any(r.age for r in evidence.rollouts):
            return (
                f'objective = "{self._training.objective}" learns from the rollouts of its own round alone, and some '
                "are older: set [rollouts] reuse = false, or an objective with importance weights such as cispo"
            )
        return None

    def _credit(
        self, bench: Workbench, model: Trainable, evidence: Evidence, state: Any, kl_coef: float
    ) -> tuple[list[list[Credited]], dict[str, float]]:
        """What each rollout is credited with, and what was measured on the way."""
        weights = self.condition(state, evidence.task)
        score = scored_under(model, evidence, weights)
        if self._training.objective == "distill":
            teacher = self._teacher or replace(bench.others, delta=None)
            return credit_distilled(self._training, evidence, teacher, score, exact=self._is_exact(model)), {}
        kl_of: dict[int, float] | None = None
        metrics: dict[str, float] = {}
        if self._training.kl == "k1_reward":
            pairs = [(g, r) for g in evidence.groups for r in g.rollouts]
            live, base = score(pairs, [lambda own, _: own, lambda own, _: replace(own, delta=None)])
            kl_of = {
                id(r): math.fsum(a - b for a, b in zip(one, other, strict=True))
                for (_, r), one, other in zip(pairs, live, base, strict=True)
            }
            if wrong := [v for v in kl_of.values() if not math.isfinite(v)]:
                raise NumericsError(f"the KL to the base of a rollout is {wrong[0]}; the step was refused")
            metrics["kl_base"] = math.fsum(kl_of.values()) / max(1, sum(map(len, live)))
        return credit_rewards(self._training, self._objective, evidence, kl_coef, kl_of), metrics

    def _no_gradient(self, evidence: Evidence) -> str:
        if self._training.objective == "distill":
            return (
                "there is nothing to distil: no prompt is learned yet, or every rollout was sampled under it (set "
                '[rollouts] under = "none")'
            )
        if evidence.dead_groups == len(evidence.groups):
            return (
                f"all {evidence.dead_groups} groups are dead: no reward varies within an item, so there is no gradient"
            )
        alive = [r for group in evidence.groups if not group.is_dead for r in group.rollouts if r.completion.tokens]
        if alive and self._training.overlong == "mask" and all(r.completion.finish == "length" for r in alive):
            return (
                'every answer of a group with reward variance was cut off at the token limit, and overlong = "mask" '
                "leaves those out: raise [sampling] max_new_tokens"
            )
        if self._training.grouping == "prompt" and between_prompts(evidence) > 1 - 1e-9:
            return 'no reward varies within a prompt of an item, and grouping = "prompt" compares no others'
        return "no completion of a group with reward variance has a token to learn from"

    def _kl_coef(self, state: Any) -> float:
        if self._training.kl == "none":
            return 0.0
        # A state that another run has steered says nothing where this one steers none.
        steered = state.kl_coef if self._training.kl_target is not None else 0.0
        return float(steered or self._training.kl_coef or FIRST_KL_COEF)

    def _next_kl_coef(self, now: float, kl: float) -> float:
        """β for the next round; 0 where none is steered. Never below an eighth of its first value, or it would fall all
        the way while the weights are still at the base and be missing when they leave; nor above 64 times, where the
        penalty is all that the clipped gradient consists of."""
        target = self._training.kl_target
        if target is None or self._training.kl == "none":
            return 0.0
        first = self._training.kl_coef or FIRST_KL_COEF
        steered = now * 2 if kl > 1.5 * target else now / 2 if kl < target / 1.5 else now
        return min(max(steered, first / LEAST_SHARE), first * MOST_TIMES)


def _prompted(told: Conditioning, weights: Conditioning, item: Item) -> Conditioning:
    return replace(told.for_item(item), delta=weights.delta)


def same_base(name: str, trained_on: str, model: Trainable) -> None:
    """Raises UnsupportedError where a state's weights are not the model's."""
    if trained_on != model.base_hash:
        raise UnsupportedError(
            f"this state of '{name}' was trained on base weights {trained_on[:12]}, but the model is "
            f"{model.base_hash[:12]}; start a run of its own for this model"
        )
