"""Candidates out of templates: short system prompts that a small model can follow. Needs no strong model.

Lines are made from what may be known (the task's description, the shape of right answers, what feedback says again and
again) and put together into one prompt; or the deployed system prompt is changed a little: shortened to its first
sentence, a line appended or dropped, ``Answer with ... and nothing else.`` added.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from twoclock.fast.prompts.frames import Shape
from twoclock.fast.prompts.guards import copied_span, instruction_problem, shared_limit
from twoclock.fast.prompts.state import Candidate
from twoclock.types import Evidence

__all__ = ["EXAMPLES", "Edits", "Known", "change", "compose", "hints_of", "lines_of", "new_edits", "shown_answers"]

EXAMPLES = "Example answers: "
"""How a line with example answers begins: by it such answers are found again."""
EXAMPLE_CHARS = 40
"""A longer answer is no example of a form; exemplars show those."""
DESCRIPTION_CHARS = 300
HINT_CHARS = 80
NUM_HINTS = 2
MAX_LINES = 5
"""Prompts that grow line by line stop growing there."""
_KINDS = ("description", "form", "examples", "hint")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_OWN = re.compile(r"[\d\"'`“”‘’\[\]{}<>]")
_VERDICT = re.compile(r"\b(right|wrong|correct|incorrect|true|false|failed|scored?|rewards?)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[.;:!?\n]+(?:\s|$)|\s+\|\s+")


@dataclass(frozen=True, kw_only=True)
class Known:
    """What edits are made from."""

    description: str = ""
    shape: Shape | None = None
    examples: tuple[str, ...] = ()
    """Right answers that may be shown."""
    hints: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    """Prompts of the user's, tried as they are."""


@dataclass(frozen=True)
class Edits:
    """Candidates, and why others were refused."""

    candidates: tuple[Candidate, ...] = ()
    problems: tuple[str, ...] = ()


def hints_of(evidence: Evidence) -> tuple[str, ...]:
    """What feedback asks for on several items: clauses without quotes, digits, an item's answer or a verdict (that the
    value is wrong tells nobody what to do), most frequent first."""
    counts: Counter[str] = Counter()
    answers = {(g.item.reference or "").strip().lower() for g in evidence.groups} - {""}
    for group in evidence.groups:
        said = {
            " ".join(clause.split())
            for r in group.rollouts
            if r.reward < 1.0
            for clause in _CLAUSE.split(r.grade.feedback)
        }
        counts.update(clause for clause in said if _is_general(clause, answers))
    least = shared_limit(len(evidence.groups)) + 1
    often = sorted((c for c in counts if counts[c] >= least), key=lambda c: (-counts[c], c))
    return tuple(often[:NUM_HINTS])


def _is_general(clause: str, answers: set[str]) -> bool:
    if len(clause.split()) < 2 or len(clause) > HINT_CHARS or _OWN.search(clause) or _VERDICT.search(clause):
        return False
    return not any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", clause.lower()) for answer in answers)


def shown_answers(system: str | None) -> str:
    """The lines of a prompt that show example answers; empty where there is none."""
    return "\n".join(line for line in (system or "").splitlines() if EXAMPLES.strip() in line)


def lines_of(known: Known, rng: random.Random) -> dict[str, list[str]]:
    """The lines that can be written now, by kind; the examples are drawn."""
    description = " ".join(known.description.split())
    first = first_sentence(description)
    lines: dict[str, list[str]] = {
        "description": list(dict.fromkeys(t for t in (first, description) if t and len(t) <= DESCRIPTION_CHARS)),
        "form": form_lines(known.shape) if known.shape else [],
        "examples": [],
        "hint": [f"Remember: {_ended(hint)}" for hint in known.hints],
    }
    short = [a for a in known.examples if len(a) <= EXAMPLE_CHARS and "\n" not in a]
    if len(short) >= 2:
        sizes = [size for size in (2, 3) if size <= len(short)]
        drawn = [rng.sample(short, rng.choice(sizes)) for _ in range(2)]
        lines["examples"] = [_ended(EXAMPLES + _joined(answers)) for answers in drawn]
    return {kind: texts for kind, texts in lines.items() if texts}


def form_lines(shape: Shape) -> list[str]:
    """Ways to say what an answer looks like, the plainest first."""
    closing = closing_line(shape)
    if shape.labels:
        return [_ended(f"Answer with one of: {_joined(shape.labels)}"), closing]
    if not shape.form:
        return [f"Reply with {shape.noun}.", closing]
    if "\n" in shape.form:
        return [f"Answer in this form:\n{shape.form}", closing]
    lines = [_ended(f"Answer in the form {shape.form}"), closing]
    if shape.noun != "the answer":
        lines.append(_ended(f"Reply with {shape.noun} in the form {shape.form}"))
    before, after = shape.prefix.strip(), shape.suffix.strip()
    if before and after:
        lines.append(_ended(f"Write {before} then the answer then {after}"))
    elif before:
        lines.append(f"Write only {before} and then the answer")
    else:
        lines.append(_ended(f"Write only the answer and then {after}"))
    return lines


def closing_line(shape: Shape) -> str:
    """What ends a prompt: nothing but the answer."""
    what = shape.noun if not shape.form or "\n" in shape.form else shape.form
    return f"Answer with {what} and nothing else."


def first_sentence(text: str) -> str:
    return _SENTENCE.split(text.strip(), maxsplit=1)[0].strip()


def _ended(text: str) -> str:
    return text if not text or text[-1] in ".;:!?,…" else text + "."


def _joined(answers: Sequence[str]) -> str:
    if any("," in a for a in answers):
        return " | ".join(answers)
    return (" " if any(a[-1] in ".;:!?" for a in answers) else ", ").join(answers)


def compose(lines: Mapping[str, Sequence[str]], size: int, rng: random.Random) -> str | None:
    """A prompt of up to ``size`` lines, one of a kind, in a fixed order; one of them is about the answer's form where
    that is known."""
    if not lines:
        return None
    about_form = [kind for kind in ("form", "examples") if kind in lines]
    chosen = [rng.choice(about_form)] if about_form else []
    rest = [kind for kind in lines if kind not in chosen]
    chosen += rng.sample(rest, min(len(rest), size - len(chosen)))
    return "\n".join(rng.choice(list(lines[kind])) for kind in _KINDS if kind in chosen)


def change(system: str, lines: Mapping[str, Sequence[str]], closing: str | None, rng: random.Random) -> str | None:
    """The deployed system prompt, changed by one operator; None where no operator changes it."""
    here = system.splitlines()
    fresh = [line for texts in lines.values() for line in texts if line not in system]
    moves: dict[str, Callable[[], str]] = {}
    if first_sentence(system) != system.strip():
        moves["shorten"] = lambda: first_sentence(system)
    if fresh and len(here) < MAX_LINES:
        moves["append"] = lambda: f"{system}\n{rng.choice(fresh)}"
    if len(here) > 1:
        gone = rng.randrange(len(here))
        moves["drop"] = lambda: "\n".join(line for at, line in enumerate(here) if at != gone)
    if closing and closing not in system:
        moves["close"] = lambda: f"{system} {closing}"
    return moves[rng.choice(list(moves))]() if moves else None


def new_edits(
    known: Known,
    *,
    deployed: Candidate,
    count: int,
    max_chars: int,
    own: frozenset[tuple[str, ...]],
    ngram: int,
    seen: Iterable[str],
    rng: random.Random,
) -> Edits:
    """Up to ``count`` distinct candidates whose ids are not in ``seen``; ``own`` are the n-grams of single items, which
    no edit may have but in its example answers.

    Bare instructions first. Then templates of one line, two, three; every other one is the deployed system prompt
    changed, where there is one. Where the deployed prompt has exemplars, every other template stands above them, and a
    changed system prompt always does.
    """
    ids = set(seen)
    result: list[Candidate] = []
    problems: list[str] = []
    lines = lines_of(known, rng)
    closing = closing_line(known.shape) if known.shape else None
    allowed = "\n".join(
        [deployed.system or "", *lines.get("examples", []), *(known.shape.labels if known.shape else ())]
    )

    def offer(text: str | None, exemplars: tuple[tuple[str, str], ...], origin: str) -> None:
        if text is None or len(result) >= count:
            return
        child = Candidate(system=text.strip(), exemplars=exemplars, parent=deployed.id, origin=origin)
        if child.id in ids:
            return
        ids.add(child.id)
        room = max_chars - (child.chars - len(child.system or ""))
        problem = instruction_problem(child.system or "", parent=None, max_chars=room)
        if not problem and origin == "edit" and (span := copied_span(text, own, ngram, allowed=allowed)):
            problem = f"the instruction copies an item: '{span}'"
        if problem:
            problems.append(problem)
        else:
            result.append(child)

    for text in known.instructions:
        offer(text, (), "instruction")
    for attempt in range(6 * count):  # a draw may repeat or be refused: more attempts than wanted
        if deployed.system and attempt % 2:
            offer(change(deployed.system, lines, closing, rng), deployed.exemplars, "edit")
        else:
            turn = attempt // 2 if deployed.system else attempt
            offer(compose(lines, 1 + turn % 3, rng), deployed.exemplars if turn % 2 else (), "edit")
    return Edits(tuple(result), tuple(problems))
