"""Tasks over power networks: path, connectivity and DC power flow on the IEEE 14- and 30-bus cases, N, N-1 and N+1.

The networks and the flow solver come from pandapower (extra ``grid``), which is imported when a task is made. The
contingency setting follows arXiv:2603.23004; the questions, levels and wordings here are our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from twoclock.errors import ConfigError, nearest, unknown_name
from twoclock.hashing import canonical_json, content_hash
from twoclock.seeding import child_rng
from twoclock.tasks.grid_levels import LEVELS, Level, draw_latent
from twoclock.tasks.grid_networks import require_pandapower
from twoclock.tasks.grid_questions import CASES, QUESTIONS, GridLatent, answer, chance, is_right, parse, stale_answer
from twoclock.tasks.grid_wording import LABELS, PROBE_TEMPLATES, TEMPLATES, render
from twoclock.tasks.splits import SplitSizes, draw_splits
from twoclock.tasks.text import clip, extract, present
from twoclock.tasks.wording import check_wording, instruct
from twoclock.types import Grade, Item, SplitName

__all__ = ["GridTask", "check_grid"]

DEFAULTS: Mapping[str, Any] = {"level": 1, "case": "n", "labels": "shuffled", "change": "shown"}
_CHOICES: Mapping[str, tuple[str, ...]] = {"case": CASES, "labels": LABELS, "change": ("shown", "stated")}
_FORM: Mapping[str, str] = {
    "path": 'buses joined by "-", such as "{example}"',
    "connectivity": "a whole number of buses",
    "flow": "a number of MW",
}


def check_grid(question: str, config: Mapping[str, Any], *, templates: Sequence[int] | None = None) -> list[str]:
    """What is wrong with these arguments of :class:`GridTask`; empty when nothing is."""
    if question not in QUESTIONS:
        return [unknown_name("family of source 'grid'", question, QUESTIONS)]
    problems = []
    for key, value in config.items():
        if key not in DEFAULTS:
            close = nearest(key, DEFAULTS)
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            problems.append(f"source 'grid' has no parameter '{key}'; {hint}it has: {', '.join(DEFAULTS)}")
        elif key == "level":
            count = len(LEVELS[question])
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= count:
                problems.append(f"level must be a whole number from 1 (easiest) to {count}; got {value!r}")
        elif value not in _CHOICES[key]:
            problems.append(unknown_name(key, str(value), _CHOICES[key]))
    count = len(TEMPLATES[question])
    if templates is not None and (
        not templates or any(isinstance(t, bool) or not isinstance(t, int) or not 0 <= t < count for t in templates)
    ):
        problems.append(
            f"templates must be some of 0 to {count - 1}, the wordings that '{question}' has; got {list(templates)!r}"
        )
    return problems


class GridTask:
    """Questions of one kind (``path``, ``connectivity``, ``flow``) on one level.

    ``config`` holds ``level`` (1 is the easiest), ``case`` (``n``, ``n-1``, ``n+1``), ``labels`` (``shuffled``,
    ``own``, ``letters``) and ``change``: how N-1 and N+1 are told, ``shown`` in the list of lines or ``stated`` in a
    sentence. With the same seed and sizes the cases of a task are the same latents in the same order: partners share
    the metadata's ``base``. ``templates`` names the wordings; all but those kept for probes by default. Raises
    ConfigError for a bad config, MissingExtraError without pandapower.

    An item's metadata: ``family``, ``latent``, ``template``, ``question``, ``value`` (the answer), ``case``, ``stale``
    (the answer of the N network), ``changed`` (whether that is wrong here), ``outage`` (the line that is out),
    ``chance`` (what a random answer scores on it) and ``base``.
    """

    def __init__(
        self,
        question: str,
        config: Mapping[str, Any] | None = None,
        *,
        sizes: SplitSizes | None = None,
        seed: int = 0,
        name: str = "",
        instruction: str = "",
        instruction_at: str = "end",
        extract: str = "text",
        templates: Sequence[int] | None = None,
    ) -> None:
        config = dict(config or {})
        problems = check_grid(question, config, templates=templates)
        problems += check_wording(instruction_at=instruction_at, scoring="strict", extract=extract)
        if problems:
            raise ConfigError(problems)
        require_pandapower()
        self.name = name or f"grid_{question}"
        self.notes: tuple[str, ...] = ()
        self._question = question
        self._config = {**DEFAULTS, **config}
        self._sizes = sizes or SplitSizes()
        self._seed = seed
        self._instruction = (instruction, instruction_at)
        self._extract = extract
        usual = range(len(TEMPLATES[question]) - PROBE_TEMPLATES)
        self._templates = tuple(usual if templates is None else templates)
        self._check_extraction()

    @property
    def level(self) -> Level:
        """The level, with its chance rate."""
        level: Level = LEVELS[self._question][self._config["level"] - 1]
        return level

    @property
    def description(self) -> str:
        asked = {
            "path": "A route with the fewest lines between two buses of a power network, as buses joined by '-'.",
            "connectivity": "How many buses of a power network are connected to a given bus, itself included.",
            "flow": "The MW on a line of a power network by DC power flow, as a whole number.",
        }[self._question]
        return f"{asked} A random answer is right in {100 * self.level.chance:.2g} % of cases."

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self._splits[name]

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [self._grade(item, text) for item, text in zip(items, texts, strict=True)]

    def parsed(self, item: Item, text: str) -> str | None:
        """The answer that is read from a completion, or ``None``: a parse failure, which is no wrong answer."""
        return parse(GridLatent.from_json(item.metadata["latent"]), extract(text, self._extract))

    def item(self, latent: GridLatent, template: int) -> Item:
        """The item of any latent of this question, as for variants; graded by this task like its own."""
        question = render(latent, template, stated=self._config["change"] == "stated")
        prompt = instruct(question, *self._instruction)
        gold, stale = answer(latent), stale_answer(latent)
        reference = present(gold, self._extract)
        metadata = {
            "family": f"grid_{latent.question}",
            "latent": latent.to_json(),
            "template": template,
            "question": question,
            "value": gold,
            "case": latent.case,
            "stale": stale,
            "changed": not is_right(latent, stale),
            "outage": latent.named(latent.lines[latent.outage]) if latent.case == "n-1" else "",
            "chance": chance(latent),
            "base": content_hash(latent.key)[:16],
        }
        identity = content_hash({"prompt": prompt, "reference": reference})[:16]
        return Item(id=identity, prompt=prompt, reference=reference, metadata=metadata)

    @cached_property
    def _splits(self) -> Mapping[SplitName, tuple[Item, ...]]:
        what = f"grid family '{self._question}' on level {self._config['level']}"
        drawn = draw_splits(what, self._sizes, self._draw, lambda pair: canonical_json(pair[0].key))
        return {split: tuple(self.item(*pair) for pair in pairs) for split, pairs in drawn.items()}

    def _draw(self, split: SplitName, index: int) -> tuple[GridLatent, int] | None:
        level, case, labels = (self._config[key] for key in ("level", "case", "labels"))
        # The case is no part of the seed: N and N-1 of one seed are the same latents.
        rng = child_rng("grid-item", self._seed, self._question, level, labels, split, index)
        latent = draw_latent(self._question, level, labels, rng)
        if latent is None:
            return None
        return replace(latent, case=case), rng.choice(self._templates)

    def _check_extraction(self) -> None:
        """The gold answer must survive extraction, or nothing could ever be right."""
        pair = next(pair for index in range(100) if (pair := self._draw("train", index)) is not None)
        item = self.item(*pair)
        if self.parsed(item, item.reference or "") != item.metadata["value"]:
            left = extract(item.reference or "", self._extract)
            raise ConfigError(
                f"extract = '{self._extract}' does not suit grid questions of kind '{self._question}': of the right "
                f"answer {item.reference!r} it leaves {left!r}; use extract = 'text' or 'tag'"
            )

    def _grade(self, item: Item, text: str) -> Grade:
        latent = GridLatent.from_json(item.metadata["latent"])
        given = parse(latent, extract(text, self._extract))
        gold = str(item.metadata["value"])
        if given is None:
            form = _FORM[self._question].format(example=gold)
            said = f'No answer was found in "{clip(text)}"; it should be {form}. The right answer is "{gold}".'
            return Grade(reward=0.0, feedback=said)
        if is_right(latent, given):
            return Grade(reward=1.0, feedback="Correct.")
        said = f'Wrong: you wrote "{clip(text)}", read as "{clip(given)}"; the right answer is "{gold}".'
        if item.metadata["changed"] and is_right(replace(latent, case="n"), given):
            said += " Yours is right for another network: look at which lines are there."
        return Grade(reward=0.0, feedback=said)
