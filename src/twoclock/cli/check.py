"""``twoclock check RUN``: limits that a run is held to, for pipelines."""

from __future__ import annotations

from pathlib import Path

import click

from twoclock.cli.output import json_option, run_argument, say, show, show_json

BEYOND, UNDECIDED = 10, 11


@click.command("check")
@run_argument
@click.option("--max-forgetting", type=float, metavar="X", help="Forgetting F over the stream is at most X.")
@click.option("--max-drift", type=float, metavar="NATS", help="Drift, each way and prompt set, is at most NATS.")
@click.option("--min-retention", type=float, metavar="X", help="Each earlier task still scores at least X.")
@click.option("--min-plasticity", type=float, metavar="X", help="The plasticity ratio is at least X (--probe-file).")
@click.option("--max-ood-gap", type=float, metavar="X", help="Each variant's DiD is at most X (--probe-file).")
@click.option(
    "--probe-file", "probes", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Results of 'twoclock probe' of this state; may be repeated. What is in them is held, not what is recorded.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail where the data do not decide.")
@json_option
def command(
    run: Path,
    max_forgetting: float | None,
    max_drift: float | None,
    min_retention: float | None,
    min_plasticity: float | None,
    max_ood_gap: float | None,
    probes: tuple[Path, ...],
    strict: bool,
    as_json: bool,
) -> None:
    """Hold what a run has recorded to limits; for continuous integration. Loads no model and changes nothing.

    A limit is held against the 95 % interval, not the estimate: within when all of it is on the right side, beyond when
    all of it is on the wrong one, undecided when the limit lies inside. That passes with a warning unless --strict.
    A limit on something that was never measured, or not since the states changed, does not pass.

    \b
    Exit codes:
      0   every limit is within, or undecided without --strict
      10  a limit is passed: the whole interval is beyond it
      11  none is passed, but one is undecided (--strict) or was not measured
      2   an argument or a probe file is wrong; 4: the run cannot be read

    \b
    Keys of --json:
      run, round, passed, exit_code, strict
      limits   a list of {name, limit, side: most|least, verdict: within|
               beyond|undecided|unknown, value: INTERVAL, source, reason}
    """
    from twoclock.cli.limits import Limits, held_limits
    from twoclock.errors import ConfigError
    from twoclock.probe_file import read_probe
    from twoclock.store import RunStore

    asked = Limits(
        max_forgetting=max_forgetting,
        max_drift=max_drift,
        min_retention=min_retention,
        min_plasticity=min_plasticity,
        max_ood_gap=max_ood_gap,
    )
    asked.check()
    with RunStore.open(run) as store:
        head = store.head()
        files = [(path, read_probe(path)) for path in probes]
        for path, found in files:
            if found["states"] != dict(head.states):
                raise ConfigError(
                    f"the probe file {path} is of round {found['round']} of '{found['run']}', whose states are not "
                    f"those that are live in {run} (round {head.round}); probe the run again"
                )
        limits = held_limits(store, asked, files)
    verdicts = {line["verdict"] for line in limits}
    code = 0
    if "beyond" in verdicts:
        code = BEYOND
    elif "unknown" in verdicts or ("undecided" in verdicts and strict):
        code = UNDECIDED
    if as_json:
        show_json(
            {
                "run": str(run),
                "round": head.round,
                "passed": code == 0,
                "exit_code": code,
                "strict": strict,
                "limits": limits,
            }
        )
    else:
        from twoclock.cli.limits import in_words

        show(in_words(limits))
        show(f"{run} at round {head.round}: " + ("passed" if code == 0 else f"failed (exit code {code})"))
    if code == 0 and "undecided" in verdicts:
        say("warning: a limit is not decided by these data; more items, prompts or seeds would tell; --strict fails")
    raise click.exceptions.Exit(code)
