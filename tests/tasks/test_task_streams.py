"""Streams: which items a round reads follows from its arguments alone, each once before any again."""

from __future__ import annotations

from collections import Counter

import pytest

from twoclock.errors import ConfigError
from twoclock.tasks import FamilyTask, SplitSizes, Stream


def make(train: int = 20, phases: list[tuple[str, int]] | None = None) -> Stream:
    sizes = SplitSizes(train=train, trial=2, heldout=2)
    tasks = {name: FamilyTask(name, sizes=sizes) for name in ("compare", "lookup")}
    return Stream(phases or [("compare", 6), ("lookup", 3), ("compare", 9)], tasks)


def ids(stream: Stream, round: int, count: int, seed: int = 0) -> list[str]:
    return [item.id for item in stream.batch(round, count, seed)]


def test_phases_by_hand() -> None:
    stream = make()
    assert stream.num_rounds == 18
    assert [stream.phase(r).index for r in (1, 6, 7, 9, 10, 18)] == [0, 0, 1, 1, 2, 2]
    assert [p.task for p in stream.phases] == ["compare", "lookup", "compare"]
    for outside in (0, -1, 19):
        with pytest.raises(ValueError, match=f"round {outside} is not in the stream; its rounds are 1 to 18"):
            stream.phase(outside)


def test_batches_are_pure() -> None:
    one, two = make(), make()
    forward = [ids(one, r, 8) for r in range(1, 19)]
    backward = [ids(two, r, 8) for r in range(18, 0, -1)]
    assert forward == backward[::-1]
    assert forward == [ids(one, r, 8) for r in range(1, 19)]
    assert ids(one, 1, 8, seed=1) != ids(one, 1, 8, seed=0)


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 13, 19, 20])
def test_every_item_once_before_any_again_and_never_twice_in_a_batch(count: int) -> None:
    stream = make()
    rounds = [r for r in range(1, 19) if stream.phase(r).task == "compare"]
    used = []
    for round in rounds:
        batch = ids(stream, round, count)
        assert len(set(batch)) == len(batch) == count
        used += batch
    for start in range(0, len(used) - 20 + 1, 20):
        assert len(set(used[start : start + 20])) == 20
    counts = Counter(used)
    assert max(counts.values()) - min(counts.values()) <= 1 or len(counts) < 20


def test_epochs_are_in_different_orders() -> None:
    stream = make(phases=[("compare", 4)])
    assert ids(stream, 1, 20) != ids(stream, 2, 20)
    assert set(ids(stream, 1, 20)) == set(ids(stream, 2, 20))


def test_phases_of_other_tasks_do_not_move_a_task_on() -> None:
    alone = make(phases=[("compare", 15)])
    mixed = make()
    compare = [ids(mixed, r, 8) for r in range(1, 19) if mixed.phase(r).task == "compare"]
    assert compare == [ids(alone, r, 8) for r in range(1, 16)]


def test_batches_hold_training_items_only() -> None:
    stream = make()
    train = {item.id for item in stream.tasks["lookup"].split("train")}
    assert all(set(ids(stream, r, 7)) <= train for r in (7, 8, 9))


def test_too_large_a_batch() -> None:
    stream = make()
    with pytest.raises(ConfigError, match="task 'compare' has 20 training items, fewer than the 21 of one batch"):
        stream.batch(1, 21, 0)
    with pytest.raises(ConfigError) as caught:
        stream.check(21)
    assert len(caught.value.problems) == 2
    stream.check(20)
    with pytest.raises(ConfigError, match="at least 1 item; got 0"):
        stream.batch(1, 0, 0)


def test_all_mistakes_of_a_stream_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make(phases=[("compar", 2), ("lookup", 0), ("lookup", True)])
    assert len(caught.value.problems) == 3
    assert "phase 1: unknown task 'compar'; did you mean 'compare'" in caught.value.problems[0]
    with pytest.raises(ConfigError, match="at least one phase"):
        Stream([], {})
