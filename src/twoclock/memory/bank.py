"""A bank: entries and their measured effects as one immutable value, for a channel to hold as its state.

Every method that writes gives another bank; the old one stands, which is what makes a rollback exact. A bank is what it
says and nothing else: equal content has equal bytes and an equal id in every process. Search is that of the store
(:mod:`twoclock.memory.index`), over an index that is built when it is first asked.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from twoclock.errors import ConfigError, StoreError
from twoclock.hashing import canonical_json, content_hash
from twoclock.memory.encoders import Encoder
from twoclock.memory.entries import (
    effect_of,
    effect_to_json,
    entry_of,
    entry_to_json,
    merged,
    repeated,
    require_outcome,
    require_proper,
)
from twoclock.memory.index import Index, Vector
from twoclock.memory.nearest import encoded
from twoclock.memory.records import Effect, Entry, Hit, Kind, Scope
from twoclock.memory.words import counted

__all__ = ["Bank", "Policy"]

FORMAT = 1
LEVEL = 6
"""Compression of dumps: part of the bytes, so it is never left to a default."""

LARGEST_DUMP_BYTES = 1 << 30
"""What a dump may unpack to: bytes that claim more are no bank but an attack on the memory."""

Policy = Callable[[Sequence[Entry], Mapping[str, Effect], float], Iterable[str]]
"""What to forget: ``(entries, effects, now)`` to ids; a mapping of ids to reasons will do."""


@dataclass(frozen=True)
class Bank:
    """Entries in the order in which they were first added, and what showing them was measured to be worth."""

    entries: tuple[Entry, ...] = ()
    effects: Mapping[str, Effect] = field(default_factory=dict)
    """By entry id; an entry that nobody measured has none."""

    _vectors: dict[tuple[str, str], Vector] = field(default_factory=dict, repr=False, compare=False)
    """What encoders made of keys, by (encoder, entry): follows from the entries, and is handed on to later banks."""

    def __getstate__(self) -> dict[str, Any]:
        return {"entries": self.entries, "effects": self.effects, "_vectors": {}}

    def __hash__(self) -> int:
        return hash(self.id)

    # ------------------------------------------------------------------------------------------------------- reading

    @cached_property
    def id(self) -> str:
        """A hash of the content."""
        return content_hash(self._plain())[:16]

    @cached_property
    def _by_id(self) -> dict[str, Entry]:
        return {entry.id: entry for entry in self.entries}

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, entry_id: str) -> Entry | None:
        return self._by_id.get(entry_id)

    def effect(self, entry_id: str) -> Effect:
        """What was measured of an entry; the empty effect where nothing was."""
        return self.effects.get(entry_id, Effect())

    # ------------------------------------------------------------------------------------------------------- writing

    def refusal(self, entry: Entry) -> str | None:
        """Why an entry would not be taken up: it repeats what it was shown (``seen``). None where it would."""
        return _refusal(entry, self._by_id)

    def add(self, *entries: Entry) -> Bank:
        """With these entries. One that is there already gains the new one's provenance and keeps all else; one that
        merely repeats what it was shown is left out (:meth:`refusal` says why). Raises ConfigError for an improper
        entry; then none is added."""
        kept = dict(self._by_id)
        for entry in [require_proper(entry) for entry in entries]:
            if _refusal(entry, kept) is None:
                kept[entry.id] = merged(kept.get(entry.id, entry), entry)
        # A dictionary keeps the place of what is in it already, so the order is that of the first time.
        after = tuple(kept.values())
        return self if after == self.entries else Bank(after, self.effects, self._vectors)

    def retire(self, entry_ids: Iterable[str] | str) -> Bank:
        """Without these entries and their effects. Raises ConfigError for an id that is not there."""
        gone = {entry_ids} if isinstance(entry_ids, str) else set(entry_ids)
        for name in sorted(gone):
            self._require(name)
        if not gone:
            return self
        kept = {name: effect for name, effect in self.effects.items() if name not in gone}
        vectors = {key: vector for key, vector in self._vectors.items() if key[1] not in gone}
        return Bank(tuple(e for e in self.entries if e.id not in gone), kept, vectors)

    def credit(self, entry_id: str, value: float, *, shown: bool) -> Bank:
        """With one more outcome of a read that found the entry and showed it, or held it out. Raises ConfigError for
        an id that is not there, and for a value that is no finite number near [-1, 1]."""
        self._require(entry_id)
        effects = {**self.effects, entry_id: self.effect(entry_id).add(require_outcome(value), shown=shown)}
        return Bank(self.entries, effects, self._vectors)

    def enforce(self, policy: Policy, *, now: float) -> Bank:
        """Without what the policy would forget."""
        return self.retire(policy(self.entries, self.effects, now))

    def _require(self, entry_id: str) -> Entry:
        if (entry := self._by_id.get(entry_id)) is None:
            raise ConfigError(f"there is no entry {entry_id!r} among the {len(self.entries)} of this bank")
        return entry

    # ------------------------------------------------------------------------------------------------------ searching

    def search(
        self,
        query: str,
        *,
        scope: Scope | None = None,
        k: int = 5,
        kinds: Collection[Kind] | None = None,
        now: float,
        encoder: Encoder | None = None,
        candidates: int = 100,
    ) -> list[Hit]:
        """The ``k`` best entries that a reader of ``scope`` (None: of nobody's) may see at ``now``, best first; see
        :meth:`twoclock.memory.index.Index.search` for what is ranked, and for errors. ``now`` is on the clock of
        ``Entry.created``."""
        index = self._index(encoder)
        vector = None if encoder is None or not len(index) else encoded(encoder, [query])[0]
        found = index.search(
            query, scope=scope or Scope(), k=k, kinds=kinds, now=now, vector=vector, candidates=candidates
        )
        return [
            Hit(entry=self._by_id[one.id], score=one.score, similarity=one.similarity, lexical=one.lexical)
            for one in found
        ]

    @cached_property
    def _indexes(self) -> dict[str, Index]:
        return {}

    def _index(self, encoder: Encoder | None) -> Index:
        name = "" if encoder is None else encoder.id
        if name not in self._indexes:
            vectors = [] if encoder is None else self._encoded(encoder)
            index = Index(0 if encoder is None else encoder.dimension)
            index.reserve(len(self.entries))
            for n, entry in enumerate(self.entries):
                if entry.trust != "quarantined":
                    index.put(
                        entry.id,
                        counted(entry.key, entry.text),
                        kind=entry.kind,
                        scope=entry.scope,
                        expires=entry.expires,
                        vector=None if encoder is None else vectors[n],
                    )
            self._indexes[name] = index
        return self._indexes[name]

    def _encoded(self, encoder: Encoder) -> list[Vector]:
        missing = [entry for entry in self.entries if (encoder.id, entry.id) not in self._vectors]
        if missing:
            rows = encoded(encoder, [entry.key for entry in missing])
            self._vectors.update({(encoder.id, entry.id): row for entry, row in zip(missing, rows, strict=True)})
        return [self._vectors[encoder.id, entry.id] for entry in self.entries]

    # ---------------------------------------------------------------------------------------------------------- bytes

    def _plain(self) -> dict[str, Any]:
        effects = {name: effect_to_json(effect) for name, effect in self.effects.items()}
        return {"format": FORMAT, "entries": [entry_to_json(e) for e in self.entries], "effects": effects}

    def dump(self) -> bytes:
        """Canonical: equal banks give equal bytes, on one version of zlib; the id does not depend on it."""
        return zlib.compress(canonical_json(self._plain()).encode("utf-8"), LEVEL)

    @classmethod
    def load(cls, blob: bytes) -> Bank:
        """The inverse of :meth:`dump`. Raises StoreError for bytes that are no dump, or are cut off or changed."""
        try:
            unpack = zlib.decompressobj()
            text = unpack.decompress(blob, LARGEST_DUMP_BYTES)
            if not unpack.eof or unpack.unused_data:
                raise ValueError("it is cut off" if not unpack.eof else "something follows its end")
            return cls._of(json.loads(text))
        except (zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"these {len(blob)} bytes are no dump of a memory bank: {error}") from error

    @classmethod
    def _of(cls, data: Any) -> Bank:
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, this version reads {FORMAT}")
        entries = tuple(require_proper(entry_of(one)) for one in data["entries"])
        effects = {name: effect_of(one) for name, one in data["effects"].items()}
        known = [entry.id for entry in entries]
        if len(set(known)) < len(known) or not effects.keys() <= set(known):
            raise ValueError("its entries are not distinct, or effects belong to none of them")
        return cls(entries, effects)


def _refusal(entry: Entry, kept: Mapping[str, Entry]) -> str | None:
    return repeated(entry, (kept[name] for name in entry.seen if name in kept))
