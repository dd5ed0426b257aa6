"""The numbers of trials against cases worked by hand, and the report that refuses what would mislead."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb
from typing import Any

import pytest

from twoclock.agent.trial_report import compare, mcnemar, require_honest, trial_report
from twoclock.agent.trial_table import (
    TrialTable,
    auc,
    auc_by_item,
    cumulative,
    forgetting,
    per_trial,
    recovery,
    standing,
    verdicts,
)
from twoclock.errors import ConfigError, DataError


def table(*solved: str, passed: tuple[str, ...] | None = None, **changes: Any) -> TrialTable:
    trials = len(solved[0])
    base = TrialTable(
        arm="x",
        task="t",
        policy="p",
        items=tuple(f"i{n}" for n in range(len(solved))),
        trials=trials,
        solved=solved,
        passed=passed or solved,
        tokens=(10,) * trials,
        other_tokens=(1,) * trials,
        calls=(1,) * trials,
        attempts=sum(len(row.replace("-", "")) for row in solved),
        protocol={"seed": 0, "temperature": 1.0},
    )
    return replace(base, **changes)


FOUR = table("1---", "01--", "0000", "0010")


def test_by_hand() -> None:
    assert [per_trial(FOUR, t) for t in (1, 2, 3, 4)] == [(1, 4), (1, 3), (1, 2), (0, 2)]
    assert cumulative(FOUR) == [1, 2, 3, 3]
    assert standing(FOUR) == [1, 2, 3, 2]
    assert auc_by_item(FOUR) == [1.0, 0.75, 0.0, 0.5]
    assert auc(FOUR) == pytest.approx(9 / 16)
    assert [recovery(FOUR, t) for t in (1, 2, 3, 4)] == [(0, 0), (1, 3), (1, 2), (0, 1)]
    assert [forgetting(FOUR, t) for t in (1, 2, 3, 4)] == [(0, 0), (0, 0), (0, 0), (1, 1)]


def test_verdicts_by_hand() -> None:
    judged = verdicts(table("1---", "0---", "101-", "0000", passed=("1---", "1---", "001-", "0000")))
    assert judged == {
        "true_pass": 2,
        "false_pass": 1,
        "false_fail": 1,
        "true_fail": 5,
        "pass_is_right": pytest.approx(2 / 3),
        "fail_is_wrong": pytest.approx(1 / 6),
        "ended_wrong": 1,
    }
    empty = verdicts(table("0", passed=("0",)))
    assert empty["pass_is_right"] is None


def test_the_exact_test_against_its_formula() -> None:
    for wins, losses in ((0, 0), (1, 0), (18, 6), (5, 5), (0, 12), (39, 17)):
        n = wins + losses
        tail = sum(comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n
        assert mcnemar(wins, losses) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(18, 6) == pytest.approx(0.0227, abs=1e-4)
    with pytest.raises(ValueError, match="at least 0"):
        mcnemar(-1, 0)


def test_a_comparison_by_hand() -> None:
    other = table("0---", "01--", "0100", "0000")
    versus = compare(FOUR, other)
    assert versus.wins == (1, 1, 2, 2)
    assert versus.losses == (0, 1, 1, 1)
    assert versus.p[1] == 1.0
    assert versus.auc.estimate == pytest.approx((1.0 + 0.0 - 0.75 + 0.5) / 4)
    back = compare(other, FOUR)
    assert back.wins == versus.losses
    assert back.p == versus.p
    with pytest.raises(ValueError, match="not of the same items"):
        compare(FOUR, table("0000"))


def test_no_curve_without_its_control() -> None:
    with pytest.raises(ConfigError, match="no cumulative curve without its control: these arms lack 'retries'"):
        trial_report({"reflexion": FOUR})
    with pytest.raises(ConfigError, match="there are: none"):
        trial_report({})


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (table("0---", "01--"), "'reflexion' has other items than 'retries'"),
        (table("0-", "01", "00", "00"), "'reflexion' has 4 trials, 'retries' 2"),
        (replace(FOUR, task="other"), "is of the task 't', 'retries' of 'other'"),
        (replace(FOUR, protocol={"seed": 1, "temperature": 1.0}), "'reflexion' has seed = 0, 'retries' 1"),
        (replace(FOUR, protocol={"seed": 0, "temperature": 0.0}), "'reflexion' has temperature = 1.0, 'retries' 0.0"),
        (replace(FOUR, kept=3), "'retries' kept 3 lessons: it is not without memory"),
    ],
)
def test_a_control_that_is_none(control: TrialTable, said: str) -> None:
    with pytest.raises(ConfigError, match="arms cannot be compared") as caught:
        require_honest({"retries": control, "reflexion": FOUR})
    assert said in str(caught.value)


def test_the_table_shows_every_arm_and_says_what_is_missing() -> None:
    weak = table("0---", "01--", "0000", "0000")
    noisy = replace(FOUR, passed=("1---", "11--", "0000", "0000"), refused={"copy": 2}, kept=5, notes=("a remark",))
    text = trial_report({"reflexion": noisy, "retries": weak, "reflexion, oracle": FOUR})
    rows = [line for line in text.split("\n") if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| retries", "| reflexion", "| reflexion, oracle"]
    assert "| 0 | 1 | 1 | 1 | 0.188 | – |" in rows[2]
    assert "| 1 | 2 | 3 | 3 | 0.562 | +0.375 [" in rows[3]
    assert "the evaluator was wrong in 1 passes and 1 fails; 1 items ended on a false pass" in text
    assert "2 copy; lessons kept: 5" in text
    assert "a remark" in text
    assert "missing from this table: token-matched" in text
    assert "oracle (" not in text


def test_one_trial_is_a_table_too() -> None:
    assert "| retries | 1 |" in trial_report({"retries": table("1", "0")})


def test_a_record_is_read_back() -> None:
    kept = replace(FOUR, refused={"copy": 2}, notes=("é",))
    assert TrialTable.from_dict(json.loads(json.dumps(kept.as_dict()))) == kept
    broken = kept.as_dict() | {"extra": 1}
    del broken["arm"]
    with pytest.raises(DataError, match=r"missing \['arm'\], unknown \['extra'\]"):
        TrialTable.from_dict(broken)


@pytest.mark.parametrize(
    "changes", [{"solved": ("1",)}, {"solved": ("1---", "01--", "0000", "x010")}, {"tokens": (1,)}, {"items": ()}]
)
def test_records_that_are_none(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="arm 'x'"):
        replace(FOUR, **changes)
