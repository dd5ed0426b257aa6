"""The verbs of ``twoclock memory`` that write: add, edit, undo, import; and export, which writes elsewhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from twoclock.cli.memory_shared import (
    ACTOR,
    KINDS,
    TRUSTS,
    entries_of_run,
    find_entry,
    kind_option,
    open_memory,
    scope_of,
    scope_options,
    store_option,
)
from twoclock.cli.output import json_option, say, show, show_json
from twoclock.errors import ConfigError

__all__ = ["add", "edit", "export", "import_", "undo"]


@click.command("add", short_help="Keep an entry.")
@click.argument("key")
@click.argument("text")
@store_option
@scope_options
@click.option("--kind", type=click.Choice(KINDS), default="note", show_default=True, help="What it is.")
@click.option("--trust", type=click.Choice(TRUSTS), default="user", show_default=True, help="Who vouches for it.")
@click.option("--reward", metavar="R", type=float, help="What its episode earned, in [0, 1].")
@json_option
def add(
    key: str, text: str, path: Path, kind: Any, trust: Any, reward: float | None, as_json: bool, **scope: str
) -> None:
    """Keep an entry: KEY is the situation that it is found by, TEXT what is shown ('-' reads standard input).

    Keys of --json: seq, entry_id, action (added | merged | refused), reason.
    """
    from twoclock.memory.records import Entry, Scope

    said = sys.stdin.read() if text == "-" else text
    entry = Entry(kind=kind, key=key, text=said, scope=scope_of(scope) or Scope(), trust=trust, reward=reward)
    from twoclock.memory.entries import require_proper

    require_proper(entry)  # before a file is made for it
    with open_memory(path, create=True) as store:
        receipt = store.add(entry, actor=ACTOR)
    _told(receipt, as_json)


def _told(receipt: Any, as_json: bool) -> None:
    if as_json:
        show_json(dict(vars(receipt)))
        return
    words = {"added": "kept as", "merged": "it was there already:", "refused": "refused:"}[receipt.action]
    show(f"{words} {receipt.entry_id if receipt.action != 'refused' else receipt.reason}")
    if receipt.action != "refused":
        say(f"to take this back: twoclock memory undo {receipt.seq}")


@click.command("edit", short_help="Write a new version of an entry, or retire it.")
@click.argument("entry_id", metavar="ID")
@store_option
@click.option("--key", metavar="KEY", help="The new key.")
@click.option("--text", metavar="TEXT", help="The new text; '-' reads standard input.")
@click.option("--retire", metavar="REASON", help="Show it no more, for this reason; its history stays.")
@json_option
def edit(entry_id: str, path: Path, key: str | None, text: str | None, retire: str | None, as_json: bool) -> None:
    """Write a new version of an entry, or retire it. The old one stays in the history.

    Keys of --json: seq, entry_id, action, reason.
    """
    if (retire is None) == (key is None and text is None):
        raise ConfigError("say what is to change: --key and --text for a new version, or --retire REASON")
    with open_memory(path) as store:
        found = find_entry(store, entry_id)
        if retire is not None:
            event = store.retire(found.id, retire, actor=ACTOR)
            told = {"seq": event.seq, "entry_id": found.id, "action": "retired", "reason": retire}
            show_json(told) if as_json else show(
                f"retired {found.id}; to take this back: twoclock memory undo {event.seq}"
            )
            return
        said = sys.stdin.read() if text == "-" else text
        receipt = store.edit(found.id, key=key, text=said, actor=ACTOR)
    _told(receipt, as_json)


@click.command("undo", short_help="Take back a write, any write.")
@click.argument("event")
@store_option
@json_option
def undo(event: str, path: Path, as_json: bool) -> None:
    """Take back a write, any write: EVENT is its number (see ls --events). An undo can be undone too.

    Keys of --json: those of an event (see ls).
    """
    from twoclock.cli.memory_words import event_json

    given = event.removeprefix("#")
    with open_memory(path) as store:
        done = store.undo(int(given) if given.isascii() and given.isdigit() and len(given) < 16 else event, actor=ACTOR)
    if as_json:
        show_json(event_json(done))
    else:
        show(f"#{done.target} is taken back, by #{done.seq}")


@click.command("export", short_help="Write entries as JSONL or SKILL.md folders.")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@store_option
@scope_options
@kind_option
@click.option("--skills", is_flag=True, help="SKILL.md folders in the folder OUT, instead of a JSONL file.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.option(
    "--run", metavar="RUN", type=click.Path(path_type=Path), help="What a run's memory channels hold instead."
)
@click.option("--round", "number", metavar="N", type=int, help="With --run: as round N left it.")
def export(
    out: Path,
    path: Path,
    kinds: tuple[Any, ...],
    skills: bool,
    force: bool,
    run: Path | None,
    number: int | None,
    **scope: str,
) -> None:
    """Write the live entries to a JSONL file, with provenance and effects, or as SKILL.md folders.

    With --run they are those of the run's memory channels, such as cases; 'import' takes them up into a memory file.
    """
    from twoclock.memory.skills import export_skills
    from twoclock.memory.transfer import export_jsonl

    if run is not None:
        entries, effects = entries_of_run(run, number, scope_of(scope), kinds)
    elif number is not None:
        raise ConfigError("--round goes with --run RUN; a memory file has writes: see ls --events")
    else:
        with open_memory(path) as store:
            entries = store.entries(scope=scope_of(scope), kinds=kinds or None)
            effects = store.effects()
    if skills:
        count = len(export_skills(out, entries, overwrite=force))
    else:
        count = export_jsonl(out, entries, effects, overwrite=force)
    show(f"wrote {count} {'entry' if count == 1 else 'entries'} to {out}")


@click.command("import", short_help="Keep entries from JSONL or SKILL.md folders.")
@click.argument("source", metavar="FROM", type=click.Path(path_type=Path))
@store_option
@scope_options
@click.option(
    "--trust",
    type=click.Choice(TRUSTS),
    default="imported",
    show_default=True,
    help="What the entries are marked with.",
)
@json_option
def import_(source: Path, path: Path, trust: Any, as_json: bool, **scope: str) -> None:
    """Keep the entries of a JSONL file, or the skills of a folder; all of them, or none where one is wrong.

    With a scope they become that scope's. Measured effects are told, not taken over: they belong to the memory and
    the model that they were measured with.

    Keys of --json: added, merged, refused, effects.
    """
    from twoclock.memory.skills import import_skills
    from twoclock.memory.transfer import import_jsonl

    inside = scope_of(scope)
    found = import_skills(source, trust=trust) if source.is_dir() else import_jsonl(source, trust=trust)
    entries = [replace(entry, scope=inside) if inside else entry for entry in found.entries]
    with open_memory(path, create=True) as store:
        receipts = store.add_many(entries, actor=ACTOR)
    counts = {action: sum(r.action == action for r in receipts) for action in ("added", "merged", "refused")}
    if as_json:
        show_json({**counts, "effects": len(found.effects)})
        return
    show(", ".join(f"{number} {action}" for action, number in counts.items()))
    for receipt in receipts:
        if receipt.action == "refused":
            say(f"refused {receipt.entry_id[:8]}: {receipt.reason}")
    if found.effects:
        say(f"{len(found.effects)} measured effects stand in the file and were not taken over")
