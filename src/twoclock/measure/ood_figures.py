"""One split of the out-of-distribution probe in numbers: what base and live system score on it, and against ``id``.

With A₀, A₁ the share of right answers of the base and of the live system, v a split and ID its partners::

    change        Δ_v  = A₁(v) - A₀(v)
    gap           gap  = A(ID) - A(v)             of each system; positive: the split is harder
    did           DiD  = gap₁ - gap₀ = Δ_ID - Δ_v  against the base's own curve, as N-1 is usually easier
    transfer      TR   = Δ_v / Δ_ID               only where the interval of Δ_ID excludes 0
    consistency   CR   = P(v right | its partner right)
    limem         A(ID) (1 - CR)                  arXiv:2410.23123; a coin has A(ID)(1 - A(v)), so see ``limem_excess``
    headroom      Δ_v / (1 - A₀) for a rise, Δ_v / A₀ for a fall

Scores are shares in [0, 1], higher is better. Base items are the unit: a base item and all that was derived from it are
resampled together, and where one has several variants in a split their mean counts. Splits without partners are
compared as two samples (Newcombe's square-and-add of two intervals).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import (
    CHUNK_DRAWS,
    Interval,
    bootstrap_mean,
    constant_interval,
    expanded_tails,
    resampled_means,
    unknown,
    wilson,
)
from twoclock.measure.ood_records import Answer, Settings, SplitFigures, ValueShift
from twoclock.measure.pairs import difference_of, paired_permutation_p
from twoclock.seeding import child_seed

__all__ = ["figures_of"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Side:
    """Both systems' answers on the same items, in one order."""

    base: Array
    live: Array

    @property
    def gain(self) -> Array:
        return self.live - self.base


def figures_of(
    variant: str,
    base: Mapping[str, Mapping[str, Answer]],
    live: Mapping[str, Mapping[str, Answer]],
    settings: Settings,
) -> SplitFigures:
    """The figures of one split. ``base`` and ``live`` hold answers by variant and item, ``id`` among them."""
    rows = tuple(base[variant].values())
    other = tuple(live[variant][row.item] for row in rows)
    judged = [(a, b) for a, b in zip(rows, other, strict=True) if a.telling]
    is_paired = variant != "id" and all(row.partner is not None for row in rows)
    split = _side(judged)
    if is_paired:
        partners = dict.fromkeys(str(row.partner) for row, _ in judged)
        reference = _side([(base["id"][p], live["id"][p]) for p in partners])
    else:
        reference = _side([(row, live["id"][row.item]) for row in base["id"].values()])
    return SplitFigures(
        variant=variant,
        items=len(rows),
        judged=len(judged),
        paired=is_paired,
        chance=rows[0].chance if rows else None,
        base=settings.mean(split.base, f"{variant}.base"),
        live=settings.mean(split.live, f"{variant}.live"),
        change=settings.mean(split.gain, f"{variant}.change", (-1, 1)),
        headroom=_headroom(split, settings),
        **_against_id(variant, split, reference, is_paired, settings),
        **_shares(variant, rows, other, settings),
        values=_value_shift(rows, tuple(base["id"].values())) if variant != "id" else None,
    )


def _side(pairs: Sequence[tuple[Answer, Answer]]) -> _Side:
    """Of the two systems' answers on each item."""
    units = [_unit(row) for row, _ in pairs]
    return _Side(*(_unit_means([pair[who].right for pair in pairs], units) for who in (0, 1)))


def _unit(row: Answer) -> str:
    """What is resampled as one: the base item, or the item itself where it has none."""
    return row.item if row.partner is None else row.partner


def _unit_means(values: Sequence[float] | Sequence[tuple[float, float]], units: Sequence[str]) -> Array:
    """The mean of each unit's values, in order of first appearance; pairs of values give rows of two."""
    place = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    array = np.asarray(values, dtype=np.float64)
    where = np.array([place[unit] for unit in units], dtype=np.int64)
    sums = np.zeros((len(place), *array.shape[1:]))
    np.add.at(sums, where, array)
    counts = np.bincount(where, minlength=len(place)).astype(np.float64)
    return np.asarray(sums / (counts if array.ndim == 1 else counts[:, None]))


# ----------------------------------------------------------------------------------------------------- against ID


def _against_id(variant: str, split: _Side, of_id: _Side, paired: bool, settings: Settings) -> dict[str, Any]:
    skill = ("gap_base", "gap_live", "did", "transfer")
    pairs = ("consistency_base", "consistency_live", "limem_base", "limem_live", "limem_excess")
    if variant == "id" or not len(split.base) or not len(of_id.base):
        return dict.fromkeys((*skill, *pairs), unknown(0, settings.level))
    seed = child_seed("ood.p", settings.seed, variant)
    if not paired:
        found = dict.fromkeys(pairs, unknown(0, settings.level, method="no partners"))
        found |= {
            "gap_base": difference_of(_of(of_id.base, settings), _of(split.base, settings)),
            "gap_live": difference_of(_of(of_id.live, settings), _of(split.live, settings)),
            "did": difference_of(_of(of_id.gain, settings, (-1, 1)), _of(split.gain, settings, (-1, 1))),
            "transfer": _transfer(split.gain, of_id.gain, False, settings),
        }
        return {**found, "p": _permutation_p(of_id.gain, split.gain, seed, settings.resamples)}
    found = {
        "gap_base": settings.mean(of_id.base - split.base, f"{variant}.gap_base", (-1, 1)),
        "gap_live": settings.mean(of_id.live - split.live, f"{variant}.gap_live", (-1, 1)),
        "did": settings.mean(of_id.gain - split.gain, f"{variant}.did", (-2, 2)),
        "transfer": _transfer(split.gain, of_id.gain, True, settings),
        "consistency_base": _consistency(of_id.base, split.base, settings),
        "consistency_live": _consistency(of_id.live, split.live, settings),
        "limem_base": settings.mean(of_id.base * (1 - split.base), f"{variant}.limem_base"),
        "limem_live": settings.mean(of_id.live * (1 - split.live), f"{variant}.limem_live"),
        "limem_excess": _limem_excess(of_id.live, split.live, settings),
    }
    p = paired_permutation_p(of_id.gain, split.gain, seed, "two-sided", resamples=settings.resamples)
    return {**found, "p": p}


def _of(values: Array, settings: Settings, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
    return settings.mean(values, "unpaired", bounds)


def _permutation_p(a: Array, b: Array, seed: int, resamples: int) -> float:
    from scipy.stats import permutation_test

    if len(a) < 2 or len(b) < 2 or bool((np.concatenate([a, b]) == a[0]).all()):
        return 1.0
    found = permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        permutation_type="independent",
        vectorized=True,
        n_resamples=resamples,
        batch=1_000,
        random_state=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _drawn_means(columns: Array, what: str, settings: Settings) -> Array:
    """The columns' means in each bootstrap sample of the items: (items, numbers) to (resamples, numbers)."""
    n = len(columns)
    generator = np.random.default_rng(child_seed("ood.bootstrap", settings.seed, what))
    chunk = max(1, CHUNK_DRAWS // n)
    drawn = [
        generator.multinomial(n, np.full(n, 1 / n), size=min(chunk, settings.resamples - start)) @ columns / n
        for start in range(0, settings.resamples, chunk)
    ]
    return np.concatenate(drawn)


def _transfer(gain: Array, id_gain: Array, paired: bool, settings: Settings) -> Interval:
    """mean(gain) / mean(id_gain) by expanded percentiles of the pairs (or of each sample)."""
    n, level = min(len(gain), len(id_gain)), settings.level
    divisor = _of(id_gain, settings, (-1, 1))
    if not divisor.excludes_zero:
        return unknown(n, level, method="undefined: the change in distribution may be 0")
    estimate = float(gain.mean()) / divisor.estimate
    if paired:
        tops, bottoms = _drawn_means(np.stack([gain, id_gain], axis=1), "transfer", settings).T
    else:
        tops = resampled_means(gain, child_seed("ood.top", settings.seed), settings.resamples)
        bottoms = resampled_means(id_gain, child_seed("ood.bottom", settings.seed), settings.resamples)
    if bool((bottoms * divisor.estimate <= 0).any()):
        return unknown(n, level, estimate, "the divisor's resamples reach 0")
    low, high = (float(end) for end in np.quantile(tops / bottoms, expanded_tails(level, n)))
    if high - low < 1e-9:
        # Every resample alike: at most the share 1 - (α/2)^(1/n) of items can be otherwise, and moves DiD by 2 at most.
        did = constant_interval(float((id_gain[:n] - gain[:n]).mean()), n, level, (-2.0, 2.0))
        reach = max(did.high - did.estimate, did.estimate - did.low) / abs(divisor.estimate)
        return Interval(estimate, estimate - reach, estimate + reach, n, level, "constant, binomial bound")
    return Interval(estimate, low, high, n, level, "bootstrap of the ratio")


def _consistency(of_id: Array, of_split: Array, settings: Settings) -> Interval:
    """P(split right | partner right); Wilson for single samples, else a bootstrap of the ratio."""
    both, right = of_id * of_split, float(of_id.sum())
    if right == 0:
        return unknown(0, settings.level, method="no partner is right")
    if bool(np.isin(of_id, (0, 1)).all() and np.isin(of_split, (0, 1)).all()):
        return wilson(round(float(both.sum())), round(right), settings.level)
    tops, bottoms = _drawn_means(np.stack([both, of_id], axis=1), "consistency", settings).T
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
    n = int(np.count_nonzero(of_id))
    low, high = np.quantile(ratios, expanded_tails(settings.level, n))
    return Interval(float(both.sum()) / right, float(low), float(high), n, settings.level, "bootstrap of the ratio")


def _limem_excess(of_id: Array, of_split: Array, settings: Settings) -> Interval:
    """A(ID)(1 - CR) - A(ID)(1 - A(v)) = A(ID) A(v) - E[both]: 0 for independent answers, negative for a consistent
    solver, positive where being right in distribution makes the variant *less* likely to be right."""
    alone = _bootstrap(
        np.stack([of_id, of_split], axis=1), lambda means: means[..., 0] * means[..., 1], "limem_excess", settings
    )
    # Both right is rare for a weak system, and a bootstrap of what never happened has no width: so two intervals. That
    # they are of the same items makes the difference's too wide, if anything.
    return difference_of(alone, settings.mean(of_id * of_split, "limem_both"))


def _bootstrap(columns: Array, statistic: Any, what: str, settings: Settings) -> Interval:
    """Percentiles of a function of the columns' means; ``columns`` is (items, numbers)."""
    n = len(columns)
    estimate = float(statistic(columns.mean(axis=0)))
    if n < 2:
        return unknown(n, settings.level, estimate)
    drawn = statistic(_drawn_means(columns, what, settings))
    low, high = (float(end) for end in np.quantile(drawn, expanded_tails(settings.level, n)))
    return Interval(estimate, low, high, n, settings.level, "bootstrap")


def _headroom(split: _Side, settings: Settings) -> Interval:
    if not len(split.base):
        return unknown(0, settings.level)

    def gained(means: Array) -> Array:
        before, after = means[..., 0], means[..., 1]
        room = np.where(after >= before, 1 - before, before)
        return np.where(room > 0, (after - before) / np.where(room > 0, room, 1.0), 0.0)

    return _bootstrap(np.stack([split.base, split.live], axis=1), gained, "headroom", settings)


# ---------------------------------------------------------------------------------------------- stale, format, values


def _shares(variant: str, base: Sequence[Answer], live: Sequence[Answer], settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    units = [_unit(row) for row in base]

    def mean(values: Sequence[float | None], what: str, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
        known = [(value, unit) for value, unit in zip(values, units, strict=True) if value is not None]
        of_units = _unit_means([value for value, _ in known], [unit for _, unit in known])
        return settings.mean(of_units, f"{variant}.{what}", bounds)

    for system, rows in (("base", base), ("live", live)):
        found[f"stale_{system}"] = mean([row.stale for row in rows], "stale")
        found[f"tempted_{system}"] = mean([row.tempted for row in rows], "tempted")
        found[f"unparsed_{system}"] = mean([1 - row.parsed for row in rows], "unparsed")
        found[f"truncated_{system}"] = mean([row.truncated for row in rows], "truncated")
        # No shares: answers of one token each would look like successes.
        lengths, seed = (
            _unit_means([row.tokens for row in rows], units),
            child_seed("ood", settings.seed, f"{variant}.tokens"),
        )
        found[f"tokens_{system}"] = bootstrap_mean(lengths, settings.level, seed, settings.resamples, None)
    rises = [None if a.stale is None or b.stale is None else b.stale - a.stale for a, b in zip(base, live, strict=True)]
    found["stale_change"] = mean(rises, "stale_change", (-1, 1))
    readable = [(row.right, row.parsed) for row in live if row.parsed > 0]
    columns = _unit_means(readable, [_unit(row) for row in live if row.parsed > 0])
    if not len(readable) or bool((columns[:, 1] == 1).all()):
        found["readable_live"] = settings.mean(columns[:, 0] if len(readable) else columns, f"{variant}.readable")
    else:
        found["readable_live"] = _bootstrap(columns, lambda means: means[..., 0] / means[..., 1], "readable", settings)
    return found


def _value_shift(rows: Sequence[Answer], of_id: Sequence[Answer]) -> ValueShift | None:
    ours, theirs = ([v for row in answers for v in row.values] for answers in (rows, of_id))
    if not ours or not theirs:
        return None
    from scipy.stats import ks_2samp

    found = ks_2samp(ours, theirs)
    return ValueShift(float(found.statistic), float(found.pvalue), (len(ours), len(theirs)))
