"""The file of a probe's results: one JSON object, kept beside a run and never in it, with its format and its checks.

Written by ``twoclock probe``; read by the report and by ``twoclock check``. Its keys stand in ``docs/probes.md``.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError, DataError
from twoclock.measure.intervals import Interval
from twoclock.store.blobs import write_atomically

__all__ = [
    "FORMAT",
    "PROBES",
    "VERSION",
    "check_place",
    "default_path",
    "find_probes",
    "interval_of",
    "read_probe",
    "write_probe",
]

FORMAT, VERSION = "twoclock-probe", 1
PROBES = ("drift", "retention", "plasticity", "ood", "decomposition")
"""The sections that a file may have, in the order in which they are measured and shown."""


def folder_of(run: Path) -> Path:
    """Where a run's probes are kept: ``NAME-probes`` beside the run's folder."""
    run = Path(run).resolve()
    return run.parent / f"{run.name}-probes"


def default_path(run: Path, probes: Iterable[str], round: int) -> Path:
    """Where the results of these probes go unless the user names a file: a name that is not taken, as earlier ones, of
    another task say, took their time too."""
    names = [name for name in PROBES if name in set(probes)]
    title = "all" if len(names) == len(PROBES) else "+".join(names) or "nothing"
    places = (folder_of(run) / f"{title}-round-{round}{f'-{i}' if i > 1 else ''}.json" for i in itertools.count(1))
    return next(place for place in places if not place.exists())


def find_probes(run: Path) -> list[Path]:
    """The probe files beside a run, oldest first by when they were measured; files that are no probes are left out."""
    found = []
    for path in sorted(folder_of(run).glob("*.json")):
        try:
            found.append((read_probe(path)["at"], path))
        except DataError:
            continue
    return [path for _, path in sorted(found, key=lambda pair: pair[0])]


def check_place(path: Path) -> None:
    """ConfigError unless a file can be written there: asked before measuring, which may take hours."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a file")
    made = [place for place in path.parents if not place.exists()]  # innermost first
    probe = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        for place in made:
            place.rmdir()
    except OSError as error:
        raise _unwritable(path, error) from error


def write_probe(found: Mapping[str, Any], path: Path) -> Path:
    """Replaces the file whole or not at all. ConfigError where it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_atomically(path, text.encode("utf-8", "backslashreplace"), _temporary(path))
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"the results cannot be written to {path}: {error.strerror or error}; name another file")


def read_probe(path: Path) -> dict[str, Any]:
    """The results in a file. DataError for one that is missing, damaged, no probe, or of another version."""
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no probe file {path}; make one: twoclock probe RUN --out {path}") from None
    except OSError as problem:
        raise DataError(f"the probe file {path} cannot be read: {problem.strerror or problem}") from None
    except ValueError as problem:
        raise DataError(f"{path} is no probe file, or is damaged: it is no JSON ({problem})") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f'{path} is no probe file: it lacks "format": "{FORMAT}"; \'twoclock probe\' writes them')
    if found.get("version") != VERSION:
        raise DataError(
            f"the probe file {path} has version {found.get('version')!r}; this twoclock reads version {VERSION}: "
            "probe the run again"
        )
    problems = [
        f"'{name}' is missing or no {kind.__name__}"
        for name, kind in (
            ("run", str),
            ("round", int),
            ("digest", str),
            ("at", float),
            ("states", dict),
            ("results", dict),
        )
        if not isinstance(found.get(name), kind)
    ]
    results = found.get("results")
    for name, result in (results if isinstance(results, dict) else {}).items():
        if name not in PROBES:
            problems.append(f"unknown probe '{name}'")
        elif not isinstance(result, dict):
            problems.append(f"the results of '{name}' are no object")
    if problems:
        raise DataError(f"the probe file {path} is damaged: {'; '.join(problems)}; probe the run again")
    return found


def interval_of(plain: Mapping[str, Any] | None) -> Interval:
    """An interval from its plain form; None, and ends that JSON has no number for, are unknown."""
    if plain is None:
        return Interval(math.nan, math.nan, math.nan, 0)

    def number(name: str) -> float:
        value = plain.get(name)
        return math.nan if value is None else float(value) + 0.0  # no negative zero

    return Interval(
        number("estimate"),
        number("low"),
        number("high"),
        int(plain.get("n", 0)),
        float(plain.get("level", 0.95)),
        str(plain.get("method", "")),
        int(plain.get("seeds", 1)),
    )
