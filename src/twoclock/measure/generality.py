"""How widely a lesson holds: its effect on items and tasks that it was not tried on.

A hierarchy of normals. The lesson's effect on item i of task t was measured as ``d_ti`` with known variance ``v_ti``::

    d_ti ~ N(θ_ti, v_ti)      θ_ti ~ N(η_t, τ_I²)      η_t ~ N(μ, τ_T²)      μ ~ N(0, size²)

with half-normal priors of scale ``size`` on both spreads (Gelman 2006). Given the two spreads everything is normal and
in closed form; they are integrated over a grid that is laid anew around where the mass is. So few items leave the
spread between items open, and one task leaves that between tasks at its prior: a lesson that was seen on one task
alone is never certain to hold on the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import Interval, check_level

__all__ = ["Generality", "fit_generality"]

Array = npt.NDArray[np.float64]

SIZE = 0.25
GRID = 40
WIDEST = 4.0
"""The first grid of spreads reaches this many prior scales."""
NEGLIGIBLE = 1e-7


class _Posterior(NamedTuple):
    """At G pairs of spreads: their probability, and given them the normal posteriors of μ and of each η_t (G, T)."""

    weight: Array
    between_items: Array
    between_tasks: Array
    mean: Array
    variance: Array
    task_mean: Array
    task_variance: Array


@dataclass(frozen=True, kw_only=True)
class Generality:
    """What the measured items say of others. ``n`` of the intervals counts items."""

    items: int
    tasks: tuple[str, ...]
    mean: Interval
    """μ, the effect on the average task, in reward."""
    between_items: Interval
    """τ_I, the standard deviation of the effect between items of one task."""
    between_tasks: Interval
    """τ_T."""
    new_item: float
    """P(the effect on a new item of the tasks seen is above 0); a task counts by its measured items."""
    new_item_of: Mapping[str, float] = field(default_factory=dict)
    """The same for each task."""
    new_task: float
    """P(the mean effect on a task not yet seen is above 0)."""
    new_task_item: float
    """P(the effect on an item of a task not yet seen is above 0)."""


def fit_generality(
    effects: Mapping[tuple[str, str], tuple[float, float]],
    *,
    size: float = SIZE,
    above: float = 0.0,
    level: float = 0.95,
) -> Generality:
    """``effects`` holds by (task, item) the measured effect and its variance; none at all gives the prior.

    ``size`` is the prior scale of the mean effect and of both spreads, in reward; ``above`` moves the 0 of the
    probabilities, to the cost of showing the lesson, say. ValueError for a variance that is not above 0.
    """
    check_level(level)
    if not (math.isfinite(size) and size > 0):
        raise ValueError(f"size is a number above 0, such as 0.25; got {size!r}")
    for (task, item), (effect, variance) in effects.items():
        if not (math.isfinite(effect) and math.isfinite(variance) and variance > 0):
            raise ValueError(
                f"an effect is finite and its variance above 0; got {effect!r} and {variance!r} for item {item!r} of "
                f"task {task!r}"
            )
    tasks = tuple(dict.fromkeys(task for task, _ in effects))
    d, v = np.array(list(effects.values()), dtype=np.float64).reshape(-1, 2).T
    place = {task: t for t, task in enumerate(tasks)}
    task_of = np.array([place[task] for task, _ in effects], dtype=np.int64)
    post = _refined(d, v, task_of, len(tasks), size)
    n = len(d)
    sd_item = np.sqrt(post.task_variance + post.between_items[:, None] ** 2)
    by_task = post.weight @ _tail((post.task_mean - above) / sd_item)
    share = np.bincount(task_of, minlength=len(tasks)) / max(n, 1)
    new_task_variance = post.variance + post.between_tasks**2
    new_task = float(post.weight @ _tail((post.mean - above) / np.sqrt(new_task_variance)))
    new_task_item = float(post.weight @ _tail((post.mean - above) / np.sqrt(new_task_variance + post.between_items**2)))
    return Generality(
        items=n,
        tasks=tasks,
        mean=_mixture_interval(post.weight, post.mean, np.sqrt(post.variance), n, level),
        between_items=_spread_interval(post.weight, post.between_items, n, level),
        between_tasks=_spread_interval(post.weight, post.between_tasks, n, level),
        new_item=float(by_task @ share) if n else new_task_item,
        new_item_of={task: float(by_task[t]) for t, task in enumerate(tasks)},
        new_task=new_task,
        new_task_item=new_task_item,
    )


def _tail(z: Array) -> Array:
    from scipy.special import ndtr

    return np.asarray(ndtr(z), dtype=np.float64)


def _refined(d: Array, v: Array, task_of: npt.NDArray[np.int64], tasks: int, size: float) -> _Posterior:
    """The posterior on a grid over the prior's range, then on one over what of it has mass."""
    ends = [(0.0, WIDEST * size), (0.0, WIDEST * size)]
    for last in (False, False, True):
        axes = [low + (np.arange(GRID) + 0.5) * (high - low) / GRID for low, high in ends]  # midpoints: never 0
        post = _on_grid(d, v, task_of, tasks, size, *axes)
        if last:
            break
        mass = post.weight.reshape(GRID, GRID)
        for axis, points in enumerate(axes):
            kept = np.flatnonzero(mass.sum(axis=1 - axis) > NEGLIGIBLE)
            step = (ends[axis][1] - ends[axis][0]) / GRID
            ends[axis] = (max(0.0, float(points[kept[0]]) - step), float(points[kept[-1]]) + step)
    return post


def _on_grid(
    d: Array, v: Array, task_of: npt.NDArray[np.int64], tasks: int, size: float, items_A: Array, tasks_B: Array
) -> _Posterior:
    """The marginal likelihood of each pair of spreads, times its prior, with the conditional posteriors."""
    w_AI = 1 / (v[None] + items_A[:, None] ** 2)
    member_IT = (task_of[:, None] == np.arange(tasks)[None]).astype(np.float64)
    W_AT = w_AI @ member_IT
    m_AT = (w_AI * d) @ member_IT / W_AT
    residual = (w_AI * (d[None] - m_AT[:, task_of]) ** 2).sum(axis=1)
    within_A = 0.5 * (np.log(w_AI).sum(axis=1) - np.log(W_AT).sum(axis=1) - residual)
    # The task means, given both spreads: m_t ~ N(μ, 1/W_t + τ_T²).
    u_ABT = 1 / (1 / W_AT[:, None, :] + tasks_B[None, :, None] ** 2)
    m_A1T = m_AT[:, None, :]
    precision = u_ABT.sum(axis=2) + 1 / size**2
    mean = (u_ABT * m_A1T).sum(axis=2) / precision
    across = 0.5 * (
        np.log(u_ABT).sum(axis=2) - np.log(precision) - (u_ABT * m_A1T**2).sum(axis=2) + precision * mean**2
    )
    prior = -0.5 * (items_A[:, None] ** 2 + tasks_B[None, :] ** 2) / size**2
    log = within_A[:, None] + across + prior
    weight = np.exp(log - log.max())
    # The posterior of each η_t: between its own mean and μ, by how far tasks are apart.
    keep = tasks_B[None, :, None] ** 2 * u_ABT
    task_mean = keep * m_A1T + (1 - keep) * mean[..., None]
    task_variance = keep / W_AT[:, None, :] + (1 - keep) ** 2 / precision[..., None]
    cells = len(items_A) * len(tasks_B)
    return _Posterior(
        weight=(weight / weight.sum()).ravel(),
        between_items=np.repeat(items_A, len(tasks_B)),
        between_tasks=np.tile(tasks_B, len(items_A)),
        mean=mean.ravel(),
        variance=(1 / precision).ravel(),
        task_mean=task_mean.reshape(cells, tasks),
        task_variance=task_variance.reshape(cells, tasks),
    )


def _mixture_interval(weight: Array, mean: Array, sd: Array, n: int, level: float) -> Interval:
    """The mean and the central interval of a mixture of normals, by bisection of its distribution function."""
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        low, high = float((mean - 12 * sd).min()), float((mean + 12 * sd).max())
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if float(weight @ _tail((middle - mean) / sd)) < tail else (low, middle)
        ends.append((low + high) / 2)
    return Interval(float(weight @ mean), ends[0], ends[1], n, level, "hierarchical posterior")


def _spread_interval(weight: Array, points: Array, n: int, level: float) -> Interval:
    values, place = np.unique(points, return_inverse=True)
    mass = np.bincount(place, weights=weight)
    reached = np.cumsum(mass) - mass / 2
    low, high = (float(end) for end in np.interp(((1 - level) / 2, (1 + level) / 2), reached, values))
    return Interval(float(mass @ values), low, high, n, level, "posterior on a grid")
