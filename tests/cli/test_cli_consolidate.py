"""``twoclock consolidate`` on a run of the two-token world: plan, checks, ledger, way back, mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from cli_bench import call, well

import twoclock.build
from two_token_world import ANSWERS, FALSE_LESSON, INPUTS, LESSON, TwoTokenPolicy, TwoTokenWorld
from twoclock.build import play_run
from twoclock.config import parse_config
from twoclock.store import RunStore

CONFIG = """
[sampling]
max_new_tokens = 2
[tasks.first]
source = "jsonl"
path = "first.jsonl"
shares = { train = 0.45, trial = 0.45, heldout = 0.1 }
[tasks.second]
source = "jsonl"
path = "second.jsonl"
shares = { train = 0.45, trial = 0.45, heldout = 0.1 }
[[stream]]
task = "first"
rounds = 3
[[stream]]
task = "second"
rounds = 1
[rollouts]
items = 8
per_item = 4
prompts_per_item = 2
[channels.prompts]
[channels.lora]
rank = 8
learning_rate = 0.1
targets = ["formats", "answers"]
[allocator]
name = "fixed"
every = { prompts = 0, lora = 0 }
[measure]
heldout_items = 8
drift_every = 0
drift_prompts = 4
drift_tokens = 2
[consolidation]
rounds = 30
samples = 2
anchors = 16
general_anchors = 0
trial_items = 64
sentinel_items = 64
trial_samples = 1
margin = 0.2
drift = 20.0
min_age = 2
horizon = 2
lasting = 0.3
"""
WORLD = TwoTokenWorld()


def write_tasks(folder: Path) -> None:
    for name, want, inputs in (("first", 3, range(4)), ("second", 0, range(4, INPUTS))):
        rows = [(n, i, f"f{want} a{i % ANSWERS}") for n in range(40) for i in inputs]
        text = [json.dumps({"prompt": f"{n}: what of input {i}?", "answer": answer}) for n, i, answer in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(text) + "\n")


def make(folder: Path, text: str = LESSON, config: str = CONFIG) -> Path:
    """A finished run that was told ``text`` on the first task from its start."""
    write_tasks(folder)
    states = {"prompts": TwoTokenWorld(told={"first": text}).state()}
    play_run(folder / "run", parse_config(config, base_dir=folder), states).store.close()
    return folder / "run"


@pytest.fixture(autouse=True)
def policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twoclock.build, "build_policy", lambda config, progress=None, **more: TwoTokenPolicy())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twoclock.build, "build_policy", lambda config, progress=None, **more: TwoTokenPolicy())
        return make(tmp_path_factory.mktemp("consolidate"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def digest(run: Path) -> str:
    with RunStore.open(run) as store:
        assert store.verify() == []
        return store.digest()


def test_a_plan_writes_nothing_and_loads_no_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(twoclock.build, "build_policy", never)
    before = digest(run)
    done = well("consolidate", run, "--dry-run")
    assert "move" in done.stdout
    assert LESSON in done.stdout
    assert "% that it stays true for 2 rounds more" in done.stdout
    assert "at most 30 steps of 16 items × 2 rollouts" in done.stdout
    assert "other tasks: second within 0.2" in done.stdout
    assert digest(run) == before
    plan = json.loads(well("consolidate", run, "--dry-run", "--json", "--rounds", 3).stdout)
    assert plan["result"] is None
    assert plan["plan"]["settings"]["rounds"] == 3
    assert plan["plan"]["tasks"] == ["first"]
    assert plan["plan"]["lessons"][0]["effect"]["low"] > 0.5


def test_a_lesson_moves_and_comes_back(run: Path) -> None:
    with RunStore.open(run) as store:
        before = store.head()
    done = well("consolidate", run, "--yes")
    for part in ("worth", "drift", "score", "retention", "saved: 3 prompt tokens", "is in the weights and retired"):
        assert part in done.stdout, done.stdout
    assert f"to take it back: twoclock rollback {run} 4" in done.stderr
    log = well("log", run, "--action", "consolidate").stdout
    assert LESSON in log
    assert "consolidate" in well("log", run, "--json").stdout
    well("rollback", run, 4, "--yes")
    with RunStore.open(run) as store:
        assert store.head().states == before.states
    for words in (("status", run), ("diff", run, 3, "live"), ("report", run, "--out", run.parent / "page.html")):
        well(*words)


def test_as_json_alone(run: Path) -> None:
    found = json.loads(well("consolidate", run, "--yes", "--json", "--lesson", WORLD.lesson()).stdout)
    assert found["result"]["accepted"]
    assert found["result"]["saved"]["tokens"] == 3
    assert [check["name"] for check in found["result"]["checks"]] == ["worth", "drift", "score", "retention"]
    again = call("consolidate", run, "--yes")
    assert again.exit_code == 2
    assert "nothing to consolidate" in again.stderr


def test_a_refusal_has_an_exit_code_and_is_not_repeated(run: Path) -> None:
    done = call("consolidate", run, "--yes", "--drift", 0.01)
    assert done.exit_code == 12
    assert "refused, everything is as it was: drift of general" in done.stdout
    again = call("consolidate", run, "--yes", "--drift", 0.01)
    assert again.exit_code == 2
    assert "were refused after round 4" in again.stderr
    assert "--again tries once more" in again.stdout
    assert call("consolidate", run, "--yes", "--drift", 0.01, "--again").exit_code == 12
    assert "not consolidated" not in well("status", run).stdout
    well("consolidate", run, "--yes")


def test_a_false_lesson_is_left_by_the_evidence_and_refused_by_the_checks(tmp_path: Path) -> None:
    run = make(tmp_path, FALSE_LESSON)
    plan = well("consolidate", run, "--dry-run").stdout
    assert "its effect is not above 0" in plan
    assert "nothing is to be moved" in plan
    assert call("consolidate", run, "--yes").exit_code == 2
    wrong = TwoTokenWorld(told={"first": FALSE_LESSON}).lesson()
    done = call("consolidate", run, "--yes", "--lesson", wrong)
    assert done.exit_code == 12
    assert "it is not shown that the lesson raises the score" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--lesson", "nothing"), "unknown lesson 'nothing'"),
        (("--channel", "promts"), "did you mean 'prompts'"),
        (("--rounds", "0"), "rounds = 0: expected at least 1"),
        (("--margin", "2"), "margin = 2.0"),
        (("--set", "trial_item=9"), "did you mean 'trial_items'"),
        (("--set", "trial_items"), "--set takes NAME=VALUE"),
        (("--set", "drift=none"), "is not a value"),
    ],
)
def test_mistakes(run: Path, words: tuple[str, ...], told: str) -> None:
    before = digest(run)
    done = call("consolidate", run, *words)
    assert done.exit_code == 2
    assert told in done.stderr
    assert digest(run) == before


def test_runs_that_cannot(tmp_path: Path) -> None:
    for name, change, told in (
        ("no slow channel", ("[channels.lora]\nrank = 8\nlearning_rate = 0.1\ntargets = [\"formats\", \"answers\"]\n",
                             ""), "no slow channel"),
        ("an endpoint", ("[sampling]", '[model]\nendpoint = "http://localhost:1"\nname = "far"\n[sampling]'),
         "behind an endpoint"),
    ):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        config = CONFIG.replace(*change).replace("every = { prompts = 0, lora = 0 }", "every = { prompts = 0 }")
        if name == "an endpoint":
            config = config[: config.index("[channels.lora]")] + config[config.index("[allocator]") :]
        done = call("consolidate", make(folder, config=config), "--yes")
        assert done.exit_code in (2, 3)
        assert told in done.stderr


def test_no_run_and_a_run_that_is_in_use(run: Path, tmp_path: Path) -> None:
    assert call("consolidate", tmp_path / "nowhere").exit_code == 4
    with RunStore.open(run, write=True):
        busy = call("consolidate", run, "--yes")
        well("consolidate", run, "--dry-run")
    assert busy.exit_code == 4


def test_a_section_with_a_mistake(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    path = tmp_path / "wrong.toml"
    path.write_text(CONFIG.replace("rounds = 30", "roundz = 30"))
    done = call("run", path, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "[consolidation]: unknown option 'roundz'; did you mean 'rounds'" in done.stderr
