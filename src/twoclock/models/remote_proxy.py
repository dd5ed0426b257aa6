"""A model behind an endpoint, steered by local experts, from no more than its most likely tokens' log-probabilities.

The endpoint's ``/completions`` is asked for one token at a time: the prompt as token ids, rendered here, and the top
log-probabilities back. So the server must take token ids and tell log-probabilities (vLLM, llama.cpp and their kin do;
chat addresses do neither), and its tokenizer must be at hand. Every step costs a round trip; prefix caching on the
server keeps it cheap in compute.

Decoding is greedy. A step is *certified* where its token is the most likely one whatever the server did not tell, and
otherwise follows the tail model (:mod:`twoclock.nn.proxy_topk`), in which the anti-expert spreads what is hidden;
before that, the server is asked once more, for ``most_told`` tokens. How often a step was certified is counted, and
told of each answer.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import torch

from twoclock.errors import ConfigError, UnsupportedError
from twoclock.hashing import content_hash
from twoclock.models.endpoint import Endpoint, RequestError
from twoclock.models.side_cache import SideCache
from twoclock.models.voices import Companions
from twoclock.nn.proxy import Difference, normalized, shifted
from twoclock.nn.proxy_topk import Choice, choose
from twoclock.types import Completion, Conditioning, PolicyCard, Request, Sampling, Shift, Side, SideModel

if TYPE_CHECKING:
    from twoclock.models.local import LocalPolicy

__all__ = ["CertifiedAnswer", "RemoteProxyPolicy", "Told"]


@dataclass(frozen=True)
class Told:
    """What the server said of one next token."""

    top: Mapping[int, float]
    """Log-probabilities by token id."""
    complete: bool = True
    """Whether an id was found for every token: else what was told has gaps. Texts that several tokens share name none
    of them, and a server tells such a text once, whatever it stands for."""


@dataclass(frozen=True, kw_only=True)
class CertifiedAnswer:
    """One greedy answer, and how sure each of its tokens is."""

    tokens: tuple[int, ...]
    text: str
    finish: str
    prompt_tokens: int
    certified: tuple[bool, ...]
    margins: tuple[float, ...]
    """In nats; see :class:`twoclock.nn.proxy_topk.Choice`."""
    error: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether every token is the one that full log-probabilities would have given."""
        return all(self.certified)


@dataclass
class _Talk:
    """An answer in the making."""

    prompt: tuple[int, ...]
    side_prompts: Mapping[str, tuple[int, ...]]
    tokens: list[int] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    finish: str = ""
    error: str | None = None
    failure: RequestError | None = None
    caches: dict[tuple[str, str], SideCache] = field(default_factory=dict)


class RemoteProxyPolicy:
    """A :class:`~twoclock.contracts.Policy` that takes conditionings with shifts, whose sides are local models.

    ``reader`` is a local policy with the server's tokenizer and chat template (any size: a small model of its family):
    it renders prompts and reads tokens. ``told`` is the number of log-probabilities asked for, ``most_told`` the number
    asked for where a step cannot be certified by fewer (equal: never). ``steps`` and ``certified_steps`` count.

    Raises UnsupportedError for what cannot be done from top log-probabilities: sampling above temperature 0, and sides
    that are the remote base itself or changes of it.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        reader: LocalPolicy,
        *,
        told: int = 20,
        most_told: int | None = None,
        api_key_env: str | None = None,
        timeout_s: float = 120.0,
        max_concurrency: int = 8,
        retries: int = 3,
        backoff_s: float = 0.5,
        context_tokens: int = 8192,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        most = told if most_told is None else most_told
        if told < 1 or most < told or max_concurrency < 1:
            raise ConfigError(
                f"told = {told}, most_told = {most}, max_concurrency = {max_concurrency}: expected 1 ≤ told ≤ "
                "most_told, and at least one request at a time"
            )
        self._endpoint = Endpoint(
            base_url,
            model,
            api_key_env=api_key_env,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            extra=extra,
        )
        self._url = f"{self._endpoint.base_url}/completions"
        self.reader, self.told, self.most_told = reader, told, most
        self.companions = Companions(reader)
        self._max_concurrency = max_concurrency
        self._names = _names(reader.tokenizer)
        self._lock = threading.Lock()
        self.steps = self.certified_steps = 0
        self._card = PolicyCard(
            name=model,
            base_hash=content_hash({"base_url": self._endpoint.base_url, "model": model, "steered": True}),
            trainable=False,
            context_tokens=context_tokens,
        )

    @property
    def card(self) -> PolicyCard:
        return self._card

    @property
    def certified_rate(self) -> float:
        """The share of steps so far whose token was certain; 1 before the first."""
        return self.certified_steps / self.steps if self.steps else 1.0

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        """See :class:`~twoclock.contracts.Policy`. Greedy, so all seeds of a request have one answer; log-probabilities
        are not told, since the rest of the distribution is not known."""
        return [
            (self._completion(self.answer(request.prompt, request.conditioning, sampling)),) * len(request.seeds)
            if request.seeds
            else ()
            for request in requests
        ]

    def answer(self, prompt: str, conditioning: Conditioning, sampling: Sampling) -> CertifiedAnswer:
        """One greedy answer with its certificate."""
        return self.answers([(prompt, conditioning)], sampling)[0]

    def answers(self, asked: Sequence[tuple[str, Conditioning]], sampling: Sampling) -> list[CertifiedAnswer]:
        """Several at once: a step of all of them costs one round trip."""
        if sampling.temperature > 0.0:
            raise UnsupportedError(
                f"temperature = {sampling.temperature}: the endpoint {self._endpoint.url} tells the most likely tokens "
                "alone, which is enough for greedy decoding and not for sampling; set temperature = 0"
            )
        shifts = [self._shifts(conditioning) for _, conditioning in asked]
        talks = [self._begun(prompt, told, some, sampling) for (prompt, told), some in zip(asked, shifts, strict=True)]
        stopped = self.reader._stopper(sampling.stop)
        with ThreadPoolExecutor(max_workers=self._max_concurrency) as pool:
            while going := [i for i, talk in enumerate(talks) if not talk.finish]:
                heard = list(pool.map(lambda i: self._ask(talks[i], self.told), going))
                for i, said in zip(going, heard, strict=True):
                    if isinstance(said, Told):
                        self._step(talks[i], said, shifts[i])
                        self._finish(talks[i], sampling, stopped)
        self._raise_if_nobody_answered(talks)
        return [self._answered(talk, sampling) for talk in talks]

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def __enter__(self) -> RemoteProxyPolicy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------------------- one step

    def _begun(self, prompt: str, told: Conditioning, shifts: Sequence[Shift], sampling: Sampling) -> _Talk:
        sides = {
            s.weights: self.companions.of(s)
            for shift in shifts
            for s in (shift.expert, shift.anti)
            if isinstance(s, SideModel)
        }
        talk = _Talk(self.reader.render(prompt, told), {key: p.render(prompt, told) for key, p in sides.items()})
        for name, tokens, limit in (
            (self._card.name, talk.prompt, self._card.context_tokens),
            *((p.card.name, talk.side_prompts[key], p.card.context_tokens) for key, p in sides.items()),
        ):
            if len(tokens) + sampling.max_new_tokens > limit:
                talk.finish = "error"
                talk.error = (
                    f"the prompt has {len(tokens)} tokens and {sampling.max_new_tokens} are to be added, but {name} "
                    f"reads at most {limit}"
                )
        return talk

    def _ask(self, talk: _Talk, count: int) -> Told | None:
        """What the server tells of the next token; None where it fails for good, which ends the answer."""
        payload = {"prompt": [*talk.prompt, *talk.tokens], "max_tokens": 1, "temperature": 0.0, "logprobs": count}
        try:
            return self._endpoint.post(self._url, payload, len(talk.tokens), self._read)
        except RequestError as error:
            talk.finish, talk.error, talk.failure = "error", str(error), error
            return None

    def _read(self, response: httpx.Response) -> Told:
        """Raises ValueError, KeyError, IndexError, TypeError or AttributeError for an answer of another form."""
        known = self.companions.map(self.reader, False).covered
        (entry, *_) = response.json()["choices"][0]["logprobs"]["top_logprobs"]
        top: dict[int, float] = {}
        complete = True
        for name, value in entry.items():
            token = self._id_of(name)
            if not math.isfinite(value):
                continue
            if token is None:
                complete = False
            elif token < len(known) and known[token]:  # what is no token of the reader's can never be drawn
                top[token] = max(float(value), top.get(token, -math.inf))
        if not top:
            raise ValueError(f"none of the {len(entry)} tokens told is one of the reader's")
        return Told(top, complete)

    def _id_of(self, name: str) -> int | None:
        """Servers name tokens by their text, or as ``token_id:7``."""
        _, found, number = name.partition("token_id:")
        return int(number) if found and number.isdecimal() else self._names.get(name)

    def _step(self, talk: _Talk, said: Told, shifts: Sequence[Shift]) -> None:
        width = len(self.companions.map(self.reader, False).index)
        moved, tail = self._shifted(talk, shifts, width)
        choice = choose(said.top, moved, tail, complete=said.complete)
        if not choice.certified and self.most_told > self.told:
            more = self._ask(talk, self.most_told)
            if more is None:
                return
            choice = choose(more.top, moved, tail, complete=more.complete)
        talk.tokens.append(choice.token)
        talk.choices.append(choice)
        with self._lock:
            self.steps += 1
            self.certified_steps += choice.certified

    @torch.no_grad()
    def _shifted(self, talk: _Talk, shifts: Sequence[Shift], width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Δ [V], and the tail model's log-probabilities [V]: the first anti-expert's, even ones where there is none."""
        known = self.companions.map(self.reader, False).covered
        total = torch.zeros(1, width)
        tail = torch.zeros(width)
        for n, shift in enumerate(shifts):
            alpha = shift.alphas[min(len(talk.tokens), len(shift.alphas) - 1)]
            expert, anti = (self._logprobs(side, talk, known) for side in (shift.expert, shift.anti))
            tail = anti[0] if n == 0 else tail
            total = shifted(total, [Difference(expert, anti, torch.tensor([alpha]), shift.plausible, known)])
        return total[0].masked_fill(~known, float("-inf")), tail

    def _logprobs(self, side: Side, talk: _Talk, known: torch.Tensor) -> torch.Tensor:
        assert isinstance(side, SideModel)
        policy = self.companions.of(side)
        key = side.weights, side.delta.id if side.delta else ""
        if key not in talk.caches:
            talk.caches[key] = SideCache(policy.model, policy._payload(side.delta), policy._forcing.mount)
        logits = talk.caches[key].logits([talk.side_prompts[side.weights] + tuple(talk.tokens)])
        width = len(known)
        logits = torch.nn.functional.pad(logits[:, :width], (0, max(0, width - logits.shape[-1])))
        return normalized(logits.to(known.device), known)

    def _shifts(self, conditioning: Conditioning) -> list[Shift]:
        """The shifts that do anything. Raises UnsupportedError for what an endpoint cannot do."""
        if conditioning.delta is not None:
            raise UnsupportedError(
                f"the model {self._card.name!r} is behind an endpoint ({self._url}), so its weights cannot be changed"
            )
        active = [shift for shift in conditioning.shifts if not shift.is_inert]
        for shift in active:
            if shift.mapped:
                raise UnsupportedError("a shift over an endpoint needs sides with the server's own token ids")
            for side in (shift.expert, shift.anti):
                if not isinstance(side, SideModel):
                    what = "the remote base itself" if side is None else "a change of the remote base's weights"
                    raise UnsupportedError(
                        f"a side of the shift {shift} is {what}, whose full logits the endpoint {self._url} does not "
                        "tell; name a local model for both sides"
                    )
                self.companions.map(self.companions.of(side), False)
        return active

    # ------------------------------------------------------------------------------------------------------- answers

    def _raise_if_nobody_answered(self, talks: Sequence[_Talk]) -> None:
        """ModelError where no request was answered and the reason is the address or the key."""
        failures = [talk.failure for talk in talks if talk.failure is not None]
        if failures and not any(talk.tokens for talk in talks) and all(f.kind != "other" for f in failures):
            raise self._endpoint.explain(failures[0].kind, str(failures[0]))

    def _finish(self, talk: _Talk, sampling: Sampling, stopped: Any) -> None:
        if talk.finish or not talk.tokens:
            return
        if talk.tokens[-1] in self.reader._ends or (stopped is not None and stopped(talk.tokens)):
            talk.finish = "stop"
        elif len(talk.tokens) == sampling.max_new_tokens:
            talk.finish = "length"

    def _answered(self, talk: _Talk, sampling: Sampling) -> CertifiedAnswer:
        text = self.reader.tokenizer.decode(talk.tokens, skip_special_tokens=True)
        cuts = [text.find(s) for s in sampling.stop if s in text]
        return CertifiedAnswer(
            tokens=tuple(talk.tokens),
            text=text[: min(cuts)] if cuts else text,
            finish=talk.finish,
            prompt_tokens=len(talk.prompt),
            certified=tuple(choice.certified for choice in talk.choices),
            margins=tuple(choice.margin for choice in talk.choices),
            error=talk.error,
        )

    def _completion(self, answer: CertifiedAnswer) -> Completion:
        if answer.finish == "error":
            return Completion(
                tokens=(), logprobs=(), text="", finish="error", prompt_tokens=answer.prompt_tokens, error=answer.error
            )
        return Completion(
            tokens=answer.tokens,
            logprobs=(),
            text=answer.text,
            finish="stop" if answer.finish == "stop" else "length",
            prompt_tokens=answer.prompt_tokens,
        )


def _names(tokenizer: Any) -> dict[str, int]:
    """Token ids by the text that a server would name them by; texts that several tokens share name none of them."""
    found: dict[str, int] = {}
    twice: set[str] = set()
    for token in tokenizer.get_vocab().values():
        text = tokenizer.decode([token])
        if text in found:
            twice.add(text)
        found[text] = token
    return {text: token for text, token in found.items() if text not in twice}
