"""The laws of policies: scripted, local (a tiny random Llama) and remote (against a server on this machine).

Promises: one completion a seed, in order; a rollout follows from (prompt, conditioning, sampling, seed) alone; limits
and stop strings hold; a request that fails leaves its siblings alone; what cannot be applied is refused.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_world import chat_server

from tiny_world import open_tiny
from twoclock.contracts import Policy, Trainable
from twoclock.errors import UnsupportedError
from twoclock.hashing import content_hash
from twoclock.models.remote import RemotePolicy
from twoclock.models.scripted import ScriptedPolicy
from twoclock.types import Conditioning, Delta, Request, Sampling

CONDITIONINGS = (
    Conditioning(),
    Conditioning(system="Answer with a number."),
    Conditioning(exemplars=(("1 + 1 = ?", "2"), ("2 + 3 = ?", "5"))),
)
PROMPTS = ("4 + 4 = ?", "Name a colour.", "Which number is the largest: 3, 9, 5?", "é: ja, schön?")
SAMPLING = Sampling(max_new_tokens=7, temperature=1.0)


def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
    if prompt == "FAIL":
        raise KeyError("no answer")
    return content_hash([prompt, conditioning.id, seed])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with chat_server() as url:
        yield url


@pytest.fixture(scope="module")
def exact(tiny_folder: Path) -> Any:
    """The tiny model in float64. The law is about exact arithmetic; in float32 one draw in some thousands falls so near
    the border of two tokens that another batching's rounding moves it across."""
    policy = open_tiny(tiny_folder)
    policy.model.double()
    return policy


@pytest.fixture(params=["scripted", "local", "remote"])
def policy(request: pytest.FixtureRequest) -> Iterator[Policy]:
    if request.param == "scripted":
        yield ScriptedPolicy(script, accepts_delta=False)
    elif request.param == "local":
        yield request.getfixturevalue("exact")
    else:
        with RemotePolicy(request.getfixturevalue("address"), "m", backoff_s=0.01) as remote:
            yield remote


def failing_prompt(policy: Policy) -> str:
    """A request that this policy cannot answer: too long for a local model, refused by the others."""
    return "long " * 1000 if policy.card.trainable else "FAIL"


def requests() -> list[Request]:
    return [Request(prompt=p, conditioning=c, seeds=(1, 2, 3)) for p in PROMPTS for c in CONDITIONINGS]


def test_the_card_is_a_value(policy: Policy) -> None:
    assert policy.card == policy.card
    assert hash(policy.card) == hash(policy.card)
    assert policy.card.base_hash
    assert policy.card.name
    assert policy.card.context_tokens > 0
    assert policy.card.trainable == isinstance(policy, Trainable)


def test_one_completion_a_seed_in_order(policy: Policy) -> None:
    assert policy.sample([], SAMPLING) == []
    none, two, one = policy.sample(
        [Request(prompt="a", conditioning=Conditioning(), seeds=seeds) for seeds in ((), (5, 6), (6,))], SAMPLING
    )
    assert (none, len(two), len(one)) == ((), 2, 1)
    assert two[1].text == one[0].text
    assert two[0].text != two[1].text


def test_a_rollout_follows_from_its_own_request_alone(policy: Policy) -> None:
    """Alone, in any company, in any order, twice: the same answer."""
    asked = requests()
    together = policy.sample(asked, SAMPLING)
    assert policy.sample(asked, SAMPLING) == together
    order = random.Random(4).sample(range(len(asked)), len(asked))
    shuffled = dict(zip(order, policy.sample([asked[i] for i in order], SAMPLING), strict=True))
    for index, request in enumerate(asked):
        alone = [
            policy.sample([Request(prompt=request.prompt, conditioning=request.conditioning, seeds=(s,))], SAMPLING)
            for s in request.seeds
        ]
        for n, reference in enumerate(together[index]):
            for other in (shuffled[index][n], alone[n][0][0]):
                assert (other.text, other.tokens, other.finish) == (reference.text, reference.tokens, reference.finish)
                assert other.logprobs == pytest.approx(reference.logprobs, abs=1e-5)


def test_seeds_prompts_and_conditionings_all_matter(policy: Policy) -> None:
    rows = policy.sample(requests(), SAMPLING)
    texts = {c.text for row in rows for c in row}
    assert len(texts) > 0.8 * 3 * len(PROMPTS) * len(CONDITIONINGS)


def test_limits_and_stop_strings_hold(policy: Policy) -> None:
    plain = policy.sample(requests(), Sampling(max_new_tokens=12))
    # The commonest first characters in what this policy says, so that the strings do occur.
    stops = tuple(sorted({c.text[1] for row in plain for c in row if len(c.text) > 1}))[:8]
    for sampling in (Sampling(max_new_tokens=1), Sampling(max_new_tokens=12, stop=stops)):
        for row in policy.sample(requests(), sampling):
            for completion in row:
                assert len(completion.tokens) <= sampling.max_new_tokens
                assert not any(stop in completion.text for stop in sampling.stop)
                assert len(completion.logprobs) in (0, len(completion.tokens))
                assert all(math.isfinite(value) and value <= 0 for value in completion.logprobs)
    assert any(stop in c.text for row in plain for c in row for stop in stops)


def test_a_request_that_fails_leaves_its_siblings_alone(policy: Policy) -> None:
    fine = [Request(prompt=p, conditioning=Conditioning(), seeds=(1, 2)) for p in PROMPTS[:2]]
    bad = Request(prompt=failing_prompt(policy), conditioning=Conditioning(), seeds=(1, 2))
    first, failed, second = policy.sample([fine[0], bad, fine[1]], SAMPLING)
    assert [first, second] == policy.sample(fine, SAMPLING)
    for completion in failed:
        assert (completion.finish, completion.text, completion.tokens) == ("error", "", ())
        assert completion.error
    assert len(failed) == 2


def test_a_change_of_weights_that_is_not_for_it_is_refused(policy: Policy) -> None:
    foreign = Conditioning(delta=Delta(id="d" * 64, kind="lora", base="another model", payload=None))
    with pytest.raises(UnsupportedError):
        policy.sample([Request(prompt="a", conditioning=foreign, seeds=(1,))], SAMPLING)
    assert policy.sample(requests()[:1], SAMPLING)[0][0].finish != "error"


def test_a_kind_of_delta_that_is_not_known_is_refused(tiny: Any) -> None:
    strange = Conditioning(delta=Delta(id="d" * 64, kind="svf", base=tiny.base_hash, payload=object()))
    with pytest.raises(UnsupportedError, match="'svf'"):
        tiny.sample([Request(prompt="a", conditioning=strange, seeds=(1,))], SAMPLING)


def test_greedy_needs_no_luck(tiny: Any) -> None:
    ((one, two),) = tiny.sample(
        [Request(prompt="a", conditioning=Conditioning(), seeds=(1, 2))], Sampling(max_new_tokens=6, temperature=0.0)
    )
    assert one.tokens == two.tokens


def test_an_absent_influence_changes_nothing(tiny: Any) -> None:
    """An empty conditioning is the model's own chat template, token for token."""
    text = tiny.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], tokenize=False, add_generation_prompt=True
    )
    own = tuple(tiny.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert tiny.render(PROMPTS[0], Conditioning()) == own
