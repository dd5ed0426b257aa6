"""``twoclock why RUN [LESSON]``: for each lesson the evidence, the decision, and what would change it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from twoclock.cli.output import clean, interval_words, json_option, one_line, run_argument, say, show, show_json, table

if TYPE_CHECKING:
    from twoclock.explain import Event, Explanation, Explanations, Slice

WIDTH = 100
SHORT = 8
"""Characters of an id in a table; more where two lessons begin alike."""
COLOURS = {"candidate": "cyan", "fast": "green", "harmful": "red", "taken back": "magenta", "weights": "cyan"}
MOST_ROUNDS = 12


@click.command("why")
@run_argument
@click.argument("lesson", metavar="[LESSON]", required=False)
@json_option
def command(run: Path, lesson: str | None, as_json: bool) -> None:
    """For each lesson of a run the evidence, the decision about it, and what would change it.

    Without LESSON a table of all that the run has had; with one (its id or the start of it, CHANNEL/ID where two
    channels share one, or the number of a ledger entry that wrote it, as '#12') the whole explanation. Reads only:
    loads no model, and works while the run goes on.

    \b
    Keys of --json (an INTERVAL is {estimate, low, high, n, level, method,
    seeds}; what is not known is null):
      run, round, problem   why there are no lessons, or null
      lessons   of each     lesson (its id), channel, text, tasks, live,
        origin {round, seq, cause, rollouts}, compared_with, effect: INTERVAL,
        applied, rollouts, helped, contradicted, groups, against, beside:
        INTERVAL, horizon, lasts, life: INTERVAL, generality {items, tasks,
        between_items: INTERVAL, new_item, new_task}, tokens,
        phases, tasks_compared, rounds [{name, groups, effect: INTERVAL}],
        events [{round, what, reason, cause, task, seq, numbers}],
        standing {kind, sentence, changes}
    """
    from twoclock.cli.lessons import explained
    from twoclock.store import RunStore

    with RunStore.open(run) as store:
        found = explained(store)
    if lesson is not None:
        one = found.find(lesson)
        if as_json:
            show_json({**found.as_dict(), "lessons": [one.as_dict()]})
        else:
            show("\n".join(_whole(one)))
    elif as_json:
        show_json(found.as_dict())
    else:
        _show_all(found, run)


# ------------------------------------------------------------------------------------------------------- all lessons


def _show_all(found: Explanations, run: Path) -> None:
    if found.problem:
        say(found.problem)
        return
    if not found.lessons:
        say(f"no lesson has been written by round {found.round}: nothing to explain yet")
        return
    width = _id_width([one.lesson.id for one in found.lessons])
    rows = [["lesson", "channel", "live", "effect on the reward", "groups", "standing", "text"]]
    for one in found.lessons:
        kind = one.standing.kind
        rows.append(
            [
                one.lesson.id[:width],
                one.lesson.channel,
                "live" if one.lesson.live else "–",
                interval_words(one.effect.as_dict() if one.effect else None, signed=True),
                f"{one.count.beside.applied}",
                kind,
                one_line(one.lesson.text, 36),
            ]
        )
    lines = table(rows).splitlines()
    for place, one in enumerate(found.lessons, 1):
        if colour := COLOURS.get(one.standing.kind):
            lines[place] = lines[place].replace(one.standing.kind, click.style(one.standing.kind, fg=colour), 1)
    show("\n".join(lines))
    say(f"by round {found.round}; one of them in full: twoclock why {run} {found.lessons[0].lesson.id[:width]}")


def _id_width(ids: Sequence[str]) -> int:
    """Characters that tell all ids apart."""
    longest = max(len(one) for one in ids)
    return next((n for n in range(SHORT, longest) if len({one[:n] for one in ids}) == len(set(ids))), longest)


# -------------------------------------------------------------------------------------------------------- one lesson


def _whole(one: Explanation) -> Iterator[str]:
    lesson = one.lesson
    live = "live" if lesson.live else "not live"
    yield click.style(f"{lesson.id}", bold=True) + f"  {lesson.channel}, on {clean(', '.join(lesson.tasks))}, {live}"
    yield from (f"  {line}" for line in clean(lesson.text).splitlines() or [""])
    yield ""
    yield from _wrapped("", one.standing.sentence, COLOURS.get(one.standing.kind))
    if one.standing.changes:
        yield ""
        yield click.style("what would change it", bold=True)
        for change in one.standing.changes:
            yield from _wrapped("  - ", change)
    yield ""
    yield click.style("where it came from", bold=True)
    yield from _origin(one)
    yield ""
    yield click.style("evidence", bold=True)
    yield from _evidence(one)
    yield ""
    yield click.style("decisions", bold=True)
    for event in one.events:
        yield from _event(event)
    if not one.events:
        yield "  none is in the ledger"


def _origin(one: Explanation) -> Iterator[str]:
    origin = one.origin
    if origin is None:
        yield "  the ledger does not tell"
        return
    number = f" (#{origin.seq})" if origin.seq else ""
    yield from _wrapped(f"  round {origin.round}{number}: ", origin.cause or "no cause is recorded")
    for rollout in origin.rollouts:
        yield f"  from {clean(rollout)}"


def _evidence(one: Explanation) -> Iterator[str]:
    count, record = one.count, one.count.record
    applied = f"{count.beside.applied} groups, {count.rollouts} rollouts"
    rows = [["applied", applied]]
    if one.effect:
        rows.append(["compared", f"with {count.compared_with}, in {record.outcomes.groups} groups"])
        rows.append(["effect", f"{interval_words(one.effect.as_dict(), signed=True)} (95%) of reward"])
        rows.append(["helped", f"{record.helped} groups; contradicted in {record.contradicted}"])
        if count.alone.steps and count.against.keys() - {"going without it"}:
            beside = count.beside.effect().interval().as_dict()
            rows.append(["in all", f"{interval_words(beside, signed=True)} against whatever stood in its place"])
        told = "; ".join(f"{clean(name)} {groups}" for name, groups in count.against.items())
        rows.append(["against", f"{told} (groups)"])
    if one.effect and one.lasts is None:
        rows.append(["lasts", "cannot be told: no group compares it with going without it"])
    if one.lasts is not None and one.life is not None:
        rows.append(["lasts", f"{one.lasts:.0%} that it stays true for {one.horizon} rounds more"])
        rows.append(["life", f"{one.life.estimate:.0f} [{one.life.low:.0f}, {one.life.high:.0f}] more rounds of 100"])
    if wide := one.generality:
        told = f"{wide.new_item:.0%} that it helps on a new item, {wide.new_task:.0%} on a new task"
        rows.append(["holds", f"{told}; seen on {wide.items} items of {', '.join(map(clean, wide.tasks))}"])
    if count.tokens is not None:
        rows.append(["price", f"{count.tokens:+.1f} prompt tokens a read"])
    yield table(rows)
    yield from _slices("phase", one.phases)
    if len(one.tasks) > 1:
        yield from _slices("task", one.tasks)
    yield from _slices("round", one.rounds[-MOST_ROUNDS:], len(one.rounds))


def _slices(name: str, slices: Sequence[Slice], total: int | None = None) -> Iterator[str]:
    if not slices:
        return
    rows = [[f"by {name}", "effect", "groups"]]
    rows += [[clean(s.name), interval_words(s.effect.as_dict(), signed=True), f"{s.groups}"] for s in slices]
    yield table(rows)
    if total is not None and total > len(slices):
        yield f"  the last {len(slices)} of {total}; --json has all"


def _event(event: Event) -> Iterator[str]:
    number = f" (#{event.seq})" if event.seq else ""
    head = f"  round {event.round}: {event.what}{number}"
    yield from _wrapped(f"{head}: " if event.reason else head, event.reason)


def _wrapped(head: str, text: str, colour: str | None = None) -> Iterator[str]:
    """Text in lines of at most ``WIDTH``, under its head."""
    flat = " ".join(clean(text).split())
    indent = " " * (4 if head.startswith("  ") else 2)
    lines = textwrap.wrap(head + flat, WIDTH, subsequent_indent=indent) or [head]
    yield from (click.style(line, fg=colour) if colour else line for line in lines)
