"""Writes the experiment's items: which dock serves a depot. Run once; the files are committed.

    python experiments/case_memory/make_items.py

Forty-eight depots come in pairs that share a name ("Kestrel North", "Kestrel South"), each with a dock of its own from
1 to 6, drawn by name. Nothing in a question says the dock: it can only be guessed (one in six), and then remembered.
``docks.jsonl`` asks in six short wordings, ``docks_reworded.jsonl`` in three others, which are never learned from,
``docks_loud.jsonl`` in six long ones.
"""

from __future__ import annotations

import json
from pathlib import Path

from twoclock.seeding import child_seed

HERE = Path(__file__).parent
NAMES = (
    "Kestrel", "Heron", "Osprey", "Linnet", "Plover", "Merlin", "Curlew", "Dunlin", "Siskin", "Wagtail", "Bittern",
    "Gannet", "Harrier", "Lapwing", "Martin", "Nuthatch", "Pipit", "Redwing", "Sandling", "Tern", "Whimbrel", "Avocet",
    "Brambling", "Chough",
)  # fmt: skip
SIDES = ("North", "South")
DOCKS = 6
WORDINGS = (
    "{depot}: which dock?",
    "Dock for {depot}?",
    "{depot}, dock number?",
    "The dock of {depot}?",
    "{depot} loads at dock?",
    "Which dock, {depot}?",
)
REWORDED = (
    "A truck for {depot} is here. Its dock?",
    "Where does {depot} load? Give the dock.",
    "{depot} has been given a dock. Which one?",
)
LOUD = (
    "Which dock serves depot {depot}?",
    "Goods for depot {depot} leave from which dock?",
    "At which dock does the truck for depot {depot} load?",
    "Depot {depot}: what is its dock number?",
    "A parcel goes to depot {depot}. Which dock?",
    "Name the dock of depot {depot}.",
)
"""Wordings that say much more than the depot's name: what lies nearest is another depot in the same words."""


def dock(depot: str) -> int:
    """The dock of a depot, 1 to 6."""
    return 1 + child_seed("dock", depot) % DOCKS


def write(path: Path, wordings: tuple[str, ...]) -> None:
    depots = [f"{name} {side}" for name in NAMES for side in SIDES]
    rows = [
        {"prompt": wording.format(depot=depot), "answer": str(dock(depot)), "depot": depot}
        for depot in depots
        for wording in wordings
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write(HERE / "docks.jsonl", WORDINGS)
    write(HERE / "docks_reworded.jsonl", REWORDED)
    write(HERE / "docks_loud.jsonl", LOUD)
