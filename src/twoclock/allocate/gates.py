"""Gates: they judge a proposal and change nothing. A bad proposal is a rejection with its reason, never an exception.

Fast proposals are judged by a paired trial on items that the search has not seen; slow ones by the drift budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twoclock.contracts import Channel, Workbench, delta_base_matches
from twoclock.errors import BudgetError, NumericsError, UnsupportedError
from twoclock.seeding import child_seed
from twoclock.types import Budget, Conditioning, Cost, Evidence, Proposal, Verdict

__all__ = ["AcceptGate", "DriftGate", "DriftMeter", "PairedTrialGate", "bad_numbers", "since", "trial_drift"]

DriftMeter = Callable[[Workbench, Conditioning, int], tuple[float, float]]
"""(bench, the candidate's conditioning, seed) → (KL(candidate‖base), KL(base‖candidate)) in nats a token."""


def bad_numbers(proposal: Proposal[Any]) -> str | None:
    """A reason to reject whatever the gate: a metric that is no number."""
    bad = [f"{name} = {value}" for name, value in sorted(proposal.metrics.items()) if not math.isfinite(value)]
    return f"not finite: {', '.join(bad)}" if bad else None


def since(bench: Workbench, before: Cost) -> Cost:
    """What the bench has spent since then."""
    return Cost(**{name: getattr(bench.spent, name) - getattr(before, name) for name in Cost.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class AcceptGate:
    """Accepts whatever has finite metrics: the gate of an experiment that wants none."""

    def judge(
        self,
        bench: Workbench,
        channel: Channel[Any],
        live: Any,
        proposal: Proposal[Any],
        evidence: Evidence,
        budget: Budget,
        seed: int,
    ) -> Verdict:
        problem = bad_numbers(proposal)
        return Verdict(accepted=problem is None, reason=problem or "accepted without a trial")


@dataclass(frozen=True, kw_only=True)
class PairedTrialGate:
    """Accepts a proposal whose conditioning beats the live one on fresh items of the trial split.

    Both answer the same items with the same random numbers; one difference of mean rewards an item; a one-sided
    sign-flip test at ``alpha``. The scores that the proposal was chosen by play no part: the best of many noisy scores
    is too good by selection, and a test on them would accept about any change. For a change without effect the chance
    of acceptance is at most ``alpha``.

    A proposal that speaks to the model as the live state does (a change of the pool alone) passes without a trial. A
    proposal for several tasks is tried on the task at hand. Costs ``2 * trial_items * samples`` rollouts, fewer items
    where the bench has less left. A budget's own ``alpha`` stands in the place of the gate's.
    """

    trial_items: int = 48
    samples: int = 1
    alpha: float = 0.05

    def judge(
        self,
        bench: Workbench,
        channel: Channel[Any],
        live: Any,
        proposal: Proposal[Any],
        evidence: Evidence,
        budget: Budget,
        seed: int,
    ) -> Verdict:
        from twoclock.measure.statistics import paired_permutation_p  # here: it brings numpy

        if problem := bad_numbers(proposal):
            return Verdict(accepted=False, reason=problem)
        alpha = self.alpha if budget.alpha is None else budget.alpha
        now, then = channel.condition(live, evidence.task), channel.condition(proposal.state, evidence.task)
        if now.id == then.id:
            return Verdict(accepted=True, reason="pool only: what is deployed stays as it is")
        least = math.ceil(math.log2(1 / alpha))  # the smallest p of n pairs is 2**-n
        count = max(self.trial_items, least)
        if bench.rollouts_left is not None:
            count = min(count, bench.rollouts_left // (2 * self.samples))
        items = bench.items("trial", count, child_seed("gate.items", seed)) if count >= least else ()
        if len(items) < least:
            reason = f"no trial: {count if not items else len(items)} items, at least {least} needed at α = {alpha:g}"
            return Verdict(accepted=False, reason=reason)
        before = bench.spent
        try:
            groups = bench.roll_out(items, [now, then], self.samples, child_seed("gate.trial", seed))
        except BudgetError as error:
            return Verdict(accepted=False, reason=f"no trial: {error}", cost=since(bench, before))
        old = [math.fsum(g.rewards[: self.samples]) / self.samples for g in groups]
        new = [math.fsum(g.rewards[self.samples :]) / self.samples for g in groups]
        p = paired_permutation_p(new, old, child_seed("gate.test", seed), alternative="greater")
        gain = (math.fsum(new) - math.fsum(old)) / len(groups)
        accepted = p <= alpha and gain > 0
        sign = "≤" if p <= alpha else ">"
        return Verdict(
            accepted=accepted,
            reason=f"trial on {len(groups)} fresh items: {gain:+.3f}, p = {p:.3g} {sign} α = {alpha:g}",
            cost=since(bench, before),
            metrics={
                "trial_gain": gain,
                "trial_p": p,
                "trial_items": float(len(groups)),
                "trial_live": math.fsum(old) / len(groups),
                "trial_offered": math.fsum(new) / len(groups),
            },
        )


def trial_drift(bench: Workbench, offered: Conditioning, seed: int, *, prompts: int = 8) -> tuple[float, float]:
    """KL(candidate‖base) and KL(base‖candidate) in nats a token, exact over the vocabulary, on trial items.

    Each direction is taken along continuations sampled from its own first argument, both under what the other channels
    contribute, as that is how the weights are used. Costs ``2 * prompts`` rollouts.
    """
    items = bench.items("trial", prompts, child_seed("gate.drift.items", seed))
    groups = bench.roll_out(items, [offered, Conditioning()], 1, child_seed("gate.drift", seed))
    live, base = bench.others.join(offered), bench.others
    model = bench.trainable()

    def kl(place: int, p: Conditioning, q: Conditioning) -> float:
        pairs = [(g.item, g.rollouts[place].completion.tokens) for g in groups]
        pairs = [(item, tokens) for item, tokens in pairs if tokens]  # an empty answer has no position to measure
        if not pairs:
            raise NumericsError("every sampled answer was empty: there is nothing to measure drift on")
        if p.recall or q.recall:  # memory says something else of each item
            rows = [model.exact_kl([i.prompt], [t], p.for_item(i), q.for_item(i)) for i, t in pairs]
            values = [value for row in rows for value in row]
        else:
            values = model.exact_kl([item.prompt for item, _ in pairs], [tokens for _, tokens in pairs], p, q)
        return math.fsum(values) / len(values)

    return kl(0, live, base), kl(1, base, live)


@dataclass(frozen=True, kw_only=True)
class DriftGate:
    """Accepts a slow proposal with finite metrics, on this base, and within ``budget.drift`` in both directions.

    Without a drift budget nothing is measured. ``meter`` is what measures; ``trial_drift`` where none is given.
    """

    meter: DriftMeter | None = None

    def judge(
        self,
        bench: Workbench,
        channel: Channel[Any],
        live: Any,
        proposal: Proposal[Any],
        evidence: Evidence,
        budget: Budget,
        seed: int,
    ) -> Verdict:
        offered = channel.condition(proposal.state, evidence.task)
        if problem := bad_numbers(proposal):
            return Verdict(accepted=False, reason=problem)
        if offered.delta is not None and not delta_base_matches(offered.delta, bench.card.base_hash):
            reason = (
                f"the delta belongs to the base {offered.delta.base[:12]}, the policy is {bench.card.base_hash[:12]}"
            )
            return Verdict(accepted=False, reason=reason)
        if budget.drift is None:
            return Verdict(accepted=True, reason="every metric is finite; no drift budget is set")
        if offered.delta is None:
            metrics = {"drift_live_base": 0.0, "drift_base_live": 0.0}
            return Verdict(accepted=True, reason="the weights are the base's: no drift", metrics=metrics)
        before = bench.spent
        try:
            forward, backward = (self.meter or trial_drift)(bench, offered, child_seed("gate.drift", seed))
        except (BudgetError, NumericsError, UnsupportedError) as error:
            reason = f"drift could not be measured: {error}"
            return Verdict(accepted=False, reason=reason, cost=since(bench, before))
        cost = since(bench, before)
        if not (math.isfinite(forward) and math.isfinite(backward)):
            return Verdict(accepted=False, reason=f"drift is not finite: {forward}, {backward}", cost=cost)
        worst = max(forward, backward)
        sign = "≤" if worst <= budget.drift else ">"
        return Verdict(
            accepted=worst <= budget.drift,
            reason=f"drift {worst:.4g} {sign} {budget.drift:g} nats a token "
            f"(live‖base {forward:.4g}, base‖live {backward:.4g})",
            cost=cost,
            metrics={"drift_live_base": forward, "drift_base_live": backward},
        )
