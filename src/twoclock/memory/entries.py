"""Entries as plain JSON and back, what a proper entry is, and when one merely repeats what it was shown.

The guard against self-feeding: what memory showed comes back in what a model writes, and written down again it would
look like independent evidence for itself. An entry names the entries that were shown when it was written (``seen``);
one that says (nearly) what they say is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from twoclock.errors import ConfigError, unknown_name
from twoclock.hashing import canonical_json
from twoclock.memory.records import KINDS, TRUSTS, Effect, Entry, Scope
from twoclock.memory.words import words_of

__all__ = [
    "effect_of",
    "effect_to_json",
    "entry_of",
    "entry_to_json",
    "merged",
    "problems",
    "repeated",
    "require_outcome",
    "require_proper",
    "scope_of",
    "scope_to_json",
]

LONGEST_CHARS = 1_000_000
"""Of key and text together: an entry is something to show in a prompt, an episode's transcript belongs elsewhere."""

LARGEST_OUTCOME = 1e6
"""Rewards lie in [0, 1]; what is far outside is a mistake that would drown every other outcome."""

REPEAT_GRAM, REPEAT_SHARE = 3, 0.7
"""A text repeats another when at least this share of its runs of so many words stand in it."""

OBSERVED = ("case", "tool", "subtask")
"""Kinds that record what happened in a situation: that an old answer worked in a new situation is news, so these repeat
only what says the same of the same situation. A lesson in words repeats whatever its key."""


# ------------------------------------------------------------------------------------------------- what is proper


def problems(entry: Entry) -> list[str]:
    """Everything that is wrong with an entry, as sentences; none for a proper one."""
    found: list[str] = []
    given: Any = entry
    if not isinstance(given, Entry):
        return [f"memory keeps entries; got {type(given).__name__}; write Entry(kind='note', key=..., text=...)"]
    if entry.kind not in KINDS:
        found.append(unknown_name("kind of entry", str(entry.kind), KINDS))
    if entry.trust not in TRUSTS:
        found.append(unknown_name("trust", str(entry.trust), TRUSTS))
    texts: dict[str, Any] = {"key": entry.key, "text": entry.text}
    texts |= {f"scope.{f.name}": getattr(entry.scope, f.name, None) for f in fields(Scope)}
    for name in ("provenance", "seen"):
        value: Any = getattr(entry, name)
        if not isinstance(value, tuple):
            found.append(f"{name} must be a tuple of names; got {value!r:.60}")
        else:
            texts |= {f"{name}[{n}]": part for n, part in enumerate(value)}
    found += [problem for name, value in texts.items() if (problem := _text_problem(name, value))]
    if not found and not (entry.key.strip() or entry.text.strip()):
        found.append("an entry needs words to be found by or to show: key and text are both empty")
    if not found and len(entry.key) + len(entry.text) > LONGEST_CHARS:
        found.append(
            f"key and text have {len(entry.key) + len(entry.text)} characters, {LONGEST_CHARS} are allowed; keep the "
            "whole as an episode and a part of it as the entry"
        )
    return [*found, *_number_problems(entry), *_body_problems(entry)]


def _text_problem(name: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return f"{name} must be a string; got {value!r:.60}"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{name} has half a character at position {error.start} (a lone surrogate), which no file can hold"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number_problems(entry: Entry) -> list[str]:
    found: list[str] = []
    replaces: Any = entry.replaces
    if entry.reward is not None and not (_is_number(entry.reward) and 0.0 <= entry.reward <= 1.0):
        found.append(f"a reward must lie in [0, 1], or be None where nobody graded; got {entry.reward!r}")
    if not _is_number(entry.created):
        found.append(f"created must be a finite time; got {entry.created!r}")
    if entry.expires is not None and not _is_number(entry.expires):
        found.append(f"expires must be a finite time, or None for never; got {entry.expires!r}")
    if not isinstance(replaces, str | None):
        found.append(f"replaces must be an entry's id, or None; got {replaces!r:.60}")
    return found


def _body_problems(entry: Entry) -> list[str]:
    try:
        plain = dict(entry.body)
        if json.loads(canonical_json(plain).encode("utf-8")) != plain:
            raise ValueError("it would come back changed: only strings may be keys, and lists stay lists")
    except (TypeError, ValueError, RecursionError) as error:
        return [f"the body must be plain JSON: {error}"]
    return []


def require_proper(entry: Entry) -> Entry:
    """The entry itself. Raises ConfigError with all that is wrong with it."""
    if found := problems(entry):
        raise ConfigError(found)
    return entry


def require_outcome(value: float) -> float:
    """An outcome to credit. Raises ConfigError for what is no number that sums of squares can hold."""
    if not _is_number(value) or abs(value) > LARGEST_OUTCOME:
        raise ConfigError(f"an outcome is a reward (minus its baseline): a finite number near [-1, 1]; got {value!r}")
    return float(value)


def merged(old: Entry, new: Entry) -> Entry:
    """What is known of an entry that was written twice: the first one, with the provenance of both."""
    more = tuple(name for name in dict.fromkeys(new.provenance) if name not in old.provenance)
    return replace(old, provenance=old.provenance + more) if more else old


# ------------------------------------------------------------------------------------------------- no self-feeding


def repeated(entry: Entry, shown: Iterable[Entry]) -> str | None:
    """Why an entry is taken for an echo of the entries it was written under, or None.

    Measured on runs of three words (of the whole text where it is shorter); see :data:`OBSERVED` for what is compared.
    The id of an entry that was shown is an echo whatever its words.
    """
    for other in sorted(shown, key=lambda e: e.id):
        if entry.id == other.id:
            return f"it is the entry {other.id}, which was shown when it was written"
        if entry.kind in OBSERVED and words_of(entry.key) != words_of(other.key):
            continue
        share = _shared(entry.text, other.text)
        if share >= REPEAT_SHARE:
            return f"{share:.0%} of it repeats the entry {other.id}, which was shown when it was written"
    return None


def _shared(text: str, other: str) -> float:
    """The share of the text's runs of words that stand in the other; a text without words must be the same."""
    words, others = words_of(text), words_of(other)
    if not words:
        return float(text.split() == other.split())
    n = min(REPEAT_GRAM, len(words))
    theirs = {tuple(others[i : i + n]) for i in range(len(others) - n + 1)}
    own = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return sum(gram in theirs for gram in own) / len(own)


# -------------------------------------------------------------------------------------------------------- plain JSON


def scope_to_json(scope: Scope) -> dict[str, str]:
    return {f.name: getattr(scope, f.name) for f in fields(Scope) if getattr(scope, f.name)}


def scope_of(data: Mapping[str, Any]) -> Scope:
    return Scope(**data)


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """All fields, without those that stand at their default."""
    data: dict[str, Any] = {"kind": entry.kind, "key": entry.key, "text": entry.text}
    data |= {name: list(getattr(entry, name)) for name in ("provenance", "seen") if getattr(entry, name)}
    data |= {"scope": scope_to_json(entry.scope)} if entry.scope != Scope() else {}
    data |= {"body": dict(entry.body)} if entry.body else {}
    data |= {name: float(v) for name in ("reward", "expires") if (v := getattr(entry, name)) is not None}
    data |= {"created": float(entry.created)} if entry.created else {}
    data |= {"trust": entry.trust} if entry.trust != "verified" else {}
    return data | ({"replaces": entry.replaces} if entry.replaces is not None else {})


def entry_of(data: Mapping[str, Any]) -> Entry:
    """The inverse of :func:`entry_to_json`. Raises TypeError for a field that no entry has, or one that is missing."""
    given = dict(data)
    for name in ("provenance", "seen"):
        given[name] = tuple(given.get(name, ()))
    return Entry(**{**given, "scope": scope_of(given.get("scope", {}))})


def effect_to_json(effect: Effect) -> list[float]:
    return [effect.shown, effect.shown_sum, effect.shown_squares, effect.held, effect.held_sum, effect.held_squares]


def effect_of(data: list[float]) -> Effect:
    shown, shown_sum, shown_squares, held, held_sum, held_squares = data
    return Effect(
        shown=int(shown),
        shown_sum=float(shown_sum),
        shown_squares=float(shown_squares),
        held=int(held),
        held_sum=float(held_sum),
        held_squares=float(held_squares),
    )
