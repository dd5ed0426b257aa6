"""``twoclock demo``: the packaged configuration, from nothing to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twoclock.cli.output import say, set_option, show
from twoclock.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from twoclock.build import Session
    from twoclock.config import RunConfig


@click.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="The folder."
)
@set_option
@click.option("--no-report", is_flag=True, help="Do not write the HTML report.")
def command(out: Path, overrides: tuple[str, ...], no_report: bool) -> None:
    """Watch the default model learn a stream of two tasks on both clocks, then open the report.

    The first call fetches the model (98 MB) and caches it. A demo that was stopped goes on where it was.
    """
    from twoclock.cli.runner import mistakes, play, sum_up
    from twoclock.config import parse_config

    text = resources.files("twoclock").joinpath("data/demo.toml").read_text(encoding="utf-8")
    where = "the demo's configuration"
    config = parse_config(text, overrides, base_dir=Path.cwd(), where=where, check=mistakes)
    session = _open(out, config, text, overrides)
    with session.store:
        play(session)
        sum_up(session)
    if not no_report:
        from twoclock.cli.lessons import explained
        from twoclock.report import write_report

        show(f"\nreport: {write_report(out, explain=explained)}")
    say(f"next: twoclock chat {out} | twoclock log {out} | twoclock rollback {out} 0")


def _open(out: Path, config: RunConfig, text: str, overrides: Sequence[str]) -> Session:
    """The demo in ``out``: a new one, or the one that is there."""
    from twoclock.build import create_session, open_session
    from twoclock.cli.runner import has_begun, is_run, refuse_used, typed

    if not is_run(out):
        refuse_used(out)
        say(f"the demo learns in {out}: {sum(phase.rounds for phase in config.stream)} rounds")
        again = typed("demo", overrides=overrides)
        return create_session(config, out, config_text=text, command=again, progress=say)
    session = open_session(out, write=True, progress=say)
    try:
        _check_same(out, session.store.config, config, changed=bool(overrides))
        total = session.parts.stream.num_rounds
        next_round = session.store.head().next_round if has_begun(session.store) else 0
        if next_round > total:
            say(f"the demo in {out} is finished ({total} rounds); for a new one: twoclock demo --out ANOTHER_FOLDER")
        elif next_round:
            say(f"the demo in {out} was stopped; it goes on at round {next_round} of {total}")
        else:
            say(f"the demo in {out} was stopped before it began; it begins now, with {total} rounds")
    except BaseException:
        session.store.close()
        raise
    return session


def _check_same(out: Path, stored: Mapping[str, Any], config: RunConfig, *, changed: bool) -> None:
    """Refuses a folder with another run, and settings that the demo in it was not started with."""
    name = stored.get("run", {}).get("name")
    if name != config.run.name:
        raise StoreError(f"{out} holds the run '{name}', not the demo; name another folder: twoclock demo --out FOLDER")
    plain = config.plain()
    other = sorted(key for key in plain if key != "base_dir" and plain[key] != stored.get(key))
    if changed and other:
        raise ConfigError(
            f"the demo in {out} was started with other settings in {', '.join(f'[{key}]' for key in other)}; a run "
            "keeps its settings: leave --set away to go on with it, or take another folder: twoclock demo --out FOLDER"
        )
