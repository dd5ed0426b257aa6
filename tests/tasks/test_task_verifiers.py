"""Verifiers: the contract, what one bad text may not do to its siblings, hangs, loading by name."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twoclock.errors import ConfigError, VerifierError
from twoclock.tasks import Verifier
from twoclock.tasks.runners import ProcessRunner
from twoclock.types import Grade, Item

ITEMS = [Item(id=str(i), prompt=f"p{i}", reference=str(i), metadata={"level": i, "kind": "k"}) for i in range(4)]
TEXTS = ["0", "x", "2", "3"]


def grades(function: Callable[..., Any], texts: list[str] = TEXTS, **options: Any) -> list[Grade]:
    return Verifier(function, **options).grade(ITEMS[: len(texts)], texts)


def rewards(found: list[Grade]) -> list[float]:
    return [grade.reward for grade in found]


# ------------------------------------------------------------------------------------------------------ the contract


def test_columns_come_as_lists_and_only_those_asked_for() -> None:
    seen: dict[str, Any] = {}

    def named(prompts: list[str], completions: list[str], answer: list[str], level: list[int]) -> list[float]:
        seen.update(prompts=prompts, completions=completions, answer=answer, level=level)
        return [float(a == c) for a, c in zip(answer, completions, strict=True)]

    assert rewards(grades(named)) == [1.0, 0.0, 1.0, 1.0]
    assert seen == {
        "prompts": ["p0", "p1", "p2", "p3"],
        "completions": TEXTS,
        "answer": ["0", "1", "2", "3"],
        "level": [0, 1, 2, 3],
    }

    def everything(completions: list[str], **kwargs: list[Any]) -> list[float]:
        seen.clear()
        seen.update(kwargs)
        return [1.0] * len(completions)

    grades(everything)
    assert set(seen) == {"prompts", "answer", "level", "kind"}


def test_scores_feedback_none_and_bools() -> None:
    def mixed(completions: list[str]) -> list[Any]:
        return [0.25, (1, "well done"), None, (None, "skipped")]

    found = grades(mixed)
    assert rewards(found) == [0.25, 1.0, 0.0, 0.0]
    assert found[1].feedback == "well done"
    assert found[2].failure == found[3].failure == "verifier returned None"
    assert found[3].feedback == "skipped"
    assert rewards(grades(lambda completions: [True, False, True, 0])) == [1.0, 0.0, 1.0, 0.0]


def test_numpy_scores() -> None:
    import numpy as np

    assert rewards(grades(lambda completions: np.array([0.0, 0.5, 1.0, 1.0], dtype=np.float32))) == [0, 0.5, 1, 1]


def test_nan_and_infinity_are_failed_grades() -> None:
    found = grades(lambda completions: [float("nan"), float("inf"), -float("inf"), 1.0])
    assert rewards(found) == [0.0, 0.0, 0.0, 1.0]
    assert [g.failure for g in found] == [
        "verifier returned nan",
        "verifier returned inf",
        "verifier returned -inf",
        None,
    ]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], "returned 1 scores for 4 completions"),
        ([1.0] * 5, "returned 5 scores for 4 completions"),
        ([], "returned 0 scores for 4"),
        (None, "returned None; expected a list"),
        (1.0, "returned 1.0; expected a list"),
        ("1111", "returned '1111'; expected a list"),
        ({"a": 1}, "expected a list"),
        ([1, 1, "1.0", 1], "for completion 2: '1.0' of type str; expected a number"),
        ([1, 1, 1, (1, 2, 3)], r"for completion 3: \(1, 2, 3\); expected a number, None or \(score, feedback"),
        ([1, [], 1, 1], r"for completion 1: \[\]; expected"),
        ([1, 1j, 1, 1], "for completion 1: 1j of type complex"),
        ([0, 1.7, 0, 0], "returned 1.7 for completion 1; scores lie between 0 and 1"),
        ([0, 0, 0, -1], "returned -1 for completion 3"),
        ([0, 0, 0, 10**400], "for completion 3: 10000.*expected a number"),
    ],
)
def test_broken_contracts(result: Any, message: str) -> None:
    with pytest.raises(VerifierError, match=message):
        grades(lambda completions: result)


def test_rounding_just_outside_is_forgiven() -> None:
    assert rewards(grades(lambda completions: [1.0 + 1e-12, -1e-12, 1, 0])) == [1.0, 0.0, 1.0, 0.0]


def test_nothing_to_grade_and_a_wrong_number_of_texts() -> None:
    assert Verifier(lambda completions: 1 / 0).grade([], []) == []
    with pytest.raises(ValueError, match="4 items, but 1 texts"):
        Verifier(lambda completions: [1.0]).grade(ITEMS, ["a"])


def test_missing_columns_are_named() -> None:
    def needs(completions: list[str], levl: list[int], other: list[int], free: int = 1) -> list[float]:
        return [1.0] * len(completions)

    problems = Verifier(needs, name="needs").check_columns(["level", "answer"])
    assert len(problems) == 2
    assert "needs a column 'levl' that the items lack; did you mean 'level'?" in problems[0]
    assert "column 'other'" in problems[1]
    assert "answer, completions, level, prompts" in problems[1]
    with pytest.raises(VerifierError, match="column 'levl'"):
        grades(needs)


@pytest.mark.parametrize("function", [lambda question, text: [1.0], lambda: [1.0], lambda completions, /: [1.0]])
def test_wrong_signatures_are_refused_at_once(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"is called as f\(prompts=…, completions=…"):
        Verifier(function)


def test_bad_limits() -> None:
    with pytest.raises(ConfigError) as caught:
        Verifier(lambda completions: [1.0], timeout_s=0, max_hangs=0)
    assert len(caught.value.problems) == 2


# ---------------------------------------------------------------------------------------------- raising and hanging


def test_one_bad_text_does_not_sink_its_siblings() -> None:
    calls = []

    def brittle(completions: list[str]) -> list[float]:
        calls.append(list(completions))
        return [float(int(text) >= 0) for text in completions]

    found = grades(brittle)
    assert rewards(found) == [1.0, 0.0, 1.0, 1.0]
    assert [g.failure is None for g in found] == [True, False, True, True]
    assert (found[1].failure or "").startswith("verifier raised ValueError: invalid literal for int()")
    assert calls == [TEXTS, ["0"], ["x"], ["2"], ["3"]]


def test_system_exit_is_a_failed_grade() -> None:
    def leaves(completions: list[str]) -> list[float]:
        sys.exit("bye")

    assert [g.failure for g in grades(leaves)] == ["verifier raised SystemExit: bye"] * 4


def test_a_hang_is_a_failed_grade_and_does_not_block() -> None:
    release = threading.Event()

    def hangs(completions: list[str]) -> list[float]:
        if "x" in completions:
            release.wait(30)
        return [1.0] * len(completions)

    start = time.perf_counter()
    try:
        found = grades(hangs, timeout_s=0.2)
    finally:
        release.set()
    assert time.perf_counter() - start < 5
    assert rewards(found) == [1.0, 0.0, 1.0, 1.0]
    assert found[1].failure == "verifier gave no answer within 0.2 s"


def test_hanging_again_and_again_ends_it() -> None:
    release = threading.Event()
    verifier = Verifier(lambda completions: release.wait(30), name="stuck", timeout_s=0.05)
    try:
        with pytest.raises(VerifierError, match=r"'stuck' gave no answer within 0.05 s, 3 times in a row"):
            verifier.grade(ITEMS, TEXTS)
    finally:
        release.set()


def test_hangs_with_successes_between_do_not_add_up() -> None:
    release = threading.Event()

    def every_other(completions: list[str]) -> list[float]:
        if any(text in "13" for text in completions):
            release.wait(30)
        return [1.0] * len(completions)

    try:
        found = grades(every_other, ["0", "1", "2", "3"], timeout_s=0.05, max_hangs=2)
    finally:
        release.set()
    assert rewards(found) == [1.0, 0.0, 1.0, 0.0]


def test_async_verifiers() -> None:
    async def waits(completions: list[str], answer: list[str]) -> list[Any]:
        await asyncio.sleep(0.001)
        return [(float(c == a), "seen") for c, a in zip(completions, answer, strict=True)]

    found = grades(waits)
    assert rewards(found) == [1.0, 0.0, 1.0, 1.0]
    assert found[0].feedback == "seen"

    async def sleeps(completions: list[str]) -> list[float]:
        if "x" in completions:
            await asyncio.sleep(30)
        return [1.0] * len(completions)

    assert rewards(grades(sleeps, timeout_s=0.1)) == [1.0, 0.0, 1.0, 1.0]

    async def raises(completions: list[str]) -> list[float]:
        raise TimeoutError("the judge was slow")

    assert "TimeoutError: the judge was slow" in (grades(raises)[0].failure or "")


# ------------------------------------------------------------------------------------------------------- by name

MODULE = """
import os, sys, time
from dataclasses import dataclass

@dataclass
class Scale:
    top: float = 1.0

number = 3

def good(completions, answer, **kwargs):
    print("verifiers may print")
    return [Scale().top * (c == a) for c, a in zip(completions, answer)]

async def later(prompts, completions):
    return [(1.0, os.getpid())][:0] or [(1.0, str(os.getpid())) for _ in completions]

def spins(completions):
    while "x" in completions:
        pass
    return [1.0 for _ in completions]

def dies(completions):
    if "x" in completions:
        os._exit(7)
    return [1.0 for _ in completions]
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "my_scores.py"
    path.write_text(MODULE)
    return path


@pytest.mark.parametrize("spec", ["my_scores.py:good", "my_scores:good"])
def test_loaded_by_file_and_by_module(spec: str, module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "my_scores", raising=False)
    before = list(sys.path)
    verifier = Verifier.load(spec, base_dir=module.parent)
    try:
        assert rewards(verifier.grade(ITEMS, TEXTS)) == [1.0, 0.0, 1.0, 1.0]
    finally:
        verifier.close()
        sys.modules.pop("my_scores", None)
    assert sys.path == before


def test_runs_in_one_child_process_that_close_ends(module: Path) -> None:
    verifier = Verifier.load("my_scores.py:later", base_dir=module.parent)
    first, second = (verifier.grade(ITEMS, TEXTS)[0].feedback for _ in range(2))
    assert first == second != str(os.getpid())
    verifier.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(first), 0)
    assert verifier.grade(ITEMS, TEXTS)[0].feedback != first  # and a later call starts another
    verifier.close()


def test_a_child_that_spins_is_killed(module: Path) -> None:
    verifier = Verifier.load("my_scores.py:spins", base_dir=module.parent, timeout_s=1.0)
    found = verifier.grade(ITEMS, TEXTS)
    verifier.close()
    assert rewards(found) == [1.0, 0.0, 1.0, 1.0]
    assert "no answer within 1 s" in (found[1].failure or "")


def test_a_child_that_dies_is_a_failed_grade(module: Path) -> None:
    verifier = Verifier.load("my_scores.py:dies", base_dir=module.parent)
    found = verifier.grade(ITEMS, TEXTS)
    verifier.close()
    assert rewards(found) == [1.0, 0.0, 1.0, 1.0]
    assert found[1].failure == "verifier failed: the verifier's process ended with exit status 7"


def test_a_child_that_cannot_start_says_why(module: Path) -> None:
    runner = ProcessRunner("my_scores.py:gone", str(module.parent))
    with pytest.raises(VerifierError, match=r"could not be started .*unknown function in my_scores.py 'gone'"):
        runner.call({"completions": []}, 1.0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_scores.py:god", "unknown function in my_scores.py 'god'; did you mean 'good'"),
        ("my_scores.py:number", "is a int, not a function"),
        ("my_score.py:good", "there is no file .*my_score.py; did you mean my_scores.py"),
        ("no.such.package:f", "there is no module 'no'; install it, or name a file"),
        ("my_scores.py:", "is named as 'package.module:function'"),
        ("my_scores.py:not a name", "is named as 'package.module:function'"),
        ("exat", "unknown verifier 'exat'; did you mean 'exact'.*one of your own is named as"),
        ("broken.py:f", "'broken.py:f' cannot be imported: ZeroDivisionError: division by zero"),
        ("syntax.py:f", "cannot be imported: SyntaxError"),
        ("imports.py:f", "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("empty.py:f", "defines no function"),
    ],
)
def test_what_cannot_be_loaded(spec: str, message: str, module: Path) -> None:
    (module.parent / "broken.py").write_text("1 / 0\n")
    (module.parent / "syntax.py").write_text("def f(:\n")
    (module.parent / "imports.py").write_text("import nowhere_at_all\n")
    (module.parent / "empty.py").write_text("\n")
    with pytest.raises(ConfigError, match=message):
        Verifier.load(spec, base_dir=module.parent)


@pytest.mark.parametrize(
    ("name", "answer", "right", "wrong"),
    [
        ("exact", "Paris", ["Paris", " Paris\n"], ["paris", "Paris.", "", "The Paris"]),
        ("contains", "Paris", ["It is paris.", "Paris"], ["Parisian", "Pari s", ""]),
        ("number", "1234.50", ["so 1,234.5", "12 then 1234.5!"], ["1234", "-1234.5", "none", "", "1234.5 or 7"]),
        ("number", "-3", ["= -3", "x is -3."], ["5-3", "3"]),
        ("number", "no digits", [], ["3", "", "no digits"]),
        ("regex", r"[0-9]{2}", ["42", " 42 "], ["4", "421", ""]),
    ],
)
def test_built_in_verifiers(name: str, answer: str, right: list[str], wrong: list[str]) -> None:
    item = Item(id="a", prompt="p", reference=answer)
    verifier = Verifier.load(name)
    texts = [*right, *wrong]
    found = verifier.grade([item] * len(texts), texts)
    verifier.close()
    assert rewards(found) == [1.0] * len(right) + [0.0] * len(wrong)
    assert all(answer in g.feedback or repr(answer)[1:-1] in g.feedback for g in found[len(right) :])


def test_a_pattern_that_backtracks_for_ever_is_stopped() -> None:
    item = Item(id="a", prompt="p", reference="(a+)+b")
    verifier = Verifier.load("regex", timeout_s=0.5)
    found = verifier.grade([item, item], ["a" * 60, "aab"])
    verifier.close()
    assert rewards(found) == [0.0, 1.0]
    assert "no answer" in (found[0].failure or "")


def test_an_answer_that_is_no_pattern_is_a_failed_grade() -> None:
    verifier = Verifier.load("regex")
    found = verifier.grade([Item(id="a", prompt="p", reference="(")], ["x"])
    verifier.close()
    assert "verifier raised" in (found[0].failure or "")
