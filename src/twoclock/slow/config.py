"""What a user may set of any slow channel: the objective, its regulariser, and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoclock.errors import ConfigError, unknown_name
from twoclock.nn.objective_table import OBJECTIVES, wrong_bounds

__all__ = ["KL_FORMS", "OBJECTIVE_NAMES", "TrainingConfig"]

OBJECTIVE_NAMES = (*OBJECTIVES, "distill")
KL_FORMS = ("none", "k1_reward", "k2_loss", "k3_loss")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the weights learn, whatever part of them may move; formulas: :mod:`twoclock.nn.objectives`."""

    objective: str = "grpo"
    """``grpo``, ``dr_grpo``, ``dapo``, ``cispo``, ``gspo``, ``rloo``, ``reinforce``; or ``distill``: no reward, but the
    reverse KL from the policy under the learned prompt to the policy under the prompt that the rollout had."""
    grouping: Literal["item", "prompt"] = "item"
    """One mean and deviation over all rollouts of an item, whatever their prompt (Fast-Slow Training), or one for each
    prompt of an item, which takes at least two rollouts a prompt."""
    clip_low: float | None = None
    clip_high: float | None = None
    """None: the objective's own. For cispo the least and greatest weight τ themselves, for the others ε."""
    kl: Literal["none", "k1_reward", "k2_loss", "k3_loss"] = "none"
    """How the reverse KL to the base under the same prompt is held down. ``k1_reward`` takes β Σ_t log π/π_base off the
    advantage; ``k2_loss`` adds β ½ (log π/π_base)² to the loss: on-policy the same gradient. ``k3_loss`` is what many
    libraries do; its gradient is that of the other KL."""
    kl_coef: float = 0.0
    """β; where ``kl_target`` is set, its first value."""
    kl_target: float | None = None
    """Nats a token that the KL of the rollouts is steered to: β doubles above 1.5 times the target, halves below it
    divided by 1.5 (the adaptive penalty of PPO, arXiv:1707.06347, section 4)."""
    overlong: Literal["keep", "mask", "soft"] = "keep"
    """Answers cut off at the token limit: learned from, left out of the loss, or (DAPO) paid less the further they
    reach into the last ``overlong_buffer`` tokens."""
    overlong_buffer: int = 4
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    steps_per_round: int = 1
    """Optimizer steps a round, each on its share of the groups."""
    distill_over: Literal["tokens", "vocabulary"] = "tokens"
    """For ``distill``: the KL from the log-probabilities of the sampled tokens, or exact over the vocabulary at each
    place where the policy can: the same gradient in the mean, without the noise of which token was drawn."""
    distill_forward: float = 0.0
    """Over the vocabulary, the share of the other direction, KL(teacher‖policy), at the same places. The reverse KL's
    gradient vanishes at a token that the policy all but never says, however sure of it the teacher is."""

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        problems = [
            f"{name} must be {rule}; got {getattr(self, name)!r}"
            for name, rule, ok in (
                ("learning_rate", "above 0", self.learning_rate > 0),
                ("weight_decay", "0 or more", self.weight_decay >= 0),
                ("beta1", "from 0 to below 1", 0 <= self.beta1 < 1),
                ("beta2", "from 0 to below 1", 0 <= self.beta2 < 1),
                ("steps_per_round", "a whole number from 1", self.steps_per_round >= 1),
                ("max_grad_norm", "above 0", self.max_grad_norm > 0),
                ("kl_coef", "0 or more", self.kl_coef >= 0),
                ("kl_target", "above 0", self.kl_target is None or self.kl_target > 0),
                ("distill_forward", "from 0 to 1", 0 <= self.distill_forward <= 1),
                ("overlong_buffer", "a whole number from 1", self.overlong_buffer >= 1),
            )
            if not ok
        ]
        for name, known in (
            ("objective", OBJECTIVE_NAMES),
            ("grouping", ("item", "prompt")),
            ("kl", KL_FORMS),
            ("overlong", ("keep", "mask", "soft")),
            ("distill_over", ("tokens", "vocabulary")),
        ):
            if getattr(self, name) not in known:
                problems.append(unknown_name(name, getattr(self, name), known))
        if self.kl == "none" and (self.kl_coef > 0 or self.kl_target is not None):
            problems.append('kl_coef and kl_target need a form of KL: set kl = "k1_reward" or "k2_loss"')
        if self.kl != "none" and self.kl_coef == 0 and self.kl_target is None:
            problems.append(f'kl = "{self.kl}" needs kl_coef above 0, or a kl_target')
        if self.objective == "distill" and (self.kl != "none" or self.overlong == "soft"):
            problems.append('objective = "distill" learns from no reward: kl and overlong = "soft" have no place in it')
        problems += self._clip_problems()
        if self.steps_per_round > 1 and self.objective in ("rloo", "reinforce"):
            problems.append(
                f'objective = "{self.objective}" has no importance weights, so it takes one step a round; set '
                "steps_per_round = 1, or another objective"
            )
        return problems

    def _clip_problems(self) -> list[str]:
        row = OBJECTIVES.get(self.objective)
        if row is None or (self.clip_low is None and self.clip_high is None):
            return []
        if row.clip == "none":
            return [f'objective = "{row.name}" clips nothing: leave clip_low and clip_high out']
        low = row.clip_low if self.clip_low is None else self.clip_low
        high = row.clip_high if self.clip_high is None else self.clip_high
        return wrong_bounds(row, low, high)
