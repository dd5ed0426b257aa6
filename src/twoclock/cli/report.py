"""``twoclock report RUN``: the HTML page of a run."""

from __future__ import annotations

from pathlib import Path

import click

from twoclock.cli.output import run_argument, show


@click.command("report")
@run_argument
@click.option("--out", type=click.Path(path_type=Path), help="The file.  [default: RUN/report.html]")
@click.option(
    "--probe-file", "probes", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Results of 'twoclock probe' to show; may be repeated.  [default: those in RUN-probes/]",
)  # fmt: skip
def command(run: Path, out: Path | None, probes: tuple[Path, ...]) -> None:
    """Write a run's report: one HTML page that needs nothing else, with plots, tables and the searchable ledger.

    What 'twoclock probe' found is shown too, a section each. Reads only; works while another process learns, and where
    no model can be loaded. Prints the page's path.
    """
    from twoclock.cli.lessons import explained
    from twoclock.report import write_report

    show(str(write_report(run, out, probes=probes or None, explain=explained)))
