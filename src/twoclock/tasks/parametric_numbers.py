"""How the families of numbers grow, shrink and are told otherwise; see ``parametric``."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from twoclock.tasks.library import FAMILIES, Latent, Params
from twoclock.tasks.parametric_shape import TRIES, Decoy, Parametric, Removal, exercise, without

__all__ = ["COMPARE", "NEXT_NUMBER", "SORT_DIGITS", "sums"]


def _number_decoy(
    latent: Latent, answer: str, draw: Callable[[], int], use: Callable[[int], int], rng: Random
) -> Decoy | None:
    """A decoy number whose use changes the answer."""
    for _ in range(TRIES):
        number = abs(draw())
        if str(use(number)) != answer:
            return Decoy(exercise(number, rng), str(use(number)))
    return None


def _remove_term(latent: Latent, p: Params, rng: Random) -> Removal:
    # Any term, zeros too: leaving those out would shift the distribution of the values between the splits.
    index = rng.randrange(len(latent["numbers"]))
    return Removal({**latent, "numbers": without(latent["numbers"], index)}, index)


def _add_term(latent: Latent, p: Params, rng: Random) -> Latent:
    return {**latent, "numbers": [*latent["numbers"], rng.randint(p["min_value"], p["max_value"])]}


def _sum_decoy(family: str) -> Callable[[Latent, Params, Random], Decoy | None]:
    def decoy(latent: Latent, p: Params, rng: Random) -> Decoy | None:
        answer = FAMILIES[family].answer

        def use(number: int) -> int:
            return int(answer({**latent, "numbers": [*latent["numbers"], number]}))

        draws = iter([rng.randint(p["min_value"], p["max_value"]) for _ in range(TRIES // 2)])
        # Where the range holds nothing that changes the answer (only zeros, say), any small number will do.
        return _number_decoy(latent, answer(latent), lambda: next(draws, rng.randint(1, 99)), use, rng)

    return decoy


def sums(family: str, *wordings: str) -> Parametric:
    return Parametric(
        element="number",
        low="min_terms",
        high="max_terms",
        least=2,
        size=lambda latent: len(latent["numbers"]),
        remove=_remove_term,
        add=_add_term,
        decoy=_sum_decoy(family),
        wordings=wordings,
        values=lambda latent: list(latent["numbers"]),
    )


def _extreme(latent: Latent) -> int:
    return int((max if latent["want"] == "largest" else min)(latent["numbers"]))


def _remove_extreme(latent: Latent, p: Params, rng: Random) -> Removal:
    index = latent["numbers"].index(_extreme(latent))
    return Removal({**latent, "numbers": without(latent["numbers"], index)}, index)


def _beyond(latent: Latent, p: Params, rng: Random) -> int | None:
    """A number within the range that would be the answer; None where the answer is at the range's end."""
    edge = _extreme(latent)
    low, high = (edge + 1, p["max_value"]) if latent["want"] == "largest" else (p["min_value"], edge - 1)
    return rng.randint(low, high) if low <= high else None


def _add_extreme(latent: Latent, p: Params, rng: Random) -> Latent | None:
    number = _beyond(latent, p, rng)
    return None if number is None else {**latent, "numbers": [*latent["numbers"], number]}


def _compare_decoy(latent: Latent, p: Params, rng: Random) -> Decoy | None:
    number = _beyond(latent, p, rng)
    return None if number is None or number < 0 else Decoy(exercise(number, rng), str(number))


COMPARE = Parametric(
    element="number",
    low="count",
    high="count",
    least=2,
    size=lambda latent: len(latent["numbers"]),
    remove=_remove_extreme,
    add=_add_extreme,
    decoy=_compare_decoy,
    wordings=(
        "Out of {numbers}, name the {want}.",
        "{numbers}: the {want} of these is",
        "Somebody wrote down {numbers}. Say which one is {want}.",
    ),
    values=lambda latent: list(latent["numbers"]),
)


def _remove_last(latent: Latent, p: Params, rng: Random) -> Removal | None:
    if latent["step"] == 0:
        return None
    return Removal({**latent, "shown": latent["shown"] - 1}, latent["shown"] - 1)


def _add_last(latent: Latent, p: Params, rng: Random) -> Latent | None:
    return {**latent, "shown": latent["shown"] + 1} if latent["step"] else None


def _next_decoy(latent: Latent, p: Params, rng: Random) -> Decoy | None:
    answer = FAMILIES["next_number"].answer(latent)
    step = latent["step"]
    return _number_decoy(
        latent, answer, lambda: rng.randint(p["min_start"], p["max_start"]), lambda number: number + step, rng
    )


NEXT_NUMBER = Parametric(
    element="number",
    low="shown",
    high="shown",
    least=2,
    size=lambda latent: int(latent["shown"]),
    remove=_remove_last,
    add=_add_last,
    decoy=_next_decoy,
    wordings=(
        "After {numbers} comes",
        "Going on in the same way from {numbers}, say the following number.",
        "A row of numbers reads {numbers}. Add the one that follows.",
    ),
    values=lambda latent: [latent["start"] + i * latent["step"] for i in range(latent["shown"])],
)


def _remove_digit(latent: Latent, p: Params, rng: Random) -> Removal:
    index = rng.randrange(len(latent["digits"]))
    return Removal({"digits": without(latent["digits"], index)}, index)


def _digit_decoy(latent: Latent, p: Params, rng: Random) -> Decoy:
    digit = rng.randint(1, 9)
    return Decoy(exercise(digit, rng), "".join(map(str, sorted([*latent["digits"], digit]))))


SORT_DIGITS = Parametric(
    element="digit",
    low="min_digits",
    high="max_digits",
    least=2,
    size=lambda latent: len(latent["digits"]),
    remove=_remove_digit,
    add=lambda latent, p, rng: {"digits": [*latent["digits"], rng.randint(1, 9)]},
    decoy=_digit_decoy,
    wordings=(
        "Arrange what {number} is written with, from low to high.",
        "{number}, digits in rising order:",
        "Take the digits of {number} and line them up, least to greatest.",
    ),
    values=lambda latent: list(latent["digits"]),
)
