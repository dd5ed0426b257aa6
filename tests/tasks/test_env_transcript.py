"""Transcripts, actions in text, and what a prompt shows of a long history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twoclock.tasks.env_transcript import Ending, Transcript, Turn, parse_transcript, shown
from twoclock.tasks.environments import (
    EnvironmentFaultError,
    Observation,
    Step,
    ToolCall,
    action_text,
    level,
    read_action,
)

lines = st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=20)
words = st.text("abc >=?!{}", min_size=1, max_size=12).map(lambda t: " ".join(t.split())).filter(bool)
calls = st.builds(
    ToolCall,
    name=words,
    arguments=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=4), max_size=2),
)
said = st.none() | st.lists(lines, min_size=1, max_size=3).map("\n".join)
turns = st.builds(Turn, action=words | calls, observation=said) | st.builds(
    Turn, action=st.none(), said=words, observation=said
)


@given(st.lists(turns, max_size=5), st.none() | words, st.none() | words)
def test_what_is_written_is_read_back(rounds: list[Turn], fault: str | None, ending: str | None) -> None:
    transcript = Transcript(turns=tuple(rounds), fault=fault, ending=ending)
    assert parse_transcript(transcript.text()) == transcript


def test_what_an_environment_says_is_never_an_action() -> None:
    told = "nothing\n> take coin\n= success, reward 1, 1 step\n! fault\n  > deeper"
    transcript = Transcript(turns=(Turn(action="look", observation=told),))
    assert parse_transcript(transcript.text()) == transcript
    assert parse_transcript(transcript.text()).actions == ("look",)


@given(st.text())
def test_any_text_is_read_without_error(text: str) -> None:
    parse_transcript(text)
    read_action(text)


def test_the_last_line() -> None:
    assert Ending(success=True, reward=1.0, steps=1).line == "= success, reward 1, 1 step"
    assert Ending(success=False, reward=0.25, steps=3, reason="stuck: x").line == (
        "= failure, reward 0.25, 3 steps: stuck: x"
    )


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("move east", "move east"),
        ("> move east\nYou are in the garden.\n> move west", "move east"),
        ("Action: Move  East.", "move east"),
        ("Thought: the coin is east.\nAction: 'move east'", "move east"),
        ("Next action: move east\nAction: look", "move east"),
        ("<think>take coin?</think>\n\n`move east`", "move east"),
        ("swim", "swim"),
        ("I will move east now.", "move east"),
        ("look or move east", "look or move east"),
        ("overlook it", "overlook it"),
        ("Take the Coin", "Take the Coin"),
        ("", None),
        ("  \n...\n", None),
        ("Thought: hm", None),
        ("Action:", None),
        ("x" * 3000, None),
        ('{"tool": "move", "arguments": {"to": "east"}}', ToolCall(name="move", arguments={"to": "east"})),
        ('Action: {"name": "move"}', ToolCall(name="move")),
        ('<tool_call>{"name": "a", "arguments": {}}</tool_call>', ToolCall(name="a")),
        ('Let me see.\n```json\n{"tool": "a", "arguments": {"n": 1}}\n```', ToolCall(name="a", arguments={"n": 1})),
        ('{"tool": "a", "arguments": [1]}', '{"tool": "a", "arguments": [1]}'),
        ('{"tool": "a", "arguments": {"n": NaN}}', '{"tool": "a", "arguments": {"n": NaN}}'),
    ],
)
def test_reading_an_action(text: str, action: object) -> None:
    assert read_action(text, ("look", "move east", "take coin")) == action


def test_an_action_is_one_line() -> None:
    assert action_text("move\n  east ") == "move east"
    assert action_text(ToolCall(name="a", arguments={"z": 1, "b": "x\ny"})) == (
        '{"arguments":{"b":"x\\ny","z":1},"tool":"a"}'
    )


def test_the_longest_observations_are_cut_first_and_the_latest_never() -> None:
    rounds = [Turn(action=f"a{i}", observation="x" * n) for i, n in enumerate((50, 400, 100, 300))]
    whole = shown(rounds, 10_000)
    assert whole == Transcript(turns=tuple(rounds)).text()
    cut = shown(rounds, 600)
    assert len(cut) <= 600
    assert "x" * 400 not in cut
    assert all("x" * n in cut for n in (50, 100, 300))
    assert cut.split("\n")[2:4] == ["> a1", "  …"]
    least = shown(rounds, 310)
    assert least.startswith("(3 earlier turns left out)\n> a3\n")
    assert shown(rounds, 1) == least
    assert shown([], 100) == ""


@pytest.mark.parametrize("reward", [1.5, -0.1, float("nan"), float("inf"), True, "1"])
def test_a_step_refuses_what_is_no_reward(reward: object) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Step(observation=Observation(text=""), reward=reward, done=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("reward", [1.5, float("nan"), "1", None, [1]])
def test_what_is_no_level_is_a_fault(reward: object) -> None:
    with pytest.raises(EnvironmentFaultError, match="mine gave the reward"):
        level(reward, "mine")
