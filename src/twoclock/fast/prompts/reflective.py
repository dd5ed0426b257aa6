"""Candidates out of reflection: a language model reads failed rollouts and rewrites the system prompt.

The prompt that the reflector sees and the way its reply is read are GEPA's (arXiv:2507.19457), by the ``gepa`` package:
``InstructionProposalSignature``. Its engine is not used: it keeps scores across calls and accepts on the minibatch it
learned from, and a search here re-scores everything under the weights as they are. What comes back passes the guards
first, and a reflector that fails costs its own proposal only.

Who writes is a :data:`Writer`: a reflector (``reflective``), or the policy that is to be prompted (``self``), which
costs rollouts instead and, where it is small, mostly writes what the guards refuse.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from twoclock.contracts import Reflector, Workbench
from twoclock.errors import BudgetError, MissingExtraError
from twoclock.fast.prompts.guards import (
    copied_span,
    echo_problem,
    instruction_problem,
    item_ngrams,
    reply_problem,
    strip_thinking,
)
from twoclock.fast.prompts.state import Candidate
from twoclock.seeding import child_seed
from twoclock.types import Evidence, Item, Rollout

__all__ = [
    "Reflections",
    "Writer",
    "policy_writer",
    "question",
    "reflect",
    "reflection_records",
    "reflector_writer",
    "require_gepa",
]

Writer = Callable[[str], tuple[str, str | None]]
"""A question → (reply, why there is none)."""


@dataclass(frozen=True)
class Reflections:
    """What a search got from a writer: candidates, calls made, and why each failed call failed."""

    candidates: tuple[Candidate, ...] = ()
    calls: int = 0
    problems: tuple[str, ...] = ()


def require_gepa() -> None:
    """Raises MissingExtraError where the ``gepa`` package is not installed."""
    _signature()


def _signature() -> Any:
    try:
        from gepa.strategies.instruction_proposal import InstructionProposalSignature
    except ImportError as error:
        raise MissingExtraError.of("gepa", "gepa", "a reflective proposer ('reflective' or 'self')") from error
    return InstructionProposalSignature


def reflection_records(
    evidence: Evidence, parent: Candidate, examples: int, rng: random.Random
) -> list[dict[str, str]] | None:
    """Graded rollouts in the form that GEPA's reflection prompt shows, one an item, failures first.

    Those sampled under the parent are preferred; where there are none, all are used. None where every one is right.
    """
    ids = {
        key for key, c in evidence.conditionings.items() if (c.system, c.exemplars) == (parent.system, parent.exemplars)
    }
    of_parent = any(r.conditioning_id in ids for r in evidence.rollouts)
    right: list[tuple[Item, Rollout]] = []
    wrong: list[tuple[Item, Rollout]] = []
    for group in evidence.groups:
        rollouts = [r for r in group.rollouts if r.conditioning_id in ids or not of_parent]
        if rollouts:
            worst = min(rollouts, key=lambda r: (r.reward, r.seed))
            (right if worst.reward >= 1.0 else wrong).append((group.item, worst))
    if not wrong:
        return None
    chosen = (rng.sample(wrong, len(wrong)) + rng.sample(right, len(right)))[:examples]
    return [
        {
            "Inputs": item.prompt,
            "Generated Outputs": rollout.completion.text,
            "Feedback": rollout.grade.feedback or rollout.grade.failure or f"The reward was {rollout.reward:.3g} of 1.",
        }
        for item, rollout in chosen
    ]


def reflect(
    writer: Writer,
    *,
    evidence: Evidence,
    parents: Sequence[Candidate],
    items: Iterable[Item],
    examples: int,
    max_chars: int,
    ngram: int,
    known: Iterable[str],
    rng: random.Random,
    origin: str = "reflective",
    max_question_chars: int | None = None,
) -> Reflections:
    """One question to the writer a parent. ``items`` is whose text must not be copied; ``known`` the ids not to propose
    again; ``max_question_chars`` the longest question: fewer records are shown where they would not fit.

    A child keeps its parent's exemplars and replaces its system prompt.
    """
    items = tuple(items)
    own = item_ngrams(items, ngram)
    answers = [*(i.reference or "" for i in items), *(r.completion.text for r in evidence.rollouts)]
    bare = question("", [])
    seen = set(known)
    candidates: list[Candidate] = []
    problems: list[str] = []
    calls = 0
    for parent in parents:
        records = reflection_records(evidence, parent, examples, rng)
        if records is None:
            problems.append("every rollout was right, so there is nothing to reflect on")
            continue
        asked = _fitting(parent.system or "", records, max_question_chars)
        if asked is None:
            problems.append(f"the reflection prompt does not fit into {max_question_chars} characters")
            continue
        calls += 1
        room = max_chars - (parent.chars - len(parent.system or ""))
        text, problem = _answer(writer, asked, parent, room)
        if not problem and (span := copied_span(text, own, ngram, allowed=parent.system or "")):
            problem = f"the instruction copies an item: '{span}'"
        if not problem:
            problem = echo_problem(text, asked=bare, answers=answers)
        child = Candidate(system=text, exemplars=parent.exemplars, parent=parent.id, origin=origin)
        if not problem and child.id in seen:
            problem = "the instruction is known already"
        if problem:
            problems.append(problem)
        else:
            seen.add(child.id)
            candidates.append(child)
    return Reflections(tuple(candidates), calls, tuple(problems))


def question(instruction: str, records: list[dict[str, str]]) -> str:
    """GEPA's reflection prompt."""
    text: str = _signature().prompt_renderer({"current_instruction_doc": instruction, "dataset_with_feedback": records})
    return text


def _fitting(instruction: str, records: list[dict[str, str]], most: int | None) -> str | None:
    """The question with as many records as fit; None where not even one does."""
    for shown in range(len(records), 0, -1):
        text = question(instruction, records[:shown])
        if most is None or len(text) <= most:
            return text
    return None


def _answer(writer: Writer, asked: str, parent: Candidate, max_chars: int) -> tuple[str, str | None]:
    """One call: the instruction, and why it is refused."""
    reply, problem = writer(asked)
    if problem:
        return "", problem
    reply = strip_thinking(reply)
    if problem := reply_problem(reply):
        return "", problem
    text: str = _signature().output_extractor(reply)["new_instruction"].strip()
    return text, instruction_problem(text, parent=parent.system, max_chars=max_chars)


def reflector_writer(reflector: Reflector) -> Writer:
    """A reflector as a writer: whatever goes wrong in it is a reason."""

    def write(asked: str) -> tuple[str, str | None]:
        try:
            reply: Any = reflector(asked)
        except Exception as error:  # any callable may stand here; its failure is a reason in the ledger, not our end
            return "", f"the reflector raised {type(error).__name__}: {str(error)[:200]}"
        if not isinstance(reply, str):
            return "", f"the reflector returned {type(reply).__name__}; expected str"
        return reply, None

    return write


def policy_writer(bench: Workbench, *, max_new_tokens: int, seed: int, spare: Callable[[], bool]) -> Writer:
    """The policy itself as a writer, at most ``max_new_tokens`` a reply; ``spare`` says whether the budget leaves one
    rollout for it. The bench counts the cost; a reply that was cut off or failed is no reply."""
    numbers = count()

    def write(asked: str) -> tuple[str, str | None]:
        if not spare():
            return "", "the budget leaves no rollout for a reflection beside the search"
        try:
            reply = bench.write(
                asked, max_new_tokens=max_new_tokens, seed=child_seed("prompts.self", seed, next(numbers))
            )
        except BudgetError as error:
            return "", f"the budget leaves nothing for a reflection: {error}"
        if reply.finish == "length":
            return "", f"the reply was cut off after {len(reply.tokens)} tokens: raise self_tokens"
        if reply.finish == "error":
            return "", f"the policy gave no reply: {reply.error}"
        # It ended by itself, so a block that it left open was not cut off.
        return reply.text + "\n```" * (reply.text.count("```") % 2), None

    return write
