"""Variants of the power-network questions: cases, wordings and distractors that the grid family itself provides.

N-1 takes a line out, N+1 adds an element; ``rule`` shows the whole network and *states* the outage. The stale answer
is the N network's; where the outage does not change the answer the item tells nothing, and is marked so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from twoclock.contracts import Task
from twoclock.hashing import content_hash
from twoclock.seeding import child_rng
from twoclock.tasks.grid import GridTask
from twoclock.tasks.grid_levels import LEVELS
from twoclock.tasks.grid_questions import GridLatent
from twoclock.tasks.grid_wording import PROBE_TEMPLATES, TEMPLATES, with_distractor
from twoclock.tasks.text import extract, last_number
from twoclock.tasks.variants_base import Base
from twoclock.tasks.variants_task import Parsed, VariantItem, plain_parse
from twoclock.types import Item

__all__ = ["GridVariants"]


class GridVariants:
    """Makes the variants of one power-network task."""

    def __init__(self, base: Base, spec: Mapping[str, Any], seed: int) -> None:
        self._base, self._spec, self._seed = base, spec, seed
        self._question: str = spec["family"]
        self._shown = self._writer(spec.get("config", {}))
        self._stated = self._writer({**spec.get("config", {}), "change": "stated"})
        self.graders: dict[str, Task] = {}
        self.notes: dict[str, list[str]] = {}

    def _writer(self, config: Mapping[str, Any]) -> GridTask:
        wording = {key: self._spec[key] for key in ("instruction", "instruction_at", "extract") if key in self._spec}
        return GridTask(self._question, config, seed=self._seed, **wording)

    @property
    def parsed(self) -> Parsed:
        """The family's own reading; any text for a verifier of the user's own."""
        how = self._spec.get("extract", "text")
        if "verifier" in self._spec:
            return plain_parse(how)
        if self._question == "flow":
            return lambda item, text: last_number(extract(text, how)) is not None
        return lambda item, text: self._shown.parsed(item, text) is not None

    def problem(self, variant: str) -> str | None:
        """Why this task has no such variant; ``None`` where it has."""
        case = self._spec.get("config", {}).get("case", "n")
        if variant in ("n-1", "n+1", "rule") and case != "n":
            return f"'{variant}' is made of the N network, but this task trains on case = '{case}'; train on case = 'n'"
        if variant == "n+1" and self._question == "flow" and self._shown.level.asks == "bus":
            return (
                "'n+1' tells nothing here: what a bus gets stays the same when another one is added, so nobody who "
                f"overlooks it is wrong; train on level {self._levels_with_lines} or higher, which ask for a line"
            )
        if variant == "template":
            used = [t for t in self._spec.get("templates", ()) if t in self._reserved]
            if used:
                return f"'template' uses wordings {list(self._reserved)}, which this task trains on; leave those out"
        return None

    @property
    def _levels_with_lines(self) -> int:
        return 1 + next(i for i, level in enumerate(LEVELS["flow"]) if level.asks == "line")

    @property
    def _reserved(self) -> range:
        count = len(TEMPLATES[self._question])
        return range(count - PROBE_TEMPLATES, count)

    def make(self, variant: str) -> tuple[VariantItem, ...]:
        """The items of a variant."""
        if variant == "seen":
            return tuple(VariantItem(item=item) for item in self._base.seen)
        if variant == "id":
            return tuple(VariantItem(item=item, partner=item.id) for item in self._base.items)
        made: dict[str, VariantItem] = {}
        for base in self._base.items:
            rng = child_rng("variant", self._seed, self._question, variant, base.id)
            entry = self._entry(variant, base, rng)
            made.setdefault(entry.item.id, entry)
        return tuple(made.values())

    def _entry(self, variant: str, base: Item, rng: Random) -> VariantItem:
        latent = GridLatent.from_json(base.metadata["latent"])
        template = base.metadata["template"]
        if variant == "template":
            return self._marked(variant, base, self._shown.item(latent, rng.choice(self._reserved)), None)
        if variant == "distractor":
            return self._marked(variant, base, self._shown.item(with_distractor(latent, rng), template), None)
        writer = self._stated if variant == "rule" else self._shown
        changed = replace(latent, case="n+1" if variant == "n+1" else "n-1")
        return self._marked(variant, base, writer.item(changed, template), self._shown.item(latent, template))

    def _marked(self, variant: str, base: Item, item: Item, stale: Item | None) -> VariantItem:
        telling = stale is None or bool(item.metadata["changed"])
        metadata = {**item.metadata, "variant": variant, "partner": base.id}
        identity = content_hash({"prompt": item.prompt, "variant": variant, "of": base.id})[:16]
        return VariantItem(
            item=replace(item, id=identity, metadata=metadata),
            partner=base.id,
            stale=stale if telling else None,  # grading by the N network's item: any answer that is right there
            telling=telling,
        )
