"""What an episode of planner and executor leaves in memory, and what memory tells them: cases, subtasks, tools.

Writing back is a pure function of the transcript and its reward: the last state, plan and reward as a case (successes
and failures alike, each labelled; Memento, arXiv:2508.16153, equation 4 and section 3.2), the subtasks that were done,
and the calls that were made. Whoever holds the memory adds them: ``bank.add(*episode_entries(...))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twoclock.agent.planned_episode import PlannedEpisode
from twoclock.agent.planner import Hints, Role
from twoclock.agent.tool_memory import SUCCESS, Searchable, suggest, suggestion_notes, tool_entries
from twoclock.agent.toolbox import Toolbox
from twoclock.hashing import canonical_json
from twoclock.memory.records import Entry, Hit, Kind, Scope
from twoclock.memory.rendering import render
from twoclock.tasks.text import clip
from twoclock.types import Conditioning, Item

__all__ = ["case_entry", "episode_entries", "memory_hints", "proven_subtasks", "subtask_entries"]

PLAN_CHARS = 2000
RESULT_CHARS = 500
SUBTASKS: tuple[Kind, ...] = ("subtask",)


def case_entry(
    episode: PlannedEpisode,
    item: Item,
    reward: float,
    *,
    provenance: str,
    scope: Scope | None = None,
    created: float = 0.0,
) -> Entry | None:
    """The final (state, plan, reward) of an episode as a case; None where a policy's failure ended it.

    The key is the item's prompt, the case's ``answer`` what the planner wrote: its last plan, or its answer where it
    needed none. The text says that plan and how the episode ended, never the grader's feedback, which may hold the
    right answer.
    """
    if episode.error:
        return None
    plan = list(episode.plans[-1]) if episode.plans else []
    wrote = {"plan": [{"task": task} for task in plan]} if plan else {"answer": episode.answer or ""}
    steps = "\n".join(f"{n}. {clip(task, 300)}" for n, task in enumerate(plan, 1)) or "(no subtasks)"
    if episode.answer is None:
        ended = f"no answer: {clip(episode.failure, 200)}"
    else:
        ended = f"the answer: {clip(episode.answer, 300)}"
    outcome = "success" if reward >= SUCCESS else "failure"
    return Entry(
        kind="case",
        key=item.prompt,
        text=f"Task: {clip(item.prompt, 500)}\nPlan ({outcome}):\n{steps}"[:PLAN_CHARS] + f"\nIt ended with {ended}",
        scope=scope or Scope(),
        provenance=(provenance,),
        seen=episode.seen,
        reward=reward,
        body={
            "question": item.prompt,
            "answer": canonical_json(wrote),
            "item": item.id,
            "plan": plan,
            "final": episode.answer or "",
            "outcome": outcome,
        },
        created=created,
    )


def subtask_entries(
    episode: PlannedEpisode,
    reward: float,
    *,
    provenance: str,
    scope: Scope | None = None,
    created: float = 0.0,
) -> tuple[Entry, ...]:
    """The subtasks that were done, with their results; what was not finished says nothing. A failed episode's are kept
    too: they are what keeps a result from being proven (:func:`proven_subtasks`)."""
    if episode.error:
        return ()
    entries = (
        Entry(
            kind="subtask",
            key=clip(s.task, RESULT_CHARS),
            text=f"{clip(s.task, RESULT_CHARS)}\nresult: {clip(s.result, RESULT_CHARS)}",
            scope=scope or Scope(),
            provenance=(provenance,),
            seen=tuple(dict.fromkeys([*episode.recalled, *s.recalled])),
            reward=reward,
            body={"plan": s.task, "result": clip(s.result, RESULT_CHARS), "helped": reward >= SUCCESS},
            created=created,
        )
        for s in episode.subtasks
        if s.done
    )
    return tuple({entry.id: entry for entry in entries}.values())


def episode_entries(
    episode: PlannedEpisode,
    item: Item,
    reward: float,
    toolbox: Toolbox,
    *,
    provenance: str,
    scope: Scope | None = None,
    created: float = 0.0,
) -> tuple[Entry, ...]:
    """Everything that one episode leaves: its case, its subtasks, its tool calls."""
    case = case_entry(episode, item, reward, provenance=provenance, scope=scope, created=created)
    return (
        *(() if case is None else (case,)),
        *subtask_entries(episode, reward, provenance=provenance, scope=scope, created=created),
        *tool_entries(episode, toolbox, reward, provenance=provenance, scope=scope, created=created),
    )


def proven_subtasks(hits: Sequence[Hit], *, successes: int = 2) -> tuple[Entry, ...]:
    """Of found subtasks those whose result was part of at least so many successful episodes and of no failed one."""
    failed = {_said(hit.entry) for hit in hits if (hit.entry.reward or 0.0) < SUCCESS}
    return tuple(
        hit.entry
        for hit in hits
        if hit.entry.kind == "subtask"
        and (hit.entry.reward or 0.0) >= SUCCESS
        and len(hit.entry.provenance) >= successes
        and _said(hit.entry) not in failed
    )


def _said(entry: Entry) -> tuple[str, str]:
    return entry.key, str(entry.body.get("result"))


def memory_hints(
    memory: Callable[[], Searchable] | Searchable,
    toolbox: Toolbox,
    *,
    scope: Scope | None = None,
    now: Callable[[], float] = lambda: 0.0,
    tools: int = 3,
    subtasks: int = 0,
    successes: int = 2,
) -> Hints:
    """What memory tells the executor about its subtask: ``tools`` suggestions, and up to ``subtasks`` results of other
    episodes that are proven. The planner gets its cases with the conditioning and nothing here.

    ``memory`` may be a function that gives the present one, for a bank that is replaced as it learns.
    """

    def hints(role: Role, situation: str) -> Conditioning:
        if role == "planner":
            return Conditioning()
        held = memory() if callable(memory) else memory
        told = suggestion_notes(suggest(held, situation, toolbox, now=now(), scope=scope, k=tools))
        if subtasks:
            hits = held.search(situation, scope=scope, k=8 * subtasks, kinds=SUBTASKS, now=now())
            told = told.join(render(proven_subtasks(hits, successes=successes)[:subtasks]))
        return told

    return hints
