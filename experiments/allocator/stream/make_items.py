"""The stream's items: which number stands among some words, where two do, and nothing in the question says which.

    python experiments/allocator/stream/make_items.py

What lasts: to find a number among words, and to answer with it alone. What flips between the phases: whether the first
or the second of the two is wanted. The two tasks have the same questions; a prompt with a few examples can show which
day it is, and weights that have learned one day's answer are wrong on the next.
"""

from __future__ import annotations

import json
from pathlib import Path

from twoclock.seeding import child_rng

HERE = Path(__file__).parent
WORDS = [
    "nest", "copper", "window", "bottle", "glove", "button", "drum", "river", "ladder", "candle", "basket", "pepper",
    "mirror", "saddle", "anchor", "blanket", "carrot", "engine", "feather", "garden", "hammer", "island", "jacket",
    "kettle", "lemon", "market", "needle", "orange", "pencil", "rabbit", "ticket", "velvet",
]  # fmt: skip
COUNT = 800


def main() -> None:
    rows: dict[str, list[str]] = {"first": [], "last": []}
    seen: set[str] = set()
    number = 0
    while len(seen) < COUNT:
        rng = child_rng("allocator-stream", 0, number)
        number += 1
        low, high = rng.sample(range(10, 100), 2)
        words = rng.sample(WORDS, rng.randint(2, 4))
        places = sorted(rng.sample(range(len(words) + 2), 2))
        parts = list(words)
        for place, value in zip(places, (low, high), strict=True):
            parts.insert(place, str(value))
        prompt = f"Which number stands among these words: {', '.join(parts)}?"
        if prompt in seen:
            continue
        seen.add(prompt)
        rows["first"].append(json.dumps({"prompt": prompt, "answer": str(low)}))
        rows["last"].append(json.dumps({"prompt": prompt, "answer": str(high)}))
    for name, lines in rows.items():
        (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
