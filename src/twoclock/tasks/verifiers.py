"""Any Python callable as a verifier, held to its contract.

The signature is TRL's, ``f(prompts, completions, **columns) -> list[float | None]``, all by keyword; an element may
also be ``(score, feedback)``, and the function may be async. ``columns`` are the items' metadata and ``answer``, each a
list with one entry a completion; only those that the function names are passed, all when it takes ``**kwargs``.

What a *text* may cause (the function raises, hangs, gives None, NaN or infinity) is a failed grade with its reason and
leaves the other texts alone. What only the *function* can cause (a wrong length, no number, a score outside [0, 1],
hanging again and again) raises VerifierError.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError, VerifierError, nearest, unknown_name
from twoclock.tasks.builtin import BUILTIN
from twoclock.tasks.loading import load_function
from twoclock.tasks.runners import Element, InlineRunner, Outcome, ProcessRunner, Runner, ThreadRunner
from twoclock.types import Grade, Item

__all__ = ["Verifier"]

_OWN = ("prompts", "completions")


class Verifier:
    """A scoring function with a timeout. Made from a callable (runs in a thread) or, by :meth:`load`, from a name
    (runs in a child process, which can be killed when it hangs)."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str = "",
        timeout_s: float = 30.0,
        max_hangs: int = 3,
        runner: Runner | None = None,
    ) -> None:
        self.name = name or getattr(function, "__qualname__", type(function).__name__)
        problems = _check_limits(timeout_s, max_hangs)
        self._accepted, self._required, problem = _signature(function, self.name)
        if problem:
            problems.append(problem)
        if problems:
            raise ConfigError(problems)
        self._runner = runner or ThreadRunner(function)
        self._timeout_s = timeout_s
        self._max_hangs = max_hangs
        self._hangs = 0

    @classmethod
    def load(cls, spec: str, *, base_dir: Path = Path(), timeout_s: float = 30.0, max_hangs: int = 3) -> Verifier:
        """A built-in by name ('exact', 'contains', 'number', 'regex'), or ``package.module:function``, or
        ``path/to/file.py:function`` with paths from ``base_dir``. Raises ConfigError, naming what comes nearest."""
        runner: Runner
        if ":" not in spec:
            if spec not in BUILTIN:
                raise ConfigError(
                    unknown_name("verifier", spec, BUILTIN)
                    + "; one of your own is named as 'package.module:function' or 'path/to/file.py:function'"
                )
            function: Callable[..., Any] = BUILTIN[spec]
            # A pattern can backtrack for ever inside one C call, where only another process can be stopped.
            runner = ProcessRunner("twoclock.tasks.builtin:regex", ".") if spec == "regex" else InlineRunner(function)
        else:
            function = load_function(spec, base_dir)
            runner = ProcessRunner(spec, str(base_dir.resolve()))
        return cls(function, name=spec, timeout_s=timeout_s, max_hangs=max_hangs, runner=runner)

    def check_columns(self, known: Iterable[str]) -> list[str]:
        """What is wrong with running this verifier on items that have these columns; empty when nothing is."""
        names = sorted({*known, *_OWN})
        problems = []
        for wanted in self._required:
            if wanted not in names:
                close = nearest(wanted, names)
                hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are: {', '.join(names)}"
                problems.append(f"verifier '{self.name}' needs a column '{wanted}' that the items lack; {hint}")
        return problems

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        """One grade a pair, in order; one call for all of them, or one call each where that call raised or hung."""
        if len(items) != len(texts):
            raise ValueError(f"{len(items)} items, but {len(texts)} texts to grade; give one text an item")
        if not items:
            return []
        outcome = self._call(items, texts)
        if outcome.kind == "ok":
            self._hangs = 0
            return [self._grade(i, element) for i, element in enumerate(outcome.elements)]
        if len(items) > 1:
            return [self.grade([item], [text])[0] for item, text in zip(items, texts, strict=True)]
        return [self._failed(outcome)]

    def close(self) -> None:
        """Ends the child process, where there is one; a later :meth:`grade` starts it again."""
        self._runner.close()

    def _call(self, items: Sequence[Item], texts: Sequence[str]) -> Outcome:
        outcome = self._runner.call(self._arguments(items, texts), self._timeout_s)
        if outcome.kind == "contract":
            raise VerifierError(f"verifier '{self.name}' {outcome.reason}")
        if outcome.kind == "ok" and len(outcome.elements) != len(texts):
            raise VerifierError(
                f"verifier '{self.name}' returned {len(outcome.elements)} scores for {len(texts)} completions; "
                "it must return one score a completion, in order"
            )
        return outcome

    def _arguments(self, items: Sequence[Item], texts: Sequence[str]) -> dict[str, Any]:
        names = {name for item in items for name in item.metadata}
        columns: dict[str, list[Any]] = {name: [item.metadata.get(name) for item in items] for name in sorted(names)}
        columns["answer"] = [item.reference for item in items]
        columns["prompts"] = [item.prompt for item in items]
        columns["completions"] = list(texts)
        missing = [name for name in self._required if name not in columns]
        if missing:
            raise VerifierError("; ".join(self.check_columns(columns)))
        if self._accepted is None:
            return columns
        return {name: column for name, column in columns.items() if name in self._accepted}

    def _failed(self, outcome: Outcome) -> Grade:
        if outcome.kind != "hung":
            self._hangs = 0
            verb = "raised " if outcome.kind == "raised" else "failed: "
            return Grade(reward=0.0, failure=f"verifier {verb}{outcome.reason}")
        self._hangs += 1
        if self._hangs >= self._max_hangs:
            raise VerifierError(
                f"verifier '{self.name}' gave no answer within {self._timeout_s:g} s, {self._hangs} times in a row; "
                "mend it, or allow it more time with verifier_timeout_s"
            )
        return Grade(reward=0.0, failure=f"verifier gave no answer within {self._timeout_s:g} s")

    def _grade(self, index: int, element: Element) -> Grade:
        if element.problem:
            raise VerifierError(f"verifier '{self.name}' returned for completion {index}: {element.problem}")
        score = element.score
        if score is None:
            return Grade(reward=0.0, feedback=element.feedback, failure="verifier returned None")
        if not math.isfinite(score):
            return Grade(reward=0.0, feedback=element.feedback, failure=f"verifier returned {score}")
        if not -1e-9 <= score <= 1.0 + 1e-9:
            raise VerifierError(
                f"verifier '{self.name}' returned {score:g} for completion {index}; scores lie between 0 and 1: "
                "rescale it"
            )
        return Grade(reward=min(1.0, max(0.0, score)), feedback=element.feedback)


def _check_limits(timeout_s: float, max_hangs: int) -> list[str]:
    problems = []
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < 1e6:
        problems.append(f"verifier_timeout_s must be a number of seconds above 0; got {timeout_s!r}")
    if max_hangs < 1:
        problems.append(f"max_hangs must be at least 1; got {max_hangs!r}")
    return problems


def _signature(function: Callable[..., Any], name: str) -> tuple[frozenset[str] | None, tuple[str, ...], str]:
    """(names it accepts, or None for any; names it needs; what is wrong with it, if anything)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C without a signature: let it have everything
        return None, (), ""
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if positional or not (takes_any or any(p.name == "completions" for p in by_name)):
        taken = ", ".join(str(p) for p in parameters)
        return (
            None,
            (),
            (
                f"verifier '{name}' takes ({taken}), but is called as f(prompts=…, completions=…, **columns): "
                "name its parameters so, and add **kwargs for the columns it does not use"
            ),
        )
    required = tuple(p.name for p in by_name if p.default is p.empty)
    return (None if takes_any else frozenset(p.name for p in by_name)), required, ""
