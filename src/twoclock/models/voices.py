"""Which models speak at a token, and how their logits become one distribution: a conditioning's shifts, worked out.

A shift names models; a *voice* is one of them, ready: a policy and a change of its weights. A *recipe* says how much of
each voice goes into the sum. Shifts whose sides are all changes of the policy's own base cover the same vocabulary row
by row, so the sum is linear and is simplified: voices that cancel are not run. So a shift of α = 0, and one between
equal sides, are the base by the path that no shift touches, and a shift away from the base itself with α = 1 is the
expert alone, all of them exactly. What other models say is added token by token (:func:`twoclock.nn.proxy.shifted`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from twoclock.errors import UnsupportedError
from twoclock.models.mixtures import weights_of
from twoclock.models.shared_attention import head_module
from twoclock.models.vocabularies import VocabularyMap, map_vocabulary, same_vocabulary
from twoclock.types import Conditioning, Delta, Shift, Side, SideModel

if TYPE_CHECKING:
    from twoclock.models.local import LocalPolicy

__all__ = ["Companions", "Gap", "Part", "Recipe", "Voice", "recipe_of"]

Schedule = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Voice:
    """One model under one change of its weights. Equal where the weights are."""

    policy: LocalPolicy = field(repr=False)
    delta: Delta | None

    @property
    def key(self) -> tuple[str, str]:
        return self.policy.base_hash, self.delta.id if self.delta else ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Voice) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True)
class Part:
    """A voice's raw logits in the sum, with their weight token by token."""

    voice: int
    weights: Schedule


@dataclass(frozen=True)
class Gap:
    """alpha · (log p⁺ − log p⁻) at the tokens that both sides know."""

    expert: int
    anti: int
    alphas: Schedule
    plausible: float


@dataclass(frozen=True)
class Recipe:
    """Σ parts + Σ gaps. ``parts`` is never empty, and its weights sum to 1 at each token."""

    policy: LocalPolicy = field(compare=False, repr=False)
    """Whose tokens are drawn."""
    voices: tuple[Voice, ...]
    parts: tuple[Part, ...]
    gaps: tuple[Gap, ...]
    maps: tuple[VocabularyMap, ...] = field(compare=False, repr=False)
    """How each voice's tokens answer the policy's own."""

    @property
    def alone(self) -> Voice | None:
        """The voice that is all there is, by its own logits."""
        return self.voices[0] if len(self.voices) == 1 and self.parts[0].weights == (1.0,) and not self.gaps else None

    @property
    def shape(self) -> tuple[object, ...]:
        """What rows must have in common to be decoded together: all but the amounts."""
        gaps = tuple((g.expert, g.anti, g.plausible) for g in self.gaps)
        return self.voices, tuple(part.voice for part in self.parts), gaps, tuple(id(m) for m in self.maps)

    @property
    def known(self) -> torch.Tensor:
        """[V] the tokens that the sides of every gap know; rows of the head that stand for no token count as known."""
        found = torch.ones(len(self.maps[0].index), dtype=torch.bool)
        for gap in self.gaps:
            found &= self.covered(gap)
        own = torch.zeros_like(found)
        own[[i for i in self.policy.tokenizer.get_vocab().values() if i < len(own)]] = True
        return found | ~own

    def covered(self, gap: Gap) -> torch.Tensor:
        """[V] the tokens that both sides of a gap know."""
        return self.maps[gap.expert].covered & self.maps[gap.anti].covered


class Companions:
    """The models that stand beside a policy, each loaded once, when it is first asked for."""

    def __init__(self, policy: LocalPolicy, open_model: Callable[[str], LocalPolicy] | None = None) -> None:
        self.policy = policy
        self._open = open_model or self._opened
        self._known: dict[str, LocalPolicy] = {}
        self._maps: dict[tuple[str, bool], VocabularyMap] = {}

    def add(self, other: LocalPolicy, delta: Delta | None = None) -> SideModel:
        """Makes a model that is loaded already known, and gives what a shift calls it by."""
        if other.base_hash != self.policy.base_hash:
            self._known[other.base_hash] = other
        return SideModel(weights=other.base_hash, source=other.card.name, delta=delta)

    def of(self, side: SideModel) -> LocalPolicy:
        """The model of a shift's side. Raises UnsupportedError where what is found has other weights, ModelError where
        nothing is."""
        if side.weights == self.policy.base_hash:
            return self.policy
        if side.weights not in self._known:
            if not side.source:
                raise UnsupportedError(
                    f"a shift names a model with the weights {side.weights[:12]} but not where it is; give its source"
                )
            found = self._open(side.source)
            if found.base_hash != side.weights:
                raise UnsupportedError(
                    f"the model at {side.source} has the weights {found.base_hash[:12]}, but the shift was made with "
                    f"{side.weights[:12]}: it has changed since"
                )
            self._known[side.weights] = found
        return self._known[side.weights]

    def map(self, other: LocalPolicy, mapped: bool) -> VocabularyMap:
        """How another model's tokens answer the policy's. Raises UnsupportedError where they do not."""
        key = other.base_hash, mapped
        if key not in self._maps:
            names = self.policy.card.name, other.card.name
            rows = [_head_rows(p.model) for p in (self.policy, other)]
            make = map_vocabulary if mapped else same_vocabulary
            self._maps[key] = make(self.policy.tokenizer, other.tokenizer, rows[0], rows[1], names)
        return self._maps[key]

    def _opened(self, source: str) -> LocalPolicy:
        from twoclock.models.local import open_local  # here: it imports this module

        own = self.policy
        return open_local(source, dtype=own.dtype, device=str(own.model.device))


def recipe_of(policy: LocalPolicy, companions: Companions, conditioning: Conditioning) -> Recipe:
    """What a conditioning's shifts come to on this policy."""
    if conditioning.soft is not None:
        raise UnsupportedError(
            "this conditioning both reads a memory beside the model and shifts its logits, which this policy does not "
            "do at once; leave out the channel 'neural_memory' or the channel 'proxy'"
        )
    base = Voice(policy, weights_of(conditioning))
    shifts: list[tuple[Shift, Voice, Voice]] = []
    for shift in conditioning.shifts:
        expert, anti = (_voice(policy, companions, side) for side in (shift.expert, shift.anti))
        if not shift.is_inert and expert != anti:
            shifts.append((shift, expert, anti))
    mapped = {v.key[0]: False for _, *sides in shifts for v in sides}
    for shift, *sides in shifts:
        for voice in sides:
            mapped[voice.key[0]] |= shift.mapped
    parts: dict[Voice, Schedule] = {base: (1.0,)}
    rest: list[tuple[Shift, Voice, Voice]] = []
    for shift, expert, anti in shifts:
        if shift.plausible == 0.0 and {expert.key[0], anti.key[0]} == {policy.base_hash}:
            parts[expert] = _sum(parts.get(expert, (0.0,)), shift.alphas, 1.0)
            parts[anti] = _sum(parts.get(anti, (0.0,)), shift.alphas, -1.0)
        else:
            rest.append((shift, expert, anti))
    if len(shifts) == len(rest) == 1 and _is_the_expert(rest[0], base):
        parts, rest = {rest[0][1]: (1.0,)}, []
    parts = {voice: weights for voice, weights in parts.items() if any(weights)}
    voices = [*dict.fromkeys([*parts, *(v for _, *sides in rest for v in sides)])]
    return Recipe(
        policy,
        tuple(voices),
        tuple(Part(voices.index(voice), weights) for voice, weights in parts.items()),
        tuple(Gap(voices.index(e), voices.index(a), s.alphas, s.plausible) for s, e, a in rest),
        tuple(companions.map(v.policy, mapped.get(v.key[0], False)) for v in voices),
    )


def _voice(policy: LocalPolicy, companions: Companions, side: Side) -> Voice:
    found = policy if side is None or isinstance(side, Delta) else companions.of(side)
    delta = side if side is None or isinstance(side, Delta) else side.delta
    if delta is not None and delta.base != found.base_hash:
        raise UnsupportedError(
            f"a shift's change of weights {delta.id[:12]} was trained on the base {delta.base[:12]}, but "
            f"{found.card.name} is {found.base_hash[:12]}; a change means nothing on other weights"
        )
    return Voice(found, delta)


def _is_the_expert(found: tuple[Shift, Voice, Voice], base: Voice) -> bool:
    """Whether s + 1 (s⁺ − s) is all there is, on ids that agree."""
    shift, _, anti = found
    return anti == base and shift.alphas == (1.0,) and shift.plausible == 0.0 and not shift.mapped


def _sum(one: Schedule, other: Sequence[float], sign: float) -> Schedule:
    length = max(len(one), len(other))
    total = [one[min(i, len(one) - 1)] + sign * other[min(i, len(other) - 1)] for i in range(length)]
    while len(total) > 1 and total[-1] == total[-2]:
        del total[-1]
    return tuple(total)


def _head_rows(model: Any) -> int:
    """How many tokens the output layer tells apart, those of a padded vocabulary included."""
    head: Any = head_module(model)
    return int(head.weight.shape[0])
