"""Code tasks: write a Python function; hidden tests, run in a process with limits, say whether it is right.

The packaged problems are the project's own. A file of the user's has one JSON object a line with ``name``,
``signature``, ``doc``, ``tests`` (assert statements that call the function) and perhaps ``solution`` and ``split``.
"""

from __future__ import annotations

import ast
import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError, DataError
from twoclock.hashing import content_hash
from twoclock.tasks.code_sandbox import Limits, TestRun, run_tests
from twoclock.tasks.splits import SPLITS, SplitSizes, dealt
from twoclock.tasks.text import clip
from twoclock.tasks.wording import instruct
from twoclock.types import Grade, Item, SplitName

__all__ = ["CodeTask", "is_test_of", "read_problems", "read_program"]

PROMPT = (
    'Write this Python function.\n\n```python\n{signature}\n    """{doc}"""\n```\n\n'
    "Answer with the whole function in one ```python block."
)
KNOWN_RUNS = 4096
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)


def read_program(text: str, name: str, signature: str = "") -> str:
    """The program in a completion: the first fenced block that defines the function, else the first block, else the
    text. A body without its first line gets the signature. What does not parse is given as it is."""
    text = _THINKING.sub("", text)
    blocks: list[str] = [block.strip("\n") for block in _FENCE.findall(text)] or [text.strip("\n")]
    for block in blocks:
        if _defines(block, name):
            return block
    first = blocks[0]
    if signature:
        indented = "\n".join(line if line[:1] in (" ", "\t", "") else f"    {line}" for line in first.split("\n"))
        whole = f"{signature}\n{indented}"
        if _defines(whole, name) and "return" in first:
            return whole
    return first


def _defines(program: str, name: str) -> bool:
    tree = _parsed(program)
    return tree is not None and any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def _parsed(program: str) -> ast.Module | None:
    try:
        return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def is_test_of(test: str, name: str) -> bool:
    """Whether a text is one assert statement that calls the function, and says more than that it can be called."""
    tree = _parsed(test)
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Assert):
        return False
    called = any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for node in ast.walk(tree)
    ) or any(
        isinstance(node, ast.Call) and any(isinstance(a, ast.Name) and a.id == name for a in node.args)
        for node in ast.walk(tree)  # handed to a helper, as raises(ValueError, f, 0) does
    )
    return called and not isinstance(tree.body[0].test, ast.Constant | ast.Tuple)


def read_problems(text: str, where: str) -> list[dict[str, Any]]:
    """The problems of a JSON-lines file. Raises DataError with every bad line."""
    rows, problems = [], []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.append(f"line {number}: no valid JSON ({clip(str(error))})")
            continue
        wrong = _row_problem(row)
        if wrong:
            problems.append(f"line {number}: {wrong}")
        else:
            rows.append(row)
    if not rows and not problems:
        problems.append("it is empty; expected one JSON object a line with name, signature, doc and tests")
    names = [row["name"] for row in rows]
    problems += [f"the name '{name}' stands twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise DataError(f"{where}: " + "\n  ".join(problems[:20]))
    return rows


def _row_problem(row: Any) -> str:
    if not isinstance(row, Mapping):
        return f"a {type(row).__name__}, not an object"
    for key in ("name", "signature", "doc"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            return f"'{key}' must be a text; got {clip(repr(row.get(key)))}"
    name, tests = row["name"], row.get("tests")
    if not _defines(f"{row['signature']}\n    pass", name):
        return f"'signature' must be the first line of 'def {name}(...):'; got {clip(row['signature'])!r}"
    if not isinstance(tests, list) or not tests:
        return f"'tests' must be a list of assert statements; got {clip(repr(tests))}"
    for test in tests:
        if not isinstance(test, str) or not is_test_of(test, name):
            return f"'{clip(str(test))}' is no assert statement that calls {name}"
    if row.get("split") not in (None, *SPLITS):
        return f"'split' must be one of {', '.join(SPLITS)}; got {row['split']!r}"
    if row.get("solution") is not None and not _defines(str(row["solution"]), name):
        return f"'solution' does not define {name}"
    return ""


class CodeTask:
    """Functions to write. ``scoring='strict'`` pays 1 where all hidden tests pass, ``'graded'`` the share that does.
    A quarter of the problems is held out and a quarter for trials, unless they name their split."""

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        name: str = "code",
        sizes: SplitSizes | None = None,
        seed: int = 0,
        scoring: str = "strict",
        instruction: str = "",
        instruction_at: str = "end",
        limits: Limits | None = None,
    ) -> None:
        """``path=None`` is the packaged problems. Raises DataError for a bad file, ConfigError for bad arguments."""
        if scoring not in ("strict", "graded"):
            raise ConfigError(f"scoring must be 'strict' or 'graded'; got {scoring!r}")
        self.name = name
        self.notes: tuple[str, ...] = ()
        self._scoring, self._sizes, self._seed = scoring, sizes, seed
        self._instruction = (instruction, instruction_at)
        self._limits = limits or Limits()
        self._runs: OrderedDict[tuple[str, str], TestRun] = OrderedDict()
        if path is None:
            where = "the packaged problems"
            text = resources.files("twoclock").joinpath("data/code_problems.jsonl").read_text(encoding="utf-8")
        else:
            where = str(path)
            try:
                text = Path(path).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{where} cannot be read ({error}); path must name a JSON-lines file") from error
        self._rows = read_problems(text, where)
        self._splits  # noqa: B018  # too few problems are said now

    @property
    def description(self) -> str:
        return f"{len(self._rows)} Python functions to write, each judged by tests that are not shown."

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self._splits[name]

    @cached_property
    def _splits(self) -> Mapping[SplitName, tuple[Item, ...]]:
        parts = {split: [self._item(row) for row in dealt(self._rows, split, self._seed)] for split in SPLITS}
        if self._sizes is not None:
            short = [
                f"{s} has {len(parts[s])} of {self._sizes.of(s)}" for s in SPLITS if len(parts[s]) < self._sizes.of(s)
            ]
            if short:
                raise ConfigError(
                    f"{len(self._rows)} problems are too few for size = {{ {self._sizes} }}: {', '.join(short)}; ask "
                    "for fewer, or leave size out"
                )
            parts = {split: parts[split][: self._sizes.of(split)] for split in SPLITS}
        empty = [split for split in SPLITS if not parts[split]]
        if empty:
            raise DataError(f"{len(self._rows)} problems leave nothing for {' and '.join(empty)}; give it four or more")
        return {split: tuple(items) for split, items in parts.items()}

    def _item(self, row: Mapping[str, Any]) -> Item:
        prompt = instruct(PROMPT.format(signature=row["signature"], doc=row["doc"]), *self._instruction)
        metadata = {"name": row["name"], "signature": row["signature"], "doc": row["doc"], "tests": list(row["tests"])}
        identity = content_hash({"code": metadata})[:16]
        return Item(id=identity, prompt=prompt, reference=row.get("solution"), metadata=metadata)

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [self._grade(item, text) for item, text in zip(items, texts, strict=True)]

    def run(self, item: Item, text: str) -> TestRun:
        """The hidden tests of an item on the program in a text; the same program is run once."""
        program = read_program(text, item.metadata["name"], item.metadata["signature"])
        key = (item.id, program)
        if key not in self._runs:
            self._runs[key] = run_tests(program, item.metadata["tests"], self._limits)
            while len(self._runs) > KNOWN_RUNS:
                self._runs.popitem(last=False)
        return self._runs[key]

    def _grade(self, item: Item, text: str) -> Grade:
        run = self.run(item, text)
        if run.all_passed:
            return Grade(reward=1.0, feedback=f"All {len(run.passed)} tests pass.")
        if run.problem and not any(run.passed):
            said = f"The program does not run: {clip(run.problem, 300)}"
        else:
            first = next(text for text in run.said if text)
            said = f"{sum(run.passed)} of {len(run.passed)} tests pass. The first that fails: {clip(first, 300)}"
        return Grade(reward=run.share if self._scoring == "graded" else 0.0, feedback=said)
