"""run, resume, demo: what a user starts, stops and takes up again; a stopped run ends in the numbers of a whole one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_bench import Model, call, well, write_data

import twoclock.report
from twoclock.build import create_session
from twoclock.config import load_config
from twoclock.store import RunStore

FAKE_DEMO = (
    "--set",
    "channels={ prompts = { num_exemplars = [2], num_new = 2, search_items = 8, first_items = 4 }, null = {} }",
    "--set",
    'allocator={ name = "fixed" }',
    "--set",
    "stream.0.rounds=2",
    "--set",
    "stream.1.rounds=1",
    "--set",
    "measure.heldout_items=8",
)
"""The demo's settings, cut down to what a scripted model can do."""


def digest(path: Path) -> str:
    with RunStore.open(path) as store:
        return store.digest()


def interrupt_at(call_number: int) -> Model:
    model = Model()

    def before(number: int) -> None:
        if number == call_number:
            raise KeyboardInterrupt

    model.before = before
    return model


def use(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    monkeypatch.setattr("twoclock.build.build_policy", model)


# ----------------------------------------------------------------------------------------------------------------- run


def test_a_run_from_the_configuration_to_the_headline(tmp_path: Path, model: Model) -> None:
    done = well("run", write_data(tmp_path), "--out", tmp_path / "out")
    assert "double: held-out reward after round 5 (n = 20 items; 95 % intervals)" in done.stdout
    assert "no weights are learned here: both rows are the base model, measured once" in done.stdout
    assert done.stdout.endswith(f"run: {tmp_path / 'out'}\n")
    rounds = [line for line in done.stderr.splitlines() if line.startswith("round ")]
    assert [line.split(" | ")[0] for line in rounds] == [f"round {n}/5" for n in range(1, 6)]
    assert (tmp_path / "out" / "config.toml").read_text() == (tmp_path / "sums.toml").read_text()


def test_the_same_run_twice_is_the_same_ledger(tmp_path: Path, model: Model) -> None:
    config = write_data(tmp_path)
    for name in ("a", "b"):
        well("run", config, "--out", tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    well("run", config, "--out", tmp_path / "c", "--set", "run.seed=4")
    with RunStore.open(tmp_path / "c") as store:
        assert store.environment["command"] == f"twoclock run {config} --set run.seed=4"
    assert digest(tmp_path / "c") != digest(tmp_path / "a")


def test_the_default_folder_is_numbered_where_taken(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        well("run", config, "--no-eval")
    well("run", config, "--no-eval", "--set", "run.name=../odd name")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["odd-name", "sums", "sums-2"]


def test_no_eval_measures_nothing_at_the_end(tmp_path: Path, model: Model) -> None:
    done = well("run", write_data(tmp_path), "--out", tmp_path / "out", "--no-eval")
    assert "held-out" not in done.stdout
    with RunStore.open(tmp_path / "out") as store:
        assert store.evaluations("final") == []


def test_a_run_in_a_used_folder_is_refused_before_a_model_is_loaded(run: Path, tmp_path: Path, model: Model) -> None:
    before = digest(run)
    done = call("run", write_data(tmp_path), "--out", run)
    assert done.exit_code == 4
    assert f"there is a run in {run} already; go on with it: twoclock resume {run}" in done.stderr
    assert model.policies == []
    assert digest(run) == before


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("at", [0, 1, 4, 9, 12])
def test_stopped_anywhere_and_resumed_is_the_same_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    config = write_data(tmp_path)
    use(monkeypatch, interrupt_at(at))
    stopped = call("run", config, "--out", tmp_path / "stopped")
    assert stopped.exit_code == 130
    assert f"go on with: twoclock resume {tmp_path / 'stopped'}" in stopped.stderr
    assert "lost" in stopped.stderr
    use(monkeypatch, Model())
    well("resume", tmp_path / "stopped")
    well("run", config, "--out", tmp_path / "whole")
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


def test_a_run_killed_before_it_began_begins_on_resume(tmp_path: Path, model: Model) -> None:
    loaded, text = load_config(write_data(tmp_path))
    create_session(loaded, tmp_path / "out", config_text=text).store.close()
    found = json.loads(well("status", tmp_path / "out", "--json").stdout)
    assert (found["state"], found["round"], found["rounds"]) == ("not begun", None, 5)
    done = well("resume", tmp_path / "out")
    assert "was stopped before it began; it begins now, with 5 rounds" in done.stderr
    well("run", tmp_path / "sums.toml", "--out", tmp_path / "whole")
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_resuming_a_finished_run_does_nothing(run: Path, model: Model) -> None:
    before = digest(run)
    done = well("resume", run)
    assert "is finished: all 5 rounds are committed; there is nothing to resume" in done.stdout
    assert model.policies == []
    assert digest(run) == before


def test_stopping_the_last_measurement_keeps_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_data(tmp_path)
    counting = Model()
    use(monkeypatch, counting)
    well("run", config, "--out", tmp_path / "count", "--no-eval")
    use(monkeypatch, interrupt_at(counting.policies[0].calls))
    done = call("run", config, "--out", tmp_path / "out")
    assert done.exit_code == 130
    assert "the run is complete and safe, its final scores were not measured" in done.stderr
    assert json.loads(well("status", tmp_path / "out", "--json").stdout)["state"] == "finished"


SLOW_RUN = """
import sys, time
sys.path.insert(0, {tests!r})
from cli_bench import Model
import signal
import twoclock.build
from twoclock.cli import main

# A shell that starts the tests in the background has its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
model = Model()
model.before = lambda call: time.sleep(0.2)
twoclock.build.build_policy = model
main(sys.argv[1:], prog_name="twoclock")
"""


def test_ctrl_c_and_kill_of_a_real_process(tmp_path: Path, model: Model) -> None:
    config = write_data(tmp_path)
    code = SLOW_RUN.format(tests=str(Path(__file__).parent))
    out = tmp_path / "out"

    def start(*words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(process: subprocess.Popen[str], what: str) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(what):
                return
        raise AssertionError(f"the process never said {what!r}")

    first = start("run", config, "--out", out)
    wait_for(first, "round 1/5")
    first.send_signal(signal.SIGSTOP)  # so that it cannot end while it is looked at, however slow the machine is
    refused = call("resume", out)
    assert refused.exit_code == 4
    assert f"process {first.pid} on host" in refused.stderr
    state = json.loads(well("status", out, "--json").stdout)
    assert (state["state"], state["writer"]["pid"]) == ("running", first.pid)
    first.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "was under way and is lost" in said
    assert "Traceback" not in said

    second = start("resume", out)
    wait_for(second, "round 3/5")
    second.kill()
    second.communicate(timeout=30)
    assert json.loads(well("status", out, "--json").stdout)["state"] == "unfinished"

    well("resume", out)
    well("run", config, "--out", tmp_path / "whole")
    assert digest(out) == digest(tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------------- demo


def test_the_demo_stopped_resumed_and_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    use(monkeypatch, interrupt_at(6))
    assert call("demo", "--out", out, "--no-report", *FAKE_DEMO).exit_code == 130
    model = Model()
    use(monkeypatch, model)
    again = well("demo", "--out", out, "--no-report")
    assert f"the demo in {out} was stopped; it goes on at round" in again.stderr
    assert "largest: held-out reward after round 3" in again.stdout
    before, calls = digest(out), model.policies[0].calls
    finished = well("demo", "--out", out, "--no-report")
    assert f"the demo in {out} is finished (3 rounds)" in finished.stderr
    assert finished.stdout == again.stdout
    assert digest(out) == before
    assert calls > 0
    assert all(policy.calls == 0 for policy in model.policies[1:])


def test_the_demo_writes_its_report(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def write_report(run: Path, out: Path | None = None, **more: object) -> Path:
        asked.append((run, out))
        return run / "report.html"

    monkeypatch.setattr(twoclock.report, "write_report", write_report, raising=False)
    done = well("demo", "--out", tmp_path / "demo", *FAKE_DEMO)
    assert f"report: {tmp_path / 'demo' / 'report.html'}" in done.stdout
    assert asked == [(tmp_path / "demo", None)]


def test_a_demo_keeps_the_settings_it_began_with(tmp_path: Path, model: Model) -> None:
    out = tmp_path / "demo"
    well("demo", "--out", out, "--no-report", *FAKE_DEMO)
    done = call("demo", "--out", out, "--no-report", *FAKE_DEMO, "--set", "run.seed=9")
    assert done.exit_code == 2
    assert "was started with other settings in [run]" in done.stderr
    well("demo", "--out", out, "--no-report", *FAKE_DEMO)


def test_the_demo_leaves_another_run_alone(run: Path, model: Model) -> None:
    before = digest(run)
    done = call("demo", "--out", run, "--no-report")
    assert done.exit_code == 4
    assert f"{run} holds the run 'sums', not the demo" in done.stderr
    assert digest(run) == before
    with RunStore.open(run, write=True):
        pass  # the lock was given back
