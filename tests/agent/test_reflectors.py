"""Who writes lessons, what they are asked, and which texts are refused."""

from __future__ import annotations

from typing import Any

import pytest

from twoclock.agent.evaluators import count_tokens
from twoclock.agent.reflectors import (
    Failure,
    OracleWriter,
    PolicyWriter,
    PromptedWriter,
    TemplatedWriter,
    reflection_problem,
    reflection_prompt,
)
from twoclock.models.scripted import ScriptedPolicy
from twoclock.types import Item

ITEM = Item(id="i", prompt="How many rooms are there?", reference="42")
HOUSE = (
    "> go north\n  You are in the pantry. It is cold.\n> go north\n  There is no way north.\n> go north\n"
    "  There is no way north.\n? hm\n  That is no action.\n= failure, reward 0, 4 steps: out of steps"
)


def failure(text: str = "41", **changes: Any) -> Failure:
    return Failure(**({"item": ITEM, "trial": 2, "text": text, "feedback": "It is wrong."} | changes))


LESSON = "I counted the corridors too. Next time I count only rooms with a door, one floor after the other."


def test_the_question_holds_what_it_must_and_no_more() -> None:
    prompt = reflection_prompt(failure(earlier=("I was\nhasty.",)))
    for part in (ITEM.prompt, "<attempt>\n41\n</attempt>", "Outcome: failed. It is wrong.", "- I was hasty."):
        assert part in prompt
    assert prompt.count("Lesson:") == 3, "two worked examples, and the place of the answer"
    assert "42" not in prompt
    assert "Outcome: 0.25. It is wrong." in reflection_prompt(failure(reward=0.25))
    assert len(reflection_prompt(failure("x" * 100_000))) < 10_000


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("no", "empty"),
        ("!!! ... ???", "empty"),
        ("x " * 3000, "long"),
        ("<think>I should have counted", "unfinished"),
        (f"[memory 0123abcd] Notes\n> {LESSON}\n[end of memory 0123abcd]", "frame"),
        ("41", "empty"),
        ("The answer is 42.", "answer"),
        ("I erred. The right answer should be: 42, not 41", "answer"),
        ("> go north\n  You are there.", "answer"),
        ("```python\ndef f(x):\n    return x\n```", "answer"),
        ("def f(x):\n    return x", "answer"),
        ("I counted the corridors too. Next time I count only rooms with a door.", "copy"),
    ],
)
def test_what_is_no_lesson(text: str, kind: str) -> None:
    found = reflection_problem(text, failure(earlier=(LESSON,)))
    assert found is not None
    assert found[0] == kind


@pytest.mark.parametrize(
    "text",
    [
        LESSON,
        "I answered 41 in a hurry; I must look into all 42 corners of the house.",
        "The answer is wrong because I forgot the attic. Next time I start at the top.",
        "Next time:\n> go slowly\nand look at everything twice.",
        "Ich habe den Keller vergessen und muss dort anfangen.",
    ],
)
def test_what_is_a_lesson(text: str) -> None:
    assert reflection_problem(text, failure()) is None


def test_the_attempt_again_is_no_lesson_and_neither_is_what_was_shown() -> None:
    said = "I think that there are fortyone rooms."
    assert reflection_problem(said, failure(said.upper())) == ("answer", "the reflection is the attempt again")
    problem = reflection_problem(LESSON, failure(), shown=(LESSON.upper(),))
    assert problem is not None
    assert problem[0] == "copy"


def test_an_oracles_answer_is_let_through_but_not_twice() -> None:
    text = "What works, step by step:\ndef f(x):\n    return 42"
    assert reflection_problem(text, failure(), gives_answers=True) is None
    assert reflection_problem(text, failure(earlier=(text,)), gives_answers=True) is not None
    (written,) = OracleWriter(lambda item: ["one", "two"]).write([failure()], 0)
    assert written.text == "What works, step by step:\none\ntwo"
    assert OracleWriter(lambda item: None).write([failure()], 0)[0].text == ""


def test_the_template_says_what_was_done_where() -> None:
    (written,) = TemplatedWriter().write([failure(HOUSE)], 0)
    assert written.text == (
        "Attempt 2 failed: failure, reward 0, 4 steps: out of steps.\n"
        "At the beginning I did 'go north'.\n"
        "At \"You are in the pantry.\" I did 'go north'.\n"
        "At \"There is no way north.\" I did 'go north', 'no action'."
    )
    (answered,) = TemplatedWriter().write([failure()], 0)
    assert answered.text == "Attempt 2 failed: It is wrong. I must not give the same answer again."


def test_a_callable_is_counted_by_itself_where_it_counts() -> None:
    class Counts:
        prompt_tokens = 0
        completion_tokens = 0

        def __call__(self, prompt: str) -> str:
            self.prompt_tokens += 100
            self.completion_tokens += 7
            return LESSON

    first, second = PromptedWriter(Counts()).write([failure(), failure()], 0)
    assert (first.tokens, second.tokens) == (107, 107)
    (plain,) = PromptedWriter(lambda prompt: LESSON).write([failure()], 0)
    assert plain.tokens == count_tokens(reflection_prompt(failure())) + count_tokens(LESSON)


def test_a_callable_that_raises_or_gives_no_text() -> None:
    def ask(prompt: str) -> str:
        raise ValueError("nothing to say")

    (written,) = PromptedWriter(ask).write([failure()], 0)
    assert written.error == "ValueError: nothing to say"
    none: Any = lambda prompt: None  # noqa: E731
    (written,) = PromptedWriter(none).write([failure()], 0)
    assert written.error == "the reflector returned None; expected text"


def test_a_policy_reflects_on_all_failures_in_one_call_and_anew_when_asked_again() -> None:
    policy = ScriptedPolicy(lambda prompt, conditioning, seed: f"lesson {seed}", context_tokens=8000)
    writer = PolicyWriter(policy)
    first = writer.write([failure(seed=1), failure(seed=2)], 0)
    again = writer.write([failure(seed=1)], 1)
    assert policy.calls == 2
    assert len({w.text for w in [*first, *again]}) == 3
    assert writer.write([failure(seed=1)], 0)[0] == first[0]
    assert all(conditioning.is_identity for _, conditioning, _ in policy.asked)
    assert writer.write([], 0) == []


def test_a_policy_that_fails_is_an_error_of_that_lesson() -> None:
    def script(prompt: str, conditioning: Any, seed: int) -> str:
        raise RuntimeError("no")

    (written,) = PolicyWriter(ScriptedPolicy(script)).write([failure()], 0)
    assert written.error == "RuntimeError: no"
