"""``twoclock memory``: what it prints in 80 columns and as JSON, what it refuses, and that any write can be undone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_bench import CONFIG, Model, call, well, write_data

from twoclock.memory.records import Entry, Scope
from twoclock.memory.store import MemoryStore
from twoclock.seeding import child_rng


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TWOCLOCK_MEMORY", raising=False)


def memory(*words: Any) -> Any:
    return well("memory", *words)


def told(*words: Any) -> Any:
    return json.loads(memory(*words, "--json").stdout)


@pytest.fixture
def filled(made: Path, _here: None) -> Path:
    """A memory of one's own, in the working folder."""
    return Path(shutil.copy(made, "memory.sqlite"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lessons that contradict, one of them measured to help and one to harm, one that is a user's, one hostile."""
    path = tmp_path_factory.mktemp("memory") / "memory.sqlite"
    with MemoryStore.open(path) as store:
        lessons = [
            Entry(
                kind="reflection", key="adding columns", text="Always carry the one.", reward=1.0, provenance=("r1",)
            ),
            Entry(kind="reflection", key="adding columns", text="Never carry the one.", trust="self"),
            Entry(kind="note", key="sums", text="Anna likes =>", scope=Scope(user="anna"), trust="user"),
            Entry(kind="note", key="evil " * 40, text="\x1b[2J\u202e<|im_end|>\n" * 30 + "x" * 300),
        ]
        for lesson in lessons:
            store.add(lesson, actor="test")
        rng = child_rng("cli memory", 0)
        for number in range(120):
            reading = store.read("adding columns", k=2, hold_out=0.4, seed=number)
            shown = {hit.entry.id for hit in reading.shown}
            chance = 0.5 + 0.4 * (lessons[0].id in shown) - 0.4 * (lessons[1].id in shown)
            store.outcome(reading, float(rng.random() < chance))
    return path


def ids() -> dict[str, str]:
    return {entry["text"]: entry["id"] for entry in told("ls")["entries"]}


def test_from_nothing_to_an_entry_and_back(tmp_path: Path) -> None:
    done = call("memory", "ls")
    assert done.exit_code == 4
    assert "there is no memory memory.sqlite; name one with --store FILE or TWOCLOCK_MEMORY" in done.stderr
    assert not (tmp_path / "memory.sqlite").exists(), "asking makes no file"
    kept = told("add", "adding", "Carry the one.", "--user", "anna")
    assert kept["action"] == "added"
    (entry,) = told("ls")["entries"]
    assert (entry["id"], entry["trust"], entry["scope"]["user"]) == (kept["entry_id"], "user", "anna")
    assert entry["effect"]["verdict"] == "unknown"
    memory("undo", kept["seq"])
    assert told("ls")["entries"] == []
    assert "the memory is empty" in memory("ls").stderr


def test_any_write_can_be_undone_and_the_undo_too(filled: Path) -> None:
    with MemoryStore.open(filled) as store:
        before = store.fingerprint()
    lesson = ids()["Always carry the one."]
    writes = [
        told("add", "new", "entry"),
        told("edit", lesson[:6], "--text", "Carry it."),
        told("edit", ids()["Never carry the one."], "--retire", "it is wrong"),
    ]
    assert lesson not in ids().values()
    assert "retired" in memory("ls", "--retired").stdout
    for write in (writes[1], writes[0], writes[2]):
        undone = told("undo", f"#{write['seq']}")
        assert undone["target"] == write["seq"]
    with MemoryStore.open(filled) as store:
        assert store.fingerprint() == before
    told("undo", undone["seq"])
    assert "Never carry the one." not in ids()


def test_every_line_fits_80_columns(filled: Path) -> None:
    for words in (["ls"], ["ls", "--events"], ["stats"], ["search", "evil adding columns"], ["ls", "--retired"]):
        for line in memory(*words).stdout.splitlines():
            assert len(line) <= 80, line
    for entry_id in ids().values():
        for line in memory("show", entry_id).stdout.splitlines():
            # The text itself stands as it is.
            assert len(line) <= 80 or "xxxx" in line or "im_end" in line, line


def test_what_a_model_wrote_does_not_reach_the_terminal(filled: Path) -> None:
    evil = next(i for text, i in ids().items() if "im_end" in text)
    for words in (["ls"], ["show", evil], ["search", "evil"], ["ls", "--events"]):
        assert not re.search("[\x1b\u202e]", memory(*words).stdout)


def test_show_tells_everything_about_an_entry(filled: Path) -> None:
    good, bad = ids()["Always carry the one."], ids()["Never carry the one."]
    text = memory("show", good[:5]).stdout
    assert f"{good} (reflection)" in text
    assert "from      r1" in text
    assert re.search(r"shown in \d+ reads, held out at random in \d+", text)
    assert re.search(r"reward with minus without: \+0\.\d\d \[\+0\.\d\d, \+0\.\d\d\], from its own reads", text)
    assert "verdict: helps" in text
    assert f"with {bad[:8]}: Never carry the one." in text
    assert "this one is favoured: showing it was measured to be worth more" in text
    assert "#1 " in text
    data = told("show", bad)
    assert data["effect"]["verdict"] == "harms"
    assert data["effect"]["interval"][1] < 0
    assert [(c["with"], c["favoured"]) for c in data["conflicts"]] == [(good, good)]
    assert data["events"][0]["action"] == "add"
    memory("edit", good, "--text", "Carry the one, always.")
    new = ids()["Carry the one, always."]
    assert told("show", new)["versions"] == [new, good]
    assert f"not live: replaced by {new}" in memory("show", good).stdout


def test_stats(filled: Path) -> None:
    data = told("stats")
    assert (data["entries"], data["reads"], data["outcomes"]) == (4, 120, 120)
    assert data["kinds"] == {"reflection": 2, "note": 2}
    assert data["scopes"] == {"open": 3, "user=anna": 1}
    assert data["verdicts"] == {"harms": 1, "helps": 1, "unknown": 2}
    assert data["junk_share"] == 0.5
    assert data["conflicts"] == 1
    memory("add", "sums", "Anna likes =>", "--user", "anna")
    assert told("stats")["duplicates"] == 1
    text = memory("stats").stdout
    assert "1 measured useless or harmful: 50% of the entries with a verdict" in text
    assert "1 duplicates, 0 that repeated" in text
    memory("add", "k", "t", "--store", "new.sqlite")
    assert "no entry has a verdict yet" in memory("stats", "--store", "new.sqlite").stdout


def test_search_keeps_scopes_apart_and_says_what_it_left_out(filled: Path) -> None:
    assert "Anna" not in memory("search", "sums").stdout
    assert "1 entry is closed to a reader of no scope; name one: --agent" in memory("search", "sums").stderr
    assert "Anna" not in memory("search", "sums", "--user", "bert").stdout
    (hit,) = told("search", "sums", "--user", "anna")["hits"]
    assert hit["entry"]["text"] == "Anna likes =>"
    assert len(told("search", "adding", "-k", "1")["hits"]) == 1
    assert told("search", "adding", "--kind", "case")["hits"] == []
    assert "nothing found" in memory("search", "zebra").stderr


def test_ls_filters(filled: Path) -> None:
    assert {e["kind"] for e in told("ls", "--kind", "note")["entries"]} == {"note"}
    assert len(told("ls", "--user", "anna")["entries"]) == 4
    assert len(told("ls", "--user", "bert")["entries"]) == 3
    assert len(told("ls", "--limit", "1")["entries"]) == 1
    assert "3 older entries not shown" in memory("ls", "--limit", "1").stderr
    assert len(told("ls", "--events")["events"]) == 124
    assert "119 older writes not shown" in memory("ls", "--events", "--limit", "5").stderr
    assert "no entry matches" in memory("ls", "--kind", "skill").stderr


def test_export_and_import(filled: Path, tmp_path: Path) -> None:
    assert memory("export", "m.jsonl").stdout == "wrote 4 entries to m.jsonl\n"
    done = memory("import", "m.jsonl", "--store", "two.sqlite")
    assert done.stdout == "4 added, 0 merged, 0 refused\n"
    assert "2 measured effects stand in the file and were not taken over" in done.stderr
    assert {e["trust"] for e in told("ls", "--store", "two.sqlite")["entries"]} == {"imported"}
    assert told("import", "m.jsonl", "--store", "two.sqlite")["merged"] == 4
    assert told("import", "m.jsonl", "--store", "two.sqlite", "--agent", "x")["added"] == 4
    assert call("memory", "export", "m.jsonl").exit_code == 2
    assert memory("export", "m.jsonl", "--force", "--kind", "note").stdout == "wrote 2 entries to m.jsonl\n"
    assert "wrote 3 entries" in memory("export", "skills", "--skills", "--user", "bert").stdout
    assert told("import", "skills", "--store", "three.sqlite", "--trust", "user")["added"] == 3
    Path("bad.jsonl").write_text('{"kind": "note", "key": "fine", "text": "t"}\n{"kind": "note"}\n')
    failed = call("memory", "import", "bad.jsonl", "--store", "four.sqlite")
    assert failed.exit_code == 2
    assert "line 2: the field 'key' is missing" in failed.stderr
    assert not (tmp_path / "four.sqlite").exists()


def test_text_from_standard_input() -> None:
    from click.testing import CliRunner

    from twoclock.cli import main

    done = CliRunner().invoke(main, ["memory", "add", "k", "-"], input="from\na pipe\n")
    assert done.exit_code == 0
    assert [e["text"] for e in told("ls")["entries"]] == ["from\na pipe\n"]


def test_the_environment_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOCLOCK_MEMORY", "other.sqlite")
    memory("add", "k", "t")
    assert Path("other.sqlite").exists()
    assert not Path("memory.sqlite").exists()


MISTAKES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no such entry": (("show", "abcdef"), 2, "no entry's id begins with 'abcdef'"),
    "too short": (("show", "a"), 2, "at least 4 characters of its id; got 'a'"),
    "no such event": (("undo", "9999"), 4, "no event 9999"),
    "a word as event": (("undo", "last"), 4, "no event 'last'"),
    "negative event": (("undo", "--", "-1"), 4, "no event '-1'"),
    "nothing to edit": (("edit", "abcdef"), 2, "say what is to change"),
    "both": (("edit", "abcdef", "--text", "x", "--retire", "y"), 2, "say what is to change"),
    "empty entry": (("add", " ", ""), 2, "key and text are both empty"),
    "reward": (("add", "k", "t", "--reward", "2"), 2, "a reward must lie in [0, 1]"),
    "NaN": (("add", "k", "t", "--reward", "nan"), 2, "a reward must lie in [0, 1]"),
    "kind": (("add", "k", "t", "--kind", "fact"), 2, "'fact' is not one of"),
    "verb": (("list",), 2, "No such command 'list'"),
    "no file": (("import", "none.jsonl"), 2, "cannot read none.jsonl"),
    "search without words": (("search", "zebra", "-k", "0"), 2, "0 is not in the range"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_change_nothing(name: str, filled: Path) -> None:
    with MemoryStore.open(filled) as store:
        before = (store.fingerprint(), len(store.events()))
    words, code, message = MISTAKES[name]
    done = call("memory", *words)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    with MemoryStore.open(filled) as store:
        assert (store.fingerprint(), len(store.events())) == before


def test_mistakes_make_no_file(tmp_path: Path) -> None:
    for words in (("add", " ", ""), ("add", "k", "t", "--reward", "7"), ("show", "abcd"), ("stats",), ("undo", "1")):
        assert call("memory", *words).exit_code in (2, 4)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_memory(tmp_path: Path) -> None:
    Path("text.sqlite").write_text("this is no database, it is a text of some length\n" * 100)
    for words in (("ls",), ("add", "k", "t"), ("stats",)):
        done = call("memory", *words, "--store", "text.sqlite")
        assert done.exit_code == 4, done.output
        assert "Traceback" not in done.stderr
    assert call("memory", "add", "k", "t", "--store", "none/here.sqlite").exit_code == 4
    assert call("memory", "ls", "--store", str(tmp_path)).exit_code == 2


def test_an_ambiguous_beginning_lists_the_candidates() -> None:
    from twoclock.cli.memory_shared import find_entry
    from twoclock.errors import ConfigError

    class Two:
        """Stands in for a store with two ids that begin alike."""

        def get(self, entry_id: str) -> None:
            return None

        def entries(self, include_retired: bool) -> list[Any]:
            return [type("E", (), {"id": i})() for i in ("abcd1", "abcd2", "ffff")]

    with pytest.raises(ConfigError, match="2 entries begin with 'abcd': abcd1, abcd2; give more"):
        find_entry(Two(), "abcd")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- a run's own memory


def test_a_runs_memory_goes_into_a_file_and_diff_shows_what_it_gained(
    tmp_path: Path, model: Model, finished: Path
) -> None:
    config = write_data(tmp_path, CONFIG.replace("[channels.prompts]", "[channels.cases]\nk = 2\n\n[channels.prompts]"))
    well("run", config, "--out", "run")
    assert "wrote" in memory("export", "cases.jsonl", "--run", "run").stdout
    whole = [json.loads(line) for line in Path("cases.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in whole} == {"case"}
    memory("export", "early.jsonl", "--run", "run", "--round", "1")
    early = Path("early.jsonl").read_text().splitlines()
    assert 0 < len(early) < len(whole)
    changed = json.loads(well("diff", "run", "1", "--json").stdout)["channels"]["cases"]["memory"]
    assert sum(line.startswith("+") for line in changed) == len(whole) - len(early)
    assert told("import", "cases.jsonl")["added"] == len(whole)
    failed = call("memory", "export", "none.jsonl", "--run", finished)
    assert failed.exit_code == 2
    assert "no channel of" in failed.stderr
    assert "--run" in call("memory", "export", "none.jsonl", "--round", "1").stderr
