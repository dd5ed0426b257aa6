"""Tasks from a JSON-lines file: one object a line with ``prompt``, ``answer`` and any further columns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError, DataError, nearest, unknown_name
from twoclock.hashing import canonical_json, content_hash
from twoclock.seeding import SEED_BITS, child_seed
from twoclock.tasks.splits import DRAW_ORDER, SPLITS, SplitSizes
from twoclock.tasks.text import clip, extract, normalised, present
from twoclock.tasks.verifiers import Verifier
from twoclock.tasks.wording import check_wording, instruct
from twoclock.types import Grade, Item, SplitName

__all__ = ["DEFAULT_SHARES", "JsonlTask", "Row", "read_rows"]

DEFAULT_SHARES: Mapping[SplitName, float] = {"train": 0.8, "trial": 0.1, "heldout": 0.1}

MAX_LISTED = 20
"""Bad lines named in one message."""

_ALIASES: Mapping[str, SplitName] = {"test": "heldout", "held-out": "heldout", "validation": "trial", "dev": "trial"}
_TAKEN = ("prompts", "completions")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the file."""

    line: int
    prompt: str
    answer: str | None
    split: SplitName | None
    columns: Mapping[str, Any]

    @property
    def id(self) -> str:
        return content_hash({"prompt": self.prompt, "answer": self.answer})[:16]


def read_rows(path: Path, *, needs_answer: bool) -> list[Row]:
    """The rows of a file, in order. Raises DataError for a missing, unreadable or empty file, and for bad lines: all of
    them up to 20 in one message, each with its number. A byte-order mark, CRLF and blank lines are all right."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        there = [p.name for p in path.parent.glob("*.json*")] if path.parent.is_dir() else []
        close = nearest(path.name, there)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else "give the file with path = '…', from the config's folder"
        )
        raise DataError(f"there is no file {path}; {hint}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; path must name a JSON-lines file") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16; save it as UTF-8")
    rows, problems = [], []
    # Not splitlines: that would also split at characters that may stand inside a JSON text.
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            rows.append(_row(number, raw, needs_answer))
        except _BadLineError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        more = f"\n  … and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        listing = "".join(f"\n  {text}" for text in problems[:MAX_LISTED])
        count = f"{len(problems)} bad line{'s' if len(problems) > 1 else ''}"
        raise DataError(f"{path}: {count}; nothing was read{listing}{more}")
    if not rows:
        raise DataError(f'{path} is empty; expected lines such as {{"prompt": "2 + 2 = ?", "answer": "4"}}')
    return rows


class _BadLineError(Exception):
    pass


def _row(number: int, raw: bytes, needs_answer: bool) -> Row:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _BadLineError(f"not UTF-8 (byte {raw[error.start]:#04x} at column {error.start + 1})") from None
    try:
        value = json.loads(text)
        canonical_json(value).encode("utf-8")  # NaN and lone surrogates load, but cannot be stored
    except json.JSONDecodeError as error:
        hint = "; this looks like one JSON array: write one object a line" if text.lstrip()[:1] == "[" else ""
        raise _BadLineError(f"no valid JSON ({error.msg} at column {error.colno}): {clip(text, 60)}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"no usable JSON ({clip(str(error), 60)}): {clip(text, 60)}") from None
    if not isinstance(value, dict):
        raise _BadLineError(f"a {type(value).__name__}, not an object with a 'prompt': {clip(text, 60)}")
    columns = dict(value)
    prompt, answer, split = columns.pop("prompt", None), columns.pop("answer", None), columns.pop("split", None)
    if not isinstance(prompt, str) or not prompt.strip():
        keys = ", ".join(map(repr, value)) or "none"
        raise _BadLineError(f"'prompt' must be a text that is not empty; got {clip(repr(prompt), 40)} (keys: {keys})")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise _BadLineError(f"'answer' must be a text or a number; got {clip(repr(answer), 40)}")
    if needs_answer and (answer is None or not str(answer).strip()):
        raise _BadLineError("no 'answer', and the task has no verifier that does without")
    taken = [name for name in _TAKEN if name in columns]
    if taken:
        raise _BadLineError(f"the column name '{taken[0]}' is the verifier's own; call it something else")
    return Row(
        line=number,
        prompt=prompt,
        answer=None if answer is None else str(answer),
        split=_split_name(split),
        columns=columns,
    )


def _split_name(value: Any) -> SplitName | None:
    if value is None:
        return None
    for name in SPLITS:
        if value == name:
            return name
    if value in _ALIASES:
        return _ALIASES[value]
    raise _BadLineError(unknown_name("split", str(value), [*SPLITS, *_ALIASES]))


class JsonlTask:
    """Items of a file. Rows whose ``split`` column names one stand there; the others are dealt out by a hash of content
    and seed, by ``shares``, or with ``sizes`` by count, where ``sizes`` also caps the named ones. Adding rows does not
    move the others between splits unless ``sizes`` is given or the file is too small for its shares.

    Without a verifier an answer is right when it is the reference, up to whitespace (and case, with ``casefold``).
    A verifier gets the columns and ``answer``, and the raw completion unless ``extract`` is other than ``"text"``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str = "",
        sizes: SplitSizes | None = None,
        shares: Mapping[SplitName, float] | None = None,
        seed: int = 0,
        instruction: str = "",
        instruction_at: str = "end",
        extract: str = "text",
        casefold: bool = False,
        verifier: Verifier | None = None,
    ) -> None:
        self._path = Path(path).expanduser()
        self._shares = dict(shares or DEFAULT_SHARES)
        problems = check_wording(instruction_at=instruction_at, scoring="strict", extract=extract)
        problems += _check_shares(self._shares)
        if problems:
            raise ConfigError(problems)
        self.name = name or self._path.stem
        self.notes: tuple[str, ...] = ()
        self._sizes = sizes
        self._seed = seed
        self._instruction = (instruction, instruction_at)
        self._extract = extract
        self._casefold = casefold
        self._verifier = verifier
        rows = read_rows(self._path, needs_answer=verifier is None)
        self._rows = self._without_duplicates(rows)
        if verifier is not None:
            missing = verifier.check_columns({"answer", *(name for row in self._rows for name in row.columns)})
            if missing:
                raise ConfigError([f"{self._path}: {text}" for text in missing])
        self._splits  # noqa: B018  # a file too small for its splits is said now, not in the middle of a run

    @property
    def description(self) -> str:
        how = f"scored by '{self._verifier.name}'" if self._verifier else "scored by exact match with the answer"
        return f"{len(self._rows)} problems from {self._path.name}, {how}."

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self._splits[name]

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        if self._verifier is not None:
            answers = list(texts) if self._extract == "text" else [extract(text, self._extract) for text in texts]
            return self._verifier.grade(items, answers)
        return [self._match(item, text) for item, text in zip(items, texts, strict=True)]

    def close(self) -> None:
        if self._verifier is not None:
            self._verifier.close()

    def _match(self, item: Item, text: str) -> Grade:
        answer = extract(text, self._extract)
        gold = extract(item.reference or "", self._extract)
        if answer and normalised(answer, casefold=self._casefold) == normalised(gold, casefold=self._casefold):
            return Grade(reward=1.0, feedback="Correct.")
        wrote = f'you wrote "{clip(answer)}"' if answer else "no answer was found in the text"
        return Grade(reward=0.0, feedback=f'Wrong: {wrote}; the right answer is "{clip(item.reference or "", 200)}".')

    def _without_duplicates(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """One row a prompt. A named split counts more than none, and held-out more than trial more than train."""
        rank: dict[SplitName | None, int] = {**{name: i for i, name in enumerate(DRAW_ORDER)}, None: len(DRAW_ORDER)}
        kept: dict[str, Row] = {}
        disagreeing = 0
        for row in sorted(rows, key=lambda row: rank[row.split]):
            first = kept.setdefault(normalised(row.prompt, casefold=False), row)
            disagreeing += first is not row and first.answer != row.answer
        dropped = len(rows) - len(kept)
        if dropped:
            clash = f" ({disagreeing} of them with another answer)" if disagreeing else ""
            self.notes += (
                f"{self._path.name}: {dropped} rows with a prompt that was there already were dropped{clash}",
            )
        return tuple(sorted(kept.values(), key=lambda row: row.line))

    @cached_property
    def _splits(self) -> Mapping[SplitName, tuple[Item, ...]]:
        named = {name: [row for row in self._rows if row.split == name] for name in SPLITS}
        free = sorted(
            (row for row in self._rows if row.split is None),
            key=lambda row: child_seed("jsonl-split", self._seed, row.id),
        )
        if self._sizes is not None:
            dealt = self._by_count(named, free, self._sizes)
        else:
            dealt = self._by_share(named, free)
        empty = [name for name in SPLITS if not dealt[name]]
        if empty:
            counts = Counter(row.split or "no split" for row in self._rows)
            raise DataError(
                f"{self._path} leaves nothing for {' and '.join(empty)}: it has {len(self._rows)} different prompts "
                f"({', '.join(f'{n} with {name}' for name, n in counts.items())}); give it more rows, or rows of every "
                f"split ({', '.join(SPLITS)})"
            )
        return {name: tuple(self._item(row) for row in rows) for name, rows in dealt.items()}

    def _by_share(self, named: Mapping[SplitName, list[Row]], free: list[Row]) -> dict[SplitName, list[Row]]:
        total = sum(self._shares.values())
        dealt = {name: list(rows) for name, rows in named.items()}
        for row in free:
            place = child_seed("jsonl-split", self._seed, row.id) / 2**SEED_BITS * total
            for split in DRAW_ORDER:
                place -= self._shares[split]
                if place < 0 or split == DRAW_ORDER[-1]:
                    dealt[split].append(row)
                    break
        if free and not all(dealt.values()):
            return self._by_quota(named, free)
        return dealt

    def _by_quota(self, named: Mapping[SplitName, list[Row]], free: list[Row]) -> dict[SplitName, list[Row]]:
        """For small files: at least one each, where there are enough."""
        total = sum(self._shares.values())
        dealt = {name: list(rows) for name, rows in named.items()}
        left = list(free)
        for split in DRAW_ORDER[:-1]:
            count = max(0 if dealt[split] else 1, int(len(free) * self._shares[split] / total))
            dealt[split] += left[:count]
            left = left[count:]
        dealt[DRAW_ORDER[-1]] += left
        self.notes += (f"{self._path.name}: {len(free)} rows are few, so the splits were dealt out by count",)
        return dealt

    def _by_count(
        self, named: Mapping[SplitName, list[Row]], free: list[Row], sizes: SplitSizes
    ) -> dict[SplitName, list[Row]]:
        dealt: dict[SplitName, list[Row]] = {}
        left = list(free)
        for split in DRAW_ORDER:
            wanted = sizes.of(split)
            need = max(0, wanted - len(named[split]))
            dealt[split] = [*named[split][:wanted], *left[:need]]
            left = left[need:]
        short = [f"{s} has {len(dealt[s])} of {sizes.of(s)}" for s in SPLITS if len(dealt[s]) < sizes.of(s)]
        if short:
            raise ConfigError(
                f"{self._path} has {len(self._rows)} different prompts, too few for size = {{ {sizes} }}: "
                f"{', '.join(short)}; ask for fewer, or leave size out to split by shares"
            )
        return dealt

    def _item(self, row: Row) -> Item:
        reference = row.answer if row.answer is None or self._verifier else present(row.answer, self._extract)
        prompt = instruct(row.prompt, *self._instruction)
        return Item(id=row.id, prompt=prompt, reference=reference, metadata=row.columns)


def _check_shares(shares: Mapping[SplitName, float]) -> list[str]:
    problems = [unknown_name("split in shares", str(name), SPLITS) for name in shares if name not in SPLITS]
    for name in SPLITS:
        value = shares.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            problems.append(f"shares.{name} must be a number above 0; got {value!r}")
    return problems
