"""Rollouts in the ledger: a row each, token by token, so that what is read back computes the numbers of what was kept.

Rows of ``purpose`` 'round' are a round's evidence, those of 'search' what a fast search sampled on items yet to come.
Tokens are little-endian uint32, log-probabilities little-endian float64: bit for bit what the policy gave.
"""

from __future__ import annotations

import json
import math
import sqlite3
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from twoclock.errors import StoreError
from twoclock.store.rows import number, optional, text
from twoclock.store.shifts import shifts_of
from twoclock.store.soft import soft_of
from twoclock.types import Completion, Evidence, Grade, Rollout, Shift, SoftState

__all__ = ["KeptRollout", "RolloutRow"]

TOKEN_BYTES, LOGPROB_BYTES = 4, 8

UNKNOWN_TOKEN, UNKNOWN_STORED = -1, 0xFFFFFFFF
"""Endpoints count tokens without naming them: -1 in a completion, the largest uint32 in the ledger."""

MOST_NAMES = 500
"""Item ids in one query; SQLite may be built to take no more than 999 values."""

COLUMNS = (
    "round, task, item_id, conditioning_id, seed, text, reward, feedback, failure, finish, prompt_tokens, "
    "completion_tokens, mean_logprob, purpose, age, error, tokens, logprobs"
)

ROWS = """
    SELECT r.id, r.round, r.task, r.item_id, i.prompt, r.conditioning_id, r.seed, r.text, r.reward, r.feedback,
        coalesce(r.failure, r.error) AS failure, r.finish, r.prompt_tokens, r.completion_tokens, r.mean_logprob, r.age
    FROM rollouts r JOIN items i ON i.task = r.task AND i.item_id = r.item_id
    WHERE r.purpose = 'round' AND r.id > ? {and_round} ORDER BY r.id LIMIT ?"""

KEPT = """
    SELECT r.id, r.round, r.item_id, r.conditioning_id, r.seed, r.text, r.reward, r.feedback, r.failure, r.finish,
        r.prompt_tokens, r.error, r.tokens, r.logprobs, c.system, c.exemplars,
        c.notes, c.recalled, c.delta, c.shifts, c.soft, c.mixture
    FROM rollouts r JOIN conditionings c ON c.id = r.conditioning_id
    WHERE r.task = ? AND r.item_id IN ({marks}) AND r.purpose = 'search' AND r.round >= ? AND r.tokens IS NOT NULL"""


@dataclass(frozen=True, kw_only=True)
class RolloutRow:
    """One rollout of a round for people and reports: all but the token ids and the log-probabilities one by one."""

    round: int
    task: str
    item_id: str
    prompt: str
    conditioning_id: str
    seed: int
    text: str
    reward: float
    feedback: str
    failure: str | None
    """Why grading or sampling failed, where it did."""
    finish: str
    prompt_tokens: int
    completion_tokens: int
    mean_logprob: float | None
    """Nats a token; None where the policy could not tell."""
    age: int = 0
    """Rounds since it was sampled: above 0 it was paid for in an earlier round, by a search."""


@dataclass(frozen=True, kw_only=True)
class KeptRollout:
    """One rollout of a search, complete: equal to what was graded, except that a lone surrogate in a text is its escape
    and that the weights it was sampled under are named, not there."""

    round: int
    """The round in which it was sampled."""
    item_id: str
    conditioning_id: str
    system: str | None
    """Of the conditioning, as the next two."""
    exemplars: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    recalled: tuple[str, ...] = ()
    delta: str | None
    """The id of the delta; None is the base."""
    shifts: tuple[Shift, ...] = ()
    """With the names of their changes of weights alone, as ``delta``."""
    soft: SoftState | None = None
    """The name of the memory beside the model alone, as ``delta``."""
    mixture: str | None = None
    """The id of the mixture; None is none."""
    seed: int
    completion: Completion
    grade: Grade


# ------------------------------------------------------------------------------------------------------ into the ledger


def rollout_values(evidence: Evidence, rollout: Rollout, purpose: str) -> tuple[Any, ...]:
    """A row in the order of :data:`COLUMNS`; NumericsError for NaN and infinity, StoreError for what does not fit."""
    done, where = rollout.completion, f"the rollout of item '{rollout.item_id}' in round {evidence.round}"
    logprobs = [number(value, f"a log-probability of {where}") for value in done.logprobs]
    if logprobs and len(logprobs) != len(done.tokens):
        raise StoreError(
            f"{where} has {len(done.tokens)} tokens and {len(logprobs)} log-probabilities; it needs one a token or none"
        )
    return (
        evidence.round, text(evidence.task), text(rollout.item_id), rollout.conditioning_id, rollout.seed,
        text(done.text), number(rollout.reward, f"the reward of {where}"), text(rollout.grade.feedback),
        optional(rollout.grade.failure), done.finish, done.prompt_tokens, len(done.tokens), mean_logprob(logprobs),
        purpose, rollout.age, optional(done.error), _pack_tokens(done.tokens, where),
        struct.pack(f"<{len(logprobs)}d", *logprobs),
    )  # fmt: skip


def mean_logprob(logprobs: Sequence[float]) -> float | None:
    """Nats a token; None without any."""
    return math.fsum(logprobs) / len(logprobs) if logprobs else None


def _pack_tokens(tokens: Sequence[int], where: str) -> bytes:
    try:
        return struct.pack(f"<{len(tokens)}I", *(UNKNOWN_STORED if t == UNKNOWN_TOKEN else t for t in tokens))
    except struct.error as error:
        raise StoreError(f"a token of {where} is no number from 0 to {UNKNOWN_STORED - 1}: {error}") from error


# ---------------------------------------------------------------------------------------------------- out of the ledger


def rows_after(db: sqlite3.Connection, last: int, round: int | None, limit: int) -> list[sqlite3.Row]:
    """The next page of rows of purpose 'round', in the order they were graded; ``last`` is the id before it."""
    if round is None:
        return db.execute(ROWS.format(and_round=""), (last, limit)).fetchall()
    return db.execute(ROWS.format(and_round="AND r.round = ?"), (last, round, limit)).fetchall()


def rollout_of(row: sqlite3.Row) -> RolloutRow:
    return RolloutRow(**{name: value for name, value in dict(row).items() if name != "id"})


def kept(db: sqlite3.Connection, task: str, item_ids: Collection[str], since: int) -> list[KeptRollout]:
    """See :meth:`~twoclock.store.run.RunStore.kept_rollouts`."""
    names = {text(name): name for name in item_ids}
    found: list[sqlite3.Row] = []
    for part in _parts(list(names), MOST_NAMES):
        query = KEPT.format(marks=", ".join("?" for _ in part))
        found += db.execute(query, (text(task), *part, since))
    found.sort(key=lambda row: (row["round"], row["id"]))
    return [_kept_of(row, names[row["item_id"]]) for row in found]


def _parts(names: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


def _kept_of(row: sqlite3.Row, item_id: str) -> KeptRollout:
    return KeptRollout(
        round=row["round"],
        item_id=item_id,
        conditioning_id=row["conditioning_id"],
        system=row["system"],
        exemplars=tuple((user, assistant) for user, assistant in json.loads(row["exemplars"])),
        notes=tuple(json.loads(row["notes"])),
        recalled=tuple(json.loads(row["recalled"])),
        delta=row["delta"],
        shifts=shifts_of(json.loads(row["shifts"])),
        soft=soft_of(json.loads(row["soft"])),
        mixture=row["mixture"],
        seed=row["seed"],
        completion=Completion(
            tokens=unpack_tokens(row["tokens"]),
            logprobs=unpack_logprobs(row["logprobs"]),
            text=row["text"],
            finish=row["finish"],
            prompt_tokens=row["prompt_tokens"],
            error=row["error"],
        ),
        grade=Grade(reward=row["reward"], feedback=row["feedback"], failure=row["failure"]),
    )


def unpack_tokens(data: bytes) -> tuple[int, ...]:
    """StoreError for bytes that are no whole number of tokens."""
    return tuple(UNKNOWN_TOKEN if t == UNKNOWN_STORED else t for t in _unpack(data, "I", TOKEN_BYTES))


def unpack_logprobs(data: bytes) -> tuple[float, ...]:
    """StoreError for bytes that are no whole number of log-probabilities."""
    return _unpack(data, "d", LOGPROB_BYTES)


def _unpack(data: bytes, code: str, size: int) -> tuple[Any, ...]:
    try:
        return struct.unpack(f"<{len(data) // size}{code}", data)
    except struct.error:
        raise StoreError(f"{len(data)} bytes are no whole number of values of {size} bytes each") from None
