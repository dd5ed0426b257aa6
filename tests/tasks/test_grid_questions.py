"""Power-network questions: answers by hand, N-1 and N+1, how answers are read, chance, and what must not matter."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from twoclock.measure import wilson
from twoclock.tasks.grid_levels import LEVELS, draw_latent
from twoclock.tasks.grid_questions import (
    QUESTIONS,
    GridLatent,
    answer,
    chance,
    changed,
    exact_flow,
    guess,
    is_right,
    n_minus_one,
    n_plus_one,
    outages,
    parse,
    stale_answer,
)
from twoclock.tasks.grid_wording import LABELS, TEMPLATES, relabelled, render, with_distractor

TRIANGLE = GridLatent(
    question="flow",
    network="ieee14",
    num_buses=3,
    lines=((0, 1, 10), (2, 0, 20), (1, 2, 30)),
    asked=(1, 0),
    outage=2,
    reserve=(2, 3, 5),
    labels=("4", "7", "2", "9"),
    loads=(0, 30, 60, 10),
)
"""Flows worked by hand in ``test_grid_networks``: 45 MW on 4-7, 45 on 4-2, 15 on 7-2."""

# Two triangles, 0-1-2 and 2-3-4, that share bus 2; bus 5 hangs on bus 4.
BOWTIE = replace(
    TRIANGLE,
    question="path",
    num_buses=6,
    lines=((0, 1, 1), (1, 2, 1), (0, 2, 1), (2, 3, 1), (3, 4, 1), (2, 4, 1), (4, 5, 1)),
    asked=(0, 5),
    outage=2,
    reserve=(0, 5, 1),
    labels=("1", "2", "3", "4", "5", "6", "7"),
    loads=(),
)


def latents(question: str, level: int, count: int, labels: str = "shuffled", seed: int = 0) -> list[GridLatent]:
    rng = Random(f"{question} {level} {labels} {seed}")
    drawn = (draw_latent(question, level, labels, rng) for _ in range(2 * count))
    found = [latent for latent in drawn if latent is not None][:count]
    assert len(found) == count
    return found


def every_level() -> list[tuple[str, int]]:
    return [(question, level) for question in QUESTIONS for level in range(1, len(LEVELS[question]) + 1)]


# ------------------------------------------------------------------------------------------------------------- by hand


def test_flow_by_hand() -> None:
    assert answer(TRIANGLE) == "45"
    assert exact_flow(n_minus_one(TRIANGLE)) == pytest.approx(30)
    assert answer(n_minus_one(TRIANGLE)) == "30"
    assert answer(n_minus_one(TRIANGLE, 1)) == "90"  # all of it over 4-7
    # A new bus 9 with 10 MW on bus 2: f = (5 * 30 + 2 * 70) / 6 = 48.33.
    assert exact_flow(n_plus_one(TRIANGLE)) == pytest.approx(290 / 6)
    assert answer(n_plus_one(TRIANGLE)) == "48"
    assert stale_answer(n_minus_one(TRIANGLE)) == "45"
    assert outages(TRIANGLE) == {1: True, 2: True}  # without the asked line itself
    into = replace(TRIANGLE, asked=(2,))
    assert answer(into) == "60"
    assert answer(n_minus_one(into)) == "60"  # still fed from the other side
    assert answer(n_minus_one(replace(into, lines=TRIANGLE.lines[1:], outage=0))) == "0"  # cut off with bus 7


def test_path_by_hand() -> None:
    assert answer(BOWTIE) == "1-3-5-6"
    assert answer(n_minus_one(BOWTIE)) == "1-2-3-5-6"
    assert changed(n_minus_one(BOWTIE))
    assert not changed(n_minus_one(BOWTIE, 0))
    assert answer(n_plus_one(BOWTIE)) == "1-6"
    assert outages(BOWTIE) == {0: False, 1: False, 2: True, 3: False, 4: False, 5: True}  # 5-6 has no way round
    ring = replace(BOWTIE, num_buses=4, lines=((0, 1, 1), (1, 2, 1), (2, 3, 1), (3, 0, 1)), asked=(0, 2))
    assert is_right(ring, "1-2-3")
    assert is_right(ring, "1-4-3")
    assert not is_right(ring, "3-2-1")
    assert not is_right(ring, "1-3")
    assert not is_right(ring, "1-2-3-4")


def test_connectivity_by_hand() -> None:
    latent = replace(BOWTIE, question="connectivity", asked=(5,), outage=6)
    assert answer(latent) == "6"
    assert answer(n_minus_one(latent)) == "1"
    assert answer(n_minus_one(latent, 0)) == "6"
    assert outages(latent) == {0: False, 1: False, 2: False, 3: False, 4: False, 5: False, 6: True}
    apart = replace(latent, lines=latent.lines[:3], reserve=(2, 3, 1), asked=(0,), outage=0)
    assert (answer(apart), answer(n_plus_one(apart))) == ("3", "4")


def test_a_flow_is_right_within_half_a_megawatt() -> None:
    latent = n_plus_one(TRIANGLE)  # 48.33
    right = {text for text in ("47", "48", "49", "48.33", "47.9", "48.9", "-48", "0") if is_right(latent, text)}
    assert right == {"48", "48.33", "47.9", "-48"}


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("1-3-5-6", "1-3-5-6"),
        ("The shortest path from bus 1 to bus 6 is 1-3-5-6.", "1-3-5-6"),
        ("1-3-5-6 is the way from 1 to 6", "1-3-5-6"),
        ("1 -> 3 -> 5 -> 6", "1-3-5-6"),
        ("1→3→5→6", "1-3-5-6"),
        ("bus 1, bus 3, bus 5, then bus 6", "1-3-5-6"),
        ("[1, 3, 5, 6]", "1-3-5-6"),
        ("1 3 5 6", "1-3-5-6"),
        ("1-3, 3-5, 5-6", "1-3-5-6"),
        ("First I tried 1-2-3. Better: 1-3-5-6", "1-3-5-6"),
        ("1-33-6", "1-33-6"),
        ("6", None),
        ("", None),
        ("over bus 3", None),
        ("one-two", None),
    ],
)
def test_how_a_route_is_read(text: str, read: str | None) -> None:
    assert parse(BOWTIE, text) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("45", "45"),
        ("45 MW", "45"),
        ("The flow on line 4-7 is 45 MW.", "45"),
        ("45 MW flow on line 4-7", "45"),
        ("60 - 15 = 45", "45"),
        ("**45.0**", "45.0"),
        ("Bus 7 gets 45 MW from bus 4", "45"),
        ("Buses 4, 7 and 2: 3", "3"),
        ("Number of buses: 3", "3"),
        ("three", "3"),
        ("-45", "-45"),
        ("1,024", "1024"),
        ("bus 4", None),
        ("4-7", None),
        ("", None),
        ("none", None),
    ],
)
def test_how_a_number_is_read(text: str, read: str | None) -> None:
    assert parse(TRIANGLE, text) == read


@pytest.mark.parametrize("question", QUESTIONS)
def test_letters_are_read_too(question: str) -> None:
    for latent in latents(question, 2, 20, "letters"):
        gold = answer(latent)
        assert parse(latent, f"The answer is {gold}.") == gold
        assert is_right(latent, gold)


# ------------------------------------------------------------------------------------------------- levels and chance


@pytest.mark.parametrize(("question", "level"), every_level())
def test_chance_and_balance_of_a_level(question: str, level: int) -> None:
    drawn = latents(question, level, 400)
    made = LEVELS[question][level - 1]
    assert sum(map(chance, drawn)) / len(drawn) == pytest.approx(made.chance, rel=0.12)
    assert {latent.num_buses for latent in drawn} == {made.buses}
    # A random guesser scores chance, on N and on N-1.
    rng = Random(f"guess {question} {level}")
    for case in (drawn, [n_minus_one(latent) for latent in drawn]):
        tried = [latent for latent in case for _ in range(5)]
        right = sum(is_right(latent, parse(latent, guess(latent, rng)) or "") for latent in tried)
        interval = wilson(right, len(tried), 0.99)
        assert interval.low <= sum(map(chance, tried)) / len(tried) <= interval.high
    # Half of the N-1 cases change the answer, and the rest does not.
    interval = wilson(sum(changed(n_minus_one(latent)) for latent in drawn), len(drawn), 0.99)
    assert interval.low <= 0.5 <= interval.high
    # No constant N answer pays (a constant route is right for hardly anyone).
    commonest = Counter(map(answer, drawn)).most_common(1)[0][1] / len(drawn)
    assert commonest <= {"path": 0.05, "connectivity": made.chance + 0.1, "flow": 0.2}[question]


@pytest.mark.parametrize(("question", "level"), [("path", 2), ("connectivity", 2), ("flow", 1), ("flow", 2)])
def test_answers_are_drawn_evenly(question: str, level: int) -> None:
    drawn = latents(question, level, 600)
    sizes = Counter(answer(latent).count("-") if question == "path" else int(answer(latent)) for latent in drawn)
    targets = LEVELS[question][level - 1].targets
    assert set(sizes) <= set(targets)
    assert max(sizes.values()) <= 1.6 * len(drawn) / len(targets)


@pytest.mark.parametrize(("question", "level"), every_level())
def test_every_outage_leaves_a_question_with_an_answer(question: str, level: int) -> None:
    for latent in latents(question, level, 20):
        case = n_minus_one(latent)
        assert len(case.active) == len(latent.lines) - 1
        assert latent.outage in outages(latent)
        assert is_right(case, answer(case))
        assert is_right(case, stale_answer(case)) != changed(case)
        more = n_plus_one(latent)
        assert len(more.active) == len(latent.lines) + 1
        assert is_right(more, answer(more))
        if question == "flow" and len(latent.asked) == 2:
            assert set(latent.asked) in [set(line[:2]) for line in case.active]


# ------------------------------------------------------------------------------------------- what must not matter


@pytest.mark.parametrize(("question", "level"), every_level())
def test_names_order_distractors_and_json_leave_the_answer(question: str, level: int) -> None:
    rng = Random(5)
    for base in latents(question, level, 8):
        for latent in (base, n_minus_one(base), n_plus_one(base)):
            plain = json.loads(json.dumps(latent.to_json()))
            assert GridLatent.from_json(plain) == latent
            noted = with_distractor(latent, rng)
            assert noted.note
            assert answer(noted) == answer(latent)
            assert noted.note in render(noted, 0)
            other = relabelled(latent, rng)
            names = dict(zip(latent.labels, other.labels, strict=True))
            if question == "path":
                moved = "-".join(names[bus] for bus in answer(latent).split("-"))
                assert is_right(other, moved)
            else:
                assert answer(other) == answer(latent)


def test_the_key_sees_through_order_and_direction() -> None:
    turned = replace(TRIANGLE, lines=((2, 1, 30), (1, 0, 10), (0, 2, 20)), asked=(0, 1), outage=0)
    assert turned.key == TRIANGLE.key
    assert replace(TRIANGLE, outage=0, case="n-1").key == TRIANGLE.key
    for other in (
        replace(TRIANGLE, loads=(0, 31, 60, 10)),
        replace(TRIANGLE, asked=(0, 2)),
        replace(TRIANGLE, lines=((0, 1, 11), *TRIANGLE.lines[1:])),
        replace(TRIANGLE, labels=("7", "4", "2", "9")),
    ):
        assert other.key != TRIANGLE.key


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_template_words_the_same_latent(question: str) -> None:
    for level in (1, 2, 4):
        latent = latents(question, level, 1)[0]
        count = len(TEMPLATES[question])
        for stated in (False, True):
            for case in ("n", "n-1", "n+1"):
                texts = {render(replace(latent, case=case), template, stated=stated) for template in range(count)}
                assert len(texts) == count == 6
                assert not any("{" in text or "  " in text for text in texts)


def test_shown_and_stated() -> None:
    case = n_minus_one(BOWTIE)
    assert "1-3" not in render(case, 0)
    assert "1-3, 3-4" in render(case, 0, stated=True)
    assert "Line 1-3 is out of service." in render(case, 0, stated=True)
    assert "All these lines are in service." in render(BOWTIE, 2, stated=True)
    added = render(n_plus_one(TRIANGLE), 0, stated=True)
    assert "Line 2-9 has been added with bus 9, which has a load of 10 MW." in added
    assert "bus 9: 10" not in added
    assert "bus 9: 10" in render(n_plus_one(TRIANGLE), 0)


def test_labels() -> None:
    for kind in LABELS:
        for latent in latents("flow", 5, 5, kind):
            assert len(set(latent.labels)) == 15
            assert all(label.isdigit() != (kind == "letters") for label in latent.labels)
    own = latents("flow", 5, 1, "own")[0]
    assert own.labels[-1] == "15"
    assert own.labels[0] == "1"
    with pytest.raises(ValueError, match="does not know its own numbers"):
        relabelled(own, Random(0), "own")
