"""The laws of tasks and streams as the loop relies on them, over every source in the table.

Promises: splits share no item; gold answers pass; a batch is a pure function of (round, count, seed), holds no item
twice, comes from the training split of the round's task, and no item is used again before all have been.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from twoclock.contracts import Interactive, Task
from twoclock.tasks import SOURCES, Stream, build_task
from twoclock.types import SplitName

SPLITS: tuple[SplitName, ...] = ("train", "trial", "heldout")
SPECS: Mapping[str, dict[str, Any]] = {
    "code": {},
    "environment": {"family": "maze", "size": {"train": 30, "trial": 10, "heldout": 10}},
    "reasoning_gym": {"family": "gcd", "size": {"train": 30, "trial": 10, "heldout": 10}},
    "family": {"family": "compare", "size": {"train": 30, "trial": 10, "heldout": 10}},
    "grid": {"family": "flow", "size": {"train": 30, "trial": 10, "heldout": 10}},
    "jsonl": {"path": "rows.jsonl", "shares": {"train": 0.6, "trial": 0.2, "heldout": 0.2}},
}


@pytest.fixture(params=SOURCES)
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Task:
    rows = [{"prompt": f"double {n}", "answer": str(2 * n)} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_task("it", {"source": request.param, **SPECS[request.param]}, 5, tmp_path)


def test_splits_share_nothing_and_stay(task: Task) -> None:
    items = {name: task.split(name) for name in SPLITS}
    ids = [item.id for name in SPLITS for item in items[name]]
    prompts = [item.prompt for name in SPLITS for item in items[name]]
    assert len(set(ids)) == len(ids)
    # Episodes may begin alike: what tells them apart is found out by playing.
    assert len(set(prompts)) == len(prompts) or isinstance(task, Interactive)
    assert {name: task.split(name) for name in SPLITS} == items


def test_gold_passes_and_nonsense_does_not(task: Task) -> None:
    if isinstance(task, Interactive):
        pytest.skip("an episode's solution is played, not answered: tests/tasks/test_env_laws.py")
    items = task.split("train")[:10]
    assert all(g.reward == 1.0 for g in task.grade(items, [i.reference or "" for i in items]))
    wrong = task.grade(items, ["certainly not", "", "\x00", "💥", "9" * 400, "nan", "[[", "-", " ", "0x"])
    assert all(g.reward < 1.0 for g in wrong)
    assert task.grade([], []) == []


@pytest.mark.parametrize("count", [1, 7, 28])
def test_batches_are_pure_fair_and_without_repeats(task: Task, count: int) -> None:
    train = {item.id for item in task.split("train")}
    count = min(count, len(train))

    def make() -> Stream:
        return Stream([("it", 6), ("other", 3), ("it", 5)], {"it": task, "other": task})

    stream = make()
    assert stream.num_rounds == sum(p.rounds for p in stream.phases) == 14
    batches = {n: stream.batch(n, count, 3) for n in range(1, 15)}
    for number in reversed(range(1, 15)):  # in another order, from another object
        assert make().batch(number, count, 3) == batches[number]
        assert len({item.id for item in batches[number]}) == count
        assert {item.id for item in batches[number]} <= train
    used = [item.id for n in (*range(1, 7), *range(10, 15)) for item in batches[n]]
    first = used[: len(train)]
    assert len(set(first)) == min(len(used), len(train)), "an item came again before all had been used"
    if count < len(train):
        assert stream.batch(1, count, 4) != batches[1]
