"""Tool memory: which tool helped in which situation.

What is remembered of a call is an entry of kind ``tool``: its key is the situation (the subtask), its body the tool,
the arguments and the beginning of the result, its reward what the episode earned. :func:`suggest` reads the entries of
situations like the present one from whatever can be searched: a bank or a store. Of an effectful tool neither arguments
nor result are kept: what it did is not to be done again because it was done once.

Results of pure calls are kept apart (:mod:`twoclock.agent.result_cache`), by exact arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from twoclock.agent.planned_episode import PlannedEpisode
from twoclock.agent.toolbox import Toolbox
from twoclock.agent.tools import Tool
from twoclock.errors import ConfigError
from twoclock.hashing import canonical_json
from twoclock.memory.bank import Bank
from twoclock.memory.encoders import Encoder
from twoclock.memory.records import Entry, Hit, Kind, Scope
from twoclock.memory.rendering import Bounds, render
from twoclock.tasks.text import clip
from twoclock.types import Conditioning

__all__ = [
    "BankReader",
    "Searchable",
    "Suggestion",
    "nearness",
    "suggest",
    "suggest_from",
    "suggestion_notes",
    "tool_entries",
]

SITUATION_CHARS = 500
RESULT_CHARS = 200
CANDIDATES = 32
"""Entries of like situations that a suggestion is made from."""
PRIOR_USES, PRIOR_REWARD = 1.0, 0.5
"""What tools are taken to be worth before they were used: so many uses that earned so much."""
SUCCESS = 0.5
"""The reward from which on an episode counts as a success."""
TOOLS: tuple[Kind, ...] = ("tool",)


class Searchable(Protocol):
    """What memory is asked through: :class:`~twoclock.memory.bank.Bank` and the store alike."""

    def search(
        self, query: str, *, scope: Scope | None = None, k: int = 5, kinds: Collection[Kind] | None = None, now: float
    ) -> Sequence[Hit]: ...


@dataclass(frozen=True)
class BankReader:
    """A bank that is searched by meaning too; a store knows its encoder, a bank is told."""

    bank: Bank
    encoder: Encoder

    def search(
        self, query: str, *, scope: Scope | None = None, k: int = 5, kinds: Collection[Kind] | None = None, now: float
    ) -> Sequence[Hit]:
        return self.bank.search(query, scope=scope, k=k, kinds=kinds, now=now, encoder=self.encoder)


# --------------------------------------------------------------------------------------------------- what tools helped


def tool_entries(
    episode: PlannedEpisode,
    toolbox: Toolbox,
    reward: float,
    *,
    provenance: str,
    scope: Scope | None = None,
    created: float = 0.0,
) -> tuple[Entry, ...]:
    """An entry for each call of the episode to a tool of the toolbox, in order, each once.

    A call shares the reward of its episode; one that gave an error, or whose subtask came to nothing, earned 0 whatever
    the others did. What went wrong before a tool was reached (an unknown name, wrong arguments) says nothing of tools
    and is left out. An episode that a policy's failure ended gives none.
    """
    if episode.error:
        return ()
    entries: dict[str, Entry] = {}
    for subtask in episode.subtasks:
        for call in subtask.calls:
            if call.name not in toolbox or call.problem in ("unknown", "arguments", "busy"):
                continue
            earned = reward if subtask.done and not call.problem else 0.0
            text, body = _of_call(toolbox[call.name], call.arguments, call.result, earned)
            entry = Entry(
                kind="tool",
                key=clip(subtask.task, SITUATION_CHARS),
                text=text,
                scope=scope or Scope(),
                provenance=(provenance,),
                seen=tuple(dict.fromkeys([*episode.recalled, *subtask.recalled])),
                reward=earned,
                body=body,
                created=created,
            )
            entries.setdefault(entry.id, entry)
    return tuple(entries.values())


def _of_call(tool: Tool, arguments: Mapping[str, Any], result: str, earned: float) -> tuple[str, dict[str, Any]]:
    """(what a prompt shows of a call, the entry's body)"""
    helped = "helped" if earned >= SUCCESS else "did not help"
    body: dict[str, Any] = {"tool": tool.name, "version": tool.version, "helped": earned >= SUCCESS}
    if not tool.pure:
        return f"Calling {tool.name} {helped}.", body
    shown = clip(result, RESULT_CHARS)
    given = canonical_json(dict(arguments))
    text = f"Calling {tool.name} with {clip(given, 2 * RESULT_CHARS)} {helped}; it gave: {shown}"
    kept = dict(arguments) if len(given) <= 2 * RESULT_CHARS else {}
    return text, body | {"arguments": kept, "result": shown}


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One tool, by what its calls earned in situations like the present one."""

    tool: str
    value: float
    """The expected reward in [0, 1]: a kernel estimate, drawn to that of all tools where there is little to go by."""
    uses: int
    """Episodes behind it."""
    entry: Entry
    """The nearest of its entries that tells what it is worth: a success where it helped, otherwise a failure."""


def suggest(
    memory: Searchable,
    situation: str,
    toolbox: Toolbox,
    *,
    now: float,
    scope: Scope | None = None,
    k: int = 3,
    candidates: int = CANDIDATES,
) -> tuple[Suggestion, ...]:
    """The tools that were used in situations like this one, the most helpful first; at most ``k``.

    A tool's value is ``(Σ w n r + p q) / (Σ w n + p)`` over its entries: ``r`` the reward, ``n`` the episodes, ``w``
    the nearness of its situation (:func:`nearness`), and ``p`` uses of reward ``q`` as the prior; ``q`` is the same
    estimate over the entries of all tools, with one half as its prior. A tool is said to have helped where its value is
    at least one half or at least ``q``: where calls share an episode's reward, the right one too fails more often than
    not. Entries of tools that are not in the toolbox, or are there in another version, are stale and count for nothing.
    Raises ConfigError for a ``k`` below 0.
    """
    if k < 0:
        raise ConfigError(f"k, the number of suggestions, must be at least 0; got {k}")
    if k == 0 or not len(toolbox):
        return ()

    def fresh(hit: Hit) -> bool:
        name = hit.entry.body.get("tool")
        return isinstance(name, str) and name in toolbox and hit.entry.body.get("version") == toolbox[name].version

    return suggest_from(memory.search(situation, scope=scope, k=candidates, kinds=TOOLS, now=now), k, fresh)


def suggest_from(
    hits: Sequence[Hit], k: int, fresh: Callable[[Hit], bool] = lambda hit: True
) -> tuple[Suggestion, ...]:
    """The suggestions that these hits give rise to, as in :func:`suggest`; those that are not ``fresh`` count for
    nothing, but do say how near the others are."""
    of_tool: dict[str, list[tuple[Hit, float]]] = {}
    for hit, near in zip(hits, nearness(hits), strict=True):
        name = hit.entry.body.get("tool")
        if isinstance(name, str) and fresh(hit):
            of_tool.setdefault(name, []).append((hit, near))
    common = _estimate([found for of_one in of_tool.values() for found in of_one], PRIOR_REWARD)
    made = [_suggestion(name, found, common) for name, found in of_tool.items()]
    return tuple(sorted(made, key=lambda s: (-s.value, s.tool))[:k])


def nearness(hits: Sequence[Hit]) -> list[float]:
    """How near each hit's situation is, in [0, 1], the nearest of all at 1: its BM25 against the best one, and its
    cosine against the best one where there is an encoder, squared and averaged. The rank fusion that a search orders
    by is no measure of nearness: it hardly falls with the rank."""
    kinds: list[list[float | None]] = [[hit.lexical for hit in hits], [hit.similarity for hit in hits]]
    shares = [
        [max(0.0, value or 0.0) / max(v or 0.0 for v in values) for value in values]
        for values in kinds
        if any((value or 0.0) > 0 for value in values)
    ]
    if not shares:  # nothing to go by, or nothing near
        return [float(all(v is None for values in kinds for v in values))] * len(hits)
    means = [sum(share[n] ** 2 for share in shares) / len(shares) for n in range(len(hits))]
    return [mean / max(means) for mean in means]


def _estimate(hits: Sequence[tuple[Hit, float]], prior: float) -> float:
    """The kernel estimate of the reward."""
    weights = [max(1, len(hit.entry.provenance)) * near for hit, near in hits]
    earned = sum(w * (hit.entry.reward or 0.0) for w, (hit, _) in zip(weights, hits, strict=True))
    return (earned + PRIOR_USES * prior) / (sum(weights) + PRIOR_USES)


def _suggestion(tool: str, hits: Sequence[tuple[Hit, float]], common: float) -> Suggestion:
    value = _estimate(hits, common)
    by_nearness = [hit for hit, _ in sorted(hits, key=lambda found: -found[1])]
    agreeing = [hit for hit in by_nearness if bool(hit.entry.body.get("helped")) == (value >= min(SUCCESS, common))]
    uses = sum(max(1, len(hit.entry.provenance)) for hit in by_nearness)
    return Suggestion(tool=tool, value=value, uses=uses, entry=(agreeing or by_nearness)[0].entry)


def suggestion_notes(suggestions: Sequence[Suggestion], *, bounds: Bounds | None = None) -> Conditioning:
    """The suggestions as a conditioning: notes that quote their entries, and the entries' ids."""
    return render([s.entry for s in suggestions], bounds=bounds)
