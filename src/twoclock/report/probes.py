"""The probes on a run's page: which files stand behind it, what the template needs of them, and their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from twoclock.errors import DataError
from twoclock.probe_file import PROBES, find_probes, interval_of, read_probe
from twoclock.report import formats
from twoclock.report.probe_figures import PROMPTING, probe_drawings
from twoclock.types import Snapshot

__all__ = ["ProbePages", "figure_html", "read_probes"]

OOD_FIGURES = (("base", "base", False), ("live", "live", False), ("change", "change", True),
               ("did", "DiD", True), ("transfer", "transfer", False),
               ("stale_live", "stale answers", False), ("unparsed_live", "unreadable", False))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProbePages:
    """The results by probe, and of each the file that it stands in."""

    results: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Mapping[str, Any]]
    """By probe, of its last file: ``path``, ``round``, ``cost``, ``states``, ``is_current``."""
    drawings: Mapping[str, go.Figure]
    not_probed: Mapping[str, str]
    """Why a probe has no results, where the newest file says so."""

    @property
    def context(self) -> dict[str, Any]:
        """What the template asks for."""
        return {
            "results": self.results,
            "files": self.files,
            "not_probed": self.not_probed,
            "prompting": PROMPTING,
            "ood_figures": OOD_FIGURES,
        }


def read_probes(run: Path, head: Snapshot, given: Sequence[Path] | None) -> ProbePages:
    """The last results of each probe: of the files given, or where there are None of those found beside the run.

    DataError for a given file that is no probe, or that lacks what its probe must have."""
    paths = list(find_probes(run) if given is None else given)
    results: dict[str, Mapping[str, Any]] = {}
    files: dict[str, Mapping[str, Any]] = {}
    missing: dict[str, str] = {}
    for path in paths:
        found = read_probe(path)
        for name, result in found["results"].items():
            if result.get("stopped") and _is_whole(name, found, results, files):
                continue  # what a small budget left of a later probe does not hide a whole one
            earlier = _same_states(name, found, results, files)
            results[name] = {**result, "tasks": {**earlier["tasks"], **result["tasks"]}} if earlier else result
            missing.pop(name, None)
            files[name] = {
                "path": f"{files[name]['path']}, {path}" if earlier else str(path),
                "round": found["round"],
                "cost": found.get("cost") or {},
                "states": found.get("states"),
                "is_current": found.get("states") == dict(head.states),
            }
        missing |= {n: why for n, why in (found.get("not_probed") or {}).items() if n not in results}
    try:
        drawings = probe_drawings(results)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(
            f"a probe file lacks what the page shows ({type(problem).__name__}: {problem}): "
            f"{', '.join(map(str, paths))}; probe the run again"
        ) from None
    ordered = {name: results[name] for name in PROBES if name in results}
    return ProbePages(results=ordered, files=files, drawings=drawings, not_probed=missing)


def _is_whole(
    name: str,
    found: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, Mapping[str, Any]],
) -> bool:
    """Whether there are earlier results of the same states that no budget cut short."""
    return name in results and not results[name].get("stopped") and files[name]["states"] == found.get("states")


def _same_states(
    name: str,
    found: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, Mapping[str, Any]],
) -> Mapping[str, Any] | None:
    """Earlier results of the same states by task, such as those of ``--ood --task A`` before ``--ood --task B``: they
    stand beside the later ones, which count where both have a task."""
    earlier = results.get(name)
    if earlier is None or files[name]["states"] != found.get("states"):
        return None
    return earlier if "tasks" in earlier and "tasks" in found["results"][name] else None


def figure_html(plain: Mapping[str, Any] | None, digits: int = 2, *, sign: bool = False, n: bool = True) -> Markup:
    """A figure of a probe's file in HTML, with its n, and its seeds where training runs were counted."""
    value = interval_of(plain)
    if not value.is_known:
        return Markup('<span class="none">–</span>')
    if value.method in ("identical", "exact"):
        return Markup('<span class="none">0 exactly</span>')
    if value.seeds <= 1 or not n:
        return formats.interval(value, digits, sign=sign, n=n)
    # Where the seeds themselves are what is counted, once is enough.
    counted = f"{value.seeds} seeds" if value.n == value.seeds else f"n = {value.n}, {value.seeds} seeds"
    return formats.interval(value, digits, sign=sign, n=False) + Markup(' <span class="n">{}</span>').format(counted)
