"""``twoclock resume RUN``: go on with a run."""

from __future__ import annotations

from pathlib import Path

import click

from twoclock.cli.output import run_argument, say, show


@click.command("resume")
@run_argument
@click.option("--no-eval", is_flag=True, help="Do not measure the 2×2 of each task at the end.")
def command(run: Path, no_eval: bool) -> None:
    """Go on with a run that was stopped or killed, after its last committed round.

    It continues with the configuration that it was started with, to the numbers that it would have had.
    """
    from twoclock.build import open_session
    from twoclock.cli.runner import has_begun, play, sum_up

    session = open_session(run, write=True, progress=say)
    with session.store:
        total = session.parts.stream.num_rounds
        if has_begun(session.store):
            next_round = session.store.head().next_round
            if next_round > total:
                show(f"the run {run} is finished: all {total} rounds are committed; there is nothing to resume")
                say(f"next: twoclock eval {run} | twoclock report {run}")
                return
            say(f"resuming {run} at round {next_round} of {total}")
        else:
            say(f"the run {run} was stopped before it began; it begins now, with {total} rounds")
        play(session)
        if not no_eval:
            sum_up(session)
    show(f"\nrun: {run}")
    say(f"next: twoclock report {run} | twoclock log {run} | twoclock chat {run}")
