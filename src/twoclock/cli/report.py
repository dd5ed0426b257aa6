"""``twoclock report RUN``: the HTML page of a run."""

from __future__ import annotations

from pathlib import Path

import click

from twoclock.cli.output import run_argument, show


@click.command("report")
@run_argument
@click.option("--out", type=click.Path(path_type=Path), help="The file.  [default: RUN/report.html]")
def command(run: Path, out: Path | None) -> None:
    """Write a run's report: one HTML page that needs nothing else, with plots, tables and the searchable ledger.

    Reads only; works while another process learns, and where no model can be loaded. Prints the page's path.
    """
    from twoclock.report import write_report

    show(str(write_report(run, out)))
