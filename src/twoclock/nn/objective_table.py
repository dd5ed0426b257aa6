"""The objectives by name: each a row of data, with its paper and its defaults.

The formulas that a row's choices stand for are in :mod:`twoclock.nn.objectives`. CISPO's cap has two conventions in
public code, which :func:`tau_from_trl` and :func:`tau_from_verl` translate into the bounds kept here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from twoclock.errors import ConfigError

__all__ = ["OBJECTIVES", "Objective", "ObjectiveName", "tau_from_trl", "tau_from_verl", "wrong_bounds"]

ObjectiveName = Literal["grpo", "dr_grpo", "dapo", "cispo", "gspo", "rloo", "reinforce"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One row: data only. The formulas are at the top of :mod:`twoclock.nn.objectives`."""

    name: str
    source: str
    """The paper, with its arXiv id where it has one."""
    advantage: Literal["std", "centred", "leave_one_out", "batch"]
    ratio: Literal["token", "sequence", "none"]
    clip: Literal["ppo", "cap", "none"]
    clip_low: float = 0.0
    """``ppo``: ε_low, the lower bound being 1 − ε_low; ``cap``: τ_min, the lower bound itself."""
    clip_high: float = 0.0
    """``ppo``: ε_high, the upper bound being 1 + ε_high; ``cap``: τ_max, the upper bound itself."""
    aggregation: Literal["sequence_mean", "token_mean", "constant", "sequence_value", "sequence_sum"]

    def __post_init__(self) -> None:
        problems = []
        if self.ratio == "none" and self.clip != "none":
            problems.append(f"objective {self.name!r}: without a ratio there is nothing to clip; set clip='none'")
        if self.aggregation == "sequence_value" and self.ratio != "sequence":
            problems.append(
                f"objective {self.name!r}: aggregation 'sequence_value' takes a ratio that is one value a sequence; "
                "set ratio='sequence' or aggregation='sequence_mean'"
            )
        problems += wrong_bounds(self, self.clip_low, self.clip_high)
        if problems:
            raise ConfigError(problems)

    @property
    def on_policy_only(self) -> bool:
        """Whether rollouts of any but the present weights bias it: it has no importance weights."""
        return self.ratio == "none"


def wrong_bounds(objective: Objective, low: float, high: float) -> list[str]:
    """The mistakes in these bounds for the objective's kind of clip, as sentences; none where they make sense."""
    if objective.clip == "none":
        return []
    what = f"objective {objective.name!r}"
    if objective.clip == "ppo" and not (low >= 0 and high >= 0):
        return [f"{what}: clip_low and clip_high are distances from 1, 0 or more; got {low} and {high}"]
    if objective.clip == "cap" and not (0 <= low <= high and high > 0):
        return [
            f"{what}: clip_low and clip_high bound the weight itself, 0 <= low <= high and high > 0; got {low}, {high}"
        ]
    return []


_ROWS = (
    Objective(
        name="grpo",
        source="Shao et al., arXiv:2402.03300",
        advantage="std",
        ratio="token",
        clip="ppo",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="sequence_mean",
    ),
    Objective(
        name="dr_grpo",
        source="Liu et al., arXiv:2503.20783",
        advantage="centred",
        ratio="token",
        clip="ppo",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="constant",
    ),
    Objective(
        name="dapo",
        source="Yu et al., arXiv:2503.14476",
        advantage="std",
        ratio="token",
        clip="ppo",
        clip_low=0.2,
        clip_high=0.28,
        aggregation="token_mean",
    ),
    Objective(
        name="cispo",
        source="MiniMax, arXiv:2506.13585",
        advantage="std",
        ratio="token",
        clip="cap",
        clip_low=0.0,
        clip_high=4.0,
        aggregation="token_mean",
    ),
    Objective(
        name="gspo",
        source="Zheng et al., arXiv:2507.18071",
        advantage="std",
        ratio="sequence",
        clip="ppo",
        clip_low=3e-4,
        clip_high=4e-4,
        aggregation="sequence_value",
    ),
    Objective(
        name="rloo",
        source="Ahmadian et al., arXiv:2402.14740",
        advantage="leave_one_out",
        ratio="none",
        clip="none",
        aggregation="sequence_sum",
    ),
    Objective(
        name="reinforce",
        source="Williams 1992, Machine Learning 8, 229-256",
        advantage="batch",
        ratio="none",
        clip="none",
        aggregation="sequence_sum",
    ),
)

OBJECTIVES: Mapping[str, Objective] = MappingProxyType({row.name: row for row in _ROWS})


def tau_from_trl(epsilon_high: float) -> tuple[float, float]:
    """(τ_min, τ_max) of TRL's setting for CISPO: a cap at ``epsilon_high`` itself, and no lower bound."""
    if not epsilon_high > 0:
        raise ConfigError(f"TRL's epsilon_high caps the weight itself and is above 0, such as 5.0; got {epsilon_high}")
    return 0.0, float(epsilon_high)


def tau_from_verl(clip_ratio_low: float, clip_ratio_high: float) -> tuple[float, float]:
    """(τ_min, τ_max) of verl's settings for CISPO: distances from 1, so that 1.0 and 3.0 mean [0, 4]."""
    if not (clip_ratio_low >= 0 and clip_ratio_high >= 0):
        raise ConfigError(
            f"verl's clip ratios are distances from 1, 0 or more; got {clip_ratio_low} and {clip_ratio_high}"
        )
    return max(0.0, 1.0 - clip_ratio_low), 1.0 + clip_ratio_high
