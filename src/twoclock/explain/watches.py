"""The watches of a run, read back from its rounds' metrics: when each began, what it counted, how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from twoclock.store import RoundRow
from twoclock.types import LedgerEntry
from twoclock.watching import Watch

__all__ = ["WatchSpan", "watch_spans"]

PREFIX = "watch:"
WHOLE = ("since", "rounds", "count")


@dataclass(frozen=True, kw_only=True)
class WatchSpan:
    """A stretch in which one deployed state of a channel was held against the same earlier one."""

    channel: str
    task: str
    opened: int
    """The round that made the change."""
    watch: Watch
    """What was counted by its last round."""
    closed: int | None = None
    """The round that ended it; None while it is under way."""
    outcome: str = ""
    """``proven``, ``taken back``, ``replaced`` or ``unwatched``."""

    @property
    def began(self) -> str:
        return f"held against what was deployed before round {self.watch.since}"

    @property
    def told(self) -> str:
        counted = f"{self.watch.mean:+.3f} in {self.watch.count} comparisons"
        counted = f"by the round before it was {counted}" if self.watch.count else "it took one round"
        return {
            "proven": f"the bounds of its effect lie above 0, and the watch is over; {counted}",
            "replaced": "another change was made, and counted anew",
        }.get(self.outcome, "a rollback by hand, or a return to what was before, ended the watch")


def watch_spans(rounds: Sequence[RoundRow], entries: Sequence[LedgerEntry]) -> list[WatchSpan]:
    """In the order in which they began."""
    spans: list[WatchSpan] = []
    running: dict[tuple[str, str], WatchSpan] = {}
    by_round: dict[int, list[LedgerEntry]] = {}
    for entry in entries:
        by_round.setdefault(entry.round, []).append(entry)
    for row in rounds:
        told = dict(_watches(row.metrics))
        changed = {e.channel for e in by_round.get(row.round, ()) if _changes_deployed(e)}
        for key in [key for key in running if key not in told]:
            outcome = _outcome(key[0], row.round, changed, by_round)
            spans.append(_closed(running.pop(key), row.round, outcome))
        for key, watch in told.items():
            if key in running and watch.since != running[key].watch.since:  # over, and the round has begun another
                spans.append(_closed(running.pop(key), row.round, _outcome(key[0], row.round, set(), by_round)))
            elif key in running and watch.rounds == 0 and key[0] in changed:
                spans.append(_closed(running.pop(key), row.round, "replaced"))
            opened = running[key].opened if key in running else row.round
            running[key] = WatchSpan(channel=key[0], task=key[1], opened=opened, watch=watch)
    last = rounds[-1].round if rounds else 0
    for span in running.values():
        spans.append(_closed(span, last, "unwatched") if any(map(_by_hand, by_round.get(last, ()))) else span)
    return sorted(spans, key=lambda span: span.opened)


def _watches(metrics: Mapping[str, float]) -> Iterator[tuple[tuple[str, str], Watch]]:
    """By channel and task, what a round's metrics keep of each watch."""
    parts: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in metrics.items():
        if name.startswith(PREFIX):
            channel, rest = name.removeprefix(PREFIX).split(":", 1)
            task, part = rest.rsplit(":", 1)
            parts.setdefault((channel, task), {})[part] = value
    for key, found in parts.items():
        whole = {part: int(found.get(part, 0)) for part in WHOLE}
        yield key, Watch(**whole, total=found.get("total", 0.0), squares=found.get("squares", 0.0))


def _outcome(channel: str, round: int, changed: set[str], by_round: Mapping[int, Sequence[LedgerEntry]]) -> str:
    back = [e for e in by_round.get(round, ()) if e.action == "rollback" and e.channel == channel]
    if any(not e.is_by_hand for e in back):
        return "taken back"
    # A rollback by hand bears the number of the last round before it: the next round no longer has the watch.
    if any(map(_by_hand, by_round.get(round - 1, ()))) or channel in changed:
        return "unwatched"
    return "proven"


def _changes_deployed(entry: LedgerEntry) -> bool:
    """Whether a commit changed what is deployed, as the loop has noted it: not so what is kept beside."""
    return entry.action == "commit" and entry.metrics.get("changes_deployed", 1.0) > 0


def _by_hand(entry: LedgerEntry) -> bool:
    return entry.action == "rollback" and entry.is_by_hand


def _closed(span: WatchSpan, round: int, outcome: str) -> WatchSpan:
    return WatchSpan(
        channel=span.channel, task=span.task, opened=span.opened, watch=span.watch, closed=round, outcome=outcome
    )
