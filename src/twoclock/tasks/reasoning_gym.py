"""Tasks over reasoning-gym's procedural families: disjoint splits, strict scores, and no exception from a grader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from twoclock.errors import ConfigError
from twoclock.hashing import canonical_json, content_hash
from twoclock.seeding import child_seed
from twoclock.tasks.rg_scoring import EVALUATES, FULL, exact_score, find_leniency, own_score, refusal
from twoclock.tasks.rg_source import Entry, Source, check_source, plain_json
from twoclock.tasks.splits import SplitSizes, draw_splits
from twoclock.tasks.text import clip, extract, normalised, present
from twoclock.tasks.verifiers import Verifier
from twoclock.tasks.wording import check_wording, instruct
from twoclock.types import Grade, Item, SplitName

__all__ = ["ReasoningGymTask"]

NUM_PROBES = 4
"""Items that the grader is tried on when a task is made."""


class ReasoningGymTask:
    """Items and the grader of one reasoning-gym family.

    ``config`` are the family's own options; ``instruction`` is put on a line before or after the question (``"start"``,
    ``"end"``); ``extract`` finds the answer in a completion (a name of ``EXTRACTORS``). ``scoring='strict'`` pays 1
    where the family's grader gives at least 0.999, else 0; ``'graded'`` pays what the grader gives. A grader that gives
    full credit to plain nonsense is replaced by a match with the reference, and ``notes`` says so. A grader that raises
    on a text makes a failed grade. Items are made once, when first asked for: a family with too few distinct ones
    raises ConfigError then.
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
        timeout_s: float = 10.0,
    ) -> None:
        config = dict(config or {})
        problems = check_source(family, config)
        problems += check_wording(instruction_at=instruction_at, scoring=scoring, extract=extract)
        if problems:
            raise ConfigError(problems)
        self.name = name or family
        self._source = Source(family, config)
        self._origin = (family, canonical_json(plain_json(config)))
        self._sizes = sizes or SplitSizes()
        self._seed = seed
        self._instruction = (instruction, instruction_at)
        self._scoring = scoring
        self._extract = extract
        probes = self._source.entries("reasoning-gym-probe", 0, NUM_PROBES)
        if not probes:
            raise ConfigError(f"reasoning-gym family '{family}' makes no items with the config {config!r}")
        self._exact, self.notes = self._choose_grader(probes)
        self._isolated: Verifier | None = None
        if family in EVALUATES and not self._exact:
            self._isolated = Verifier.load("twoclock.tasks.rg_scoring:score_batch", timeout_s=timeout_s)
        self._check_extraction(probes)

    @property
    def description(self) -> str:
        return f"Problems of the reasoning-gym family '{self._source.family}', scored by exact answer."

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return tuple(item for item, _ in self._splits[name])

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        answers = [extract(text, self._extract) for text in texts]
        entries = [self._entry(item) for item in items]
        grades: list[Grade | None] = [
            self._settled(item, entry, answer) for item, entry, answer in zip(items, entries, answers, strict=True)
        ]
        open_ones = [i for i, grade in enumerate(grades) if grade is None]
        if self._isolated is None:
            scored = [self._score_here(entries[i], answers[i]) for i in open_ones]
        else:
            scored = self._score_apart([items[i] for i in open_ones], open_ones, entries, answers)
        for i, grade in zip(open_ones, scored, strict=True):
            grades[i] = self._judged(items[i], answers[i], grade)
        return [grade for grade in grades if grade is not None]

    def close(self) -> None:
        """Ends the child process that some families' graders run in."""
        if self._isolated is not None:
            self._isolated.close()

    # ------------------------------------------------------------------------------------------------------- items

    @cached_property
    def _splits(self) -> Mapping[SplitName, tuple[tuple[Item, Entry], ...]]:
        what = f"reasoning-gym family '{self._source.family}' with this config"
        drawn = draw_splits(what, self._sizes, self._draw, lambda entry: normalised(entry["question"]))
        return {split: tuple((self._item(entry), entry) for entry in entries) for split, entries in drawn.items()}

    def _draw(self, split: SplitName, index: int) -> Entry | None:
        return self._source.entry(child_seed("reasoning-gym-item", self._seed, self._source.family, split, index))

    def _item(self, entry: Entry) -> Item:
        prompt = instruct(entry["question"], *self._instruction)
        reference = None if entry["answer"] is None else present(entry["answer"], self._extract)
        identity = content_hash({"prompt": prompt, "reference": reference})[:16]
        metadata = {**plain_json(entry["metadata"]), "question": entry["question"]}
        return Item(id=identity, prompt=prompt, reference=reference, metadata=metadata)

    @cached_property
    def _entries(self) -> Mapping[str, Entry]:
        return {item.id: entry for pairs in self._splits.values() for item, entry in pairs}

    def _entry(self, item: Item) -> Entry:
        try:
            return self._entries[item.id]
        except KeyError:
            raise ValueError(
                f"item {item.id} is not one of task '{self.name}', which only grades its own; was it made with another "
                "seed, size or config?"
            ) from None

    # ----------------------------------------------------------------------------------------------------- grading

    def _choose_grader(self, probes: Sequence[Entry]) -> tuple[bool, tuple[str, ...]]:
        """(whether to match with the reference instead of asking the family's grader, notes)."""
        if self._scoring != "strict" or self._source.has_base_scorer:
            # Reasoning-gym's default gives 0.9995 for one character too many in a long answer: match, here too.
            return self._scoring == "strict", ()
        wrong = find_leniency(self._source, probes)
        if wrong is None:
            return False, ()
        return True, (
            f"warning: the grader of reasoning-gym family '{self._source.family}' gives full credit to a wrong answer "
            f"(to {clip(wrong, 40)!r}), so answers are matched with the reference instead, up to case and spaces",
        )

    def _check_extraction(self, probes: Sequence[Entry]) -> None:
        for entry in probes:
            gold = entry["answer"]
            if gold is None or normalised(extract(present(gold, self._extract), self._extract)) == normalised(gold):
                continue
            raise ConfigError(
                f"extract = '{self._extract}' does not suit reasoning-gym family '{self._source.family}': of the right "
                f"answer {clip(gold, 60)!r} it leaves {clip(extract(gold, self._extract), 60)!r}; use extract = 'text' "
                "or 'tag'"
            )

    def _settled(self, item: Item, entry: Entry, answer: str) -> Grade | None:
        """The grade where the family's grader need not be asked: nothing there, matching, or a text it must not see."""
        if not answer:
            return self._judged(item, answer, Grade(reward=0.0))
        if self._exact:
            return self._judged(item, answer, Grade(reward=self._matched(answer, entry)))
        if entry["answer"] is not None and answer == entry["answer"].strip():
            return self._judged(item, answer, Grade(reward=1.0))
        why = refusal(self._source.family, answer)
        return self._judged(item, answer, Grade(reward=0.0, failure=f"not graded: {why}")) if why else None

    def _matched(self, answer: str, entry: Entry) -> float:
        if self._source.has_base_scorer:  # what that one calls right, no more: case and inner spaces count
            return float(entry["answer"] is not None and answer == entry["answer"].strip())
        return exact_score(answer, entry)

    def _score_here(self, entry: Entry, answer: str) -> Grade:
        try:
            score = own_score(self._source, answer, entry)
        except Exception as error:  # the scorers assume well-formed answers, and models give anything
            return Grade(reward=0.0, failure=f"grader raised {type(error).__name__}: {clip(str(error), 200)}")
        if score != score:
            return Grade(reward=0.0, failure="grader returned nan")
        return Grade(reward=score)

    def _score_apart(
        self, items: Sequence[Item], indices: Sequence[int], entries: Sequence[Entry], answers: Sequence[str]
    ) -> list[Grade]:
        assert self._isolated is not None
        wrapped = [
            Item(id=item.id, prompt=item.prompt, metadata={"entry": entries[i], "source": self._origin})
            for item, i in zip(items, indices, strict=True)
        ]
        return self._isolated.grade(wrapped, [answers[i] for i in indices])

    def _judged(self, item: Item, answer: str, grade: Grade) -> Grade:
        """The score under this task's scoring, with feedback."""
        right = grade.reward >= FULL
        reward = float(right) if self._scoring == "strict" else grade.reward
        if right:
            feedback = "Correct."
        else:
            wrote = f'you wrote "{clip(answer)}"' if answer else "no answer was found in the text"
            known = f'; the right answer is "{clip(item.reference, 200)}"' if item.reference else ""
            feedback = f"Wrong: {wrote}{known}."
        return Grade(reward=reward, feedback=feedback, failure=grade.failure)
