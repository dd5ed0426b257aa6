"""How the own families grow, shrink and change their wording: what the out-of-distribution probe needs beside a family.

Each operator works on a latent, so a variant keeps all of its base problem but what it is about. *Removing* and
*adding* touch one element and change the answer wherever the problem allows it: then the answer of somebody who
overlooked the change (the base's answer, called *stale*) is wrong, and can be told from the right one. *Decoys* are
sentences about something else, so that no reading makes them matter; ``tempting`` is the answer of somebody who used
one all the same. The wordings here are reserved for probes: no task trains on them.
"""

from __future__ import annotations

from collections.abc import Mapping

from twoclock.tasks.library import ORDINALS
from twoclock.tasks.parametric_numbers import COMPARE, NEXT_NUMBER, SORT_DIGITS, sums
from twoclock.tasks.parametric_shape import Parametric, Removal
from twoclock.tasks.parametric_words import COUNT_LETTER, LETTER_POSITION, LOOKUP, PICK_WORD, REVERSE_WORD

__all__ = ["PARAMETRIC", "left_out"]

PARAMETRIC: Mapping[str, Parametric] = {
    "mod_sum": sums(
        "mod_sum",
        "Somebody adds up {numbers}. Tell the {goal} of what they get.",
        "The {goal} of the total {expression} is",
        "Put {numbers} together; report nothing but the {goal}.",
    ),
    "sum": sums(
        "sum",
        "Somebody adds up {numbers}. Tell what they get.",
        "The total {expression} comes to",
        "Put {numbers} together and report the total.",
    ),
    "compare": COMPARE,
    "next_number": NEXT_NUMBER,
    "sort_digits": SORT_DIGITS,
    "count_letter": COUNT_LETTER,
    "letter_position": LETTER_POSITION,
    "reverse_word": REVERSE_WORD,
    "pick_word": PICK_WORD,
    "lookup": LOOKUP,
}
"""By the family's name."""


def left_out(family: str, removal: Removal) -> str | None:
    """The rule "leave one element out", as a sentence; ``None`` where it cannot be stated."""
    shape = PARAMETRIC[family]
    if not shape.can_leave_out or removal.index >= len(ORDINALS):
        return None
    return f"Rule for this exercise: leave out the {ORDINALS[removal.index]} {shape.element}."
