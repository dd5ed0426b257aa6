"""What the learned retrievers share: the prior before anything is known, checked settings, one encoder a state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.errors import ConfigError
from twoclock.memory.retrieval import Candidate

__all__ = ["Floats", "nearness", "require_settings", "same_encoder"]

Floats = npt.NDArray[np.float64]


def nearness(candidates: Sequence[Candidate]) -> Floats:
    """Similarity minus that of the nearest candidate [N], 0 at best; by place in the search, −½ at worst, where
    there is no similarity for every candidate."""
    similarities = [c.similarity for c in candidates]
    if not candidates or any(s is None for s in similarities):
        return np.asarray(-0.5 * np.arange(len(candidates)) / max(len(candidates), 1), dtype=np.float64)
    array = np.array(similarities, dtype=np.float64)
    return np.asarray(array - array.max())


def same_encoder(given: str, expected: str) -> None:
    """ConfigError where a state was learned on another encoder's vectors."""
    if given != expected:
        raise ConfigError(
            f"this retrieval state was learned on vectors of the encoder '{given}', and the retriever is given those "
            f"of '{expected}'; vectors of two encoders are not comparable: open it with the old encoder, or begin a "
            "new state with init()"
        )


def require_settings(owner: Any, **ranges: tuple[float, float | None]) -> None:
    """ConfigError naming every setting of ``owner`` that is no finite number within its range, all at once."""
    problems = [] if owner.encoder else ["encoder is empty; expected the id of the encoder that makes the vectors"]
    for name, (low, high) in ranges.items():
        value = getattr(owner, name)
        number = isinstance(value, (int, float)) and math.isfinite(value)
        if not (number and low <= value and (high is None or value <= high)):
            limits = f"at least {low}" if high is None else f"from {low} to {high}"
            problems.append(f"{name} is {value!r}; expected a number {limits}")
    if problems:
        raise ConfigError(problems)
