"""The shape of right answers, read from a few of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twoclock.fast.prompts.frames import common_answers, shape_of
from twoclock.tasks.conventions import CONVENTIONS


@pytest.mark.parametrize(
    ("answers", "form", "noun"),
    [
        (["=> 12;", "=> 7;", "=> 3;"], "=> ...;", "one number"),
        (["[[12]]", "[[17]]"], "[[...]]", "one number"),
        (["120", "125"], "", "one number"),  # a common digit is no frame
        (["-3", "-5"], "", "one number"),  # nor is a common sign
        (["12.5", "13.5"], "", "one number"),  # nor a common decimal
        (["x = 3", "x = -3"], "x = ...", "one number"),
        (["$12", "$1,500"], "$...", "one number"),
        (["north", "north east"], "", "1 to 2 words"),  # something must be left in every answer
        (["SEVEN", "ONE"], "", "one word in capital letters"),
        (["(A)", "(B)"], "(...)", "one letter in capital letters"),
        (["[1, 2, 3]", "[4, 5]"], "[...]", "numbers separated by commas"),
        (["1 2 3", "3 4 5"], "", "numbers separated by spaces"),
        (["red, blue", "green, red"], "", "a list separated by commas"),
        (["3/4", "1/2"], "", "the answer"),
        (["Sum: 3 + 4\nAnswer: 7", "Sum: 1 + 2\nAnswer: 3"], "Sum: ...\nAnswer: ...", "2 lines"),
        (["1 2\n3 4", "2 3\n4 5"], "", "2 lines"),
        (["1\n2", "2\n3\n4"], "", "several lines"),
    ],
)
def test_shapes(answers: list[str], form: str, noun: str) -> None:
    shape = shape_of(answers)
    assert shape is not None
    assert (shape.form, shape.noun) == (form, noun)


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
@pytest.mark.parametrize("values", [("12", "7", "103"), ("-12", "7", "-103"), ("cat", "dog", "horse")])
def test_the_frame_of_every_convention_is_found(name: str, values: tuple[str, ...]) -> None:
    convention = CONVENTIONS[name]
    shape = shape_of([convention.wrap(v) for v in values])
    assert shape is not None
    framed = convention.pattern != "{answer}"
    assert shape.form == (convention.pattern.replace("{answer}", "...") if framed else "")
    if values[0] == "12" and convention.spelling == "as is":
        assert shape.noun == "one number"


def test_a_long_frame_is_content() -> None:
    long = "the quick brown fox jumps over the lazy dog and then it says "
    shape = shape_of([f"{long} 1", f"{long} 2"])
    assert shape is not None
    assert (shape.form, shape.prefix, shape.suffix) == ("", "", "")


def test_one_answer_alone_has_no_shape() -> None:
    assert shape_of([]) is None
    assert shape_of(["7", " 7 "]) is None
    assert shape_of(["", " "]) is None


def test_few_answers_that_come_again_and_again_are_labels() -> None:
    shape = shape_of(["yes", "no", "no", "yes", "yes"])
    assert shape is not None
    assert shape.labels == ("no", "yes")
    assert shape.answers == ("yes", "no")  # the more frequent first
    rare = shape_of(["yes", "no", "no", "yes", "perhaps"])
    assert rare is not None
    assert rare.labels == ()
    many = shape_of([str(n) for n in range(7)] * 3)
    assert many is not None
    assert many.labels == ()


def test_common_answers_stand_in_more_than_a_tenth_of_the_items() -> None:
    answers = ["yes"] * 20 + ["no"] * 3 + [str(n) for n in range(17)]
    assert common_answers(answers) == {"yes"}  # 3 of 40 is no more than a tenth
    assert common_answers(["a", "a", "b"]) == {"a"}
    assert common_answers([]) == frozenset()


@given(st.lists(st.text(max_size=12), max_size=8), st.sampled_from(["{}", "[[{}]]", "=> {};", "a: {}\n"]))
def test_a_frame_stands_around_every_answer(values: list[str], pattern: str) -> None:
    answers = [pattern.format(v) for v in values]
    shape = shape_of(answers)
    given_ = {a.strip() for a in answers} - {""}
    assert (shape is None) == (len(given_) < 2)
    if shape is not None:
        assert set(shape.answers) == given_
        for answer in shape.answers:
            assert answer.startswith(shape.prefix)
            assert answer.endswith(shape.suffix)
            assert len(answer) > len(shape.prefix) + len(shape.suffix)
