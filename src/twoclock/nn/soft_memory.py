"""What a reader remembers, as a value beside a model: the memories of a retrofit after the texts that were written, and
how they and the retrofit itself are saved.

A text is written in segments, each read by the base model behind a few tokens of the one before. What is not yet a
whole segment stays here as tokens, at most ``segment + overlap`` of them, so that a text may come in pieces and gives
the same bits as the whole. The size does not grow with what was written. A fork is the value itself: nothing changes
one.

The files are safetensors. Their header says what is needed to refuse them elsewhere: the format, the base's content
hash, the retrofit's, and its spec with the memory's chunk length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from twoclock.errors import ConfigError, DataError
from twoclock.hashing import canonical_json, content_hash, short
from twoclock.nn.neural_memory_state import MemoryState
from twoclock.nn.retrofit import FORMAT as RETROFIT_FORMAT
from twoclock.nn.retrofit import Retrofit, RetrofitSpec, fresh_states
from twoclock.types import SoftState

__all__ = ["FORMAT", "KIND", "SoftMemory", "dump_memory", "dump_retrofit", "load_memory", "load_retrofit", "soft_state"]

FORMAT = "twoclock.soft_memory/1"
KIND = "neural_memory"
"""What :attr:`twoclock.types.SoftState.kind` says of such a value."""

HEADER = "twoclock"
OPEN = "open."


@dataclass(frozen=True, eq=False)
class SoftMemory:
    """One reader's memory. Two are equal when their ids are. Treat the tensors as read-only: values share them."""

    retrofit: Retrofit
    states: tuple[MemoryState, ...]
    """One a layer, of one row: after every whole segment and every text that has ended."""
    tail: tuple[int, ...] = ()
    """Tokens of the text that is open: what a segment is read behind, then what is in no whole segment yet."""
    told: tuple[bool, ...] = ()
    """For each token of the tail whether it is to be remembered; others are only read."""
    context: int = 0
    """How many tokens of the tail are there only to be read behind."""
    reads: tuple[MemoryState, ...] = ()
    """The states that are read while a text is open: the tail is in them. Empty: ``states``."""
    tokens: int = 0
    """Tokens given so far, those of the tail too."""

    @classmethod
    def start(cls, retrofit: Retrofit) -> SoftMemory:
        """A reader who has written nothing."""
        return cls(retrofit, fresh_states(retrofit))

    @cached_property
    def id(self) -> str:
        """A hash of all that it says and will say follows from."""
        return content_hash(dump_memory(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SoftMemory) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def heard(self) -> tuple[MemoryState, ...]:
        """What is read, one state a layer."""
        return self.reads or self.states

    @property
    def is_silent(self) -> bool:
        """Whether a model beside it is the base exactly: nothing was written, or every gate is closed."""
        return self.tokens == 0 or self.retrofit.is_closed

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        return sum(state.bytes for state in (*self.states, *self.reads))

    def check_finite(self) -> None:
        """Raises NumericsError where NaN or infinity has got in; call it before the value is kept."""
        for state in (*self.states, *self.reads):
            state.check_finite()


def soft_state(memory: SoftMemory) -> SoftState | None:
    """The part of a conditioning that names this memory; None where it is silent, which is no influence at all."""
    if memory.is_silent:
        return None
    return SoftState(memory.id, KIND, memory.retrofit.spec.base, memory)


# ------------------------------------------------------------------------------------------------------------- as bytes


def dump_memory(memory: SoftMemory) -> bytes:
    """Canonical safetensors: equal memories give equal bytes. Without the retrofit's own parameters, which it names."""
    tensors: dict[str, torch.Tensor] = {}
    for mark, states in (("", memory.states), (OPEN, memory.reads)):
        for at, state in zip(memory.retrofit.spec.layers, states, strict=False):
            tensors |= {f"{mark}{at}.{name}": tensor for name, tensor in state.flat().items()}
    header = {
        "format": FORMAT,
        "retrofit": memory.retrofit.id,
        "spec": memory.retrofit.spec.to_json(),
        "tail": list(memory.tail),
        "told": [int(flag) for flag in memory.told],
        "context": memory.context,
        "tokens": memory.tokens,
    }
    return _dumped(header, tensors)


def load_memory(blob: bytes, retrofit: Retrofit) -> SoftMemory:
    """The inverse of :func:`dump_memory`, exactly. Raises DataError for bytes that are no saved memory, ConfigError for
    a memory of another base, another spec (the chunk length too) or other parameters."""
    header, tensors = _loaded(blob, FORMAT, "a saved memory")
    try:
        spec = RetrofitSpec.from_json(header["spec"])
        tail, told = tuple(map(int, header["tail"])), tuple(map(bool, header["told"]))
        context, tokens, name = int(header["context"]), int(header["tokens"]), str(header["retrofit"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the header of a saved memory cannot be read: {error!r}") from error
    if problems := _other_spec(spec, retrofit.spec):
        raise ConfigError(problems)
    if name != retrofit.id:
        raise ConfigError(
            f"this memory was written with the retrofit {short(name)}, and the one given is {short(retrofit.id)}, of "
            "the same spec but other parameters: a memory means nothing under others; load the retrofit it was "
            "written with"
        )
    if len(told) != len(tail) or not 0 <= context <= len(tail) <= spec.segment + spec.overlap + 1 or tokens < 0:
        raise DataError(
            f"the tail of a saved memory does not fit: {len(tail)} tokens, {len(told)} marks, {context} of context"
        )
    parts = [_states(tensors, "", spec)]
    parts.append(_states(tensors, OPEN, spec) if any(n.startswith(OPEN) for n in tensors) else ())
    return SoftMemory(retrofit, parts[0], tail, told, context, parts[1], tokens)


def dump_retrofit(retrofit: Retrofit) -> bytes:
    """Canonical safetensors: the parameters, and the spec with the base's hash."""
    return _dumped({"format": RETROFIT_FORMAT, "spec": retrofit.spec.to_json()}, retrofit.flat())


def load_retrofit(blob: bytes, base: str | None = None) -> Retrofit:
    """The inverse of :func:`dump_retrofit`. Raises DataError for other bytes, ConfigError where it is for other weights
    than ``base``."""
    header, tensors = _loaded(blob, RETROFIT_FORMAT, "a saved retrofit")
    try:
        spec = RetrofitSpec.from_json(header["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the header of a saved retrofit cannot be read: {error!r}") from error
    if base is not None and spec.base != base:
        raise ConfigError(_other_base(spec.base, base))
    return Retrofit.from_flat(spec, tensors)


def _other_base(given: str, expected: str) -> str:
    return (
        f"this was made for the base weights {short(given)}, and the model is {short(expected)}: a memory reads hidden "
        "states, which mean nothing in another model; train a retrofit for this one"
    )


def _other_spec(given: RetrofitSpec, expected: RetrofitSpec) -> list[str]:
    """A line for each field in which two specs differ."""
    if given.base != expected.base:
        return [_other_base(given.base, expected.base)]
    a, b = given.to_json(), expected.to_json()
    pairs = [(name, a[name], b[name]) for name in a if name != "memory"]
    pairs += [(name, a["memory"][name], b["memory"][name]) for name in a["memory"]]
    return [f"{name}: the saved memory has {x!r}, the retrofit {y!r}" for name, x, y in pairs if x != y]


def _states(tensors: Mapping[str, torch.Tensor], mark: str, spec: RetrofitSpec) -> tuple[MemoryState, ...]:
    found = []
    for at in spec.layers:
        start = f"{mark}{at}."
        mine = {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
        plain = {"format": "twoclock.neural_memory/1", "spec": canonical_json(spec.memory.to_json())}
        state = MemoryState.from_flat(mine, plain, spec.memory)
        if state.rows != 1:
            raise DataError(f"a saved memory has one row; layer {at} has {state.rows}")
        found.append(state)
    return tuple(found)


def _dumped(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    # One key: the library writes several in no fixed order, and equal values must give equal bytes.
    flat = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return bytes(save(flat, metadata={HEADER: canonical_json(dict(header))}))


def _loaded(blob: bytes, form: str, what: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors.torch import load

    try:
        length = int.from_bytes(blob[:8], "little")
        header = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"][HEADER])
        tensors = dict(load(blob))
    except Exception as problem:  # the library raises kinds of its own
        raise DataError(f"this is not {what} ({len(blob)} bytes): {problem!r}") from problem
    if not isinstance(header, dict) or header.get("format") != form:
        says = header.get("format") if isinstance(header, dict) else header
        raise DataError(f"{what} says format '{form}'; this says {says!r}")
    return header, tensors
