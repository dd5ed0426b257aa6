"""One OpenAI-compatible ``/chat/completions`` address: requests with retries, and reading what comes back.

What to ask and what the answer means for a rollout is ``remote``'s business.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import httpx

from twoclock.errors import ConfigError, ModelError
from twoclock.seeding import child_rng

__all__ = ["Endpoint", "Kind", "Reply", "RequestError"]

AnswerT = TypeVar("AnswerT")
Kind = Literal["unreachable", "refused", "not found", "other"]
MAX_WAIT_S = 60.0


class RequestError(Exception):
    """One request that failed for good, and what kind of failure it was."""

    def __init__(self, kind: Kind, message: str) -> None:
        self.kind: Kind = kind
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What an endpoint answered; counts that it does not give are estimated at four characters a token."""

    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[float, ...]


class Endpoint:
    """One address and model, with retries: what the policy and the reflector share. Safe to use from threads.

    429, 5xx, broken connections, timeouts and unreadable answers are tried again ``retries`` times, waiting
    ``backoff_s`` doubled each time, or as long as the server's Retry-After says (at most a minute).
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout_s: float = 120.0,
        retries: int = 3,
        backoff_s: float = 0.5,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.base_url = _clean_url(base_url)
        self.model = model
        self.retries = retries
        self._api_key_env = api_key_env
        self._backoff_s = backoff_s
        self._extra = dict(extra or {})
        problems = []
        if not model:
            problems.append("a remote model needs a model name, as the endpoint knows it")
        if timeout_s <= 0 or retries < 0 or backoff_s < 0:
            problems.append(f"timeout_s={timeout_s}, retries={retries}, backoff_s={backoff_s}: none may be negative")
        if problems:
            raise ConfigError(problems)
        headers = {"Authorization": f"Bearer {_key(api_key_env)}"} if api_key_env else {}
        self._client = httpx.Client(headers=headers, timeout=timeout_s)

    @property
    def url(self) -> str:
        return f"{self.base_url}/chat/completions"

    def chat(self, payload: Mapping[str, Any], seed: int) -> Reply:
        """One answer; raises RequestError once the retries are spent. ``seed`` spreads the waits."""
        return self.post(self.url, payload, seed, _read_reply)

    def post(
        self, url: str, payload: Mapping[str, Any], seed: int, read: Callable[[httpx.Response], AnswerT]
    ) -> AnswerT:
        """What ``read`` makes of an answer from any address of this server; as :meth:`chat`. An answer that ``read``
        cannot read (ValueError, KeyError, IndexError, TypeError, AttributeError) is tried again."""
        body = {"model": self.model, **payload, **self._extra}
        wait = 0.0
        for attempt in range(self.retries + 1):
            if wait:
                time.sleep(wait)
            try:
                response = self._client.post(url, json=body)
            except httpx.TimeoutException as error:
                failure = RequestError("other", f"no answer in time: {type(error).__name__}")
            except httpx.ConnectError as error:
                failure = RequestError("unreachable", f"cannot connect: {error}")
            except httpx.HTTPError as error:
                failure = RequestError("other", f"the connection broke: {error or type(error).__name__}")
            else:
                if response.status_code == 200:
                    try:
                        return read(response)
                    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                        failure = RequestError("other", f"unreadable answer ({error}): {response.text[:200]!r}")
                else:
                    failure = _status_failure(response)
                    if response.status_code != 429 and response.status_code < 500:
                        raise failure
                    asked = _retry_after(response)
                    if asked is not None:
                        wait = min(asked, MAX_WAIT_S)
                        continue
            jitter = child_rng("retry", seed, attempt).uniform(0.5, 1.0)
            wait = min(self._backoff_s * 2**attempt * jitter, MAX_WAIT_S)
        raise RequestError(failure.kind, f"{failure} (tried {self.retries + 1} times)")

    def explain(self, kind: Kind, message: str) -> ModelError:
        """The error for an endpoint that answers nobody."""
        key = f"the key in {self._api_key_env}" if self._api_key_env else "api_key_env, which is not set"
        check = {
            "unreachable": f"is the server running, and is base_url = {self.base_url!r} right?",
            "refused": f"check {key}",
            "not found": f"check base_url (it usually ends in /v1) and the model name {self.model!r}",
            "other": "see what the server says in its log",
        }[kind]
        return ModelError(f"the endpoint {self.url} gave no answer to any request: {message}; {check}")

    def close(self) -> None:
        self._client.close()


def _read_reply(response: httpx.Response) -> Reply:
    """Raises ValueError, KeyError, IndexError, TypeError or AttributeError for an answer of another form."""
    body = response.json()
    choice = body["choices"][0]
    reason = choice.get("finish_reason")
    text = choice["message"].get("content")
    if text is None and reason == "length":
        text = ""  # a model that thinks first may spend its tokens before it says anything
    if not isinstance(text, str):
        raise ValueError(f"no text, finish_reason {reason!r}")
    if reason == "content_filter":
        raise ValueError("cut by the server's content filter")
    usage = body.get("usage") or {}
    entries = (choice.get("logprobs") or {}).get("content") or []
    logprobs = tuple(float(entry["logprob"]) for entry in entries)
    estimate = len(logprobs) or math.ceil(len(text) / 4)  # four characters a token, where the server does not count
    return Reply(
        text=text,
        finish="length" if reason == "length" else "stop",
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage["completion_tokens"]) if "completion_tokens" in usage else estimate,
        logprobs=logprobs if all(math.isfinite(value) for value in logprobs) else (),
    )


def _status_failure(response: httpx.Response) -> RequestError:
    kinds: dict[int, Kind] = {401: "refused", 403: "refused", 404: "not found"}
    said = response.text[:300]
    try:
        error = json.loads(response.text)["error"]
        said = str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        pass  # not every server answers in the usual form
    return RequestError(kinds.get(response.status_code, "other"), f"HTTP {response.status_code}: {said}")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait, from a number or a date; None where the server does not say."""
    value = response.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _clean_url(base_url: str) -> str:
    url = base_url.strip().rstrip("/").removesuffix("/chat/completions")
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigError(f"base_url = {base_url!r} is no address ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ConfigError(f"base_url = {base_url!r} is no web address; expected such as 'http://localhost:8000/v1'")
    return url


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ModelError(f"api_key_env names the variable {variable}, which is not set; type: export {variable}=…")
    if not (key.isascii() and key.isprintable()):
        raise ModelError(f"the key in {variable} holds characters that no key has; copy it again")
    return key
