"""kill -9 at any moment loses at most the round under way; resuming gives the numbers of an uninterrupted run.

Processes are really killed (``kill_driver.py``): in each of the seven steps, in different rounds, and in the places
that hurt most: half a blob written, all blobs put, inside the transaction, between commit and memory. The runs learn on
both clocks in cycles of Fast-Slow Training, so that optimizer moments, prompt pools, rollouts kept for reuse, random
streams and the data position are all in question.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kill_driver import IN_STEPS, INSIDE

from twoclock.loop import STEPS
from twoclock.store import RunStore

DRIVER = Path(__file__).with_name("kill_driver.py")


def drive(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(DRIVER), *map(str, words)], capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.fixture(scope="module")
def outcomes(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    done = drive("points", tiny_folder, tmp_path_factory.mktemp("kills"))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return {json.dumps(result["point"]): result for result in results}


def test_every_step_is_among_the_points() -> None:
    assert [step for _, step in IN_STEPS] == list(STEPS)
    assert {round for round, _ in IN_STEPS} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("point", [*IN_STEPS, *INSIDE], ids=lambda p: f"round {p[0]}, {p[1]}")
def test_killed_and_resumed_is_uninterrupted(point: tuple[int, str], outcomes: dict[str, dict[str, Any]]) -> None:
    whole, outcome = outcomes['"none"'], outcomes[json.dumps(list(point))]
    round, where = point
    assert outcome["signal"] == signal.SIGKILL, "the process was to be killed there and was not"
    assert outcome["committed"] == (round if where == "committed" else round - 1)
    assert outcome["problems"] == []
    assert outcome["round"] == whole["round"] == 6
    assert outcome["digest"] == whole["digest"]


def test_the_run_has_whole_cycles_in_it(outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes['"none"']["reused"] > 0
    assert outcomes['"none"']["replaced"] > 0


def test_one_run_killed_at_every_point(outcomes: dict[str, dict[str, Any]]) -> None:
    whole, often = outcomes['"none"'], outcomes['"all in one run"']
    assert set(often["signals"]) == {signal.SIGKILL}
    assert len(often["signals"]) == len(IN_STEPS) + len(INSIDE)
    assert (often["digest"], often["problems"]) == (whole["digest"], [])


def test_in_interpreters_of_their_own(outcomes: dict[str, dict[str, Any]], tiny_folder: Path, tmp_path: Path) -> None:
    """Nothing is shared here but the folder on disk: no forked memory, no hash seed."""
    killed = drive("play", tiny_folder, tmp_path / "run", "4", "judge")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with RunStore.open(tmp_path / "run") as store:
        assert store.head().round == 3
        assert store.verify() == []
    resumed = drive("play", tiny_folder, tmp_path / "run")
    assert resumed.returncode == 0, resumed.stderr
    with RunStore.open(tmp_path / "run") as store:
        assert store.digest() == outcomes['"none"']["digest"]
