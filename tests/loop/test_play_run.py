"""One call plays a run to its end: begun, taken up, finished already; and what is not the run that is asked for."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
from configured import lay_beside, parsed

from twoclock import build
from twoclock.build import create_session, open_session, play_run
from twoclock.config import from_plain
from twoclock.errors import ConfigError, ModelError, RunLockedError
from twoclock.loop import Loop
from twoclock.store import RunStore

LENGTH = ("stream=[{ task = 'largest', rounds = 3 }]",)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_beside(tmp_path_factory.mktemp("played"), tiny_folder)


@pytest.fixture(scope="module")
def config(folder: Path) -> Any:
    return parsed(folder, *LENGTH)


@pytest.fixture(scope="module")
def whole(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one piece, by hand."""
    path = tmp_path_factory.mktemp("whole") / "run"
    session = create_session(config, path)
    with session.store:
        loop = session.loop()
        loop.begin()
        loop.run()
    return path


def digest(path: Path) -> str:
    with RunStore.open(path) as store:
        assert store.verify() == []
        return store.digest()


def test_a_new_run_is_played_to_its_end(config: Any, whole: Path, tmp_path: Path) -> None:
    said: list[str] = []
    session = play_run(tmp_path / "run", config, progress=said.append)
    with session.store as store:
        assert store.head().round == 3
        with pytest.raises(RunLockedError):
            RunStore.open(tmp_path / "run", write=True)
        evaluations, _ = session.evaluate(drift=False)
        assert store.evaluations("final") == evaluations
    assert said
    RunStore.open(tmp_path / "run", write=True).close()


@pytest.mark.parametrize("committed", [None, 0, 2], ids=["made alone", "begun", "after two rounds"])
def test_a_run_that_was_interrupted_ends_with_the_same_numbers(
    committed: int | None, config: Any, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    session = create_session(config, path)
    with session.store:
        if committed is not None:
            loop = session.loop()
            loop.begin()
            loop.run(until=committed)
    with play_run(path, config).store as store:
        assert store.head().round == 3
    assert digest(path) == digest(whole)


def test_a_finished_run_is_left_as_it_is_and_loads_no_model(
    config: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))

    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(build, "build_policy", load)
    session = play_run(path, config)
    with session.store:
        assert sorted(session.states()) == ["lora", "prompts"]
    assert digest(path) == digest(whole)


def test_it_begins_from_given_states_and_only_from_those(
    config: Any, folder: Path, whole: Path, tmp_path: Path
) -> None:
    learned, path = open_session(whole).states(), tmp_path / "run"
    started = {"lora": learned["lora"]}
    with play_run(path, config, started).store as store:
        assert store.snapshot_at(0).states["lora"] == RunStore.open(whole).head().states["lora"]
        assert [e.reason for e in store.entries(round=0)] == [
            "a state that was given",
            "the state that changes nothing",
        ]
        assert {d.live_base > 0 for d in store.drift() if d.round == 0} == {True}
    before = digest(path)
    play_run(path, config, started).store.close()
    play_run(path, config).store.close()
    with pytest.raises(ConfigError, match="began from another state of channel 'lora' than is given; name another fol"):
        play_run(path, config, {"lora": open_session(path).states()["lora"]})
    with pytest.raises(ConfigError, match="unknown channel to begin from 'lorra'; did you mean 'lora'"):
        play_run(tmp_path / "other", config, {"lorra": learned["lora"]})
    assert digest(path) == before


def test_another_configuration_is_another_run(config: Any, folder: Path, whole: Path, tmp_path: Path) -> None:
    path, before = Path(shutil.copytree(whole, tmp_path / "run")), digest(whole)
    other = parsed(folder, *LENGTH, "run.seed=5", "channels.lora.objective=cispo", "measure.every=1")
    with pytest.raises(ConfigError) as caught:
        play_run(path, other)
    said = str(caught.value)
    for part in (
        f"the run in {path} has another configuration: ",
        "channels.lora.objective ('none' there, 'cispo' here)",
        "measure.every ('none' there, 1 here)",
        "run.seed (4 there, 5 here)",
        "name another folder",
    ):
        assert part in said
    longer = parsed(folder, "stream=[{ task = 'largest', rounds = 4 }]")
    with pytest.raises(ConfigError, match=r"stream \(\[\{'task': 'largest', 'rounds': 3\}\] there, .*4\}\] here"):
        play_run(path, longer)
    many = [f"channels.lora.{name}=3" for name in ("alpha", "rank", "overlong_buffer", "weight_decay")]
    with pytest.raises(ConfigError, match="and 1 more; name another folder"):
        play_run(path, parsed(folder, *LENGTH, *many, "run.seed=9"))
    assert digest(path) == before
    RunStore.open(path, write=True).close()  # the lock was given back


def test_a_run_that_has_moved_is_the_same_run(folder: Path, whole: Path, tmp_path: Path) -> None:
    """Where the configuration lies is no part of what it says."""
    moved = parsed(tmp_path, *LENGTH)
    play_run(Path(shutil.copytree(whole, tmp_path / "run")), moved).store.close()


def test_a_recipe_that_is_filled_in_is_the_same_configuration(folder: Path, whole: Path, tmp_path: Path) -> None:
    config = parsed(folder, *LENGTH, "recipe=fst", "rollouts.items=2", "allocator.warmstart=1")
    assert from_plain(config.plain()) == config
    path = tmp_path / "run"
    create_session(config, path).store.close()
    play_run(path, config).store.close()
    assert RunStore.open(path).head().round == 3


def test_whatever_fails_the_lock_is_given_back(
    config: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError):
        play_run(tmp_path / "none", parsed(folder, *LENGTH, "model.source='./no-such-model'"))
    assert not (tmp_path / "none").exists()

    def stop(loop: Loop, number: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "round", stop)
        with pytest.raises(KeyboardInterrupt):
            play_run(tmp_path / "run", config)
    with RunStore.open(tmp_path / "run", write=True) as store:
        assert store.head().round == 0


def experiment(name: str) -> Any:
    path = Path(__file__).parents[2] / "experiments" / name / "run.py"
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_experiments_configurations_compare_with_themselves() -> None:
    """What is recorded and read again is the configuration that it was: or a resumed cell would be refused."""
    demo, probed, fst = map(experiment, ("two_clock_stream", "slow_clock_probed", "fast_slow_training"))
    configs = [demo.config_for(arm, 1) for arm in demo.ARMS] + [probed.config_for(arm, 1) for arm in probed.ARMS]
    configs += [fst.config_for(study, arm, fst.TASKS[0], 1) for study in fst.ROUNDS for arm in fst.ARMS]
    assert len(configs) == 4 + 2 + 4 * 8
    for config in configs:
        assert from_plain(config.plain()) == config
