"""The command line: one file a verb. Each parses, calls into the library and prints; no learning logic lives here."""

from __future__ import annotations

from twoclock.cli.app import main

__all__ = ["main"]
