"""mem0 at the work of ``memory_store.py``, in a process of its own: adds one by one, then searches; prints JSON.

    python benchmarks/memory_peer.py ENTRIES QUERIES FOLDER

Runs without network: nothing is inferred (``infer=False``), vectors are those of the workload, the store is Qdrant's
local one, which is what mem0 uses where nothing else is set up. It is asked as its documentation says.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from typing import Any


def memory_in(folder: str) -> Any:
    """A mem0 memory with the workload's vectors."""
    # Read when the package is imported; the key is never sent anywhere, as nothing is inferred or embedded by it.
    os.environ |= {"MEM0_TELEMETRY": "False", "OPENAI_API_KEY": "none", "MEM0_DIR": folder}
    from mem0 import Memory
    from memory_workload import DIMENSION, DrawnEncoder

    class Looked:
        """What mem0 asks of an embedder."""

        class config:  # noqa: N801
            embedding_dims = DIMENSION

        encoder = DrawnEncoder()

        def embed(self, text: str, memory_action: str | None = None) -> list[float]:
            return self.encoder.encode([text])[0].tolist()

        def embed_batch(self, texts: list[str], *_: Any, **__: Any) -> list[list[float]]:
            return self.encoder.encode(texts).tolist()

    place = {"path": f"{folder}/qdrant", "on_disk": True, "embedding_model_dims": DIMENSION, "collection_name": "bench"}
    memory = Memory.from_config(
        {"vector_store": {"provider": "qdrant", "config": place}, "history_db_path": f"{folder}/history.db"}
    )
    memory.embedding_model = Looked()
    return memory


def main() -> None:
    from memory_workload import Texts

    entries, queries, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    made = Texts()
    keys, asked = made.some(entries, 8, 20), made.queries(queries)
    memory = memory_in(folder)
    adds, searches, found = [], [], 0
    for key in keys:
        start = time.perf_counter()
        memory.add(key, user_id="user", infer=False)
        adds.append(time.perf_counter() - start)
    for query in asked:
        start = time.perf_counter()
        found += len(memory.search(query, filters={"user_id": "user"}, top_k=10, threshold=0.0)["results"])
        searches.append(time.perf_counter() - start)
    versions = {name: importlib.metadata.version(name) for name in ("mem0ai", "qdrant-client")}
    print(json.dumps({"add_s": adds, "search_s": searches, "found": found, **versions}), flush=True)
    # Its vector store's clean-up fails once the interpreter is going down; everything is told by now.
    os._exit(0)


if __name__ == "__main__":
    main()
