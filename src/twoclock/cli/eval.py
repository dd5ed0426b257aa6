"""``twoclock eval RUN``: measure the states that are live now."""

from __future__ import annotations

from pathlib import Path

import click

from twoclock.cli.output import json_option, run_argument, say, show, show_json


@click.command("eval")
@run_argument
@json_option
@click.option("--tasks", metavar="A,B", help="Only these tasks.  [default: every task of the stream]")
def command(run: Path, as_json: bool, tasks: str | None) -> None:
    """Measure what is live now on held-out items, and record it in the run.

    Prints the 2×2 of each task ({base, trained} weights × {no, learned} prompt) with 95 % intervals, where the gain
    lives, drift from the base in both directions, what became of earlier tasks, and what everything cost. Cells that
    are the same model under the same prompt are measured once, and said to be so. Under each task: how small a
    difference this many items can show, and how many it takes to see one of 0.02, 0.05 or 0.1.

    \b
    Keys of --json (an INTERVAL is {estimate, low, high, n, level, method,
    seeds}, seeds counting training runs; unknown numbers are null):
      run, model          the folder; the base model
      round, rounds_run   the round whose states are live; rounds committed
      tasks.NAME
        round             the round that was measured
        cells             base_none, base_learned, live_none, live_learned
                          (weights_prompt): INTERVAL + samples an item
        effects           slow (weights alone), fast (prompt alone),
                          interaction, total, residual_use: INTERVAL
        shares            slow, fast, interaction as shares of the total;
                          null unless the total's interval excludes 0
        identical         lists of cells that are one measurement
        power             {items, discordance, discordance_measured,
                          detectable, table}; a line of the table is {delta,
                          paired, unpaired, gap}: items for that difference
                          at 80 % power and 95 %, deployed against the next
      drift               a list of {prompts, live_base, base_live: INTERVAL,
                          tokens}, nats a token; prompts is general or task:NAME
      retention.matrix    tasks (one a phase) and rows {after, round, scores:
                          INTERVAL or null}: start, each phase's end, now
      retention.phases    {phase, task, start, learned, now, gain, change}
      retention.summary   final_average, backward_transfer, forgetting, ...
      cost                rollouts, channels.NAME, evaluations, this_evaluation
                          (counts and seconds), seconds by clock
    """
    from twoclock.build import open_session
    from twoclock.cli.summary import in_words, summarise
    from twoclock.errors import ConfigError, unknown_name

    # To write: measuring takes minutes, so a run that is in use is refused before, not after.
    session = open_session(run, write=True, progress=say)
    with session.store as store:
        store.head()
        known = list(session.parts.stream.tasks)
        wanted = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip())) if tasks else None
        problems = [unknown_name("task", name, known) for name in wanted or () if name not in known]
        if problems or wanted == []:
            raise ConfigError(problems or f"--tasks names no task; known: {', '.join(known)}")
        evaluations, drift = session.evaluate(say, tasks=wanted)
        phases = [phase.task for phase in session.parts.stream.phases]
        found = summarise(store, phases, evaluations, drift)
    if as_json:
        show_json(found)
    else:
        show(in_words(found))
