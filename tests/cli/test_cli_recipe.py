"""An arm chosen on the command line: it runs, its run records what it was filled in to, and conflicts are told."""

from __future__ import annotations

from pathlib import Path

from cli_bench import CONFIG, Model, call, well, write_data

from twoclock.config import from_plain
from twoclock.store import RunStore

FREE = CONFIG.replace('[allocator]\nname = "fixed"\n', "")


def test_arms_of_one_file(tmp_path: Path, model: Model) -> None:
    path = write_data(tmp_path, FREE)
    for recipe, channels in (("prompt_only", {"prompts"}), ("base", {"null"})):
        run = tmp_path / recipe
        well("run", path, "--out", run, "--set", f"recipe={recipe}", "--no-eval")
        with RunStore.open(run) as store:
            assert (store.config["recipe"], set(store.config["channels"])) == (recipe, channels)
            assert {e.channel for e in store.entries()} == channels
            assert from_plain(store.config).plain() == store.config
            searched = {e.round for e in store.entries(channel="prompts") if e.action in ("commit", "reject")}
        assert searched == ({1} if recipe == "prompt_only" else set())
        assert "there is nothing to resume" in well("resume", run).stdout


def test_conflicts_and_unknown_arms(tmp_path: Path, model: Model) -> None:
    done = call("run", write_data(tmp_path), "--out", tmp_path / "run", "--set", "recipe=prompt_only")
    assert done.exit_code == 2
    assert "recipe 'prompt_only' has the allocator 'alternate', but [allocator] name = 'fixed'" in done.stderr
    done = call("run", write_data(tmp_path, FREE), "--out", tmp_path / "run", "--set", "recipe=promt_only")
    assert done.exit_code == 2
    assert "unknown recipe 'promt_only'; did you mean 'prompt_only'" in done.stderr
    assert not (tmp_path / "run").exists()
    assert model.policies == [], "no model is loaded for a configuration that is wrong"
