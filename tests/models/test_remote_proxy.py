"""A model behind an endpoint, steered from its top log-probabilities, against the same model in this process.

Promises: with everything told the answers are the local ones, all certified; with little told every certified step is
the exact one; what an endpoint cannot do is refused; a server that fails, or speaks oddly, loses no other answer.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from steered_cases import PROMPTS, asked, lora  # noqa: E402

from tiny_models import VOCAB, make_policy  # noqa: E402
from twoclock.errors import ConfigError, ModelError, UnsupportedError  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.models.remote_proxy import RemoteProxyPolicy  # noqa: E402
from twoclock.nn.proxy import Difference, normalized, shifted  # noqa: E402
from twoclock.types import Conditioning, Delta, Request, Sampling, Shift, SideModel  # noqa: E402

GREEDY = Sampling(max_new_tokens=7, temperature=0.0)
Answer = Callable[[dict[str, Any]], Any]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """``answer`` gives the JSON of a body, or the number of an error status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            data = json.dumps({"error": "no"} if isinstance(found, int) else found).encode()
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        running.server_close()


@pytest.fixture(scope="module")
def hidden() -> Any:
    """The model that stands behind the endpoint."""
    return make_policy("llama", seed=51)


def top(hidden: Any, *, by_id: bool = True, digits: int = 9) -> Answer:
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> Any:
        with lock, torch.no_grad():
            logprobs = plain_logits(hidden.model, body["prompt"])[-1].double()
        known = torch.arange(len(logprobs)) < 260
        logprobs = torch.log_softmax(logprobs.masked_fill(~known, float("-inf")), -1)
        values, ids = torch.topk(logprobs, min(body["logprobs"], 260))
        names = [f"token_id:{i}" if by_id else hidden.tokenizer.decode([i]) for i in ids.tolist()]
        told = {name: round(value, digits) for name, value in zip(names, values.tolist(), strict=True)}
        return {"choices": [{"text": "", "logprobs": {"top_logprobs": [told]}}]}

    return answer


def steered(address: str, **options: Any) -> tuple[RemoteProxyPolicy, Shift]:
    reader = make_policy("qwen2", seed=52)
    policy = RemoteProxyPolicy(address, "big", reader, backoff_s=0.01, **options)
    shift = Shift(
        expert=policy.companions.add(reader, lora(reader, 1, size=0.15)), anti=policy.companions.add(reader), alpha=0.7
    )
    return policy, shift


def exact_step(hidden: Any, policy: RemoteProxyPolicy, shift: Shift, prompt: tuple[int, ...], tokens: Any) -> int:
    """The most likely token from all log-probabilities, every model read anew."""
    known = torch.arange(VOCAB) < 260
    reader = policy.reader
    ids = [*prompt, *tokens]
    with torch.no_grad():
        base = normalized(plain_logits(hidden.model, ids)[-1:], known)
        sides = []
        for side in (shift.expert, shift.anti):
            with reader._mount(side.delta):  # type: ignore[union-attr]
                sides.append(normalized(plain_logits(reader.model, ids)[-1:], known))
    alpha = shift.alphas[min(len(tokens), len(shift.alphas) - 1)]
    return int(shifted(base, [Difference(*sides, torch.tensor([alpha]), shift.plausible, known)]).argmax())


def told_under(shift: Shift, **more: Any) -> list[tuple[str, Conditioning]]:
    return [(request.prompt, request.conditioning) for request in asked([shift], seeds=1, **more)]


@pytest.mark.parametrize("plausible", [0.0, 0.05])
def test_everything_told_is_the_model_in_this_process(hidden: Any, plausible: float) -> None:
    with server(top(hidden)) as address:
        policy, shift = steered(address, told=260)
        shift = Shift(expert=shift.expert, anti=shift.anti, alpha=(1.0, 0.4), plausible=plausible)
        found = policy.answers(told_under(shift, system="Be brief."), GREEDY)
    for answer, (prompt, told) in zip(found, told_under(shift, system="Be brief."), strict=True):
        assert answer.is_exact
        assert answer.error is None
        read = policy.reader.render(prompt, told)
        for n, token in enumerate(answer.tokens):
            assert token == exact_step(hidden, policy, shift, read, answer.tokens[:n])
    assert policy.certified_rate == 1.0
    assert policy.steps == sum(len(a.tokens) for a in found)


@pytest.mark.parametrize("by_id", [True, False], ids=["ids", "texts"])
@pytest.mark.parametrize("count", [3, 20])
def test_certified_steps_are_exact_and_the_others_are_said_to_be_models(hidden: Any, count: int, by_id: bool) -> None:
    with server(top(hidden, by_id=by_id, digits=3)) as address:
        policy, shift = steered(address, told=count)
        found = policy.answers(told_under(shift), GREEDY)
    certain = 0
    for answer, (prompt, told) in zip(found, told_under(shift), strict=True):
        read = policy.reader.render(prompt, told)
        for n, (token, certified, margin) in enumerate(
            zip(answer.tokens, answer.certified, answer.margins, strict=True)
        ):
            assert certified == (margin > 0.0)
            if certified:
                certain += 1
                assert token == exact_step(hidden, policy, shift, read, answer.tokens[:n])
    assert certain == policy.certified_steps
    assert policy.steps > 0
    # By text many tokens of this model cannot be told apart: half a character is a half like any other.
    assert policy.certified_steps > 0 or not by_id


def test_asking_for_more_certifies_more(hidden: Any) -> None:
    counts = []
    asked_for: list[int] = []
    listen = top(hidden)

    def counting(body: dict[str, Any]) -> Any:
        asked_for.append(body["logprobs"])
        return listen(body)

    with server(counting) as address:
        for options in ({"told": 3}, {"told": 3, "most_told": 260}):
            policy, shift = steered(address, **options)
            policy.answers(told_under(shift), GREEDY)
            counts.append(policy.certified_rate)
    assert counts[0] < counts[1] == 1.0
    assert set(asked_for) == {3, 260}


def test_it_is_a_policy(hidden: Any) -> None:
    with server(top(hidden)) as address:
        policy, shift = steered(address, told=260)
        requests = [
            *asked([shift], seeds=2),
            Request(prompt="h", conditioning=Conditioning(), seeds=(1,)),
            Request(prompt="h", conditioning=Conditioning(), seeds=()),
        ]
        rows = policy.sample(requests, GREEDY)
        assert [len(row) for row in rows] == [2, 2, 2, 2, 1, 0]
        assert rows == policy.sample(requests, GREEDY)
        assert rows[0][0] == rows[0][1]
        assert rows[0][0].logprobs == ()
        assert not policy.card.trainable
        (plain,) = hidden.sample([requests[-2]], GREEDY)
        first = [t for t in plain[0].tokens if t < 260]
        assert rows[4][0].tokens[: len(first[:1])] == tuple(first[:1])
        free = policy.answer("h", Conditioning(shifts=(shift,)), GREEDY)
        stop = free.text[1:3]
        cut = policy.answer("h", Conditioning(shifts=(shift,)), Sampling(max_new_tokens=7, temperature=0, stop=(stop,)))
        assert (cut.text, cut.finish) == (free.text[: free.text.index(stop)], "stop")


def test_what_an_endpoint_cannot_do_is_refused(hidden: Any) -> None:
    with server(top(hidden)) as address:
        policy, shift = steered(address)
        delta = Delta("d", "lora", "b", None)
        cases = [
            (Conditioning(shifts=(shift,)), Sampling(temperature=1.0), "set temperature = 0"),
            (Conditioning(delta=delta), GREEDY, "weights cannot be changed"),
            (Conditioning(shifts=(Shift(expert=shift.expert, anti=None),)), GREEDY, "the remote base itself"),
            (Conditioning(shifts=(Shift(expert=delta, anti=shift.anti),)), GREEDY, "a change of the remote base"),
            (Conditioning(shifts=(Shift(expert=shift.expert, anti=shift.anti, mapped=True),)), GREEDY, "own token ids"),
            (Conditioning(shifts=(Shift(expert=SideModel(weights="z"), anti=shift.anti),)), GREEDY, "give its source"),
        ]
        for told, sampling, words in cases:
            with pytest.raises(UnsupportedError, match=words):
                policy.sample([Request(prompt="h", conditioning=told, seeds=(1,))], sampling)
        for options in ({"told": 0}, {"told": 9, "most_told": 3}, {"max_concurrency": 0}):
            with pytest.raises(ConfigError, match="expected 1 ≤ told"):
                steered(address, **options)
        with pytest.raises(UnsupportedError):  # inert, but its delta is not
            policy.sample([Request(prompt="h", conditioning=Conditioning(delta=delta), seeds=(1,))], GREEDY)


@pytest.mark.parametrize(
    "broken",
    [
        500,
        {"choices": []},
        {"choices": [{"text": "x", "logprobs": None}]},
        {"choices": [{"text": "x", "logprobs": {"top_logprobs": [{"no such token": -0.1}]}}]},
        {"choices": [{"text": "x", "logprobs": {"top_logprobs": [{"token_id:9": float("nan")}]}}]},
        [],
    ],
    ids=["status", "no choice", "no logprobs", "unknown tokens", "NaN", "a list"],
)
def test_a_server_that_speaks_oddly_fails_that_answer_alone(hidden: Any, broken: Any) -> None:
    good = top(hidden)

    def sometimes(body: dict[str, Any]) -> Any:
        return broken if len(body["prompt"]) > 60 else good(body)

    with server(sometimes) as address:
        policy, shift = steered(address, retries=1, told=260)
        found = policy.answers(told_under(shift), GREEDY)
    finishes = [answer.finish for answer in found]
    assert finishes.count("error") == 1
    assert finishes[PROMPTS.index(max(PROMPTS, key=len))] == "error"
    assert all(a.tokens for a in found if a.finish != "error")
    assert all(a.error for a in found if a.finish == "error")


def test_a_prompt_that_is_too_long_fails_alone(hidden: Any) -> None:
    with server(top(hidden)) as address:
        policy, shift = steered(address, context_tokens=60, told=260)
        found = policy.answers(told_under(shift), GREEDY)
    assert [a.finish == "error" for a in found] == [False, False, False, True]
    assert "reads at most 60" in str(found[3].error)


def test_a_token_id_beyond_the_vocabulary_cannot_be_drawn(hidden: Any) -> None:
    """A server whose head has more rows than the reader has tokens."""

    def answer(body: dict[str, Any]) -> Any:
        return {"choices": [{"logprobs": {"top_logprobs": [{"token_id:99999": -0.01, "token_id:20": -5.0}]}}]}

    with server(answer) as address:
        policy, shift = steered(address)
        found = policy.answer("h", Conditioning(shifts=(shift,)), GREEDY)
    assert set(found.tokens) <= set(range(260))
    assert not any(found.certified)


def test_nobody_there(hidden: Any) -> None:
    policy, shift = steered("http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(ModelError, match="is the server running"):
        policy.sample(asked([shift], seeds=1), GREEDY)
