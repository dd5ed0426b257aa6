"""A neural memory attached to a frozen causal language model that was trained without one.

``model`` is a model with a memory beside it, for programs; ``policy`` what a local policy does with one; ``training``
trains the memory's own projections, and only those. Nothing is imported here: type
``from twoclock.models.retrofit.model import Retrofitted``.
"""

from __future__ import annotations

__all__: list[str] = []
"""Modules are imported by name."""
