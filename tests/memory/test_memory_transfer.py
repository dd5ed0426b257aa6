"""Entries to files and back: nothing changed, nothing half done, nothing believed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twoclock.errors import ConfigError, DataError, MissingExtraError
from twoclock.memory.records import KINDS, TRUSTS, Effect, Entry, Scope
from twoclock.memory.skills import export_skills, import_skills
from twoclock.memory.transfer import export_jsonl, import_jsonl, jsonl_line
from twoclock.seeding import child_rng

FULL = Entry(
    kind="case",
    key="2 + 2\u2028?",
    text="Vier 🙂\n\x1b[0m\t\x00",
    scope=Scope(agent="a", user="u", task="t", session="s"),
    provenance=("run/1", "run/2"),
    seen=("abc",),
    reward=0.1 + 0.2,
    trust="self",
    body={"question": "q", "n": [1, 2.5, None, True], "deep": {"x": {}}},
    created=1 / 3,
    expires=1e9,
    replaces="0123456789abcdef",
)
EFFECT = Effect(shown=3, shown_sum=1.1, shown_squares=0.71, held=2, held_sum=-0.3, held_squares=0.09)


def any_entry(seed: int) -> Entry:
    rng = child_rng("any entry", seed)

    def text() -> str:
        return "".join(
            chr(rng.choice([*range(32, 127), 0xE9, 0x2028, 0x1F600, 10, 9])) for _ in range(rng.randrange(30))
        )

    return Entry(
        kind=rng.choice(KINDS),
        key=f"k{text()}",
        text=text(),
        scope=Scope(user=rng.choice(["", "u"]), task=rng.choice(["", text()])),
        provenance=tuple(text() for _ in range(rng.randrange(3))),
        reward=rng.choice([None, rng.random()]),
        trust=rng.choice(TRUSTS),
        body=rng.choice([{}, {"x": text()}]),
        created=rng.random() * 1e9,
        expires=rng.choice([None, rng.random() * 1e10]),
    )


# -------------------------------------------------------------------------------------------------------------- JSONL


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    entries = [FULL, *(any_entry(seed) for seed in range(60))]
    effects = {FULL.id: EFFECT, entries[1].id: Effect(), entries[2].id: Effect(shown=1)}
    assert export_jsonl(tmp_path / "m.jsonl", entries, effects) == len(entries)
    back = import_jsonl(tmp_path / "m.jsonl", trust=None)
    assert list(back.entries) == entries
    assert [e.id for e in back.entries] == [e.id for e in entries]
    assert back.effects == {FULL.id: EFFECT, entries[2].id: Effect(shown=1)}
    export_jsonl(tmp_path / "again.jsonl", back.entries, back.effects)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "m.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.jsonl", "m.jsonl"]


def test_what_comes_in_is_marked_whatever_it_says_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(jsonl_line(replace(FULL, text=t, trust=t)) + "\n" for t in TRUSTS))  # type: ignore[arg-type]
    assert {e.text: e.trust for e in import_jsonl(path).entries} == {
        t: "quarantined" if t == "quarantined" else "imported" for t in TRUSTS
    }
    assert {e.text: e.trust for e in import_jsonl(path, trust="user").entries}["verified"] == "user"
    assert {e.text: e.trust for e in import_jsonl(path, trust="user").entries}["quarantined"] == "quarantined"
    with pytest.raises(ConfigError, match="unknown trust 'verifyed'; did you mean 'verified'"):
        import_jsonl(path, trust="verifyed")  # type: ignore[arg-type]


def line(**changes: Any) -> str:
    data = {"kind": "note", "key": "k", "text": "t", **changes}
    return json.dumps({name: value for name, value in data.items() if value is not ...})


BAD: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("{", "it is no JSON"),
    "an array": ("[1]", r"expected one JSON object, an entry; got '\[1\]'"),
    "unknown field": (line(txet="x"), "unknown field 'txet'; did you mean 'text'"),
    "a field of scope": (line(scope={"usr": "u"}), "unknown field of scope 'usr'; did you mean 'user'"),
    "missing field": (line(text=...), "the field 'text' is missing"),
    "kind": (line(kind="note "), "unknown kind of entry 'note '; did you mean 'note'"),
    "trust": (line(trust="root"), "unknown trust 'root'"),
    "reward": (line(reward=1.5), r"a reward must lie in \[0, 1\]"),
    "NaN": ('{"kind": "note", "key": "k", "text": "t", "reward": NaN}', "NaN is no JSON number"),
    "too large": ('{"kind": "note", "key": "k", "text": "t", "created": 1e999}', "created must be a finite time"),
    "text": (line(text=5), "text must be a string; got 5"),
    "scope": (line(scope="u"), "scope must be an object; got 'u'"),
    "scope part": (line(scope={"user": 3}), "scope.user must be a string; got 3"),
    "provenance": (line(provenance="a"), "provenance must be a list of names; got 'a'"),
    "body": (line(body=[1]), r"body must be an object; got \[1\]"),
    "surrogate": ('{"kind": "note", "key": "k", "text": "\\ud800"}', "half a character"),
    "twice": ('{"kind": "note", "key": "k", "key": "l", "text": "t"}', "the field 'key' stands twice"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "bytes": (b"\xff\xfe{}", "it is no UTF-8 text"),
    "changed": (line(id="0" * 16), "the line was changed; remove its 'id', and its 'effect'"),
    "empty": (line(key=" ", text=""), "key and text are both empty"),
    "effect names": (line(effect={"shown": 1}), "an effect is an object of shown, shown_sum"),
    "effect count": (line(effect={**vars(EFFECT), "shown": 1.5}), "shown of the effect must be a count; got 1.5"),
    "effect below 0": (line(effect={**vars(EFFECT), "held": -1}), "held of the effect cannot be below 0"),
    "effect sums": (line(effect={**vars(EFFECT), "shown_sum": 9}), "no 3 outcomes have the sum 9.0"),
    "effect of none": (line(effect={**vars(Effect()), "held_squares": 1.0}), "no 0 outcomes"),
    "effect beyond": (line(effect={**vars(EFFECT), "shown": 10**30}), "beyond all outcomes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_and_nothing_is_imported(name: str, tmp_path: Path) -> None:
    bad, message = BAD[name]
    path = tmp_path / "m.jsonl"
    path.write_bytes(line(key="fine").encode() + b"\n\n" + (bad if isinstance(bad, bytes) else bad.encode()) + b"\n")
    with pytest.raises(DataError, match=rf"(?s)of its 3 lines 1 are wrong:.*line 3: .*{message}"):
        import_jsonl(path)


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(["{"] * 30))
    with pytest.raises(DataError) as caught:
        import_jsonl(path)
    assert "line 1: " in str(caught.value)
    assert "line 20: " in str(caught.value)
    assert "… and 10 more" in str(caught.value)


def test_a_line_that_stands_twice_counts_once_and_two_that_disagree_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f"{line()}\n{line()}\n")
    assert len(import_jsonl(path).entries) == 1
    path.write_text(f"{line()}\n{line(reward=1.0)}\n")
    with pytest.raises(DataError, match="line 2: it is the entry of line 1, with something else known about it"):
        import_jsonl(path)


def test_files_as_other_systems_write_them(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line(key="ä").encode() + b"\r\n" + line(key="b").encode())
    assert [e.key for e in import_jsonl(path).entries] == ["ä", "b"]
    path.write_bytes(b"")
    assert import_jsonl(path).entries == ()


def test_files_that_cannot_be_read_or_must_not_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: No such file"):
        import_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        import_jsonl(tmp_path)
    path = tmp_path / "m.jsonl"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists already; name another file"):
        export_jsonl(path, [FULL])
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        export_jsonl(tmp_path, [FULL], overwrite=True)
    with pytest.raises(ConfigError, match="a reward must lie in"):
        export_jsonl(path, [FULL, replace(FULL, reward=7.0)], overwrite=True)
    assert path.read_text() == "precious"
    assert export_jsonl(path, [FULL], overwrite=True) == 1
    assert export_jsonl(tmp_path / "new" / "m.jsonl", []) == 0


# --------------------------------------------------------------------------------------------------------- SKILL.md

SKILL = Entry(
    kind="skill",
    key="Adds numbers: use when asked for sums",
    text="# Adding\n\nRun the script.\n",
    trust="imported",
    body={
        "name": "adding-numbers",
        "front": {"license": "MIT"},
        "files": {"scripts/add.py": "print(1 + 1)\n", "img/x.bin": {"base64": "/wD+"}},
    },
)


def write_skill(folder: Path, head: str, text: str = "Do it.", name: str = "one") -> Path:
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "SKILL.md").write_text(f"---\n{head}\n---\n{text}\n", encoding="utf-8")
    return place


def test_a_skill_goes_out_and_comes_back(tmp_path: Path) -> None:
    (place,) = export_skills(tmp_path, [SKILL])
    assert place.name == "adding-numbers"
    assert (place / "scripts/add.py").read_text() == "print(1 + 1)\n"
    assert (place / "img/x.bin").read_bytes() == b"\xff\x00\xfe"
    assert not os.access(place / "scripts/add.py", os.X_OK)
    head = (place / "SKILL.md").read_text().split("---")[1]
    assert "name: adding-numbers\ndescription: 'Adds numbers: use when asked for sums'" in head
    (back,) = import_skills(tmp_path).entries
    assert replace(back, body=SKILL.body) == SKILL
    assert back.body == {"name": "adding-numbers", "files": SKILL.body["files"]}
    assert import_skills(place).entries == (back,)


@pytest.mark.parametrize(
    "key",
    [
        "plain",
        "with: colon",
        "- dash",
        "# hash",
        "'quotes\"",
        "yes",
        "1.0",
        "null",
        "Ümläute 数学",
        "*star",
        "a\u2028b",
    ],
)
def test_any_description_survives_yaml(key: str, tmp_path: Path) -> None:
    entry = replace(
        SKILL, kind="note", key=key, text="---\nname: x\n---\n\n  text\n\n", body={}, scope=Scope(user="u: 1")
    )
    export_skills(tmp_path, [entry])
    (back,) = import_skills(tmp_path).entries
    assert (back.kind, back.text, back.scope) == ("note", entry.text, entry.scope)
    assert back.key == " ".join(key.split())


def test_names_are_as_the_form_wants_them_and_never_shared(tmp_path: Path) -> None:
    entries = [
        Entry(kind="note", key="Same Key!!", text="1"),
        Entry(kind="note", key="same -- key", text="2"),
        Entry(kind="note", key="数学", text="3"),
        Entry(kind="note", key="long " * 40, text="4"),
        Entry(kind="note", key="", text="from the text"),
        Entry(kind="skill", key="evil", text="6", body={"name": "../../etc/passwd"}),
    ]
    names = [place.name for place in export_skills(tmp_path, entries)]
    assert names[0] == "same-key"
    assert names[1].startswith("same-key-")
    assert names[2] == "note"
    assert names[4:] == ["from-the-text", "etc-passwd"]
    assert all(len(name) <= 64 and name.strip("-") == name for name in names)
    assert len(import_skills(tmp_path).entries) == 6


@pytest.mark.parametrize(
    "name",
    [
        "../up.sh",
        "/etc/cron.d/x",
        "a/../../x",
        "C:/x",
        "C:x",
        "a\\b",
        "",
        ".",
        "a//b",
        "a/",
        "SKILL.md",
        "skill.MD",
        "a\nb",
    ],
)
def test_files_that_would_land_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    entry = replace(SKILL, body={"name": "x", "files": {"fine.txt": "1", name: "2"}})
    with pytest.raises(ConfigError, match="the file"):
        export_skills(tmp_path / "out", [SKILL, entry])
    assert not (tmp_path / "out").exists()


def test_export_writes_through_no_link_and_over_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out" / "adding-numbers").mkdir(parents=True)
    (tmp_path / "out" / "adding-numbers" / "scripts").symlink_to(outside)
    with pytest.raises(ConfigError, match="is a link"):
        export_skills(tmp_path / "out", [SKILL])
    assert not list(outside.iterdir())
    export_skills(tmp_path / "two", [SKILL])
    with pytest.raises(ConfigError, match="exists already; name another folder"):
        export_skills(tmp_path / "two", [SKILL])
    export_skills(tmp_path / "two", [SKILL], overwrite=True)
    twice = replace(SKILL, body={"files": {"a": "1", "a/b": "2"}})
    with pytest.raises(ConfigError, match="both a file and a folder"):
        export_skills(tmp_path / "three", [twice])
    with pytest.raises(ConfigError, match="must be text, or an object with 'base64'"):
        export_skills(tmp_path / "three", [replace(SKILL, body={"files": {"a": 5}})])


def test_a_skill_as_others_write_them(tmp_path: Path) -> None:
    place = write_skill(
        tmp_path, "name: pdf\ndescription: >\n  Reads PDFs,\n  page by page\nallowed-tools: Read\nversion: 1.0"
    )
    (place / "scripts").mkdir()
    (place / "scripts" / "run.sh").write_text("rm -rf /\n")
    (place / ".git").mkdir()
    (place / ".git" / "config").write_text("secret")
    (entry,) = import_skills(tmp_path).entries
    assert (entry.kind, entry.key, entry.text, entry.trust) == (
        "skill",
        "Reads PDFs, page by page\n",
        "Do it.",
        "imported",
    )
    assert entry.body == {
        "name": "pdf",
        "front": {"allowed-tools": "Read", "version": "1.0"},
        "files": {"scripts/run.sh": "rm -rf /\n"},
    }
    (place / "SKILL.md").write_bytes(b"\xef\xbb\xbf---\r\nname: pdf\r\ndescription: d\r\n---\r\nOne\r\nTwo\r\n")
    (entry,) = import_skills(place, scope=Scope(user="me"), trust="user").entries
    assert (entry.text, entry.scope, entry.trust) == ("One\nTwo", Scope(user="me"), "user")


BAD_HEADS = {
    "name: x": "needs a line 'description: …'",
    "description: x": "needs a line 'name: …'",
    "name: x\ndescription: ''": "needs a line 'description: …'",
    "name: [x]\ndescription: y": "needs a line 'name: …'",
    "just text": "must be lines 'name: …'",
    "name: 'x": "is no YAML",
    "a: &a [x, x]\nname: n\ndescription: d\nb: [*a, *a]": "uses an alias",
    'name: x\ndescription: "\\uD800"': "",
    "name: !!python/object/apply:os.system ['false']\ndescription: d": "needs a line 'name: …'",
}


@pytest.mark.parametrize("head", BAD_HEADS)
def test_front_matter_that_is_none(head: str, tmp_path: Path) -> None:
    write_skill(tmp_path, "name: fine\ndescription: fine", name="fine")
    write_skill(tmp_path, head, name="wrong")
    with pytest.raises(DataError, match=f"(?s)no skill was imported:.*wrong: .*{BAD_HEADS[head]}"):
        import_skills(tmp_path)


def test_folders_that_are_no_skills(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no SKILL\.md in"):
        import_skills(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        import_skills(tmp_path / "none")
    (tmp_path / "x").mkdir()
    for content, message in ((b"no front matter", "must begin with front matter"), (b"---\n\xff\n---\n", "no UTF-8")):
        (tmp_path / "x" / "SKILL.md").write_bytes(content)
        with pytest.raises(DataError, match=message):
            import_skills(tmp_path)


def test_links_and_giants_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("token")
    place = write_skill(tmp_path / "in", "name: x\ndescription: d")
    (place / "notes.txt").symlink_to(secret)
    with pytest.raises(DataError, match=r"notes\.txt is a link"):
        import_skills(tmp_path / "in")
    (place / "notes.txt").unlink()
    (place / "big.bin").write_bytes(b"\0" * ((1 << 20) + 1))
    with pytest.raises(DataError, match="more than 1048576 bytes"):
        import_skills(tmp_path / "in")
    (place / "big.bin").unlink()
    (place / "SKILL.md").unlink()
    (place / "SKILL.md").symlink_to(secret)
    with pytest.raises(DataError, match="it is a link"):
        import_skills(tmp_path / "in")


def test_without_the_yaml_package_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    for call in (lambda: export_skills(tmp_path, [SKILL]), lambda: import_skills(tmp_path)):
        with pytest.raises(
            MissingExtraError, match=r"needs the package 'pyyaml'; type: pip install 'twoclock\[memory\]'"
        ):
            call()
