"""Tasks over the project's own families (``library.py``) under an answer convention (``conventions.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from twoclock.errors import ConfigError, unknown_name
from twoclock.hashing import canonical_json, content_hash
from twoclock.seeding import child_rng
from twoclock.tasks.conventions import Convention, convention
from twoclock.tasks.library import FAMILIES, Latent
from twoclock.tasks.splits import SplitSizes, draw_splits
from twoclock.tasks.text import clip, extract, present
from twoclock.tasks.wording import check_wording, instruct
from twoclock.types import Grade, Item, SplitName

__all__ = ["FamilyTask", "check_family"]

FORMAT_SHARE = 0.3
"""What the right format alone earns under graded scoring; the right value alone earns the rest."""


def check_family(
    family: str,
    config: Mapping[str, Any],
    *,
    convention_name: str = "plain",
    templates: Sequence[int] | None = None,
) -> list[str]:
    """What is wrong with these arguments of :class:`FamilyTask`; empty when nothing is."""
    problems: list[str] = []
    try:
        convention(convention_name)
    except ConfigError as error:
        problems.extend(error.problems)
    if family not in FAMILIES:
        return [*problems, unknown_name("family", family, FAMILIES)]
    problems.extend(FAMILIES[family].problems(config))
    count = len(FAMILIES[family].templates)
    if templates is not None and (
        not templates or any(isinstance(t, bool) or not isinstance(t, int) or not 0 <= t < count for t in templates)
    ):
        problems.append(
            f"templates must be some of 0 to {count - 1}, the wordings that '{family}' has; got {list(templates)!r}"
        )
    return problems


class FamilyTask:
    """Items of one own family. Splits share no latent, so none shares an item in other words either.

    ``config`` are the family's parameters; ``convention`` a name of ``CONVENTIONS`` or a pattern with ``{answer}``;
    ``templates`` restricts the wordings. ``scoring='strict'`` pays 1 for the exact text; ``'graded'`` pays 0.3 for the
    right format and 0.7 for the right value. Feedback tells the two kinds of error apart and names what was expected.
    """

    def __init__(
        self,
        family: str,
        config: Mapping[str, Any] | None = None,
        *,
        sizes: SplitSizes | None = None,
        seed: int = 0,
        name: str = "",
        instruction: str = "",
        instruction_at: str = "end",
        scoring: str = "strict",
        extract: str = "text",
        convention: str = "plain",
        templates: Sequence[int] | None = None,
    ) -> None:
        config = dict(config or {})
        problems = check_family(family, config, convention_name=convention, templates=templates)
        problems += check_wording(instruction_at=instruction_at, scoring=scoring, extract=extract)
        if problems:
            raise ConfigError(problems)
        self.name = name or family
        self.notes: tuple[str, ...] = ()
        self._family = FAMILIES[family]
        self._params = self._family.complete(config)
        self._sizes = sizes or SplitSizes()
        self._seed = seed
        self._instruction = (instruction, instruction_at)
        self._scoring = scoring
        self._extract = extract
        self._convention_name = convention
        self._templates = tuple(templates) if templates is not None else tuple(range(len(self._family.templates)))
        self._check_extraction()

    @property
    def description(self) -> str:
        example = self._convention.wrap("7")
        form = "" if self._convention_name == "plain" else f" The answer 7 must be written as {example!r}."
        return self._family.description + form

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self._splits[name]

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [self._grade(item, text) for item, text in zip(items, texts, strict=True)]

    @cached_property
    def _convention(self) -> Convention:
        return convention(self._convention_name)

    @cached_property
    def _splits(self) -> Mapping[SplitName, tuple[Item, ...]]:
        drawn = draw_splits(f"family '{self._family.name}'", self._sizes, self._draw, lambda p: canonical_json(p[0]))
        return {split: tuple(self._item(*pair) for pair in pairs) for split, pairs in drawn.items()}

    def _draw(self, split: SplitName, index: int) -> tuple[Latent, int]:
        rng = child_rng("family-item", self._seed, self._family.name, split, index)
        return self._family.sample(self._params, rng), rng.choice(self._templates)

    def _item(self, latent: Latent, template: int) -> Item:
        question, answer = self._family.render(latent, template), self._family.answer(latent)
        prompt = instruct(question, *self._instruction)
        reference = present(self._convention.wrap(answer), self._extract)
        metadata = {
            "family": self._family.name,
            "latent": latent,
            "template": template,
            "question": question,
            "value": answer,
            "convention": self._convention_name,
        }
        identity = content_hash({"prompt": prompt, "reference": reference})[:16]
        return Item(id=identity, prompt=prompt, reference=reference, metadata=metadata)

    def _check_extraction(self) -> None:
        """The gold answer must survive extraction, or nothing could ever be right."""
        item = self._item(*self._draw("train", 0))
        wanted = self._convention.wrap(item.metadata["value"])
        if extract(item.reference or "", self._extract) != wanted:
            left = extract(item.reference or "", self._extract)
            raise ConfigError(
                f"extract = '{self._extract}' loses the form that convention '{self._convention_name}' asks for: "
                f"of {item.reference!r} it leaves {left!r}; use extract = 'text'"
            )

    def _grade(self, item: Item, text: str) -> Grade:
        answer = str(item.metadata["value"])
        expected = self._convention.wrap(answer)
        got = extract(text, self._extract)
        if got == expected:
            return Grade(reward=1.0, feedback="Correct.")
        in_form = self._convention.inner(got, answer) is not None
        value_right = not in_form and self._convention.mentions(got, answer)
        if in_form:
            said = "The format is right, but the value is wrong"
        elif value_right:
            said = "The value is right, but the format is wrong"
        else:
            said = "Both the format and the value are wrong"
        if not in_form and not value_right and self._convention_name == "plain":
            said = "Wrong"
        feedback = f'{said}: you wrote "{clip(got)}"; the answer should be exactly "{expected}".'
        partial = FORMAT_SHARE * in_form + (1 - FORMAT_SHARE) * value_right
        return Grade(reward=partial if self._scoring == "graded" else 0.0, feedback=feedback)
