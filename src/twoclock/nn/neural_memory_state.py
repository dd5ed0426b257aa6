"""The state of a neural memory: a value. Passed in, returned new, kept to roll back; its rows are independent texts.

Size does not depend on how much was read: per row and head P values of weights, P of surprise, and, inside a chunk
only, P of the weights with which the chunk began, at which its gradients are taken. The slow parameters (projections,
first weights) are no part of it.

Weights and surprise stay in float32 (or float64) whatever the model computes in: they sum many small changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from twoclock.errors import ConfigError, DataError, NumericsError
from twoclock.hashing import canonical_json
from twoclock.nn.neural_memory_spec import MemorySpec, spec_difference

__all__ = ["FORMAT", "MemoryState", "init_state", "join_rows"]

FORMAT = "twoclock.neural_memory/1"
"""Named in the header of a saved state; another number is another layout."""

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class MemoryState:
    """What a memory has become after the tokens it has read. Treat the tensors as read-only: states share them."""

    spec: MemorySpec
    weights: Tensors
    """M_t: a tensor [B, H, in, out] for each layer."""
    surprise: Tensors
    """S_t, shaped like the weights; empty where the spec has no momentum."""
    base: Tensors
    """The weights with which the open chunk began; at a chunk's end the same as ``weights``."""
    tails: torch.Tensor
    """The last ``conv - 1`` inputs of the convolution [B, conv - 1, 3·H·D]: of queries, keys and values."""
    written: torch.Tensor
    """Tokens read so far [B], int64, always on the CPU."""

    @property
    def rows(self) -> int:
        return len(self.written)

    @property
    def position(self) -> torch.Tensor:
        """[B]: tokens of the open chunk that are already in it, 0 to C - 1."""
        return self.written % self.spec.chunk

    @property
    def dtype(self) -> torch.dtype:
        return self.weights[0].dtype

    @property
    def device(self) -> torch.device:
        return self.weights[0].device

    @property
    def bytes(self) -> int:
        """Memory of the tensors, one that is used twice (the base, between chunks) counted once."""
        distinct = {id(t): t for t in (*self.weights, *self.surprise, *self.base, self.tails, self.written)}
        return sum(t.numel() * t.element_size() for t in distinct.values())

    def clone(self) -> MemoryState:
        """A copy that shares no storage with this one."""
        return self._each(torch.clone)

    def detach(self) -> MemoryState:
        """The same values without their history: where backpropagation through a long text is cut."""
        return self._each(torch.Tensor.detach)

    def to(self, device: torch.device | str) -> MemoryState:
        return replace(self._each(lambda t: t.to(device)), written=self.written)

    def settled(self) -> MemoryState:
        """The same; where no row stands inside a chunk the base is the weights themselves and takes no memory."""
        return self if bool(self.position.any()) else replace(self, base=self.weights)

    def take(self, rows: Sequence[int] | torch.Tensor) -> MemoryState:
        """The named rows in that order, any of them more than once: to drop, fork or reorder (beam search)."""
        index = torch.as_tensor(rows, dtype=torch.int64).cpu()
        if index.ndim != 1 or bool(((index < 0) | (index >= self.rows)).any()):
            raise ValueError(f"rows are numbers from 0 to {self.rows - 1}; got {index.tolist()}")
        return self._each(lambda t: t.index_select(0, index.to(t.device)))

    def put(self, rows: Sequence[int] | torch.Tensor, other: MemoryState) -> MemoryState:
        """A state in which the named rows are those of ``other``, in order: to reset some texts and keep the rest."""
        index = torch.as_tensor(rows, dtype=torch.int64).cpu()
        wanted = index.tolist()
        if len(wanted) != other.rows or len(set(wanted)) != len(wanted):
            raise ValueError(f"put names each row once and one for each of the {other.rows} given; got rows {wanted}")
        if bool(((index < 0) | (index >= self.rows)).any()):
            raise ValueError(f"rows are numbers from 0 to {self.rows - 1}; got {wanted}")
        order = list(range(self.rows))
        for place, row in enumerate(wanted):
            order[row] = self.rows + place
        return join_rows([self, other]).take(order)

    def check_finite(self) -> None:
        """Raises NumericsError naming the first row with NaN or infinity; call it before a state is kept."""
        for name, tensor in self.flat().items():
            good = tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else tensor.isfinite()
            if not bool(good.all()):
                row = int((~good).nonzero()[0])
                raise NumericsError(
                    f"the neural memory's {name} has NaN or infinity in row {row} after {int(self.written[row])} "
                    "tokens; keep the state before, lower spec.max_rate (a chunk of C equal keys is stable below "
                    "(1 - η)/C) or set spec.clip"
                )

    def flat(self) -> dict[str, torch.Tensor]:
        """The tensors by name, fit to be saved; the base only where a chunk is open."""
        named = {f"weights.{n}": t for n, t in enumerate(self.weights)}
        named |= {f"surprise.{n}": t for n, t in enumerate(self.surprise)}
        if bool(self.position.any()):
            named |= {f"base.{n}": t for n, t in enumerate(self.base)}
        return named | {"tails": self.tails, "written": self.written}

    def header(self) -> dict[str, str]:
        """What a file must say beside :meth:`flat`, as text: the layout and the spec."""
        return {"format": FORMAT, "spec": canonical_json(self.spec.to_json())}

    @classmethod
    def from_flat(
        cls, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str], expected: MemorySpec | None = None
    ) -> MemoryState:
        """The inverse of :meth:`flat` and :meth:`header`.

        Raises DataError for another layout or tensors that do not fit the header, ConfigError where ``expected`` names
        another function than the state was written with.
        """
        if header.get("format") != FORMAT:
            raise DataError(f"a saved neural memory says format '{FORMAT}'; this says {header.get('format')!r}")
        try:
            spec = MemorySpec.from_json(json.loads(header.get("spec", "")))
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"the spec in a saved neural memory's header cannot be read: {error}") from error
        if expected is not None and (problems := spec_difference(spec, expected)):
            raise ConfigError(problems)
        return _assembled(spec, tensors)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MemoryState:
        """The state with every tensor changed, those shared between weights and base still shared."""
        done: dict[int, torch.Tensor] = {}

        def once(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in done:
                done[id(tensor)] = change(tensor)
            return done[id(tensor)]

        return MemoryState(
            self.spec,
            tuple(map(once, self.weights)),
            tuple(map(once, self.surprise)),
            tuple(map(once, self.base)),
            change(self.tails),
            change(self.written),
        )


def init_state(spec: MemorySpec, initial: Sequence[torch.Tensor], rows: int) -> MemoryState:
    """A memory of ``rows`` texts that has read nothing.

    ``initial`` holds W_0, a tensor [H, in, out] for each layer, shared by the rows; gradients flow back to it. States
    are float64 where it is, and else float32.
    """
    shapes = [(spec.heads, *shape) for shape in spec.shapes]
    given = [tuple(w.shape) for w in initial]
    if given != shapes:
        raise ConfigError(f"the first weights are [H, in, out] for each layer, {shapes}; got {given}")
    if rows < 0:
        raise ValueError(f"rows counts texts, from 0 on; got {rows}")
    dtype = torch.float64 if initial[0].dtype == torch.float64 else torch.float32
    # A copy for one row too: training moves W_0 in place, and no state may move with it.
    weights = tuple(w.to(dtype).repeat(rows, 1, 1, 1) for w in initial)
    surprise = tuple(torch.zeros_like(w) for w in weights) if spec.momentum else ()
    tails = weights[0].new_zeros(rows, spec.conv - 1, 3 * spec.heads * spec.width)
    return MemoryState(spec, weights, surprise, weights, tails, torch.zeros(rows, dtype=torch.int64))


def join_rows(states: Sequence[MemoryState]) -> MemoryState:
    """The rows of several states of one spec, one below the other."""
    if not states:
        raise ValueError("join_rows needs at least one state")
    first = states[0]
    for other in states[1:]:
        if problems := spec_difference(other.spec, first.spec):
            raise ConfigError(problems)
    # Between chunks the base is the weights: joined once, so that it costs nothing.
    shared = all(w is b for s in states for w, b in zip(s.weights, s.base, strict=True))
    weights = tuple(torch.cat(parts) for parts in zip(*(s.weights for s in states), strict=True))
    return MemoryState(
        first.spec,
        weights,
        tuple(torch.cat(parts) for parts in zip(*(s.surprise for s in states), strict=True)),
        weights if shared else tuple(torch.cat(parts) for parts in zip(*(s.base for s in states), strict=True)),
        torch.cat([s.tails for s in states]),
        torch.cat([s.written for s in states]),
    )


def _assembled(spec: MemorySpec, tensors: Mapping[str, torch.Tensor]) -> MemoryState:
    """The state of named tensors whose shapes and types are those of the spec; all mistakes in one DataError."""
    names = [f"weights.{n}" for n in range(spec.depth)]
    names += [f"surprise.{n}" for n in range(spec.depth)] if spec.momentum else []
    if missing := [n for n in (*names, "tails", "written") if n not in tensors]:
        raise DataError(f"a saved neural memory lacks {', '.join(missing)}; it has {', '.join(sorted(tensors))}")
    written = tensors["written"].cpu()
    rows = len(written) if written.ndim == 1 else -1
    if written.dtype != torch.int64 or rows < 0 or bool((written < 0).any()):
        raise DataError(f"'written' counts the tokens of each row, int64 from 0 on; got {written!r}")
    is_open = bool((written % spec.chunk).any())
    bases = [f"base.{n}" for n in range(spec.depth)]
    if is_open and (missing := [n for n in bases if n not in tensors]):
        raise DataError(f"a row stands inside a chunk of {spec.chunk}, so {', '.join(missing)} must be saved too")
    shapes: dict[str, tuple[int, ...]] = {
        f"{kind}.{n}": (rows, spec.heads, *shape)
        for kind in ("weights", "surprise", "base")
        for n, shape in enumerate(spec.shapes)
    }
    shapes["tails"] = (rows, spec.conv - 1, 3 * spec.heads * spec.width)
    dtype = tensors["weights.0"].dtype
    wrong = [
        f"{name} is {list(shapes[name])} {dtype}; got {list(tensors[name].shape)} {tensors[name].dtype}"
        for name in (*names, *(bases if is_open else ()), "tails")
        if tuple(tensors[name].shape) != shapes[name] or tensors[name].dtype != dtype
    ]
    if dtype not in (torch.float32, torch.float64):
        wrong.append(f"a memory's weights are float32 or float64; got {dtype}")
    if wrong:
        raise DataError("a saved neural memory does not fit its header: " + "; ".join(wrong))
    weights = tuple(tensors[f"weights.{n}"] for n in range(spec.depth))
    return MemoryState(
        spec,
        weights,
        tuple(tensors[f"surprise.{n}"] for n in range(spec.depth)) if spec.momentum else (),
        tuple(tensors[n] for n in bases) if is_open else weights,
        tensors["tails"],
        written,
    )
