"""Tool memory: which tool helped in which situation, and the results of pure calls.

What is remembered of a call is an entry of kind ``tool``: its key is the situation (the subtask), its body the tool,
the arguments and the beginning of the result, its reward what the episode earned. :func:`suggest` reads the entries of
situations like the present one from whatever can be searched: a bank or a store. Of an effectful tool neither arguments
nor result are kept: what it did is not to be done again because it was done once.

Results of pure calls are kept apart (:class:`ResultCache`), by exact arguments; as entries they stand in a scope that
no search of situations reads.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from twoclock.agent.planned_episode import PlannedEpisode
from twoclock.agent.toolbox import Known, Toolbox
from twoclock.agent.tools import Tool
from twoclock.errors import ConfigError
from twoclock.hashing import canonical_json
from twoclock.memory.records import Entry, Hit, Kind, Scope
from twoclock.memory.rendering import Bounds, render
from twoclock.tasks.text import clip
from twoclock.types import Conditioning

__all__ = ["ResultCache", "Searchable", "Suggestion", "suggest", "suggestion_notes", "tool_entries"]

SITUATION_CHARS = 500
RESULT_CHARS = 200
CANDIDATES = 32
"""Entries of like situations that a suggestion is made from."""
PRIOR_USES, PRIOR_REWARD = 1.0, 0.5
"""What a tool is taken to be worth before it was used: so many uses that earned so much."""
SUCCESS = 0.5
"""The reward from which on an episode counts as a success."""
RESULTS = "tool results"
"""The session that remembered results are scoped to."""
TOOLS: tuple[Kind, ...] = ("tool",)


class Searchable(Protocol):
    """What memory is asked through: :class:`~twoclock.memory.bank.Bank` and the store alike."""

    def search(
        self, query: str, *, scope: Scope | None = None, k: int = 5, kinds: Collection[Kind] | None = None, now: float
    ) -> Sequence[Hit]: ...


# --------------------------------------------------------------------------------------------------- what tools helped


def tool_entries(
    episode: PlannedEpisode,
    toolbox: Toolbox,
    reward: float,
    *,
    provenance: str,
    scope: Scope | None = None,
    created: float = 0.0,
) -> tuple[Entry, ...]:
    """An entry for each call of the episode to a tool of the toolbox, in order, each once.

    A call shares the reward of its episode; one that gave an error, or whose subtask came to nothing, earned 0 whatever
    the others did. What went wrong before a tool was reached (an unknown name, wrong arguments) says nothing of tools
    and is left out. An episode that a policy's failure ended gives none.
    """
    if episode.error:
        return ()
    entries: dict[str, Entry] = {}
    for subtask in episode.subtasks:
        for call in subtask.calls:
            if call.name not in toolbox or call.problem in ("unknown", "arguments", "busy"):
                continue
            earned = reward if subtask.done and not call.problem else 0.0
            text, body = _of_call(toolbox[call.name], call.arguments, call.result, earned)
            entry = Entry(
                kind="tool",
                key=clip(subtask.task, SITUATION_CHARS),
                text=text,
                scope=scope or Scope(),
                provenance=(provenance,),
                seen=tuple(dict.fromkeys([*episode.recalled, *subtask.recalled])),
                reward=earned,
                body=body,
                created=created,
            )
            entries.setdefault(entry.id, entry)
    return tuple(entries.values())


def _of_call(tool: Tool, arguments: Mapping[str, Any], result: str, earned: float) -> tuple[str, dict[str, Any]]:
    """(what a prompt shows of a call, the entry's body)"""
    helped = "helped" if earned >= SUCCESS else "did not help"
    body: dict[str, Any] = {"tool": tool.name, "version": tool.version, "helped": earned >= SUCCESS}
    if not tool.pure:
        return f"Calling {tool.name} {helped}.", body
    shown = clip(result, RESULT_CHARS)
    given = canonical_json(dict(arguments))
    text = f"Calling {tool.name} with {clip(given, 2 * RESULT_CHARS)} {helped}; it gave: {shown}"
    kept = dict(arguments) if len(given) <= 2 * RESULT_CHARS else {}
    return text, body | {"arguments": kept, "result": shown}


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One tool, by what its calls earned in situations like the present one."""

    tool: str
    value: float
    """The expected reward in [0, 1]: a kernel estimate, drawn to one half where there is little to go by."""
    uses: int
    """Episodes behind it."""
    entry: Entry
    """The nearest of its entries that says which it was: a success where ``value`` is at least one half."""


def suggest(
    memory: Searchable,
    situation: str,
    toolbox: Toolbox,
    *,
    now: float,
    scope: Scope | None = None,
    k: int = 3,
    candidates: int = CANDIDATES,
) -> tuple[Suggestion, ...]:
    """The tools that were used in situations like this one, the most helpful first; at most ``k``.

    A tool's value is ``(Σ w n r + p q) / (Σ w n + p)`` over its entries: ``r`` the reward, ``n`` the episodes, ``w``
    the search score against the best one, and ``p`` uses of reward ``q`` as the prior. Entries of tools that are not in
    the toolbox, or are there in another version, are stale and count for nothing. Raises ConfigError for ``k < 0``.
    """
    if k < 0:
        raise ConfigError(f"k, the number of suggestions, must be at least 0; got {k}")
    if k == 0 or not len(toolbox):
        return ()
    hits = memory.search(situation, scope=scope, k=candidates, kinds=TOOLS, now=now)
    best = max((hit.score for hit in hits), default=0.0)
    of_tool: dict[str, list[Hit]] = {}
    for hit in hits:
        name = hit.entry.body.get("tool")
        if isinstance(name, str) and name in toolbox and hit.entry.body.get("version") == toolbox[name].version:
            of_tool.setdefault(name, []).append(hit)
    made = [_suggestion(name, found, best) for name, found in of_tool.items()]
    return tuple(sorted(made, key=lambda s: (-s.value, s.tool))[:k])


def _suggestion(tool: str, hits: Sequence[Hit], best: float) -> Suggestion:
    weight, earned, uses = PRIOR_USES, PRIOR_USES * PRIOR_REWARD, 0
    for hit in hits:
        episodes = max(1, len(hit.entry.provenance))
        part = episodes * (hit.score / best if best > 0 else 1.0)
        weight, earned, uses = weight + part, earned + part * (hit.entry.reward or 0.0), uses + episodes
    value = earned / weight
    agreeing = [hit for hit in hits if bool(hit.entry.body.get("helped")) == (value >= SUCCESS)]
    return Suggestion(tool=tool, value=value, uses=uses, entry=(agreeing or hits)[0].entry)


def suggestion_notes(suggestions: Sequence[Suggestion], *, bounds: Bounds | None = None) -> Conditioning:
    """The suggestions as a conditioning: notes that quote their entries, and the entries' ids."""
    return render([s.entry for s in suggestions], bounds=bounds)


# ----------------------------------------------------------------------------------------------- results of pure calls


@dataclass(frozen=True, kw_only=True)
class _Kept:
    version: str
    known: Known
    arguments: Mapping[str, Any]
    created: float
    expires: float | None


class ResultCache:
    """Results of pure calls by tool and exact arguments; a :class:`~twoclock.agent.toolbox.Results`.

    A result is stale when its tool's version is another one, and expired after ``lifetime_s``; both are dropped when
    they are asked for. At most ``max_results`` are kept: the one that was not asked for longest goes first. May be
    used from several threads.
    """

    def __init__(
        self,
        *,
        lifetime_s: float | None = None,
        max_results: int = 1000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` gives seconds on the clock of ``Entry.created``."""
        problems = []
        if lifetime_s is not None and not lifetime_s > 0:
            problems.append(f"lifetime_s must be above 0, or None for no expiry; got {lifetime_s!r}")
        if max_results < 1:
            problems.append(f"max_results must be at least 1; got {max_results!r}")
        if problems:
            raise ConfigError(problems)
        self._lifetime_s, self._max_results, self._clock = lifetime_s, max_results, clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        """``hits``, ``misses``, and of the misses those that were ``stale`` or ``expired``."""

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, tool: Tool, arguments: Mapping[str, Any]) -> Known | None:
        key = (tool.name, canonical_json(dict(arguments)))
        with self._lock:
            kept = self._kept.get(key)
            reason = "" if kept is None else self._outdated(kept, tool.version)
            if kept is None or reason:
                self.counts["misses"] += 1
                if reason:
                    self.counts[reason] += 1
                    del self._kept[key]
                return None
            self.counts["hits"] += 1
            self._kept.move_to_end(key)
            return kept.known

    def _outdated(self, kept: _Kept, version: str) -> str:
        if kept.version != version:
            return "stale"
        return "expired" if kept.expires is not None and self._clock() >= kept.expires else ""

    def put(self, tool: Tool, arguments: Mapping[str, Any], value: Any, *, provenance: str) -> None:
        """Raises ConfigError for a tool that is not pure: its results must not be remembered."""
        if not tool.pure:
            raise ConfigError(
                f"tool '{tool.name}' is not pure, so its results cannot be remembered; see tool(pure=True)"
            )
        now = self._clock()
        known = Known(value=value, provenance=(provenance,) if provenance else ())
        expires = None if self._lifetime_s is None else now + self._lifetime_s
        self._keep(
            (tool.name, canonical_json(dict(arguments))),
            _Kept(version=tool.version, known=known, arguments=dict(arguments), created=now, expires=expires),
        )

    def _keep(self, key: tuple[str, str], kept: _Kept) -> None:
        with self._lock:
            self._kept[key] = kept
            self._kept.move_to_end(key)
            while len(self._kept) > self._max_results:
                self._kept.popitem(last=False)

    def entries(self, scope: Scope | None = None) -> tuple[Entry, ...]:
        """What is remembered, as entries for a bank or a store, the least recently asked first."""
        with self._lock:
            kept = list(self._kept.items())
        return tuple(
            Entry(
                kind="tool",
                key=clip(f"{name} {given}", SITUATION_CHARS),
                text=clip(canonical_json(k.known.value), RESULT_CHARS),
                scope=_results_scope(scope),
                provenance=k.known.provenance,
                trust="self",
                body={
                    "cached": {
                        "tool": name,
                        "version": k.version,
                        "arguments": dict(k.arguments),
                        "value": k.known.value,
                    }
                },
                created=k.created,
                expires=k.expires,
            )
            for (name, given), k in kept
        )

    def absorb(self, entries: Iterable[Entry], scope: Scope | None = None) -> int:
        """Takes up remembered results, as :meth:`entries` wrote them, that a reader of ``scope`` may see; how many.

        Other entries are passed over, and so is what is expired, quarantined or imported: a result that nobody here saw
        is a claim, not a result.
        """
        taken, now = 0, self._clock()
        for entry in entries:
            cached = entry.body.get("cached")
            if not isinstance(cached, Mapping) or not entry.live(now) or entry.trust == "imported":
                continue
            if not _results_scope(scope).may_read(entry.scope) or set(cached) != {
                "tool",
                "version",
                "arguments",
                "value",
            }:
                continue
            kept = _Kept(
                version=str(cached["version"]),
                known=Known(value=cached["value"], provenance=entry.provenance),
                arguments=dict(cached["arguments"]),
                created=entry.created,
                expires=entry.expires,
            )
            self._keep((str(cached["tool"]), canonical_json(dict(kept.arguments))), kept)
            taken += 1
        return taken


def _results_scope(scope: Scope | None) -> Scope:
    """The scope of remembered results within a scope: none that a search of situations has."""
    scope = scope or Scope()
    return replace(scope, session=f"{scope.session}/{RESULTS}" if scope.session else RESULTS)
