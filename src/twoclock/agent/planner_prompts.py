"""What the planner and the executor are asked, as text: pure functions of the episode so far.

Only lines that stand here are instructions. What a model or a tool wrote is set in blocks
(:func:`~twoclock.agent.quoting.block`).
"""

from __future__ import annotations

from collections.abc import Sequence

from twoclock.agent.planned_episode import CallRecord, SubtaskRecord
from twoclock.agent.plans import PLAN_FORMAT
from twoclock.agent.quoting import block, bounded
from twoclock.hashing import canonical_json

__all__ = ["executor_prompt", "planner_prompt", "repair_prompt"]


def planner_prompt(
    task: str, tools: str, done: Sequence[SubtaskRecord], *, last: bool, max_subtasks: int, result_chars: int
) -> str:
    """``last`` asks for the answer alone. ``task`` stands as it is: it is the user's own turn."""
    parts = [task]
    if tools and not last:
        parts.append(_offer(tools))
    parts += board(done, result_chars)
    if last:
        parts.append('No more subtasks can be run. Give the answer now. Write JSON only: {"answer": "..."}')
    else:
        next_step = "Plan what is still to be done" if done else "Plan how to do this"
        parts.append(
            f"{next_step}, as at most {max_subtasks} subtasks that someone else runs one after another. "
            f"Write JSON only: {PLAN_FORMAT}"
        )
    return "\n\n".join(parts)


def repair_prompt(prompt: str, reply: str, problem: str) -> str:
    """The same question again, with what was wrong with the reply to it."""
    return "\n\n".join([prompt, block("Your reply was:", bounded(reply, 1000)), f"It cannot be used: {problem}."])


def executor_prompt(
    task: str,
    subtask: str,
    tools: str,
    done: Sequence[SubtaskRecord],
    calls: Sequence[CallRecord],
    *,
    last: bool,
    result_chars: int,
) -> str:
    """``last`` asks for the result alone: the tool calls of this subtask are spent."""
    parts = [block("The whole task, for your information:", task), *board(done, result_chars)]
    parts.append(block("Your subtask:", subtask))
    if tools and not last:
        parts.append(tools)
    parts += [block(f"You called {c.name} with {canonical_json(dict(c.arguments))}:", c.result) for c in calls]
    parts.append(
        "Write a tool call, or the result of your subtask in plain words."
        if tools and not last
        else "Write the result of your subtask in plain words."
    )
    return "\n\n".join(parts)


def board(done: Sequence[SubtaskRecord], result_chars: int) -> list[str]:
    """The subtask memory: what was run so far and what came of it, shared between planner and executor."""
    return [
        block(
            f"Subtask {index}, {'done' if s.done else 'not finished'}:",
            f"{bounded(s.task, result_chars)}\nresult: {bounded(s.result, result_chars)}",
        )
        for index, s in enumerate(done, 1)
    ]


def _offer(tools: str) -> str:
    """The tools as the planner sees them: it may plan for them, and calls none."""
    lines = [line for line in tools.splitlines() if not line.startswith("To call a tool")]
    return "\n".join(["Whoever runs the subtasks has these tools.", *lines[1:]])
