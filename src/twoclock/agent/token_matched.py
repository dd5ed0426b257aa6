"""The control that most published curves lack: plain retries that may spend as many tokens as the arm they are
compared with, reflecting included."""

from __future__ import annotations

from collections.abc import Sequence

from twoclock.agent.episodes import Attempt, run_attempts
from twoclock.agent.evaluators import EnvironmentEvaluator, Evaluator
from twoclock.agent.trial_table import TrialTable
from twoclock.agent.trials import TrialSettings
from twoclock.contracts import Policy, Task
from twoclock.errors import ConfigError
from twoclock.types import Conditioning, Item

__all__ = ["run_token_matched"]

MOST_RETRIES = 200
"""Rounds of retries after which an arm is ended, whatever its budget: a policy that answers with nothing would never
spend it."""


def run_token_matched(
    policy: Policy,
    task: Task,
    items: Sequence[Item],
    like: TrialTable,
    settings: TrialSettings,
    *,
    evaluator: Evaluator | None = None,
    base: Conditioning | None = None,
    arm: str = "retries, token-matched",
) -> TrialTable:
    """Plain retries of what has not passed, round after round, until they have spent what ``like`` had spent.

    At trial t of the table the arm may have spent what ``like`` spent up to and including its trial t, on all items
    together; tokens that solved items no longer need go to the others. An attempt counts for the first trial whose
    budget covers it and everything before it, so the budget is never passed. Seeds are those of the same numbered trial
    in every arm.
    """
    if tuple(item.id for item in items) != like.items:
        raise ConfigError("token-matched retries need the items of the arm that they are compared with, in its order")
    truth = EnvironmentEvaluator(settings.success_at)
    judge = evaluator or truth
    allowed = [sum(like.tokens[: t + 1]) + sum(like.other_tokens[: t + 1]) for t in range(like.trials)]
    solved = {item.id: ["-"] * like.trials for item in items}
    passed = {item.id: ["-"] * like.trials for item in items}
    spent, point, count = 0, 0, 0
    tokens, other, calls = [0] * like.trials, [0] * like.trials, [0] * like.trials
    live = list(items)
    for round_ in range(1, MOST_RETRIES + 1):
        if not live or point >= like.trials:
            break
        attempts = _round(policy, task, live, settings, base, round_)
        judged = judge.judge(live, attempts)
        right = truth.judge(live, attempts)
        left = []
        for item, attempt, said, true in zip(live, attempts, judged, right, strict=True):
            cost = attempt.tokens + said.tokens
            while point < like.trials and spent + cost > allowed[point]:
                point += 1
            if point >= like.trials:
                break
            spent += cost
            tokens[point] += attempt.tokens
            other[point] += said.tokens
            calls[point] += said.calls
            count += 1
            _mark(solved[item.id], point, true.passed)
            _mark(passed[item.id], point, said.passed)
            if not said.passed:
                left.append(item)
        live = left
    return TrialTable(
        arm=arm,
        task=task.name,
        policy=policy.card.name,
        items=like.items,
        trials=like.trials,
        solved=tuple("".join(solved[item.id]) for item in items),
        passed=tuple("".join(passed[item.id]) for item in items),
        tokens=tuple(tokens),
        other_tokens=tuple(other),
        calls=tuple(calls),
        attempts=count,
        protocol=dict(like.protocol),
        notes=(f"{count} attempts within the tokens of '{like.arm}', which made {like.attempts}",),
    )


def _round(
    policy: Policy,
    task: Task,
    live: Sequence[Item],
    settings: TrialSettings,
    base: Conditioning | None,
    round_: int,
) -> list[Attempt]:
    told = {} if base is None else {item.id: base for item in live}
    return run_attempts(policy, task, live, settings.sampling, seed=settings.seed, trial=round_, conditionings=told)


def _mark(row: list[str], point: int, good: bool) -> None:
    """Several attempts may fall on one trial; that one of them was right is what counts."""
    if row[point] != "1":
        row[point] = "1" if good else "0"
