"""A scripted programmer: it writes the right function or one of a few wrong ones, and leaves out the versions that its
notes call wrong. Its tests are few and sometimes mistaken, so that passes and fails are false at times.

The wrong versions are the right one with one operator or number changed, so that many of them pass some of the tests.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Sequence
from functools import cache

from twoclock.agent.reflectors import Failure
from twoclock.hashing import content_hash
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng
from twoclock.types import Conditioning, Item

WRONG_VERSIONS = 4
_DEF = re.compile(r"^def (\w+)\(", re.MULTILINE)
_VERSION = re.compile(r"version ([0-9a-f]{6})")
_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


class _Change(ast.NodeTransformer):
    """Changes the place of a given number."""

    def __init__(self, place: int) -> None:
        self.place, self.at = place, -1

    def _is_it(self) -> bool:
        self.at += 1
        return self.at == self.place

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("op",):
            old = getattr(node, name, None)
            if type(old) in _SWAPS and self._is_it():
                setattr(node, name, _SWAPS[type(old)]())
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS and self._is_it():
            node.ops[0] = _SWAPS[type(node.ops[0])]()  # type: ignore[assignment]
        if isinstance(node, ast.Constant) and type(node.value) is int and self._is_it():
            node.value += 1
        return node


@cache
def versions(solution: str) -> tuple[str, ...]:
    """The right program first, then up to four wrong ones."""
    right = ast.unparse(ast.parse(solution))
    made: list[str] = []
    for place in range(60):
        program = ast.unparse(ast.fix_missing_locations(_Change(place).visit(ast.parse(solution))))
        if program != right and program not in made:
            made.append(program)
    rng = random.Random(content_hash(solution))
    rng.shuffle(made)
    return (right, *made[:WRONG_VERSIONS])


def version_of(program: str) -> str:
    return content_hash(program)[:6]


def answer(program: str) -> str:
    return f"```python\n# version {version_of(program)}\n{program}\n```"


def programmer(items: Sequence[Item], *, reads_notes: bool = True, name: str = "programmer") -> ScriptedPolicy:
    """Draws evenly from the versions that its notes do not name; an oracle's note is copied."""
    known = {item.metadata["name"]: item for item in items}

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        item = known[_DEF.findall(prompt)[-1]]
        notes = "\n".join(conditioning.notes) if reads_notes else ""
        choices = versions(item.reference or "")
        if "What works, step by step:" in notes and f"def {item.metadata['name']}(" in notes:
            return answer(choices[0])
        named = set(_VERSION.findall(notes))
        left = [program for program in choices if version_of(program) not in named] or list(choices)
        return answer(child_rng("programmer", seed).choice(left))

    return ScriptedPolicy(script, name=name, context_tokens=1 << 20)


def lesson_of(failure: Failure) -> str:
    """The scripted reflection: which version was wrong, and what the evaluator said."""
    found = _VERSION.search(failure.text)
    name = found[1] if found else "unknown"
    return f"My version {name} was wrong: {failure.feedback[:160]} Next time I write another version."


def write_tests(items: Sequence[Item], seed: int) -> object:
    """A scripted writer of tests: two of the true ones, or, one time in eight, one that is mistaken."""
    known = {item.metadata["name"]: item for item in items}

    def ask(prompt: str) -> str:
        item = known[_DEF.findall(prompt)[-1]]
        rng = child_rng("scripted-tests", seed, item.id)
        tests = rng.sample(item.metadata["tests"], 2)
        if rng.random() < 1 / 8:
            tests.append(f"assert not ({tests[0].removeprefix('assert ')})")
        return "```python\n" + "\n".join(tests) + "\n```"

    return ask
