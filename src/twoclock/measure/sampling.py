"""Several samples an item: pass@k, its strict sibling pass^k, and what guessing alone would give.

pass@1 that rises while pass@k at a large k falls is sharpening, not a new ability: report both, for the base too. On
answers that can be guessed a high pass@k says little, so the chance level stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import Interval, mean_interval

__all__ = ["chance_at_k", "pass_at_k", "pass_at_k_interval", "pass_power_k"]

Array = npt.NDArray[np.float64]


def _counts(n: int, correct: npt.ArrayLike, k: int) -> npt.NDArray[np.int64]:
    found = np.asarray(correct)
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"correct counts samples: whole numbers are needed; got {found.dtype}")
    if not 1 <= k <= n:
        raise ValueError(f"1 <= k <= n is needed; got k={k} of n={n} samples. Better n >= 2 k")
    if found.size and (found.min() < 0 or found.max() > n):
        raise ValueError(
            f"each item has between 0 and {n} correct samples; got {int(found.min())} to {int(found.max())}"
        )
    return found.astype(np.int64)


def pass_at_k(n: int, correct: npt.ArrayLike, k: int) -> Array:
    """P(at least one of k samples is right) of items with ``correct`` of ``n`` samples right; the shape of ``correct``.

    1 - C(n-c, k) / C(n, k), without bias (arXiv:2107.03374); as a product, 1 - Π_{i=n-c+1}^{n} (1 - k/i), because the
    binomials overflow. The plug-in 1 - (1 - c/n)^k is too low: .358 for .395 at n = 16, k = 8.
    """
    found = _counts(n, correct, k)
    i = np.arange(1, n + 1)
    factors = np.where(i > (n - found)[..., None], 1 - k / np.maximum(i, 1), 1.0)
    misses = np.where(n - found < k, 0.0, factors.prod(axis=-1))
    return np.asarray(1.0 - misses)


def pass_power_k(n: int, correct: npt.ArrayLike, k: int) -> Array:
    """pass^k = P(all of k samples are right) = C(c, k) / C(n, k): how far an item can be relied on. pass^1 = pass@1."""
    found = _counts(n, correct, k)
    j = np.arange(k)
    return np.asarray(np.clip((found[..., None] - j) / (n - j), 0.0, None).prod(axis=-1))


def pass_at_k_interval(
    n: int, correct: Sequence[int] | npt.NDArray[np.int64], k: int, level: float = 0.95, seed: int = 0
) -> Interval:
    """pass@k over items, with the bootstrap of items of the unbiased estimator; unknown without items."""
    found = np.asarray(correct)
    return mean_interval(pass_at_k(n, found if found.size else found.astype(np.int64), k), level, seed, bounds=(0, 1))


def chance_at_k(chance: float, k: int) -> float:
    """pass@k of a guesser that is right with probability ``chance``: 1 - (1 - p)^k."""
    if not (0 <= chance <= 1 and k >= 1):
        raise ValueError(f"a chance in [0, 1] and k >= 1 are needed; got {chance} and {k}")
    return float(1 - (1 - chance) ** k)
