"""Writing a lesson after a failed attempt: who writes, what they are asked, and which texts are no lessons.

Source: Reflexion (arXiv:2303.11366), section 3, and the released code: reflections are written for failed items alone,
the prompt holds two worked examples (without them weak models answer the task instead of reflecting), earlier plans are
shown, and a reply of fewer than five characters is sampled again. The examples here are our own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from twoclock.agent.evaluators import count_tokens
from twoclock.contracts import Policy
from twoclock.errors import ModelError
from twoclock.memory.entries import repeated
from twoclock.memory.records import Entry
from twoclock.seeding import child_seed
from twoclock.tasks.env_transcript import parse_transcript
from twoclock.tasks.text import clip, normalised
from twoclock.types import Conditioning, Item, Request, Sampling

__all__ = [
    "Failure",
    "OracleWriter",
    "PolicyWriter",
    "PromptedWriter",
    "ScriptedWriter",
    "TemplatedWriter",
    "Writer",
    "Written",
    "reflection_problem",
    "reflection_prompt",
]

MIN_CHARS, MAX_CHARS = 5, 4000
"""Of a lesson. Shorter is no lesson; longer is no lesson either, and would crowd out the window."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed attempt, as a reflector is told of it."""

    item: Item
    trial: int
    text: str
    """The answer or the transcript."""
    feedback: str
    """What the evaluator said; never more than it."""
    earlier: tuple[str, ...] = ()
    """The lessons that are kept about this item, oldest first."""
    reward: float | None = None
    """Where the signal is graded; None where only pass and fail are told."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a writer gave, and what it cost."""

    text: str
    tokens: int = 0
    calls: int = 0
    error: str | None = None
    """Why there is no text; the others are not concerned."""


class Writer(Protocol):
    """Writes one lesson a failure."""

    @property
    def name(self) -> str: ...

    @property
    def gives_answers(self) -> bool:
        """Whether its lessons are answers on purpose, as an oracle's are, and are not refused for it."""
        ...

    def write(self, failures: Sequence[Failure], again: int) -> list[Written]:
        """In order. ``again`` counts the times that these were refused: a writer that samples takes another seed."""
        ...


# ------------------------------------------------------------------------------------------------------- the question

EXAMPLES = (
    """Attempt:
> open drawer
  The drawer is empty.
> open drawer
  The drawer is empty.
> look
  You see a shelf.
Outcome: failed, out of steps.
Lesson: I opened the same empty drawer twice and only then looked around, so I ran out of steps before I reached the \
shelf. Next time I look around first, go to the shelf, and open nothing twice.""",
    """Attempt:
def middle(values):
    return values[len(values) // 2]
Outcome: failed, middle([3, 1, 2]) gave 1; expected 2.
Lesson: I took the element in the middle of the list as it was given, but the list need not be in order. Next time I \
sort a copy first, and I think about lists of even length.""",
)

ASKED = (
    "You attempted a task and failed. Write down in two to four sentences, in the first person, what went wrong and "
    "what you will do differently next time. Write a plan, not an answer: do not solve the task here. Two examples:"
)


def reflection_prompt(failure: Failure, max_chars: int = 6000) -> str:
    """The question to a model. What the attempt and the evaluator say is delimited: it is data."""
    attempt = failure.text if len(failure.text) <= max_chars else f"{failure.text[:max_chars]} […]"
    outcome = f"failed. {failure.feedback}" if failure.reward is None else f"{failure.reward:.2f}. {failure.feedback}"
    parts = [ASKED, *EXAMPLES, "Now the task that you failed.", f"<task>\n{failure.item.prompt}\n</task>"]
    if failure.earlier:
        plans = "\n".join(f"- {' '.join(plan.split())}" for plan in failure.earlier)
        parts.append(f"Lessons that you wrote before (write something that they do not say):\n{plans}")
    parts += [f"<attempt>\n{attempt}\n</attempt>", f"Outcome: {outcome.strip()}", "Lesson:"]
    return "\n\n".join(parts)


# -------------------------------------------------------------------------------------------------------- who writes


class PromptedWriter:
    """Any callable from text to text: an endpoint's reflector, a function, a model elsewhere. One that counts its own
    ``prompt_tokens`` and ``completion_tokens`` is believed; otherwise ``count`` is applied to what was read and
    written. ModelError is passed on; anything else that it raises costs that one lesson."""

    gives_answers = False

    def __init__(
        self, ask: Callable[[str], str], *, name: str = "reflector", count: Callable[[str], int] = count_tokens
    ) -> None:
        self.name = name
        self._ask, self._count = ask, count

    def write(self, failures: Sequence[Failure], again: int) -> list[Written]:
        return [self._one(failure) for failure in failures]

    def _one(self, failure: Failure) -> Written:
        prompt = reflection_prompt(failure)
        before = self._told()
        reply: Any
        try:
            reply = self._ask(prompt)
        except ModelError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {clip(str(error), 200)}"
            return Written(text="", tokens=self._count(prompt), calls=1, error=said)
        if not isinstance(reply, str):
            return Written(text="", calls=1, error=f"the reflector returned {clip(repr(reply))}; expected text")
        after = self._told()
        counted = after - before if after is not None and before is not None else 0
        return Written(text=reply, tokens=counted or self._count(prompt) + self._count(reply), calls=1)

    def _told(self) -> int | None:
        read, wrote = (getattr(self._ask, name, None) for name in ("prompt_tokens", "completion_tokens"))
        return read + wrote if isinstance(read, int) and isinstance(wrote, int) else None


class PolicyWriter:
    """A policy that reflects, under no conditioning of its own; all failures in one call."""

    gives_answers = False

    def __init__(self, policy: Policy, sampling: Sampling | None = None) -> None:
        self.name = f"policy {policy.card.name}"
        self._policy = policy
        self._sampling = sampling or Sampling(max_new_tokens=160, temperature=0.7)

    def write(self, failures: Sequence[Failure], again: int) -> list[Written]:
        room = max(1000, (self._policy.card.context_tokens - self._sampling.max_new_tokens) * 2)
        requests = [
            Request(
                prompt=reflection_prompt(failure, max_chars=min(6000, room)),
                conditioning=Conditioning(),
                seeds=(child_seed("reflection", failure.seed, again),),
            )
            for failure in failures
        ]
        answers = self._policy.sample(requests, self._sampling) if requests else []
        return [
            Written(
                text=answer[0].text,
                tokens=answer[0].prompt_tokens + len(answer[0].tokens),
                calls=1,
                error=answer[0].error if answer[0].finish == "error" else None,
            )
            for answer in answers
        ]


class ScriptedWriter:
    """A function of the failure: for tests, and for arms whose lesson needs no model."""

    gives_answers = False

    def __init__(
        self, function: Callable[[Failure], str], *, name: str = "scripted", count: Callable[[str], int] = count_tokens
    ) -> None:
        self.name = name
        self._function, self._count = function, count

    def write(self, failures: Sequence[Failure], again: int) -> list[Written]:
        texts = [self._function(failure) for failure in failures]
        return [Written(text=text, tokens=self._count(text), calls=1) for text in texts]


class TemplatedWriter(ScriptedWriter):
    """The evaluator's own account in fixed words: what was done in which situation, and how it ended. No diagnosis: it
    separates what the signal alone is worth from what a model makes of it."""

    def __init__(self, *, count: Callable[[str], int] = count_tokens) -> None:
        super().__init__(_templated, name="templated", count=count)


def _templated(failure: Failure) -> str:
    transcript = parse_transcript(failure.text)
    if not transcript.turns:
        said = clip(failure.feedback, 300) or "no reason was given"
        return f"Attempt {failure.trial} failed: {said} I must not give the same answer again."
    did: dict[str, list[str]] = {}
    here = "the beginning"
    for turn in transcript.turns:
        did.setdefault(here, []).append(turn.line[2:] if turn.action is not None else "no action")
        here = _situation(turn.observation) or here
    lines = [f"Attempt {failure.trial} failed: {clip(transcript.ending or failure.feedback, 160)}."]
    for place, actions in did.items():
        often = [
            f"'{a}' {actions.count(a)} times" if actions.count(a) > 1 else f"'{a}'" for a in dict.fromkeys(actions)
        ]
        lines.append(f"At {place} I did {', '.join(often)}.")
    return "\n".join(lines)[:MAX_CHARS]


def _situation(observation: str | None) -> str:
    """What tells where one is: the first sentence of what was said."""
    if not observation or not observation.strip():
        return ""
    first = re.split(r"(?<=[.!?])\s", observation.strip().split("\n")[0], maxsplit=1)[0]
    return f'"{clip(first, 80)}"'


class OracleWriter(ScriptedWriter):
    """The solution as a lesson, from whoever knows it: the upper bound of what a reflection can be worth."""

    gives_answers = True

    def __init__(
        self, gold: Callable[[Item], Sequence[str] | None], *, count: Callable[[str], int] = count_tokens
    ) -> None:
        super().__init__(lambda failure: _oracle(gold(failure.item)), name="oracle", count=count)


def _oracle(steps: Sequence[str] | None) -> str:
    return "" if not steps else "What works, step by step:\n" + "\n".join(steps)


# -------------------------------------------------------------------------------------------- what is no lesson

Refusal = Literal["empty", "long", "unfinished", "answer", "copy", "frame"]

_FRAME = re.compile(r"\[(?:end of )?memory [0-9a-f]{8}\]")
_OPEN_THOUGHT = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_CODE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def reflection_problem(
    text: str, failure: Failure, shown: Sequence[str] = (), *, gives_answers: bool = False
) -> tuple[Refusal, str] | None:
    """Why a text is no lesson, as (kind, sentence), or None. Refused: nothing or nearly nothing, too much, a cut-off
    thought, an answer to the task instead of a lesson (unless it ``gives_answers`` on purpose), a copy of a lesson that
    is kept or was ``shown``, and text that carries the frame in which memory is shown."""
    bare = text.strip()
    if len(bare) < MIN_CHARS or not any(ch.isalpha() for ch in bare):
        return "empty", f"the reflection has {len(bare)} characters; it takes at least {MIN_CHARS} and a word"
    if len(bare) > MAX_CHARS:
        return "long", f"the reflection has {len(bare)} characters; {MAX_CHARS} are allowed"
    if _OPEN_THOUGHT.search(bare):
        return "unfinished", "the reflection ends inside its thinking"
    if _FRAME.search(bare):
        return "frame", "the reflection carries the frame in which memory is shown: it is a copy of its own prompt"
    if not gives_answers and (said := _answer_problem(bare, failure)):
        return "answer", said
    own = Entry(kind="reflection", key=failure.item.id, text=bare)
    others = [Entry(kind="reflection", key=failure.item.id, text=other) for other in (*failure.earlier, *shown)]
    if repeated(own, others):
        return "copy", "the reflection repeats a lesson that is known already"
    return None


def _answer_problem(bare: str, failure: Failure) -> str:
    """Why a text is an answer to the task rather than a lesson about it."""
    if normalised(bare) == normalised(failure.text):
        return "the reflection is the attempt again"
    reference = normalised(failure.item.reference or "")
    if reference and normalised(bare) == reference:
        return "the reflection is the right answer and nothing else"
    told = rf"\b(?:answer|result|solution)\b[^.\n]{{0,20}}?\b(?:is|be|=|:)\s*[\"'`]?{re.escape(reference)}(?!\w)"
    if reference and len(reference) <= 200 and re.search(told, normalised(bare)):
        return "the reflection gives the right answer away"
    lines = [line for line in bare.split("\n") if line.strip()]
    if all(line.startswith(("> ", "  ", "= ", "? ")) for line in lines) and lines[0].startswith(("> ", "? ")):
        return "the reflection is a transcript"
    if any(_is_function(block) for block in [*_CODE.findall(bare), bare]):
        return "the reflection is a program"
    return ""


def _is_function(text: str) -> bool:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
