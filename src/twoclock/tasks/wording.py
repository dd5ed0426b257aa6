"""What every source of items shares: an instruction around the question, and the names of scoring and extraction."""

from __future__ import annotations

from twoclock.errors import unknown_name
from twoclock.tasks.text import EXTRACTORS

__all__ = ["INSTRUCTION_PLACES", "SCORINGS", "check_wording", "instruct"]

SCORINGS = ("strict", "graded")
INSTRUCTION_PLACES = ("start", "end")


def instruct(question: str, instruction: str, place: str) -> str:
    """The prompt: the instruction on a line of its own before or after the question; the bare question without one."""
    if not instruction:
        return question
    return f"{instruction}\n{question}" if place == "start" else f"{question}\n{instruction}"


def check_wording(*, instruction_at: str, scoring: str, extract: str) -> list[str]:
    """What is wrong with these names; empty when nothing is."""
    problems = []
    if instruction_at not in INSTRUCTION_PLACES:
        problems.append(unknown_name("instruction_at", instruction_at, INSTRUCTION_PLACES))
    if scoring not in SCORINGS:
        problems.append(unknown_name("scoring", scoring, SCORINGS))
    if extract not in EXTRACTORS:
        problems.append(unknown_name("extract", extract, EXTRACTORS))
    return problems
