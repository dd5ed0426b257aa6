"""What a reflector may not get away with."""

from __future__ import annotations

import pytest
from prompts_bench import make_items

from twoclock.fast.prompts.guards import copied_span, instruction_problem, item_ngrams, reply_problem, strip_thinking
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
