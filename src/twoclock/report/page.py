"""One HTML page from one run: puts the tables and figures into the template, and writes the file.

The page needs no network: plotly's script stands in it, once. What comes from the run (prompts, answers, names) is
untrusted: the template escapes all of it, data for scripts cannot close their element, and the page's own policy lets
no script run but the two whose hashes it names, and nothing load from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from twoclock.errors import ConfigError, DataError, StoreError, TwoclockError
from twoclock.measure import DriftSummary, summarise_drift
from twoclock.report import figures, formats, heading, tables
from twoclock.report.curve import reward_figure
from twoclock.report.glossary import METRICS, WORDS
from twoclock.report.probes import ProbePages, figure_html, read_probes
from twoclock.report.reading import RunData, part, read_run
from twoclock.store import RunStore
from twoclock.store.blobs import write_atomically
from twoclock.store.shifts import shifts_of

if TYPE_CHECKING:
    from twoclock.explain import Explanations

__all__ = ["Explain", "render", "write_report"]

Explain = Callable[[RunStore], "Explanations"]
"""What explains the lessons of a run; it needs the run's channels, which a page does not build."""

MAX_LESSONS = 200
"""Lessons on the page, live ones first; a memory may have had thousands."""
MAX_TEXT = 6_000
"""Characters of one sampled prompt or answer on the page; writes of the fast clock are never cut."""


def write_report(
    run_path: Path, out: Path | None = None, *, probes: Sequence[Path] | None = None, explain: Explain | None = None
) -> Path:
    """Render the run in ``run_path`` into the file ``out`` (``report.html`` in the run's folder), and return its path.

    ``probes`` are files of probes to show; None takes those that lie beside the run. ``explain`` fills the section on
    lessons; without it the page says how to ask. The file is replaced whole or not at all. StoreError when the run
    cannot be read or the file not be written, ConfigError when ``out`` is a folder, DataError for a file that is no
    probe.
    """
    run_path = Path(run_path)
    target = run_path / "report.html" if out is None else Path(out)
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; give a file for the report, such as {target / 'report.html'}")
    with RunStore.open(run_path) as store:
        page = render(store, probes=probes, explain=explain)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {target.parent} for the report: {error.strerror or error}") from error
    temporary = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    write_atomically(target, page.encode("utf-8", "backslashreplace"), temporary)
    return target


def render(store: RunStore, *, probes: Sequence[Path] | None = None, explain: Explain | None = None) -> str:
    """The page of a run, as text. Works on runs that are still going on; says what was not measured and how to measure
    it. StoreError for a run that never began."""
    data = read_run(store)
    lessons = _lessons(store, explain)
    probed = read_probes(store.path, data.head, probes)
    try:
        return _rendered(data, probed, lessons)
    except UndefinedError as problem:
        if not probed.results:
            raise
        files = ", ".join(dict.fromkeys(str(file["path"]) for file in probed.files.values()))
        raise DataError(f"a probe file lacks what the page shows ({problem}): {files}; probe the run again") from None


def _lessons(store: RunStore, explain: Explain | None) -> dict[str, Any]:
    """The run's lessons, or why they are not there: a page without them is still a page."""
    if explain is None:
        return {"found": None, "problem": "Lessons are not explained on this page."}
    try:
        found = explain(store)
    except TwoclockError as problem:
        return {"found": None, "problem": f"The lessons cannot be explained: {problem}."}
    if found.problem:
        return {"found": None, "problem": f"Nothing to explain: {found.problem}."}
    return {"found": found, "problem": ""}


def _rendered(data: RunData, probed: ProbePages, lessons: Mapping[str, Any]) -> str:
    scripts = {"plotly": _plotly_js(), "page": _asset("report.js")}
    return (
        _environment()
        .get_template("report.html")
        .render(
            **_context(data, probed, lessons),
            style=Markup(_asset("report.css")),
            scripts={name: Markup(text) for name, text in scripts.items()},
            policy=_policy(list(scripts.values())),
        )
    )


# ------------------------------------------------------------------------------------------------- what the page says


def _context(data: RunData, probed: ProbePages, lessons: Mapping[str, Any]) -> dict[str, Any]:
    """All values of the template."""
    splits = tables.split_rows(data)
    retention = tables.retention(data)
    drift = summarise_drift(data.drift)
    costs = tables.cost_rows(data)
    return {
        "data": data,
        "name": part(data.config, "run", "name") or Path(data.path).name,
        "status": heading.status(data),
        "facts": heading.facts(data),
        "cards": heading.cards(data, splits, retention, drift, costs),
        "config_text": json.dumps(data.config, indent=2, ensure_ascii=False),
        "commands": {
            verb: f"twoclock {verb} {shlex.quote(data.path)}"
            for verb in ("eval", "resume", "log", "rollback", "probe", "why")
        },
        "rolled_back": data.head.cause if data.head.cause.startswith("rollback") else "",
        "evaluated_at": data.evaluations[-1].round if data.evaluations else None,
        "splits": splits,
        "prompts": _learned_prompts(data, splits),
        "retention": retention,
        "drift": drift,
        "drift_budget": part(data.config, "allocator", "drift"),
        "costs": costs,
        "channels": list(dict.fromkeys(entry.channel for entry in data.entries)),
        "actions": list(dict.fromkeys(entry.action for entry in data.entries)),
        "metrics": METRICS,
        "words": WORDS,
        "cell_names": tables.CELL_NAMES,
        "probes": probed.context,
        "lessons": lessons,
        "max_lessons": MAX_LESSONS,
        "figures": {
            **_figures(data, splits, retention, drift, costs),
            **{name: script_json(figure.to_json()) for name, figure in probed.drawings.items()},
        },
        "max_text": MAX_TEXT,
    }


def _figures(
    data: RunData,
    splits: Sequence[tables.SplitRow],
    retention: tables.Retention,
    drift: Sequence[DriftSummary],
    costs: Sequence[tables.CostRow],
) -> dict[str, Markup]:
    """The figures that there is something to draw in, as JSON."""
    drawn: dict[str, Any] = {}
    if data.bins or data.evaluations:
        drawn["reward"] = reward_figure(data)
    if any(split.table for split in splits):
        drawn["split"] = figures.split_figure(splits)
    if retention.matrix is not None:
        drawn["retention"] = figures.retention_figure(retention)
    if drift:
        drawn["drift_live_base"] = figures.drift_figure(drift, "live_base", data.tasks)
        drawn["drift_base_live"] = figures.drift_figure(drift, "base_live", data.tasks)
    if costs[-1].cost.seconds:
        drawn["cost"] = figures.cost_figure(costs)
    if costs[-1].cost.tokens:
        drawn["tokens"] = figures.token_figure(costs)
    return {name: script_json(figure.to_json()) for name, figure in drawn.items()}


def _learned_prompts(data: RunData, splits: Sequence[tables.SplitRow]) -> dict[str, Mapping[str, Any]]:
    """What was shown to the model in each task's deployed cell, where the store has it."""
    found: dict[str, Mapping[str, Any]] = {}
    for split in splits:
        deployed = split.table.evaluations.get(("live", "learned")) if split.table else None
        conditioning = data.conditionings.get(deployed.conditioning_id) if deployed else None
        if conditioning and (conditioning["system"] or conditioning["exemplars"] or conditioning.get("shifts")):
            shifts = [str(shift) for shift in shifts_of(conditioning.get("shifts", ()))]
            found[split.task] = {**conditioning, "shifts": shifts}
    return found


# ------------------------------------------------------------------------------------------------------ how it is made


def script_json(text: str) -> Markup:
    """JSON that can stand in a script element: nothing in it can end the element or begin a comment."""
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    for character, escaped in escapes.items():
        text = text.replace(character, escaped)
    return Markup(text)


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: these inline scripts by their hashes, inline style, no other source of anything."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    # A browser hashes the text after it has made all line ends alike.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _asset(name: str) -> str:
    return resources.files("twoclock.report").joinpath(name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("twoclock", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ci=formats.interval,
        count=formats.count,
        amount=formats.amount,
        duration=formats.duration,
        number=formats.number,
        cost=formats.cost_words,
        cut=_cut,
        fig=figure_html,
    )
    return environment


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\n… ({len(text) - MAX_TEXT:,} more characters)"
