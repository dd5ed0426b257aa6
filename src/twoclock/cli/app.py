"""The command ``twoclock``: its table of verbs, how errors end it, and nothing heavy.

A verb's module is imported when the verb is used, and heavy packages only inside its function, so that ``--help``
answers at once. A new verb is a file beside this one with a click command called ``command``, and a row in the table.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
import traceback
from typing import Any, NoReturn

import click

from twoclock import __version__
from twoclock.errors import TwoclockError

__all__ = ["INTERRUPTED", "VERBS", "main"]

INTERRUPTED = 130
"""The exit code after Ctrl-C."""

VERBS: dict[str, str] = {
    "demo": "Watch the default model learn two tasks on both clocks, then open the report.",
    "run": "Start a run from a configuration file.",
    "resume": "Go on with a run that was stopped or killed.",
    "status": "Where a run stands.",
    "log": "The ledger: every proposal, verdict, reason and cost.",
    "diff": "What changed between two rounds.",
    "why": "A lesson: its evidence, the decision, what would change it.",
    "rollback": "Make the states of an earlier round live again.",
    "consolidate": "Move lasting lessons from prompts and memories to the weights.",
    "eval": "Measure a run: the 2×2 of each task, drift, retention, cost.",
    "probe": "Drift, retention, plasticity, out of distribution: what learning did to a run.",
    "check": "Hold a run to limits, for pipelines.",
    "chat": "Talk to the model as it stands.",
    "memory": "An agent's memory: entries, what they are worth, undo of any write.",
    "export": "Write the slow weights as an adapter folder that PEFT loads.",
    "experts": "A library of experts that runs have trained, for the weights to be mixed from.",
    "report": "Write a run's HTML report.",
    "models": "The models on this machine, and how to use others.",
    "doctor": "What this machine has, how fast it is, and what is missing.",
}
"""Verb → its line in the help; the module of the same name holds its command."""

EPILOG = """\b
Exit codes:
  0    done
  1    a budget was passed, a number was not finite, or an unexpected error
  2    a configuration, an argument, a data file or a verifier is wrong
  3    a model cannot be found, fetched or used; a package is not installed
  4    a run folder is missing, damaged, or in use by another process
  10   'twoclock check': a limit is passed
  11   'twoclock check': a limit is not decided (--strict) or not measured
  12   'twoclock consolidate': a check failed, everything is as it was
  130  stopped by Ctrl-C; committed rounds are safe, 'twoclock resume' goes on

\b
With --json, standard output holds one JSON object and nothing else; progress
and messages go to standard error.
"""


class VerbGroup(click.Group):
    """A click group that imports a verb when it is used, and is the one boundary where errors become exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"twoclock.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], VERBS, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(VERBS)}"
            ctx.fail(f"unknown command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TwoclockError as error:
            _fail(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "stopped", INTERRUPTED)
        except BrokenPipeError:
            raise  # the reader of a pipe went away: click ends quietly
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            _fail(ctx, f"{error.strerror or error}{where}", 1)


def _fail(ctx: click.Context, message: str, code: int) -> NoReturn:
    if ctx.params.get("debug"):
        traceback.print_exc()
    click.echo(f"error: {message}" if code != INTERRUPTED else message, err=True)
    ctx.exit(code)


@click.group(
    cls=VerbGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="twoclock", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, envvar="TWOCLOCK_DEBUG", help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Language models that keep learning after they are deployed, on two clocks: fast reversible memory, and slow
    weights inside a drift budget."""
    for stream in (sys.stdout, sys.stderr):
        # What a model wrote is shown on any terminal: a character that it lacks becomes a mark, not a crash.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
