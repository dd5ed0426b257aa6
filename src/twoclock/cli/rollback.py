"""``twoclock rollback RUN ROUND``: make earlier states live again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from twoclock.cli.output import run_argument, say, show, table

if TYPE_CHECKING:
    from twoclock.store import RunStore


@click.command("rollback")
@run_argument
@click.argument("round", metavar="ROUND", type=click.IntRange(min=0))
@click.option("--fast-only", is_flag=True, help="Only the fast channels; the weights stay as they are.")
@click.option("--slow-only", is_flag=True, help="Only the slow channels; prompts and memories stay as they are.")
@click.option("--reason", default="asked for on the command line", metavar="TEXT", help="Why; it goes into the ledger.")
@click.option("--yes", is_flag=True, help="Do not ask on a terminal.")
def command(run: Path, round: int, fast_only: bool, slow_only: bool, reason: str, yes: bool) -> None:
    """Make the states that ROUND left behind live again; 0 is the untouched start, the base model exactly.

    Nothing is erased: the ledger gets one entry a channel that changes, and a rollback is itself taken back by one to
    a later round. Rounds keep their numbers, and 'twoclock resume' goes on with the next one.
    """
    from twoclock.errors import ConfigError
    from twoclock.store import RunStore

    if fast_only and slow_only:
        raise ConfigError("--fast-only and --slow-only exclude each other; for both clocks give neither")
    with RunStore.open(run, write=True) as store:
        head, target = store.head(), store.snapshot_at(round)
        clocks = {entry.channel: entry.timescale for entry in store.entries(action="init")}
        wanted = [
            name
            for name in head.states
            if not (fast_only and clocks.get(name) != "fast") and not (slow_only and clocks.get(name) != "slow")
        ]
        changed = [name for name in wanted if head.states[name] != target.states.get(name)]
        if not changed:
            which = " fast" if fast_only else " slow" if slow_only else ""
            show(f"nothing to roll back: the{which} states of round {round} are live already")
            return
        rows = [[n, str(clocks.get(n)), f"{head.states[n][:12]} → {target.states[n][:12]}"] for n in changed]
        say(f"rolling back to round {round}:\n{table(rows)}")
        if not yes and _is_terminal() and not click.confirm("go on?", default=True, err=True):
            say("nothing was changed")
            return
        store.append_rollback(round, channels=wanted if fast_only or slow_only else None, reason=reason)
        show(f"round {round} is live again: {', '.join(changed)}")
        undo = _undo(store, dict(head.states), head.next_round - 1)
    if undo is not None:
        say(f"to take it back: twoclock rollback {run} {undo}")
    say(f"next: twoclock eval {run}")


def _is_terminal() -> bool:
    """A script is not asked: a rollback loses nothing."""
    return sys.stdin.isatty()


def _undo(store: RunStore, states: dict[str, str], last: int) -> int | None:
    """The newest round that left those states behind; None where they were mixed by an earlier rollback."""
    return next((n for n in range(last, -1, -1) if dict(store.snapshot_at(n).states) == states), None)
