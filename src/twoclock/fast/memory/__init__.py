"""The memory channels: cases, reflections, subtasks and tools, each a bank of entries that is asked item by item."""

from __future__ import annotations
