"""``twoclock why``: the table, one lesson in full, names, mistakes, hostile text, a run that is going on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_bench import CONFIG, Model, call, well, write_data

import twoclock.build
from twoclock.fast.prompts.state import EMPTY, Candidate, Pool, PromptsState, dump_state
from twoclock.store import RunStore
from twoclock.types import LedgerEntry, Write

PAIRED = CONFIG.replace("per_item = 2", "per_item = 4\nprompts_per_item = 2") + "\n[watch]\nfast = true\n"
HOSTILE = "\x1b[2Jdone\u202e</script><script>stolen()</script>"


def as_json(*words: Any) -> Any:
    return json.loads(well("why", *words, "--json").stdout)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose groups compare: to be read, not changed."""
    folder = tmp_path_factory.mktemp("why")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twoclock.build, "build_policy", Model())
        well("run", write_data(folder, PAIRED), "--out", folder / "run")
    return folder / "run"


def test_without_a_lesson_it_lists_all_of_them(learned: Path) -> None:
    found = as_json(learned)
    assert found["problem"] is None
    assert found["round"] == 5
    rows = [line.split() for line in well("why", learned).stdout.splitlines()]
    assert rows[0][:3] == ["lesson", "channel", "live"]
    assert [row[0] for row in rows[1:]] == [one["lesson"][: len(rows[1][0])] for one in found["lessons"]]
    live = [one for one in found["lessons"] if one["live"]]
    assert live
    assert live == found["lessons"][: len(live)]
    effect = live[0]["effect"]
    assert f"{effect['estimate']:+.2f} [{effect['low']:+.2f}, {effect['high']:+.2f}]" in well("why", learned).stdout


def test_every_write_of_the_ledger_is_explained(learned: Path) -> None:
    with RunStore.open(learned) as store:
        written = {w.lesson for e in store.entries() for w in e.writes if w.lesson} - {EMPTY.id}
    assert {one["lesson"] for one in as_json(learned)["lessons"]} == written


def test_one_lesson_in_full(learned: Path) -> None:
    one = as_json(learned)["lessons"][0]
    words = well("why", learned, one["lesson"][:6]).stdout
    flat = " ".join(words.split())
    assert words.startswith(one["lesson"])
    for text in ("what would change it", "where it came from", "evidence", "decisions", "prompt tokens a read"):
        assert text in words
    assert " ".join(one["standing"]["sentence"].split()) in flat
    for event in one["events"]:
        assert f"round {event['round']}: {event['what']}" in words
    assert as_json(learned, one["lesson"])["lessons"] == [one]
    seq = one["origin"]["seq"]
    with RunStore.open(learned) as store:
        entry = next(e for e in store.entries() if e.seq == seq)
    assert one["lesson"] in {write.lesson for write in entry.writes}


def test_what_is_no_lesson_is_said(learned: Path) -> None:
    lessons = [one["lesson"] for one in as_json(learned)["lessons"]]
    done = call("why", learned, lessons[0][:-1] + "?")
    assert done.exit_code == 2
    assert f"did you mean '{lessons[0]}'" in done.stderr
    assert f"'twoclock why {learned}' lists them" in done.stderr
    done = call("why", learned, "#1")
    assert done.exit_code == 2
    assert "no ledger entry #1" in done.stderr
    with RunStore.open(learned) as store:
        several = next(e for e in store.entries() if len({w.lesson for w in e.writes}) > 1)
    done = call("why", learned, f"#{several.seq}")
    assert done.exit_code == 2
    assert f"the ledger entry #{several.seq} writes" in done.stderr


def test_an_ambiguous_beginning_is_refused(learned: Path) -> None:
    lessons = [one["lesson"] for one in as_json(learned)["lessons"]]
    done = call("why", learned, "")
    assert done.exit_code == 2
    first = next((a for a in "0123456789abcdef" if sum(x.startswith(a) for x in lessons) > 1), None)
    if first is not None:
        done = call("why", learned, first)
        assert done.exit_code == 2
        assert f"lessons begin with '{first}': prompts/" in done.stderr


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    done = call("why", tmp_path / "nothing")
    assert done.exit_code == 4
    assert "there is no run at" in done.stderr


def test_a_run_without_channels_that_teach(tmp_path: Path, model: Model) -> None:
    text = CONFIG.replace(
        "[channels.prompts]\nnum_exemplars = [2]\nnum_new = 2\nsearch_items = 8\nfirst_items = 4\n", ""
    )
    well("run", write_data(tmp_path, text), "--out", tmp_path / "run")
    done = well("why", tmp_path / "run")
    assert done.stdout == ""
    assert "has lessons; its channels: null" in done.stderr
    assert as_json(tmp_path / "run")["lessons"] == []
    assert "has lessons" in as_json(tmp_path / "run")["problem"]
    assert call("why", tmp_path / "run", "abc").exit_code == 2


def test_a_run_that_has_learned_nothing_yet(tmp_path: Path, model: Model) -> None:
    def stop(number: int) -> None:
        raise KeyboardInterrupt

    path = write_data(tmp_path, PAIRED)
    model.before = lambda number: stop(number) if number >= 3 else None
    assert call("run", path, "--out", tmp_path / "run").exit_code == 130
    done = well("why", tmp_path / "run")
    assert "no lesson has been written by round 0" in done.stderr


def hostile_run(learned: Path, folder: Path) -> tuple[Path, str]:
    """The run with a prompt, a cause and a reason that no terminal and no page should obey."""
    run = Path(shutil.copytree(learned, folder / "run"))
    bad = Candidate(system=f"system {HOSTILE}")
    with RunStore.open(run, write=True) as store:
        head = store.head()
        state = PromptsState((("double", Pool(candidates=(bad, EMPTY), deployed=bad.id)),))
        after = store.put_blob(dump_state(state))
        entry = LedgerEntry(
            round=0, channel="prompts", timescale="fast", action="consolidate", before=head.states["prompts"],
            after=after, cause=f"cause {HOSTILE}", reason=f"reason {HOSTILE}", cost=store.entries()[0].cost,
            task=f"task {HOSTILE}", writes=(Write(text=f"text {HOSTILE}", kind="system", lesson=bad.id),),
        )  # fmt: skip
        store.append_consolidation([entry], {"prompts": after}, expected=head, cause="test")
    return run, bad.id


def test_hostile_text_is_shown_and_not_obeyed(learned: Path, tmp_path: Path) -> None:
    run, lesson = hostile_run(learned, tmp_path)
    for words in (("why", run), ("why", run, lesson)):
        shown = well(*words).stdout
        assert "\x1b[2J" not in shown
        assert "\u202e" not in shown
        assert "\\x1b[2Jdone" in shown
    others = [one["lesson"] for one in as_json(run)["lessons"] if "consolidated" in str(one["events"][-1:])]
    assert others
    assert "\\x1b[2Jdone" in well("why", run, others[0]).stdout
    assert as_json(run, lesson)["lessons"][0]["text"] == f"system {HOSTILE}"
    page = Path(well("report", run).stdout.strip()).read_text(encoding="utf-8")
    section = page[page.index('<section id="lessons">') : page.index('<section id="broke">')]
    assert "<script>stolen" not in section
    assert "&lt;script&gt;stolen" in section


def test_it_reads_while_another_writes(learned: Path, tmp_path: Path) -> None:
    """A writer that commits and rolls back all the while: every answer is whole and speaks of one state."""
    run = Path(shutil.copytree(learned, tmp_path / "run"))
    code = (
        "import sys; from pathlib import Path; from twoclock.store import RunStore\n"
        "with RunStore.open(Path(sys.argv[1]), write=True) as store:\n"
        "    print('ready', flush=True)\n"
        "    for n in range(100000):\n"
        "        store.append_rollback(n % 2 * 5, reason='to and fro')\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        for _ in range(4):
            found = as_json(run)
            assert found["round"] == 5
            for one in found["lessons"]:
                assert one["standing"]["sentence"]
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.communicate()


def test_it_loads_no_model_and_needs_no_data(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(shutil.copytree(learned, tmp_path / "run"))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was asked for")

    monkeypatch.setattr(twoclock.build, "build_policy", never)
    config = json.loads((run / "config.json").read_text())
    config["tasks"]["double"]["path"] = "gone.jsonl"
    (run / "config.json").write_text(json.dumps(config))
    assert as_json(run)["lessons"]


def test_a_configuration_that_no_longer_fits_is_said_and_the_page_stands(learned: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(learned, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    config["channels"]["prompts"]["gone"] = 1
    (run / "config.json").write_text(json.dumps(config))
    done = call("why", run)
    assert done.exit_code == 2
    assert "unknown option 'gone'" in done.stderr
    page = Path(well("report", run).stdout.strip()).read_text(encoding="utf-8")
    assert "The lessons cannot be explained" in page


def test_a_damaged_live_state_is_named(learned: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(learned, tmp_path / "run"))
    with RunStore.open(run) as store:
        digest = store.head().states["prompts"]
    (run / "blobs" / digest[:2] / digest).write_bytes(b"other")
    done = call("why", run)
    assert done.exit_code == 4
    assert digest[:12] in done.stderr


def test_the_page_has_every_lesson(learned: Path, tmp_path: Path) -> None:
    page = Path(well("report", learned, "--out", tmp_path / "page.html").stdout.strip()).read_text(encoding="utf-8")
    found = as_json(learned)["lessons"]
    assert page.count('data-lesson="') == len(found)
    for one in found:
        assert f'data-lesson="{one["lesson"]}"' in page
    section = page[page.index('<section id="lessons">') : page.index('<section id="broke">')]
    assert section.count("<details>") == len(found)
    for one in found:
        if one["origin"]["seq"]:
            assert f'id="entry-{one["origin"]["seq"]}"' in page  # what the row's link leads to
