"""The channel ``experts``: which experts of a library are mixed into the weights, task by task. See :mod:`.channel`."""

from __future__ import annotations

from twoclock.fast.experts.channel import ExpertsChannel
from twoclock.fast.experts.config import ExpertsConfig
from twoclock.fast.experts.mixer import Library
from twoclock.fast.experts.state import ExpertsState, Mixture

__all__ = ["ExpertsChannel", "ExpertsConfig", "ExpertsState", "Library", "Mixture"]
