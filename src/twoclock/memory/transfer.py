"""Entries out to a file and in from one: JSONL, one entry a line, with provenance, scope and measured effect.

A round trip is exact. A file that comes in is checked whole before anything is given back, so that nothing is ever
half imported; what comes in is marked ``imported``, whatever it says of itself, unless the caller vouches for the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError, DataError, unknown_name
from twoclock.hashing import canonical_json
from twoclock.memory.entries import effect_of, entry_of, entry_to_json, problems, require_proper
from twoclock.memory.records import TRUSTS, Effect, Entry, Scope, Trust

__all__ = ["Imported", "export_jsonl", "import_jsonl", "jsonl_line", "marked", "write_whole"]

ENTRY_FIELDS = frozenset(f.name for f in fields(Entry))
EFFECT_FIELDS = tuple(f.name for f in fields(Effect))
SCOPE_FIELDS = tuple(f.name for f in fields(Scope))
LARGEST_SUM = 1e15
NAMED = 20
"""Of more bad lines than this only the count is told."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a file holds."""

    entries: tuple[Entry, ...]
    effects: Mapping[str, Effect] = field(default_factory=dict)
    """By entry id; only of entries that were measured."""


def jsonl_line(entry: Entry, effect: Effect | None = None) -> str:
    """One entry as a line without its end. Raises ConfigError for an entry that is not proper."""
    data = {"id": require_proper(entry).id, **entry_to_json(entry)}
    if effect is not None and effect != Effect():
        data["effect"] = {name: getattr(effect, name) for name in EFFECT_FIELDS}
    return canonical_json(data)


def export_jsonl(
    path: Path, entries: Iterable[Entry], effects: Mapping[str, Effect] | None = None, *, overwrite: bool = False
) -> int:
    """Writes the entries, in their order, as a file that is whole or not there; gives their number. Raises ConfigError
    where the file exists and is not to be overwritten."""
    lines = [jsonl_line(entry, (effects or {}).get(entry.id)) + "\n" for entry in entries]
    if path.exists() and (path.is_dir() or not overwrite):
        what = "is a folder; name a file" if path.is_dir() else "exists already; name another file, or overwrite it"
        raise ConfigError(f"{path} {what}")
    write_whole(path, "".join(lines).encode("utf-8"))
    return len(lines)


def write_whole(path: Path, data: bytes) -> None:
    """A file with this content, or none: it is written beside its place and moved there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def marked(entry: Entry, trust: Trust | None) -> Entry:
    """The entry with this trust; None keeps its own. What is quarantined stays so: moving a file about is no reason to
    show it."""
    return entry if trust is None or entry.trust == "quarantined" else replace(entry, trust=trust)


def import_jsonl(path: Path, *, trust: Trust | None = "imported") -> Imported:
    """The entries and effects of a file. ``trust`` is what they are marked with; None believes the file.

    Empty lines are passed over, and a line that stands twice counts once. Raises DataError that names every bad line
    by its number; then nothing is imported.
    """
    if trust is not None and trust not in TRUSTS:
        raise ConfigError(unknown_name("trust", str(trust), TRUSTS))
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; name a JSONL file of entries") from error
    found: dict[str, tuple[int, Entry, Effect]] = {}
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry, effect = _read(line)
            earlier = found.setdefault(entry.id, (number, entry, effect))
            if earlier[1:] != (entry, effect):
                raise ValueError(f"it is the entry of line {earlier[0]}, with something else known about it; keep one")
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        more = f"\n  … and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        listed = "\n  ".join(wrong[:NAMED])
        raise DataError(f"{path} was not imported; of its {len(lines)} lines {len(wrong)} are wrong:\n  {listed}{more}")
    return Imported(
        entries=tuple(marked(entry, trust) for _, entry, _ in found.values()),
        effects={entry.id: effect for _, entry, effect in found.values() if effect != Effect()},
    )


# ---------------------------------------------------------------------------------------------------------- one line


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field '{twice}' stands twice")
    return dict(pairs)


def _read(line: bytes) -> tuple[Entry, Effect]:
    """One line as entry and effect. Raises ValueError with all that is wrong."""
    try:
        data = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error.msg}, character {error.pos + 1})") from error
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not isinstance(data, dict):
        raise ValueError(f"expected one JSON object, an entry; got {line[:40].decode('utf-8', 'replace')!r}")
    claimed, effect = data.pop("id", None), _effect(data.pop("effect", None))
    entry = _entry(data)
    if claimed is not None and claimed != entry.id:
        raise ValueError(
            f"what it says has the id {entry.id}, not {claimed!r}: the line was changed; remove its 'id', and its "
            "'effect', which was measured for another text"
        )
    return entry, effect


def _entry(data: dict[str, Any]) -> Entry:
    wrong = [unknown_name("field", name, ENTRY_FIELDS | {"id", "effect"}) for name in data if name not in ENTRY_FIELDS]
    wrong += [f"the field '{name}' is missing" for name in ("kind", "key", "text") if name not in data]
    scope = data.get("scope", {})
    if not isinstance(scope, dict):
        wrong.append(f"scope must be an object; got {scope!r:.40}")
    else:
        wrong += [unknown_name("field of scope", name, SCOPE_FIELDS) for name in scope if name not in SCOPE_FIELDS]
    for name in ("provenance", "seen"):
        if not isinstance(data.get(name, []), list):
            wrong.append(f"{name} must be a list of names; got {data[name]!r:.40}")
    if not isinstance(data.get("body", {}), dict):
        wrong.append(f"body must be an object; got {data['body']!r:.40}")
    if wrong:
        raise ValueError("; ".join(wrong))
    entry = entry_of(data)
    if wrong := problems(entry):
        raise ValueError("; ".join(wrong))
    return entry


def _effect(data: Any) -> Effect:
    if data is None:
        return Effect()
    if not isinstance(data, dict) or set(data) != set(EFFECT_FIELDS):
        raise ValueError(f"an effect is an object of {', '.join(EFFECT_FIELDS)}; got {data!r:.60}")
    for name, value in data.items():
        count = name in ("shown", "held")
        if isinstance(value, bool) or not isinstance(value, int if count else int | float):
            raise ValueError(f"{name} of the effect must be a {'count' if count else 'number'}; got {value!r:.40}")
        if value < 0 and not name.endswith("_sum"):
            raise ValueError(f"{name} of the effect cannot be below 0; got {value}")
        if not abs(value) <= LARGEST_SUM:
            raise ValueError(f"{name} of the effect is beyond all outcomes: {value!r:.40}")
    effect = effect_of([data[name] for name in EFFECT_FIELDS])
    for name in ("shown", "held"):
        count, total, squares = (getattr(effect, f"{name}{part}") for part in ("", "_sum", "_squares"))
        # Cauchy and Schwarz: sums that no outcomes have would make a verdict out of nothing.
        if total * total > count * squares * (1 + 1e-9) + 1e-9 or (count == 0 and squares > 0):
            raise ValueError(f"no {count} outcomes have the sum {total} and the sum of squares {squares}")
    return effect
