"""How the families of letters and words grow, shrink and are told otherwise; see ``parametric``."""

from __future__ import annotations

from random import Random

from twoclock.tasks.library import WORDS, Latent, Params
from twoclock.tasks.parametric_shape import TRIES, Decoy, Parametric, Removal, without

__all__ = ["COUNT_LETTER", "LETTER_POSITION", "LOOKUP", "PICK_WORD", "REVERSE_WORD"]


def _other_word(word: str, rng: Random) -> str:
    return rng.choice(('(The word "{}" is from another exercise.)', '(The file is called "{}".)')).format(word)


def _letters(p: Params, rng: Random, length: int) -> str:
    return "".join(rng.choice(p["alphabet"]) for _ in range(length))


def _remove_counted(latent: Latent, p: Params, rng: Random) -> Removal | None:
    word, letter = latent["word"], latent["letter"]
    if word.count(letter) <= p["min_count"]:  # the answer would be one that no training problem had
        return None
    index = rng.choice([i for i, c in enumerate(word) if c == letter])
    return Removal({**latent, "word": word[:index] + word[index + 1 :]}, index)


def _add_counted(latent: Latent, p: Params, rng: Random) -> Latent | None:
    if latent["word"].count(latent["letter"]) >= p["max_count"]:
        return None
    return {**latent, "word": latent["word"] + latent["letter"]}


def _count_decoy(latent: Latent, p: Params, rng: Random) -> Decoy:
    letter = latent["letter"]
    others = p["alphabet"].replace(letter, "")
    letters = [letter, *(rng.choice((letter, rng.choice(others))) for _ in range(3))]
    rng.shuffle(letters)
    word = "".join(letters)
    return Decoy(_other_word(word, rng), str((latent["word"] + word).count(letter)))


COUNT_LETTER = Parametric(
    element="letter",
    low="min_length",
    high="max_length",
    least=2,
    size=lambda latent: len(latent["word"]),
    remove=_remove_counted,
    add=_add_counted,
    decoy=_count_decoy,
    wordings=(
        'How often is "{letter}" written when one writes "{word}"?',
        'Look through "{word}" and tally every "{letter}".',
        'Tally of "{letter}" within "{word}":',
    ),
)


def _remove_before_letter(latent: Latent, p: Params, rng: Random) -> Removal | None:
    word, place = latent["word"], latent["position"] - 1
    telling = [i for i in range(place + 1) if place < len(word) - 1 and word[place + 1] != word[place]]
    if not telling:
        return None
    index = rng.choice(telling)
    return Removal({**latent, "word": word[:index] + word[index + 1 :]}, index)


def _add_before_letter(latent: Latent, p: Params, rng: Random) -> Latent | None:
    word, place = latent["word"], latent["position"] - 1
    for _ in range(TRIES):
        index = rng.randint(0, place)
        grown = word[:index] + rng.choice(p["alphabet"]) + word[index:]
        if grown[place] != word[place]:
            return {**latent, "word": grown}
    return None


def _position_decoy(latent: Latent, p: Params, rng: Random) -> Decoy | None:
    place = latent["position"] - 1
    for _ in range(TRIES):
        word = _letters(p, rng, len(latent["word"]))
        if word[place] != latent["word"][place]:
            return Decoy(_other_word(word, rng), word[place])
    return None


LETTER_POSITION = Parametric(
    element="letter",
    low="min_length",
    high="max_length",
    least=2,
    size=lambda latent: len(latent["word"]),
    remove=_remove_before_letter,
    add=_add_before_letter,
    decoy=_position_decoy,
    wordings=(
        'Counting from the left, letter {position} in "{word}" is',
        'Somebody spells out "{word}". Which letter do they say {ordinal}?',
        'The {ordinal} character that "{word}" is made of:',
    ),
)


def _remove_letter(latent: Latent, p: Params, rng: Random) -> Removal:
    index = rng.randrange(len(latent["word"]))
    return Removal({"word": latent["word"][:index] + latent["word"][index + 1 :]}, index)


def _reverse_decoy(latent: Latent, p: Params, rng: Random) -> Decoy | None:
    word = _letters(p, rng, len(latent["word"]))
    return Decoy(_other_word(word, rng), word[::-1]) if word != latent["word"] else None


REVERSE_WORD = Parametric(
    element="letter",
    low="min_length",
    high="max_length",
    least=2,
    size=lambda latent: len(latent["word"]),
    remove=_remove_letter,
    add=lambda latent, p, rng: {"word": latent["word"] + rng.choice(p["alphabet"])},
    decoy=_reverse_decoy,
    wordings=(
        'Turn "{word}" around, end to start.',
        'How does "{word}" read from right to left?',
        '"{word}" in a mirror, letter by letter:',
    ),
)

# --------------------------------------------------------------------------------------------------------------- words


def _new_word(latent: Latent, rng: Random) -> str:
    return rng.choice([word for word in WORDS if word not in latent["words"]])


def _remove_before_word(latent: Latent, p: Params, rng: Random) -> Removal | None:
    if latent["position"] >= len(latent["words"]):
        return None
    index = rng.randrange(latent["position"])
    return Removal({**latent, "words": without(latent["words"], index)}, index)


def _add_before_word(latent: Latent, p: Params, rng: Random) -> Latent:
    words, index = latent["words"], rng.randrange(latent["position"])
    return {**latent, "words": [*words[:index], _new_word(latent, rng), *words[index:]]}


def _pick_decoy(latent: Latent, p: Params, rng: Random) -> Decoy:
    word = _new_word(latent, rng)
    return Decoy(_other_word(word, rng), ([word, *latent["words"]])[latent["position"] - 1])


PICK_WORD = Parametric(
    element="word",
    low="min_words",
    high="max_words",
    least=2,
    size=lambda latent: len(latent["words"]),
    remove=_remove_before_word,
    add=_add_before_word,
    decoy=_pick_decoy,
    wordings=(
        "Somebody reads out {words}. Say word {position}.",
        "Going through {words} from the left, the {ordinal} is",
        "Of the words {words}, name the one that stands {ordinal}.",
    ),
)


def _remove_entry(latent: Latent, p: Params, rng: Random) -> Removal:
    # The entry that was asked for goes, and another is asked for: a missing entry nobody asks for changes nothing.
    index = latent["asked"]
    words, values = without(latent["words"], index), without(latent["values"], index)
    return Removal({"words": words, "values": values, "asked": rng.randrange(len(words))}, index)


def _add_entry(latent: Latent, p: Params, rng: Random) -> Latent | None:
    free = set(range(10 ** p["digits"])) - set(latent["values"]) if p["digits"] < 4 else None
    if free is not None and not free:
        return None
    value = rng.choice(sorted(free)) if free is not None else rng.randrange(10 ** p["digits"])
    if value in latent["values"]:
        return None
    words, values = list(latent["words"]), list(latent["values"])
    index = rng.randint(0, len(words))
    words.insert(index, _new_word(latent, rng))
    values.insert(index, value)
    return {"words": words, "values": values, "asked": index}


def _lookup_decoy(latent: Latent, p: Params, rng: Random) -> Decoy | None:
    right = latent["values"][latent["asked"]]
    for _ in range(TRIES):
        value = rng.randrange(10 ** p["digits"])
        if value != right:
            return Decoy(f"(In another table, {latent['words'][latent['asked']]} = {value}.)", str(value))
    return None


LOOKUP = Parametric(
    element="entry",
    low="min_words",
    high="max_words",
    least=2,
    size=lambda latent: len(latent["words"]),
    remove=_remove_entry,
    add=_add_entry,
    decoy=_lookup_decoy,
    wordings=(
        "A note reads: {pairs}. Read off {word}.",
        "Somebody wants to know {word}, and has this: {pairs}.",
        "From {pairs} one sees that {word} equals",
    ),
    values=lambda latent: list(latent["values"]),
    can_leave_out=False,
)
