"""What a neural memory is: the description that its states, parameters and kernels share, and the record of its gates.

A memory of one head is a small network M that is trained while it reads (Behrouz, Zhong and Mirrokni, "Titans",
arXiv:2501.00663, equations 8-15). Everything that changes what the same text does to it stands in
:class:`MemorySpec`, the chunk length too: gradients are taken at the weights with which a chunk began, so another
length is another function, and a state is only valid under the spec that it was written with.

Legend: B rows, H heads, T tokens, D width of keys, values and queries, C chunk length, L layers of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

import torch

from twoclock.errors import ConfigError

__all__ = ["Activation", "Gates", "MemorySpec", "ReadAt", "check_gates", "half_life_bias", "spec_difference"]

Activation = Literal["gelu", "silu"]
ReadAt = Literal["after", "before"]


@dataclass(frozen=True, kw_only=True)
class MemorySpec:
    """The function that a memory computes. Frozen, comparable and, as a dict, plain JSON."""

    heads: int
    width: int
    """D, of keys, values and queries, a head."""
    depth: int = 2
    """L: 1 is a matrix, 2 and more a network with an activation between its layers."""
    expansion: int = 4
    """The hidden layers are ``expansion · width`` wide; without meaning at depth 1."""
    chunk: int = 16
    """C, in tokens. A matrix whose C keys are all the same is stable below θ = (1 - η)/C."""
    activation: Activation = "gelu"
    residual: bool = False
    """M(x) = x + f(x) in place of f(x)."""
    norm: bool = False
    """The output of f passes a layer norm over its width (before the residual)."""
    momentum: bool = True
    """False: no past surprise, S_t = -θ_t u_t, and the state holds no S."""
    read: ReadAt = "after"
    """Token t reads the memory after its own write (M_t) or before it (M_{t-1})."""
    clip: float | None = None
    """A token's gradient is scaled down to this norm, over all layers of its head; None: as it is, like the paper."""
    conv: int = 4
    """Width of the causal convolution of keys, values and queries; 1 is none."""
    max_rate: float = 0.1
    """θ = max_rate · sigmoid(…) where gates come from parameters."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is a whole number from 1 on; got {value!r}"
            for name in ("heads", "width", "depth", "expansion", "chunk", "conv")
            if not isinstance(value := getattr(self, name), int) or isinstance(value, bool) or value < 1
        ]
        if self.activation not in get_args(Activation):
            problems.append(f"activation is one of {', '.join(get_args(Activation))}; got {self.activation!r}")
        if self.read not in get_args(ReadAt):
            problems.append(f"read is 'after' (the token's own write) or 'before' it; got {self.read!r}")
        for name in ("residual", "norm", "momentum"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} is True or False; got {getattr(self, name)!r}")
        if self.clip is not None and not _positive(self.clip):
            problems.append(f"clip is a gradient norm above 0, or None for no clipping; got {self.clip!r}")
        if not _positive(self.max_rate):
            problems.append(f"max_rate is a learning rate above 0; got {self.max_rate!r}")
        if problems:
            raise ConfigError(problems)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths between the layers: L + 1 of them, the first and the last D."""
        return (self.width, *[self.expansion * self.width] * (self.depth - 1), self.width)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each layer of one head; a layer takes rows, z = a W."""
        return tuple(zip(self.widths[:-1], self.widths[1:], strict=True))

    @property
    def values(self) -> int:
        """P: weights of one head's memory."""
        return sum(i * o for i, o in self.shapes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MemorySpec:
        """The inverse of :meth:`to_json`; names what is unknown or missing."""
        known = {f.name for f in fields(cls)}
        problems = [f"unknown field {name!r} in a memory's spec" for name in sorted(set(data) - known)]
        problems += [f"a memory's spec lacks {name!r}" for name in ("heads", "width") if name not in data]
        if problems:
            raise ConfigError(problems)
        return cls(**dict(data))


def _positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(cast(float, value)) and cast(float, value) > 0


def spec_difference(given: MemorySpec, expected: MemorySpec) -> list[str]:
    """A line for each field in which two specs differ; none when a state of one is a state of the other."""
    a, b = given.to_json(), expected.to_json()
    return [f"{name}: the state has {a[name]!r}, the memory {b[name]!r}" for name in a if a[name] != b[name]]


def half_life_bias(tokens: float) -> float:
    """The bias b at which α = sigmoid(b) halves a memory in this many tokens: logit(1 - 2^(-1/tokens)).

    A bias of 0 would be α = 0.5: half of everything forgotten at every token.
    """
    if not tokens > 0 or math.isinf(tokens):
        raise ValueError(f"a half-life is a number of tokens above 0; got {tokens!r}")
    forget = -math.expm1(-math.log(2) / tokens)
    return math.log(forget) - math.log1p(-forget)


@dataclass(frozen=True)
class Gates:
    """The inner learning rate, momentum and forgetting of each token, [B, H, T] each."""

    rate: torch.Tensor
    """θ ≥ 0."""
    momentum: torch.Tensor | None
    """η in [0, 1]; None where the spec has no momentum."""
    forget: torch.Tensor
    """α in [0, 1]: 0 keeps everything, 1 clears the memory."""


def check_gates(spec: MemorySpec, gates: Gates, shape: tuple[int, int, int]) -> None:
    """Raises ConfigError unless the gates are [B, H, T] and within their ranges (NaN is in none)."""
    if spec.momentum != (gates.momentum is not None):
        raise ConfigError(
            "this memory has momentum: give gates.momentum, η [B, H, T]"
            if spec.momentum
            else "this memory has no momentum (spec.momentum=False): give gates.momentum=None"
        )
    for name, value, top in (
        ("rate", gates.rate, math.inf),
        ("momentum", gates.momentum, 1.0),
        ("forget", gates.forget, 1.0),
    ):
        if value is None:
            continue
        if tuple(value.shape) != shape:
            raise ConfigError(f"gates.{name} is [B, H, T] = {list(shape)} like the keys; got {list(value.shape)}")
        inside = (value >= 0) & (value <= top) & value.isfinite()
        if not bool(inside.all()):
            first = tuple(int(i) for i in (~inside).nonzero()[0])
            limit = "a finite number from 0 on" if top == math.inf else "in [0, 1]"
            raise ConfigError(
                f"gates.{name} is {limit}; got {float(value[first].detach()):g} at (row, head, token) {first}"
            )
