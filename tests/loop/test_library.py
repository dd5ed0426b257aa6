"""A library of experts, from a run that trained one to a run that mixes it in; refusals; a writer that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from test_experts import config  # noqa: E402

from tiny_world import tiny_library  # noqa: E402
from twoclock.build import create_session, open_session  # noqa: E402
from twoclock.cli.app import main  # noqa: E402
from twoclock.errors import ConfigError, DataError, UnsupportedError  # noqa: E402
from twoclock.library import ExpertLibrary, add_expert, keep_expert  # noqa: E402
from twoclock.models.sources import base_hash_of  # noqa: E402
from twoclock.nn.svf import Factoring  # noqa: E402
from twoclock.slow.svf import SvfState  # noqa: E402

TARGETS = '["gate_proj", "down_proj"]'


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks that has really trained singular values."""
    folder = tmp_path_factory.mktemp("library-runs") / "terse"
    options = f"[channels.svf]\nlearning_rate = 0.3\ntargets = {TARGETS}"
    session = create_session(config(folder.parent, tiny_folder, options), folder)
    with session.store:
        loop = session.loop()
        loop.begin()
        loop.run()
        assert any(e.action == "commit" and e.channel == "svf" for e in session.store.entries())
    return folder


@pytest.fixture
def library(trained: Path, tmp_path: Path) -> ExpertLibrary:
    add_expert(trained, tmp_path / "lib", task="largest", about="which number is the largest")
    return ExpertLibrary(tmp_path / "lib")


def state(**change: Any) -> SvfState:
    start = SvfState(0, 1, "b" * 64, "s" * 64, Factoring(), {"layers.0.up": torch.tensor([0.5, -0.25])})
    return replace(start, **change)


def test_a_card_says_what_is_known(trained: Path, library: ExpertLibrary, tiny_folder: Path) -> None:
    card = library.card("largest")
    assert (card.task, card.about, card.base) == ("largest", "which number is the largest", base_hash_of(tiny_folder))
    assert (card.run, card.round, card.targets) == ("terse", 4, ("down_proj", "gate_proj"))
    session = open_session(trained)
    with session.store:
        live = session.states()["svf"]
        measured = [e for e in session.store.evaluations() if e.task == "largest" and e.weights == "live"]
    assert (card.delta, card.step) == (live.delta.id, live.step)
    assert card.num_parameters == sum(o.numel() for o in live.offsets.values())
    assert set(card.scores) == {"largest", "smallest"}
    assert card.score is not None
    assert card.score["estimate"] == pytest.approx(sum(measured[-1].rewards) / len(measured[-1].rewards))
    assert card.score["low"] <= card.score["estimate"] <= card.score["high"]
    assert card.score["n"] == 8
    assert library.delta("largest") == live.delta


def test_what_cannot_be_added(trained: Path, library: ExpertLibrary, tiny_folder: Path, tmp_path: Path) -> None:
    to = library.folder
    with pytest.raises(ConfigError, match="--task NAME with one of largest, smallest"):
        add_expert(trained, to)
    with pytest.raises(ConfigError, match="did you mean 'largest'"):
        add_expert(trained, to, task="large")
    with pytest.raises(ConfigError, match="has an expert 'largest' already"):
        add_expert(trained, to, task="largest")
    with pytest.raises(ConfigError, match="no step yet"):
        add_expert(trained, to, task="largest", name="start", round=0)
    for name in ("", "a/b", "..", ".hidden", "x" * 80, "two words"):
        with pytest.raises(ConfigError, match="no name for an expert"):
            keep_expert(state(), tmp_path / "other", name=name, task="t")
    with pytest.raises(UnsupportedError, match="trained on other weights"):
        keep_expert(state(), to, name="foreign", task="t")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="no folder"):
        keep_expert(state(), tmp_path / "file", name="a", task="t")
    session = create_session(config(tmp_path, tiny_folder, "[channels.lora]\nrank = 2"), tmp_path / "lora-run")
    with session.store:
        session.loop().begin()
    with pytest.raises(ConfigError, match="only such changes mix exactly"):
        add_expert(tmp_path / "lora-run", to, task="largest")
    assert list(ExpertLibrary(to).cards) == ["largest"]
    assert [p.name for p in to.iterdir()] == ["largest"], "nothing is left of what was refused"


def test_a_damaged_expert_is_named(library: ExpertLibrary) -> None:
    folder = library.folder / "largest"
    whole = (folder / "card.json").read_text()
    for text in ("", "{", "[]", "{}", json.dumps({**json.loads(whole), "format": 9}), '{"format": 1, "targets": 3}'):
        (folder / "card.json").write_text(text)
        with pytest.raises(DataError, match=r"card\.json is no card of an expert"):
            _ = ExpertLibrary(library.folder).cards
    (folder / "card.json").write_text(whole)
    shutil.copytree(folder, library.folder / "copy")
    with pytest.raises(DataError, match="rename it back"):
        _ = ExpertLibrary(library.folder).cards
    shutil.rmtree(library.folder / "copy")
    vectors = folder / "svf.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-8])
    with pytest.raises(DataError):
        ExpertLibrary(library.folder).delta("largest")
    keep_expert(state(), library.folder.parent / "another", name="largest", task="t")
    shutil.copy(library.folder.parent / "another" / "largest" / "svf.safetensors", vectors)
    with pytest.raises(DataError, match="one of the two files was replaced"):
        ExpertLibrary(library.folder).delta("largest")


def test_a_writer_that_is_killed_leaves_no_expert(tmp_path: Path) -> None:
    """Killed just before the rename; the library is as it was, and the expert can be added again."""
    code = (
        "import os, signal, torch\nfrom pathlib import Path\nfrom twoclock.library import keep_expert\n"
        "from twoclock.nn.svf import Factoring\nfrom twoclock.slow.svf import SvfState\n"
        "os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "state = SvfState(0, 1, 'b' * 64, 's', Factoring(), {'up': torch.ones(3)})\n"
        f"keep_expert(state, {str(tmp_path / 'lib')!r}, name='a', task='t')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert ExpertLibrary(tmp_path / "lib").cards == {}
    keep_expert(state(), tmp_path / "lib", name="a", task="t")
    assert list(ExpertLibrary(tmp_path / "lib").cards) == ["a"]


def mixing(base_dir: Path, model: Path, lib: Path, more: str = "") -> Any:
    channels = f'[channels.experts]\nlibrary = "{lib}"\nshots = 4\npopulation = 6\niterations = 1\ncheck_items = 4\n'
    channels += f"[channels.svf]\nlearning_rate = 0.1\ntargets = {TARGETS}\n{more}"
    return config(base_dir, model, channels)


def test_a_run_deploys_a_mixture_beside_its_own_weights_and_takes_it_back(tiny_folder: Path, tmp_path: Path) -> None:
    session = create_session(mixing(tmp_path, tiny_folder, tiny_library()), tmp_path / "run")
    with session.store as store:
        loop = session.loop()
        loop.begin()
        loop.run()
        commits = [e for e in store.entries() if e.channel == "experts" and e.action == "commit"]
        slow = [e for e in store.entries() if e.channel == "svf" and e.action == "commit"]
        told = [c for c in store.conditionings().values() if c["mixture"]]
        assert commits
        assert slow
        assert any(c["delta"] for c in told), "a mixture stood beside trained weights"
        before = store.snapshot_at(commits[0].round - 1)
        store.append_rollback(commits[0].round - 1, channels=["experts"], reason="test")
        assert store.head().states["experts"] == before.states["experts"]
        assert store.verify() == []
    again = open_session(tmp_path / "run")
    with again.store:
        assert again.parts.channels["experts"].condition(again.states()["experts"], "largest").is_identity


def test_experts_of_other_weights_are_refused_when_a_run_begins(tiny_folder: Path, tmp_path: Path) -> None:
    keep_expert(state(), tmp_path / "lib", name="foreign", task="t", base_name="another model")
    session = create_session(mixing(tmp_path, tiny_folder, tmp_path / "lib"), tmp_path / "run")
    with session.store, pytest.raises(UnsupportedError, match=r"'foreign' \(another model, bbbbbbbbbbbb\)"):
        session.loop().begin()


def test_the_verb(trained: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    def call(*words: Any) -> Any:
        return CliRunner().invoke(main, [str(word) for word in words])

    lib = tmp_path / "lib"
    added = call("experts", "add", trained, "--to", lib, "--task", "smallest", "--about", "the least number")
    assert added.exit_code == 0, added.output
    assert "smallest: the least number" in added.output
    listed = call("experts", "list", lib)
    assert listed.exit_code == 0
    assert "smallest" in listed.output
    shown = json.loads(call("experts", "show", lib, "smallest", "--json").stdout)
    card = json.loads((lib / "smallest" / "card.json").read_text())
    assert card.pop("format") == 1
    assert shown == card
    assert json.loads(call("experts", "list", lib, "--json").stdout)["experts"] == [shown]
    in_words = call("experts", "show", lib, "smallest")
    assert "singular values of down_proj, gate_proj" in in_words.output
    for words, told in (
        (("show", lib, "smalest"), "did you mean 'smallest'"),
        (("list", tmp_path / "none"), "there is no library of experts"),
        (("add", tmp_path / "none", "--to", lib), "there is no run at"),
    ):
        failed = call("experts", *words)
        assert failed.exit_code != 0
        assert told in failed.output
    assert "no experts in" in call("experts", "list", tmp_path).output
