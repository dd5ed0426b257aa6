"""What a model of this family has become after a text: memories, convolution tails, keys and values, in one value a
layer.

A :class:`TitansCache` is what ``generate`` passes on; a forward pass puts new values in it and changes none, so a fork
costs a list, and rolling back is to keep a fork. Its rows are independent texts. The chunk length that a memory was
written with is saved with it and checked on load.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from twoclock.errors import ConfigError, DataError
from twoclock.hashing import canonical_json
from twoclock.models.titans.attention import Past
from twoclock.models.titans.config import TitansConfig
from twoclock.nn.neural_memory_spec import MemorySpec, spec_difference
from twoclock.nn.neural_memory_state import FORMAT as STATE_FORMAT
from twoclock.nn.neural_memory_state import MemoryState
from twoclock.store.blobs import write_atomically

__all__ = ["FORMAT", "LayerCache", "TitansCache"]

FORMAT = "twoclock.titans_cache/1"

FUNCTION_FIELDS = (
    "architecture",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "window",
    "segment",
    "persistent_tokens",
    "memory_layers",
    "memory_zeroed",
    "forgetting",
)
"""What, beside the memory's spec, a state depends on."""


@dataclass(frozen=True)
class LayerCache:
    """One layer's state; None or empty where the layer has no such part or nothing was read."""

    memory: MemoryState | None = None
    opened: tuple[torch.Tensor, ...] = ()
    """The memory's weights when the open segment began, which is what its tokens read as context (``mac``)."""
    past: Past | None = None
    """The window's keys and values; of a segmented layer those of the open segment."""
    context: Past | None = None
    """Keys and values of what the open segment's tokens read from the memory (``mac``)."""

    def take(self, rows: torch.Tensor) -> LayerCache:
        """The named rows [n] (int64, CPU) in that order, any of them more than once."""
        return replace(
            self._each(lambda t: t.index_select(0, rows.to(t.device))),
            memory=None if self.memory is None else self.memory.take(rows),
        )

    def detach(self) -> LayerCache:
        return replace(self._each(torch.Tensor.detach), memory=None if self.memory is None else self.memory.detach())

    def with_memory_of(self, other: LayerCache) -> LayerCache:
        """This layer's keys and values with the other's memory."""
        return replace(self, memory=other.memory, opened=other.opened)

    @property
    def bytes(self) -> int:
        """Memory of the tensors; one that is used twice is counted once."""
        kept = {id(t): t for t in (*self.opened, *_parts(self.past), *_parts(self.context))}
        if self.memory is not None:
            kept = {
                k: t for k, t in kept.items() if k not in {id(w) for w in (*self.memory.weights, *self.memory.base)}
            }
        return sum(t.numel() * t.element_size() for t in kept.values()) + (self.memory.bytes if self.memory else 0)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> LayerCache:
        def past(p: Past | None) -> Past | None:
            return None if p is None else Past(change(p.keys), change(p.values), change(p.held))

        return LayerCache(self.memory, tuple(map(change, self.opened)), past(self.past), past(self.context))


def _parts(past: Past | None) -> tuple[torch.Tensor, ...]:
    return () if past is None else (past.keys, past.values)


class TitansCache:
    """The state of every layer, as ``past_key_values``. ``columns`` counts what was fed, padding included."""

    is_compileable = False
    is_croppable = False

    def __init__(self, config: TitansConfig) -> None:
        self.config = config
        self.layers: list[LayerCache] = [LayerCache()] * config.num_hidden_layers
        self.columns = 0
        self.rows: int | None = None
        """None until something has been read."""

    def fork(self) -> TitansCache:
        """Another cache with the same values; what is fed to one does not reach the other."""
        other = TitansCache(self.config)
        other.layers, other.columns, other.rows = list(self.layers), self.columns, self.rows
        return other

    def take(self, rows: Sequence[int] | torch.Tensor) -> TitansCache:
        """A cache of the named rows in that order, any of them more than once."""
        index = torch.as_tensor(rows, dtype=torch.int64).cpu()
        count = self.rows or 0
        if index.ndim != 1 or bool(((index < 0) | (index >= count)).any()):
            raise ValueError(f"rows are numbers from 0 to {count - 1}; got {index.tolist()}")
        other = self.fork()
        other.layers, other.rows = [layer.take(index) for layer in self.layers], len(index)
        return other

    def with_memory_of(self, other: TitansCache) -> TitansCache:
        """A cache with this one's windows and the other's memories: what a memory is worth shows where it is not the
        text's own. Both must have read the same number of tokens in each row."""
        mixed = self.fork()
        if self.rows != other.rows or self.columns != other.columns:
            raise ConfigError(
                f"memories change places between caches of equal rows and columns; got {self.rows} rows of "
                f"{self.columns} and {other.rows} of {other.columns}"
            )
        mixed.layers = [mine.with_memory_of(theirs) for mine, theirs in zip(self.layers, other.layers, strict=True)]
        return mixed

    def detach(self) -> TitansCache:
        """The same values without their history."""
        other = self.fork()
        other.layers = [layer.detach() for layer in self.layers]
        return other

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def memories(self) -> list[MemoryState | None]:
        return [layer.memory for layer in self.layers]

    # ------------------------------------------------------------------------------------ what transformers asks for

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def get_max_length(self) -> int:
        return -1

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._become(self.take(beam_idx))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._become(self.take(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._become(self.take(torch.arange(self.rows or 0).repeat_interleave(repeats)))

    def reset(self) -> None:
        self._become(TitansCache(self.config))

    def crop(self, *_: Any) -> None:
        raise ConfigError(
            "a neural memory cannot unread tokens: keep a fork from before them (cache.fork()) and go on from it"
        )

    def _become(self, other: TitansCache) -> None:
        self.layers, self.columns, self.rows = other.layers, other.columns, other.rows

    # ------------------------------------------------------------------------------------------------ to disk and back

    def save(self, path: Path | str) -> None:
        """Writes a safetensors file; whole or not at all. Raises NumericsError rather than keep NaN."""
        from safetensors.torch import save

        tensors: dict[str, torch.Tensor] = {}
        for n, layer in enumerate(self.layers):
            if layer.memory is not None:
                layer.memory.check_finite()
            tensors |= {f"{n}.{name}": t.detach().contiguous().clone() for name, t in _flat(layer).items()}
        header = {
            "format": FORMAT,
            "function": canonical_json(_function(self.config)),
            "columns": str(self.columns),
            "rows": str(self.rows),
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(tensors, metadata=header), path.with_name(f".{path.name}.{os.getpid()}.part"))

    @classmethod
    def load(cls, path: Path | str, config: TitansConfig) -> TitansCache:
        """The inverse of :meth:`save`. Raises ConfigError where the model computes another function than the one that
        wrote the file (another chunk, say), DataError for a damaged file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as handle:
                header = handle.metadata() or {}
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read as a saved cache: {error}") from error
        if header.get("format") != FORMAT:
            raise DataError(f"{path}: a saved cache says format '{FORMAT}'; this says {header.get('format')!r}")
        try:
            function, columns = json.loads(header["function"]), int(header["columns"])
            rows = None if header["rows"] == "None" else int(header["rows"])
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}: the header of a saved cache cannot be read: {error}") from error
        _check_function(function, config)
        cache = cls(config)
        cache.columns, cache.rows = columns, rows
        cache.layers = [_layer(tensors, f"{n}.", config, str(path)) for n in range(config.num_hidden_layers)]
        return cache


def _function(config: TitansConfig) -> dict[str, Any]:
    found = {name: getattr(config, name) for name in FUNCTION_FIELDS}
    return found | {"memory": config.memory_spec.to_json() if config.has_memory else None}


def _check_function(saved: dict[str, Any], config: TitansConfig) -> None:
    mine = _function(config)
    problems = [
        f"{name}: the saved cache has {saved.get(name)!r}, the model {mine[name]!r}"
        for name in FUNCTION_FIELDS
        if saved.get(name) != mine[name]
    ]
    if saved.get("memory") and config.has_memory:
        spec = MemorySpec.from_json(saved["memory"])
        problems += [f"memory.{line}" for line in spec_difference(spec, config.memory_spec)]
    if problems:
        raise ConfigError(problems)


def _flat(layer: LayerCache) -> dict[str, torch.Tensor]:
    named = {} if layer.memory is None else {f"memory.{name}": t for name, t in layer.memory.flat().items()}
    named |= {f"opened.{n}": t for n, t in enumerate(layer.opened)}
    for name, past in (("past", layer.past), ("context", layer.context)):
        if past is not None:
            named |= {f"{name}.keys": past.keys, f"{name}.values": past.values, f"{name}.held": past.held}
    return named


def _layer(tensors: dict[str, torch.Tensor], prefix: str, config: TitansConfig, path: str) -> LayerCache:
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    memory = {name.removeprefix("memory."): t for name, t in own.items() if name.startswith("memory.")}
    spec = config.memory_spec if config.has_memory else None
    state = None
    if memory and spec is not None:
        header = {"format": STATE_FORMAT, "spec": canonical_json(spec.to_json())}
        state = MemoryState.from_flat(memory, header, spec)
    try:
        pasts = [
            Past(own[f"{name}.keys"], own[f"{name}.values"], own[f"{name}.held"]) if f"{name}.keys" in own else None
            for name in ("past", "context")
        ]
    except KeyError as error:
        raise DataError(f"{path}: a saved cache lacks {prefix}{error.args[0]}") from error
    opened = tuple(own[f"opened.{n}"] for n in range(spec.depth if spec else 0) if f"opened.{n}" in own)
    return LayerCache(state, opened, pasts[0], pasts[1])
