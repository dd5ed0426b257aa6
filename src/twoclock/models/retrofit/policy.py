"""What a local policy does with the ``soft`` part of a conditioning: checks that the memory is its own, reads it beside
whatever change of weights the conditioning has, and writes texts into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twoclock.errors import ConfigError, UnsupportedError
from twoclock.models.mixtures import weights_of
from twoclock.models.retrofit.hooks import Softened, memory_shape, require_fit
from twoclock.models.retrofit.model import Text, tokens_of
from twoclock.models.retrofit.writing import written
from twoclock.nn.soft_memory import KIND, SoftMemory
from twoclock.nn.summed import summed
from twoclock.types import Conditioning, Delta, SoftState

if TYPE_CHECKING:
    from twoclock.models.local import LocalPolicy

__all__ = ["Memories"]


class Memories:
    """See the module."""

    def __init__(self, policy: LocalPolicy) -> None:
        self.policy = policy

    def weights(self, conditioning: Conditioning) -> Delta | None:
        """The conditioning's change of weights, with its memory where it has one that says anything, under one name;
        None is the base by the path that nothing touches. Raises UnsupportedError for a memory of another model."""
        delta = weights_of(conditioning)
        if conditioning.soft is None:
            return delta
        memory = self.memory(conditioning.soft)
        if memory.is_silent:
            return delta
        payload = Softened(memory, self.policy._payload(delta))
        return Delta(f"{delta.id if delta else ''}+{conditioning.soft.id}", "soft", self.policy.base_hash, payload)

    def beside(self, conditioning: Conditioning, change: Any) -> Any:
        """``change``, the payload of a delta, with the conditioning's mixture added and its memory read beside it."""
        change = summed(change, self.policy._payload(conditioning.mixture))
        if conditioning.soft is None or (memory := self.memory(conditioning.soft)).is_silent:
            return change
        return Softened(memory, change)

    def memory(self, soft: SoftState) -> SoftMemory:
        """The memory of a soft state. Raises UnsupportedError for one that this model cannot read."""
        if not isinstance(soft.payload, SoftMemory) or soft.kind != KIND:
            raise UnsupportedError(
                f"this policy cannot read a soft state of kind '{soft.kind}' with a payload of the type "
                f"{type(soft.payload).__name__}; it reads '{KIND}', as twoclock.nn.soft_memory.soft_state makes them"
            )
        try:
            require_fit(self.policy.model, soft.payload.retrofit.spec, self.policy.base_hash)
        except ConfigError as error:
            raise UnsupportedError(f"the soft state {soft.id[:12]} cannot be read: {error}") from error
        return soft.payload

    def shape(self) -> tuple[int, int]:
        """See :class:`~twoclock.contracts.Memorizing`."""
        return memory_shape(self.policy.model)

    def text_tokens(self, text: Text) -> int:
        """See :class:`~twoclock.contracts.Memorizing`."""
        return len(tokens_of(self.policy.tokenizer, text)[0])

    def memorized(self, soft: SoftState, texts: Sequence[Text]) -> SoftState:
        """See :class:`~twoclock.contracts.Memorizing`."""
        memory = self.memory(soft)
        for text in texts:
            tokens, told = tokens_of(self.policy.tokenizer, text)
            memory = written(self.policy.model, memory, tokens, told=told)
        return SoftState(memory.id, KIND, self.policy.base_hash, memory)
