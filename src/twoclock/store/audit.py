"""Is a ledger whole, and are two of them the same? Reads only."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from twoclock.errors import StoreError
from twoclock.hashing import canonical_json, short
from twoclock.store import rollouts, thinning
from twoclock.store.blobs import Blobs
from twoclock.store.ledger import Ledger

__all__ = ["digest", "verify"]

FORMAT = "twoclock ledger digest 5"

DIGESTED: Mapping[str, str] = {
    "snapshots": "SELECT kind, round, states, next_round, cause, entry_seq FROM snapshots ORDER BY id",
    "rounds": "SELECT round, phase, task, metrics FROM rounds ORDER BY round",
    "entries": """SELECT round, phase, task, channel, timescale, action, before, after, offered, cause, reason, cost,
        writes, metrics FROM entries ORDER BY seq""",
    "items": "SELECT task, item_id, prompt, reference FROM items ORDER BY task, item_id",
    "rollouts": """SELECT round, task, item_id, conditioning_id, seed, text, reward, feedback, failure, finish,
        prompt_tokens, completion_tokens, mean_logprob, purpose, age, error, tokens, logprobs FROM rollouts
        ORDER BY id""",
    "conditionings": """SELECT id, system, exemplars, delta, notes, recall, recalled, shifts, soft, mixture
        FROM conditionings ORDER BY id""",
    "evaluations": """SELECT round, task, weights, prompt, item_ids, rewards, samples, conditioning_id, cost, purpose
        FROM evaluations ORDER BY id""",
    "drift": """SELECT round, prompts, live_base, base_live, per_prompt_live_base, per_prompt_base_live, tokens
        FROM drift ORDER BY id""",
}
"""Every column that two equal runs share; the times of day (``at``, ``started``) are not among them, nor is what was
thinned, which is no part of what happened."""

ROLLOUTS = """
    SELECT id, round, item_id, purpose, completion_tokens, mean_logprob, tokens, logprobs FROM rollouts ORDER BY id"""


def _without_clock(column: str, value: Any) -> Any:
    """The value of a column for JSON, bytes in hex, without its wall-clock parts: a cost's seconds, metrics named
    ``*_s`` (``*_per_s`` too)."""
    if column == "cost":
        return {name: part for name, part in json.loads(value).items() if name != "seconds"}
    if column == "metrics":
        return {name: part for name, part in json.loads(value).items() if not name.endswith("_s")}
    return value.hex() if isinstance(value, bytes) else value


def digest(ledger: Ledger) -> str:
    """SHA-256 in hex over all of the ledger that is not wall clock: equal for two runs of the same numbers."""
    state = hashlib.sha256(FORMAT.encode())
    with ledger.reading() as db:
        for table, query in DIGESTED.items():
            state.update(f"\n{table}\n".encode())
            for row in db.execute(query):
                line = canonical_json([_without_clock(column, row[column]) for column in row.keys()])  # noqa: SIM118
                state.update(line.encode() + b"\n")
    return state.hexdigest()


def verify(ledger: Ledger, blobs: Blobs) -> list[str]:
    """Everything wrong with the run, a sentence each: the file, the blobs it names that were not thinned, the chain of
    its entries, its rollouts."""
    with ledger.reading() as db:
        damage = [row[0] for row in db.execute("PRAGMA integrity_check(20)")]
        if damage != ["ok"]:
            return [f"ledger.sqlite is damaged: {line}" for line in damage]
        entries = db.execute("SELECT * FROM entries ORDER BY seq").fetchall()
        snapshots = db.execute("SELECT * FROM snapshots ORDER BY id").fetchall()
        rounds = [row["round"] for row in db.execute("SELECT round FROM rounds ORDER BY round")]
        rollout_problems = [problem for row in db.execute(ROLLOUTS) if (problem := _rollout_problem(row))]
        thinned = thinning.recorded(db)
    if snapshots:  # what is live may not be gone, whatever is recorded
        thinned -= set(json.loads(snapshots[-1]["states"]).values())
    named = [row[column] for row in entries for column in ("before", "after", "offered")]
    named += [state for row in snapshots for state in json.loads(row["states"]).values()]
    return [
        *_blob_problems(blobs, (name for name in named if name not in thinned)),
        *_chain_problems(entries, snapshots),
        *_round_problems(rounds, snapshots),
        *rollout_problems,
    ]


def _blob_problems(blobs: Blobs, named: Iterable[str]) -> list[str]:
    problems = []
    for name in dict.fromkeys(name for name in named if name):
        try:
            blobs.get(name)
        except StoreError as error:
            problems.append(str(error))
    return problems


def _chain_problems(entries: list[sqlite3.Row], snapshots: list[sqlite3.Row]) -> list[str]:
    """Replay the entries: each must start from what is live, and together they must give every snapshot."""
    problems: list[str] = []
    live: dict[str, str] = {}
    position = 0
    for row in snapshots:
        while position < len(entries) and entries[position]["seq"] <= row["entry_seq"]:
            problems += _step(live, entries[position])
            position += 1
        states = json.loads(row["states"])
        for channel in sorted(live.keys() | states.keys()):
            explained, recorded = live.get(channel, ""), states.get(channel, "")
            if explained != recorded:
                problems.append(
                    f"the snapshot of round {row['round']} ({row['kind']}) has channel '{channel}' at "
                    f"{short(recorded) or 'nothing'}, but the entries lead to {short(explained) or 'nothing'}"
                )
        live = states  # report a break once, not again at every later snapshot
    problems += [f"entry {row['seq']} belongs to no snapshot" for row in entries[position:]]
    return problems


def _step(live: dict[str, str], entry: sqlite3.Row) -> list[str]:
    channel, before, after = entry["channel"], entry["before"], entry["after"]
    where = f"entry {entry['seq']} (round {entry['round']}, {entry['action']} of '{channel}')"
    problems = []
    if before != live.get(channel, ""):
        problems.append(
            f"{where} starts from {short(before) or 'nothing'}, but the channel's live state was "
            f"{short(live.get(channel, '')) or 'nothing'}"
        )
    if entry["action"] in ("reject", "decline", "wait", "refuse") and after != before:
        problems.append(f"{where} changed the state from {short(before)} to {short(after)}; it must not")
    live[channel] = after
    return problems


def _rollout_problem(row: sqlite3.Row) -> str | None:
    """What is wrong with the tokens of one rollout; rows of the first schema have none to check."""
    tokens, logprobs, count = row["tokens"], row["logprobs"], row["completion_tokens"]
    where = f"rollout {row['id']} (round {row['round']}, item '{row['item_id']}')"
    if row["purpose"] not in ("round", "search"):
        return f"{where} has the purpose '{row['purpose']}'; known: round, search"
    if tokens is None and logprobs is None:
        return None
    if tokens is None or logprobs is None:
        return f"{where} has {'no tokens' if tokens is None else 'no log-probabilities'} beside the other"
    if len(tokens) != count * rollouts.TOKEN_BYTES:
        return f"{where} holds {len(tokens)} bytes of tokens, but counts {count} tokens of {rollouts.TOKEN_BYTES} bytes"
    if len(logprobs) not in (0, count * rollouts.LOGPROB_BYTES):
        return (
            f"{where} holds {len(logprobs)} bytes of log-probabilities, but counts {count} tokens of "
            f"{rollouts.LOGPROB_BYTES} bytes"
        )
    try:
        mean = rollouts.mean_logprob(rollouts.unpack_logprobs(logprobs))
    except (ValueError, OverflowError):  # damage can make infinities of both signs, and numbers beyond any sum
        mean = math.nan
    # The mean was computed from these very numbers, so it agrees to the last bit; NaN never does.
    if mean != row["mean_logprob"]:
        return f"{where} has log-probabilities of mean {mean}; recorded is {row['mean_logprob']}"
    return None


def _round_problems(rounds: list[int], snapshots: list[sqlite3.Row]) -> list[str]:
    if not snapshots:
        return ["the run has no snapshot: it was interrupted before it began"]
    first, last = snapshots[0]["next_round"], snapshots[-1]["next_round"]
    made = {row["round"] for row in snapshots if row["kind"] == "round"}
    problems = [f"round {number} is missing" for number in range(first, last) if number not in rounds]
    problems += [f"round {number} has no snapshot" for number in rounds if number not in made]
    return problems
