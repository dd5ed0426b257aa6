"""A run on disk: its ledger, the states of its channels, its configuration. One folder a run; see :class:`RunStore`."""

from __future__ import annotations

from twoclock.store.environment import describe_environment
from twoclock.store.rollouts import KeptRollout, RolloutRow
from twoclock.store.rows import RoundRow
from twoclock.store.run import RunStore

__all__ = ["KeptRollout", "RunStore", "RoundRow", "RolloutRow", "describe_environment"]
