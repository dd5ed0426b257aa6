"""What a user types wrong: each mistake has its own sentence and exit code, and nothing is lost or left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_bench import CONFIG, Model, call, well, write_data

from twoclock.store import RunStore


def fails(code: int, *words: object) -> str:
    """Standard error of a call that ends in ``code``, without a traceback and with nothing on standard output."""
    done = call(*words)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


# ------------------------------------------------------------------------------------------------------ configurations


def test_a_configuration_that_is_not_there_names_the_nearest(tmp_path: Path, model: Model) -> None:
    write_data(tmp_path)
    said = fails(2, "run", tmp_path / "sum.toml", "--out", tmp_path / "out")
    assert f"there is no configuration file '{tmp_path / 'sum.toml'}'; did you mean sums.toml?" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    assert "cannot be read" in fails(2, "run", tmp_path, "--out", tmp_path / "out")


def test_broken_toml_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[run\nname = 1")
    said = fails(2, "run", path)
    assert "is not valid TOML" in said
    assert "line 1" in said


def test_three_mistakes_are_three_sentences(tmp_path: Path, model: Model) -> None:
    text = CONFIG.replace('task = "next"', 'task = "nxt"')
    text = text.replace("num_new = 2", "num_nw = 2")
    text = text.replace('name = "fixed"', 'name = "fxed"')
    said = fails(2, "run", write_data(tmp_path, text), "--out", tmp_path / "out")
    assert "3 mistakes in the configuration" in said
    assert "unknown task 'nxt'; did you mean 'next'?" in said
    assert "unknown option 'num_nw'; did you mean 'num_new'" in said
    assert "unknown allocator 'fxed'; did you mean 'fixed'?" in said
    assert model.policies == []
    assert not (tmp_path / "out").exists()


def test_three_mistakes_of_the_file_s_own_sections(tmp_path: Path, model: Model) -> None:
    text = CONFIG.replace("seed = 3", "sed = 3").replace("rounds = 2", "rounds = 0")
    text += "\n[sampling]\ntemperature = -1\n"
    said = fails(2, "run", write_data(tmp_path, text))
    assert "3 mistakes in the configuration" in said
    assert "unknown setting 'run.sed'; did you mean seed?" in said
    assert "stream.1.rounds = 0" in said
    assert "sampling.temperature = -1" in said


def test_mistakes_of_sections_and_of_components_are_reported_together(tmp_path: Path, model: Model) -> None:
    text = CONFIG.replace("seed = 3", "sed = 3").replace("rounds = 2", "rounds = 0")
    text = text.replace("[channels.null]", "[channels.nul]").replace('path = "double.jsonl"', 'path = "none.jsonl"')
    text = text.replace('task = "next"', 'task = "next"\nround = 2')
    text += "\n[model]\nmax_rows = 0\n[sampling]\nstop = [1, 2]\n"
    said = fails(2, "run", write_data(tmp_path, text))
    assert "8 mistakes in the configuration" in said
    for sentence in (
        "stream.1.round'",
        "sampling.stop.1",
        "'run.sed'",
        "stream.1.rounds = 0",
        "model.max_rows = 0",
        "channel 'nul'",
        "none.jsonl",
    ):
        assert sentence in said


@pytest.mark.parametrize(
    "text",
    ["", "run = 3", CONFIG.replace("[[stream]]", "[stream]", 1).split("[[stream]]")[0], "[tasks]\na = 3\n"],
    ids=["empty", "no table", "one phase as a table", "a task that is no table"],
)
def test_a_file_of_the_wrong_shape_gets_sentences(tmp_path: Path, model: Model, text: str) -> None:
    assert str(tmp_path / "sums.toml") in fails(2, "run", write_data(tmp_path, text))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[channels.null]", "[channels.nul]", "unknown channel 'nul'; did you mean 'null'"),
        ('source = "jsonl"', 'source = "jsonnl"', "unknown source 'jsonnl'; did you mean 'jsonl'?"),
        ('path = "double.jsonl"', 'path = "doubel.jsonl"', "did you mean double.jsonl"),
        ("heldout_items = 20", "heldout_item = 20", "unknown option 'heldout_item'; did you mean 'heldout_items'?"),
        ("items = 4", "items = 4000", "fewer than the 4000 of one batch"),
    ],
)
def test_names_and_numbers(tmp_path: Path, model: Model, old: str, new: str, sentence: str) -> None:
    assert sentence in fails(2, "run", write_data(tmp_path, CONFIG.replace(old, new, 1)), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("run.seed", "--set takes a.b=value, such as --set run.seed=3; got 'run.seed'"),
        ("=3", "--set takes a.b=value"),
        ("run.seed.deep=3", "'run.seed' is 3, not a table"),
        ("stream.7.rounds=1", "'7' must be a number from 0 to 1 here"),
        ("run.sed=4", "unknown setting 'run.sed'; did you mean seed?"),
        ("run.seed=many", "run.seed = 'many'"),
    ],
)
def test_overrides(tmp_path: Path, model: Model, override: str, sentence: str) -> None:
    config = write_data(tmp_path)
    assert sentence in fails(2, "run", config, "--out", tmp_path / "out", "--set", override)
    assert sentence in fails(2, "demo", "--out", tmp_path / "demo", "--set", override) or "seed.deep" in override
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "demo").exists()


def test_a_malformed_line_is_named_with_its_number(tmp_path: Path, model: Model) -> None:
    config = write_data(tmp_path)
    lines = (tmp_path / "next.jsonl").read_text().splitlines()
    lines[6] = '{"prompt": "After 6", "answer": '
    lines[11] = '["no object"]'
    (tmp_path / "next.jsonl").write_text("\n".join(lines))
    said = fails(2, "run", config, "--out", tmp_path / "out")
    assert "next.jsonl" in said
    assert "line 7" in said
    assert "line 12" in said
    assert not (tmp_path / "out").exists()


def test_a_slow_channel_on_a_policy_that_cannot_train(tmp_path: Path, model: Model) -> None:
    text = CONFIG.replace("[channels.null]", "[channels.lora]")
    done = call("run", write_data(tmp_path, text), "--out", tmp_path / "out")
    assert done.exit_code == 3
    assert "the slow channel 'lora' trains weights" in done.stderr


# ------------------------------------------------------------------------------------------------------------- folders

READERS = [
    ("status",),
    ("log",),
    ("diff", 0, 1),
    ("rollback", 0),
    ("eval",),
    ("chat",),
    ("resume",),
]


@pytest.mark.parametrize("words", READERS, ids=lambda words: words[0])
def test_what_is_no_run_is_refused(tmp_path: Path, model: Model, words: tuple[object, ...]) -> None:
    verb, *rest = words
    assert "there is no run at" in fails(4, verb, tmp_path / "none", *rest)
    assert "is not a run: it holds no ledger.sqlite" in fails(4, verb, tmp_path, *rest)
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a file; a run is a folder" in fails(4, verb, file, *rest)


@pytest.mark.parametrize("words", [("resume",), ("rollback", 0), ("eval",)], ids=lambda words: words[0])
def test_a_run_in_use_is_refused_with_who_uses_it(run: Path, words: tuple[object, ...], model: Model) -> None:
    verb, *rest = words
    with RunStore.open(run, write=True):
        said = fails(4, verb, run, *rest)
    assert "is at work on the run" in said
    assert model.policies == []  # refused before a model is loaded


def test_a_run_in_use_can_be_read(run: Path, model: Model) -> None:
    with RunStore.open(run, write=True):
        for words in (("status", run), ("log", run), ("diff", run, 0, 5), ("chat", run)):
            well(*words, text="")


def test_a_damaged_ledger_is_named(run: Path) -> None:
    data = (run / "ledger.sqlite").read_bytes()
    (run / "ledger.sqlite").write_bytes(b"not a ledger" + data[12:])
    said = fails(4, "log", run)
    assert "ledger.sqlite" in said
    assert "restore it from a copy" in said


def test_a_missing_state_is_named(run: Path, model: Model) -> None:
    shutil.rmtree(run / "blobs")
    (run / "blobs").mkdir()
    assert "blob" in fails(4, "chat", run)
    said = call("rollback", run, 0)
    assert said.exit_code == 4
    assert "blob" in said.stderr


# ------------------------------------------------------------------------------------------------- rounds and names


@pytest.mark.parametrize(
    "words", [("rollback", 9), ("diff", 0, 9), ("diff", 9, 0), ("chat", "--round", 9)], ids=lambda words: words[0]
)
def test_a_round_that_never_was(run: Path, model: Model, words: tuple[object, ...]) -> None:
    verb, *rest = words
    assert "there is no round 9" in fails(4, verb, run, *rest)
    with RunStore.open(run) as store:
        assert store.entries(action="rollback") == []


def test_a_round_that_is_no_number(run: Path) -> None:
    assert "a round is a whole number from 0, or 'live'" in fails(2, "diff", run, "last", 3)
    assert "'ROUND'" in fails(2, "rollback", run, "last")
    assert call("rollback", run, "--", "-1").exit_code == 2


def test_unknown_names_in_the_ledger_all_at_once(run: Path) -> None:
    said = fails(2, "log", run, "--channel", "promts", "--action", "comit", "--round", 77)
    assert "unknown channel 'promts'; did you mean 'prompts'?" in said
    assert "unknown action 'comit'; did you mean 'commit'?" in said
    assert "there is no round 77" in said
    assert call("log", run, "--limit", 0).exit_code == 2


def test_unknown_tasks(run: Path, model: Model) -> None:
    said = fails(2, "eval", run, "--tasks", "doubel,next,zzzz")
    assert "unknown task 'doubel'; did you mean 'double'?" in said
    assert "unknown task 'zzzz'; known: double, next" in said
    assert "--tasks names no task; known: double, next" in fails(2, "eval", run, "--tasks", ",")
    assert "unknown task 'doubel'; did you mean 'double'?" in fails(2, "chat", run, "--task", "doubel")
    assert model.policies == []


def test_eval_with_json_says_its_errors_on_standard_error_only(tmp_path: Path) -> None:
    assert fails(4, "eval", tmp_path, "--json").startswith("error: ")
