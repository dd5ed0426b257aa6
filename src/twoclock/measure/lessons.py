"""What is known of one lesson from its graded applications: how often it applied, helped and was contradicted.

A :class:`LessonRecord` is a sum of sufficient statistics, so it is updated in any order, added across processes, and
small: a few numbers for each step and each item. From it follow three posteriors: of the *effect* (the reward with the
lesson minus without), of its *persistence* (how long it stays true) and of its *generality* (how widely it holds).

Two designs speak of the effect. *Paired*: a group has rollouts of one item with and without the lesson; its difference
of means is free of the item's difficulty and weighs ``w = n₁ n₀ / (n₁ + n₀)``, as its variance is σ²/w. *Randomised*: a
coin decides for a whole read whether the lesson is shown; the two arms' means differ by chance alone but for the
lesson. A group with one arm that no coin chose says that the lesson applied, and nothing of what it did: a lesson is
shown where it fits, and where it fits is not like elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from twoclock.measure.generality import SIZE, Generality, fit_generality
from twoclock.measure.persistence import Persistence, PersistencePrior
from twoclock.measure.trial_value import NormalPosterior, posterior_gain
from twoclock.types import Conditioning, Evidence, Rollout

__all__ = ["LessonRecord", "Outcomes"]

VARIANCE = 0.25
"""The variance of one reward where nothing was measured: a fair coin's, the most that rewards in [0, 1] have."""
PRIOR_OUTCOMES = 8
"""How many outcomes it takes to outweigh ``VARIANCE``: a few equal differences are no proof that there is no noise."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Sums over graded applications; ``a + b`` is those of both."""

    groups: int = 0
    """Groups with both arms, each of weight w and difference d."""
    weight: float = 0.0
    """Σ w."""
    weighted: float = 0.0
    """Σ w d."""
    squares: float = 0.0
    """Σ w d²."""
    shown: int = 0
    """Rollouts of the randomised design with the lesson, and below those without it."""
    shown_sum: float = 0.0
    shown_squares: float = 0.0
    held: int = 0
    held_sum: float = 0.0
    held_squares: float = 0.0
    inner: float = 0.0
    """Squared distances of paired rollouts from their arm's mean: the noise of one rollout, with its degrees of
    freedom below."""
    inner_freedom: int = 0

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def _parts(self) -> list[tuple[float, float, float, int]]:
        """Weight, difference, scatter and degrees of freedom of each design that was used."""
        parts = []
        if self.groups:
            scatter = max(0.0, self.squares - self.weighted**2 / self.weight)
            parts.append((self.weight, self.weighted / self.weight, scatter, self.groups - 1))
        if self.shown and self.held:
            scatter = self.shown_squares - self.shown_sum**2 / self.shown
            scatter += self.held_squares - self.held_sum**2 / self.held
            weight = self.shown * self.held / (self.shown + self.held)
            difference = self.shown_sum / self.shown - self.held_sum / self.held
            parts.append((weight, difference, max(0.0, scatter), self.shown + self.held - 2))
        return parts

    @property
    def difference(self) -> float | None:
        """The effect as measured: both designs' differences by their weights; None until both arms were seen."""
        parts = self._parts
        total = math.fsum(w for w, *_ in parts)
        return math.fsum(w * d for w, d, *_ in parts) / total if parts else None

    @property
    def scatter(self) -> tuple[float, int]:
        """Σ w (d - d̄)² and its degrees of freedom: σ² of one rollout, what the effect varies by included."""
        return math.fsum(s for *_, s, _ in self._parts), sum(f for *_, f in self._parts)

    def error(self, scatter: float | None = None, freedom: int = 0) -> float | None:
        """The standard error of :attr:`difference`, from its own scatter or a given one, drawn to a coin's."""
        own, own_freedom = (scatter, freedom) if scatter is not None else self.scatter
        total = math.fsum(w for w, *_ in self._parts)
        variance = (own + PRIOR_OUTCOMES * VARIANCE) / (own_freedom + PRIOR_OUTCOMES)
        return math.sqrt(variance / total) if total else None


@dataclass(frozen=True, kw_only=True)
class LessonRecord:
    """One lesson's graded applications, as an immutable value; :meth:`update` gives the next one."""

    lesson: str
    """Its id."""
    applied: int = 0
    """Groups in which it was shown."""
    helped: int = 0
    """Of the groups with both arms: those that did better with it."""
    contradicted: int = 0
    """Those that did worse with it; the others made no difference."""
    steps: Mapping[int, Outcomes] = field(default_factory=dict)
    """By step, the caller's unit: the phase, or the round."""
    items: Mapping[tuple[str, str], Outcomes] = field(default_factory=dict)
    """By task and item: the paired groups alone."""

    def update(
        self,
        with_lesson: Sequence[float],
        without: Sequence[float],
        *,
        item: str,
        task: str = "",
        step: int = 0,
        randomised: bool = False,
        baseline: float = 0.0,
    ) -> LessonRecord:
        """With one group: the rewards in [0, 1] of its rollouts with the lesson and without.

        Where one of the two is empty the group counts as an application; it speaks of the effect only if a coin left
        the other arm out (``randomised``), and then ``baseline`` (what the item was expected to earn, from elsewhere)
        may be taken off to remove the items' variance. ValueError for rewards outside [0, 1] and for two empty arms.
        """
        with_lesson, without = [float(x) for x in with_lesson], [float(x) for x in without]
        _check(with_lesson, without, item, baseline)
        m1, m0 = _mean(with_lesson), _mean(without)
        own = Outcomes()
        if with_lesson and without:
            weight = len(with_lesson) * len(without) / (len(with_lesson) + len(without))
            d = m1 - m0
            inner = math.fsum((x - m1) ** 2 for x in with_lesson) + math.fsum((x - m0) ** 2 for x in without)
            own = Outcomes(
                groups=1,
                weight=weight,
                weighted=weight * d,
                squares=weight * d * d,
                inner=inner,
                inner_freedom=len(with_lesson) + len(without) - 2,
            )
        elif randomised:
            arm = [x - baseline for x in (with_lesson or without)]
            count, sum_, squares = len(arm), math.fsum(arm), math.fsum(x * x for x in arm)
            if with_lesson:
                own = Outcomes(shown=count, shown_sum=sum_, shown_squares=squares)
            else:
                own = Outcomes(held=count, held_sum=sum_, held_squares=squares)
        steps, items = dict(self.steps), dict(self.items)
        if own != Outcomes():
            steps[step] = steps.get(step, Outcomes()) + own
        if own.groups:
            items[task, item] = items.get((task, item), Outcomes()) + own
        return replace(
            self,
            applied=self.applied + bool(with_lesson),
            helped=self.helped + bool(own.groups and m1 > m0),
            contradicted=self.contradicted + bool(own.groups and m1 < m0),
            steps=steps,
            items=items,
        )

    def observe(
        self, evidence: Evidence, shown: Callable[[Rollout, Conditioning], bool], *, step: int | None = None
    ) -> LessonRecord:
        """With every group of one round; ``shown`` says of a rollout whether it had the lesson. Old rollouts and those
        whose grading failed are left out, and so are groups that the lesson is not in. ``step`` is the phase unless
        given."""
        record = self
        for group in evidence.groups:
            arms: tuple[list[float], list[float]] = ([], [])
            for rollout in group.rollouts:
                if rollout.age == 0 and rollout.grade.failure is None:
                    has = shown(rollout, evidence.conditionings[rollout.conditioning_id])
                    arms[0 if has else 1].append(rollout.reward)
            if arms[0]:
                at = evidence.phase if step is None else step
                record = record.update(arms[0], arms[1], item=group.item.id, task=evidence.task, step=at)
        return record

    def __add__(self, other: LessonRecord) -> LessonRecord:
        """The applications of both. ValueError for another lesson's."""
        if other.lesson != self.lesson:
            raise ValueError(f"records of two lessons do not add up: {self.lesson!r} and {other.lesson!r}")
        return replace(
            self,
            applied=self.applied + other.applied,
            helped=self.helped + other.helped,
            contradicted=self.contradicted + other.contradicted,
            steps=_joined(self.steps, other.steps),
            items=_joined(self.items, other.items),
        )

    # -------------------------------------------------------------------------------------------------- the posteriors

    @property
    def outcomes(self) -> Outcomes:
        """All together."""
        return _total(self.steps.values())

    def effect(self, prior: NormalPosterior | None = None) -> NormalPosterior:
        """The mean effect over the groups so far, whatever changed between them: N(0, 0.25²) unless another prior is
        given (that of a pool of lessons, say), updated with the measured difference and its error. ``n`` counts the
        groups and randomised rollouts."""
        start = prior or NormalPosterior(0.0, SIZE)
        total = self.outcomes
        difference, error = total.difference, total.error()
        if difference is None or error is None:
            return start
        return posterior_gain(start, difference, error, total.groups + total.shown + total.held)

    def persistence(self, prior: PersistencePrior | None = None) -> Persistence:
        """From the effect of each step; the error of a step comes from the scatter within steps, so that a lesson that
        flips between them does not hide behind its own flips."""
        found = Persistence(prior=prior or PersistencePrior())
        within = [outcomes.scatter for outcomes in self.steps.values()]
        scatter, freedom = math.fsum(s for s, _ in within), sum(f for _, f in within)
        for step, outcomes in sorted(self.steps.items()):
            difference, error = outcomes.difference, outcomes.error(scatter, freedom)
            if difference is not None and error is not None:
                found = found.update(step, difference, error)
        return found

    def generality(self, *, size: float = SIZE, above: float = 0.0, level: float = 0.95) -> Generality:
        """From the effect on each item, by paired groups; the noise of a rollout is that within the arms. Over steps in
        which the lesson did not hold this says so of its items: for a lesson that flips ask its persistence first."""
        total = _total(self.items.values())
        variance = (total.inner + PRIOR_OUTCOMES * VARIANCE) / (total.inner_freedom + PRIOR_OUTCOMES)
        effects = {key: (one.weighted / one.weight, variance / one.weight) for key, one in self.items.items()}
        return fit_generality(effects, size=size, above=above, level=level)

    # -------------------------------------------------------------------------------------------------------- as JSON

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; sums that are 0 are left out."""
        return {
            "lesson": self.lesson,
            "applied": self.applied,
            "helped": self.helped,
            "contradicted": self.contradicted,
            "steps": [[step, _plain(one)] for step, one in sorted(self.steps.items())],
            "items": [[task, item, _plain(one)] for (task, item), one in sorted(self.items.items())],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LessonRecord:
        """What :meth:`as_dict` gave; ValueError for anything else."""
        try:
            return cls(
                lesson=str(data["lesson"]),
                applied=int(data["applied"]),
                helped=int(data["helped"]),
                contradicted=int(data["contradicted"]),
                steps={int(step): Outcomes(**one) for step, one in data["steps"]},
                items={(str(task), str(item)): Outcomes(**one) for task, item, one in data["items"]},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no lesson record: expected what LessonRecord.as_dict gives; {error}") from error


def _check(with_lesson: Sequence[float], without: Sequence[float], item: str, baseline: float) -> None:
    if not math.isfinite(baseline):
        raise ValueError(f"a baseline is a finite number; got {baseline!r} for item {item!r}")
    if not (len(with_lesson) or len(without)):
        raise ValueError(f"a group has rollouts; item {item!r} has none with the lesson and none without")
    for reward in (*with_lesson, *without):
        if not 0 <= reward <= 1:
            raise ValueError(f"a reward lies in [0, 1]; got {reward!r} for item {item!r}")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _total(parts: Iterable[Outcomes]) -> Outcomes:
    result = Outcomes()
    for part in parts:
        result = result + part
    return result


def _joined(a: Mapping[Any, Outcomes], b: Mapping[Any, Outcomes]) -> dict[Any, Outcomes]:
    return {key: a.get(key, Outcomes()) + b.get(key, Outcomes()) for key in (*a, *(k for k in b if k not in a))}


def _plain(outcomes: Outcomes) -> dict[str, float]:
    return {name: value for name, value in asdict(outcomes).items() if value}
