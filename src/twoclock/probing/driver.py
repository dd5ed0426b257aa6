"""One probe of a run: what it allows, what that will cost, the measurements, and proof that the run was left alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twoclock.build import open_session
from twoclock.errors import ConfigError, unknown_name
from twoclock.probe_file import FORMAT, PROBES, VERSION
from twoclock.probing import decomposition, drift, ood, plasticity, retention
from twoclock.probing.context import ProbeContext
from twoclock.probing.settings import Estimate, ProbeSettings
from twoclock.store import RunStore

__all__ = ["fingerprint", "probe_run"]

WORKING = ("run.lock", "ledger.sqlite-wal", "ledger.sqlite-shm")
"""Files that belong to whoever has the run open, and say nothing of it once nobody has."""


@dataclass(frozen=True)
class _Probe:
    obstacle: Callable[[ProbeContext], str | None]
    estimate: Callable[[ProbeContext], Estimate]
    measure: Callable[[ProbeContext], dict[str, Any]]


TABLE: Mapping[str, _Probe] = {
    "drift": _Probe(drift.obstacle, drift.estimate, drift.measure),
    "retention": _Probe(retention.obstacle, retention.estimate, retention.measure),
    "plasticity": _Probe(plasticity.obstacle, plasticity.estimate, plasticity.measure),
    "ood": _Probe(ood.obstacle, ood.estimate, ood.measure),
    "decomposition": _Probe(decomposition.obstacle, decomposition.estimate, decomposition.measure),
}
RUNNING_ORDER = ("drift", "retention", "decomposition", "ood", "plasticity")
"""The cheap ones first, so that a budget ends in the dearest."""


def probe_run(
    path: Path, settings: ProbeSettings, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Measures the run in ``path`` and returns the probe file's content (:mod:`twoclock.probe_file`).

    ``progress`` is told the cost first, then each step. Raises ConfigError where nothing that was asked for can be
    measured; what a budget cut short is a result that says so. The run is opened to read and never written.
    """
    path = Path(path)
    _check_overrides(path, settings)
    before = fingerprint(path)
    session = open_session(path, progress=progress, overrides=settings.overrides)
    with session.store as store:
        context = ProbeContext(session, settings, progress)
        _check_tasks(context)
        digest, started = store.digest(), time.perf_counter()
        wanted = [name for name in RUNNING_ORDER if name in (settings.probes or PROBES)]
        try:
            missing = {name: why for name in wanted if (why := TABLE[name].obstacle(context))}
            ready = [name for name in wanted if name not in missing]
            if not ready:
                raise ConfigError([f"no {name}: {why}" for name, why in missing.items()])
            for name, why in missing.items():
                progress(f"no {name}: {why}")
            estimates = {name: TABLE[name].estimate(context) for name in ready}
            _announce(estimates, settings.budget, progress)
            results = {name: TABLE[name].measure(context) for name in ready}
            for name in [name for name, found in results.items() if found["stopped"] and _is_empty(found)]:
                missing[name] = f"the budget was spent before it began: {results.pop(name)['stopped']}"
        finally:
            ood.close(context)
        return {
            "format": FORMAT,
            "version": VERSION,
            "run": str(path),
            "name": context.parts.config.run.name,
            "model": store.environment.get("model"),
            "round": context.head.round,
            "rounds_run": context.head.next_round - 1,
            "rounds_planned": context.parts.stream.num_rounds,
            "states": dict(context.head.states),
            "digest": digest,
            "at": time.time(),
            "settings": {**asdict(settings), "files": {k: str(v) for k, v in settings.files.items()}},
            "estimate": {name: value.as_dict() for name, value in estimates.items()},
            "budget": settings.budget,
            "cost": {**asdict(context.meter.spent), "seconds": time.perf_counter() - started},
            "stopped": {name: found["stopped"] for name, found in results.items() if found["stopped"]},
            "not_probed": missing,
            # The digest too: what another process writes may stand in the ledger's log, which no fingerprint holds.
            "run_unchanged": fingerprint(path) == before and store.digest() == digest,
            "results": {name: results[name] for name in PROBES if name in results},
        }


def _is_empty(found: Mapping[str, Any]) -> bool:
    """Whether nothing was measured. What the run had recorded counts: the matrix of retention is a result."""
    return not any(found.get(name) for name in ("records", "matrix", "tasks", "curves"))


def fingerprint(run: Path) -> str:
    """One hash over a run's folder: the content of its files, of its blobs their names, which are hashes, and sizes."""
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(p for p in Path(run).rglob("*") if p.is_file() and p.name not in WORKING):
        place = file.relative_to(run)
        found.update(f"{place.as_posix()}\0{file.stat().st_size}\0".encode())
        if place.parts[0] != "blobs":
            found.update(file.read_bytes())
    return found.hexdigest()


def _check_overrides(path: Path, settings: ProbeSettings) -> None:
    """Before the parts are built: a changed task would be another run's, whatever else is wrong with it."""
    with RunStore.open(path) as store:
        recorded = store.config.get("tasks", {})
    named = {text.partition("=")[0].split(".")[1].strip() for text in settings.overrides if "." in text}
    if changed := sorted(named & set(recorded)):
        raise ConfigError(
            [f"--set changes task '{name}', which the run has; add a task under another name" for name in changed]
        )


def _check_tasks(context: ProbeContext) -> None:
    known = context.parts.tasks
    if problems := [unknown_name("task", name, known) for name in context.settings.tasks if name not in known]:
        raise ConfigError(problems)


def _announce(estimates: Mapping[str, Estimate], budget: int | None, say: Callable[[str], None]) -> None:
    for name, value in estimates.items():
        say(f"cost of {name}: {_words(value)}")
    whole = Estimate()
    for value in estimates.values():
        whole += value
    say(f"cost in all: {_words(whole)}")
    if budget is not None:
        enough = "which is enough" if whole.rollouts <= budget else "so a part will be left out"
        say(f"budget: {budget:,} rollouts, {enough}")


def _words(value: Estimate) -> str:
    if value.rollouts == 0 and not value.tokens:
        return "nothing, it is recorded"
    tokens = f", some {value.tokens:,} tokens" if value.tokens else ""
    if value.seconds is None:
        return f"about {value.rollouts:,} rollouts{tokens} (the run has recorded no speed)"
    minutes = f"{value.seconds / 60:.1f} min" if value.seconds >= 60 else f"{value.seconds:.0f} s"
    return f"about {value.rollouts:,} rollouts{tokens}, {minutes} at the speed that the run recorded"
