"""Variants of a JSON-lines task: files of the user's own, paired with the held-out rows where they say with which.

A variant file has lines like the task's own. Its column ``of`` names the base row, by that row's column ``id`` or by
its whole prompt; ``stale`` is the answer of somebody who overlooked what is different. Both are optional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twoclock.contracts import Task
from twoclock.errors import ConfigError, DataError
from twoclock.hashing import content_hash
from twoclock.tasks.jsonl import Row, read_rows
from twoclock.tasks.text import clip, normalised, present
from twoclock.tasks.variants_base import Base, check_disjoint
from twoclock.tasks.variants_frames import bare_question, distracted, framed
from twoclock.tasks.variants_task import Parsed, VariantItem, plain_parse
from twoclock.tasks.wording import instruct
from twoclock.types import Item

__all__ = ["JsonlVariants"]

_FRAMED = ("template", "distractor")


class JsonlVariants:
    """Makes the variants of one JSON-lines task."""

    def __init__(
        self,
        base: Base,
        spec: Mapping[str, Any],
        seed: int,
        base_dir: Path,
        *,
        files: Mapping[str, str | Path],
        rewordings: Sequence[str],
    ) -> None:
        self._base, self._spec, self._seed = base, spec, seed
        self._files = {variant: base_dir / Path(path).expanduser() for variant, path in files.items()}
        self._rewordings = rewordings
        self._instruction = (spec.get("instruction", ""), spec.get("instruction_at", "end"))
        self._extract = spec.get("extract", "text")
        self._has_verifier = "verifier" in spec
        self.graders: dict[str, Task] = {}
        self.notes: dict[str, list[str]] = {}

    @property
    def parsed(self) -> Parsed:
        return plain_parse(self._extract)

    def problem(self, variant: str) -> str | None:
        """Why there is no such variant; ``None`` where there is."""
        if variant in ("seen", "id", *_FRAMED) or variant in self._files:
            return None
        return (
            f"a JSON-lines task has '{variant}' only from a file of yours; give files = {{ '{variant}': 'path.jsonl' }}"
        )

    def make(self, variant: str) -> tuple[VariantItem, ...]:
        """The items of a variant. Raises DataError for a bad file, each bad line named."""
        if variant == "seen":
            return tuple(VariantItem(item=item) for item in self._base.seen)
        if variant == "id":
            return tuple(VariantItem(item=item, partner=item.id) for item in self._base.items)
        if variant in self._files:
            return self._from_file(variant, self._files[variant])
        if variant == "template":
            return framed(self._base.items, self._rewordings, self._question, self._seed, own_grading=False)
        return distracted(self._base.items, self._seed, own_grading=False)

    def _question(self, item: Item) -> str:
        return bare_question(item, *self._instruction)

    # ------------------------------------------------------------------------------------------------------- the file

    def _from_file(self, variant: str, path: Path) -> tuple[VariantItem, ...]:
        rows = read_rows(path, needs_answer=not self._has_verifier)
        self._check_rows(path, rows)
        held = {name: item for item in self._base.items for name in self._names(item)}
        learned = [*self._base.task.split("train"), *self._base.task.split("trial")]
        not_held = {name for item in learned for name in self._names(item)}
        others = {name for item in self._base.task.split("heldout") for name in self._names(item)} - set(held)
        made: dict[str, VariantItem] = {}
        left_out, unknown = 0, []
        for row in rows:
            of = row.columns.get("of")
            if of is not None and str(of) not in held:
                if str(of) in not_held or str(of) in others:
                    left_out += 1  # its base problem was learned from, so it could not be told from memory
                else:
                    unknown.append(f"line {row.line}: no row of the task has the id or prompt {clip(str(of), 40)!r}")
                continue
            entry = self._entry(variant, row, None if of is None else held[str(of)])
            made.setdefault(entry.item.id, entry)
        if unknown:
            raise DataError(f"{path}: {len(unknown)} rows whose 'of' names nothing\n  " + "\n  ".join(unknown[:20]))
        check_disjoint(learned, [entry.item for entry in made.values()], str(path), DataError)
        self._note(variant, path, rows, made, left_out)
        return tuple(made.values())

    def _check_rows(self, path: Path, rows: Sequence[Row]) -> None:
        bad = [
            f"line {row.line}: '{key}' must be a text or a number; got {clip(repr(row.columns[key]), 40)}"
            for row in rows
            for key in ("of", "stale")
            if isinstance(row.columns.get(key), bool | list | dict)
        ]
        if bad:
            raise DataError(f"{path}: {len(bad)} bad lines\n  " + "\n  ".join(bad[:20]))
        lone = [str(row.line) for row in rows if row.columns.get("of") is None]
        if 0 < len(lone) < len(rows):
            raise DataError(
                f"{path}: {len(lone)} of {len(rows)} rows have no 'of' and the others do (lines "
                f"{', '.join(lone[:20])}); say of each row which base row it is of, or of none"
            )

    def _names(self, item: Item) -> list[str]:
        own = item.metadata.get("id")
        return [self._question(item), *([] if own is None else [str(own)])]

    def _note(
        self, variant: str, path: Path, rows: Sequence[Row], made: Mapping[str, VariantItem], left_out: int
    ) -> None:
        notes = self.notes.setdefault(variant, [])
        if left_out:
            notes.append(
                f"{path.name}: {left_out} of {len(rows)} rows were left out: the rows that they are 'of' are in the "
                "train or trial split, or beyond the items asked for; only held-out ones have partners"
            )
        if made and all(entry.partner is None for entry in made.values()):
            notes.append(
                f"{path.name}: no row says which base row it is of, so nothing is paired; name it in a column 'of' ("
                "the base row's column 'id', or its prompt) for paired gaps and consistency"
            )
        if not made:
            raise ConfigError(
                f"{path}: none of its {len(rows)} rows can be used: each is 'of' a row that is not held-out; write "
                'variants of held-out rows (mark those with "split": "heldout")'
            )

    def _entry(self, variant: str, row: Row, base: Item | None) -> VariantItem:
        stale = row.columns.get("stale")
        columns = {key: value for key, value in row.columns.items() if key != "of"}
        metadata = {**columns, "variant": variant, "partner": base.id if base else None}
        identity = content_hash({"prompt": row.prompt, "answer": row.answer, "variant": variant})[:16]
        prompt = instruct(row.prompt, *self._instruction)
        item = Item(id=identity, prompt=prompt, reference=self._gold(row.answer), metadata=metadata)
        telling = stale is None or row.answer is None or normalised(str(stale)) != normalised(row.answer)
        twin = replace(item, reference=self._gold(str(stale))) if stale is not None and telling else None
        return VariantItem(item=item, partner=base.id if base else None, stale=twin, telling=telling)

    def _gold(self, answer: str | None) -> str | None:
        return answer if answer is None or self._has_verifier else present(answer, self._extract)
