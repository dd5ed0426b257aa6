"""``twoclock run CONFIG.toml``: start a run."""

from __future__ import annotations

from pathlib import Path

import click

from twoclock.cli.output import say, set_option, show


@click.command("run")
@click.argument("config", metavar="CONFIG.toml", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME, numbered]")
@set_option
@click.option("--no-eval", is_flag=True, help="Do not measure the 2×2 of each task at the end.")
def command(config: Path, out: Path | None, overrides: tuple[str, ...], no_eval: bool) -> None:
    """Start a run from a configuration file.

    The whole configuration is checked before anything is loaded, and every mistake in it is reported at once. The run
    is one folder; a run that is stopped or killed loses at most the round under way: 'twoclock resume' goes on.
    """
    from twoclock.build import create_session
    from twoclock.cli.runner import free_folder, mistakes, play, refuse_used, sum_up, typed
    from twoclock.config import load_config

    loaded, text = load_config(config, overrides, check=mistakes)
    folder = out or free_folder(Path("runs"), loaded.run.name)
    refuse_used(folder)
    again = typed("run", str(config), overrides=overrides)
    session = create_session(loaded, folder, config_text=text, command=again, progress=say)
    with session.store:
        say(f"run {folder}: {session.parts.stream.num_rounds} rounds")
        play(session)
        if not no_eval:
            sum_up(session)
    show(f"\nrun: {folder}")
    say(f"next: twoclock report {folder} | twoclock log {folder} | twoclock chat {folder}")
