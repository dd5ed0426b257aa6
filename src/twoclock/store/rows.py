"""Records to rows of the ledger and back; rollouts have their own module.

Numbers are finite or refused; text is kept as it is wherever SQLite can.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from twoclock.errors import NumericsError, StoreError
from twoclock.hashing import canonical_json
from twoclock.store.shifts import plain_shifts
from twoclock.store.soft import plain_soft
from twoclock.types import (
    Conditioning,
    Cost,
    DriftRecord,
    Evaluation,
    LedgerEntry,
    Snapshot,
    Write,
)

__all__ = ["RoundRow"]


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One committed round, without what other tables hold."""

    round: int
    phase: int
    task: str
    metrics: Mapping[str, float]
    started: float
    """Seconds since the epoch at which the writer was last done with something else: when the round began."""
    at: float
    """Seconds since the epoch at which the round was committed."""


# ------------------------------------------------------------------------------------------------------ into the ledger


def number(value: Any, what: str) -> float:
    """``value`` as a finite float; ``what`` names it in the error."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise StoreError(f"{what} must be a number; got {value!r}") from None
    if not math.isfinite(result):
        raise NumericsError(f"{what} is {result}; the ledger takes finite numbers only")
    return result


def text(value: str) -> str:
    """Text that SQLite can hold: a lone surrogate, which no UTF-8 has, is written as its escape."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def dumps(value: Any, what: str) -> str:
    """Canonical JSON; NumericsError for NaN, StoreError for what is no JSON."""
    try:
        return text(canonical_json(value))
    except ValueError as error:
        raise NumericsError(f"{what} holds NaN or infinity; the ledger takes finite numbers only") from error
    except TypeError as error:
        raise StoreError(f"{what} is not plain JSON: {error}") from error


def metrics_json(metrics: Mapping[str, float], where: str) -> str:
    """Metrics by name; integers stay integers."""
    plain = {
        name: value if type(value) is int else number(value, f"the metric '{name}' of {where}")
        for name, value in metrics.items()
    }
    return dumps(plain, f"the metrics of {where}")


def numbers_json(values: Iterable[float], what: str) -> str:
    return dumps([number(value, f"{what}, element {i},") for i, value in enumerate(values)], what)


def cost_json(cost: Cost, where: str) -> str:
    return metrics_json(asdict(cost), f"the cost of {where}")


def entry_values(entry: LedgerEntry, at: float) -> tuple[Any, ...]:
    where = f"round {entry.round}, channel '{entry.channel}'"
    return (
        entry.round, entry.phase, text(entry.task), entry.channel, str(entry.timescale), entry.action, entry.before,
        entry.after, entry.offered, text(entry.cause), text(entry.reason), cost_json(entry.cost, where),
        dumps([asdict(write) for write in entry.writes], f"the writes of {where}"),
        metrics_json(entry.metrics, where), at,
    )  # fmt: skip


def conditioning_values(key: str, conditioning: Conditioning) -> tuple[Any, ...]:
    exemplars = dumps([list(turn) for turn in conditioning.exemplars], f"the exemplars of conditioning {key}")
    delta = conditioning.delta.id if conditioning.delta else None
    memory = (conditioning.notes, [recall.id for recall in conditioning.recall], conditioning.recalled)
    where = f"the memory of conditioning {key}"
    shifts = dumps(plain_shifts(conditioning.shifts), f"the shifts of conditioning {key}")
    told = (dumps(list(part), where) for part in memory)
    soft = dumps(plain_soft(conditioning.soft), f"the memory beside conditioning {key}")
    mixture = conditioning.mixture.id if conditioning.mixture else None
    return (key, optional(conditioning.system), exemplars, delta, *told, shifts, soft, mixture)


def evaluation_values(evaluation: Evaluation, at: float) -> tuple[Any, ...]:
    where = f"the evaluation of '{evaluation.task}' at round {evaluation.round}"
    if len(evaluation.item_ids) != len(evaluation.rewards):
        raise StoreError(
            f"{where} has {len(evaluation.item_ids)} items and {len(evaluation.rewards)} rewards; it needs one an item"
        )
    return (
        evaluation.round, text(evaluation.task), evaluation.weights, evaluation.prompt,
        dumps(list(evaluation.item_ids), f"the item ids of {where}"),
        numbers_json(evaluation.rewards, f"the rewards of {where}"), evaluation.samples, evaluation.conditioning_id,
        cost_json(evaluation.cost, where), evaluation.purpose, at,
    )  # fmt: skip


def drift_values(record: DriftRecord, at: float) -> tuple[Any, ...]:
    where = f"drift on '{record.prompts}' at round {record.round}"
    return (
        record.round, record.prompts, number(record.live_base, f"live_base of {where}"),
        number(record.base_live, f"base_live of {where}"),
        numbers_json(record.per_prompt_live_base, f"per_prompt_live_base of {where}"),
        numbers_json(record.per_prompt_base_live, f"per_prompt_base_live of {where}"), record.tokens, at,
    )  # fmt: skip


def optional(value: str | None) -> str | None:
    """:func:`text`, where there is one."""
    return None if value is None else text(value)


# ---------------------------------------------------------------------------------------------------- out of the ledger


def snapshot_of(row: sqlite3.Row) -> Snapshot:
    return Snapshot(
        round=row["round"], states=json.loads(row["states"]), next_round=row["next_round"], cause=row["cause"]
    )


def round_of(row: sqlite3.Row) -> RoundRow:
    return RoundRow(**{**dict(row), "metrics": json.loads(row["metrics"])})


def entry_of(row: sqlite3.Row) -> LedgerEntry:
    fields = dict(row)
    fields["cost"] = Cost(**json.loads(row["cost"]))
    fields["writes"] = tuple(Write(**write) for write in json.loads(row["writes"]))
    fields["metrics"] = json.loads(row["metrics"])
    return LedgerEntry(**fields)


def evaluation_of(row: sqlite3.Row) -> Evaluation:
    fields = {name: value for name, value in dict(row).items() if name not in ("id", "at")}
    fields["item_ids"] = tuple(json.loads(row["item_ids"]))
    fields["rewards"] = tuple(json.loads(row["rewards"]))
    fields["cost"] = Cost(**json.loads(row["cost"]))
    return Evaluation(**fields)


def drift_of(row: sqlite3.Row) -> DriftRecord:
    fields = {name: value for name, value in dict(row).items() if name not in ("id", "at")}
    for name in ("per_prompt_live_base", "per_prompt_base_live"):
        fields[name] = tuple(json.loads(row[name]))
    return DriftRecord(**fields)


def conditioning_of(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "system": row["system"],
        "exemplars": cast(Sequence[list[str]], json.loads(row["exemplars"])),
        "notes": cast(Sequence[str], json.loads(row["notes"])),
        "recall": cast(Sequence[str], json.loads(row["recall"])),
        "recalled": cast(Sequence[str], json.loads(row["recalled"])),
        "delta": row["delta"],
        "shifts": cast(Sequence[dict[str, Any]], json.loads(row["shifts"])),
        "soft": cast(dict[str, str], json.loads(row["soft"])),
        "mixture": row["mixture"],
    }
