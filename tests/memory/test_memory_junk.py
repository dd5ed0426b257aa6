"""The planted stream of experiments/memory_junk, small: what holds in every run of it, and that memory pays."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from twoclock.errors import ConfigError
from twoclock.memory.records import Entry, Hit
from twoclock.memory.store import MemoryStore

ROOT = Path(__file__).parents[2]


def experiment() -> Any:
    path = ROOT / "experiments" / "memory_junk" / "run.py"
    spec = importlib.util.spec_from_file_location("memory_junk_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run() -> Any:
    return experiment()


@pytest.fixture(scope="module")
def records(run: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    setting = run.Setting(episodes=800, topics=2, rules=3, budget=24)
    folder = tmp_path_factory.mktemp("junk")
    return {arm: run.play(arm, 0, setting, folder / f"{arm}.sqlite") for arm in ("none", "clean", "planted")}


def test_the_stream_is_planted_as_stated(run: Any) -> None:
    world = run.World(run.Setting(), 0)
    worth = [world.worth(world.lesson(episode).text) for episode in range(3000)]
    assert sum(w > 0 for w in worth) / 3000 == pytest.approx(0.4, abs=0.03)
    assert sum(w < 0 for w in worth) / 3000 == pytest.approx(0.3, abs=0.03)
    rewards = [world.reward(episode, []) for episode in range(3000)]
    assert sum(rewards) / 3000 == pytest.approx(run.BASE, abs=0.03)
    best = max(world.gains, key=lambda text: world.gains[text])
    shown = [Entry(kind="reflection", key="k", text=best), Entry(kind="reflection", key="k", text="whatever")]
    better = sum(world.reward(episode, shown) for episode in range(3000)) / 3000
    assert better == pytest.approx(run.BASE + world.gains[best], abs=0.03)


def test_the_store_stays_in_its_bounds_and_whole(records: dict[str, Any]) -> None:
    for arm in ("clean", "planted"):
        assert records[arm]["most_entries"] <= 24
        assert records[arm]["problems"] == []
    assert records["planted"]["duplicates"] > 150


def test_memory_pays_though_most_of_it_is_junk(records: dict[str, Any]) -> None:
    last = {arm: record["success_last_quarter"] for arm, record in records.items()}
    assert last["clean"] > last["none"] + 0.1
    assert last["planted"] > last["none"] + 0.1
    assert records["planted"]["junk_of_shown"] < 0.5, "60 % of what is written is junk"


def test_the_same_seed_gives_the_same_run(run: Any, tmp_path: Path) -> None:
    setting = run.Setting(episodes=60, topics=2, rules=3, budget=8)
    one, two = (run.play("planted", 1, setting, tmp_path / name) for name in ("a.sqlite", "b.sqlite"))
    clock = ("seconds", "read_p50_ms", "bytes")
    assert {n: v for n, v in one.items() if n not in clock} == {n: v for n, v in two.items() if n not in clock}


def test_the_table_needs_no_arm_to_be_there(run: Any, records: dict[str, Any]) -> None:
    text = run.table(list(records.values()))
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| none", "| clean", "| planted"]
    assert run.table([]).count("\n") == 1


def test_a_choice_decides_what_is_shown_and_what_is_credited(tmp_path: Path) -> None:
    entries = [Entry(kind="note", key="one key", text=f"note {n}") for n in range(4)]
    with MemoryStore.open(tmp_path / "m.sqlite") as store:
        store.add_many(entries, actor="test")
        names = [entry.id for entry in entries]
        reading = store.read("one key", choose=lambda hits: {names[0]: 0.0, names[1]: 1.0, "gone": 0.5}, seed=1)
        assert [hit.entry.id for hit in reading.shown] == [names[0]]
        assert [hit.entry.id for hit in reading.held] == [names[1]]
        store.outcome(reading, 1.0)
        assert {name: (e.shown, e.held) for name, e in store.effects().items()} == {names[0]: (1, 0), names[1]: (0, 1)}
        seen: list[Hit] = []
        assert store.read("one key", choose=lambda hits: seen.extend(hits) or {}).shown == ()
        assert {hit.entry.id for hit in seen} == set(names)
        with pytest.raises(ConfigError, match=r"probabilities in \[0, 1\]; got"):
            store.read("one key", choose=lambda hits: {names[0]: 1.5})


def test_what_was_dropped_still_tells_of_its_kind(tmp_path: Path) -> None:
    entries = [Entry(kind="note", key="one key", text=f"note {n}") for n in range(3)]
    with MemoryStore.open(tmp_path / "m.sqlite") as store:
        store.add_many(entries, actor="test")
        for number in range(40):
            reading = store.read("one key", choose=lambda hits: {entries[0].id: 0.5}, seed=number)
            store.outcome(reading, float(number % 2))
        store.retire([entries[0].id, entries[1].id], "enough", actor="test")
        assert set(store.priors()) == {entries[0].id, entries[2].id}, "the live, and what was ever measured"
        assert store.priors()[entries[2].id].entries == 1
        assert entries[0].id not in store.effects()
