"""The channel's state: a memory a reader, as a value with canonical bytes. The retrofit itself, whose parameters
reading and writing never change, is named and not kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from twoclock.errors import ConfigError, DataError, StoreError
from twoclock.hashing import canonical_json
from twoclock.nn.retrofit import Retrofit, RetrofitSpec
from twoclock.nn.soft_memory import SoftMemory, dump_memory, load_memory

__all__ = ["NeuralMemoryState", "Reader", "dump_state", "load_state"]

FORMAT = 1
HEADER = "twoclock"


@dataclass(frozen=True)
class Reader:
    """Whose memory one is: a task's (``*``: every one's), or a user's on a task."""

    task: str
    user: str = ""

    @property
    def id(self) -> str:
        return canonical_json([self.task, self.user]) if self.user else self.task


@dataclass(frozen=True)
class NeuralMemoryState:
    """``memories`` by reader, those that were never written left out. Nothing in a state is ever written to."""

    base: str
    """Content hash of the policy's base weights."""
    seed: int
    memories: tuple[tuple[Reader, SoftMemory, int], ...] = field(default=(), repr=False)
    """(reader, memory, texts written into it), in the order of the readers' ids."""

    def memory(self, reader: Reader) -> SoftMemory | None:
        return next((m for r, m, _ in self.memories if r == reader), None)

    def texts(self, reader: Reader) -> int:
        return next((n for r, _, n in self.memories if r == reader), 0)

    def with_memory(self, reader: Reader, memory: SoftMemory | None, texts: int) -> NeuralMemoryState:
        """The state with one reader's memory replaced, or with none."""
        kept = [entry for entry in self.memories if entry[0] != reader]
        if memory is not None:
            kept.append((reader, memory, texts))
        return replace(self, memories=tuple(sorted(kept, key=lambda entry: entry[0].id)))


def dump_state(state: NeuralMemoryState) -> bytes:
    """Canonical safetensors: a header, and each memory's own bytes."""
    from safetensors.torch import save

    retrofit = state.memories[0][1].retrofit if state.memories else None
    header = {
        "channel": "neural_memory",
        "format": FORMAT,
        "base": state.base,
        "seed": state.seed,
        "readers": [[r.task, r.user, texts] for r, _, texts in state.memories],
        "spec": None if retrofit is None else retrofit.spec.to_json(),
    }
    blobs = [dump_memory(memory) for _, memory, _ in state.memories]
    tensors = {f"memory.{n}": torch.frombuffer(bytearray(b), dtype=torch.uint8) for n, b in enumerate(blobs)}
    return bytes(save(tensors, metadata={HEADER: canonical_json(header)}))


def load_state(blob: bytes, find: Callable[[str, int, RetrofitSpec], Retrofit]) -> NeuralMemoryState:
    """The inverse of :func:`dump_state`. ``find`` gives the retrofit for (base, seed, spec). Raises StoreError for
    other bytes, and for memories that were written with another retrofit."""
    from safetensors.torch import load

    try:
        length = int.from_bytes(blob[:8], "little")
        head = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"][HEADER])
        tensors = load(blob)
        if head["channel"] != "neural_memory":
            raise ValueError(f"it is a state of the channel {head['channel']!r}")
        if head["format"] != FORMAT:
            raise ValueError(f"its format is {head['format']!r}, this version reads {FORMAT}")
        state = NeuralMemoryState(str(head["base"]), int(head["seed"]))
        readers = [(Reader(str(task), str(user)), int(texts)) for task, user, texts in head["readers"]]
        saved = [tensors[f"memory.{n}"].numpy().tobytes() for n in range(len(readers))]
        spec = RetrofitSpec.from_json(head["spec"]) if readers else None
    except Exception as problem:  # the library raises kinds of its own
        raise StoreError(f"not a state of the channel 'neural_memory' ({len(blob)} bytes): {problem!r}") from problem
    if spec is None:
        return state
    try:
        retrofit = find(state.base, state.seed, spec)
        for (reader, texts), data in zip(readers, saved, strict=True):
            state = state.with_memory(reader, load_memory(data, retrofit), texts)
    except (ConfigError, DataError) as problem:
        raise StoreError(f"a state of the channel 'neural_memory' cannot be read: {problem}") from problem
    return state
