"""How often each encoder finds a paraphrase, and how fast: the table of docs/memory-retrieval.md.

    python experiments/case_retrieval/encoders.py --json experiments/case_retrieval/results/encoders.json

``paraphrases.jsonl`` holds pairs (key, query) in our own words with few content words in common; a query is searched
among all keys, many of which come in families that differ in one thing. An encoder whose package or model is missing is
named and left out. ``--layers`` prints the local model's layers instead.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from twoclock.errors import MissingExtraError, ModelError
from twoclock.memory.encoders import Encoder, build_encoder

HERE = Path(__file__).parent


def pairs() -> list[tuple[str, str]]:
    lines = (HERE / "paraphrases.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["key"], row["query"]) for row in map(json.loads, lines)]


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927)."""
    z, p = 1.959964, hits / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def measure(encoder: Encoder) -> dict[str, Any]:
    rows = pairs()
    encoder.encode(["warm"])
    begun = time.process_time()
    keys, queries = encoder.encode([k for k, _ in rows]), encoder.encode([q for _, q in rows])
    seconds = time.process_time() - begun
    similarities = queries @ keys.T
    # A key that is as near as the right one counts against it: no tie is won by order.
    right = np.diag(similarities)
    ranks = (similarities >= right[:, None]).sum(axis=1)
    found = {k: int((ranks <= k).sum()) for k in (1, 4)}
    return {
        "encoder": encoder.id,
        "dimension": encoder.dimension,
        "pairs": len(rows),
        **{f"recall_at_{k}": round(n / len(rows), 4) for k, n in found.items()},
        **{f"recall_at_{k}_interval": [round(x, 3) for x in wilson(n, len(rows))] for k, n in found.items()},
        "texts_per_cpu_s": round(2 * len(rows) / seconds, 1),
    }


def policy_encoders(layers: bool) -> list[Encoder]:
    from twoclock.models.embedding import PolicyEncoder
    from twoclock.models.local import open_local

    policy = open_local("packaged", threads=1)
    if not layers:
        return [PolicyEncoder(policy), PolicyEncoder(policy, centre=())]
    depth = int(policy.model.config.num_hidden_layers)
    return [PolicyEncoder(policy, layer=i, centre=c) for i in range(0, depth + 1, 5) for c in (None, ())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    results = []
    for name in () if options.layers else ("hashing", "wordllama", "minilm"):
        try:
            results.append(measure(build_encoder(name)))
        except (MissingExtraError, ModelError) as problem:
            print(f"{name} left out: {problem}")
    try:
        for encoder in policy_encoders(options.layers):
            results.append(measure(encoder) | {"centred": encoder._offset.any().item()})  # type: ignore[attr-defined]
    except (ImportError, ModelError) as problem:
        print(f"policy left out: {problem}")
    for r in results:
        low, high = r["recall_at_1_interval"]
        print(
            f"{r['encoder']:34} D {r['dimension']:5}  R@1 {r['recall_at_1']:.2f} [{low:.2f}, {high:.2f}]  "
            f"R@4 {r['recall_at_4']:.2f}  {r['texts_per_cpu_s']:9.1f} texts/CPU s{', centred' * bool(r.get('centred'))}"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
