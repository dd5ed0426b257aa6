"""Models behind an OpenAI-compatible endpoint: a policy for the fast clock, and a reflector.

An endpoint's weights cannot be trained or changed, so the policy has no second protocol, and a conditioning with a
delta is refused. What an endpoint does not tell is not made up: token ids are unknown (each is given as -1, so that
counting them is right), and log-probabilities are kept only where they are those of the distribution drawn from.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from twoclock.errors import ConfigError, UnsupportedError
from twoclock.hashing import content_hash
from twoclock.models.endpoint import Endpoint, Reply, RequestError
from twoclock.types import Completion, Conditioning, PolicyCard, Request, Sampling

__all__ = ["EndpointReflector", "RemotePolicy"]

SEED_SPAN = 1 << 31  # servers keep seeds in 32 bits, or in JSON numbers that lose digits past 2**53
UNKNOWN_TOKEN = -1


class RemotePolicy:
    """A :class:`~twoclock.contracts.Policy` over an endpoint: one request for each seed, several at a time.

    A request that fails after its retries is a completion with ``finish='error'``; only where no request of a call
    was answered, and the reason is the address or the key, ModelError is raised. ``extra`` is added to every request
    body, for what a server wants of its own.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout_s: float = 120.0,
        max_concurrency: int = 8,
        retries: int = 3,
        backoff_s: float = 0.5,
        context_tokens: int = 8192,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if max_concurrency < 1:
            raise ConfigError(f"max_concurrency must be at least 1; got {max_concurrency}")
        self._endpoint = Endpoint(
            base_url,
            model,
            api_key_env=api_key_env,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            extra=extra,
        )
        self._max_concurrency = max_concurrency
        self._card = PolicyCard(
            name=model,
            base_hash=content_hash({"base_url": self._endpoint.base_url, "model": model}),
            trainable=False,
            context_tokens=context_tokens,
        )

    @property
    def card(self) -> PolicyCard:
        return self._card

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        """See :class:`~twoclock.contracts.Policy`; seeds are passed to the server modulo 2**31."""
        for request in requests:
            if request.conditioning.delta is not None:
                raise UnsupportedError(
                    f"the model {self._card.name!r} is behind an endpoint ({self._endpoint.url}), so weights cannot be "
                    "changed there; use fast channels only, or a local model"
                )
            if request.conditioning.mixture is not None:
                raise UnsupportedError(
                    f"the model {self._card.name!r} is behind an endpoint ({self._endpoint.url}), so no experts can be "
                    "mixed into its weights; leave out the channel 'experts', or use a local model"
                )
            if request.conditioning.shifts:
                raise UnsupportedError(
                    f"the model {self._card.name!r} is behind an endpoint ({self._endpoint.url}), which gives texts "
                    "and not the logits that a shift is added to; see twoclock.models.remote_proxy for what an "
                    "endpoint with top log-probabilities can do, or use a local model"
                )
            if request.conditioning.soft is not None:
                raise UnsupportedError(
                    f"the model {self._card.name!r} is behind an endpoint ({self._endpoint.url}), so no memory can be "
                    "read inside it; leave out the channel 'neural_memory', or use a local model"
                )
        jobs = [(request, seed) for request in requests for seed in request.seeds]
        call = _Call(self._endpoint, sampling, give_up_after=self._max_concurrency)
        with ThreadPoolExecutor(max_workers=self._max_concurrency) as pool:
            done = iter(list(pool.map(lambda job: call.one(*job), jobs)))
        call.raise_if_nobody_answered()
        return [tuple(next(done) for _ in request.seeds) for request in requests]

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class EndpointReflector:
    """A :data:`~twoclock.contracts.Reflector` on an endpoint: text in, text out. Raises ModelError where it fails."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout_s: float = 300.0,
        retries: int = 3,
        backoff_s: float = 0.5,
        temperature: float = 1.0,
        max_tokens: int = 2048,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._endpoint = Endpoint(
            base_url,
            model,
            api_key_env=api_key_env,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            extra=extra,
        )
        self._settings = {"temperature": temperature, "max_tokens": max_tokens}
        self._lock = threading.Lock()
        self.calls = 0
        """How often it was asked."""
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def __call__(self, prompt: str) -> str:
        with self._lock:
            self.calls += 1
        payload = {"messages": [{"role": "user", "content": prompt}], **self._settings}
        try:
            reply = self._endpoint.chat(payload, seed=0)
        except RequestError as error:
            raise self._endpoint.explain(error.kind, str(error)) from error
        with self._lock:
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
        return reply.text

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()


class _Call:
    """One ``sample`` call: its requests, and whether anybody has answered yet."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling, give_up_after: int) -> None:
        self._endpoint = endpoint
        self._sampling = sampling
        self._give_up_after = give_up_after
        self._lock = threading.Lock()
        self._answered = 0
        self._failures: list[RequestError] = []

    def one(self, request: Request, seed: int) -> Completion:
        hopeless = self._hopeless()
        if hopeless is not None:  # a wrong address or key need not be tried a thousand times
            return _failed(str(hopeless))
        try:
            reply = self._endpoint.chat(_payload(request, seed, self._sampling), seed)
        except RequestError as error:
            with self._lock:
                self._failures.append(error)
            return _failed(str(error))
        with self._lock:
            self._answered += 1
        return _completion(reply, request, self._sampling)

    def _hopeless(self) -> RequestError | None:
        with self._lock:
            if self._answered or len(self._failures) < self._give_up_after:
                return None
            return self._failures[0] if all(f.kind != "other" for f in self._failures) else None

    def raise_if_nobody_answered(self) -> None:
        if self._answered or not self._failures or any(f.kind == "other" for f in self._failures):
            return
        raise self._endpoint.explain(self._failures[0].kind, str(self._failures[0]))


# ----------------------------------------------------------------------------------------------- requests and replies


def _messages(prompt: str, conditioning: Conditioning) -> list[dict[str, str]]:
    messages = [] if conditioning.system is None else [{"role": "system", "content": conditioning.system}]
    for user, assistant in conditioning.exemplars:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return [*messages, {"role": "user", "content": conditioning.told(prompt)}]


def _payload(request: Request, seed: int, sampling: Sampling) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "messages": _messages(request.prompt, request.conditioning),
        "n": 1,
        "seed": seed % SEED_SPAN,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
    }
    if sampling.top_k:
        payload["top_k"] = sampling.top_k  # no part of OpenAI's own interface; most other servers know it
    if sampling.stop:
        payload["stop"] = list(sampling.stop)
    if _untempered(sampling):
        payload["logprobs"] = True
    return payload


def _untempered(sampling: Sampling) -> bool:
    """Servers report log-probabilities of the plain softmax: those drawn from only where nothing reshapes it."""
    return sampling.temperature == 1.0 and sampling.top_p == 1.0 and sampling.top_k == 0


def _completion(reply: Reply, request: Request, sampling: Sampling) -> Completion:
    cuts = [at for at in (reply.text.find(stop) for stop in sampling.stop if stop) if at >= 0]
    text = reply.text[: min(cuts)] if cuts else reply.text  # servers differ in whether they cut the stop string
    logprobs = reply.logprobs if _untempered(sampling) and len(reply.logprobs) == reply.completion_tokens else ()
    said = sum(len(m["content"]) for m in _messages(request.prompt, request.conditioning))
    return Completion(
        tokens=(UNKNOWN_TOKEN,) * reply.completion_tokens,
        logprobs=logprobs,
        text=text,
        finish="stop" if cuts else reply.finish,
        prompt_tokens=reply.prompt_tokens or math.ceil(said / 4),
    )


def _failed(message: str) -> Completion:
    return Completion(tokens=(), logprobs=(), text="", finish="error", prompt_tokens=0, error=message)
