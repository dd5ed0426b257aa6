"""What a run measures on its way and at its beginning, and which old weights it keeps."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loop_world import OPEN_GATES, World, solver

from tiny_world import MEASURE
from twoclock.errors import ConfigError, StoreError
from twoclock.gathering import RolloutSettings
from twoclock.loop import StoreSettings
from twoclock.store import RunStore
from twoclock.types import Conditioning, Cost

PHASES = (("largest", 3), ("smallest", 4))
TASKS = ["largest", "smallest"]


# ------------------------------------------------------------------------------------------------------- measure.every


def evaluated(path: Path, every: int) -> list[tuple[int, str, str]]:
    """(round, purpose, task) of what was measured with the learned prompt, in order, after round 0."""
    measure = replace(MEASURE, every=every, drift_every=0)
    world = World(policy=solver(lambda c: 0.5), channels={"null": {}}, measure=measure, phases=PHASES)
    world.play(path)
    with RunStore.open(path) as store:
        known = store.conditionings()
        assert all(e.conditioning_id in known for e in store.evaluations())
        return [(e.round, e.purpose, e.task) for e in store.evaluations() if e.round and e.prompt == "learned"]


@pytest.mark.parametrize(
    ("every", "rounds"),
    [
        (0, {3: "phase", 7: "phase"}),
        (2, {2: "probe", 3: "phase", 4: "probe", 6: "probe", 7: "phase"}),
        (3, {3: "phase", 6: "probe", 7: "phase"}),  # once where both fall on one round
        (1, {1: "probe", 2: "probe", 3: "phase", 4: "probe", 5: "probe", 6: "probe", 7: "phase"}),
        (100, {3: "phase", 7: "phase"}),
    ],
)
def test_all_tasks_are_measured_every_few_rounds_and_at_the_ends(
    every: int, rounds: dict[int, str], tmp_path: Path
) -> None:
    expected = [(number, purpose, task) for number, purpose in rounds.items() for task in TASKS]
    assert evaluated(tmp_path / "run", every) == expected


def test_measuring_changes_nothing_of_what_is_learned_and_is_the_same_when_resumed(tiny: Any, tmp_path: Path) -> None:
    often = World(policy=tiny, measure=replace(MEASURE, every=1), phases=(("largest", 2), ("smallest", 2)))
    often.play(tmp_path / "often")
    replace(often, measure=MEASURE).play(tmp_path / "seldom")
    for until in (1, 2, None):
        often.play(tmp_path / "pieces", until=until)
    with (
        RunStore.open(tmp_path / "often") as one,
        RunStore.open(tmp_path / "seldom") as other,
        RunStore.open(tmp_path / "pieces") as pieces,
    ):
        assert one.head().states == other.head().states
        assert one.digest() == pieces.digest() != other.digest()
        seldom = {(e.round, e.task, e.weights, e.prompt): e.rewards for e in other.evaluations()}
        found = {(e.round, e.task, e.weights, e.prompt): e.rewards for e in one.evaluations()}
        assert seldom.items() <= found.items()


def test_what_has_not_changed_is_not_measured_again(tmp_path: Path) -> None:
    """Round 0 has measured the base, and null changes nothing: all that follows is looked up, for nothing."""
    policy = solver(lambda c: 0.5)
    measure = replace(MEASURE, every=1, drift_every=0)
    world = World(policy=policy, channels={"null": {}}, measure=measure, phases=PHASES)
    world.play(tmp_path / "run", until=0)
    measured = policy.calls
    assert measured == len(TASKS)
    world.play(tmp_path / "run")
    assert policy.calls == measured + 7  # a call a round: its rollouts
    with RunStore.open(tmp_path / "run") as store:
        assert {e.cost for e in store.evaluations() if e.round} == {Cost()}
        assert len(store.evaluations()) == 2 * 3 + 7 * 2 * 2


def test_a_period_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"measure\.every = -1: expected at least 0"):
        replace(MEASURE, every=-1)


# ---------------------------------------------------------------------------------------------------- given beginnings


@pytest.fixture(scope="module")
def learned(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the slow clock has learned in a few rounds."""
    return slow_world(tiny).play(tmp_path_factory.mktemp("learned") / "run", until=2).states["lora"]


def slow_world(policy: Any, keep: int = 0, **more: Any) -> World:
    return World(
        policy=policy,
        channels={"lora": {"objective": "reinforce"}},
        allocator="fixed",
        options={"drift": 5.0},
        rollouts=RolloutSettings(items=3, per_item=4),
        measure=replace(MEASURE, drift_every=0),
        keeping=StoreSettings(keep=keep),
        **{"phases": PHASES, **more},
    )


def test_a_run_may_begin_from_weights_and_measures_them_first(tiny: Any, learned: Any, tmp_path: Path) -> None:
    measure = replace(MEASURE, drift_every=2)
    both = replace(slow_world(tiny), measure=measure, channels={"lora": {}, "prompts": {}})
    with RunStore.create(tmp_path / "run", config={}) as store:
        loop = both.loop(store)
        loop.begin({"lora": learned})
        assert loop.states["lora"] is learned
        drift = {d.prompts: d for d in store.drift()}
        assert drift.keys() == {"general", "task:largest", "task:smallest"}
        assert all(d.round == 0 and d.live_base > 0 and d.base_live > 0 for d in drift.values())
        weights = Conditioning(delta=learned.delta)
        again = loop.evaluator.drift(0, weights, TASKS)
        assert again == list(drift.values())
        cells = {(e.task, e.weights, e.prompt): e for e in store.evaluations()}
        for task in TASKS:
            assert cells[task, "base", "none"].conditioning_id == Conditioning().id
            assert cells[task, "live", "none"].conditioning_id == weights.id
            assert cells[task, "live", "none"].rewards == cells[task, "live", "learned"].rewards
        assert any(cells[t, "base", "none"].rewards != cells[t, "live", "none"].rewards for t in TASKS)
        said = {e.channel: e.reason for e in store.entries(round=0)}
        assert said == {"lora": "a state that was given", "prompts": "the state that changes nothing"}
        loop.run(until=1)
        assert store.entries(channel="lora", round=1)[0].before == store.snapshot_at(0).states["lora"]
        assert store.verify() == []


def test_without_given_weights_drift_begins_at_exactly_nothing(tiny: Any, tmp_path: Path) -> None:
    world = replace(slow_world(tiny), measure=MEASURE)
    with RunStore.create(tmp_path / "run", config={}) as store:
        world.loop(store).begin()
        assert {(d.live_base, d.base_live) for d in store.drift()} == {(0.0, 0.0)}


def test_a_state_for_a_channel_that_there_is_not(tiny: Any, learned: Any, tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", config={}) as store:
        loop = slow_world(tiny).loop(store)
        with pytest.raises(ConfigError, match="unknown channel to begin from 'lorra'; did you mean 'lora'"):
            loop.begin({"lorra": learned})
        assert store.entries() == []
        loop.begin({"lora": learned})  # nothing was lost


# ----------------------------------------------------------------------------------------------------------- store.keep


@pytest.fixture(scope="module")
def everything(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "all"
    slow_world(tiny).play(path)
    return path


@pytest.fixture(scope="module")
def thinned(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "few"
    slow_world(tiny, keep=1).play(path)
    return path


def whole(path: Path) -> list[int]:
    """The rounds whose slow state is still there."""
    with RunStore.open(path) as store:
        there = {file.name for file in (path / "blobs").glob("[0-9a-f]?/*")}
        return [n for n in range(store.head().next_round) if store.snapshot_at(n).states["lora"] in there]


def test_the_run_has_as_many_states_as_rounds(everything: Path) -> None:
    """Or there would be nothing to thin."""
    with RunStore.open(everything) as store:
        states = [store.snapshot_at(n).states["lora"] for n in range(8)]
    assert len(set(states)) == 8
    assert whole(everything) == list(range(8))


def test_old_weights_go_and_the_run_is_the_same(everything: Path, thinned: Path) -> None:
    assert whole(thinned) == [0, 3, 7]  # the start, the end of the first phase, the newest
    with RunStore.open(everything) as one, RunStore.open(thinned) as other:
        assert one.digest() == other.digest()
        assert other.verify() == []


@pytest.mark.parametrize(("keep", "rounds"), [(2, [0, 3, 6, 7]), (4, [0, 3, 4, 5, 6, 7]), (50, list(range(8)))])
def test_so_many_of_the_newest_are_kept(keep: int, rounds: list[int], tiny: Any, tmp_path: Path) -> None:
    slow_world(tiny, keep=keep).play(tmp_path / "run")
    assert whole(tmp_path / "run") == rounds


def test_in_pieces_the_disk_holds_the_same(tiny: Any, thinned: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    for until, left in ((1, [0, 1]), (2, [0, 2]), (4, [0, 3, 4]), (None, [0, 3, 7])):
        slow_world(tiny, keep=1).play(path, until=until)
        assert whole(path) == left
    assert sorted(p.name for p in path.rglob("blobs/??/*")) == sorted(p.name for p in thinned.rglob("blobs/??/*"))


def test_only_the_slow_clock_is_thinned(tiny: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"warmstart": 0, "slow_steps": 1, "fast_rollouts": 40, "drift": 5.0}
    world = World(policy=tiny, gates=OPEN_GATES, options=options, phases=PHASES, keeping=StoreSettings(keep=1))
    world.play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        fast = {e.after for e in store.entries(channel="prompts")}
        assert len(fast) > 3
        assert all(store.get_blob(state) for state in fast)
        assert len(whole(tmp_path / "run")) < len({e.after for e in store.entries(channel="lora")})


def test_rolled_back_to_kept_weights_a_run_goes_on(tiny: Any, everything: Path, thinned: Path, tmp_path: Path) -> None:
    """To the numbers that it would have had if nothing had been thinned."""
    digests = []
    for source, keep in ((everything, 0), (thinned, 1)):
        path = Path(shutil.copytree(source, tmp_path / source.name))
        with RunStore.open(path, write=True) as store:
            before = store.snapshot_at(3).states
            assert store.append_rollback(3, reason="test").states == before
            loop = slow_world(tiny, keep, phases=(*PHASES, ("largest", 2))).loop(store)
            loop.restore()
            assert loop.states["lora"].step > 0
            loop.run()
            assert store.head().round == 9
            assert store.entries(channel="lora", round=8)[0].before == before["lora"]
            assert store.verify() == []
            digests.append(store.digest())
    assert digests[0] == digests[1]
    assert whole(tmp_path / "few") == [0, 3, 7, 9]


def test_to_thinned_weights_nobody_rolls_back_and_nothing_is_lost(tiny: Any, thinned: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(thinned, tmp_path / "run"))
    with RunStore.open(path, write=True) as store:
        before = store.digest()
        gone = store.snapshot_at(5).states["lora"]
        with pytest.raises(StoreError) as caught:
            store.append_rollback(5, reason="test")
        said = str(caught.value)
        assert "round 5 cannot be made live again" in said
        assert f"the state {gone[:12]} of channel 'lora', from round 5 of {path}, was thinned to save space" in said
        assert said.endswith("the nearest rounds that were kept: 3 and 7")
        with pytest.raises(StoreError, match="was thinned to save space; the nearest rounds that were kept: 3 and 7"):
            store.get_blob(gone)
        assert store.digest() == before
        assert store.head().round == 7


def test_a_negative_number_of_versions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"store\.keep = -1: expected 0"):
        StoreSettings(keep=-1)
