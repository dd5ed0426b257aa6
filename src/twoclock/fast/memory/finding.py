"""Which entries an item is shown: a search over the bank, then the retrieval policy's choice; and how it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from twoclock.errors import ConfigError
from twoclock.fast.memory.config import MemoryConfig
from twoclock.memory.bank import Bank
from twoclock.memory.encoders import Encoder, Vectors, build_encoder
from twoclock.memory.records import Entry, Hit, Scope
from twoclock.memory.retrieval import Outcome, Retriever, build_retriever, candidates_of
from twoclock.seeding import child_seed
from twoclock.types import Evidence, Item

__all__ = ["Finder"]

CACHED = 4096
"""Vectors kept by text: a round asks about the same items and entries several times."""


class Finder:
    """Searches a bank as a channel's configuration says. Holds no state but a cache of what encoders made of texts."""

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self._vectors: dict[str, Vectors] = {}
        if config.encoder == "policy":
            raise ConfigError(
                "encoder = \"policy\": a run's channels do not hold the model; use 'hashing', 'wordllama' or 'minilm'"
            )
        if config.retrieval in ("kernel", "parametric") and config.encoder == "none":
            raise ConfigError(
                f'retrieval = "{config.retrieval}" learns by situation and needs vectors: set encoder = "minilm" '
                '(or "hashing", which needs no package)'
            )

    @cached_property
    def encoder(self) -> Encoder | None:
        return None if self.config.encoder == "none" else build_encoder(self.config.encoder)

    @cached_property
    def retriever(self) -> Retriever[Any]:
        return self._retriever("greedy")

    @cached_property
    def explorer(self) -> Retriever[Any]:
        """The same values, drawn from by a softmax."""
        return self._retriever("softmax")

    def _retriever(self, rule: str) -> Retriever[Any]:
        if self.config.retrieval in ("topk", "random") or self.encoder is None:
            return build_retriever(self.config.retrieval)
        from twoclock.memory.retrieval import Selection

        return build_retriever(
            self.config.retrieval,
            encoder=self.encoder.id,
            dimension=self.encoder.dimension,
            selection=Selection(rule=rule, temperature=self.config.temperature or 1.0),
        )

    # -------------------------------------------------------------------------------------------------------- finding

    def hits(self, bank: Bank, item: Item, scope: Scope, may: Callable[[Entry], bool]) -> list[Hit]:
        """What the search finds that the item may be shown, best first; for the random control, all there is."""
        now = max((entry.created for entry in bank.entries), default=0.0)
        if self.config.retrieval == "random":
            return [
                Hit(entry=entry, score=0.0)
                for entry in bank.entries
                if scope.may_read(entry.scope) and entry.live(now) and may(entry)
            ]
        found = bank.search(item.prompt, scope=scope, k=2 * self.config.candidates, now=now, encoder=self.encoder)
        return [hit for hit in found if may(hit.entry)][: self.config.candidates]

    def find(
        self,
        bank: Bank,
        learned: bytes,
        item: Item,
        scope: Scope,
        may: Callable[[Entry], bool],
        explore: int | None = None,
    ) -> list[Entry]:
        """Up to ``k`` entries, best first. ``explore`` is a seed to draw them by their values instead of taking the
        best, for retrievers that have values."""
        hits = self.hits(bank, item, scope, may)
        if not hits:
            return []
        retriever = self.retriever if explore is None else self.explorer
        state = retriever.load(learned) if learned else retriever.init(0)
        query, vectors = None, None
        if self.config.retrieval in ("kernel", "parametric"):
            query, vectors = self._encode([item.prompt])[0], self._encode([_both(hit.entry) for hit in hits])
        seed = child_seed("choose", 0 if explore is None else explore, item.id, bank.id)
        return list(retriever.choose(state, query, hits, self.config.k, seed, vectors=vectors).entries)

    def learn(self, learned: bytes, bank: Bank, evidence: Evidence) -> bytes:
        """The retriever's state after a round: one outcome for each set of entries that a group was shown."""
        if self.config.retrieval not in ("kernel", "parametric"):
            return b""
        outcomes = [one for group in evidence.groups for one in self._outcomes(bank, evidence, group)]
        if not outcomes:
            return learned
        state = self.retriever.load(learned) if learned else self.retriever.init(0)
        return self.retriever.dump(self.retriever.learn(state, outcomes))

    def _outcomes(self, bank: Bank, evidence: Evidence, group: Any) -> list[Outcome]:
        by_shown: dict[tuple[str, ...], list[float]] = {}
        for rollout in group.rollouts:
            shown = evidence.conditionings[rollout.conditioning_id].recalled
            by_shown.setdefault(tuple(sorted(name for name in shown if bank.get(name))), []).append(rollout.reward)
        query = self._encode([group.item.prompt])[0]
        found = []
        for names, rewards in by_shown.items():
            if names:
                entries = [entry for name in names if (entry := bank.get(name)) is not None]
                vectors = self._encode([_both(entry) for entry in entries])
                keys = self._encode([entry.key for entry in entries])
                hits = [
                    Hit(entry=e, score=0.0, similarity=float(np.dot(query, key)))
                    for e, key in zip(entries, keys, strict=True)
                ]
                candidates = candidates_of(hits, len(hits), vectors)
                found.append(Outcome(query=query, shown=candidates, reward=sum(rewards) / len(rewards)))
        return found

    def _encode(self, texts: Sequence[str]) -> Vectors:
        assert self.encoder is not None
        if missing := [text for text in dict.fromkeys(texts) if text not in self._vectors]:
            if len(self._vectors) + len(missing) > CACHED:
                self._vectors.clear()
                missing = list(dict.fromkeys(texts))
            self._vectors.update(zip(missing, self.encoder.encode(missing), strict=True))
        return np.stack([self._vectors[text] for text in texts])


def _both(entry: Entry) -> str:
    """Key and text: what tells a case from its near-duplicates is often the text alone."""
    return f"{entry.key}\n{entry.text}"
