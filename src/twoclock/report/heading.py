"""The head of the page: where the run stands, what it ran on, and its three to five headline numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twoclock.hashing import short
from twoclock.measure import DriftSummary
from twoclock.report import formats
from twoclock.report.command import run_command
from twoclock.report.reading import RunData, part
from twoclock.report.tables import CostRow, Retention, SplitRow

__all__ = ["Card", "cards", "facts", "status"]

MAX_CARDS = 3
"""Tasks with a headline number of their own."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One headline number."""

    title: str
    value: str
    note: str


def status(data: RunData) -> str:
    """How far the run has come, in words."""
    done, planned = len(data.rounds), data.planned
    if planned is None:
        return f"{done} round{'' if done == 1 else 's'}"
    if done >= planned:
        return f"finished: {done} of {planned} rounds"
    return f"not finished: {done} of {planned} rounds"


def facts(data: RunData) -> list[tuple[str, str]]:
    """The lines of the header; what was not recorded is left out."""
    environment, config = data.environment, data.config
    model = part(environment, "model") or part(config, "model", "name") or part(config, "model", "source")
    base = part(environment, "base_hash")
    stream = " → ".join(
        f"{phase.task} ({phase.planned if phase.planned is not None else '?'} rounds)" for phase in data.phases
    )
    seed = part(config, "run", "seed")
    own = part(environment, "twoclock") or {}
    packages = part(environment, "packages") or {}
    machine = part(environment, "machine") or {}
    code = f", source {short(str(own['source_hash']))}" if "source_hash" in own else ""
    lines = [
        ("Model", str(model) if model else ""),
        ("Base weights", short(str(base)) if base else ""),
        ("Seed", str(part(config, "seed") if seed is None else seed)),
        ("When", _when(data)),
        ("twoclock", f"{own.get('version', '')}{code}"),
        ("Python", str(part(environment, "python", "version") or "")),
        ("Machine", " ".join(str(machine[k]) for k in ("system", "architecture") if k in machine)
         + (f", {machine['cpus']} CPUs" if machine.get("cpus") else "")),
        ("Stream", stream),
        ("Packages", ", ".join(f"{name} {packages[name]}" for name in sorted(packages))),
        ("To run it again", run_command(Path(data.path), config, environment)),
    ]  # fmt: skip
    return [(name, value) for name, value in lines if value and value != "None"]


def _when(data: RunData) -> str:
    if not data.rounds:
        return formats.when(data.entries[0].at) if data.entries else ""
    return formats.when(data.rounds[0].started, data.rounds[-1].at)


def cards(
    data: RunData,
    splits: Sequence[SplitRow],
    retention: Retention,
    drift: Sequence[DriftSummary],
    costs: Sequence[CostRow],
) -> list[Card]:
    """Held-out reward of the first tasks, drift, forgetting, cost."""
    found = [_reward_card(split) for split in splits[:MAX_CARDS]]
    latest = [summary for summary in drift if summary.prompts == "general"] or list(drift)
    if latest:
        last = latest[-1]
        found.append(
            Card(
                title="Drift KL(live‖base)",
                value=formats.number(last.live_base.estimate, 3),
                note=f"{formats.interval_text(last.live_base, 3)} prompts ({last.prompts}); nats a token, round "
                f"{last.round}",
            )
        )
    else:
        found.append(Card(title="Drift KL(live‖base)", value=formats.DASH, note="not measured"))
    forgotten = retention.summary.forgetting if retention.summary else None
    if forgotten is not None and forgotten.is_known:
        note = f"{formats.interval_text(forgotten, sign=True)} items; positive is loss"
        found.append(Card(title="Forgetting", value=formats.number(forgotten.estimate, sign=True), note=note))
    else:
        found.append(Card(title="Forgetting", value=formats.DASH, note="needs two finished phases"))
    bill = costs[-1].cost
    found.append(
        Card(
            title="Cost",
            value=formats.duration(bill.seconds),
            note=f"{bill.rollouts:,} rollouts, {bill.tokens:,} tokens, {bill.optimizer_steps:,} optimizer steps, "
            "measuring included",
        )
    )
    return found


def _reward_card(split: SplitRow) -> Card:
    title = f"Held-out reward, {split.task}"
    base, now = split.base, split.deployed
    if base is None and now is None:
        return Card(title=title, value=formats.DASH, note="not measured")
    values = [formats.number(score.estimate) if score else formats.DASH for score in (base, now)]
    notes = [
        f"{name}: {formats.interval_text(score)}"
        for name, score in (("base, no prompt", base), ("trained, learned prompt", now))
        if score
    ]
    return Card(title=title, value=" → ".join(values), note="\n".join(notes))
