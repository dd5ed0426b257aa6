"""How entries, events and measured effects read on a terminal of 80 columns."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from twoclock.cli.output import clean, one_line

if TYPE_CHECKING:
    from twoclock.memory.conflicts import Conflict
    from twoclock.memory.effects import Prior, Verdict
    from twoclock.memory.events import Event
    from twoclock.memory.records import Effect, Entry, Hit, Scope

__all__ = [
    "COLORS",
    "conflict_lines",
    "day",
    "effect_json",
    "effect_words",
    "entry_json",
    "entry_line",
    "event_json",
    "event_line",
    "hit_line",
    "scope_words",
    "short_id",
]

WIDTH = 80
COLORS = {"helps": "green", "harms": "red", "useless": "yellow", "unknown": None}


def short_id(entry_id: str) -> str:
    return entry_id[:8]


def day(seconds: float) -> str:
    """A time of day in words; a round, where the clock is that of a run."""
    if not 1e8 < seconds < 4e10:
        return f"round {seconds:g}"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def scope_words(scope: Scope) -> str:
    """``user=anna, task=sums``; nothing for what is open to everyone."""
    return ", ".join(f"{name}={value}" for name, value in vars(scope).items() if value)


def verdict_in(effect: Effect, prior: Prior) -> Verdict:
    from twoclock.memory.effects import verdict

    return verdict(effect, prior=prior)


def entry_line(entry: Entry, effect: Effect, prior: Prior, retired: str = "") -> str:
    """One entry on one line: id, kind, what it is worth, whose it is, what it says."""
    judged = verdict_in(effect, prior)
    scope = scope_words(entry.scope)
    said = f"{entry.key} → {entry.text}" if entry.key.strip() else entry.text
    marks = [
        mark for mark in (scope, entry.trust if entry.trust in ("quarantined", "imported") else "", retired) if mark
    ]
    head = f"{short_id(entry.id)}  {entry.kind:<10}  "
    tail = "".join(f"[{mark}] " for mark in marks) + said
    verdict_text = f"{judged if judged != 'unknown' else '–':<7}"
    room = WIDTH - len(head) - len(verdict_text) - 2
    return f"{head}{click.style(verdict_text, fg=COLORS[judged])}  {one_line(tail, room)}"


def hit_line(hit: Hit, number: int) -> str:
    how = [
        f"{name} {value:.2f}"
        for name, value in (("score", hit.score), ("cosine", hit.similarity), ("words", hit.lexical))
        if value is not None
    ]
    head = f"{number}. {short_id(hit.entry.id)}  {hit.entry.kind}  ({', '.join(how)})"
    return f"{head}\n   {one_line(hit.entry.key, WIDTH - 3)}\n   {one_line(hit.entry.text, WIDTH - 3)}"


def effect_words(effect: Effect, prior: Prior) -> list[str]:
    """What showing an entry was measured to be worth: alone, and beside all others."""
    from twoclock.memory.effects import difference, estimate

    if not effect.shown and not effect.held:
        return ["never read with an outcome"]
    alone = difference(effect)
    lines = [f"shown in {effect.shown} reads, held out at random in {effect.held}"]
    if alone.estimate is None:
        return [*lines, "no difference yet: it takes reads of both sorts"]
    bounds = f" [{alone.low:+.2f}, {alone.high:+.2f}]" if math.isfinite(alone.low) else " (no interval yet)"
    own = estimate(effect, prior)
    low, high = own.interval()
    judged = verdict_in(effect, prior)
    return [
        *lines,
        f"reward with minus without: {alone.estimate:+.2f}{bounds}, from its own reads",
        f"beside all entries' effects: {own.value:+.2f} [{low:+.2f}, {high:+.2f}]; it helps with {own.helps:.0%}",
        "verdict: " + click.style(judged, fg=COLORS[judged]),
    ]


def event_line(event: Event) -> str:
    """One write on one line, with the number that ``undo`` takes."""
    what = event.action + (f" of #{event.target}" if event.target is not None else "")
    names = " ".join(short_id(name) for name in event.entries[:3]) + (" …" if len(event.entries) > 3 else "")
    payload = event.payload
    said = ""
    if "entry" in payload:
        said = f"{payload['entry'].get('key', '')} → {payload['entry'].get('text', '')}"
    if event.action == "refuse":
        said = str(payload.get("reason", ""))
    elif "reasons" in payload:
        said = "; ".join(dict.fromkeys(payload["reasons"].values()))
    elif "reason" in payload:
        said = str(payload["reason"])
    elif "value" in payload:
        said = f"outcome {payload['value']:+.2f}"
    undone = " (undone)" if event.undone else ""
    head = f"#{event.seq} {day(event.at)} {what}{undone} {names} by {one_line(event.actor, 20)}"
    return one_line(f"{head}: {said}" if said else head, WIDTH - 2)


def conflict_lines(conflict: Conflict, entry_id: str) -> list[str]:
    """A contradiction, as one of the two entries sees it."""
    other = conflict.second if conflict.first.id == entry_id else conflict.first
    favoured = {None: "neither is favoured", entry_id: "this one is favoured"}.get(
        conflict.favoured, "the other is favoured"
    )
    return [
        one_line(f"with {short_id(other.id)}: {other.text}", WIDTH - 4),
        *(
            f"  {line}"
            for said in (conflict.why, f"{favoured}: {conflict.evidence}")
            for line in textwrap.wrap(clean(said), WIDTH - 4)
        ),
    ]


# --------------------------------------------------------------------------------------------------------------- JSON


def effect_json(effect: Effect, prior: Prior) -> dict[str, Any]:
    from twoclock.memory.effects import difference, estimate

    alone, own = difference(effect), estimate(effect, prior)
    low, high = own.interval()
    return {
        "shown": effect.shown,
        "held": effect.held,
        "difference": alone.estimate,
        "interval": [alone.low, alone.high] if math.isfinite(alone.low) else None,
        "estimate": own.value,
        "estimate_interval": [low, high],
        "helps": own.helps,
        "verdict": verdict_in(effect, prior),
    }


def entry_json(entry: Entry, effect: Effect, prior: Prior) -> dict[str, Any]:
    """Every field, those at their default too."""
    return {
        "id": entry.id,
        **{name: value for name, value in vars(entry).items() if name not in ("id", "scope", "body")},
        "scope": dict(vars(entry.scope)),
        "provenance": list(entry.provenance),
        "seen": list(entry.seen),
        "body": dict(entry.body),
        "effect": effect_json(effect, prior),
    }


def event_json(event: Event) -> dict[str, Any]:
    return {**vars(event), "entries": list(event.entries), "payload": _plain(event.payload)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value
