"""The null channel: learns nothing. The control that stands in every table beside a channel that claims to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from twoclock.contracts import Workbench
from twoclock.errors import StoreError
from twoclock.fast.spec import FastSpec
from twoclock.types import Budget, Conditioning, Declined, Evidence, PolicyCard, Timescale

__all__ = ["SPEC", "NullChannel", "NullConfig", "NullState"]


@dataclass(frozen=True, kw_only=True)
class NullConfig:
    """Nothing can be set."""


@dataclass(frozen=True)
class NullState:
    """The one state there is."""


class NullChannel:
    """A fast channel that declines every time and conditions nothing."""

    name = "null"
    timescale = Timescale.FAST
    _BLOB: ClassVar[bytes] = b'{"channel":"null"}'

    def init(self, card: PolicyCard, seed: int) -> NullState:
        return NullState()

    def propose(self, bench: Workbench, state: NullState, evidence: Evidence, budget: Budget, seed: int) -> Declined:
        return Declined(channel=self.name, reason="the null channel learns nothing")

    def condition(self, state: NullState, task: str) -> Conditioning:
        return Conditioning()

    def dump(self, state: NullState) -> bytes:
        return self._BLOB

    def load(self, blob: bytes) -> NullState:
        """Raises StoreError for bytes that :meth:`dump` did not write."""
        if blob != self._BLOB:
            raise StoreError(f"not a state of the channel 'null': {len(blob)} bytes that begin with {blob[:40]!r}")
        return NullState()


SPEC = FastSpec(
    config=NullConfig,
    build=lambda config, reflector: NullChannel(),
    summary="learns nothing: the control beside every other channel",
)
