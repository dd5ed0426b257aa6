"""What a trial run came to, as a small record, and every number that is read off it: pure functions of the record.

One letter an item and a trial: ``1`` solved, ``0`` failed, ``-`` not run (solved before, or given up). Solved is what
the task's grade says; passed is what the evaluator said. Rates count items that were run, curves count all items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from twoclock.errors import DataError

__all__ = [
    "TrialTable",
    "auc",
    "auc_by_item",
    "cumulative",
    "forgetting",
    "per_trial",
    "recovery",
    "standing",
    "verdicts",
]


@dataclass(frozen=True, kw_only=True)
class TrialTable:
    """One arm on its items. Raises DataError for rows of wrong lengths or letters."""

    arm: str
    task: str
    policy: str
    items: tuple[str, ...]
    trials: int
    solved: tuple[str, ...]
    """For each item a letter a trial."""
    passed: tuple[str, ...]
    """The same, by the evaluator."""
    tokens: tuple[int, ...]
    """What the actor read and wrote, by trial."""
    other_tokens: tuple[int, ...]
    """What reflecting before each trial and evaluating after it read and wrote."""
    calls: tuple[int, ...]
    """Calls of the reflector and the evaluator, by trial."""
    attempts: int
    kept: int = 0
    """Lessons kept."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Texts that were no lessons, by reason."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """What arms must have in common to be compared: seed, temperature, evaluator and so on."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know."""

    def __post_init__(self) -> None:
        rows = {"solved": self.solved, "passed": self.passed}
        for name, letters in rows.items():
            if len(letters) != len(self.items) or any(len(r) != self.trials or set(r) - set("01-") for r in letters):
                raise DataError(
                    f"arm '{self.arm}': {name} must have one text of {self.trials} letters 0, 1 or - for each of "
                    f"{len(self.items)} items"
                )
        for name in ("tokens", "other_tokens", "calls"):
            if len(getattr(self, name)) != self.trials:
                raise DataError(f"arm '{self.arm}': {name} must have one number for each of {self.trials} trials")
        if self.trials < 1 or not self.items:
            raise DataError(
                f"arm '{self.arm}' has {len(self.items)} items and {self.trials} trials; it takes one of each"
            )

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens) + sum(self.other_tokens)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; the inverse of :meth:`from_dict`."""
        return asdict(self) | {"refused": dict(self.refused), "protocol": dict(self.protocol)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialTable:
        known = set(cls.__dataclass_fields__)
        if set(data) != known:
            missing, extra = sorted(known - set(data)), sorted(set(data) - known)
            raise DataError(f"this is no record of a trial run: missing {missing}, unknown {extra}")
        lists: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**lists)


def _share(hits: int, n: int) -> float | None:
    return hits / n if n else None


def per_trial(table: TrialTable, trial: int) -> tuple[int, int]:
    """(solved, run) at a trial, from 1."""
    letters = [row[trial - 1] for row in table.solved]
    return letters.count("1"), len(letters) - letters.count("-")


def cumulative(table: TrialTable) -> list[int]:
    """How many items were solved at least once by each trial. Never falls, whatever is done; see ``trial_report``."""
    return [sum("1" in row[: t + 1] for row in table.solved) for t in range(table.trials)]


def standing(table: TrialTable) -> list[int]:
    """For how many items the answer that stands after each trial (the last that was given) is right: what a user has
    who cannot know which of several answers to keep. A false pass keeps a wrong one."""
    return [sum(row[: t + 1].rstrip("-")[-1:] == "1" for row in table.solved) for t in range(table.trials)]


def auc_by_item(table: TrialTable) -> list[float]:
    """For each item the share of trials by which it was solved: 1 is at the first, 0 never."""
    return [sum("1" in row[: t + 1] for t in range(table.trials)) / table.trials for row in table.solved]


def auc(table: TrialTable) -> float:
    """The area under the cumulative curve as a share: its mean over trials and items."""
    by_item = auc_by_item(table)
    return sum(by_item) / len(by_item)


def recovery(table: TrialTable, trial: int) -> tuple[int, int]:
    """(solved at a trial, run at it) of the items that failed at the trial before it: not monotone by construction."""
    pairs = [row[trial - 2 : trial] for row in table.solved] if trial >= 2 else []
    return pairs.count("01"), pairs.count("01") + pairs.count("00")


def forgetting(table: TrialTable, trial: int) -> tuple[int, int]:
    """(failed at a trial, run at it) of the items solved at an earlier one. Needs solved items to be run again."""
    again = [row[trial - 1] for row in table.solved if "1" in row[: trial - 1]]
    return again.count("0"), again.count("0") + again.count("1")


def verdicts(table: TrialTable) -> dict[str, int | float | None]:
    """The evaluator against the truth over all attempts: ``true_pass``, ``false_pass``, ``false_fail``, ``true_fail``;
    and, as the paper's Table 2 has them, the shares of passes that are right and of fails that are wrong. False passes
    end an item's trials, so ``ended_wrong`` counts items."""
    pairs = [
        said + truth
        for said_row, row in zip(table.passed, table.solved, strict=True)
        for said, truth in zip(said_row, row, strict=True)
        if "-" not in (said, truth)
    ]
    true_pass, false_pass, false_fail, true_fail = (pairs.count(key) for key in ("11", "10", "01", "00"))
    return {
        "true_pass": true_pass,
        "false_pass": false_pass,
        "false_fail": false_fail,
        "true_fail": true_fail,
        "pass_is_right": _share(true_pass, true_pass + false_pass),
        "fail_is_wrong": _share(false_fail, false_fail + true_fail),
        "ended_wrong": sum(
            "1" in said and truth[said.index("1")] == "0"
            for said, truth in zip(table.passed, table.solved, strict=True)
        ),
    }
