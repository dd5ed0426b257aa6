"""Which expert a question is for, by asking: the prompt, and what an answer to it names.

The same prompt is what a classifier expert is trained on: :func:`classifier_rows` makes the items of that task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from twoclock.seeding import child_rng

__all__ = ["OTHER", "asked", "classifier_rows", "named", "winner"]

OTHER = "other"
"""What a question is that is for no expert; it is answered by the base."""


def asked(question: str, kinds: Mapping[str, str]) -> str:
    """The prompt about one question; ``kinds`` maps each expert's name to what it is for."""
    listing = "\n".join(f"- {name}: {about}" if about else f"- {name}" for name, about in sorted(kinds.items()))
    return (
        f"Which kind of question is this? The kinds are:\n{listing}\n- {OTHER}: none of these\n\n"
        f"The question:\n{question}\n\nAnswer with the kind's name alone."
    )


def named(answer: str, names: Sequence[str]) -> str | None:
    """The name that an answer begins with or first mentions, whatever its case; None where it mentions none."""
    found = []
    for name in [*names, OTHER]:
        place = re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", answer, re.IGNORECASE)
        if place:
            found.append((place.start(), -len(name), name))
    return min(found)[2] if found else None


def winner(votes: Sequence[str | None]) -> tuple[str | None, Counter[str]]:
    """The kind that most answers name, and the count of each; None where no kind but :data:`OTHER` was named, or none
    more often than every other. An answer that names nothing is counted with :data:`OTHER`."""
    counts = Counter(vote or OTHER for vote in votes)
    ranked = counts.most_common(2)
    if not ranked or ranked[0][0] == OTHER or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return None, counts
    return ranked[0][0], counts


def classifier_rows(
    questions: Mapping[str, Sequence[str]], kinds: Mapping[str, str], seed: int, *, others: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Items ``{"prompt", "answer"}`` of the task that a classifier expert is trained on, in an order drawn by seed:
    ``questions`` has those of each kind, from training splits; ``others`` are for no expert."""
    rows = [{"prompt": asked(q, kinds), "answer": kind} for kind, some in sorted(questions.items()) for q in some]
    rows += [{"prompt": asked(question, kinds), "answer": OTHER} for question in others]
    return child_rng("classifier-rows", seed).sample(rows, len(rows))
