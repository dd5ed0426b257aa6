"""The index of an open store: kept in step with its file by the events that came since, and its vectors beside it.

It is built when it is first asked and follows other processes' writes from then on; a search asks one number to know
that nothing has changed. Vectors stand in the file under their encoder's id, and those of two are never compared.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping

from twoclock.errors import StoreError
from twoclock.memory import tables
from twoclock.memory.encoders import Encoder
from twoclock.memory.index import Found, Index, Vector
from twoclock.memory.nearest import encoded
from twoclock.memory.records import Kind, Scope
from twoclock.memory.words import counted

__all__ = ["LiveIndex"]


class LiveIndex:
    """An :class:`Index` over a memory file. The store that owns it holds the lock and the transaction."""

    def __init__(self, encoder: Encoder | None) -> None:
        self._encoder = encoder
        self._index: Index | None = None
        self._seq = 0
        self._missing: dict[str, str] = {}

    def forget(self) -> None:
        """Read everything anew when it is next asked."""
        self._index, self._seq, self._missing = None, 0, {}

    # --------------------------------------------------------------------------------------------------------- vectors

    def encode(self, keys: Mapping[str, str]) -> dict[str, Vector]:
        """Vectors of keys, by entry; none without an encoder."""
        if self._encoder is None or not keys:
            return {}
        return dict(zip(keys, encoded(self._encoder, list(keys.values())), strict=True))

    def require_encoder(self, db: sqlite3.Connection) -> None:
        """Raises StoreError where the file's vectors are another encoder's."""
        told = tables.meta(db, "encoder")
        if self._encoder is None or told is None:
            return
        name, dimension = json.loads(told)
        if (name, dimension) != (self._encoder.id, self._encoder.dimension):
            raise StoreError(
                f"the keys of this memory were embedded with {name!r} ({dimension} dimensions), not with "
                f"{self._encoder.id!r} ({self._encoder.dimension}); vectors of two encoders cannot be compared: "
                "open it with the first one, or embed everything anew: MemoryStore.open(..., reembed=True)"
            )

    def keep(self, db: sqlite3.Connection, vectors: Mapping[str, Vector]) -> None:
        """Write vectors down, in the caller's transaction."""
        if self._encoder is not None and vectors:
            self.require_encoder(db)
            if tables.meta(db, "encoder") is None:
                self._tell(db, self._encoder)
            tables.add_vectors(db, self._encoder.id, vectors)

    def adopt(self, db: sqlite3.Connection) -> None:
        """Make this encoder the file's, and drop the vectors of another."""
        if self._encoder is not None:
            self._tell(db, self._encoder)
            tables.drop_other_vectors(db, self._encoder.id)

    def _tell(self, db: sqlite3.Connection, encoder: Encoder) -> None:
        tables.set_meta(db, "encoder", json.dumps([encoder.id, encoder.dimension]))

    # ------------------------------------------------------------------------------------------------------- searching

    def refresh(self, db: sqlite3.Connection) -> dict[str, str]:
        """Bring it up to date with the file as the caller's transaction sees it; the keys that have no vector yet, by
        entry: whoever added them had no encoder. Until :meth:`supply` they are found by words alone."""
        try:
            self._follow(db)
        except BufferError:
            # A search that was interrupted may still hold part of the index, which then cannot grow: make another.
            self.forget()
            self._follow(db)
        return dict(self._missing) if self._missing else {}

    def _follow(self, db: sqlite3.Connection) -> None:
        seq = tables.last_seq(db)
        if self._index is None or seq != self._seq:
            self.require_encoder(db)
            changed = None
            if self._index is None or self._index.wasteful:
                self._index = Index(0 if self._encoder is None else self._encoder.dimension)
                self._index.reserve(tables.count_live(db))
            else:
                changed = tables.changed_since(db, self._seq)
            # What fails on the way is read again: from the first event on, as nothing tells how far it came.
            self._seq = 0
            for entry_id in changed or ():
                self._index.drop(entry_id)
            for row in tables.search_rows(db, None if self._encoder is None else self._encoder.id, changed):
                self._put(self._index, row)
            self._seq = seq

    def supply(self, vectors: Mapping[str, Vector]) -> None:
        """The vectors of what :meth:`refresh` gave as missing."""
        for entry_id, vector in vectors.items():
            if self._index is not None and entry_id in self._index:
                self._index.set_vector(entry_id, vector)
            self._missing.pop(entry_id, None)

    def search(
        self,
        query: str,
        *,
        scope: Scope,
        k: int,
        kinds: Collection[Kind] | None,
        now: float,
        candidates: int,
    ) -> list[Found]:
        """As :meth:`Index.search`, over the file as it was at the last :meth:`refresh`."""
        index = self._index if self._index is not None else Index()
        vector = None
        if self._encoder is not None and len(index) and isinstance(query, str):
            vector = encoded(self._encoder, [query])[0]
        return index.search(query, scope=scope, k=k, kinds=kinds, now=now, vector=vector, candidates=candidates)

    def _put(self, index: Index, row: sqlite3.Row) -> None:
        self._missing.pop(row["id"], None)
        if row["trust"] == "quarantined":
            return
        vector = None
        if self._encoder is not None and row["vector"] is not None:
            vector = tables.vector_of(row["vector"], self._encoder.dimension, row["id"])
        elif self._encoder is not None:
            self._missing[row["id"]] = row["key"]
        names = ("agent", "user", "task", "session")
        index.put(
            row["id"],
            {} if index.knows(row["id"]) else counted(row["key"], row["text"]),
            kind=row["kind"],
            scope=Scope(**{name: row[f"scope_{name}"] for name in names}),
            expires=row["expires"],
            vector=vector,
        )
