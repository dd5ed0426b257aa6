"""Comparing arms: paired tests and the table. No cumulative curve is shown without the same number of plain retries.

A cumulative curve cannot fall, so it rises for any arm that tries again; what memory adds is the difference to an arm
that retries as often without it, item by item. Early trials and the area under the curve say more than the last trial,
where plain retries have caught up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from twoclock.agent.trial_table import (
    TrialTable,
    auc,
    auc_by_item,
    cumulative,
    forgetting,
    per_trial,
    recovery,
    standing,
    verdicts,
)
from twoclock.errors import ConfigError
from twoclock.measure.intervals import Interval
from twoclock.measure.pairs import paired_difference

__all__ = ["RETRIES", "Comparison", "compare", "mcnemar", "require_honest", "trial_report"]

RETRIES = "retries"
"""The arm that every table must have: no memory, the same number of trials, the same temperature and seeds."""

WANTED = {
    "token-matched": "retries that may spend the same tokens",
    "shuffled": "another item's lessons, of like length",
    "oracle": "the solution as a lesson",
}
"""What else a table should have; what is missing is said under it."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against another on the same items, positive where the first is better."""

    wins: tuple[int, ...]
    """By trial: items that the first had solved by then and the second had not."""
    losses: tuple[int, ...]
    p: tuple[float, ...]
    """By trial: McNemar's exact test, two-sided."""
    auc: Interval
    """Difference of the areas under the curves, by a paired bootstrap over items."""


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p of McNemar's test: that many discordant pairs, each way equally likely (a binomial test of
    1/2). No discordant pair gives 1."""
    if wins < 0 or losses < 0:
        raise ValueError(f"counts of discordant pairs are at least 0; got {wins} and {losses}")
    if wins + losses == 0:
        return 1.0
    return float(import_module("scipy.stats").binomtest(wins, wins + losses, 0.5).pvalue)


def require_honest(tables: Mapping[str, TrialTable], reference: str = RETRIES) -> TrialTable:
    """The reference arm. Raises ConfigError where it is missing, or is not what a curve may be compared with: other
    items, trials, seed, temperature, evaluator, or a memory of its own."""
    if reference not in tables:
        raise ConfigError(
            f"no cumulative curve without its control: these arms lack '{reference}', the same number of trials "
            f"without memory (there are: {', '.join(tables) or 'none'}); run it with run_trials(..., "
            "TrialSettings(strategy=Strategy.NONE, ...)) on the same items and seed"
        )
    control = tables[reference]
    problems = []
    if control.kept:
        problems.append(f"'{reference}' kept {control.kept} lessons: it is not without memory")
    for name, table in tables.items():
        if table.items != control.items:
            problems.append(f"'{name}' has other items than '{reference}'")
        if table.trials != control.trials:
            problems.append(f"'{name}' has {table.trials} trials, '{reference}' {control.trials}")
        if table.task != control.task:
            problems.append(f"'{name}' is of the task '{table.task}', '{reference}' of '{control.task}'")
        for key, value in control.protocol.items():
            if table.protocol.get(key) != value:
                problems.append(f"'{name}' has {key} = {table.protocol.get(key)!r}, '{reference}' {value!r}")
    if problems:
        raise ConfigError([f"arms cannot be compared: {text}" for text in problems])
    return control


def compare(a: TrialTable, b: TrialTable, *, seed: int = 0) -> Comparison:
    """The first arm against the second, item by item. Raises ValueError where they are not of the same items."""
    if a.items != b.items or a.trials != b.trials:
        raise ValueError(f"arms '{a.arm}' and '{b.arm}' are not of the same items and trials")
    wins, losses = [], []
    for t in range(1, a.trials + 1):
        pairs = [("1" in x[:t], "1" in y[:t]) for x, y in zip(a.solved, b.solved, strict=True)]
        wins.append(sum(x and not y for x, y in pairs))
        losses.append(sum(y and not x for x, y in pairs))
    return Comparison(
        wins=tuple(wins),
        losses=tuple(losses),
        p=tuple(mcnemar(w, lost) for w, lost in zip(wins, losses, strict=True)),
        auc=paired_difference(auc_by_item(a), auc_by_item(b), seed=seed),
    )


def trial_report(tables: Mapping[str, TrialTable], reference: str = RETRIES) -> str:
    """The arms as a Markdown table, each against the reference. Raises ConfigError as :func:`require_honest` does."""
    control = require_honest(tables, reference)
    trials = control.trials
    order = [reference, *(name for name in tables if name != reference)]
    early = [t for t in (2, 3) if t <= trials] + ([trials] if trials > 3 else [])
    heads = ["arm", *(f"t{t}" for t in range(1, trials + 1)), "AUC", f"AUC − {reference} [95 %]"]
    heads += [*(f"p(t{t})" for t in early), f"recovered t2–t{trials}", "lost again", "tokens", "attempts", "calls"]
    rows = [heads, ["---"] * len(heads)]
    for name in order:
        table = tables[name]
        versus = compare(table, control)
        rows.append(
            [
                name,
                *(str(count) for count in cumulative(table)),
                f"{auc(table):.3f}",
                "–" if name == reference else _signed(versus.auc),
                *("–" if name == reference else f"{versus.p[t - 1]:.2g}" for t in early),
                _sums([recovery(table, t) for t in range(2, trials + 1)]),
                _sums([forgetting(table, t) for t in range(2, trials + 1)]),
                str(table.total_tokens),
                str(table.attempts),
                str(sum(table.calls)),
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *_below(tables, control)])


def _signed(difference: Interval) -> str:
    return f"{difference.estimate:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _sums(pairs: list[tuple[int, int]]) -> str:
    hits, n = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    return f"{hits}/{n}" if n else "–"


def _below(tables: Mapping[str, TrialTable], control: TrialTable) -> list[str]:
    """What the numbers are, how evaluators judged, what is missing."""
    lines = [
        f"{len(control.items)} items, {control.trials} trials; t1, t2, …: items solved by that trial. p: McNemar's "
        f"exact two-sided test on the same items against '{RETRIES}'. {_protocol(control)}"
    ]
    for name, table in tables.items():
        judged = verdicts(table)
        if judged["false_pass"] or judged["false_fail"]:
            lines.append(
                f"- {name}: the evaluator was wrong in {judged['false_pass']} passes and {judged['false_fail']} fails; "
                f"{judged['ended_wrong']} items ended on a false pass; standing answers right at the end: "
                f"{standing(table)[-1]}"
            )
        if table.refused:
            said = ", ".join(f"{count} {reason}" for reason, count in table.refused.items())
            lines.append(f"- {name}: texts that were no lessons: {said}; lessons kept: {table.kept}")
        lines += [f"- {name}: {note}" for note in table.notes]
        run = [per_trial(table, t)[1] for t in range(1, table.trials + 1)]
        if 0 in run:
            lines.append(f"- {name}: nothing was left to run from trial {run.index(0) + 1} on")
    missing = [f"{key} ({what})" for key, what in WANTED.items() if not any(key in name for name in tables)]
    if missing:
        lines.append(f"- missing from this table: {'; '.join(missing)}")
    return lines


def _protocol(table: TrialTable) -> str:
    return ", ".join(f"{key} {value}" for key, value in table.protocol.items() if key != "base") + "."
