"""Plans: what a planner's reply says to do next, read from whatever form it has.

A reply is a plan (subtasks) or an answer, never both. Asked for is JSON, ``{"plan": [{"task": ...}, ...]}`` or
``{"answer": ...}``; a numbered or bulleted list, and a line ``Answer: ...``, are understood as well. What is neither is
a problem in a sentence, with which the planner is asked once more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twoclock.agent.tool_calls import json_values, read_json
from twoclock.tasks.text import clip

__all__ = ["PLAN_FORMAT", "PlanRead", "parse_plan"]

PLAN_FORMAT = '{"plan": [{"task": "..."}, ...]}, or, when you know the answer, {"answer": "..."}'
MAX_TASK_CHARS = 2000

_PLAN_KEYS = ("plan", "subtasks", "steps", "tasks")
_TASK_KEYS = ("task", "description", "subtask", "step", "goal", "query", "action")
_ANSWER_KEYS = ("answer", "final_answer", "final answer")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):]|step\s+\d{1,2}\s*[.:)-])\s+(\S.*)$", re.IGNORECASE)
_ANSWER = re.compile(r"^\W*(?:final\s+)?answer\W*[:=]\W*?\s*(\S.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class PlanRead:
    """One of: subtasks to run, an answer, or the problem with the reply."""

    subtasks: tuple[str, ...] = ()
    answer: str | None = None
    problem: str = ""


def parse_plan(text: str, *, max_subtasks: int = 8) -> PlanRead:
    """What a planner's reply says; never raises, whatever it is."""
    for value in _candidates(text):
        read = _of_value(value)
        if read is not None:
            return _checked(read, max_subtasks)
    return _checked(_of_lines(text), max_subtasks)


def _candidates(text: str) -> Iterator[Any]:
    for part in [text, *(found[1] for found in _FENCE.finditer(text[:20_000]))]:
        value = read_json(part)
        if value is not None:
            yield value
    yield from json_values(text)


def _of_value(value: Any) -> PlanRead | None:
    """The plan that a JSON value is; None where it is about something else."""
    if isinstance(value, list):
        tasks = [_task(part) for part in value]
        return PlanRead(subtasks=tuple(t for t in tasks if t)) if tasks and all(tasks) else None
    if not isinstance(value, Mapping):
        return None
    plan = next((value[key] for key in _PLAN_KEYS if key in value), None)
    answer = next((value[key] for key in _ANSWER_KEYS if value.get(key) not in (None, "")), None)
    if plan is None and answer is None:
        return PlanRead(problem="the plan is empty and there is no answer") if set(value) & set(_ANSWER_KEYS) else None
    if plan and answer is not None:
        return PlanRead(problem="it has both a plan and an answer: give one of them")
    if answer is not None:
        return PlanRead(answer=_scalar(answer))
    if isinstance(plan, str):
        return PlanRead(subtasks=(plan.strip(),)) if plan.strip() else PlanRead(problem="the plan is empty")
    if not isinstance(plan, list):
        return PlanRead(problem=f"the plan must be a list of subtasks; got {clip(repr(plan))}")
    if not plan:
        return PlanRead(problem="the plan is empty and there is no answer")
    tasks = [_task(part) for part in plan]
    if wrong := [i for i, task in enumerate(tasks, 1) if not task]:
        return PlanRead(problem=f'subtask {wrong[0]} must be {{"task": "..."}}; got {clip(repr(plan[wrong[0] - 1]))}')
    return PlanRead(subtasks=tuple(t for t in tasks if t))


def _task(part: Any) -> str | None:
    if isinstance(part, str):
        return part.strip() or None
    if isinstance(part, Mapping):
        return next((part[k].strip() for k in _TASK_KEYS if isinstance(part.get(k), str) and part[k].strip()), None)
    return None


def _scalar(value: Any) -> str:
    """An answer as text: a number or a list may be meant as well as a string."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else clip(repr(value), 2000)


def _of_lines(text: str) -> PlanRead:
    lines = text[:20_000].splitlines()
    tasks = tuple(found[1].strip() for line in lines if (found := _BULLET.match(line)))
    answers = [found[1].strip(" *`") for line in lines if (found := _ANSWER.match(line))]
    if answers and answers[-1]:
        return PlanRead(answer=answers[-1])
    if tasks:
        return PlanRead(subtasks=tasks)
    return PlanRead(problem=f"it is no plan and no answer: {clip(text)!r}" if text.strip() else "it is empty")


def _checked(read: PlanRead, max_subtasks: int) -> PlanRead:
    if len(read.subtasks) > max_subtasks:
        return PlanRead(problem=f"it has {len(read.subtasks)} subtasks and at most {max_subtasks} are allowed")
    if long := [i for i, task in enumerate(read.subtasks, 1) if len(task) > MAX_TASK_CHARS]:
        return PlanRead(problem=f"subtask {long[0]} is longer than {MAX_TASK_CHARS} characters")
    return read
