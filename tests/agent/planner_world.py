"""A world for planners: a task of sums, tools, and a policy whose two roles are scripts of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from twoclock.agent.tools import Tool, tool
from twoclock.models.scripted import ScriptedPolicy
from twoclock.types import Conditioning, Grade, Item, SplitName

PLAN = '{"plan": [{"task": "add the numbers"}]}'

Role = Callable[[str, Conditioning, int], str]


@tool(pure=True)
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def numbers(prompt: str) -> list[int]:
    """The numbers of the task that a prompt is about."""
    found = re.search(r"What is (\d+) plus (\d+)", prompt)
    assert found is not None, prompt
    return [int(found[1]), int(found[2])]


def is_planner(prompt: str) -> bool:
    return "Write JSON only" in prompt


def policy(planner: Role | str, executor: Role | str = "none", **options: Any) -> ScriptedPolicy:
    """One policy for both roles; a text stands for a role that always says it."""

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        role = planner if is_planner(prompt) else executor
        return role if isinstance(role, str) else role(prompt, conditioning, seed)

    return ScriptedPolicy(script, context_tokens=1 << 20, **options)


def good_planner(prompt: str, conditioning: Conditioning, seed: int) -> str:
    """Plans once, and answers with the last result."""
    results = re.findall(r"^> result: (.*)$", prompt, re.MULTILINE)
    return f'{{"answer": "{results[-1]}"}}' if results else PLAN


def good_executor(prompt: str, conditioning: Conditioning, seed: int) -> str:
    """Calls ``add`` once, and gives what it gave."""
    found = re.search(r"You called add with .*:\n> (.*)", prompt)
    if found:
        return found[1]
    a, b = numbers(prompt)
    return f'<tool_call>{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}</tool_call>'


class SumTask:
    """Items ``What is A plus B?``; a right answer is the sum."""

    name = "sums"
    description = "Sums of two numbers."

    def __init__(self, count: int = 6) -> None:
        self._items = tuple(
            Item(id=f"s{i}", prompt=f"What is {i} plus {i * i}?", reference=str(i + i * i)) for i in range(count)
        )
        self.closed = 0

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self._items if name == "train" else ()

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [Grade(reward=float(t.strip() == i.reference)) for i, t in zip(items, texts, strict=True)]

    def close(self) -> None:
        self.closed += 1


def tools(*more: Tool) -> list[Tool]:
    return [add, *more]
