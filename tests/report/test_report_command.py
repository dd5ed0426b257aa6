"""The command that is shown gives the configuration that ran: parsed again, it is the same."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from twoclock.config import load_config, parse_config
from twoclock.report.command import run_command

TEXT = """
[run]
name = "x"

[tasks."a task"]
source = "jsonl"
path = "data.jsonl"

[[stream]]
task = "a task"
rounds = 4

[channels.prompts]
num_new = 2

[allocator]
name = "alternate"
"""


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["run.seed=5"],
        ["stream.0.rounds=9", "run.name=it's mine"],
        ["channels.prompts.num_exemplars=[4, 6]", "channels.lora.rank=8", "allocator.drift=0.5"],
        ["measure.heldout_items=12", 'rollouts.items="odd"'],
        ["channels.null={}"],
    ],
)
def test_same_configuration_again(tmp_path: Path, overrides: list[str]) -> None:
    first = parse_config(TEXT, overrides, base_dir=tmp_path / "elsewhere")
    (tmp_path / "config.toml").write_text(TEXT)
    words = shlex.split(run_command(tmp_path, first.plain(), {}))
    assert words[:3] == ["twoclock", "run", str(tmp_path / "config.toml")]
    assert set(words[3::2]) == {"--set"}
    again, _ = load_config(Path(words[2]), words[4::2])
    assert again.plain() == first.plain()


def test_folder_is_named_only_where_something_may_lie_in_it(tmp_path: Path) -> None:
    text = TEXT.replace('source = "jsonl"\npath = "data.jsonl"', 'source = "family"\nfamily = "compare"')
    (tmp_path / "config.toml").write_text(text)
    config = parse_config(text, base_dir=tmp_path / "elsewhere").plain()
    assert run_command(tmp_path, config, {}) == f"twoclock run {tmp_path / 'config.toml'}"


@pytest.mark.parametrize("content", [None, b"", b"not = [toml", b"\xff"])
def test_a_copy_that_is_missing_or_unreadable_gives_no_wrong_command(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.toml").write_bytes(content)
    command = run_command(tmp_path, {"run": {"seed": 1}}, {})
    assert command == ("" if content != b"" else f"twoclock run {tmp_path / 'config.toml'} --set run.seed=1")


def test_what_was_recorded_wins(tmp_path: Path) -> None:
    assert run_command(tmp_path, {}, {"command": "twoclock demo"}) == "twoclock demo"
    assert run_command(tmp_path, {}, {"command": ["twoclock", "run", "my file"]}) == "twoclock run 'my file'"
