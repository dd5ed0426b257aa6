"""Candidates out of exemplars: proven rollouts and gold answers become few-shot turns. Needs no strong model."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from twoclock.contracts import Task
from twoclock.fast.prompts.state import Candidate
from twoclock.types import Evidence, Item

__all__ = ["Turn", "draw_turns", "gold_turns", "mutate", "new_candidates", "proven_turns"]

Turn = tuple[str, str]


def _answer_key(answer: str) -> str:
    return " ".join(answer.lower().split())


def proven_turns(evidence: Evidence) -> list[Turn]:
    """For each item the shortest answer of the model's own that was graded fully right and ended by itself."""
    turns = []
    for group in evidence.groups:
        proven = [r.completion for r in group.rollouts if r.reward >= 1.0 and r.completion.finish == "stop"]
        texts = [text for c in proven if (text := c.text.strip())]
        if texts:
            turns.append((group.item.prompt, min(texts, key=lambda text: (len(text), text))))
    return turns


def gold_turns(task: Task, items: Sequence[Item]) -> list[Turn]:
    """Items with their gold answers, where the task's own verifier passes them: another form would mislead."""
    known = [item for item in items if item.reference]
    if not known:
        return []
    answers = [item.reference or "" for item in known]
    grades = task.grade(known, answers)
    return [(i.prompt, a) for i, a, g in zip(known, answers, grades, strict=True) if g.reward >= 1.0]


def draw_turns(turns: Sequence[Turn], size: int, max_chars: int, rng: random.Random) -> tuple[Turn, ...] | None:
    """A set of ``size`` turns whose answers differ as much as they can, in random order.

    Draws from the classes of equal answers in turn: shown one answer again and again, a small model repeats it. Fewer
    turns where no more fit into ``max_chars``; None where none does, or where several would all have one answer.
    """
    classes: dict[str, list[Turn]] = {}
    for turn in dict(turns).items():
        classes.setdefault(_answer_key(turn[1]), []).append(turn)
    queues = [rng.sample(classes[key], len(classes[key])) for key in sorted(classes)]
    rng.shuffle(queues)
    drawn: list[Turn] = []
    while len(drawn) < size and any(queues):
        for queue in queues:
            if queue and len(drawn) < size:
                turn = queue.pop()
                if _chars([*drawn, turn]) <= max_chars:
                    drawn.append(turn)
    rng.shuffle(drawn)
    return tuple(drawn) if drawn and not _is_constant(drawn) else None


def _chars(turns: Sequence[Turn]) -> int:
    return sum(len(question) + len(answer) for question, answer in turns)


def _is_constant(turns: Sequence[Turn]) -> bool:
    return len(turns) > 1 and len({_answer_key(answer) for _, answer in turns}) == 1


def mutate(parent: Candidate, turns: Sequence[Turn], max_chars: int, rng: random.Random) -> Candidate | None:
    """One exemplar swapped, added or dropped; None where that gives nothing new or nothing allowed."""
    have = list(parent.exemplars)
    fresh = [turn for turn in turns if turn[0] not in dict(have)]
    moves = [m for m, possible in (("swap", bool(fresh)), ("add", bool(fresh)), ("drop", len(have) > 1)) if possible]
    if not have or not moves:
        return None
    move = rng.choice(moves)
    if move in ("swap", "drop"):
        have.pop(rng.randrange(len(have)))
    if move in ("swap", "add"):
        have.insert(rng.randrange(len(have) + 1), rng.choice(fresh))
    child = Candidate(system=parent.system, exemplars=tuple(have), parent=parent.id, origin="mutation")
    return None if child.chars > max_chars or _is_constant(have) else child


def new_candidates(
    *,
    deployed: Candidate,
    proven: Sequence[Turn],
    gold: Sequence[Turn],
    sizes: Sequence[int],
    instructions: Sequence[str],
    count: int,
    max_chars: int,
    known: Iterable[str],
    rng: random.Random,
) -> list[Candidate]:
    """Up to ``count`` distinct candidates whose ids are not in ``known``.

    First the bare instructions, then by turns: sets from gold answers, from proven rollouts, from both, some of them
    under an instruction; and every other one a mutation of the deployed set, where it has exemplars.
    """
    seen = set(known)
    result: list[Candidate] = []

    def offer(candidate: Candidate | None) -> None:
        if candidate and candidate.id not in seen and candidate.chars <= max_chars and len(result) < count:
            seen.add(candidate.id)
            result.append(candidate)

    for text in instructions:
        offer(Candidate(system=text, parent=deployed.id, origin="instruction"))
    sources = [source for source in (gold, proven, [*gold, *proven]) if source]
    draws = 0
    for attempt in range(4 * count if sources else 0):  # a draw may repeat or fail: a few more attempts than wanted
        if deployed.exemplars and attempt % 2:
            offer(mutate(deployed, [*gold, *proven], max_chars, rng))
            continue
        system = rng.choice([deployed.system, *instructions])
        room = max_chars - len(system or "")
        turns = draw_turns(sources[draws % len(sources)], sizes[draws // len(sources) % len(sizes)], room, rng)
        draws += 1
        if turns:
            offer(Candidate(system=system, exemplars=turns, parent=deployed.id, origin="exemplars"))
    return result
