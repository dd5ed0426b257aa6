"""What :mod:`twoclock.models.steered` keeps of a model whose attention cannot be led: its rows, read through the
model's own cache with padding on the left, one pass a voice. Slower than rows that share what they have in common, far
quicker than reading every sequence anew for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from twoclock.models.engine import Prompted
from twoclock.models.side_cache import SideCache
from twoclock.types import Delta

if TYPE_CHECKING:
    from twoclock.models.local import LocalPolicy

__all__ = ["CachedStack"]


class CachedStack:
    """The rows of one model under several changes of its weights."""

    def __init__(self, policy: LocalPolicy, deltas: Sequence[Delta | None], voices: Sequence[int], places: int) -> None:
        self.policy, self.voices, self.places = policy, voices, places
        self._caches = [SideCache(policy.model, policy._payload(d), policy._forcing.mount) for d in deltas]
        self._logits = [torch.zeros(0) for _ in deltas]
        self._rows: list[tuple[int, ...]] = []

    def hold(self, open_until: ExitStack) -> None:
        """Changes are mounted for each pass."""

    def of(self, voice: int) -> torch.Tensor:
        """The next-token logits [R, S] of a voice, one row a rollout."""
        return self._logits[self.voices.index(voice)]

    def enter(self, entering: Mapping[int, Prompted]) -> None:
        """Reads the prompts of rollouts that take these places, and all other rows along."""
        for slot, prompt in sorted(entering.items()):
            self._rows[slot : slot + 1] = [prompt.tokens]
        self._logits = [cache.logits(self._rows) for cache in self._caches]

    def step(self, tokens: Sequence[Sequence[int]]) -> None:
        """Every voice reads what its rollout's token is in this model's ids; nothing for a rollout that has ended."""
        reading = [i for i, some in enumerate(tokens) if some]
        if not reading:
            return
        for i in reading:
            self._rows[i] = (*self._rows[i], *tokens[i])
        for n, cache in enumerate(self._caches):
            found = cache.logits([self._rows[i] for i in reading])
            at = torch.tensor(reading, device=found.device)
            self._logits[n] = self._logits[n].index_copy(0, at, found)

    def keep(self, rollouts: Sequence[int]) -> None:
        """Only these stay, in this order."""
        self._rows = [self._rows[i] for i in rollouts]
        self._logits = [logits[torch.tensor(rollouts, device=logits.device)] for logits in self._logits]
        self.places = len(rollouts)

    def room(self, rollout: int) -> int:
        """The tokens that the model can still read of a rollout."""
        return self.policy.card.context_tokens - len(self._rows[rollout])
