"""Agents: episodes of several turns, trials on the same item, planners and executors, and the tools that they call."""

from __future__ import annotations
