"""The fakes keep a real policy's contract."""

from __future__ import annotations

import pytest

from twoclock.contracts import Trainable
from twoclock.errors import UnsupportedError
from twoclock.models.scripted import ScriptedPolicy, coin_policy, decode, encode
from twoclock.types import Conditioning, Delta, Request, Sampling

PLAIN = Conditioning()


def ask(prompt: str, *seeds: int, conditioning: Conditioning = PLAIN) -> Request:
    return Request(prompt=prompt, conditioning=conditioning, seeds=seeds)


def test_answers_in_order_with_byte_tokens() -> None:
    policy = ScriptedPolicy(lambda prompt, conditioning, seed: f"{prompt}{conditioning.system}{seed}")
    told = Conditioning(system="S", exemplars=(("q", "a"),))
    (one, two), (three,) = policy.sample([ask("a", 1, 2), ask("é", 3, conditioning=told)], Sampling())
    assert [c.text for c in (one, two, three)] == ["aNone1", "aNone2", "éS3"]
    assert three.tokens == tuple("éS3".encode())
    assert three.logprobs == (0.0,) * 4
    assert (three.prompt_tokens, three.finish) == (5, "stop")
    assert policy.calls == 1
    assert policy.asked == [("a", PLAIN, 1), ("a", PLAIN, 2), ("é", told, 3)]


def test_the_limit_and_stop_strings_hold() -> None:
    policy = ScriptedPolicy(lambda *_: "aé b|c")
    ((cut,),) = policy.sample([ask("p", 0)], Sampling(max_new_tokens=2))
    assert (cut.text, cut.finish, len(cut.tokens)) == ("a", "length", 2)
    ((stopped,),) = policy.sample([ask("p", 0)], Sampling(stop=("|", " b|")))
    assert (stopped.text, stopped.finish) == ("aé", "stop")
    assert decode(encode("aé b")) == "aé b"


def test_a_script_that_raises_fails_alone() -> None:
    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        if seed == 1:
            raise KeyError("lost")
        return "fine"

    ((bad, good),) = ScriptedPolicy(script).sample([ask("p", 1, 2)], Sampling())
    assert (bad.finish, bad.text, bad.error) == ("error", "", "KeyError: 'lost'")
    assert good.text == "fine"


def test_deltas_are_given_to_the_script_or_refused() -> None:
    changed = Conditioning(delta=Delta(id="d", kind="k", base="b", payload=None))
    request = ask("p", 0, conditioning=changed)
    script = lambda prompt, conditioning, seed: conditioning.delta.id if conditioning.delta else ""  # noqa: E731
    ((answer,),) = ScriptedPolicy(script).sample([request], Sampling())
    assert answer.text == "d"
    with pytest.raises(UnsupportedError, match="takes no weight changes"):
        ScriptedPolicy(script, accepts_delta=False).sample([request], Sampling())
    assert not isinstance(ScriptedPolicy(script), Trainable)


def test_a_coin_has_its_chance_and_its_seed() -> None:
    policy = coin_policy(lambda prompt, conditioning: 0.8 if conditioning.system else 0.3)
    for conditioning, low, high in ((PLAIN, 0.26, 0.34), (Conditioning(system="s"), 0.76, 0.84)):
        request = ask("p", *range(2000), conditioning=conditioning)
        (answers,) = policy.sample([request], Sampling())
        assert low < sum(c.text == "yes" for c in answers) / 2000 < high
        assert policy.sample([request], Sampling()) == [answers]
    assert coin_policy(1.0).sample([ask("p", 5)], Sampling())[0][0].text == "yes"
    assert coin_policy(0.0).sample([ask("p", 5)], Sampling())[0][0].text == "no"
