"""Entries as ``SKILL.md`` folders, the form in which agents exchange skills: front matter with name and description,
instructions below, other files beside. A description is an entry's key, the instructions are its text.

Files beside are kept as they are, as data in the entry's body; nothing here ever runs one. Front matter is YAML, read
as text only: no types, no anchors.
"""

from __future__ import annotations

import base64
import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from twoclock.errors import ConfigError, DataError, MissingExtraError, unknown_name
from twoclock.memory.entries import problems, require_proper
from twoclock.memory.records import TRUSTS, Entry, Kind, Scope, Trust
from twoclock.memory.transfer import Imported, marked, write_whole

__all__ = ["export_skills", "import_skills"]

FILE = "SKILL.md"
LONGEST_NAME = 64
LONGEST_DESCRIPTION = 1024
LARGEST_FILES_BYTES = 1 << 20
"""Of all files beside one SKILL.md together; what is larger is no instruction."""

_FRONT = re.compile(r"\A---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)


def _yaml() -> Any:
    try:
        return importlib.import_module("yaml")
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("pyyaml", "memory", "the front matter of SKILL.md") from error


# ---------------------------------------------------------------------------------------------------------------- out


def export_skills(folder: Path, entries: Iterable[Entry], *, overwrite: bool = False) -> list[Path]:
    """Writes one folder an entry, each with its SKILL.md; gives their paths.

    A folder is named by the body's ``name``, or after the key. A description is one line of at most 1024 characters: a
    longer key is cut, and then comes back cut. Provenance, reward and effect are not written: JSONL keeps those. Raises
    ConfigError, before anything is written, for a file that would land outside its folder, and for a SKILL.md that is
    there already and is not to be overwritten.
    """
    yaml = _yaml()
    planned: dict[Path, dict[Path, bytes]] = {}
    wrong: list[str] = []
    for entry in entries:
        require_proper(entry)
        place = folder / _free_name(entry, {path.name for path in planned})
        front = {"name": place.name, "description": _description(entry)}
        metadata = {"kind": entry.kind} | {f"scope-{n}": v for n, v in vars(entry.scope).items() if v}
        head = yaml.safe_dump(front | {"metadata": metadata}, sort_keys=False, allow_unicode=True, width=10**9)
        files = {place / FILE: f"---\n{head}---\n\n{entry.text}\n".encode()}
        beside = _files_of(entry)
        for name, content in beside.items():
            if any(f"{name}/" == other[: len(name) + 1] for other in beside):
                wrong.append(f"entry {entry.id}: {name!r} is both a file and a folder of others")
            elif (problem := _unsafe(name)) is not None:
                wrong.append(f"entry {entry.id}: the file {name!r} {problem}")
            else:
                files[place / name] = content
        if (place / FILE).exists() and not overwrite:
            wrong.append(f"{place / FILE} exists already; name another folder, or overwrite it")
        planned[place] = files
    if wrong:
        raise ConfigError(wrong)
    for place, files in planned.items():
        for path, data in files.items():
            for above in [p for p in (path, *path.parents) if p == place or place in p.parents]:
                if above.is_symlink():
                    raise ConfigError(f"{above} is a link; a skill is written to files of its own: remove it")
            write_whole(path, data)
    return list(planned)


def _free_name(entry: Entry, taken: set[str]) -> str:
    """A name as the form wants it: lower case letters, digits, single hyphens, at most 64."""
    given = entry.body.get("name")
    words = re.findall(r"[a-z0-9]+", (given if isinstance(given, str) else entry.key or entry.text).lower())
    name = "-".join(words)[:LONGEST_NAME].strip("-") or entry.kind
    return name if name not in taken else f"{name[: LONGEST_NAME - 17].strip('-')}-{entry.id}"


def _description(entry: Entry) -> str:
    line = " ".join(entry.key.split()) or " ".join(entry.text.split())
    return line if len(line) <= LONGEST_DESCRIPTION else line[: LONGEST_DESCRIPTION - 1] + "…"


def _files_of(entry: Entry) -> dict[str, bytes]:
    files = entry.body.get("files", {})
    if entry.kind != "skill" or not isinstance(files, Mapping):
        return {}
    found: dict[str, bytes] = {}
    for name, content in files.items():
        try:
            found[str(name)] = (
                content.encode("utf-8")
                if isinstance(content, str)
                else base64.b64decode(content["base64"], validate=True)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"entry {entry.id}: the file {name!r} must be text, or an object with 'base64'; got {content!r:.40}"
            ) from error
    return found


def _unsafe(name: str) -> str | None:
    """Why a file's name may not be written, on any system; None for a plain path below the folder."""
    path = PurePosixPath(name)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or path.is_absolute():
        return "is an absolute path; expected one below the skill's folder"
    if "\\" in name or any(ord(c) < 32 for c in name):
        return "has a backslash or a control character; expected a path with forward slashes"
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "leads out of the skill's folder, or names none; expected a path like scripts/run.py"
    return "would replace SKILL.md itself" if name.lower() == FILE.lower() else None


# ----------------------------------------------------------------------------------------------------------------- in


def import_skills(folder: Path, *, scope: Scope | None = None, trust: Trust | None = "imported") -> Imported:
    """The skills of a folder: of itself, where it holds a SKILL.md, else of the folders in it.

    ``scope`` is whose they become; None takes the one that their metadata names, if any. ``trust`` is what they are
    marked with. Raises DataError with everything that is wrong, and then gives none: no SKILL.md, no name or
    description, a link, files of more than a mebibyte.
    """
    if trust is not None and trust not in TRUSTS:
        raise ConfigError(unknown_name("trust", str(trust), TRUSTS))
    yaml = _yaml()
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name one that holds {FILE}, or folders that do")
    whole = (folder / FILE).exists()
    places = [folder] if whole else sorted(p for p in folder.iterdir() if (p / FILE).exists())
    if not places:
        raise DataError(f"there is no {FILE} in {folder}, nor in a folder directly below it")
    entries: dict[str, Entry] = {}
    wrong: list[str] = []
    for place in places:
        try:
            entry = marked(_skill(place, scope, yaml), trust or "imported")
            entries[entry.id] = entry
        except (ValueError, OSError) as error:
            wrong.append(f"{place}: {error}")
    if wrong:
        raise DataError("no skill was imported:\n  " + "\n  ".join(wrong))
    return Imported(entries=tuple(entries.values()))


def _skill(place: Path, scope: Scope | None, yaml: Any) -> Entry:
    """One folder as an entry. Raises ValueError with what is wrong."""
    if place.is_symlink() or (place / FILE).is_symlink():
        raise ValueError("it is a link; copy the folder itself")
    files = _files_in(place)
    front, text = _parted(place / FILE, yaml)
    name, description = (front.pop(n, None) for n in ("name", "description"))
    for what, value in (("name", name), ("description", description)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"the front matter of {FILE} needs a line '{what}: …'; got {value!r}")
    metadata = front.pop("metadata", {})
    metadata = metadata if isinstance(metadata, dict) else {"metadata": metadata}
    kind: Kind = "skill"
    if metadata.get("kind") in ("reflection", "note", "case", "subtask", "tool") and not files:
        kind = metadata["kind"]
    named = Scope(**{n: str(metadata.get(f"scope-{n}", "")) for n in ("agent", "user", "task", "session")})
    ours = {"kind", *(f"scope-{n}" for n in vars(named))}
    rest = {**front, **{n: v for n, v in metadata.items() if n not in ours}}
    body = ({"name": name} if kind == "skill" else {}) | ({"front": rest} if rest else {})
    body |= {"files": files} if files else {}
    entry = Entry(kind=kind, key=description, text=text, scope=scope or named, trust="imported", body=body)
    if found := problems(entry):
        raise ValueError("; ".join(found))
    return entry


def _parted(path: Path, yaml: Any) -> tuple[dict[str, Any], str]:
    """Front matter, all of it text, and what stands below it."""
    try:
        whole = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{FILE} is no UTF-8 text (byte {error.start})") from error
    whole = whole.replace("\r\n", "\n")
    match = _FRONT.match(whole)
    if match is None:
        raise ValueError(f"{FILE} must begin with front matter: a line '---', name and description, a line '---'")
    head = match[1] or ""
    try:
        # An alias can stand for itself a million times over.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(head, Loader=yaml.BaseLoader)):
            raise ValueError(f"the front matter of {FILE} uses an alias (*name); write the text out")
        front = yaml.load(head, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"the front matter of {FILE} is no YAML: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(front, dict):
        raise ValueError(f"the front matter of {FILE} must be lines 'name: …'; got {head[:40]!r}")
    text = whole[match.end() :]
    return front, text.removeprefix("\n").removesuffix("\n")


def _files_in(place: Path) -> dict[str, Any]:
    """The files beside SKILL.md by their path, as text where they are text. Hidden ones are not the skill's."""
    found: dict[str, Any] = {}
    size = 0
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_symlink():
            raise ValueError(f"{name} is a link; a skill may hold only files of its own")
        if any(part.startswith(".") for part in name.split("/")) or path.is_dir() or name == FILE:
            continue
        if not path.is_file():
            raise ValueError(f"{name} is no plain file")
        if (problem := _unsafe(name)) is not None:
            raise ValueError(f"the file {name!r} {problem}")
        size += path.stat().st_size
        if size > LARGEST_FILES_BYTES:
            raise ValueError(f"its files have more than {LARGEST_FILES_BYTES} bytes together, with {name}")
        data = path.read_bytes()
        try:
            found[name] = data.decode("utf-8")
        except UnicodeDecodeError:
            found[name] = {"base64": base64.b64encode(data).decode("ascii")}
    return found
