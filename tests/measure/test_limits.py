"""A limit is held against the interval: what is shown, what is refuted, and what is neither."""

from __future__ import annotations

import math

import pytest

from twoclock.measure import Interval, check_limit


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(0.01, 0.005, 0.02, 500), "within"),
        (Interval(0.01, 0.0, 0.05, 500), "undecided"),  # the estimate alone would have passed
        (Interval(0.05, 0.01, 0.09, 500), "undecided"),
        (Interval(0.08, 0.03, 0.13, 500), "beyond"),
        (Interval(0.01, math.nan, math.nan, 1), "undecided"),
        (Interval(math.nan, math.nan, math.nan, 0), "unknown"),
        (Interval(0.0, 0.0, 0.0, 12, 0.95, "exact"), "within"),
    ],
)
def test_each_verdict(interval: Interval, verdict: str) -> None:
    found = check_limit("forgetting", interval, 0.02)
    assert found.verdict == verdict
    assert str(found).startswith(("forgetting", "whether forgetting"))
    if verdict != "unknown":
        assert str(interval) in str(found)


def test_no_limit_is_no_limit() -> None:
    with pytest.raises(ValueError, match="limit of drift is a finite number; got nan"):
        check_limit("drift", Interval(0.1, 0.0, 0.2, 5), math.nan)
