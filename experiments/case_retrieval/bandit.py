"""The planted world: a bank of which half misleads, situations, and a reader whose success follows what it is shown.

Topics are random directions. Each has useful cases and as many misleading twins: a twin's key lies as near to the topic
as a useful one's, so that no similarity tells them apart. In the world ``marked`` the *content* of misleading cases
leans a little towards one direction, as wrong lessons share a manner; in ``unmarked`` nothing tells them apart but how
episodes end. A situation is its topic with noise, new every time.

The reader succeeds with probability mean_c u(c) over the cases that it is shown: .85 for a useful case of the topic,
.15 for a misleading one, .35 for a case of another topic, as with none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from twoclock.memory.records import Entry, Hit
from twoclock.seeding import child_seed

USEFUL, MISLEADING, OTHER = 0.85, 0.15, 0.35
FOUND = 16


def generator(name: str, seed: int, *index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(child_seed(name, seed, *index)))


def normalised(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class World:
    seed: int
    marked: bool
    num_topics: int = 20
    pairs: int = 4
    """Useful cases a topic, and twins of theirs."""
    dimension: int = 64
    topics: np.ndarray = field(init=False)
    keys: np.ndarray = field(init=False)
    contents: np.ndarray = field(init=False)
    topic: np.ndarray = field(init=False)
    useful: np.ndarray = field(init=False)
    entries: tuple[Entry, ...] = field(init=False)

    def __post_init__(self) -> None:
        rng = generator("bank", self.seed)
        topics = normalised(rng.normal(size=(self.num_topics, self.dimension)))
        count = 2 * self.pairs
        topic = np.repeat(np.arange(self.num_topics), count)
        useful = np.tile(np.arange(count) % 2 == 0, self.num_topics)
        keys = normalised(topics[topic] + 0.05 * rng.normal(size=(len(topic), self.dimension)))
        manner = normalised(rng.normal(size=self.dimension))
        lean = np.where(useful, -0.5, 0.5)[:, None] * manner if self.marked else 0.0
        contents = normalised(keys + lean + 0.05 * rng.normal(size=keys.shape))
        entries = tuple(
            Entry(kind="case", key=f"topic {t}", text=f"case {n} of topic {t}") for n, t in enumerate(topic)
        )
        for name, value in {
            "topics": topics,
            "keys": keys,
            "contents": contents,
            "topic": topic,
            "useful": useful,
            "entries": entries,
        }.items():
            object.__setattr__(self, name, value)

    def situation(self, index: int, split: str) -> tuple[int, np.ndarray]:
        """(topic, query vector) of an episode; splits share nothing but the topics."""
        rng = generator(f"situation {split}", self.seed, index)
        topic = int(rng.integers(self.num_topics))
        return topic, normalised(self.topics[topic] + 0.05 * rng.normal(size=self.dimension))

    def search(self, query: np.ndarray) -> tuple[np.ndarray, list[Hit]]:
        """The nearest 16 of the bank by the cosine of the keys: their places, and as hits."""
        similarity = self.keys @ query
        places = np.lexsort((np.arange(len(similarity)), -similarity))[:FOUND]
        hits = [Hit(entry=self.entries[p], score=float(similarity[p]), similarity=float(similarity[p])) for p in places]
        return places, hits

    def worth(self, place: int, topic: int) -> float:
        if self.topic[place] != topic:
            return OTHER
        return USEFUL if self.useful[place] else MISLEADING

    def success(self, shown: Sequence[int], topic: int) -> float:
        """The probability that the reader succeeds with these cases."""
        return float(np.mean([self.worth(p, topic) for p in shown])) if len(shown) else OTHER

    def oracle(self, places: Sequence[int], topic: int, k: int) -> list[int]:
        """The best ``k`` of those found; fewer than k are never shown, as no retriever may show fewer."""
        return sorted(places, key=lambda p: -self.worth(p, topic))[:k]
