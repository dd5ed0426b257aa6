"""Trials: the same items again and again, each time with what was learned from failing (Reflexion), and its controls.

Source: Reflexion (arXiv:2303.11366), algorithm 1: trial → evaluate → reflect where it failed → append to a window of
the last Ω lessons, verbatim → next trial under that window, until the evaluator passes it or the trials are over. The
four strategies are those of the released code. A false pass of the evaluator ends an item's trials, as it does there.

All arms use the same seed for a trial of an item, so that two arms differ by what they show the policy and by nothing
else: the first trial of every arm is the same, and a window of 0 is exactly no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from twoclock.agent.episodes import Attempt, run_attempts
from twoclock.agent.evaluators import EnvironmentEvaluator, Evaluator, Judgement
from twoclock.agent.reflectors import Failure, Writer, Written, reflection_problem
from twoclock.agent.trial_table import TrialTable
from twoclock.agent.windows import Lesson, notes_of, shown_lessons
from twoclock.contracts import Policy, Task
from twoclock.errors import ConfigError
from twoclock.seeding import child_seed
from twoclock.types import Conditioning, Item, Sampling

__all__ = ["Strategy", "TrialRun", "TrialSettings", "run_trials"]


class Strategy(StrEnum):
    """What an attempt is shown of those before it."""

    NONE = "none"
    LAST_ATTEMPT = "last_attempt"
    REFLEXION = "reflexion"
    LAST_ATTEMPT_AND_REFLEXION = "last_attempt_and_reflexion"

    @property
    def reflects(self) -> bool:
        return self in (Strategy.REFLEXION, Strategy.LAST_ATTEMPT_AND_REFLEXION)

    @property
    def replays(self) -> bool:
        return self in (Strategy.LAST_ATTEMPT, Strategy.LAST_ATTEMPT_AND_REFLEXION)


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """How trials are run. Raises ConfigError with every mistake."""

    strategy: Strategy = Strategy.REFLEXION
    trials: int = 4
    window: int = 3
    """Ω: how many lessons are shown, the newest ones; 0 shows none and writes none."""
    memory: Literal["own", "shuffled", "random"] = "own"
    """Whose lessons are shown: the item's own; those of another item, matched in length (a placebo: what it gains is
    length or format); or lessons drawn from those of all other items."""
    compress: Callable[[Sequence[str]], str] | None = None
    """Makes one text of the window; None shows the lessons verbatim, as in the paper."""
    success_at: float = 1.0
    """The reward from which on an attempt is truly solved."""
    signal: Literal["binary", "graded"] = "binary"
    """Whether a reflector is told the reward or only that it failed."""
    rerun_solved: bool = False
    """Whether what has passed is run again: needed to see forgetting; the paper's loop leaves it alone."""
    patience: int | None = None
    """An item is given up after so many failures in a row; None never."""
    writes: int = 2
    """How often a lesson is asked for, where the first text is none."""
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        problems = []
        for name, least in (("trials", 1), ("window", 0), ("writes", 1), ("patience", 1)):
            value = getattr(self, name)
            if name == "patience" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                problems.append(f"{name} must be a whole number of at least {least}; got {value!r}")
        if self.memory not in ("own", "shuffled", "random"):
            problems.append(f"memory must be 'own', 'shuffled' or 'random'; got {self.memory!r}")
        if self.signal not in ("binary", "graded"):
            problems.append(f"signal must be 'binary' or 'graded'; got {self.signal!r}")
        if not 0.0 < self.success_at <= 1.0:
            problems.append(f"success_at must lie in (0, 1]; got {self.success_at!r}")
        if self.memory != "own" and not self.strategy.reflects:
            problems.append(
                f"memory = '{self.memory}' is about lessons, which strategy '{self.strategy}' does not write"
            )
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """Everything that happened: every attempt, every verdict, every lesson, kept or refused."""

    table: TrialTable
    attempts: tuple[Attempt, ...]
    judgements: tuple[Judgement, ...]
    """One an attempt, in the same order."""
    lessons: Mapping[str, tuple[Lesson, ...]]
    """Those kept, by item id, oldest first."""
    refused: tuple[tuple[str, int, str, str], ...]
    """(item id, trial, reason, text) of each text that was no lesson."""


def run_trials(
    policy: Policy,
    task: Task,
    items: Sequence[Item],
    settings: TrialSettings,
    *,
    writer: Writer | None = None,
    evaluator: Evaluator | None = None,
    arm: str = "",
    base: Conditioning | None = None,
) -> TrialRun:
    """Run every item through its trials. ``base`` is what every attempt is under besides; ``arm`` names the run.

    Raises ConfigError where a strategy that reflects has no writer, or another item's lessons are to be shown and there
    is one item.
    """
    problems = []
    if settings.strategy.reflects and writer is None:
        problems.append(f"strategy '{settings.strategy}' needs a writer of lessons, such as PolicyWriter(policy)")
    if settings.memory != "own" and len(items) < 2:
        problems.append(f"memory = '{settings.memory}' shows other items' lessons; got {len(items)} item")
    if not items:
        problems.append("items is empty; give at least one item to try")
    if problems:
        raise ConfigError(problems)
    loop = _Loop(policy, task, items, settings, writer, evaluator or EnvironmentEvaluator(settings.success_at), base)
    for trial in range(1, settings.trials + 1):
        loop.trial(trial)
    return loop.result(arm or str(settings.strategy))


class _Loop:
    """The state of one run."""

    def __init__(
        self,
        policy: Policy,
        task: Task,
        items: Sequence[Item],
        settings: TrialSettings,
        writer: Writer | None,
        evaluator: Evaluator,
        base: Conditioning | None,
    ) -> None:
        self.policy, self.task, self.items, self.settings = policy, task, tuple(items), settings
        self.writer, self.evaluator, self.base = writer, evaluator, base or Conditioning()
        self.lessons: dict[str, list[Lesson]] = {item.id: [] for item in items}
        self.last: dict[str, tuple[Attempt, Judgement]] = {}
        self.failures_in_a_row: Counter[str] = Counter()
        self.accepted: set[str] = set()
        self.attempts: list[Attempt] = []
        self.judgements: list[Judgement] = []
        self.refused: list[tuple[str, int, str, str]] = []
        self.other_tokens = [0] * settings.trials
        self.calls = [0] * settings.trials
        self.unmatched = 0

    def trial(self, number: int) -> None:
        live = [item for item in self.items if self._is_live(item)]
        if not live:
            return
        told = {item.id: self._conditioning(item, number) for item in live}
        attempts = run_attempts(
            self.policy,
            self.task,
            live,
            self.settings.sampling,
            seed=self.settings.seed,
            trial=number,
            conditionings=told,
        )
        judged = self.evaluator.judge(live, attempts)
        self.attempts += attempts
        self.judgements += judged
        self.other_tokens[number - 1] += sum(j.tokens for j in judged)
        self.calls[number - 1] += sum(j.calls for j in judged)
        failed = []
        for item, attempt, judgement in zip(live, attempts, judged, strict=True):
            self.last[item.id] = (attempt, judgement)
            if judgement.passed:
                self.accepted.add(item.id)
                self.failures_in_a_row[item.id] = 0
            else:
                self.failures_in_a_row[item.id] += 1
                failed.append(item)
        if number < self.settings.trials:
            self._reflect([item for item in failed if self._is_live(item)], number)

    def _is_live(self, item: Item) -> bool:
        if item.id in self.accepted and not self.settings.rerun_solved:
            return False
        return self.settings.patience is None or self.failures_in_a_row[item.id] < self.settings.patience

    def _conditioning(self, item: Item, number: int) -> Conditioning:
        settings = self.settings
        lessons: list[Lesson] = []
        if settings.strategy.reflects and settings.window:
            others = [other.id for other in self.items if other.id != item.id]
            seed = child_seed("shown-lessons", settings.seed, item.id, number)
            lessons = shown_lessons(self.lessons, item.id, others, settings.memory, settings.window, seed)
            self.unmatched += bool(self.lessons[item.id]) and not lessons
        last = self.last.get(item.id) if settings.strategy.replays else None
        account = None if last is None else (last[0].text, last[1].feedback)
        return self.base.join(notes_of(lessons, account, settings.compress))

    def _reflect(self, failed: Sequence[Item], number: int) -> None:
        """Ask for a lesson about each failure, again where the first text is none; keep what is one."""
        if not (self.settings.strategy.reflects and self.settings.window) or self.writer is None:
            return
        waiting = [self._failure(item, number) for item in failed]
        for again in range(self.settings.writes):
            if not waiting:
                return
            written = self.writer.write(waiting, again)
            if len(written) != len(waiting):
                raise ConfigError(
                    f"the writer '{self.writer.name}' was asked for {len(waiting)} lessons and gave {len(written)}; "
                    "expected one a failure, in order"
                )
            # Counted with the trial that the lesson is for: nothing of it was spent when this one was over.
            self.other_tokens[number] += sum(w.tokens for w in written)
            self.calls[number] += sum(w.calls for w in written)
            waiting = [f for f, w in zip(waiting, written, strict=True) if not self._keep(f, w, number)]

    def _failure(self, item: Item, number: int) -> Failure:
        attempt, judgement = self.last[item.id]
        return Failure(
            item=item,
            trial=number,
            text=attempt.text,
            feedback=judgement.feedback,
            earlier=tuple(lesson.text for lesson in self.lessons[item.id]),
            reward=attempt.reward if self.settings.signal == "graded" else None,
            seed=attempt.seed,
        )

    def _keep(self, failure: Failure, written: Written, number: int) -> bool:
        problem = None
        if written.error is not None:
            problem = ("error", written.error)
        else:
            assert self.writer is not None
            problem = reflection_problem(written.text, failure, gives_answers=self.writer.gives_answers)
        if problem is not None:
            self.refused.append((failure.item.id, number, problem[0], written.text or problem[1]))
            return False
        self.lessons[failure.item.id].append(Lesson(item_id=failure.item.id, trial=number, text=written.text.strip()))
        return True

    def result(self, arm: str) -> TrialRun:
        trials = range(1, self.settings.trials + 1)
        place = {(a.item_id, a.trial): i for i, a in enumerate(self.attempts)}
        truth = EnvironmentEvaluator(self.settings.success_at)

        def row(item: Item, solved: bool) -> str:
            letters = []
            for trial in trials:
                at = place.get((item.id, trial))
                if at is None:
                    letters.append("-")
                    continue
                judged = truth.judge([item], [self.attempts[at]])[0] if solved else self.judgements[at]
                letters.append("1" if judged.passed else "0")
            return "".join(letters)

        table = TrialTable(
            arm=arm,
            task=self.task.name,
            policy=self.policy.card.name,
            items=tuple(item.id for item in self.items),
            trials=self.settings.trials,
            solved=tuple(row(item, True) for item in self.items),
            passed=tuple(row(item, False) for item in self.items),
            tokens=tuple(sum(a.tokens for a in self.attempts if a.trial == trial) for trial in trials),
            other_tokens=tuple(self.other_tokens),
            calls=tuple(self.calls),
            attempts=len(self.attempts),
            kept=sum(map(len, self.lessons.values())),
            refused=dict(sorted(Counter(reason for _, _, reason, _ in self.refused).items())),
            protocol=self._protocol(),
            notes=self._notes(),
        )
        return TrialRun(
            table=table,
            attempts=tuple(self.attempts),
            judgements=tuple(self.judgements),
            lessons={key: tuple(value) for key, value in self.lessons.items()},
            refused=tuple(self.refused),
        )

    def _protocol(self) -> dict[str, Any]:
        sampling = self.settings.sampling
        return {
            "seed": self.settings.seed,
            "temperature": sampling.temperature,
            "max_new_tokens": sampling.max_new_tokens,
            "evaluator": self.evaluator.name,
            "success_at": self.settings.success_at,
            "rerun_solved": self.settings.rerun_solved,
            "base": self.base.id,
        }

    def _notes(self) -> tuple[str, ...]:
        said = []
        errors = sum(a.failure is not None for a in self.attempts)
        if errors:
            said.append(
                f"{errors} of {len(self.attempts)} attempts failed for reasons that are not the policy's answer"
            )
        if self.unmatched:
            said.append(f"{self.unmatched} times no other item had a lesson to show, so none was shown")
        undecided = sum(j.undecided for j in self.judgements)
        if undecided:
            said.append(f"the evaluator gave no verdict on {undecided} of {len(self.judgements)} attempts: no passes")
        return tuple(said)
