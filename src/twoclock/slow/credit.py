"""Who is credited with what: from graded groups to an advantage a rollout, or a token.

Three sources add up: the reward of the task within its group; where it is asked for, the KL to the base as a reward
(k1), centred within the group but never divided by its deviation, as a dead group would otherwise learn the KL's noise
at full scale; and for distillation, instead of both, a token's own advantage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from twoclock.contracts import Trainable
from twoclock.errors import ConfigError
from twoclock.nn.advantages import advantages, soft_overlong_penalty
from twoclock.nn.objective_table import Objective
from twoclock.slow.config import TrainingConfig
from twoclock.types import Conditioning, Evidence, Group, Item, Rollout

__all__ = ["Credited", "Teacher", "between_prompts", "credit_distilled", "credit_rewards", "scored_under"]

Way = Callable[[Conditioning, Item], Conditioning]
"""(a rollout's own conditioning, its item) → what it is to be scored under."""

Teacher = Conditioning | Callable[[Item], Conditioning]
"""A conditioning under the weights of the rollout, or what says by item the whole conditioning, weights and all."""

Scorer = Callable[[Sequence[tuple[Group, Rollout]], Sequence[Way]], list[list[list[float]]]]
"""For each way to condition, for each rollout, the log-probability of each of its tokens."""


@dataclass(frozen=True)
class Credited:
    """A rollout and its advantage: one number, or one a token."""

    rollout: Rollout
    advantage: float | tuple[float, ...]
    left_out: bool = False
    """Whether the rollout plays no part at all: it was cut off, and such ones are masked."""

    @property
    def counts(self) -> bool:
        """Whether a penalty on the policy counts it, whatever it was paid."""
        return bool(self.rollout.completion.tokens) and not self.left_out

    @property
    def teaches(self) -> bool:
        """Whether any gradient comes from it."""
        found = self.advantage if isinstance(self.advantage, tuple) else (self.advantage,)
        return bool(self.rollout.completion.tokens) and any(found)


def credit_rewards(
    config: TrainingConfig,
    objective: Objective,
    evidence: Evidence,
    kl_coef: float,
    kl_of: Mapping[int, float] | None,
) -> list[list[Credited]]:
    """One list a group. ``kl_of`` has, by ``id(rollout)``, the sequence's k1 = Σ_t log π/π_base where it is a reward.

    Raises ConfigError where per-prompt grouping is undefined: a prompt with one rollout has no deviation.
    """
    units = [unit for group in evidence.groups for unit in _units(config, group, evidence)]
    limit = evidence.sampling.max_new_tokens

    def paid(rollout: Rollout) -> float:
        if config.overlong != "soft":
            return rollout.reward
        length = len(rollout.completion.tokens)
        return rollout.reward + soft_overlong_penalty(
            length, max_tokens=limit, buffer=min(config.overlong_buffer, limit)
        )

    earned = advantages(objective, [[paid(r) for r in unit] for unit in units])
    by_id = {id(r): a for unit, row in zip(units, earned, strict=True) for r, a in zip(unit, row, strict=True)}
    if kl_of is not None:
        for unit in units:
            mean = math.fsum(kl_of[id(r)] for r in unit) / len(unit)
            for r in unit:
                by_id[id(r)] -= kl_coef * (kl_of[id(r)] - mean)
    return [
        [Credited(r, 0.0 if (out := _left_out(config, r)) else by_id[id(r)], out) for r in g.rollouts]
        for g in evidence.groups
    ]


def _left_out(config: TrainingConfig, rollout: Rollout) -> bool:
    return config.overlong == "mask" and rollout.completion.finish == "length"


def _units(config: TrainingConfig, group: Group, evidence: Evidence) -> list[list[Rollout]]:
    """The rollouts that share a mean."""
    if config.grouping == "item":
        return [list(group.rollouts)]
    by_text: dict[str, list[Rollout]] = {}
    for rollout in group.rollouts:
        by_text.setdefault(evidence.conditionings[rollout.conditioning_id].text_id, []).append(rollout)
    if any(len(unit) < 2 for unit in by_text.values()):
        raise ConfigError(
            'grouping = "prompt" needs at least two rollouts of an item under each prompt; item '
            f"'{group.item.id}' has {', '.join(str(len(u)) for u in by_text.values())}: raise [rollouts] per_item, "
            'lower prompts_per_item, or set grouping = "item"'
        )
    return list(by_text.values())


def credit_distilled(
    config: TrainingConfig, evidence: Evidence, teacher: Teacher, score: Scorer, *, exact: bool = False
) -> list[list[Credited]]:
    """Reverse KL from the policy under the teacher's prompt, at the tokens that were sampled without it:
    A_t = log π(y_t | teacher, x, y_<t) − log π(y_t | own, x, y_<t), both under the weights before the step.

    On-policy, −A_t ∇log π is an unbiased estimate of the gradient of each position's KL(π‖π_teacher); what a token does
    to the KL of later positions is left out, as is usual in on-policy distillation. A rollout that was sampled under
    the teacher itself has nothing to learn: exact zeros. ``exact``: the training takes the KL of each place over the
    whole vocabulary, and all that is said here is who learns: advantages of 1.
    """
    pairs = [(g, r) for g in evidence.groups for r in g.rollouts if r.completion.tokens and not _left_out(config, r)]

    def taught(own: Conditioning, item: Item) -> Conditioning:
        return teacher(item) if callable(teacher) else replace(teacher.for_item(item), delta=own.delta)

    def told(rollout: Rollout) -> Conditioning:
        return evidence.conditionings[rollout.conditioning_id]

    pairs = [(g, r) for g, r in pairs if told(r).id != taught(told(r), g.item).id]
    if exact:
        learners = {id(r) for _, r in pairs}
        return [[Credited(r, float(id(r) in learners)) for r in group.rollouts] for group in evidence.groups]
    student, prompted = score(pairs, [lambda own, _: own, taught]) if pairs else ([], [])
    by_id = {
        id(r): tuple(t - s for s, t in zip(one, other, strict=True))
        for (_, r), one, other in zip(pairs, student, prompted, strict=True)
    }
    return [[Credited(r, by_id.get(id(r), 0.0)) for r in group.rollouts] for group in evidence.groups]


def scored_under(model: Trainable, evidence: Evidence, weights: Conditioning) -> Scorer:
    """Scores rollouts under the weights of ``weights`` and the text that each way makes of the rollout's own."""

    def score(pairs: Sequence[tuple[Group, Rollout]], ways: Sequence[Way]) -> list[list[list[float]]]:
        found: list[list[list[float]]] = [[[] for _ in pairs] for _ in ways]
        together: dict[tuple[Conditioning, ...], list[int]] = {}
        for index, (group, rollout) in enumerate(pairs):
            own = replace(evidence.conditionings[rollout.conditioning_id], delta=weights.delta)
            together.setdefault(tuple(way(own, group.item) for way in ways), []).append(index)
        for told, indices in together.items():
            rows = model.logprobs_under(
                [pairs[i][0].item.prompt for i in indices],
                [pairs[i][1].completion.tokens for i in indices],
                told,
                temperature=evidence.sampling.temperature,
            )
            for way, values in enumerate(rows):
                for i, row in zip(indices, values, strict=True):
                    found[way][i] = row
        return found

    return score


def between_prompts(evidence: Evidence) -> float:
    """The share of the reward's sum of squares within items that lies between prompts: near 1, an advantage ranks
    prompts; near 0, it ranks answers. 0 where there is no variance, or one prompt."""
    between = whole = 0.0
    for group in evidence.groups:
        mean = group.mean_reward
        by_text: dict[str, list[float]] = {}
        for rollout in group.rollouts:
            by_text.setdefault(evidence.conditionings[rollout.conditioning_id].text_id, []).append(rollout.reward)
        whole += math.fsum((r - mean) ** 2 for r in group.rewards)
        between += math.fsum(len(rs) * (math.fsum(rs) / len(rs) - mean) ** 2 for rs in by_text.values())
    return between / whole if whole > 0 else 0.0
