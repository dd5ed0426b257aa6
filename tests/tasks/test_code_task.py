"""Code tasks: the packaged problems against their own solutions and against wrong ones, and files of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twoclock.errors import ConfigError, DataError
from twoclock.tasks import build_task
from twoclock.tasks.code_task import CodeTask, is_test_of, read_program
from twoclock.tasks.splits import SPLITS, SplitSizes
from twoclock.types import Item

GOOD: dict[str, Any] = {
    "name": "add",
    "signature": "def add(a: int, b: int) -> int:",
    "doc": "The sum.",
    "tests": ["assert add(1, 2) == 3"],
    "solution": "def add(a, b):\n    return a + b",
}


def everything(task: CodeTask) -> list[Item]:
    return [item for split in SPLITS for item in task.split(split)]


def test_every_packaged_solution_passes_and_an_empty_body_does_not() -> None:
    task = CodeTask()
    items = everything(task)
    assert len(items) >= 30
    assert len({i.id for i in items}) == len(items)
    assert all(len(item.metadata["tests"]) >= 5 for item in items)
    fenced = [f"Here it is.\n```python\n{item.reference}\n```" for item in items]
    assert [g.reward for g in task.grade(items, fenced)] == [1.0] * len(items)
    empty = [f"{item.metadata['signature']}\n    pass" for item in items]
    assert [g.reward for g in task.grade(items, empty)] == [0.0] * len(items)


def test_no_prompt_shows_a_hidden_test() -> None:
    for item in everything(CodeTask()):
        assert not any(test.removeprefix("assert ") in item.prompt for test in item.metadata["tests"])


def test_splits_and_scores() -> None:
    task: Any = build_task(
        "c", {"source": "code", "scoring": "graded", "size": {"train": 9, "trial": 4, "heldout": 5}}, 2
    )
    assert [len(task.split(s)) for s in SPLITS] == [9, 4, 5]
    item = next(i for i in everything(CodeTask()) if i.metadata["name"] == "leap_year")
    (grade,) = task.grade([item], ["def leap_year(year):\n    return year % 4 == 0"])
    assert grade.reward == pytest.approx(4 / 6)
    assert "4 of 6 tests pass. The first that fails: not leap_year(1900) does not hold" in grade.feedback
    assert CodeTask().grade([item], ["def leap_year(year):\n    return year % 4 == 0"])[0].reward == 0.0


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\ndef add(a, b):\n    return a\n```", "def add(a, b):\n    return a"),
        ("```\nprint(1)\n```\nand\n```py\ndef add(a, b): return a\n```", "def add(a, b): return a"),
        ("<think>```python\ndef add(a, b): 1\n```</think>def add(a, b): return b", "def add(a, b): return b"),
        ("return a + b", "def add(a, b):\n    return a + b"),
        ("    c = a\n    return c", "def add(a, b):\n    c = a\n    return c"),
        ("```python\ndef add(a, b):\n    return a", "def add(a, b):\n    return a"),
        ("I cannot do this.", "I cannot do this."),
        ("", ""),
    ],
)
def test_reading_a_program(text: str, program: str) -> None:
    assert read_program(text, "add", "def add(a, b):") == program


@pytest.mark.parametrize(
    ("test", "is_one"),
    [
        ("assert add(1, 2) == 3", True),
        ("assert not add(0, 0)", True),
        ("assert add(1, 2) == ", False),
        ("add(1, 2) == 3", False),
        ("assert 1 == 1", False),
        ("assert add is not None", False),
        ("assert raises(ValueError, add, 1)", True),
        ("assert add(1, 2) == 3; import os", False),
        ("assert (add(1, 2) == 4, 'always true')", False),
        ("assert True", False),
        ("(" * 500, False),
    ],
)
def test_what_is_a_test(test: str, is_one: bool) -> None:
    assert is_test_of(test, "add") is is_one


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "name": f"add{n}", "signature": f"def add{n}(a, b):", "tests": [f"assert add{n}(1, 2) == 3"]}
        for n in range(8)
    ]
    rows = [{key: value for key, value in row.items() if key != "solution"} for row in rows]
    rows[0]["split"] = "heldout"
    (tmp_path / "p.jsonl").write_text("\ufeff" + "\r\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = build_task("c", {"source": "code", "path": "p.jsonl"}, 0, tmp_path)
    assert task.split("heldout")[0].metadata["name"] == "add0"
    name = task.split("train")[0].metadata["name"]
    assert task.grade([task.split("train")[0]], [f"def {name}(a, b): return a + b"])[0].reward == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, "'name' must be a text"),
        ({"signature": "def sub(a):"}, "must be the first line of 'def add(...):'"),
        ({"tests": []}, "'tests' must be a list of assert statements"),
        ({"tests": ["assert 1"]}, "'assert 1' is no assert statement that calls add"),
        ({"split": "dev"}, "'split' must be one of"),
        ({"solution": "x = 1"}, "'solution' does not define add"),
    ],
)
def test_bad_lines_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **change}) + "\nx\n[]\n")
    with pytest.raises(DataError) as caught:
        CodeTask(tmp_path / "p.jsonl")
    text = str(caught.value)
    assert "line 2: " in text
    assert said in text
    assert "line 3: no valid JSON" in text
    assert "line 4: a list, not an object" in text


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        CodeTask(tmp_path / "none.jsonl")
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(DataError, match="it is empty"):
        CodeTask(tmp_path / "e.jsonl")
    (tmp_path / "t.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD))
    with pytest.raises(DataError, match="'add' stands twice"):
        CodeTask(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(DataError, match="leave nothing for"):
        CodeTask(tmp_path / "t.jsonl")
    with pytest.raises(ConfigError, match="too few for size"):
        CodeTask(sizes=SplitSizes(train=99))
    with pytest.raises(ConfigError, match="leave it out"):
        build_task("c", {"source": "code", "verifier": "number"}, 0)
