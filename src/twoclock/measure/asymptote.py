"""Where a learning curve levels off: the four-parameter fit, and its refusal where the run has not shown it.

R(C) = R₀ + (A - R₀) / (1 + (C_mid / C)^B), the form of ScaleRL (arXiv:2510.13786): R₀ the score at the start, A the
asymptote, C_mid what was spent half way up, B the steepness. On the axis of log C this is a logistic curve; its *knee*
is where it bends most on the way to A, at the share (3 + √3)/6 = 79 % of the rise, C_knee = C_mid (2 + √3)^(1/B). A run
that ends before its knee has shown nothing that bends, and any asymptote above it fits as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoclock.measure.curves import Axis, LearningCurve
from twoclock.measure.intervals import Interval, check_level

__all__ = ["AsymptoteFit", "NoAsymptote", "fit_asymptote"]

Array = npt.NDArray[np.float64]

KNEE = 2 + math.sqrt(3)
LEAST_POINTS = 7
"""Four parameters and three points to say how well they fit."""
STEEPNESS = (0.3, 12.0)
"""Beyond these a curve is a straight line or a step on the axis of log C."""
TOP = 1.0
"""No score is higher."""
BISECTIONS = 14
"""Halvings of the distance to an end of A's interval: to 1e-4 of a score."""


@dataclass(frozen=True, kw_only=True)
class AsymptoteFit:
    """A fit that the run supports. ``n`` of the intervals counts evaluations of one run."""

    axis: Axis
    asymptote: Interval
    """A, by the profile likelihood: every A that the F test does not reject with the other three refitted."""
    start: Interval
    """R₀, as the next two by Student's t from the covariance of the fit."""
    steepness: Interval
    midpoint: Interval
    """C_mid, in units of the axis."""
    knee: float
    """C_knee at the estimates; before the run's end, or the fit would have been refused."""
    end: float
    """Where the run ended; the curve beyond is extrapolation."""
    residual: float
    """Root mean square of what the fit leaves, in the unit of the score."""

    def __str__(self) -> str:
        return f"{self.asymptote} of one run; its knee at {self.knee:,.0f} of {self.end:,.0f} {self.axis}"

    def at(self, spent: npt.ArrayLike) -> Array:
        """The fitted score at these places."""
        logs = [math.log(self.midpoint.estimate), math.log(self.steepness.estimate)]
        values = np.array([self.start.estimate, self.asymptote.estimate, *logs])
        return _logistic(_logs(np.asarray(spent, dtype=np.float64)), values)


@dataclass(frozen=True, kw_only=True)
class NoAsymptote:
    """Why no asymptote is given."""

    axis: Axis
    reason: str
    points: int

    def __str__(self) -> str:
        return f"no asymptote: {self.reason}"


def fit_asymptote(
    curve: LearningCurve, axis: Axis = "problems", level: float = 0.95, *, skip: int = 0
) -> AsymptoteFit | NoAsymptote:
    """Fit one run's curve by least squares, each point weighted by its items; ``skip`` leaves out the first points.

    Refused, with the reason, for fewer than 7 points, for a curve that does not rise, and for a run that stops before
    the knee, at the estimate or at the upper end of the asymptote's interval: what such a run would become is not in
    its data.
    """
    check_level(level)
    if skip < 0:
        raise ValueError(f"skip counts points, at least 0; got {skip}")
    spent, scores = curve.along(axis)[skip:], curve.scores[skip:]
    items = np.array([point.n for point in curve.points[skip:]], dtype=np.float64)

    def refused(reason: str) -> NoAsymptote:
        return NoAsymptote(axis=axis, reason=reason, points=len(spent))

    if len(spent) < LEAST_POINTS:
        return refused(f"{len(spent)} points; four parameters and their interval need at least {LEAST_POINTS}")
    if not spent[-1] > spent[0]:
        return refused(f"nothing was spent between the points on the axis {axis}")
    problem = _Problem(spent, scores, items)
    best = problem.fit()
    end = float(spent[-1])
    if not problem.rises(best, level):
        return refused("the score does not rise over the run by more than its noise")
    if best.knee > end:
        return refused(f"the run stops at {end:,.0f} {axis}, before the knee of its curve at some {best.knee:,.0f}")
    low, high = (problem.profile(best, level, limit) for limit in (0.0, TOP))
    if high.knee > end:
        return refused(
            f"the run stops at {end:,.0f} {axis}, too early: a curve up to {high.top:.2f} with its knee at some "
            f"{high.knee:,.0f} fits as well as one up to {best.top:.2f}"
        )
    errors = problem.errors(best, level)

    def student(index: int, log: bool) -> Interval:
        value = float(best.values[index])
        ends = np.array([value, value - errors[index], value + errors[index]])
        with np.errstate(over="ignore"):  # what the data do not determine ends at infinity
            middle, low_end, high_end = (float(v) for v in (np.exp(ends) if log else ends))
        return Interval(middle, low_end, high_end, len(spent), level, "Student's t of the fit's covariance")

    return AsymptoteFit(
        axis=axis,
        asymptote=Interval(best.top, low.top, high.top, len(spent), level, "profile likelihood (F)"),
        start=student(0, False),
        midpoint=student(2, True),
        steepness=student(3, True),
        knee=best.knee,
        end=end,
        residual=math.sqrt(best.cost / len(spent)),
    )


@dataclass(frozen=True)
class _Fit:
    """Parameters (R₀, A, log C_mid, log B) and the weighted sum of squares that they leave."""

    values: Array
    cost: float

    @property
    def top(self) -> float:
        return float(self.values[1])

    @property
    def knee(self) -> float:
        return math.exp(float(self.values[2]) + math.log(KNEE) / math.exp(float(self.values[3])))


def _logistic(logs: Array, values: Array) -> Array:
    from scipy.special import expit

    start, top, mid, steep = values
    return np.asarray(start + (top - start) * expit(math.exp(steep) * (logs - mid)))


def _logs(spent: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(spent))


class _Problem:
    """Weighted least squares of one curve."""

    def __init__(self, spent: Array, scores: Array, items: Array) -> None:
        self.spent, self.scores, self.logs = spent[spent > 0], scores, _logs(spent)
        self.roots = np.sqrt(items / items.mean())
        first, last = math.log(self.spent[0]), math.log(self.spent[-1])
        # The midpoint may lie beyond the run: such fits are found, and refused by their knee.
        self.low = np.array([0.0, 0.0, first - 2, math.log(STEEPNESS[0])])
        self.high = np.array([1.0, TOP, last + 3, math.log(STEEPNESS[1])])
        self.freedom = len(scores) - 4

    def residuals(self, values: Array) -> Array:
        return np.asarray((_logistic(self.logs, values) - self.scores) * self.roots)

    def jacobian(self, values: Array) -> Array:
        """(points, 4) derivatives of the residuals by the parameters."""
        from scipy.special import expit

        start, top, mid, steep = values
        z = math.exp(steep) * (self.logs - mid)
        share = expit(z)
        # At nothing spent z is -inf and the slope 0.
        slope = (top - start) * share * (1 - share)
        by_steep = np.where(np.isfinite(z), slope * np.where(np.isfinite(z), z, 0.0), 0.0)
        columns = [1 - share, share, -slope * math.exp(steep), by_steep]
        return np.asarray(np.stack(columns, axis=1) * self.roots[:, None])

    def _solve(self, start: Array, top: float | None = None) -> _Fit:
        """Least squares from one start; ``top`` holds A."""
        from scipy.optimize import least_squares

        free = [0, 1, 2, 3] if top is None else [0, 2, 3]
        values = np.array(start if top is None else [start[0], top, start[2], start[3]])

        def full(some: Array) -> Array:
            whole = values.copy()
            whole[free] = some
            return whole

        begin = np.clip(values, self.low + 1e-6, self.high - 1e-6)[free]
        found = least_squares(
            lambda some: self.residuals(full(some)),
            begin,
            jac=lambda some: self.jacobian(full(some))[:, free],
            bounds=(self.low[free], self.high[free]),
            x_scale="jac",
        )
        return _Fit(full(found.x), float(2 * found.cost))

    def _starts(self) -> list[Array]:
        first, last = float(self.scores[0]), float(self.scores.max())
        mids = np.log(np.quantile(self.spent, (0.15, 0.4, 0.9)))
        return [np.array([first, last, mid, math.log(steep)]) for mid in mids for steep in (1.0, 4.0)]

    def fit(self) -> _Fit:
        return min((self._solve(start) for start in self._starts()), key=lambda fit: fit.cost)

    def rises(self, best: _Fit, level: float) -> bool:
        """Whether the curve beats a constant by the F test, upwards."""
        from scipy.special import fdtr

        flat = self.scores - np.average(self.scores, weights=self.roots**2)
        gained = float(np.sum((flat * self.roots) ** 2)) - best.cost
        if best.values[1] <= best.values[0] or gained <= 0:
            return False
        return best.cost <= 1e-12 or bool(fdtr(3, self.freedom, gained / 3 / (best.cost / self.freedom)) > level)

    def profile(self, best: _Fit, level: float, limit: float) -> _Fit:
        """The fit at the end of A's interval towards ``limit``: where the F test begins to reject A."""
        from scipy.special import fdtri

        most = best.cost * (1 + float(fdtri(1, self.freedom, level)) / self.freedom) + 1e-12
        kept, near, far = best, best.top, limit
        if (at_limit := self._held(limit, best)).cost <= most:
            return at_limit
        for _ in range(BISECTIONS):
            middle = (near + far) / 2
            found = self._held(middle, kept)
            if found.cost <= most:
                near, kept = middle, found
            else:
                far = middle
        return kept

    def _held(self, top: float, near: _Fit) -> _Fit:
        starts = (near.values, *self._starts()[1::2])
        return min((self._solve(start, top) for start in starts), key=lambda fit: fit.cost)

    def errors(self, best: _Fit, level: float) -> Array:
        """Half widths of the parameters' t intervals; infinite where the data do not determine one."""
        from scipy.special import stdtrit

        jacobian = self.jacobian(best.values)
        try:
            covariance = np.linalg.inv(jacobian.T @ jacobian) * best.cost / self.freedom
        except np.linalg.LinAlgError:
            return np.full(4, math.inf)
        spread = np.sqrt(np.clip(np.diag(covariance), 0.0, None))
        return np.asarray(float(stdtrit(self.freedom, 0.5 + level / 2)) * spread)
