"""``twoclock memory``: what an agent's memory file holds, what it is worth, and taking writes back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twoclock.cli import memory_writes
from twoclock.cli.memory_shared import (
    KINDS,
    find_entry,
    kind_option,
    measured,
    open_memory,
    scope_of,
    scope_options,
    store_option,
)
from twoclock.cli.output import clean, json_option, one_line, say, show, show_json, table

if TYPE_CHECKING:
    from twoclock.memory.records import Entry
    from twoclock.memory.store import MemoryStore


MOST_COMPARED = 5_000
"""Entries; of more, 'stats' does not compare all with all."""


@click.group("memory")
def command() -> None:
    """An agent's memory: its entries, what they are worth, where they come from; undo of any write.

    An entry is named by the first characters of its id, a write by its number (see ls --events).
    """


for verb in (memory_writes.add, memory_writes.edit, memory_writes.undo, memory_writes.export, memory_writes.import_):
    command.add_command(verb)


@command.command("ls", short_help="List the entries, or the writes.")
@store_option
@scope_options
@kind_option
@click.option("--events", is_flag=True, help="The writes instead of the entries, newest last.")
@click.option("--retired", is_flag=True, help="Also what is retired or replaced.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Only the newest N.")
@json_option
def ls(
    path: Path, kinds: tuple[str, ...], events: bool, retired: bool, limit: int | None, as_json: bool, **scope: str
) -> None:
    """List the entries: id, kind, what showing it was measured to do, what it says.

    With a scope, what a reader of that scope may see; without, everything.

    \b
    Keys of --json: store, entries [{id, kind, key, text, scope, trust, reward,
    provenance, seen, body, created, expires, replaces, effect {shown, held,
    difference, interval, estimate, estimate_interval, helps, verdict}}]; with
    --events: store, events [{seq, id, at, actor, action, entries, payload,
    target, undone}].
    """
    from twoclock.cli.memory_words import entry_json, entry_line, event_json, event_line
    from twoclock.memory.records import Effect

    with open_memory(path) as store:
        if events:
            writes = store.events()
            shown = writes[-limit:] if limit else writes
            if as_json:
                show_json({"store": str(path), "events": [event_json(event) for event in shown]})
                return
            for event in shown:
                show(event_line(event))
            _left_out(len(writes) - len(shown), "write")
            return
        wanted = set(kinds) or set(KINDS)
        every = store.entries(scope=scope_of(scope), include_retired=retired)
        found = [entry for entry in every if entry.kind in wanted]
        live = {entry.id for entry in store.entries()} if retired else {entry.id for entry in found}
        effects, prior = measured(store)
    kept = found[-limit:] if limit else found
    if as_json:
        told = [entry_json(entry, effects.get(entry.id, Effect()), prior) for entry in kept]
        show_json({"store": str(path), "entries": told})
        return
    for entry in kept:
        show(entry_line(entry, effects.get(entry.id, Effect()), prior, "" if entry.id in live else "retired"))
    _left_out(len(found) - len(kept), "entry")
    if not found:
        say("no entry matches" if every or any(scope.values()) else "the memory is empty")


def _left_out(number: int, what: str) -> None:
    if number:
        say(f"{number} older {what if number == 1 else {'entry': 'entries'}.get(what, what + 's')} not shown")


@command.command("show", short_help="One entry: provenance, versions, effect, contradictions.")
@click.argument("entry_id", metavar="ID")
@store_option
@json_option
def show_entry(entry_id: str, path: Path, as_json: bool) -> None:
    """One entry: what it says, where it comes from, its versions and writes, its effect, what contradicts it.

    \b
    Keys of --json: those of an entry (see ls), and live, reason, adds,
    versions (ids, newest first), events, conflicts [{with, kind, why,
    favoured, evidence}].
    """
    from twoclock.cli.memory_words import conflict_lines, effect_words, entry_json, event_json, event_line
    from twoclock.memory.conflicts import find_conflicts

    with open_memory(path) as store:
        entry = find_entry(store, entry_id)
        state = store.state(entry.id)
        assert state is not None
        versions, history = store.versions(entry.id), store.history(entry.id)
        _, prior = measured(store)
        conflicts = find_conflicts(store.entries(), store.effects(), about=entry.id)
    if as_json:
        told = [
            {
                "with": c.second.id if c.first.id == entry.id else c.first.id,
                **{name: getattr(c, name) for name in ("kind", "why", "favoured", "evidence")},
            }
            for c in conflicts
        ]
        more = {"live": state.live, "reason": state.reason, "adds": state.adds, "versions": [v.id for v in versions]}
        events = [event_json(event) for event in history]
        show_json({**entry_json(entry, state.effect, prior), **more, "events": events, "conflicts": told})
        return
    sections = [("", _facts(entry, state)), ("effect", effect_words(state.effect, prior))]
    sections.append(("versions, newest first", [f"{v.id}  {one_line(v.text, 56)}" for v in versions[1:]]))
    sections.append(("contradictions", [line for c in conflicts for line in conflict_lines(c, entry.id)]))
    sections.append(("writes", [event_line(event) for event in history]))
    for title, lines in sections:
        if lines:
            show(f"\n{title}:" if title else f"{entry.id} ({entry.kind})")
            show("\n".join(f"  {line}" for line in lines))


def _facts(entry: Entry, state: Any) -> list[str]:
    from twoclock.cli.memory_words import day, scope_words

    standing = "live" if state.live else f"not live: {state.reason}"
    rows = [
        ["key", one_line(entry.key, 64)],
        ["scope", scope_words(entry.scope) or "open to everyone"],
        ["trust", entry.trust],
        ["reward", "–" if entry.reward is None else f"{entry.reward:.2f}"],
        ["standing", standing + (f", written {state.adds} times" if state.adds > 1 else "")],
        ["created", day(entry.created) + (f", expires {day(entry.expires)}" if entry.expires is not None else "")],
        ["from", one_line(", ".join(entry.provenance), 64) or "nothing named"],
    ]
    rows += [["shown then", " ".join(name[:8] for name in entry.seen[:6])]] if entry.seen else []
    rows += [["body", one_line(", ".join(entry.body), 64)]] if entry.body else []
    text = [f"  {line}" for line in clean(entry.text).splitlines()]
    return [*table(rows, indent="").splitlines(), "text", *text]


@command.command("search", short_help="What a reader of a scope finds.")
@click.argument("query")
@store_option
@scope_options
@kind_option
@click.option("-k", "number", metavar="N", type=click.IntRange(min=1), default=5, show_default=True, help="How many.")
@json_option
def search(query: str, path: Path, kinds: tuple[Any, ...], number: int, as_json: bool, **scope: str) -> None:
    """What a reader of a scope finds for a query, best first; by words, where no encoder is at hand.

    Keys of --json: store, query, hits [{id, score, similarity, lexical, entry}].
    """
    from twoclock.cli.memory_words import entry_json, hit_line
    from twoclock.memory.records import Effect

    with open_memory(path) as store:
        hits = store.search(query, scope=scope_of(scope), k=number, kinds=kinds or None)
        effects, prior = measured(store)
        closed = 0 if any(scope.values()) else sum(1 for e in store.entries() if any(vars(e.scope).values()))
    if as_json:
        told = [
            {
                **{name: getattr(hit, name) for name in ("score", "similarity", "lexical")},
                "id": hit.entry.id,
                "entry": entry_json(hit.entry, effects.get(hit.entry.id, Effect()), prior),
            }
            for hit in hits
        ]
        show_json({"store": str(path), "query": query, "hits": told})
        return
    for place, hit in enumerate(hits, 1):
        show(hit_line(hit, place))
    if not hits:
        say("nothing found")
    if closed:
        what = "entry is" if closed == 1 else "entries are"
        say(f"{closed} {what} closed to a reader of no scope; name one: --agent, --user, --task, --session")


@command.command("stats", short_help="How much of what, what it is worth, how much is junk.")
@store_option
@json_option
def stats(path: Path, as_json: bool) -> None:
    """How much there is of what, what it is worth, and how much of it is junk.

    \b
    Keys of --json: store, entries, retired, bytes, kinds, scopes, trusts,
    verdicts, junk_share (of the entries with a verdict), duplicates, refused,
    conflicts, reads, outcomes, events, undone, mean_effect, effect_spread.
    """
    with open_memory(path) as store:
        told = {"store": str(path), **_stats(store)}
    if as_json:
        show_json(told)
        return
    rows = [
        ["entries", f"{told['entries']} live, {told['retired']} retired, {told['bytes'] / 1e6:.1f} MB on disk"],
        *([name, _counts(told[name])] for name in ("kinds", "scopes", "trusts")),
        ["measured", _counts(told["verdicts"])],
        ["junk", _junk(told)],
        ["not kept", f"{told['duplicates']} duplicates, {told['refused']} that repeated what memory had shown"],
        ["conflicts", _conflicts(told["conflicts"])],
        ["reads", f"{told['reads']}, {told['outcomes']} with an outcome"],
        ["effects", f"mean {told['mean_effect']:+.3f}, spread {told['effect_spread']:.3f} (reward a showing)"],
        ["writes", f"{told['events']}, {told['undone']} of them undone"],
    ]
    show(table(rows, indent=""))


def _counts(counts: dict[str, int]) -> str:
    return one_line(", ".join(f"{name} {number}" for name, number in counts.items()) or "none", 68)


def _conflicts(number: int | None) -> str:
    if number is None:
        return f"not counted beyond {MOST_COMPARED} entries; 'show ID' tells those of one"
    return f"{number} (pairs of entries that contradict each other)"


def _junk(told: dict[str, Any]) -> str:
    share = told["junk_share"]
    if share is None:
        return "no entry has a verdict yet"
    bad = told["verdicts"].get("harms", 0) + told["verdicts"].get("useless", 0)
    return f"{bad} measured useless or harmful: {share:.0%} of the entries with a verdict"


def _stats(store: MemoryStore) -> dict[str, Any]:
    from collections import Counter

    from twoclock.cli.memory_words import scope_words
    from twoclock.memory.conflicts import find_conflicts
    from twoclock.memory.effects import verdict
    from twoclock.memory.records import Effect

    counts, entries = store.stats(), store.entries()
    effects, prior = measured(store)
    verdicts = Counter(verdict(effects.get(entry.id, Effect()), prior=prior) for entry in entries)
    decided = len(entries) - verdicts["unknown"]
    return {
        "entries": len(entries),
        "retired": counts["standing"].get("retired", 0),
        "bytes": counts["bytes"],
        "kinds": dict(Counter(entry.kind for entry in entries)),
        "scopes": dict(Counter(scope_words(entry.scope) or "open" for entry in entries).most_common()),
        "trusts": dict(Counter(entry.trust for entry in entries)),
        "verdicts": dict(sorted(verdicts.items())),
        "junk_share": (verdicts["harms"] + verdicts["useless"]) / decided if decided else None,
        "duplicates": counts["duplicates"]["adds"],
        "refused": counts["action"].get("refuse", 0),
        "conflicts": len(find_conflicts(entries, effects)) if len(entries) <= MOST_COMPARED else None,
        "reads": counts["rows"]["readings"],
        "outcomes": counts["action"].get("effect", 0),
        "events": counts["rows"]["events"],
        "undone": counts["rows"]["undone"],
        "mean_effect": prior.mean,
        "effect_spread": prior.spread,
    }
