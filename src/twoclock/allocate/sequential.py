"""A paired trial that ends as soon as it is decided, and is bought block by block.

The fixed trial (:class:`~twoclock.allocate.gates.PairedTrialGate`) spends the same on a change that is plainly good, on
one that is plainly bad, and on one that lies in between. This one looks after every block of items. The change is
accepted once "its gain is at most 0" is rejected by betting, a bound that holds at every look together
(:mod:`twoclock.measure.evidence_bound`), so that looking often costs nothing of ``alpha``. It is refused once the items
that are left are not worth their rollouts: once the expected value of what they would tell, over the ``uses`` answers
that the decision is for, is below their price (:mod:`twoclock.measure.trial_value`), or none are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from twoclock.allocate.gates import bad_numbers, since
from twoclock.contracts import Channel, Workbench
from twoclock.errors import BudgetError
from twoclock.seeding import child_seed
from twoclock.types import Budget, Conditioning, Evidence, Item, Proposal, Verdict

__all__ = ["SequentialTrialGate"]

PRIOR_SPREAD = 0.25
"""What a change of the deployed prompt may bring before anything is seen: a standard deviation, in reward."""
LEAST_SPREAD = 0.25
"""The least standard deviation that one item's difference is taken to have: a few equal ones are no certainty."""


@dataclass(frozen=True, kw_only=True)
class SequentialTrialGate:
    """Buys a paired trial in blocks, as the module says. Costs at most ``2 * trial_items * samples`` rollouts."""

    trial_items: int = 96
    """The most fresh items of the trial split."""
    samples: int = 1
    alpha: float = 0.05
    block: int = 8
    uses: int = 1024
    """Answers that the decision is for."""
    price: float = 0.1
    """What one rollout of the trial is worth, in the reward of one answer."""

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
        from twoclock.measure.evidence_bound import Bets  # here: it brings numpy

        if problem := bad_numbers(proposal):
            return Verdict(accepted=False, reason=problem)
        now, then = channel.condition(live, evidence.task), channel.condition(proposal.state, evidence.task)
        if now.id == then.id:
            return Verdict(accepted=True, reason="pool only: what is deployed stays as it is")
        alpha = self.alpha if budget.alpha is None else budget.alpha
        items = bench.items("trial", self.trial_items, child_seed("gate.items", seed))
        before, bets = bench.spent, Bets()
        scores: list[tuple[float, float]] = []
        why = "every item was used"
        for start in range(0, len(items), self.block):
            try:
                scores += self._block(bench, items[start : start + self.block], now, then, seed)
            except BudgetError as error:
                why = f"the budget ended: {error}"
                break
            bets = Bets().update(new - old for old, new in scores)
            if bets.rejects(0.0, alpha):
                why = "decided"
                break
            if not self._worth_going_on(scores, len(items) - len(scores)):
                why = "what is left to learn is not worth its rollouts"
                break
        if not scores:
            return Verdict(accepted=False, reason=f"no trial: {why}", cost=since(bench, before))
        gain = math.fsum(new - old for old, new in scores) / len(scores)
        p = bets.p_value(0.0)
        accepted = p <= alpha and gain > 0
        sign = "≤" if p <= alpha else ">"
        return Verdict(
            accepted=accepted,
            reason=f"trial on {len(scores)} of {len(items)} fresh items: {gain:+.3f}, p = {p:.3g} {sign} α = {alpha:g} "
            f"at every look; {why}",
            cost=since(bench, before),
            metrics={
                "trial_gain": gain,
                "trial_p": p,
                "trial_items": float(len(scores)),
                "trial_live": math.fsum(old for old, _ in scores) / len(scores),
                "trial_offered": math.fsum(new for _, new in scores) / len(scores),
            },
        )

    def _block(
        self, bench: Workbench, items: tuple[Item, ...], now: Conditioning, then: Conditioning, seed: int
    ) -> list[tuple[float, float]]:
        """(live, offered): mean rewards of some items, both sides by the same random numbers."""
        groups = bench.roll_out(items, [now, then], self.samples, child_seed("gate.trial", seed))
        n = self.samples
        return [(math.fsum(g.rewards[:n]) / n, math.fsum(g.rewards[n:]) / n) for g in groups]

    def _worth_going_on(self, scores: list[tuple[float, float]], left: int) -> bool:
        """Whether any number of the items that are left is worth its rollouts; or all of them, where the change is
        believed in but not yet proven: unproven it is refused, and what it would bring is lost."""
        from twoclock.measure.trial_value import NormalPosterior, posterior_gain, value_of_trial

        count = len(scores)
        differences = [new - old for old, new in scores]
        mean = math.fsum(differences) / count
        spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / max(1, count - 1))
        spread = max(spread, LEAST_SPREAD)
        gain = posterior_gain(NormalPosterior(0.0, PRIOR_SPREAD), mean, spread / math.sqrt(count), count)
        each = 2 * self.samples * self.price
        if left and self.uses * gain.mean > each * left:
            return True
        sizes = range(self.block, left + 1, self.block) if left >= self.block else range(left, left + 1)
        return any(value_of_trial(gain, size, sd=spread, cost_per_item=each, uses=self.uses).worth_it for size in sizes)
