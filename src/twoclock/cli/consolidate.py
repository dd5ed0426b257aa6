"""``twoclock consolidate RUN``: move lessons that have proved lasting from the fast clock to the weights."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twoclock.cli.output import (
    cost_words,
    duration,
    interval_words,
    json_option,
    one_line,
    run_argument,
    say,
    show,
    show_json,
    table,
)

if TYPE_CHECKING:
    from twoclock.build import Session
    from twoclock.consolidation import Consolidated, ConsolidationPlan, ConsolidationSettings
    from twoclock.consolidation.checks import Check

REFUSED = 12
"""The exit code of an attempt that was refused."""


@click.command("consolidate")
@run_argument
@click.option(
    "--lesson",
    "lessons",
    multiple=True,
    metavar="ID",
    help="Move this lesson, whatever the evidence; may be repeated.  [default: those that the evidence speaks for]",
)
@click.option("--channel", metavar="NAME", help="The fast channel, where several have lessons.")
@click.option("--dry-run", is_flag=True, help="Only the plan: no model is loaded, nothing is written.")
@click.option("--rounds", metavar="K", type=int, help="At most so many rounds of distillation.")
@click.option("--margin", metavar="X", type=float, help="The loss of score that is shown to be excluded.")
@click.option("--drift", metavar="NATS", type=float, help="The most drift from the base, nats a token.")
@click.option("--again", is_flag=True, help="Also where the same attempt was refused before.")
@click.option("--yes", is_flag=True, help="Do not ask on a terminal.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting of [consolidation], such as --set trial_items=200; may be repeated.",
)
@json_option
def command(
    run: Path,
    lessons: tuple[str, ...],
    channel: str | None,
    dry_run: bool,
    rounds: int | None,
    margin: float | None,
    drift: float | None,
    again: bool,
    yes: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Distil lessons into the weights, verify, and retire them; if any check fails, everything is as it was.

    A lesson is moved where it is better than none on trial items, where afterwards the score without it is kept within
    the margin, the drift budget holds, and no other task of the stream loses more than the margin. 'twoclock rollback'
    to the last round takes a consolidation back.

    \b
    Exit code 12: a check failed; the reason is in the ledger.
    Keys of --json (an INTERVAL is {estimate, low, high, n, level, method,
    seeds}; unknown numbers are null):
      run
      plan      channel, slow, lessons [{lesson, channel, text, tasks,
                accepted, reason, age, rounds, groups, effect: INTERVAL}],
                tasks, others, settings, key, rollouts, seconds,
                tried {round, reason} of the same attempt before
      result    null with --dry-run; else accepted, reason, lessons, dropped,
                checks [{name, about, passed, reason, interval, numbers}],
                distilled {steps, best, kl, reward, reason}, cost,
                saved {tokens, tokens_before, tokens_after, seconds_before,
                seconds_after, speedup, items}
    """
    from twoclock.build import open_session

    given = {"rounds": rounds, "margin": margin, "drift": drift}
    session = open_session(run, write=not dry_run, progress=say)
    with session.store:
        settings = _settings(session, {k: v for k, v in given.items() if v is not None}, overrides)
        plan = _plan(session, settings, lessons, channel)
        if not as_json:
            show(_plan_words(plan))
        result = None
        if not dry_run:
            if not yes and _is_terminal() and plan.lessons and not click.confirm("go on?", default=True, err=True):
                say("nothing was changed")
                return
            result = session.consolidation(settings, say).carry_out(plan, session.states(), again=again)
    if as_json:
        show_json({"run": str(run), "plan": plan.as_dict(), "result": result.as_dict() if result else None})
    elif result is not None:
        show(_result_words(result))
    if result is not None and result.accepted and not as_json:
        say(f"to take it back: twoclock rollback {run} {plan.head.next_round - 1}")
        say(f"next: twoclock eval {run}")
    if result is not None and not result.accepted:
        raise click.exceptions.Exit(REFUSED)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _settings(session: Session, given: dict[str, Any], overrides: tuple[str, ...]) -> ConsolidationSettings:
    """The run's own settings with what is given here in their place."""
    import tomllib

    from twoclock.consolidation import ConsolidationSettings
    from twoclock.errors import ConfigError
    from twoclock.options import read_options

    own = {f.name: getattr(session.parts.consolidation, f.name) for f in fields(ConsolidationSettings)}
    for override in overrides:
        name, sign, raw = override.partition("=")
        if not sign:
            raise ConfigError(f"--set takes NAME=VALUE, such as --set trial_items=200; got '{override}'")
        try:
            given[name.strip().removeprefix("consolidation.")] = tomllib.loads(f"x = {raw}")["x"]
        except tomllib.TOMLDecodeError:
            raise ConfigError(f"--set {override}: '{raw}' is not a value, such as 200 or 0.1") from None
    return read_options(ConsolidationSettings, {**own, **given}, "[consolidation]")


def _plan(
    session: Session, settings: ConsolidationSettings, lessons: tuple[str, ...], channel: str | None
) -> ConsolidationPlan:
    from twoclock.consolidation import plan_consolidation
    from twoclock.errors import UnsupportedError

    model = session.parts.config.model
    if model.endpoint:
        raise UnsupportedError(
            f"the run's model '{model.name}' is behind an endpoint ({model.endpoint}), and its weights cannot take a "
            "lesson in: consolidation needs a local model ([model] source = ...)"
        )
    session.store.head()
    return plan_consolidation(
        session.store,
        session.parts.stream,
        session.parts.channels,
        session.states(),
        settings,
        seed=session.parts.seed,
        lessons=lessons or None,
        channel=channel,
    )


# --------------------------------------------------------------------------------------------------------------- words


def _plan_words(plan: ConsolidationPlan) -> str:
    lines = [f"lessons of '{plan.channel}', into the weights of '{plan.slow}':"]
    rows = [
        ["move" if choice.accepted else "leave", choice.lesson.id, one_line(choice.lesson.text, 48), choice.reason]
        for choice in plan.choices
    ]
    lines.append(table(rows))
    if not plan.lessons:
        return "\n".join([*lines, "nothing is to be moved"])
    settings = plan.settings
    kept = f"other tasks: {', '.join(plan.others)}" if plan.others else "the stream has no other task"
    bound = "no bound" if settings.drift is None else f"at most {settings.drift:g} nats a token"
    time = f", about {duration(plan.seconds)} at the pace of the run's rounds" if plan.seconds else ""
    rows = [
        ["tasks", ", ".join(plan.tasks)],
        ["distil", f"at most {settings.rounds} steps of {settings.items} items × {settings.samples} rollouts a task"],
        ["held to", f"score and {kept} within {settings.margin:g}; drift from the base {bound}"],
        ["cost", f"at most {plan.rollouts:,} rollouts{time}; training beside"],
    ]
    if plan.tried is not None:
        rows.append(
            ["before", f"refused after round {plan.tried.round}: {plan.tried.reason} (--again tries once more)"]
        )
    return "\n".join([*lines, table(rows)])


def _result_words(result: Consolidated) -> str:
    rows = [["check", "of", "", "numbers", "why"], *(_check_row(check) for check in result.checks)]
    lines = ["checks:", table(rows)]
    if found := result.distilled:
        told = f"KL to the teacher {found.kl[0]:.4f} → {min(found.kl):.4f} nats a token in {found.best} steps"
        lines.append(f"distilled: {told}; {found.reason}")
    if result.dropped:
        lines += [f"left where it is: {lesson.id}, {reason}" for lesson, reason in result.dropped]
    if saved := result.saved:
        ratio = f"{saved.speedup:.2f} times as fast" if saved.speedup >= 1 else f"{1 / saved.speedup:.2f} times as slow"
        lines.append(
            f"saved: {saved.tokens:.0f} prompt tokens an item ({saved.tokens_before:.0f} → {saved.tokens_after:.0f}); "
            f"an answer takes {1000 * saved.seconds_after:.0f} ms, it took {1000 * saved.seconds_before:.0f}: {ratio}"
        )
    lines.append(f"cost: {cost_words(result.cost)}")
    moved = ", ".join(lesson.id for lesson in result.lessons)
    if result.accepted:
        lines.append(f"consolidated: {moved} is in the weights and retired")
    else:
        lines.append(f"refused, everything is as it was: {result.reason}")
    return "\n".join(lines)


def _check_row(check: Check) -> list[str]:
    numbers = check.numbers
    if check.name == "drift":
        told = f"{numbers['live_base']:.4f} live‖base, {numbers['base_live']:.4f} base‖live"
    elif check.interval is not None:
        sides = ("without", "with") if check.name == "worth" else ("old", "new")
        told = f"{numbers[sides[0]]:.3f} → {numbers[sides[1]]:.3f}, {interval_words(check.interval.as_dict(), 3, True)}"
        if check.name != "worth":
            told += f", power {numbers['power']:.2f}"
    else:
        told = "–"
    return [check.name, check.about, "passed" if check.passed else "FAILED", told, check.reason]
