"""Candidates out of reflection: a language model reads failed rollouts and rewrites the system prompt.

The prompt that the reflector sees and the way its reply is read are GEPA's (arXiv:2507.19457), by the ``gepa`` package:
``InstructionProposalSignature``. Its engine is not used: it keeps scores across calls and accepts on the minibatch it
learned from, and a search here re-scores everything under the weights as they are. What comes back passes the guards
first, and a reflector that fails costs its own proposal only.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from twoclock.contracts import Reflector
from twoclock.errors import MissingExtraError
from twoclock.fast.prompts.guards import copied_span, instruction_problem, item_ngrams, reply_problem, strip_thinking
from twoclock.fast.prompts.state import Candidate
from twoclock.types import Evidence, Item, Rollout

__all__ = ["Reflections", "reflect", "reflection_records", "require_gepa"]


@dataclass(frozen=True)
class Reflections:
    """What a search got from its reflector: candidates, calls made, and why each failed call failed."""

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
        raise MissingExtraError.of("gepa", "gepa", "the reflective proposer") from error
    return InstructionProposalSignature


def reflection_records(
    evidence: Evidence, parent: Candidate, count: int, rng: random.Random
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
    chosen = (rng.sample(wrong, len(wrong)) + rng.sample(right, len(right)))[:count]
    return [
        {
            "Inputs": item.prompt,
            "Generated Outputs": rollout.completion.text,
            "Feedback": rollout.grade.feedback or rollout.grade.failure or f"The reward was {rollout.reward:.3g} of 1.",
        }
        for item, rollout in chosen
    ]


def reflect(
    reflector: Reflector,
    *,
    evidence: Evidence,
    parents: Sequence[Candidate],
    items: Iterable[Item],
    examples: int,
    max_chars: int,
    ngram: int,
    known: Iterable[str],
    rng: random.Random,
) -> Reflections:
    """One reflector call a parent. ``items`` is whose text must not be copied; ``known`` the ids not to propose again.

    A child keeps its parent's exemplars and replaces its system prompt.
    """
    own = item_ngrams(items, ngram)
    seen = set(known)
    candidates: list[Candidate] = []
    problems: list[str] = []
    calls = 0
    for parent in parents:
        records = reflection_records(evidence, parent, examples, rng)
        if records is None:
            problems.append("every rollout was right, so there is nothing to reflect on")
            continue
        calls += 1
        room = max_chars - (parent.chars - len(parent.system or ""))
        text, problem = _ask(reflector, parent, records, room)
        if not problem and (span := copied_span(text, own, ngram, allowed=parent.system or "")):
            problem = f"the instruction copies an item: '{span}'"
        child = Candidate(system=text, exemplars=parent.exemplars, parent=parent.id, origin="reflective")
        if not problem and child.id in seen:
            problem = "the instruction is known already"
        if problem:
            problems.append(problem)
        else:
            seen.add(child.id)
            candidates.append(child)
    return Reflections(tuple(candidates), calls, tuple(problems))


def _ask(
    reflector: Reflector, parent: Candidate, records: list[dict[str, str]], max_chars: int
) -> tuple[str, str | None]:
    """One call: the instruction, and why it is refused."""
    signature = _signature()
    prompt = signature.prompt_renderer(
        {"current_instruction_doc": parent.system or "", "dataset_with_feedback": records}
    )
    try:
        reply: Any = reflector(prompt)
    except Exception as error:  # any callable may stand here; its failure is a reason in the ledger, not our end
        return "", f"the reflector raised {type(error).__name__}: {str(error)[:200]}"
    if not isinstance(reply, str):
        return "", f"the reflector returned {type(reply).__name__}; expected str"
    reply = strip_thinking(reply)
    if problem := reply_problem(reply):
        return "", problem
    text: str = signature.output_extractor(reply)["new_instruction"].strip()
    return text, instruction_problem(text, parent=parent.system, max_chars=max_chars)
