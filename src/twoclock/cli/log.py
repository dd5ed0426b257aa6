"""``twoclock log RUN``: the ledger, entry by entry."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twoclock.cli.output import clean, cost_words, json_option, one_line, run_argument, say, show, show_json
from twoclock.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from twoclock.store import RunStore
    from twoclock.types import LedgerEntry

ACTIONS = {
    "init": None,
    "commit": "green",
    "reject": "red",
    "decline": "yellow",
    "rollback": "magenta",
    "wait": None,
    "consolidate": "cyan",
    "refuse": "red",
}
"""Each action of the ledger and its colour."""


@click.command("log")
@run_argument
@json_option
@click.option("--channel", metavar="NAME", help="Only this channel's entries.")
@click.option("--action", metavar="ACTION", help=f"Only entries of this action: {', '.join(ACTIONS)}.")
@click.option("--round", "number", metavar="N", type=int, help="Only this round's entries.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Only the newest N of them.")
@click.option("--full", is_flag=True, help="The whole text of every write, and every metric.")
def command(
    run: Path,
    as_json: bool,
    channel: str | None,
    action: str | None,
    number: int | None,
    limit: int | None,
    full: bool,
) -> None:
    """The ledger: every proposal with its cause, verdict, reason, cost and what it wrote, oldest first.

    Rejected and declined proposals stand in it too. A rollback and a consolidation bear the number of the last round
    before them.

    \b
    Keys of --json: run, entries; each entry has seq, round, phase, task,
    channel, timescale, action, before, after, offered (hashes of states),
    cause, reason, cost, writes [{text, kind, lesson}], metrics, at.
    """
    from twoclock.store import RunStore

    with RunStore.open(run) as store:
        _check(store, channel, action, number)
        entries = store.entries(channel=channel, round=number, action=action)
        total = len(entries)
        entries = entries[-limit:] if limit else entries
    if as_json:
        show_json({"run": str(run), "entries": [asdict(entry) for entry in entries]})
        return
    for entry in entries:
        show("\n".join(_in_words(entry, full)))
    if len(entries) < total:
        say(f"{total - len(entries)} older entries are not shown")
    if not entries:
        say("no entry matches")


def _check(store: RunStore, channel: str | None, action: str | None, number: int | None) -> None:
    """Names and numbers that no entry can have, all at once."""
    problems = []
    known = {entry.channel for entry in store.entries(action="init")} | set(store.config.get("channels", {}))
    if channel is not None and channel not in known:
        problems.append(unknown_name("channel", channel, known))
    if action is not None and action not in ACTIONS:
        problems.append(unknown_name("action", action, ACTIONS))
    last = max((row.round for row in store.rounds()), default=0)
    if number is not None and not 0 <= number <= last:
        problems.append(f"there is no round {number} in the run {store.path}; it has rounds 0 to {last}")
    if problems:
        raise ConfigError(problems)


def _in_words(entry: LedgerEntry, full: bool) -> list[str]:
    task = f" on {entry.task}" if entry.task else ""
    what = click.style(entry.action, fg=ACTIONS.get(entry.action), bold=True)
    lines = [f"#{entry.seq} round {entry.round}{clean(task)}: {what} of {entry.channel} ({entry.timescale})"]
    if full:
        lines[0] += time.strftime(" at %Y-%m-%d %H:%M:%S", time.localtime(entry.at))
    lines.append(f"    cause   {_text(entry.cause, full)}")
    lines.append(f"    reason  {_text(entry.reason, full)}")
    if entry.cost.tokens or entry.cost.seconds >= 0.05:
        lines.append(f"    cost    {cost_words(entry.cost)}")
    if entry.before != entry.after:
        lines.append(f"    state   {entry.before[:12] or 'nothing'} → {entry.after[:12]}")
    if full and entry.metrics:
        lines.append("    metrics " + ", ".join(f"{name} {value:.4g}" for name, value in entry.metrics.items()))
    return [*lines, *_writes(entry.writes, full)]


def _text(text: str, full: bool) -> str:
    return clean(text) if full else one_line(text, 140)


def _writes(writes: Sequence[Any], full: bool) -> list[str]:
    lines = []
    for write in writes:
        if not full:
            lines.append(f"    wrote   {write.kind}: {one_line(write.text, 90)}")
            continue
        lesson = f" ({write.lesson})" if write.lesson else ""
        lines.append(f"    wrote   {write.kind}{lesson}")
        lines += [f"        {line}" for line in clean(write.text).splitlines() or [""]]
    return lines
