"""What the verbs of ``twoclock memory`` share: options, opening the file, finding an entry by the start of its id."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from twoclock.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from twoclock.memory.effects import Prior
    from twoclock.memory.records import Effect, Entry, Scope
    from twoclock.memory.store import MemoryStore

__all__ = [
    "ACTOR",
    "KINDS",
    "SHORTEST_PREFIX",
    "TRUSTS",
    "entries_of_run",
    "find_entry",
    "kind_option",
    "measured",
    "open_memory",
    "scope_of",
    "scope_options",
    "store_option",
]

F = TypeVar("F", bound=Callable[..., Any])

KINDS = ("case", "reflection", "subtask", "tool", "note", "skill")
TRUSTS = ("verified", "self", "user", "imported", "quarantined")
ACTOR = "command line"
SHORTEST_PREFIX = 4

store_option = click.option(
    "--store",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    default="memory.sqlite",
    envvar="TWOCLOCK_MEMORY",
    show_default=True,
    show_envvar=True,
    help="The memory file.",
)
kind_option = click.option(
    "--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Only this kind; may repeat."
)


def scope_options(command: F) -> F:
    """--agent, --user, --task, --session, as one argument ``scope``."""
    for name in ("session", "task", "user", "agent"):
        command = click.option(f"--{name}", metavar="NAME", default="", help=f"Of this {name}.")(command)
    return command


def scope_of(parts: dict[str, str]) -> Scope | None:
    """The scope that was named; None where none was."""
    from twoclock.memory.records import Scope

    return Scope(**parts) if any(parts.values()) else None


def open_memory(path: Path, *, create: bool = False) -> MemoryStore:
    from twoclock.memory.store import MemoryStore

    if not create and not path.exists():
        raise StoreError(
            f"there is no memory {path}; name one with --store FILE or TWOCLOCK_MEMORY, or begin one: "
            "twoclock memory add KEY TEXT"
        )
    return MemoryStore.open(path, create=create)


def entries_of_run(
    run: Path, number: int | None, scope: Scope | None, kinds: Collection[str]
) -> tuple[list[Entry], dict[str, Effect]]:
    """(entries, effects) that a run's memory channels hold, live or as a round left them."""
    from twoclock.build import build_channel
    from twoclock.contracts import Remembering
    from twoclock.store import RunStore

    def nobody(prompt: str) -> str:
        raise AssertionError("a state is read, nothing is proposed")

    entries: list[Entry] = []
    effects: dict[str, Effect] = {}
    with RunStore.open(run) as store:
        snapshot = store.head() if number is None else store.snapshot_at(number)
        remembering = 0
        for name, digest in snapshot.states.items():
            channel = build_channel(name, store.config["channels"][name], nobody, store.config.get("base_dir"))
            if isinstance(channel, Remembering):
                remembering += 1
                bank = channel.bank(channel.load(store.get_blob(digest)))
                entries += bank.entries
                effects |= bank.effects
        if not remembering:
            there = ", ".join(snapshot.states)
            raise ConfigError(
                f"no channel of {run} remembers; it has: {there}. Memory is kept by channels such as cases"
            )
    kept = [e for e in entries if (scope is None or scope.may_read(e.scope)) and (not kinds or e.kind in kinds)]
    return kept, {entry.id: effects[entry.id] for entry in kept if entry.id in effects}


def find_entry(store: MemoryStore, prefix: str) -> Entry:
    """The one entry, retired or not, whose id begins so."""
    if len(prefix) < SHORTEST_PREFIX:
        raise ConfigError(f"an entry is named by at least {SHORTEST_PREFIX} characters of its id; got {prefix!r}")
    if (exact := store.get(prefix)) is not None:
        return exact
    found = [entry for entry in store.entries(include_retired=True) if entry.id.startswith(prefix)]
    if len(found) > 1:
        names = ", ".join(entry.id for entry in found[:5])
        raise ConfigError(f"{len(found)} entries begin with {prefix!r}: {names}; give more of the id")
    if not found:
        raise ConfigError(f"no entry's id begins with {prefix!r}; 'twoclock memory ls' lists them")
    return found[0]


def measured(store: MemoryStore) -> tuple[dict[str, Effect], Prior]:
    from twoclock.memory.effects import fit_prior

    effects = store.effects()
    return effects, fit_prior(effects.values())
