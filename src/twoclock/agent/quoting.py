"""Text that others wrote, set into a prompt as data: it cannot open a turn, close its block or hide characters.

What a tool gives and what a model wrote as a subtask's result stand in prompts as blocks whose every line is quoted. So
nothing inside can look like the prompt's own lines, and there is no end mark to forge. What counts as neutral text is
said once, in :mod:`twoclock.memory.rendering`.
"""

from __future__ import annotations

from twoclock.memory.rendering import neutral

__all__ = ["QUOTE", "block", "bounded"]

QUOTE = "> "
"""Begins every line of a block."""


def bounded(text: str, limit: int) -> str:
    """The first ``limit`` characters, with a line that says what was cut."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut: the first {limit:,} of {len(text):,} characters]"


def block(label: str, text: str) -> str:
    """A labelled block of data; ``label`` stands in one line, ``text`` in quoted ones. Both are made neutral."""
    lines = neutral(text).splitlines() or [""]
    return "\n".join([" ".join(neutral(label).split()), *(QUOTE + line for line in lines)])
