"""chat: what stands before a message, what the switches do, and what a pipe gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_bench import Model, well

from twoclock.models.scripted import ScriptedPolicy
from twoclock.store import RunStore
from twoclock.types import Conditioning


@pytest.fixture
def echo(model: Model) -> Model:
    """Answers with how many turns it was shown; remembers everything."""
    model.script = lambda prompt, told, seed: f"{len(told.exemplars)} turns before '{prompt}'"
    return model


def asked(model: Model) -> list[tuple[str, Conditioning, int]]:
    (policy,) = model.policies
    assert isinstance(policy, ScriptedPolicy)
    return policy.asked


def test_answers_go_to_standard_output_and_turns_are_kept(run: Path, echo: Model) -> None:
    done = well("chat", run, "--round", 0, text="one\n\n  two \nthree\n")
    assert done.stdout.splitlines() == ["0 turns before 'one'", "1 turns before 'two'", "2 turns before 'three'"]
    assert asked(echo)[2][1].exemplars == (("one", "0 turns before 'one'"), ("two", "1 turns before 'two'"))
    assert "talking: the base model, untouched" in done.stderr


def test_the_learned_prompt_stands_before_the_conversation(run: Path, echo: Model) -> None:
    done = well("chat", run, "--task", "double", text="one\n/base\ntwo\n/base\n/new\nthree\n/show\n")
    first, second, third = (told.exemplars for _, told, _ in asked(echo))
    assert len(first) == 2
    assert all(question.startswith("Double ") for question, _ in first)
    assert second == (("one", "2 turns before 'one'"),)  # the base model goes on with the same conversation
    assert third == first
    assert "talking: base weights, the prompt learned for double" in done.stderr
    assert "talking: the base model, untouched (task double)" in done.stderr
    assert f"user: {first[0][0]}\nassistant: {first[0][1]}" in done.stderr


def test_the_task_of_the_last_round_is_the_default_and_can_be_changed(run: Path, echo: Model) -> None:
    well("chat", run, text="x\n/new\n/task double\ny\n")
    (_, first, _), (_, second, _) = asked(echo)
    assert all(question.startswith("After ") for question, _ in first.exemplars)
    assert all(question.startswith("Double ") for question, _ in second.exemplars)


def test_a_switch_for_each_clock(run: Path, echo: Model) -> None:
    done = well("chat", run, text="/prompt\nx\n/prompt\n/weights\ny\n")
    (_, first, _), (_, second, _) = asked(echo)
    assert first.is_identity
    assert len(second.exemplars) >= 2
    assert done.stderr.count("talking:") == 4


def test_unknown_commands_and_tasks_name_the_nearest(run: Path, echo: Model) -> None:
    done = well("chat", run, text="/bse\n/task doubel\n/help\n/quit\nnever said\n")
    assert "unknown command '/bse'; did you mean '/base'" in done.stderr
    assert "unknown task 'doubel'; did you mean 'double'?" in done.stderr
    assert "forget this conversation" in done.stderr
    assert done.stdout == ""


def test_the_same_seed_is_the_same_talk(run: Path, echo: Model) -> None:
    for seed in (1, 1, 2):
        well("chat", run, "--seed", seed, text="one\ntwo\n")
    seeds = [[seed for _, _, seed in policy.asked] for policy in echo.policies]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 4


def test_a_long_answer_is_cut_and_a_failed_one_is_no_turn(run: Path, model: Model) -> None:
    def script(prompt: str, told: Conditioning, seed: int) -> str:
        if prompt == "bad":
            raise RuntimeError("no such thing")
        return "word " * 100

    model.script = script
    done = well("chat", run, "--round", 0, "--max-tokens", 9, text="bad\ngood\n")
    assert "no answer: RuntimeError: no such thing" in done.stderr
    assert "(cut after 9 tokens; --max-tokens allows more)" in done.stderr
    assert done.stdout == "word word\n"
    assert asked(model)[1][1].is_identity


def test_chat_writes_nothing(run: Path, echo: Model) -> None:
    with RunStore.open(run) as store:
        before = store.digest()
        well("chat", run, text="one\n")
        assert store.digest() == before


def test_what_a_model_writes_cannot_drive_the_terminal(run: Path, model: Model) -> None:
    model.script = lambda prompt, told, seed: "a\x1b]0;title\x07b"
    assert well("chat", run, text="x\n").stdout == "a\\x1b]0;title\\x07b\n"
