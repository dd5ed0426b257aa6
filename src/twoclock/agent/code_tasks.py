"""Tests that a model writes for its own programs, and an evaluator that believes them (Reflexion on code).

Source: Reflexion (arXiv:2303.11366), section 4.3: up to six asserts, kept where they parse; they alone decide whether
there is another trial; the hidden tests say afterwards who was right. A false pass costs more than a false fail, since
it ends the loop; :func:`~twoclock.agent.trial_table.verdicts` counts both.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence

from twoclock.agent.episodes import Attempt
from twoclock.agent.evaluators import Judgement, count_tokens
from twoclock.errors import ConfigError
from twoclock.tasks.code_sandbox import Limits, run_tests
from twoclock.tasks.code_task import is_test_of, read_program
from twoclock.tasks.text import clip
from twoclock.types import Item

__all__ = ["MAX_TESTS", "SelfTests", "SelfTestEvaluator", "read_tests"]

MAX_TESTS = 6

ASKED = (
    "Write tests for this Python function: up to {count} lines, each one assert statement that calls it, such as "
    "'assert f(1) == 2'. Think of ordinary cases and of edge cases. Answer with the asserts in one ```python block, "
    'and do not write the function.\n\n```python\n{signature}\n    """{doc}"""\n```'
)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def read_tests(text: str, name: str, most: int = MAX_TESTS) -> list[str]:
    """The asserts in a reply that call the function, each once, in order, ``most`` at the most. What does not parse is
    left out; so is what says nothing about the function."""
    blocks = _FENCE.findall(text) or [text]
    found: list[str] = []
    for block in blocks:
        for test in _statements(block):
            if is_test_of(test, name) and test not in found:
                found.append(test)
    return found[:most]


def _statements(block: str) -> list[str]:
    """Assert statements of a block: of the whole where it parses, else of the lines that do."""
    for source in ([block], block.split("\n")):
        found = []
        for part in source:
            try:
                tree = ast.parse(part.strip())
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            found += [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        if found:
            return found
    return []


class SelfTests:
    """Asks once an item for tests, and keeps them: the same tests judge all of its trials."""

    def __init__(
        self,
        ask: Callable[[str], str],
        *,
        most: int = MAX_TESTS,
        count: Callable[[str], int] = count_tokens,
    ) -> None:
        if isinstance(most, bool) or not 1 <= most <= 50:
            raise ConfigError(f"most must be a whole number from 1 to 50; got {most!r}")
        self._ask, self._most, self._count = ask, most, count
        self._known: dict[str, list[str]] = {}

    def of(self, item: Item) -> tuple[list[str], int, int]:
        """(the tests, tokens spent now, calls made now)."""
        if item.id in self._known:
            return self._known[item.id], 0, 0
        about = item.metadata
        if "signature" not in about:
            raise ConfigError(f"self-written tests are for code tasks; item {item.id} has no signature")
        prompt = ASKED.format(count=self._most, signature=about["signature"], doc=about["doc"])
        reply = self._ask(prompt)
        tests = read_tests(reply, about["name"], self._most)
        self._known[item.id] = tests
        return tests, self._count(prompt) + self._count(reply), 1


class SelfTestEvaluator:
    """Passes a program that passes the tests which the model wrote. The hidden tests are not looked at. Without a test
    of its own to run, nothing is passed, and it is undecided."""

    name = "self-written tests"

    def __init__(self, tests: SelfTests, *, limits: Limits | None = None) -> None:
        self._tests, self._limits = tests, limits

    def judge(self, items: Sequence[Item], attempts: Sequence[Attempt]) -> list[Judgement]:
        return [self._one(item, attempt) for item, attempt in zip(items, attempts, strict=True)]

    def _one(self, item: Item, attempt: Attempt) -> Judgement:
        tests, tokens, calls = self._tests.of(item)
        if not tests:
            said = "None of the tests that were written for it parses, so nothing is known."
            return Judgement(passed=False, feedback=said, tokens=tokens, calls=calls, undecided=True)
        program = read_program(attempt.text, item.metadata["name"], item.metadata["signature"])
        run = run_tests(program, tests, self._limits)
        if run.all_passed:
            return Judgement(passed=True, feedback=f"All {len(tests)} own tests pass.", tokens=tokens, calls=calls)
        failed = [clip(text, 200) for text in run.said if text]
        said = f"{len(failed)} of {len(tests)} own tests fail: " + "; ".join(failed[:3])
        return Judgement(passed=False, feedback=said, tokens=tokens, calls=calls)
