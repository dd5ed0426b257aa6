"""Runs for the tests of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_bench import Model, call, write_data

import twoclock.build


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """The scripted model, wherever a run would load one."""
    stand_in = Model()
    monkeypatch.setattr(twoclock.build, "build_policy", stand_in)
    return stand_in


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: to be copied, not changed."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twoclock.build, "build_policy", Model())
        done = call("run", write_data(folder), "--out", folder / "run")
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path, model: Model) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
