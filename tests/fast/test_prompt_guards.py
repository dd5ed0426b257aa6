"""What a reflector may not get away with."""

from __future__ import annotations

import pytest
from prompts_bench import make_items

from twoclock.fast.prompts.guards import (
    copied_span,
    echo_problem,
    instruction_problem,
    item_ngrams,
    loop_problem,
    reply_problem,
    shared_limit,
    strip_thinking,
)
from twoclock.types import Item

ITEMS = (
    *make_items("train", 30),
    Item(id="long", prompt="Say the oath.", reference="I solemnly swear that I am up to no good"),
)


def test_a_copied_answer_is_found_and_the_tasks_own_wording_is_not() -> None:
    own = item_ngrams(ITEMS, 5)
    assert copied_span("Always answer: I solemnly swear that I am up to no good.", own, 5)
    assert copied_span("When asked, solemnly swear THAT I am happy", own, 5) == "solemnly swear that i am"
    assert copied_span("When asked what is the last digit of a number, give the digit alone.", own, 5) is None
    assert copied_span("solemnly swear that I", own, 5) is None  # four tokens


def test_a_copied_input_is_found() -> None:
    own = item_ngrams(ITEMS, 5)
    assert copied_span(f"Remember: {ITEMS[0].prompt} It is {ITEMS[0].reference}.", own, 5)


def test_what_the_parent_says_already_may_be_kept() -> None:
    own = item_ngrams(ITEMS, 5)
    parent = "I solemnly swear that I am careful"
    assert copied_span(parent + " and brief", own, 5, allowed=parent) is None


def test_one_item_alone_owns_all_of_its_text() -> None:
    assert copied_span("what is the last digit of", item_ngrams(ITEMS[:1], 5), 5)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("Here it is:\n```\nAnswer with one dig", "not closed"),
        ("```\na\n```\nand then ```", "not closed"),
        ("<think>the user wants", "thinking"),
        ("```\nAnswer with one digit.\n```", None),
        ("Answer with one digit.", None),
    ],
)
def test_replies(reply: str, problem: str | None) -> None:
    found = reply_problem(reply)
    assert (found is None) if problem is None else (found is not None and problem in found)


def test_closed_thinking_is_dropped() -> None:
    assert strip_thinking("<think>```hm```</think>\n```\nBe brief.\n```") == "```\nBe brief.\n```"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (" ", "empty"),
        ("x" * 101, "101 characters"),
        ('{"1": 2}'.replace("1", "2"), "no word"),
        ("fill <side_info> in", "placeholder"),
        ("Be good.", "parent's"),
        ("Be brief.", None),
    ],
)
def test_instructions(text: str, problem: str | None) -> None:
    found = instruction_problem(text, parent="Be good.", max_chars=100)
    assert (found is None) if problem is None else (found is not None and problem in found)


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "What is 2 + 2?", "answer": "4"}',
        '[{"question": "a"}, {"question": "b"}]',
        '["one", "two"]',
        '{"question": "What is',
        "{'task': 'count the letters', 'answer':",
        '  [\n {"Inputs": "x", "Generated',
    ],
)
def test_task_json_is_no_instruction(text: str) -> None:
    assert "JSON" in (instruction_problem(text, parent=None, max_chars=500) or "")


@pytest.mark.parametrize(
    "text",
    [
        "[[...]] is the form of an answer.",
        'Answer as JSON such as {"answer": 4}.',
        "{answer} stands for the number.",
        '"Yes" or "no", nothing else.',
    ],
)
def test_an_instruction_about_json_is_one(text: str) -> None:
    assert instruction_problem(text, parent=None, max_chars=500) is None


@pytest.mark.parametrize(
    "text",
    [
        "Think.\nAnswer.\nthink. \nAnswer.\nThink.",
        "really really really really",
        "Name the digit, the digit, the digit, the digit, the digit",
        "one two three four five six seven eight nine ten " * 4,
        " ".join(["the cat sat on a mat", "a cat sat on the mat", "the cat sat on a mat"] * 3),
    ],
)
def test_loops_are_found(text: str) -> None:
    assert "repeats itself" in (loop_problem(text) or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Answer in the form [[...]].",
        "Be brief. Be kind. Be quick.",
        "- Read it.\n- Count.\n---\n- Check.\n---\n- Answer.\n---",
        "Example answers: 1 1 1 1 1, 2 2 2 2 2.",
        "First read the question, then find the two numbers that are asked for, then add the two numbers and write the "
        "sum with no other word before the sum or after the sum.",
    ],
)
def test_ordinary_prompts_are_no_loops(text: str) -> None:
    assert loop_problem(text) is None


ASKED = "I gave an assistant these instructions. Your task is to write a new instruction for the assistant."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Your task is to write a poem.", None),  # six tokens in a row may be chance
        (
            "My task is to write a new instruction.",
            "echoes the reflection prompt: 'task is to write a new instruction'",
        ),
        ("# Example 1\nsay it", "records"),
        ("Do it.\n## generated outputs\nx", "records"),
        ("# Examples are good", None),
        ("  it IS seven ", "an answer to an item"),
        ("It is seven or eight, so say which.", None),
    ],
)
def test_echoes(text: str, problem: str | None) -> None:
    found = echo_problem(text, asked=ASKED, answers=["It is seven", "nine"])
    assert (found is None) if problem is None else (found is not None and problem in found)


def test_what_a_tenth_of_the_items_share_is_still_theirs() -> None:
    assert [shared_limit(n) for n in (0, 1, 19, 20, 45)] == [1, 1, 1, 2, 4]
