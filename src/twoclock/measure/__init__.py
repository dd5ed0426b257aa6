"""Numbers from records: pure functions, no torch, no store. Each number comes with its count and its interval."""

from __future__ import annotations

from twoclock.measure.across_seeds import geometric_ratio, iqm, ratio_of_means, t_interval
from twoclock.measure.cost import CostLine, CostTable, cost_table
from twoclock.measure.decompose import CELLS, Cell, Effects, TwoByTwo, effects, two_by_two
from twoclock.measure.drift import DriftSummary, KlEstimates, categorical_kl, kl_estimates, summarise_drift
from twoclock.measure.drift_estimators import DriftEstimate, SampledLogprobs, estimate_drift, estimate_drifts
from twoclock.measure.evaluations import (
    TaskRetention,
    TaskTable,
    score_curve,
    score_matrix,
    task_retention,
    task_tables,
)
from twoclock.measure.intervals import Interval, bootstrap_interval, clopper_pearson, mean_interval, wilson
from twoclock.measure.pairs import (
    cluster_difference,
    cluster_mean,
    cluster_ratio,
    paired_bootstrap_p,
    paired_difference,
    paired_permutation_p,
)
from twoclock.measure.power import (
    ItemsNeeded,
    detectable_difference,
    discordance_of,
    items_needed,
    items_needed_for_gap,
    items_needed_unpaired,
    items_table,
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
from twoclock.measure.sampling import chance_at_k, pass_at_k, pass_at_k_interval, pass_power_k

__all__ = [
    "Interval",
    "wilson",
    "mean_interval",
    "bootstrap_interval",
    "t_interval",
    "iqm",
    "paired_difference",
    "paired_permutation_p",
    "cluster_difference",
    "cluster_mean",
    "cluster_ratio",
    "paired_bootstrap_p",
    "clopper_pearson",
    "geometric_ratio",
    "ratio_of_means",
    "ItemsNeeded",
    "items_needed",
    "items_needed_for_gap",
    "items_needed_unpaired",
    "items_table",
    "detectable_difference",
    "discordance_of",
    "chance_at_k",
    "pass_at_k",
    "pass_at_k_interval",
    "pass_power_k",
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
    "DriftEstimate",
    "SampledLogprobs",
    "estimate_drift",
    "estimate_drifts",
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
