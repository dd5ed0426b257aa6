"""Which old states of a channel may go, and which have gone: the table ``thinned``.

A state is recorded as thinned before its blob is deleted, so a process that is killed in between leaves a deletion to
be finished, never a state that is missing without a word. All queries walk from the newest state and stop at the first
that is gone: what was older was decided upon when that one went.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from twoclock.errors import StoreError
from twoclock.hashing import short

__all__ = ["choose", "record", "recorded", "refusal", "restored"]

MOVED = """
    SELECT seq, round, after AS state FROM entries WHERE channel = ? AND before <> after ORDER BY seq DESC"""

REFUSED = """
    SELECT seq, round, offered AS state FROM entries
    WHERE channel = ? AND offered <> '' AND offered <> after ORDER BY seq DESC"""

OTHERS = """
    SELECT 1 FROM entries WHERE after = :state AND before <> after AND channel <> :channel
    UNION ALL
    SELECT 1 FROM entries WHERE offered = :state AND offered <> '' AND channel <> :channel LIMIT 1"""


def choose(db: sqlite3.Connection, channel: str, keep: int) -> dict[str, int]:
    """The states of ``channel`` that may go, oldest first, with the round that each came from.

    Kept are the newest ``keep`` states that were live, and of the refused ones that are not older than these the newest
    ``keep``: a channel that is refused for a thousand rounds fills no disk either.
    """
    gone: dict[str, int] = {}
    kept: dict[str, int] = {}
    for row in db.execute(MOVED, (channel,)):
        state = row["state"]
        if state in kept:
            continue
        if len(kept) < keep:
            kept[state] = row["seq"]
        else:
            if _is_recorded(db, state):
                break
            gone.setdefault(state, row["round"])
    oldest, refused = min(kept.values(), default=0), set[str]()
    for row in db.execute(REFUSED, (channel,)):
        state = row["state"]
        if state in kept or state in refused:
            continue
        if row["seq"] > oldest and len(refused) < keep:
            refused.add(state)
        else:
            if _is_recorded(db, state):
                break
            gone.setdefault(state, row["round"])
    spared = {*kept, *refused, *_always_kept(db)} if gone else set[str]()
    chosen = {state: round for state, round in gone.items() if state not in spared and not _shared(db, state, channel)}
    return dict(sorted(chosen.items(), key=lambda pair: pair[1]))


def _always_kept(db: sqlite3.Connection) -> Iterator[str]:
    """Every channel's state at the start, at the end of each phase (the last round so far included), and now."""
    first = "SELECT states FROM snapshots ORDER BY id LIMIT 1"
    live = "SELECT states FROM snapshots ORDER BY id DESC LIMIT 1"
    found = [*db.execute(first), *db.execute(live)]
    phase = db.execute("SELECT min(phase) FROM rounds").fetchone()[0]
    while phase is not None:
        last = db.execute("SELECT max(round) FROM rounds WHERE phase = ?", (phase,)).fetchone()[0]
        found += db.execute("SELECT states FROM snapshots WHERE round = ? AND kind = 'round'", (last,))
        phase = db.execute("SELECT min(phase) FROM rounds WHERE phase > ?", (phase,)).fetchone()[0]
    for row in found:
        yield from json.loads(row["states"]).values()


def _shared(db: sqlite3.Connection, state: str, channel: str) -> bool:
    """Whether the bytes are another channel's too, at any time: theirs to decide upon as well, so left alone."""
    return db.execute(OTHERS, {"state": state, "channel": channel}).fetchone() is not None


# --------------------------------------------------------------------------------------------------------- the table


def record(db: sqlite3.Connection, channel: str, chosen: Mapping[str, int]) -> None:
    """Say that these states are gone; their blobs may be deleted once this is committed."""
    at = time.time()
    db.executemany(
        "INSERT INTO thinned (hash, channel, round, at) VALUES (?, ?, ?, ?)",
        ((state, channel, round, at) for state, round in chosen.items()),
    )


def restored(db: sqlite3.Connection, state: str) -> None:
    """Take the record of a state back whose blob is there again."""
    db.execute("DELETE FROM thinned WHERE hash = ?", (state,))


def recorded(db: sqlite3.Connection) -> set[str]:
    """All states that are recorded as thinned."""
    return {row["hash"] for row in db.execute("SELECT hash FROM thinned")}


def _is_recorded(db: sqlite3.Connection, state: str) -> bool:
    return db.execute("SELECT 1 FROM thinned WHERE hash = ?", (state,)).fetchone() is not None


def refusal(
    db: sqlite3.Connection, path: Path, state: str, *, to_round: int | None = None, channels: Collection[str] = ()
) -> StoreError | None:
    """The error for a state that was thinned, naming the nearest rounds that are whole; None for any other.

    ``to_round`` and ``channels`` say which round was asked for and which channels' states it is asked for; by default
    the round that the state came from, and its channel.
    """
    row = db.execute("SELECT * FROM thinned WHERE hash = ?", (state,)).fetchone()
    if row is None:
        return None
    asked = row["round"] if to_round is None else to_round
    names = channels or [row["channel"]]
    sides = [_nearest(db, asked, names, before=before) for before in (True, False)]
    kept = " and ".join(str(round) for round in sides if round is not None) or "none"
    what = f"the state {short(state)} of channel '{row['channel']}', from round {row['round']} of {path}, was thinned"
    where = f"round {asked} cannot be made live again: " if to_round is not None else ""
    return StoreError(f"{where}{what} to save space; the nearest rounds that were kept: {kept}")


def _nearest(db: sqlite3.Connection, round: int, channels: Collection[str], *, before: bool) -> int | None:
    """The nearest round whose own snapshot has every one of these channels' states."""
    side, order = ("<=", "DESC") if before else (">", "ASC")
    own = "SELECT round, states FROM snapshots WHERE kind IN ('begin', 'round')"
    query = f"{own} AND round {side} ? ORDER BY round {order}"
    for row in db.execute(query, (round,)):
        states = json.loads(row["states"])
        if all(name in states and not _is_recorded(db, states[name]) for name in channels):
            return int(row["round"])
    return None
