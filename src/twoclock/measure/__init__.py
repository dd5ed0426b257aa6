"""Numbers from records: pure functions, no torch, no store. Each number comes with its count and its interval."""

from __future__ import annotations

from twoclock.measure.across_seeds import geometric_ratio, iqm, ratio_of_means, t_interval
from twoclock.measure.asymptote import AsymptoteFit, NoAsymptote, fit_asymptote
from twoclock.measure.cost import CostLine, CostTable, cost_table
from twoclock.measure.curves import CurvePoint, LearningCurve, Spent, area_under, learning_curve
from twoclock.measure.decompose import CELLS, Cell, Effects, TwoByTwo, effects, two_by_two
from twoclock.measure.drift import DriftSummary, KlEstimates, categorical_kl, kl_estimates, summarise_drift
from twoclock.measure.drift_estimators import DriftEstimate, SampledLogprobs, estimate_drift, estimate_drifts
from twoclock.measure.efficiency import Efficiency, Reached, SpeedUp, TimeTo, reach, sample_efficiency, time_to
from twoclock.measure.evaluations import (
    TaskRetention,
    TaskTable,
    score_curve,
    score_matrix,
    stream_worst_case,
    suite_forgetting,
    task_retention,
    task_tables,
)
from twoclock.measure.evidence_bound import DIFFERENCES, REWARDS, Bets
from twoclock.measure.generality import Generality, fit_generality
from twoclock.measure.headroom import Headroom, find_headroom
from twoclock.measure.intervals import Interval, bootstrap_interval, clopper_pearson, mean_interval, wilson
from twoclock.measure.item_forgetting import ItemForgetting, forgotten_items, guessing_ceiling, guessing_floor
from twoclock.measure.labels import conditioning_p
from twoclock.measure.lessons import LessonRecord, Outcomes
from twoclock.measure.limits import LimitCheck, check_limit
from twoclock.measure.matched import MatchedDrift, drift_at, matched_drift
from twoclock.measure.pairs import (
    cluster_difference,
    cluster_mean,
    cluster_ratio,
    paired_bootstrap_p,
    paired_difference,
    paired_permutation_p,
)
from twoclock.measure.persistence import Persistence, PersistencePrior, StepEffect, log_evidence
from twoclock.measure.plasticity import Plasticity, plasticity_ratio
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
    ReferenceSummary,
    RetentionSummary,
    ScoreMatrix,
    summarise_references,
    summarise_retention,
    worst_case_interval,
)
from twoclock.measure.reward_table import RewardTable
from twoclock.measure.sampling import chance_at_k, pass_at_k, pass_at_k_interval, pass_power_k
from twoclock.measure.stream_metrics import (
    METRICS,
    MetricDefinition,
    anytime_average,
    backward_transfer,
    base_forgetting,
    final_average,
    forgetting,
    forward_transfer,
    forward_transfer_alone,
    intransigence,
    worst_case,
)
from twoclock.measure.trial_value import NormalPosterior, TrialValue, best_trial, posterior_gain, value_of_trial
from twoclock.measure.variance import RewardComponents, by_task, decompose_rewards

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
    "METRICS",
    "MetricDefinition",
    "ReferenceSummary",
    "base_forgetting",
    "forward_transfer_alone",
    "intransigence",
    "summarise_references",
    "worst_case",
    "worst_case_interval",
    "stream_worst_case",
    "suite_forgetting",
    "ItemForgetting",
    "guessing_ceiling",
    "guessing_floor",
    "forgotten_items",
    "CurvePoint",
    "LearningCurve",
    "Spent",
    "area_under",
    "learning_curve",
    "Plasticity",
    "plasticity_ratio",
    "Efficiency",
    "Reached",
    "SpeedUp",
    "TimeTo",
    "sample_efficiency",
    "reach",
    "time_to",
    "AsymptoteFit",
    "NoAsymptote",
    "fit_asymptote",
    "LimitCheck",
    "MatchedDrift",
    "drift_at",
    "matched_drift",
    "check_limit",
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
    "RewardTable",
    "RewardComponents",
    "decompose_rewards",
    "by_task",
    "conditioning_p",
    "Headroom",
    "find_headroom",
    "LessonRecord",
    "Outcomes",
    "Persistence",
    "PersistencePrior",
    "StepEffect",
    "log_evidence",
    "Generality",
    "fit_generality",
    "Bets",
    "DIFFERENCES",
    "REWARDS",
    "NormalPosterior",
    "TrialValue",
    "posterior_gain",
    "value_of_trial",
    "best_trial",
]
