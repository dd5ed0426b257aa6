"""``build_task``: every source, every mistake of a table in one error, and what the room exports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import twoclock.tasks
from twoclock.errors import ConfigError, DataError
from twoclock.tasks import EXTRACTORS, build_task
from twoclock.tasks.text import extract, last_number, present

SIZE = {"train": 8, "trial": 2, "heldout": 4}


def problems(spec: dict[str, Any], base_dir: Path = Path()) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        build_task("mine", spec, 0, base_dir)
    assert all(text.startswith("tasks.mine: ") for text in caught.value.problems)
    return tuple(text.removeprefix("tasks.mine: ") for text in caught.value.problems)


def test_every_source(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    (tmp_path / "a.jsonl").write_text("".join(f'{{"prompt": "p{i}", "answer": "{i}"}}\n' for i in range(20)))
    specs: list[dict[str, Any]] = [
        {"source": "reasoning_gym", "family": "gcd", "config": {"max_value": 99}, "size": SIZE, "extract": "tag"},
        {"source": "family", "family": "mod_sum", "convention": "arrow", "templates": [0, 1], "size": SIZE},
        {"source": "jsonl", "path": "a.jsonl", "size": SIZE, "casefold": True, "instruction": "Answer:"},
        {"source": "jsonl", "path": "a.jsonl", "verifier": "number", "verifier_timeout_s": 5},
    ]
    for spec in specs:
        task = build_task("mine", spec, 3, tmp_path)
        assert task.name == "mine"
        assert task.description
        item = task.split("heldout")[0]
        assert [g.reward for g in task.grade([item, item], [item.reference or "", "zq"])] == [1.0, 0.0]
        assert build_task("mine", spec, 3, tmp_path).split("train") == task.split("train")


def test_a_verifier_on_any_source(tmp_path: Path) -> None:
    (tmp_path / "v.py").write_text(
        "def loud(completions, value):\n    return [float(c == v + '!') for c, v in zip(completions, value)]\n"
    )
    spec = {"source": "family", "family": "mod_sum", "size": SIZE, "verifier": "v.py:loud"}
    task: Any = build_task("mine", spec, 0, tmp_path)
    item = task.split("train")[0]
    assert [g.reward for g in task.grade([item, item], [item.reference + "!", item.reference])] == [1.0, 0.0]
    task.close()
    (tmp_path / "v.py").write_text("def loud(completions, valu):\n    return []\n")
    assert "column 'valu' that the items lack; did you mean 'value'" in problems(spec, tmp_path)[0]


def test_all_mistakes_at_once() -> None:
    found = "\n".join(
        problems(
            {
                "source": "family",
                "family": "mod_sum",
                "config": {"max_term": 3},
                "convention": "arow",
                "size": {"train": 0, "tial": 3},
                "extract": "lastline",
                "scoring": "soft",
                "instruction": 3,
                "verifier": "exat",
                "verifer_timeout_s": 3,
                "path": "x",
            }
        )
    )
    for part in (
        "'max_term'; did you mean",
        "unknown convention 'arow'; did you mean 'arrow'",
        "unknown split in size 'tial'; did you mean 'trial'",
        "size.train must be a whole number of at least 1; got 0",
        "unknown extract 'lastline'",
        "unknown scoring 'soft'",
        "'instruction' must be a text; got 3",
        "unknown verifier 'exat'",
        "unknown key 'verifer_timeout_s'; did you mean 'verifier_timeout_s'",
        "unknown key 'path'",
    ):
        assert part in found
    assert len(found.splitlines()) == 10


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "'source' is missing; it is one of: reasoning_gym, family, jsonl"),
        ({"source": "reasoning-gym"}, "unknown source 'reasoning-gym'; did you mean 'reasoning_gym'"),
        ({"source": ["family"]}, "unknown source"),
        ({"source": "family"}, "'family' is missing: source 'family' needs it"),
        ({"source": "jsonl"}, "'path' is missing"),
        ({"source": "family", "family": 3}, "'family' must be a text; got 3"),
        ({"source": "family", "family": "mod_sum", "size": 300}, "'size' must be a table such as"),
        ({"source": "family", "family": "mod_sum", "templates": "all"}, "'templates' must be a list"),
        ({"source": "jsonl", "path": "a", "casefold": 1}, "'casefold' must be true or false; got 1"),
        ({"source": "jsonl", "path": "a", "verifier": "number", "verifier_timeout_s": -1}, "above 0; got -1"),
        (
            {"source": "jsonl", "path": "a", "verifier": "number", "verifier_timeout_s": True},
            "number of seconds; got True",
        ),
    ],
)
def test_one_mistake(spec: dict[str, Any], message: str) -> None:
    assert any(message in text for text in problems(spec))


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"there is no file {tmp_path}/a.jsonl"):
        build_task("mine", {"source": "jsonl", "path": "a.jsonl"}, 0, tmp_path)


def test_a_family_of_reasoning_gym_that_is_not_known() -> None:
    pytest.importorskip("reasoning_gym")
    found = problems({"source": "reasoning_gym", "family": "gdc", "size": {"train": -1}})
    assert any("unknown reasoning-gym family 'gdc'; did you mean 'gcd'" in text for text in found)
    assert any("size.train" in text for text in found)


def test_extractors_by_hand() -> None:
    text = "First: 1,024 apples.\n<answer> -3.5 </answer>\n\nDone, 7-2 \n"
    assert {how: extract(text, how) for how in EXTRACTORS} == {
        "text": text.strip(),
        "first_line": "First: 1,024 apples.",
        "last_line": "Done, 7-2",
        "tag": "-3.5",
        "last_number": "2",
        "first_word": "First",
    }
    for how in EXTRACTORS:
        for odd in ("", "\n \n", "\x00", "<answer>" * 50_000, "</answer><answer>", "\ud800"):
            assert isinstance(extract(odd, how), str)
    assert extract(present("a b", "tag"), "tag") == "a b"
    assert last_number("1,024") == "1024"
    assert last_number("1,2,3") == "3"
    assert last_number("none") is None


def test_exports_are_on_purpose() -> None:
    assert all(hasattr(twoclock.tasks, name) for name in twoclock.tasks.__all__)
    public = {
        name
        for name, value in vars(twoclock.tasks).items()
        if not name.startswith("_") and type(value).__name__ != "module"
    }
    assert public == set(twoclock.tasks.__all__)


def test_importing_the_room_is_light() -> None:
    script = "import sys, twoclock.tasks; print([m for m in ('torch', 'reasoning_gym', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
