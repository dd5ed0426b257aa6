"""Results of pure calls, remembered: by tool, version and exact arguments, with provenance and expiry.

They can be written out as entries of a bank or a store and taken up again; those stand in a scope of their own, which
no search of situations reads.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from twoclock.agent.toolbox import Known
from twoclock.agent.tools import Tool
from twoclock.errors import ConfigError
from twoclock.hashing import canonical_json
from twoclock.memory.records import Entry, Scope
from twoclock.tasks.text import clip

__all__ = ["RESULTS", "ResultCache"]

RESULTS = "tool results"
"""The session that remembered results are scoped to."""
SHOWN_CHARS = 500


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
                key=clip(f"{name} {given}", SHOWN_CHARS),
                text=clip(canonical_json(k.known.value), SHOWN_CHARS),
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
