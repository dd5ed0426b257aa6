"""What gates have refused, so that it is not tried again unchanged.

A trial has a chance of accepting what does nothing. Who proposes the same change of the same deployed state round
after round is let through in the end: so the second time the first answer stands, and costs nothing. A change is
named by what is deployed on the task before and after it, all channels together; where anything of that has moved,
such as the weights, it is another change and has a trial of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twoclock.contracts import Channel
from twoclock.errors import StoreError
from twoclock.evaluation import conditioning_of
from twoclock.store import RunStore
from twoclock.types import LedgerEntry, Verdict

__all__ = ["Refusals"]

Change = tuple[str, str, str, str]
"""Channel, task, and the ids of what is deployed before and after."""


class Refusals:
    """The refused changes of a run, worked out from its ledger and kept up from there."""

    def __init__(self, store: RunStore, channels: Mapping[str, Channel[Any]]) -> None:
        self.store, self.channels = store, channels
        self._rounds: dict[Change, int] | None = None

    def change(self, channel: str, task: str, states: Mapping[str, Any], offered: Any) -> Change:
        """What this state of a channel would change."""
        now = conditioning_of(self.channels, states, task)
        then = conditioning_of(self.channels, {**states, channel: offered}, task)
        return channel, task, now.id, then.id

    def verdict(self, change: Change) -> Verdict | None:
        """The answer to a change that has been refused; None to one that has not."""
        number = self._known().get(change)
        if number is None:
            return None
        reason = f"unchanged since round {number}, when a trial refused it: another would only try its luck"
        return Verdict(accepted=False, reason=reason, metrics={"refused_in": float(number)})

    def note(self, change: Change, number: int, verdict: Verdict) -> None:
        """Remembers a change where a trial was held and lost. Other refusals answer alike whenever they are asked."""
        if not verdict.accepted and "trial_p" in verdict.metrics:
            self._known().setdefault(change, number)

    def _known(self) -> dict[Change, int]:
        if self._rounds is None:
            self._rounds = {}
            for entry in self.store.entries():
                if _lost(entry) and entry.channel in self.channels:
                    self._recall(entry)
        return self._rounds

    def _recall(self, entry: LedgerEntry) -> None:
        try:
            before = self.store.snapshot_at(entry.round - 1).states
            states = {name: c.load(self.store.get_blob(before[name])) for name, c in self.channels.items()}
            offered = self.channels[entry.channel].load(self.store.get_blob(entry.offered))
        except (StoreError, KeyError):  # thinned: it may be tried again
            return
        assert self._rounds is not None
        self._rounds.setdefault(self.change(entry.channel, entry.task, states, offered), entry.round)


def _lost(entry: LedgerEntry) -> bool:
    """Whether a trial was held and lost: the proposal was refused, or only what stood beside it was kept."""
    refused = entry.action == "reject" or (entry.action == "commit" and entry.offered not in ("", entry.after))
    return refused and "trial_p" in entry.metrics
