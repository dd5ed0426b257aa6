"""The out-of-distribution probe: from the answers of base and live system on a suite of variants to a verdict.

A model whose score rises in distribution and not at N-1, or not in other words, learned a template. The figures of
each split stand in ``ood_figures``, the decision table in ``ood_verdict``. Items are the unit for one checkpoint
(``probe``), training seeds for a method (``over_seeds``): one seed can show either story.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twoclock.measure.across_seeds import t_interval
from twoclock.measure.intervals import Interval, check_level, unknown
from twoclock.measure.ood_cautions import OUT, cautions
from twoclock.measure.ood_figures import figures_of
from twoclock.measure.ood_records import Answer, Settings, SplitFigures, answers_of
from twoclock.measure.ood_verdict import Finding, decide

__all__ = ["OodReport", "holm", "over_seeds", "probe"]

Row = Answer | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class OodReport:
    """A probe's splits in numbers, and what they say."""

    splits: Mapping[str, SplitFigures]
    findings: tuple[Finding, ...]
    """The rows of the decision table that hold, the weightiest first."""
    cautions: tuple[str, ...]
    seeds: int = 1
    """How many training runs stand behind it."""
    seed_verdicts: Mapping[str, int] | None = None
    """How many of the runs had each verdict on their own, where there are several."""

    @property
    def verdict(self) -> str:
        """The headline: a ``verdict`` of the decision table."""
        return self.findings[0].verdict

    @property
    def tests(self) -> int:
        """How many splits were declared and tested; Holm's correction is over them."""
        return sum(name in self.splits for name in OUT)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "verdict": self.verdict,
            "seeds": self.seeds,
            "tests": self.tests,
            "findings": [finding.as_dict() for finding in self.findings],
            "cautions": list(self.cautions),
            "splits": {name: split.as_dict() for name, split in self.splits.items()},
            **({"seed_verdicts": dict(self.seed_verdicts)} if self.seed_verdicts is not None else {}),
        }


def probe(
    base: Sequence[Row], live: Sequence[Row], *, level: float = 0.95, seed: int = 0, resamples: int = 10_000
) -> OodReport:
    """The probe of one checkpoint from the answers of both systems, all variants together: one row an item.

    Raises ValueError where the two did not answer the same items, where ``id`` is missing, or where a partner is.
    """
    check_level(level)
    settings = Settings(level, seed, resamples)
    before, after = answers_of(base), answers_of(live)
    _check(before, after)
    splits = {variant: figures_of(variant, before, after, settings) for variant in before}
    return _report(_corrected(splits), seeds=1)


def _check(base: Mapping[str, Mapping[str, Answer]], live: Mapping[str, Mapping[str, Answer]]) -> None:
    if "id" not in base:
        raise ValueError(f"a probe needs answers on 'id'; got {', '.join(base) or 'none'}")
    if set(base) != set(live):
        raise ValueError(f"base and live system must answer the same variants; got {sorted(base)} and {sorted(live)}")
    for variant, answers in base.items():
        odd = set(answers) ^ set(live[variant])
        if odd:
            raise ValueError(
                f"base and live system must answer the same items of '{variant}'; {len(odd)} stand on one side only, "
                f"such as {min(odd)}"
            )
        lost = [a.partner for a in answers.values() if a.partner is not None and a.partner not in base["id"]]
        if lost:
            raise ValueError(
                f"{len(lost)} items of '{variant}' have partners that are not among the answers on 'id', such as "
                f"{lost[0]}; evaluate 'id' on the items of the same suite"
            )
        partnered = [a.partner is not None for a in answers.values()]
        if any(partnered) and not all(partnered):
            raise ValueError(
                f"{partnered.count(False)} of {len(partnered)} items of '{variant}' have no partner and the others do; "
                "pair all of a variant or none"
            )


def _corrected(splits: Mapping[str, SplitFigures]) -> dict[str, SplitFigures]:
    declared = [name for name in OUT if name in splits and not math.isnan(splits[name].p)]
    corrected = dict(zip(declared, holm([splits[name].p for name in declared]), strict=True))
    return {
        name: replace(split, p_holm=corrected[name]) if name in corrected else split for name, split in splits.items()
    }


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given: p₍ᵢ₎ times the tests not yet rejected, never falling."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def _report(
    splits: Mapping[str, SplitFigures], *, seeds: int, seed_verdicts: Mapping[str, int] | None = None
) -> OodReport:
    return OodReport(
        splits=splits,
        findings=decide(splits),
        cautions=cautions(splits),
        seeds=seeds,
        seed_verdicts=seed_verdicts,
    )


def over_seeds(reports: Sequence[OodReport], level: float = 0.95) -> OodReport:
    """The same over training seeds: each figure's mean over the runs with Student's t, judged by the same table. A
    figure that is unknown in one run is unknown here. ValueError where there are no runs, or of other splits."""
    check_level(level)
    if not reports:
        raise ValueError("at least one probe is needed; got none")
    names = list(reports[0].splits)
    if any(list(report.splits) != names for report in reports):
        raise ValueError("probes of several seeds must have the same splits: run them with the same variants")
    splits = {name: _over_seeds([report.splits[name] for report in reports], level) for name in names}
    verdicts = Counter(report.verdict for report in reports)
    return _report(_corrected(splits), seeds=len(reports), seed_verdicts=dict(verdicts))


def _over_seeds(runs: Sequence[SplitFigures], level: float) -> SplitFigures:
    first = runs[0]

    def mean(name: str) -> Interval:
        intervals = [run.intervals[name] for run in runs]
        if not all(interval.is_known for interval in intervals):
            return unknown(len(runs), level, method=f"unknown in a run: {intervals[0].method}", seeds=len(runs))
        return t_interval([interval.estimate for interval in intervals], level)

    figures = {name: mean(name) for name in first.intervals}
    return replace(
        first,
        items=min(run.items for run in runs),
        judged=min(run.judged for run in runs),
        paired=all(run.paired for run in runs),
        p=_t_test_p([run.did.estimate for run in runs]),
        **figures,  # type: ignore[arg-type]
    )


def _t_test_p(values: Sequence[float]) -> float:
    """Of a mean of 0, two-sided; NaN for fewer than two runs, or where a value is unknown."""
    if len(values) < 2 or any(math.isnan(value) for value in values):
        return math.nan
    if len(set(values)) == 1:
        return 1.0 if values[0] == 0 else 0.0
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(values, 0.0).pvalue)
