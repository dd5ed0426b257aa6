"""The remote policy and the reflector against a real HTTP server on this machine."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest

from twoclock.contracts import Trainable
from twoclock.errors import ConfigError, ModelError, UnsupportedError
from twoclock.models.remote import EndpointReflector, RemotePolicy
from twoclock.types import Conditioning, Delta, Request, Sampling

Reply = tuple[int, Any, dict[str, str]]


def answer(text: str | None, finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if "logprobs" in more:
        choice["logprobs"] = {"content": [{"token": "x", "logprob": value} for value in more["logprobs"]]}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": more.get("tokens", 3)}}


class Server:
    """Answers each POST with what ``reply(body, attempt)`` says; ``attempt`` counts the posts of that seed."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.reply: Callable[[dict[str, Any], int], Reply] = lambda body, attempt: (200, answer("hi"), {})
        self.active = self.most_active = 0
        lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    attempt = sum(b.get("seed") == body.get("seed") for b in outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    outer.active += 1
                    outer.most_active = max(outer.most_active, outer.active)
                code, payload, headers = outer.reply(body, attempt)
                with lock:
                    outer.active -= 1
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                try:
                    self.send_response(code)
                    for name, value in {**headers, "Content-Length": str(len(data))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client gave up waiting, as the test wants

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def policy(server: Server) -> Iterator[RemotePolicy]:
    with RemotePolicy(server.url, "m", backoff_s=0.01, timeout_s=5.0, retries=2) as remote:
        yield remote


def ask(prompt: str, *seeds: int, conditioning: Conditioning | None = None) -> Request:
    return Request(prompt=prompt, conditioning=conditioning or Conditioning(), seeds=seeds)


# -------------------------------------------------------------------------------------------------- the ordinary road


def test_answers_come_back_in_order(server: Server, policy: RemotePolicy) -> None:
    def reply(body: dict[str, Any], attempt: int) -> Reply:
        time.sleep(0.02 * (3 - body["seed"] % 3))  # the first asked is the last to be answered
        return 200, answer(f"{body['messages'][-1]['content']}:{body['seed']}"), {}

    server.reply = reply
    results = policy.sample([ask("a", 1, 2, 3), ask("b"), ask("c", 4)], Sampling())
    assert [[c.text for c in row] for row in results] == [["a:1", "a:2", "a:3"], [], ["c:4"]]
    completion = results[0][0]
    assert (completion.finish, completion.prompt_tokens, completion.error) == ("stop", 7, None)
    assert completion.tokens == (-1, -1, -1)
    assert policy.sample([], Sampling()) == []


def test_what_is_sent(server: Server, policy: RemotePolicy) -> None:
    conditioning = Conditioning(system="be brief", exemplars=(("q1", "a1"), ("q2", "a2")))
    sampling = Sampling(max_new_tokens=9, temperature=0.5, top_p=0.9, top_k=4, stop=("\n",))
    seed = (1 << 62) + 5
    policy.sample([ask("q", seed, conditioning=conditioning)], sampling)
    (body,) = server.bodies
    assert server.paths == ["/v1/chat/completions"]
    assert [(m["role"], m["content"]) for m in body.pop("messages")] == [
        ("system", "be brief"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
        ("assistant", "a2"),
        ("user", "q"),
    ]
    assert body == {
        "model": "m",
        "n": 1,
        "seed": seed % 2**31,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "max_tokens": 9,
        "stop": ["\n"],
    }


def test_extra_fields_are_added(server: Server) -> None:
    with RemotePolicy(server.url + "/chat/completions/", "m", extra={"think": False}) as remote:
        remote.sample([ask("q", 0)], Sampling())
    assert server.bodies[0]["think"] is False
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "q"}]
    assert server.paths == ["/v1/chat/completions"]


def test_logprobs_only_where_they_are_those_drawn_from(server: Server, policy: RemotePolicy) -> None:
    server.reply = lambda body, attempt: (200, answer("hi", logprobs=[-0.1, -0.2, -0.3]), {})
    ((plain,),) = policy.sample([ask("q", 0)], Sampling())
    assert plain.logprobs == (-0.1, -0.2, -0.3)
    assert server.bodies[-1]["logprobs"] is True
    for tempered in (Sampling(temperature=0.5), Sampling(top_p=0.9), Sampling(top_k=3)):
        ((completion,),) = policy.sample([ask("q", 0)], tempered)
        assert completion.logprobs == ()
    server.reply = lambda body, attempt: (200, answer("hi", logprobs=[-0.1]), {})  # not one a token
    assert policy.sample([ask("q", 0)], Sampling())[0][0].logprobs == ()


def test_finish_reasons_and_stop_strings(server: Server, policy: RemotePolicy) -> None:
    server.reply = lambda body, attempt: (200, answer("one\ntwo", finish="length"), {})
    ((long,),) = policy.sample([ask("q", 0)], Sampling())
    assert (long.text, long.finish) == ("one\ntwo", "length")
    ((cut,),) = policy.sample([ask("q", 0)], Sampling(stop=("\n",)))
    assert (cut.text, cut.finish) == ("one", "stop")
    server.reply = lambda body, attempt: (200, answer(None, finish="length"), {})
    ((silent,),) = policy.sample([ask("q", 0)], Sampling())
    assert (silent.text, silent.finish) == ("", "length")


def test_a_server_that_does_not_count_is_estimated(server: Server, policy: RemotePolicy) -> None:
    server.reply = lambda body, attempt: (200, {"choices": [{"message": {"content": "x" * 10}}]}, {})
    ((completion,),) = policy.sample([ask("q" * 9, 0)], Sampling())
    assert (len(completion.tokens), completion.prompt_tokens) == (3, 3)


def test_requests_go_out_together_but_not_too_many(server: Server) -> None:
    def reply(body: dict[str, Any], attempt: int) -> Reply:
        time.sleep(0.1)
        return 200, answer("hi"), {}

    server.reply = reply
    with RemotePolicy(server.url, "m", max_concurrency=3) as remote:
        remote.sample([ask("q", *range(9))], Sampling())
    assert server.most_active == 3


def test_the_card(server: Server, policy: RemotePolicy) -> None:
    card = policy.card
    assert (card.name, card.trainable, card.context_tokens) == ("m", False, 8192)
    with RemotePolicy(server.url + "/", "m") as same, RemotePolicy(server.url, "other") as other:
        assert same.card.base_hash == card.base_hash
        assert other.card.base_hash != card.base_hash
    assert not isinstance(policy, Trainable)


def test_a_delta_is_refused_before_anything_is_sent(server: Server, policy: RemotePolicy) -> None:
    changed = Conditioning(delta=Delta(id="d", kind="lora", base="b", payload=None))
    with pytest.raises(UnsupportedError, match=r"behind an endpoint .*use fast channels only"):
        policy.sample([ask("q", 0), ask("q", 0, conditioning=changed)], Sampling())
    assert server.bodies == []


# ----------------------------------------------------------------------------------------------------- failing servers


def test_429_then_an_answer(server: Server, policy: RemotePolicy) -> None:
    server.reply = lambda body, attempt: (200, answer("hi"), {}) if attempt else (429, {"error": "slow down"}, {})
    ((completion,),) = policy.sample([ask("q", 0)], Sampling())
    assert (completion.text, len(server.bodies)) == ("hi", 2)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_respected(server: Server, policy: RemotePolicy, form: str) -> None:
    def reply(body: dict[str, Any], attempt: int) -> Reply:
        wait = "0.5" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return (200, answer("hi"), {}) if attempt else (503, {}, {"Retry-After": wait})

    server.reply = reply
    began = time.monotonic()
    ((completion,),) = policy.sample([ask("q", 0)], Sampling())
    assert completion.text == "hi"
    assert time.monotonic() - began >= 0.5


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ((500, {"error": {"message": "out of memory"}}, {}), r"HTTP 500: out of memory \(tried 3 times\)"),
        ((200, b'{"choices": [', {}), "unreadable answer"),
        ((200, {"choices": []}, {}), "unreadable answer"),
        ((200, {"choices": [{"message": {"content": 3}}]}, {}), "unreadable answer"),
        ((200, {"object": "error"}, {}), "unreadable answer"),
        ((200, answer("half", finish="content_filter"), {}), "content filter"),
        ((400, {"error": "prompt too long"}, {}), "HTTP 400: prompt too long$"),
    ],
)
def test_one_request_that_always_fails_leaves_its_siblings(
    server: Server, policy: RemotePolicy, broken: Reply, message: str
) -> None:
    server.reply = lambda body, attempt: broken if body["seed"] == 2 else (200, answer("hi"), {})
    ((first, bad, last),) = policy.sample([ask("q", 1, 2, 3)], Sampling())
    assert (first.text, last.text) == ("hi", "hi")
    assert (bad.finish, bad.text, bad.tokens) == ("error", "", ())
    assert bad.error is not None
    assert re.search(message, bad.error)
    assert sum(b["seed"] == 2 for b in server.bodies) == (1 if broken[0] == 400 else 3)


def test_all_failing_inside_the_server_are_values_and_no_exception(server: Server, policy: RemotePolicy) -> None:
    server.reply = lambda body, attempt: (500, {}, {})
    ((one, two),) = policy.sample([ask("q", 1, 2)], Sampling())
    assert {one.finish, two.finish} == {"error"}


def test_a_server_that_hangs(server: Server) -> None:
    def reply(body: dict[str, Any], attempt: int) -> Reply:
        if body["seed"] == 1:
            time.sleep(1.0)
        return 200, answer("hi"), {}

    server.reply = reply
    with RemotePolicy(server.url, "m", timeout_s=0.2, retries=1, backoff_s=0.01) as remote:
        ((late, good),) = remote.sample([ask("q", 1, 2)], Sampling())
    assert late.error is not None
    assert "no answer in time: ReadTimeout (tried 2 times)" in late.error
    assert good.text == "hi"


# ------------------------------------------------------------------------------------------- nobody answers any request


@pytest.mark.parametrize(
    ("code", "check"), [(401, "check the key in TWOCLOCK_TEST_KEY"), (404, "check base_url .* the model name 'm'")]
)
def test_a_wrong_key_or_model_is_an_error_after_a_few_tries(
    server: Server, monkeypatch: pytest.MonkeyPatch, code: int, check: str
) -> None:
    monkeypatch.setenv("TWOCLOCK_TEST_KEY", "secret")
    server.reply = lambda body, attempt: (code, {"error": {"message": "go away"}}, {})
    with (
        RemotePolicy(server.url, "m", api_key_env="TWOCLOCK_TEST_KEY", max_concurrency=2) as remote,
        pytest.raises(ModelError, match=rf"{server.url}/chat/completions.*HTTP {code}: go away; {check}") as caught,
    ):
        remote.sample([ask("q", *range(200))], Sampling())
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in str(caught.value)
    assert len(server.bodies) < 10, "a wrong key need not be tried 200 times"


def test_a_right_key_for_some_requests_is_no_exception(server: Server, policy: RemotePolicy) -> None:
    server.reply = lambda body, attempt: (403, {}, {}) if body["seed"] == 1 else (200, answer("hi"), {})
    ((bad, good),) = policy.sample([ask("q", 1, 2)], Sampling())
    assert (bad.finish, good.text) == ("error", "hi")


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        RemotePolicy(f"http://127.0.0.1:{port}/v1", "m", retries=1, backoff_s=0.01) as remote,
        pytest.raises(ModelError, match=rf"127\.0\.0\.1:{port}.*cannot connect.*is the server running"),
    ):
        remote.sample([ask("q", *range(20))], Sampling())


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("localhost:8000", "", "ftp://x/v1", "http://"):
        with pytest.raises(ConfigError, match="base_url"):
            RemotePolicy(url, "m")
    with pytest.raises(ConfigError, match="2 mistakes"):
        RemotePolicy("http://x/v1", "", timeout_s=-1)
    with pytest.raises(ConfigError, match="max_concurrency"):
        RemotePolicy("http://x/v1", "m", max_concurrency=0)
    monkeypatch.delenv("TWOCLOCK_TEST_KEY", raising=False)
    with pytest.raises(ModelError, match="TWOCLOCK_TEST_KEY, which is not set; type: export TWOCLOCK_TEST_KEY="):
        RemotePolicy("http://x/v1", "m", api_key_env="TWOCLOCK_TEST_KEY")


# ------------------------------------------------------------------------------------------------------- the reflector


def test_the_reflector_answers_and_counts(server: Server) -> None:
    server.reply = lambda body, attempt: (200, answer("think again"), {})
    reflector = EndpointReflector(server.url, "strong", temperature=0.3, max_tokens=99)
    assert reflector("why?") == "think again"
    assert reflector("and?") == "think again"
    assert (reflector.calls, reflector.prompt_tokens, reflector.completion_tokens) == (2, 14, 6)
    assert server.bodies[0] == {
        "model": "strong",
        "messages": [{"role": "user", "content": "why?"}],
        "temperature": 0.3,
        "max_tokens": 99,
    }
    server.reply = lambda body, attempt: (400, {"error": "no"}, {})
    with pytest.raises(ModelError, match="HTTP 400: no"):
        reflector("x")
    assert reflector.calls == 3
    reflector.close()
