"""chat with shifts: what is said of them, and which tokens of an answer they moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from twoclock.cli.chat import Talk, shift_lines
from twoclock.models.scripted import ScriptedPolicy
from twoclock.types import Conditioning, Delta, Sampling, Shift, TokenShift

SHIFT = Shift(expert=Delta("d", "lora", "b", None), anti=None, alpha=0.5, name="terse")


def record(text: str, before: float, after: float, *, instead: str = "the", changed: bool = False) -> TokenShift:
    return TokenShift(
        token=1, text=text, before=math.log(before), after=math.log(after), instead=instead, changed=changed
    )


@dataclass
class Shifted(ScriptedPolicy):
    """A script that says that its second token was shifted."""

    asked_about: list[Any] = field(default_factory=list)

    def __init__(self) -> None:
        super().__init__(lambda *_: "one two")
        self.asked_about = []

    def token_shifts(self, prompt: str, conditioning: Conditioning, tokens: Sequence[int]) -> tuple[TokenShift, ...]:
        self.asked_about.append((prompt, conditioning, tokens))
        return (record("one", 0.5, 0.5), record("two", 0.02, 0.85, changed=True))


def talk_with(policy: Any, told: Conditioning) -> Talk:
    channel = SimpleNamespace(name="proxy", timescale="fast", condition=lambda state, task: told)
    parts = SimpleNamespace(channels={"proxy": channel}, tasks={"sums": None})
    session: Any = SimpleNamespace(policy=policy, parts=parts)
    return Talk(session, {"proxy": None}, "sums", Sampling(), 0)


def test_shifts_are_said_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    policy = Shifted()
    talk = talk_with(policy, Conditioning(shifts=(SHIFT,)))
    assert "shifted by terse × 0.5" in talk.standing()
    for line in ("/why", "hello", "/why", "/show"):
        assert talk.hear(line)
    said = capsys.readouterr().err
    assert "there is no answer yet" in said
    assert "1 of 2 tokens were moved by 0.1 nats or more; 1 would have been others" in said
    assert "'two'" in said
    assert "0.020 → 0.850 (+3.7), instead of 'the'" in said
    assert "shift: terse × 0.5" in said
    assert policy.asked_about == [("hello", Conditioning(shifts=(SHIFT,)), tuple(b"one two"))]


def test_what_nobody_shifted_or_can_explain(capsys: pytest.CaptureFixture[str]) -> None:
    plain = talk_with(Shifted(), Conditioning(system="x"))
    plain.hear("hello")
    plain.hear("/why")
    assert "nothing shifted that answer" in capsys.readouterr().err
    mute = talk_with(ScriptedPolicy(lambda *_: "hi"), Conditioning(shifts=(SHIFT,)))
    mute.hear("hello")
    mute.hear("/why")
    assert "cannot say what shifted its answers" in capsys.readouterr().err


def test_the_largest_moves_are_kept_in_the_order_of_the_answer() -> None:
    found = [record(f"t{n}", 0.5, 0.5 * math.exp(-0.2 * n)) for n in range(1, 31)]
    lines = shift_lines(found, most=3)
    assert lines[0].startswith("30 of 30 tokens")
    assert [line.split()[1] for line in lines[1:4]] == ["'t28'", "'t29'", "'t30'"]
    assert "27 that moved less" in lines[4]
    assert shift_lines([]) == ["0 of 0 tokens were moved by 0.1 nats or more; 0 would have been others"]


def test_control_characters_in_a_token_do_not_reach_the_terminal() -> None:
    (_, line) = shift_lines([record("a\x1b[2Jb", 0.1, 0.9)])
    assert "\x1b" not in line


def test_unknown_probability_is_told() -> None:
    one = TokenShift(token=1, text="a", before=-1.0, after=-1.0, instead="a", changed=False, uncovered=0.25)
    assert "up to 25.0% of the probability lay on tokens that an expert does not know" in shift_lines([one])[-1]
