"""The life of a run on the command line: begin or take up, watch, stop cleanly, sum up. For demo, run and resume."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from twoclock.cli.app import INTERRUPTED
from twoclock.cli.output import say, show
from twoclock.errors import ConfigError, StoreError, TwoclockError

if TYPE_CHECKING:
    from twoclock.build import Session
    from twoclock.config import RunConfig
    from twoclock.store import RunStore

__all__ = ["free_folder", "has_begun", "is_run", "mistakes", "play", "refuse_used", "sum_up", "typed"]


def mistakes(config: RunConfig) -> tuple[str, ...]:
    """What is wrong with a configuration, a sentence each; empty where all its parts can be built."""
    from twoclock.build import build_parts

    try:
        build_parts(config)
    except ConfigError as error:
        return error.problems
    except TwoclockError as error:
        return (str(error),)
    return ()


def typed(verb: str, *words: str, overrides: Sequence[str] = ()) -> str:
    """What a user types to have a run again, without its folder: what a run keeps as its command."""
    return shlex.join(["twoclock", verb, *words, *(part for override in overrides for part in ("--set", override))])


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / "ledger.sqlite").is_file()


def has_begun(store: RunStore) -> bool:
    """False for a run that was stopped between its making and its round 0. Raises StoreError for a damaged one."""
    try:
        store.head()
    except StoreError:
        if store.entries() or store.rounds():
            raise
        return False
    return True


def refuse_used(path: Path) -> None:
    """StoreError where a run is in ``path`` already: said before a model is loaded for nothing. The store itself
    refuses whatever else is there."""
    from twoclock.store import RunStore

    if is_run(path):
        with RunStore.open(path) as store:
            if has_begun(store):
                raise StoreError(
                    f"there is a run in {path} already; go on with it: twoclock resume {path}; or name another folder"
                )


def free_folder(parent: Path, name: str) -> Path:
    """``parent/name``, with a number behind it where that is taken."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-") or "run"
    number, path = 1, parent / plain
    while path.exists() and not _is_empty(path):
        number += 1
        path = parent / f"{plain}-{number}"
    return path


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def play(session: Session) -> None:
    """Round 0 where there is none, then every round that is left. Ctrl-C ends with its own exit code."""
    from twoclock.cli.live import watch

    path = session.store.path
    view = watch(session)
    try:
        loop = session.loop(view)
        with view:
            if has_begun(session.store):
                loop.restore()
            else:
                view.note("measuring the untouched base")
                loop.begin()
            loop.run()
    except KeyboardInterrupt:
        _stopped(session, path)


def _stopped(session: Session, path: Path) -> NoReturn:
    if has_begun(session.store):
        lost = session.store.head().next_round
        total = session.parts.stream.num_rounds
        if lost > total:
            say(f"stopped; all {total} rounds are committed")
        else:
            safe = "round 0 (the base's scores) is" if lost == 1 else f"all rounds up to {lost - 1} are"
            say(f"stopped: round {lost} was under way and is lost; {safe} safe")
    else:
        say("stopped: measuring the untouched base was under way and is lost; no round had begun")
    say(f"go on with: twoclock resume {path}")
    raise click.exceptions.Exit(INTERRUPTED)


def sum_up(session: Session) -> dict[str, Any]:
    """The headline of a finished run, measured unless it stands in the ledger already; printed, and returned."""
    from twoclock.cli.summary import headline, recorded, summarise

    store, path = session.store, session.store.path
    phases = [phase.task for phase in session.parts.stream.phases]
    found = recorded(store, phases)
    if found is None:
        try:
            evaluations, drift = session.evaluate(say)
        except KeyboardInterrupt:
            say(
                f"stopped: the run is complete and safe, its final scores were not measured; type: twoclock eval {path}"
            )
            raise click.exceptions.Exit(INTERRUPTED) from None
        found = summarise(store, phases, evaluations, drift)
    show(headline(found))
    return found
