"""JSON lines: every bad line with its number, splits, duplicates, encodings, verifiers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from twoclock.errors import ConfigError, DataError
from twoclock.tasks import JsonlTask, SplitSizes, Verifier


def write(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count: int) -> list[Mapping[str, Any]]:
    return [{"prompt": f"What is {i} + 1?", "answer": i + 1, "level": i % 3} for i in range(count)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "sums.jsonl", numbered(200))


def ids(task: JsonlTask) -> dict[str, set[str]]:
    return {name: {item.id for item in task.split(name)} for name in ("train", "trial", "heldout")}


def test_items_columns_and_grades(data: Path) -> None:
    task = JsonlTask(data)
    item = task.split("train")[0]
    assert task.name == "sums"
    assert "200 problems from sums.jsonl" in task.description
    assert set(item.metadata) == {"level"}
    assert item.prompt == f"What is {int(item.reference or '') - 1} + 1?"
    found = task.grade([item] * 4, [f" {item.reference}\n", "x", "", f"{item.reference} {item.reference}"])
    assert [g.reward for g in found] == [1.0, 0.0, 0.0, 0.0]
    assert f'the right answer is "{item.reference}"' in found[1].feedback


def test_case_counts_unless_folded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": str(i), "answer": "Paris"} for i in range(9)])
    for fold, reward in ((False, 0.0), (True, 1.0)):
        task = JsonlTask(path, casefold=fold)
        assert task.grade(task.split("train")[:1], ["paris"])[0].reward == reward


def test_splits_are_disjoint_hashed_from_content_and_stable_under_more_rows(data: Path, tmp_path: Path) -> None:
    task = JsonlTask(data, seed=1)
    splits = ids(task)
    assert sum(map(len, splits.values())) == 200
    assert not any(a & b for a, b in combinations(splits.values(), 2))
    assert 140 <= len(splits["train"]) <= 180
    shuffled = write(tmp_path / "more.jsonl", [*reversed(numbered(200)), {"prompt": "new", "answer": "1"}])
    more = ids(JsonlTask(shuffled, seed=1))
    assert all(splits[name] <= more[name] for name in splits)
    assert ids(JsonlTask(data, seed=2))["heldout"] != splits["heldout"]


def test_sizes_and_shares(data: Path) -> None:
    counted = ids(JsonlTask(data, sizes=SplitSizes(train=100, trial=20, heldout=30)))
    assert {name: len(found) for name, found in counted.items()} == {"train": 100, "trial": 20, "heldout": 30}
    shared = ids(JsonlTask(data, shares={"train": 1, "trial": 1, "heldout": 2}))
    assert 80 <= len(shared["heldout"]) <= 120
    with pytest.raises(ConfigError, match=r"200 different prompts, too few for size = .*train has 120 of 500"):
        JsonlTask(data, sizes=SplitSizes(train=500, trial=30, heldout=50))
    with pytest.raises(ConfigError, match=r"shares\.trial must be a number above 0; got 0"):
        JsonlTask(data, shares={"train": 1, "trial": 0, "heldout": 2})


def test_the_split_column(tmp_path: Path) -> None:
    rows = [
        {"prompt": str(i), "answer": "1", "split": s} for i, s in enumerate(["train", "validation", "test", "train"])
    ]
    task = JsonlTask(write(tmp_path / "a.jsonl", rows))
    assert [[i.prompt for i in task.split(s)] for s in ("train", "trial", "heldout")] == [["0", "3"], ["1"], ["2"]]
    with pytest.raises(DataError, match="leaves nothing for heldout: it has 2 different prompts"):
        JsonlTask(write(tmp_path / "b.jsonl", rows[:2]))
    with pytest.raises(DataError, match=r"line 5: unknown split 'trai'; did you mean 'train'"):
        JsonlTask(write(tmp_path / "c.jsonl", [*rows, {"prompt": "x", "answer": "1", "split": "trai"}]))


def test_small_files_still_get_three_splits(tmp_path: Path) -> None:
    task = JsonlTask(write(tmp_path / "a.jsonl", numbered(4)))
    assert [len(task.split(s)) for s in ("train", "trial", "heldout")] == [2, 1, 1]
    assert "4 rows are few" in task.notes[0]
    with pytest.raises(DataError, match="leaves nothing for train"):
        JsonlTask(write(tmp_path / "b.jsonl", numbered(2)))


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [*numbered(50), {"prompt": "What is 3  + 1?", "answer": 4}, {"prompt": "What is 4 + 1?", "answer": "six"}]
    task = JsonlTask(write(tmp_path / "a.jsonl", rows))
    assert task.notes == (
        "a.jsonl: 2 rows with a prompt that was there already were dropped (1 of them with another answer)",
    )
    assert sum(map(len, ids(task).values())) == 50


def test_a_prompt_in_two_named_splits_stays_held_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": p, "answer": "1", "split": s}
        for p, s in [("a", "train"), ("b", "train"), ("c", "trial"), ("a", "heldout")]
    ]
    task = JsonlTask(write(tmp_path / "a.jsonl", rows))
    assert [[i.prompt for i in task.split(s)] for s in ("train", "trial", "heldout")] == [["b"], ["c"], ["a"]]


def test_bom_crlf_blank_lines_and_separators_inside_text(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"é{i}\u2028x", "answer": "ü"}, ensure_ascii=False) for i in range(9)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n  \r\n".join(lines).encode())
    task = JsonlTask(path)
    assert sum(map(len, ids(task).values())) == 9
    assert all("\u2028x" in item.prompt for item in task.split("train"))


BAD = [
    (b"{", r"line 3: no valid JSON \(.* at column 2\): \{"),
    (b'{"prompt": "a", "answer": "b"', "line 3: no valid JSON"),
    (b'["a", "b"]', "line 3: a list, not an object"),
    (b'[{"prompt": "a"},', "line 3: no valid JSON .*one JSON array: write one object a line"),
    (b'"text"', "line 3: a str, not an object"),
    (b'{"question": "a", "answer": "b"}', r"line 3: 'prompt' must be a text .*got None \(keys: 'question', 'answer'\)"),
    (b'{"prompt": "  ", "answer": "b"}', "line 3: 'prompt' must be a text that is not empty"),
    (b'{"prompt": 3, "answer": "b"}', "line 3: 'prompt' must be a text .*got 3"),
    (b'{"prompt": "a"}', "line 3: no 'answer', and the task has no verifier"),
    (b'{"prompt": "a", "answer": " "}', "line 3: no 'answer'"),
    (b'{"prompt": "a", "answer": ["b"]}', "line 3: 'answer' must be a text or a number"),
    (b'{"prompt": "a", "answer": true}', "line 3: 'answer' must be a text or a number; got True"),
    (b'{"prompt": "a", "answer": NaN}', "line 3: no usable JSON"),
    (b'{"prompt": "\\ud800", "answer": "b"}', "line 3: no usable JSON"),
    (b'{"prompt": "a\xff", "answer": "b"}', "line 3: not UTF-8 .byte 0xff at column 14"),
    (b"[" * 100_000, "line 3: no (valid|usable) JSON"),
    (b'{"prompt": "a", "answer": "b", "completions": 1}', "line 3: the column name 'completions'"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_line_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    good = b'{"prompt": "a", "answer": "b"}\n'
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + b"\n" + line + b"\n" + good)
    with pytest.raises(DataError, match=message) as caught:
        JsonlTask(path)
    assert f"{path}: 1 bad line; nothing was read" in str(caught.value)


def test_many_bad_lines_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("oops\n" * 25)
    with pytest.raises(DataError) as caught:
        JsonlTask(path)
    text = str(caught.value)
    assert "25 bad lines" in text
    assert "line 20:" in text
    assert "line 21:" not in text
    assert text.endswith("… and 5 more")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", numbered(3))
    with pytest.raises(DataError, match=r"there is no file .*trian.jsonl; did you mean train.jsonl"):
        JsonlTask(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"there is no file .*; give the file with path = "):
        JsonlTask(tmp_path / "nowhere" / "a.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        JsonlTask(tmp_path)
    for content in (b"", b"\n \n", b"\xef\xbb\xbf"):
        (tmp_path / "empty.jsonl").write_bytes(content)
        with pytest.raises(DataError, match="is empty; expected lines such as"):
            JsonlTask(tmp_path / "empty.jsonl")
    (tmp_path / "wide.jsonl").write_text('{"prompt": "a"}', encoding="utf-16")
    with pytest.raises(DataError, match="is UTF-16; save it as UTF-8"):
        JsonlTask(tmp_path / "wide.jsonl")


def test_with_a_verifier_answers_are_optional_and_columns_arrive(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": str(i), "length": i} for i in range(9)])

    def by_length(completions: list[str], length: list[int]) -> list[float]:
        return [float(len(c) == n) for c, n in zip(completions, length, strict=True)]

    task = JsonlTask(path, verifier=Verifier(by_length))
    item = task.split("train")[0]
    assert item.reference is None
    raw = " " * item.metadata["length"]
    assert [g.reward for g in task.grade([item] * 2, [raw, raw + " "])] == [1.0, 0.0]

    def wants(completions: list[str], lenght: list[int]) -> list[float]:
        return [1.0]

    with pytest.raises(ConfigError, match="column 'lenght' that the items lack; did you mean 'length'"):
        JsonlTask(path, verifier=Verifier(wants))


def test_extraction_shows_in_the_reference(data: Path) -> None:
    task = JsonlTask(data, extract="tag", instruction="Use tags.")
    item = task.split("train")[0]
    assert item.prompt.endswith("\nUse tags.")
    assert (item.reference or "").startswith("<answer>")
    assert [g.reward for g in task.grade([item] * 2, [f"So {item.reference}", "<answer>"])] == [1.0, 0.0]
