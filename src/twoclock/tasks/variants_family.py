"""Variants of the own families: all derived from the latents of the ``id`` items, so that each has its partner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from twoclock.contracts import Task
from twoclock.hashing import content_hash
from twoclock.seeding import child_rng
from twoclock.tasks.conventions import convention
from twoclock.tasks.library import FAMILIES, Latent
from twoclock.tasks.parametric import PARAMETRIC, left_out
from twoclock.tasks.text import extract, present
from twoclock.tasks.variants_base import Base
from twoclock.tasks.variants_task import Parsed, VariantItem, plain_parse
from twoclock.tasks.wording import instruct
from twoclock.types import Item

__all__ = ["FamilyVariants"]

Derived = tuple[Latent, str, str | None, str | None]
"""A latent, its question, its stale answer and its tempting one, where it has them."""


class FamilyVariants:
    """Makes the variants of one family task."""

    def __init__(self, base: Base, spec: Mapping[str, Any], seed: int) -> None:
        self._base, self._seed, self._name = base, seed, spec["family"]
        self._family, self._shape = FAMILIES[self._name], PARAMETRIC[self._name]
        self._params = self._family.complete(spec.get("config", {}))
        self._convention = convention(spec.get("convention", "plain"))
        self._extract = spec.get("extract", "text")
        self._instruction = (spec.get("instruction", ""), spec.get("instruction_at", "end"))
        self._own_verifier = "verifier" in spec
        self.graders: dict[str, Task] = {}
        self.notes: dict[str, list[str]] = {}

    @property
    def parsed(self) -> Parsed:
        """The form that the answer convention asks for; any text for a verifier of the user's own."""
        if self._own_verifier:
            return plain_parse(self._extract)
        return lambda item, text: (
            self._convention.inner(extract(text, self._extract), str(item.metadata["value"])) is not None
        )

    def make(self, variant: str) -> tuple[VariantItem, ...]:
        """The items of a variant."""
        if variant in ("seen", "id"):
            items = self._base.seen if variant == "seen" else self._base.items
            return tuple(self._as_is(item, variant) for item in items)
        derive = self._derivation(variant)
        made: dict[str, VariantItem] = {}
        for item in self._base.items:
            rng = child_rng("variant", self._seed, self._name, variant, item.id)
            found = derive(item, rng)
            if found is not None:
                entry = self._entry(variant, item, *found)
                made.setdefault(entry.item.id, entry)
        return tuple(made.values())

    # -------------------------------------------------------------------------------------------------- derivations

    def _derivation(self, variant: str) -> Callable[[Item, Random], Derived | None]:
        return {
            "n-1": self._fewer,
            "n+1": self._more,
            "template": self._reworded,
            "distractor": self._distracted,
            "rule": self._ruled,
        }[variant]

    def problem(self, variant: str) -> str | None:
        """Why this family has no such variant under its config; ``None`` where it has."""
        low = self._params[self._shape.low]
        if variant == "n-1" and low - 1 < self._shape.least:
            return (
                f"family '{self._name}' with {self._shape.low} = {low} has no n-1: a problem with {low - 1} "
                f"{self._shape.element}{'' if low == 2 else 's'} is none; train with {self._shape.low} of at least "
                f"{self._shape.least + 1}, or leave 'n-1' out"
            )
        if variant == "rule" and not self._shape.can_leave_out:
            return f"family '{self._name}' has no variant 'rule': no rule can be stated that changes its answers"
        return None

    def _fewer(self, item: Item, rng: Random) -> Derived | None:
        # Only from problems of the smallest trained size: from a larger one, one fewer would be in distribution.
        latent = item.metadata["latent"]
        if self._shape.size(latent) != self._params[self._shape.low]:
            return None
        removal = self._shape.remove(latent, self._params, rng)
        return None if removal is None else self._resized(item, removal.latent)

    def _more(self, item: Item, rng: Random) -> Derived | None:
        latent = item.metadata["latent"]
        if self._shape.size(latent) != self._params[self._shape.high]:
            return None
        grown = self._shape.add(latent, self._params, rng)
        return None if grown is None else self._resized(item, grown)

    def _resized(self, item: Item, latent: Latent) -> Derived:
        return latent, self._family.render(latent, item.metadata["template"]), item.metadata["value"], None

    def _reworded(self, item: Item, rng: Random) -> Derived:
        latent = item.metadata["latent"]
        return latent, rng.choice(self._shape.wordings).format(**self._family.fields(latent)), None, None

    def _distracted(self, item: Item, rng: Random) -> Derived | None:
        latent = item.metadata["latent"]
        decoy = self._shape.decoy(latent, self._params, rng)
        if decoy is None:
            return None
        return latent, f"{decoy.sentence}\n{item.metadata['question']}", None, decoy.tempting

    def _ruled(self, item: Item, rng: Random) -> Derived | None:
        removal = self._shape.remove(item.metadata["latent"], self._params, rng)
        rule = None if removal is None else left_out(self._name, removal)
        if removal is None or rule is None:
            return None
        return removal.latent, f"{rule}\n{item.metadata['question']}", item.metadata["value"], None

    # -------------------------------------------------------------------------------------------------------- items

    def _as_is(self, item: Item, variant: str) -> VariantItem:
        partner = item.id if variant == "id" else None
        return VariantItem(item=item, partner=partner, values=tuple(self._shape.values(item.metadata["latent"])))

    def _entry(
        self, variant: str, base: Item, latent: Latent, question: str, stale: str | None, tempting: str | None
    ) -> VariantItem:
        value = self._family.answer(latent)
        prompt = instruct(question, *self._instruction)
        metadata = {
            **base.metadata,
            "latent": latent,
            "question": question,
            "value": value,
            "variant": variant,
            "partner": base.id,
            "stale": stale,
            "tempting": tempting,
        }
        identity = content_hash({"prompt": prompt, "variant": variant, "reference": self._gold(value)})[:16]
        item = Item(id=identity, prompt=prompt, reference=self._gold(value), metadata=metadata)
        telling = stale is None or stale != value
        return VariantItem(
            item=item,
            partner=base.id,
            stale=self._twin(item, stale) if stale is not None and telling else None,
            tempting=None if tempting is None else self._twin(item, tempting),
            telling=telling,
            values=tuple(self._shape.values(latent)),
        )

    def _gold(self, value: str) -> str:
        return present(self._convention.wrap(value), self._extract)

    def _twin(self, item: Item, value: str) -> Item:
        return replace(item, reference=self._gold(value), metadata={**item.metadata, "value": value})
