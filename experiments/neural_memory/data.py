"""What the models read: recall of pairs, a needle in a haystack, and bytes of files. Nothing is fetched.

``mqar``     multi-query associative recall (Arora et al., arXiv:2312.04927): pairs "key value" among noise in the first
             half of the text, each key asked again in the second, where its value is to be said
``passkey``  S-NIAH (RULER, arXiv:2404.06654): one needle "mark d d d" in a sentence that repeats; asked at the end
``number``   the same in a haystack of words that follow a random grammar
``word``     the same with a needle of three letters, and other letters all over the haystack
``text``     bytes of files; the task is the next byte

A batch is a function of (task, length, seed, purpose, index): a run that was killed reads the same batches again. A
text's labels are -100 where nothing is asked. Training asks a needle's question four times in the second half; tests
ask once, at the end, of a needle at any depth.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from twoclock.errors import ConfigError, DataError, unknown_name
from twoclock.seeding import child_seed

TASKS = ("mqar", "passkey", "number", "word", "text")
NEEDLES = ("passkey", "number", "word")
SYMBOLS = 64
PAIRS, KEYS, VALUES = 4, 16, 16
DIGITS, LETTERS, WORDS, MARK = (0, 10), (10, 36), (36, 63), 63
ANSWER = 3
QUESTIONS = 4
SENTENCE = (40, 52, 37, 61, 45, 45, 58, 39, 50, 36, 47, 62)
CORPUS_BYTES = 16_000_000
LEAST_BYTES = 10_000
MANY_FILES = 50


@dataclass(frozen=True)
class Batch:
    ids: torch.Tensor
    """[B, T]."""
    labels: torch.Tensor
    """[B, T], -100 where nothing is asked."""
    split: int
    """Columns before which everything worth remembering stands, and after which it is asked."""
    depth: torch.Tensor | None = None
    """[B]: where the needle stands, 0 the beginning and 1 just before the question."""


def vocabulary(task: str) -> int:
    return 256 if task == "text" else SYMBOLS


def make(task: str, length: int, rows: int, seed: int, purpose: str, index: int, files: Sequence[Path] = ()) -> Batch:
    """``purpose`` is "train", "tune" or "test"; "tune" and "test" read like tests."""
    if task not in TASKS:
        raise ConfigError(unknown_name("task", task, TASKS))
    generator = torch.Generator().manual_seed(child_seed(f"neural_memory.{task}.{purpose}", seed, length, index))
    if task == "mqar":
        return _pairs(length, rows, generator)
    if task == "text":
        return _bytes(length, rows, purpose, tuple(files), generator)
    return _needle(task, length, rows, generator, asked=QUESTIONS if purpose == "train" else 1)


def _integers(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=generator)


def _slots(rows: int, count: int, size: int, start: int, stop: int, generator: torch.Generator) -> torch.Tensor:
    """[rows, count]: where pieces of ``size`` begin that do not overlap, in columns [start, stop), in order."""
    places = (stop - start) // size
    if places < count:
        raise ConfigError(
            f"{count} pieces of {size} tokens do not fit in columns {start} to {stop}; take a longer text"
        )
    return torch.rand(rows, places, generator=generator).argsort(1)[:, :count].sort(1).values * size + start


def _pairs(length: int, rows: int, generator: torch.Generator) -> Batch:
    ids = _integers(KEYS + VALUES, SYMBOLS, (rows, length), generator)
    labels = torch.full_like(ids, -100)
    keys = torch.rand(rows, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = _integers(KEYS, KEYS + VALUES, (rows, PAIRS), generator)
    for start, stop in ((0, length // 2), (length // 2, length)):
        slots = _slots(rows, PAIRS, 2, start, stop, generator)
        order = torch.rand(rows, PAIRS, generator=generator).argsort(1)
        said = values.gather(1, order)
        ids.scatter_(1, slots, keys.gather(1, order)).scatter_(1, slots + 1, said)
        if start:
            labels.scatter_(1, slots + 1, said)
    return Batch(ids, labels, length // 2)


@cache
def _grammar() -> torch.Tensor:
    """[words, 4]: what may follow each word of the haystack; the same in every run."""
    low, high = WORDS
    return _integers(low, high, (high - low, 4), torch.Generator().manual_seed(child_seed("neural_memory.grammar", 0)))


def _haystack(task: str, length: int, rows: int, generator: torch.Generator) -> torch.Tensor:
    if task == "passkey":
        start = _integers(0, len(SENTENCE), (rows, 1), generator)
        return torch.tensor(SENTENCE)[(start + torch.arange(length)) % len(SENTENCE)]
    follows, low = _grammar(), WORDS[0]
    choices = _integers(0, follows.shape[1], (rows, length), generator)
    words = [_integers(*WORDS, (rows,), generator)]
    for column in range(1, length):
        words.append(follows[words[-1] - low, choices[:, column]])
    hay = torch.stack(words, dim=1)
    if task == "word":
        letters = _integers(*LETTERS, (rows, length), generator)
        hay = torch.where(torch.rand(rows, length, generator=generator) < 0.25, letters, hay)
    return hay


def _needle(task: str, length: int, rows: int, generator: torch.Generator, asked: int) -> Batch:
    size = 1 + ANSWER
    ids = _haystack(task, length, rows, generator)
    labels = torch.full_like(ids, -100)
    answer = _integers(*(LETTERS if task == "word" else DIGITS), (rows, ANSWER), generator)
    piece = torch.cat([torch.full((rows, 1), MARK), answer], dim=1)
    if asked == 1:
        split = length - size
        at = _integers(0, split - size + 1, (rows, 1), generator)
        questions = torch.full((rows, 1), split)
    else:
        split = length // 2
        at = _integers(0, split - size + 1, (rows, 1), generator)
        questions = _slots(rows, asked, size, split, length, generator)
    offsets = torch.arange(size)
    ids.scatter_(1, at + offsets, piece)
    for n in range(asked):
        ids.scatter_(1, questions[:, n : n + 1] + offsets, piece)
        labels.scatter_(1, questions[:, n : n + 1] + offsets[1:], answer)
    return Batch(ids, labels, split, at[:, 0] / max(1, split - size))


# ----------------------------------------------------------------------------------------------------------- files


@cache
def corpus(files: tuple[Path, ...], purpose: str) -> torch.Tensor:
    """The bytes of the files (none given: this Python's standard library). Of many files a tenth is kept for "test" and
    a tenth for "tune", by the hash of their names; of few, the last tenth of each file and the one before it."""
    chosen = _files(files)
    by_file = len(chosen) >= MANY_FILES
    parts: list[bytes] = []
    for file in chosen:
        if by_file:
            share = hashlib.sha256(file.name.encode()).digest()[0] % 10
            if {0: "test", 1: "tune"}.get(share, "train") == purpose:
                parts.append(file.read_bytes())
        else:
            content = file.read_bytes()
            first, last = {"train": (0, 8), "tune": (8, 9), "test": (9, 10)}[purpose]
            parts.append(content[len(content) * first // 10 : len(content) * last // 10])
    text = b"\n".join(parts)[:CORPUS_BYTES]
    if len(text) < LEAST_BYTES:
        raise DataError(
            f"{len(text):,} bytes of text for '{purpose}' in {len(chosen)} files are too few: {LEAST_BYTES:,} are the "
            "least, and a tenth of the text is for tests; give more files"
        )
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _files(given: tuple[Path, ...]) -> list[Path]:
    if not given:
        return sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for path in given:
        if not path.exists():
            raise DataError(f"{path} is not there; give files or folders to read text from")
    inside = [f for path in given for f in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return [f for f in inside if f.is_file()]


def _bytes(length: int, rows: int, purpose: str, files: tuple[Path, ...], generator: torch.Generator) -> Batch:
    text = corpus(files, purpose)
    if len(text) < 2 * length:
        raise DataError(f"{len(text):,} bytes of text for '{purpose}' are too few for lengths of {length:,}")
    starts = _integers(0, len(text) - length, (rows, 1), generator)
    ids = text[starts + torch.arange(length)].long()
    return Batch(ids, ids.clone(), length // 2)
