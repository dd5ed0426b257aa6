"""Tests that a model writes, and what believing them costs."""

from __future__ import annotations

import pytest

from twoclock.agent.code_tasks import SelfTestEvaluator, SelfTests, read_tests
from twoclock.agent.reflectors import ScriptedWriter
from twoclock.agent.trial_table import verdicts
from twoclock.agent.trials import TrialSettings, run_trials
from twoclock.errors import ConfigError
from twoclock.models.scripted import ScriptedPolicy
from twoclock.tasks.code_task import CodeTask
from twoclock.types import Conditioning, Item, Sampling

TASK = CodeTask()
ITEM = next(i for s in ("train", "trial", "heldout") for i in TASK.split(s) if i.metadata["name"] == "leap_year")  # type: ignore[arg-type]
HALF = "def leap_year(year):\n    return year % 4 == 0"


def test_reading_tests() -> None:
    reply = (
        "Sure:\n```python\nassert leap_year(2024)\nassert leap_year(2024)\nassert not leap_year(1900)\nassert 1 == 1\n"
        "print(leap_year(3))\nassert leap_year(\n```"
    )
    assert read_tests(reply, "leap_year") == ["assert leap_year(2024)", "assert not leap_year(1900)"]
    assert read_tests("assert leap_year(4)\n# and\nassert leap_year(8) == True", "leap_year") == [
        "assert leap_year(4)",
        "assert leap_year(8) == True",
    ]
    many = "\n".join(f"assert leap_year({n})" for n in range(20))
    assert len(read_tests(many, "leap_year")) == 6
    wrapped = "```python\ndef test():\n    assert leap_year(400)\n```"
    assert read_tests(wrapped, "leap_year") == ["assert leap_year(400)"]
    for nothing in ("", "I cannot.", "assert leap_year", "(" * 1000, "\x00"):
        assert read_tests(nothing, "leap_year") == []


def test_tests_are_asked_for_once_an_item() -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "assert leap_year(2024)"

    tests = SelfTests(ask)
    assert tests.of(ITEM)[0] == ["assert leap_year(2024)"]
    assert tests.of(ITEM) == (["assert leap_year(2024)"], 0, 0)
    assert len(asked) == 1
    assert not any(test in asked[0] for test in ITEM.metadata["tests"])


def run(tests: str, trials: int = 3) -> tuple[dict[str, int | float | None], list[str]]:
    """A programmer who gets it right once it has read the lesson."""
    told: list[str] = []

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        told.extend(conditioning.notes)
        return ITEM.reference or "" if conditioning.notes else HALF

    lesson = ScriptedWriter(lambda failure: f"After attempt {failure.trial} I know: {failure.feedback}")
    result = run_trials(
        ScriptedPolicy(script),
        TASK,
        [ITEM],
        TrialSettings(trials=trials, sampling=Sampling(max_new_tokens=4000)),
        writer=lesson,
        evaluator=SelfTestEvaluator(SelfTests(lambda prompt: tests)),
    )
    return verdicts(result.table), [*told, *result.table.solved, *result.table.notes]


def test_good_tests_lead_to_a_second_trial_that_passes() -> None:
    judged, said = run("assert not leap_year(1900)")
    assert (judged["true_fail"], judged["true_pass"], judged["false_pass"]) == (1, 1, 0)
    assert "1 of 1 own tests fail: not leap_year(1900) does not hold" in said[0]
    assert "01-" in said


def test_a_weak_test_ends_it_with_a_wrong_program() -> None:
    judged, said = run("assert leap_year(2024)")
    assert (judged["false_pass"], judged["ended_wrong"]) == (1, 1)
    assert "0--" in said


def test_a_mistaken_test_never_lets_a_right_program_pass() -> None:
    judged, said = run("assert leap_year(1900)")
    assert judged["false_pass"] == 1, "the half-right program passes it"
    judged, said = run("assert leap_year(1901)")
    assert judged["false_fail"] == 2
    assert "011" in said


def test_no_test_is_no_pass() -> None:
    judged, said = run("I am not able to.")
    assert judged["true_pass"] == judged["false_pass"] == 0
    assert any("gave no verdict on 3 of 3 attempts" in text for text in said)


def test_the_reflector_is_told_nothing_of_the_hidden_tests() -> None:
    _, said = run("assert not leap_year(1900)")
    assert "6 tests" not in said[0]
    assert "2100" not in said[0]


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="most must be"):
        SelfTests(lambda prompt: "", most=0)
    with pytest.raises(ConfigError, match="has no signature"):
        SelfTests(lambda prompt: "").of(Item(id="x", prompt="y"))
