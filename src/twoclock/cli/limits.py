"""What ``check`` holds to its limits: the figures that a run has recorded, or that a probe's file has, line by line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twoclock.cli.output import table
from twoclock.cli.probe_words import figure
from twoclock.errors import ConfigError, DataError, TwoclockError

if TYPE_CHECKING:
    from twoclock.measure import Interval
    from twoclock.store import RunStore

__all__ = ["Limits", "held_limits", "in_words"]

Files = Sequence[tuple[Path, Mapping[str, Any]]]
Line = dict[str, Any]
WAYS = (("live_base", "KL(live‖base)"), ("base_live", "KL(base‖live)"))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """None holds nothing."""

    max_forgetting: float | None = None
    max_drift: float | None = None
    min_retention: float | None = None
    min_plasticity: float | None = None
    max_ood_gap: float | None = None

    def check(self) -> None:
        """ConfigError with everything that is wrong."""
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        options = {name: f"--{name.replace('_', '-')}" for name in given}
        problems = [f"{options[n]} {v}: expected a finite number" for n, v in given.items() if not math.isfinite(v)]
        problems += [
            f"{options[n]} {given[n]}: {why}"
            for n, bad, why in (
                ("max_forgetting", lambda v: not -1 <= v <= 1, "a difference of scores lies between -1 and 1"),
                ("max_drift", lambda v: v < 0, "a divergence is not negative"),
                ("min_retention", lambda v: not 0 <= v <= 1, "a score lies between 0 and 1"),
                ("min_plasticity", lambda v: v < 0, "a ratio of scores is not negative"),
                ("max_ood_gap", lambda v: not -2 <= v <= 2, "a difference of changes lies between -2 and 2"),
            )
            if n in given and math.isfinite(given[n]) and bad(given[n])
        ]
        if not given:
            problems.append(
                "no limit is given; such as --max-forgetting 0.02 --max-drift 0.1 (all: twoclock check --help)"
            )
        if problems:
            raise ConfigError(problems)


def held_limits(store: RunStore, asked: Limits, files: Files) -> list[Line]:
    """One line a figure and limit, in the order of the options. DataError for a file that lacks what is held."""
    lines: list[Line] = []
    try:
        if asked.max_forgetting is not None:
            lines.append(_forgetting(store, asked.max_forgetting, files))
        if asked.max_drift is not None:
            lines += _drift(store, asked.max_drift, files)
        if asked.min_retention is not None:
            lines += _retention(store, asked.min_retention, files)
        if asked.min_plasticity is not None:
            lines.append(_plasticity(asked.min_plasticity, files))
        if asked.max_ood_gap is not None:
            lines += _ood(store, asked.max_ood_gap, files)
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        if not files or isinstance(problem, TwoclockError):
            raise
        raise DataError(
            f"a probe file lacks what is held ({type(problem).__name__}: {problem}): "
            f"{', '.join(str(path) for path, _ in files)}; probe the run again"
        ) from None
    return lines


def _line(name: str, value: Interval, limit: float, side: str, source: str, reason: str = "") -> Line:
    """One figure held to one limit; ``least`` is ``most`` of the negative."""
    from twoclock.measure import check_limit

    if side == "most":
        verdict = check_limit(name, value, limit).verdict
    else:
        turned = replace(value, estimate=-value.estimate, low=-value.high, high=-value.low)
        verdict = check_limit(name, turned, -limit).verdict
    return {
        "name": name, "limit": limit, "side": side, "verdict": verdict, "value": value.as_dict(), "source": source,
        "reason": reason,
    }  # fmt: skip


def _missing(name: str, limit: float, side: str, reason: str) -> Line:
    from twoclock.probe_file import interval_of

    return _line(name, interval_of(None), limit, side, "", reason)


Probed = tuple[Mapping[str, Any], str]


def _all_probed(files: Files, probe: str) -> list[Probed]:
    """This probe's results in the files that have any, in the order given."""
    return [(found["results"][probe], str(path)) for path, found in files if probe in found["results"]]


def _probed(files: Files, probe: str) -> Probed | None:
    """The last of them."""
    return next(reversed(_all_probed(files, probe)), None)


# ---------------------------------------------------------------------------------------------- the figures, one by one


def _phases(store: RunStore) -> list[str]:
    return [str(phase["task"]) for phase in store.config.get("stream", [])]


def _forgetting(store: RunStore, limit: float, files: Files) -> Line:
    from twoclock.measure import score_matrix, summarise_retention
    from twoclock.probe_file import interval_of

    name = "forgetting F"
    if probed := _probed(files, "retention"):
        if not probed[0]["is_current"]:
            return _missing(name, limit, "most", _stale(store))
        return _line(name, interval_of(probed[0]["summary"]["forgetting"]), limit, "most", probed[1], TWO_PHASES)
    matrix = score_matrix(store.evaluations(), _phases(store) or None)
    if len(matrix.rounds) < 3:
        return _missing(name, limit, "most", TWO_PHASES)
    if dict(store.snapshot_at(matrix.rounds[-1]).states) != dict(store.head().states):
        return _missing(name, limit, "most", _stale(store))
    value = summarise_retention(matrix).forgetting
    return _line(name, value, limit, "most", f"recorded at round {matrix.rounds[-1]}", TWO_PHASES)


TWO_PHASES = "forgetting needs two finished phases with every task evaluated at their ends"


def _stale(store: RunStore) -> str:
    return (
        "the stream's last recorded evaluation is not of the states that are live now; finish the phase, or roll back "
        "to a phase's end"
    )


def _drift(store: RunStore, limit: float, files: Files) -> Iterator[Line]:
    from twoclock.measure import summarise_drift
    from twoclock.probe_file import interval_of

    if probed := _all_probed(files, "drift"):
        # Files may hold other tasks: of each prompt set the last one counts.
        held = {r["prompts"]: (r, file) for found, file in probed for r in found["records"] if r["prompting"] == "none"}
        for record, file in held.values():
            for key, way in WAYS:
                value = interval_of(record[key]["per_token"])
                yield _line(f"{way}, {record['prompts']}", value, limit, "most", file)
        wanted = ["general", *(f"task:{task}" for task in _asked_for(store, files, "drift"))]
        for prompts in (name for name in wanted if name not in held and _is_partial(probed)):
            yield _missing(f"drift, {prompts}", limit, "most", OUT_OF_BUDGET)
        return
    head = store.head()
    slow = {entry.channel for entry in store.entries(action="init") if entry.timescale == "slow"}
    latest = {}
    for record in store.drift():
        states = store.snapshot_at(record.round).states
        if all(states.get(name) == head.states.get(name) for name in slow):
            latest[record.prompts] = record
    if not latest:
        yield _missing(
            "drift", limit, "most",
            f"no drift of the live weights is recorded; measure it: twoclock eval {store.path}, or "
            f"twoclock probe {store.path} --drift and --probe-file",
        )  # fmt: skip
    for found in summarise_drift(list(latest.values())):
        for key, way in WAYS:
            source = f"recorded at round {found.round}"
            yield _line(f"{way}, {found.prompts}", getattr(found, key), limit, "most", source)


def _retention(store: RunStore, limit: float, files: Files) -> Iterator[Line]:
    """The score now of each task that was learned before the last finished phase."""
    from twoclock.measure import task_retention
    from twoclock.probe_file import interval_of

    head = store.head()
    if probed := _probed(files, "retention"):
        rows = [(row["phase"], row["task"], interval_of(row["now"])) for row in probed[0]["phases"]]
        current, source = bool(probed[0]["is_current"]), probed[1]
    else:
        found = task_retention(store.evaluations(), _phases(store) or None)
        rows = [(row.phase, row.task, row.now) for row in found]
        at = {row.round for row in found if row.round is not None}
        current = all(dict(store.snapshot_at(round).states) == dict(head.states) for round in at)
        source = f"recorded at round {max(at)}" if at else ""
    earlier = {task: value for phase, task, value in rows if phase < len(rows)}
    if not earlier or not current:
        reason = "no task has a finished phase before the last finished one" if not earlier else _stale(store)
        yield _missing("retention", limit, "least", reason)
        return
    for task, value in earlier.items():
        yield _line(f"score on {task} now", value, limit, "least", source)


def _plasticity(limit: float, files: Files) -> Line:
    from twoclock.probe_file import interval_of

    name = "plasticity ratio"
    probed = _probed(files, "plasticity")
    if probed is None:
        return _missing(name, limit, "least", "it takes a probe: twoclock probe RUN --plasticity, then --probe-file")
    why = probed[0].get("ratio_note") or probed[0]["stopped"] or "no seed was trained to the end"
    return _line(name, interval_of(probed[0]["ratio"]), limit, "least", probed[1], why)


def _ood(store: RunStore, limit: float, files: Files) -> Iterator[Line]:
    from twoclock.measure.ood_cautions import OUT
    from twoclock.probe_file import interval_of

    probed = _all_probed(files, "ood")
    tasks = {task: (found, file) for result, file in probed for task, found in result["tasks"].items()}
    if not tasks:
        yield _missing("ood gap", limit, "most", "it takes a probe: twoclock probe RUN --ood, then --probe-file")
        return
    for task, (found, file) in tasks.items():
        splits = found["report"]["splits"]
        for variant in (name for name in OUT if name in splits):
            value = interval_of(splits[variant]["figures"]["did"])
            yield _line(f"DiD of {task}, {variant}", value, limit, "most", file, NO_TELLING)
        for variant in (name for name in OUT if name in found["left_out"]):
            yield _missing(f"DiD of {task}, {variant}", limit, "most", OUT_OF_BUDGET)
    without = {task for result, _ in probed for task in result["not_probed"]}
    for task in _asked_for(store, files, "ood"):
        if task not in tasks and task not in without and _is_partial(probed):
            yield _missing(f"DiD of {task}", limit, "most", OUT_OF_BUDGET)


NO_TELLING = "it has no item on which overlooking the change gives another answer"
OUT_OF_BUDGET = "the probe's budget ran out before it"


def _is_partial(probed: Sequence[Probed]) -> bool:
    return any(found["stopped"] for found, _ in probed)


def _asked_for(store: RunStore, files: Files, probe: str) -> list[str]:
    """The tasks that the files' probes were asked for, the stream's where they were asked for none."""
    asked = [found["settings"]["tasks"] or _phases(store) for _, found in files if probe in found["results"]]
    return list(dict.fromkeys(task for tasks in asked for task in tasks))


# ------------------------------------------------------------------------------------------------------------ in words


def in_words(lines: Sequence[Line]) -> str:
    """A table, and under it why something is unknown."""
    rows = [["", "limit", "value", "source"]]
    notes = []
    for line in lines:
        sign = "≤" if line["side"] == "most" else "≥"
        name = f"{line['verdict']}: {line['name']}"
        rows.append([name, f"{sign} {line['limit']:g}", figure(line["value"], 3), line["source"]])
        if line["verdict"] == "unknown" and line["reason"]:
            notes.append(f"  {line['name']} is not known: {line['reason']}")
        elif line["reason"] and line["value"]["low"] is None:
            notes.append(f"  {line['name']} has no interval: {line['reason']}")
    return "\n".join([table(rows), *notes])
