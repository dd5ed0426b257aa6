"""Numbers from records: pure functions, no torch, no store. Each number comes with its count and its interval."""

from __future__ import annotations

from twoclock.measure.cost import CostLine, CostTable, cost_table
from twoclock.measure.decompose import CELLS, Cell, Effects, TwoByTwo, effects, two_by_two
from twoclock.measure.drift import DriftSummary, KlEstimates, categorical_kl, kl_estimates, summarise_drift
from twoclock.measure.evaluations import (
    TaskRetention,
    TaskTable,
    score_curve,
    score_matrix,
    task_retention,
    task_tables,
)
from twoclock.measure.retention import (
    RetentionSummary,
    ScoreMatrix,
    anytime_average,
    backward_transfer,
    final_average,
    forgetting,
    forward_transfer,
    summarise_retention,
)
from twoclock.measure.statistics import (
    Interval,
    bootstrap_interval,
    iqm,
    items_needed,
    mean_interval,
    paired_difference,
    paired_permutation_p,
    t_interval,
    wilson,
)

__all__ = [
    "Interval",
    "wilson",
    "mean_interval",
    "bootstrap_interval",
    "t_interval",
    "iqm",
    "paired_difference",
    "paired_permutation_p",
    "items_needed",
    "ScoreMatrix",
    "RetentionSummary",
    "final_average",
    "anytime_average",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "summarise_retention",
    "CELLS",
    "Cell",
    "Effects",
    "TwoByTwo",
    "effects",
    "two_by_two",
    "DriftSummary",
    "KlEstimates",
    "categorical_kl",
    "kl_estimates",
    "summarise_drift",
    "CostLine",
    "CostTable",
    "cost_table",
    "TaskRetention",
    "TaskTable",
    "score_curve",
    "score_matrix",
    "task_retention",
    "task_tables",
]
