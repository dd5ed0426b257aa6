"""Agent memory: entries with provenance, scope and measured effect; a store that keeps them, searches and undoes."""

from __future__ import annotations

from twoclock.memory.records import Effect, Entry, Hit, Kind, Scope, Trust

__all__ = ["Effect", "Entry", "Hit", "Kind", "Scope", "Trust"]
