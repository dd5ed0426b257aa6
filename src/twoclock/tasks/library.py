"""The project's own problem families: small, with short answers, and with latent and wording apart.

A family draws a *latent* (plain JSON: the numbers, the word), words it by one of several templates and knows its answer
from the latent alone. So a probe may keep the skill and change the wording, or keep the wording and change the size.
Answers are spread so that a constant answer does not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from twoclock.errors import nearest

__all__ = ["FAMILIES", "ORDINALS", "WORDS", "Family", "Latent", "Params"]

Params = Mapping[str, Any]
Latent = dict[str, Any]

_NOUNS = """
apple bird boat bread bridge candle chair cloud corn desk door dust farm fish flag glass grass hand hill horse key lake
lamp leaf milk moon nest paper pencil plant rain ring river road roof rope salt sand seed ship shoe snow song spoon star
stone sun table tree wall water wheel wind window wolf wood
"""
WORDS = tuple(_NOUNS.split())
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. ``defaults`` name its parameters; ``check`` says what is wrong with a full set of them."""

    name: str
    description: str
    defaults: Params
    check: Callable[[Params], list[str]]
    draw: Callable[[Params, Random], Latent]
    fields: Callable[[Latent], Mapping[str, Any]]
    templates: tuple[str, ...]
    solve: Callable[[Latent], str]

    def problems(self, params: Params) -> list[str]:
        """What is wrong with these parameters (those not given take their defaults); empty when nothing is."""
        problems = []
        for key, value in params.items():
            if key not in self.defaults:
                close = nearest(key, self.defaults)
                hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
                problems.append(
                    f"family '{self.name}' has no parameter '{key}'; {hint}it has: {', '.join(self.defaults)}"
                )
            elif type(value) is not type(self.defaults[key]):
                expected = "a whole number" if isinstance(self.defaults[key], int) else "a text"
                problems.append(f"'{key}' must be {expected}, as {self.defaults[key]!r} is; got {value!r}")
        return problems or self.check(self.complete(params))

    def complete(self, params: Params) -> dict[str, Any]:
        return {**self.defaults, **params}

    def sample(self, params: Params, rng: Random) -> Latent:
        """A latent: all that the answer depends on."""
        return self.draw(self.complete(params), rng)

    def render(self, latent: Latent, template: int) -> str:
        """The prompt, in one of the ``templates``."""
        return self.templates[template].format(**self.fields(latent))

    def answer(self, latent: Latent) -> str:
        """The bare answer."""
        return self.solve(latent)


def _range(p: Params, low: str, high: str, least: int, most: int) -> list[str]:
    if least <= p[low] <= p[high] <= most:
        return []
    return [f"{least} <= {low} <= {high} <= {most} must hold; got {low} = {p[low]}, {high} = {p[high]}"]


def _listed(values: list[Any]) -> str:
    return ", ".join(str(v) for v in values)


# ---------------------------------------------------------------------------------------------------------- numbers


def _check_terms(p: Params) -> list[str]:
    problems = _range(p, "min_terms", "max_terms", 2, 100) + _range(p, "min_value", "max_value", -(10**9), 10**9)
    if not 0 <= p.get("modulus", 10) <= 10**9 or p.get("modulus", 10) == 1:
        problems.append(f"modulus must be at least 2; got {p['modulus']}")
    return problems


def _draw_terms(p: Params, rng: Random) -> Latent:
    count = rng.randint(p["min_terms"], p["max_terms"])
    numbers = [rng.randint(p["min_value"], p["max_value"]) for _ in range(count)]
    return {"numbers": numbers, "modulus": p.get("modulus", 0)}


def _term_fields(latent: Latent) -> Mapping[str, Any]:
    numbers = latent["numbers"]
    expression = str(numbers[0]) + "".join(f" + {n}" if n >= 0 else f" - {-n}" for n in numbers[1:])
    modulus = latent["modulus"]
    goal = "last digit" if modulus == 10 else f"remainder modulo {modulus}"
    return {"expression": expression, "numbers": _listed(numbers), "goal": goal}


def _solve_sum(latent: Latent) -> str:
    total = sum(latent["numbers"])
    return str(total % latent["modulus"] if latent["modulus"] else total)


_SUM = Family(
    name="sum",
    description="The sum of a few whole numbers.",
    defaults={"min_terms": 3, "max_terms": 3, "min_value": 0, "max_value": 9},
    check=_check_terms,
    draw=_draw_terms,
    fields=_term_fields,
    templates=(
        "What is {expression}?",
        "Add these numbers: {numbers}.",
        "Calculate {expression}.",
        "Numbers: {numbers}\nTheir sum:",
        "How much is {numbers} together?",
    ),
    solve=_solve_sum,
)

_MOD_SUM = Family(
    name="mod_sum",
    description="The last digit (or another remainder) of a sum of a few whole numbers.",
    defaults={"min_terms": 3, "max_terms": 3, "min_value": 0, "max_value": 9, "modulus": 10},
    check=lambda p: _check_terms(p) + (["modulus must be at least 2; got 0"] if p["modulus"] == 0 else []),
    draw=_draw_terms,
    fields=_term_fields,
    templates=(
        "What is the {goal} of {expression}?",
        "Add these numbers and give the {goal} of the sum: {numbers}.",
        "Calculate {expression}. Give only the {goal}.",
        "Numbers: {numbers}\nThe {goal} of their sum:",
        "Find the {goal} of the total of {numbers}.",
    ),
    solve=_solve_sum,
)


def _check_compare(p: Params) -> list[str]:
    problems = _range(p, "min_value", "max_value", -(10**9), 10**9)
    if not 2 <= p["count"] <= 100:
        problems.append(f"count must lie between 2 and 100; got {p['count']}")
    elif not problems and p["max_value"] - p["min_value"] + 1 < p["count"]:
        problems.append(
            f"{p['count']} different numbers do not fit between {p['min_value']} and {p['max_value']}; widen the range"
        )
    if p["want"] not in ("largest", "smallest", "either"):
        problems.append(f"want must be 'largest', 'smallest' or 'either'; got {p['want']!r}")
    return problems


def _draw_compare(p: Params, rng: Random) -> Latent:
    want = rng.choice(("largest", "smallest")) if p["want"] == "either" else p["want"]
    return {"numbers": rng.sample(range(p["min_value"], p["max_value"] + 1), p["count"]), "want": want}


_COMPARE = Family(
    name="compare",
    description="The largest or the smallest of a few different whole numbers.",
    defaults={"count": 2, "min_value": 0, "max_value": 999, "want": "largest"},
    check=_check_compare,
    draw=_draw_compare,
    fields=lambda latent: {"numbers": _listed(latent["numbers"]), "want": latent["want"]},
    templates=(
        "Which number is the {want}: {numbers}?",
        "Find the {want} of these numbers: {numbers}.",
        "Numbers: {numbers}\nThe {want} one:",
        "From the list {numbers}, pick the {want} number.",
        "Look at {numbers}. What is the {want} value?",
    ),
    solve=lambda latent: str((max if latent["want"] == "largest" else min)(latent["numbers"])),
)


def _check_next(p: Params) -> list[str]:
    problems = _range(p, "min_start", "max_start", -(10**9), 10**9) + _range(p, "min_step", "max_step", -(10**6), 10**6)
    if not 2 <= p["shown"] <= 20:
        problems.append(f"shown must lie between 2 and 20; got {p['shown']}")
    return problems


def _draw_next(p: Params, rng: Random) -> Latent:
    start, step = rng.randint(p["min_start"], p["max_start"]), rng.randint(p["min_step"], p["max_step"])
    return {"start": start, "step": step, "shown": p["shown"]}


_NEXT_NUMBER = Family(
    name="next_number",
    description="The next number of an arithmetic sequence.",
    defaults={"min_start": 0, "max_start": 50, "min_step": 1, "max_step": 9, "shown": 4},
    check=_check_next,
    draw=_draw_next,
    fields=lambda latent: {"numbers": _listed([latent["start"] + i * latent["step"] for i in range(latent["shown"])])},
    templates=(
        "What number comes next: {numbers}?",
        "Continue the sequence {numbers} with one number.",
        "Sequence: {numbers}\nNext:",
        "The numbers {numbers} follow a rule. Which number follows?",
    ),
    solve=lambda latent: str(latent["start"] + latent["shown"] * latent["step"]),
)


def _check_digits(p: Params) -> list[str]:
    return _range(p, "min_digits", "max_digits", 2, 50)


def _draw_digits(p: Params, rng: Random) -> Latent:
    return {"digits": [rng.randint(1, 9) for _ in range(rng.randint(p["min_digits"], p["max_digits"]))]}


_SORT_DIGITS = Family(
    name="sort_digits",
    description="A number's digits in ascending order.",
    defaults={"min_digits": 3, "max_digits": 5},
    check=_check_digits,
    draw=_draw_digits,
    fields=lambda latent: {"number": "".join(map(str, latent["digits"]))},
    templates=(
        "Sort the digits of {number} from smallest to largest.",
        "Write {number} with its digits in ascending order.",
        "Number: {number}\nIts digits sorted:",
        "Put the digits of {number} in order, smallest first.",
    ),
    solve=lambda latent: "".join(map(str, sorted(latent["digits"]))),
)

# ---------------------------------------------------------------------------------------------------------- letters


def _check_letters(p: Params) -> list[str]:
    problems = _range(p, "min_length", "max_length", 1, 100)
    alphabet = p["alphabet"]
    if len(set(alphabet)) != len(alphabet) or len(alphabet) < 2 or not alphabet.isalpha():
        problems.append(f"alphabet must be at least two different letters; got {alphabet!r}")
    if "min_count" in p:
        problems += _range(p, "min_count", "max_count", 0, 100)
        if p["max_count"] > p["min_length"]:
            problems.append(f"max_count = {p['max_count']} letters do not fit into min_length = {p['min_length']}")
    return problems


def _word(p: Params, rng: Random) -> str:
    return "".join(rng.choice(p["alphabet"]) for _ in range(rng.randint(p["min_length"], p["max_length"])))


def _draw_count(p: Params, rng: Random) -> Latent:
    letter = rng.choice(p["alphabet"])
    others = p["alphabet"].replace(letter, "")
    # The count is drawn first and evenly: in random words one count would be right most of the time.
    count, length = rng.randint(p["min_count"], p["max_count"]), rng.randint(p["min_length"], p["max_length"])
    letters = [letter] * count + [rng.choice(others) for _ in range(length - count)]
    rng.shuffle(letters)
    return {"word": "".join(letters), "letter": letter}


_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_COUNT_LETTER = Family(
    name="count_letter",
    description="How many times a letter stands in a string of letters.",
    defaults={"min_length": 6, "max_length": 8, "min_count": 1, "max_count": 5, "alphabet": _LETTERS},
    check=_check_letters,
    draw=_draw_count,
    fields=lambda latent: latent,
    templates=(
        'How many times does the letter "{letter}" appear in "{word}"?',
        'Count the letter "{letter}" in "{word}".',
        "Word: {word}\nLetter: {letter}\nCount:",
        'In "{word}", how many letters are "{letter}"?',
        'Give the number of "{letter}" in the string "{word}".',
    ),
    solve=lambda latent: str(latent["word"].count(latent["letter"])),
)


def _draw_position(p: Params, rng: Random) -> Latent:
    word = _word(p, rng)
    return {"word": word, "position": rng.randint(1, min(len(word), len(ORDINALS)))}


_LETTER_POSITION = Family(
    name="letter_position",
    description="The letter at a given place of a string of letters.",
    defaults={"min_length": 4, "max_length": 6, "alphabet": _LETTERS},
    check=_check_letters,
    draw=_draw_position,
    fields=lambda latent: {"word": latent["word"], "ordinal": ORDINALS[latent["position"] - 1], **latent},
    templates=(
        'What is the {ordinal} letter of "{word}"?',
        'Give letter number {position} of "{word}".',
        "Word: {word}\nPosition: {position}\nLetter:",
        'In "{word}", which letter is the {ordinal}?',
    ),
    solve=lambda latent: str(latent["word"][latent["position"] - 1]),
)

_REVERSE_WORD = Family(
    name="reverse_word",
    description="A string of letters spelled backward.",
    defaults={"min_length": 3, "max_length": 5, "alphabet": _LETTERS},
    check=_check_letters,
    draw=lambda p, rng: {"word": _word(p, rng)},
    fields=lambda latent: latent,
    templates=(
        'Spell "{word}" backward.',
        'Reverse the letters of "{word}".',
        "Word: {word}\nReversed:",
        'Write "{word}" from its last letter to its first.',
    ),
    solve=lambda latent: str(latent["word"][::-1]),
)

# ------------------------------------------------------------------------------------------------------------ words


def _check_words(p: Params) -> list[str]:
    return _range(p, "min_words", "max_words", 2, len(ORDINALS))


def _draw_pick(p: Params, rng: Random) -> Latent:
    words = rng.sample(WORDS, rng.randint(p["min_words"], p["max_words"]))
    return {"words": words, "position": rng.randint(1, len(words))}


_PICK_WORD = Family(
    name="pick_word",
    description="The word at a given place of a list.",
    defaults={"min_words": 3, "max_words": 5},
    check=_check_words,
    draw=_draw_pick,
    fields=lambda latent: {
        "words": _listed(latent["words"]),
        "ordinal": ORDINALS[latent["position"] - 1],
        "position": latent["position"],
    },
    templates=(
        "What is the {ordinal} word in this list: {words}?",
        "List: {words}\nWord number {position}:",
        "Pick the {ordinal} word from {words}.",
        "Here are some words: {words}. Which one is the {ordinal}?",
    ),
    solve=lambda latent: str(latent["words"][latent["position"] - 1]),
)


def _draw_lookup(p: Params, rng: Random) -> Latent:
    words = rng.sample(WORDS, rng.randint(p["min_words"], p["max_words"]))
    # Different values, so that no number but the right one can be right.
    values = rng.sample(range(10 ** p["digits"] if p["digits"] > 1 else 10), len(words))
    return {"words": words, "values": values, "asked": rng.randrange(len(words))}


_LOOKUP = Family(
    name="lookup",
    description="The number that stands beside a word in a small table.",
    defaults={"min_words": 3, "max_words": 5, "digits": 1},
    check=lambda p: _check_words(p) + ([] if 1 <= p["digits"] <= 9 else [f"digits: 1 to 9; got {p['digits']}"]),
    draw=_draw_lookup,
    fields=lambda latent: {
        "pairs": ", ".join(f"{w} = {v}" for w, v in zip(latent["words"], latent["values"], strict=True)),
        "word": latent["words"][latent["asked"]],
    },
    templates=(
        "{pairs}. What is {word}?",
        "Given {pairs}, find the number for {word}.",
        "Table: {pairs}\n{word} =",
        "Which number belongs to {word}? The table says {pairs}.",
    ),
    solve=lambda latent: str(latent["values"][latent["asked"]]),
)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _MOD_SUM,
        _SUM,
        _COMPARE,
        _NEXT_NUMBER,
        _SORT_DIGITS,
        _COUNT_LETTER,
        _LETTER_POSITION,
        _REVERSE_WORD,
        _PICK_WORD,
        _LOOKUP,
    )
}
"""By name; a new family is a row here."""
