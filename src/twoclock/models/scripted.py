"""Policies that follow a script: the fakes that make loops, channels and gates testable in milliseconds.

They keep the contract of a real policy: answers follow from (prompt, conditioning, seed) alone, a request that fails is
an error completion beside its siblings, stop strings and the token limit are obeyed. A token is one UTF-8 byte, and its
log-probability is 0: the script is certain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal

from twoclock.errors import UnsupportedError
from twoclock.hashing import content_hash
from twoclock.seeding import child_rng
from twoclock.types import Completion, Conditioning, PolicyCard, Request, Sampling

__all__ = ["Script", "ScriptedPolicy", "coin_policy", "encode", "decode"]

Script = Callable[[str, Conditioning, int], str]
"""(prompt, conditioning, seed) → answer. Must be a function of its arguments; what it raises fails that completion."""


def encode(text: str) -> tuple[int, ...]:
    """Text as byte tokens."""
    return tuple(text.encode("utf-8"))


def decode(tokens: Sequence[int]) -> str:
    """Byte tokens as text; a character that was cut in the middle is dropped."""
    return bytes(tokens).decode("utf-8", errors="ignore")


class ScriptedPolicy:
    """A :class:`~twoclock.contracts.Policy` that answers what ``script`` says, and counts what it was asked."""

    def __init__(
        self,
        script: Script,
        *,
        name: str = "scripted",
        context_tokens: int = 4096,
        accepts_delta: bool = True,
    ) -> None:
        """``accepts_delta=False`` refuses weight changes as an endpoint does. ``name`` is also what tells two scripted
        policies apart: the base hash is that of the name."""
        self._script = script
        self._accepts_delta = accepts_delta
        self._card = PolicyCard(
            name=name,
            base_hash=content_hash({"scripted": name}),
            trainable=False,
            context_tokens=context_tokens,
        )
        self._lock = threading.Lock()
        self.calls = 0
        """How often :meth:`sample` was called."""
        self.asked: list[tuple[str, Conditioning, int]] = []
        """Every (prompt, conditioning, seed) that was sampled, in order."""

    @property
    def card(self) -> PolicyCard:
        return self._card

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        """See :class:`~twoclock.contracts.Policy`."""
        if not self._accepts_delta and any(r.conditioning.delta is not None for r in requests):
            raise UnsupportedError(f"the scripted policy '{self._card.name}' takes no weight changes")
        if not self._accepts_delta and any(r.conditioning.mixture is not None for r in requests):
            raise UnsupportedError(f"the scripted policy '{self._card.name}' takes no experts into its weights")
        if not self._accepts_delta and any(r.conditioning.shifts for r in requests):
            raise UnsupportedError(f"the scripted policy '{self._card.name}' takes no shifts of its logits")
        if not self._accepts_delta and any(r.conditioning.soft is not None for r in requests):
            raise UnsupportedError(f"the scripted policy '{self._card.name}' reads no memory beside it")
        with self._lock:
            self.calls += 1
            self.asked += [(r.prompt, r.conditioning, seed) for r in requests for seed in r.seeds]
        return [tuple(self._complete(request, seed, sampling) for seed in request.seeds) for request in requests]

    def _complete(self, request: Request, seed: int, sampling: Sampling) -> Completion:
        parts = [request.conditioning.system or "", *(t for turn in request.conditioning.exemplars for t in turn)]
        prompt_tokens = len(encode("".join(parts) + request.conditioning.told(request.prompt)))
        try:
            text = self._script(request.prompt, request.conditioning, seed)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            return Completion(
                tokens=(), logprobs=(), text="", finish="error", prompt_tokens=prompt_tokens, error=message
            )
        cuts = [at for at in (text.find(stop) for stop in sampling.stop if stop) if at >= 0]
        if cuts:
            text = text[: min(cuts)]
        tokens = encode(text)[: sampling.max_new_tokens]
        finish: Literal["stop", "length"] = "stop"
        if len(tokens) < len(encode(text)):
            finish, text = "length", decode(tokens)
        return Completion(
            tokens=tokens, logprobs=(0.0,) * len(tokens), text=text, finish=finish, prompt_tokens=prompt_tokens
        )


def coin_policy(
    chance: float | Callable[[str, Conditioning], float],
    *,
    right: str = "yes",
    wrong: str = "no",
    name: str = "coin",
) -> ScriptedPolicy:
    """Answers ``right`` with a probability, by seed: a metric that is pure noise, or one whose level a conditioning
    sets. ``chance`` is a number in [0, 1], or a function of (prompt, conditioning)."""

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        level = chance(prompt, conditioning) if callable(chance) else chance
        return right if child_rng("coin", seed, prompt).random() < level else wrong

    return ScriptedPolicy(script, name=name)
