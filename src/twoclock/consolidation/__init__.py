"""Consolidation: lessons that have proved lasting move from the fast clock to the weights. Distil, verify, retire; if
any check fails, everything is as it was."""

from __future__ import annotations

from twoclock.consolidation.choice import Choice, LessonEvidence, Rule, choose, lasting_rule, lesson_evidence
from twoclock.consolidation.driver import Consolidated, Consolidation
from twoclock.consolidation.plan import ConsolidationPlan, plan_consolidation
from twoclock.consolidation.settings import ConsolidationSettings

__all__ = [
    "Choice",
    "Consolidated",
    "Consolidation",
    "ConsolidationPlan",
    "ConsolidationSettings",
    "LessonEvidence",
    "Rule",
    "choose",
    "lasting_rule",
    "lesson_evidence",
    "plan_consolidation",
]
