"""A neural memory for a model that was trained without one: what it is, its slow parameters, and how it reads and is
written. Pure functions of tensors; :mod:`twoclock.models.retrofit` puts them into a model.

At chosen layers the residual stream h_t gains what the memory M says to it, and the memory learns, of a text, to say
the next token's embedding e_{t+1} where it sees h_t:

    x_t = (h_t - c) / rms(h_t - c),      h'_t = h_t + g σ(a·x_t + b) M(q(x_t)) W_o,
    k_t = k(x_t, e_{t+1}),   v_t = v(x_t, e_{t+1}),   M ← M - θ_t ∇‖M(k_t) - v_t‖²   (with the gates of the spec)

The rule is that of Behrouz, Zhong and Mirrokni, "Titans", arXiv:2501.00663, equations 8-15; the next token as target is
that of In-Place TTT (public code, ByteDance). A read follows from a token's own hidden state alone (no convolution), so
a batch may be packed in any way. With g = 0 nothing is read, and the model is the base by the path that nothing
touches.

Legend: B rows, T tokens, X width of the model, H heads, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch

from twoclock.errors import ConfigError, DataError
from twoclock.hashing import content_hash
from twoclock.nn.delta_memory import delta_step, is_delta
from twoclock.nn.neural_memory import memory_step
from twoclock.nn.neural_memory_layer import MemoryParameters, init_parameters, layer_read, project, start
from twoclock.nn.neural_memory_spec import MemorySpec
from twoclock.nn.neural_memory_state import MemoryState
from twoclock.seeding import child_seed

__all__ = [
    "FORMAT",
    "MEMORY",
    "LayerParameters",
    "Retrofit",
    "RetrofitSpec",
    "fresh_states",
    "init_retrofit",
    "read_layer",
    "write_layer",
]

FORMAT = "twoclock.retrofit/1"

MEMORY: Mapping[str, Any] = {"depth": 1, "momentum": False, "conv": 1, "chunk": 1, "max_rate": 0.5}
"""What a retrofitted memory is unless told otherwise: a matrix a head under the delta rule, which says 0 until it is
written and stays bounded whatever is repeated. Other specs are other functions of the same kernels."""

RMS_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class RetrofitSpec:
    """What is attached to which model, and where. Frozen, comparable and, as a dict, plain JSON."""

    base: str
    """Content hash of the weights that it is for."""
    width: int
    """X."""
    layers: tuple[int, ...]
    """The layers, from 0 on and ascending, behind which there is a memory each."""
    memory: MemorySpec
    segment: int = 256
    """Tokens that are read together when a text is written: a token's key knows those before it in its segment."""
    overlap: int = 32
    """Tokens of the segment before that a segment is read behind."""

    def __post_init__(self) -> None:
        problems = []
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or self.layers[0] < 0:
            problems.append(f"layers are numbers from 0 on, each once and ascending; got {list(self.layers)}")
        for name, least in (("width", 1), ("segment", 2), ("overlap", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                problems.append(f"{name} is a whole number from {least} on; got {value!r}")
        if self.memory.conv != 1:
            problems.append(
                f"a retrofitted memory has no convolution, since a read follows from one token alone; got conv = "
                f"{self.memory.conv}, type conv = 1"
            )
        if problems:
            raise ConfigError(problems)

    def to_json(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "memory"}
        return plain | {"layers": list(self.layers), "memory": self.memory.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RetrofitSpec:
        """The inverse of :meth:`to_json`."""
        known = {f.name for f in fields(cls)}
        problems = [f"unknown field {name!r} in a retrofit's spec" for name in sorted(set(data) - known)]
        lacking = sorted({"base", "width", "layers", "memory"} - set(data))
        problems += [f"a retrofit's spec lacks {name!r}" for name in lacking]
        if problems:
            raise ConfigError(problems)
        return cls(**{**data, "layers": tuple(data["layers"]), "memory": MemorySpec.from_json(data["memory"])})


@dataclass(frozen=True)
class LayerParameters:
    """The slow parameters at one layer: what training moves and neither reading nor writing does."""

    memory: MemoryParameters
    """Of inputs 2X wide: x_t, and e_{t+1}, which is 0 for queries."""
    out: torch.Tensor
    """W_o [H·D, X]."""
    ask: torch.Tensor
    """a [X]."""
    ask_bias: torch.Tensor
    """b []."""
    gate: torch.Tensor
    """g []: 0 is closed."""
    center: torch.Tensor
    """c [X]."""

    def flat(self) -> dict[str, torch.Tensor]:
        named = {"project": self.memory.project, "gates": self.memory.gates, "gates_bias": self.memory.gates_bias}
        named |= {f"initial.{n}": t for n, t in enumerate(self.memory.initial)}
        if self.memory.gain is not None:
            named["gain"] = self.memory.gain
        return named | {name: getattr(self, name) for name in ("out", "ask", "ask_bias", "gate", "center")}

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> LayerParameters:
        """The same with every tensor changed."""
        return _layer_of({name: change(tensor) for name, tensor in self.flat().items()})


def _layer_of(named: Mapping[str, torch.Tensor]) -> LayerParameters:
    initial = tuple(named[f"initial.{n}"] for n in range(sum(name.startswith("initial.") for name in named)))
    memory = MemoryParameters(named["project"], None, named["gates"], named["gates_bias"], initial, named.get("gain"))
    return LayerParameters(memory, *(named[name] for name in ("out", "ask", "ask_bias", "gate", "center")))


@dataclass(frozen=True, eq=False)
class Retrofit:
    """A memory's spec and slow parameters as a value. Two are equal when their ids are."""

    spec: RetrofitSpec
    layers: tuple[LayerParameters, ...]

    @cached_property
    def id(self) -> str:
        """A hash of the spec and of every parameter."""
        parts: list[Any] = [FORMAT, self.spec.to_json()]
        for name, tensor in sorted(self.flat().items()):
            parts.append([name, list(tensor.shape), content_hash(tensor.detach().cpu().contiguous().numpy().tobytes())])
        return content_hash(parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Retrofit) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is ever read from it."""
        return not any(bool(layer.gate) for layer in self.layers)

    @property
    def parameters(self) -> int:
        """How many numbers training moves."""
        return sum(t.numel() for t in self.flat().values())

    def closed(self) -> Retrofit:
        """The same with every gate at 0."""
        return replace(self, layers=tuple(replace(p, gate=torch.zeros_like(p.gate)) for p in self.layers))

    def flat(self) -> dict[str, torch.Tensor]:
        """The parameters by name, fit to be trained and saved."""
        return {
            f"{at}.{n}": t for at, p in zip(self.spec.layers, self.layers, strict=True) for n, t in p.flat().items()
        }

    @classmethod
    def from_flat(cls, spec: RetrofitSpec, tensors: Mapping[str, torch.Tensor]) -> Retrofit:
        """The inverse of :meth:`flat`. Raises DataError for tensors that do not fit the spec, all mistakes at once."""
        expected = {name: tuple(t.shape) for name, t in init_retrofit(spec, 0).flat().items()}
        wrong = [f"'{name}' is missing" for name in expected if name not in tensors]
        wrong += [f"'{name}' is not one of its tensors" for name in tensors if name not in expected]
        for name, shape in expected.items():
            if name in tensors and tuple(tensors[name].shape) != shape:
                wrong.append(f"'{name}' is {list(shape)}; got {list(tensors[name].shape)}")
            elif name in tensors and not bool(tensors[name].isfinite().all()):
                wrong.append(f"'{name}' has NaN or infinity")
        if wrong:
            raise DataError("a retrofit's parameters do not fit its spec: " + "; ".join(wrong[:8]))
        layers = []
        for at in spec.layers:
            mark = f"{at}."
            layers.append(_layer_of({n[len(mark) :]: t for n, t in tensors.items() if n.startswith(mark)}))
        return cls(spec, tuple(layers))


def init_retrofit(
    spec: RetrofitSpec, seed: int, *, gate: float = 1.0, half_life: float = 65536.0, rate: float | None = None
) -> Retrofit:
    """First values in float32. Queries and keys begin as one projection of the hidden state, values as one of the next
    token's embedding, all random; W_o is random too. ``rate``: the θ that writing starts at; None: 0.9 of max_rate."""
    rate = 0.9 * spec.memory.max_rate if rate is None else rate
    size, width = spec.memory.heads * spec.memory.width, spec.width
    layers = []
    for at in spec.layers:
        mine = child_seed("nn.retrofit", seed, at)
        memory = init_parameters(spec.memory, 2 * width, mine, half_life=half_life, rate=rate)
        generator = torch.Generator().manual_seed(child_seed("nn.retrofit.maps", mine))
        keys, values = (torch.randn(width, size, generator=generator) / math.sqrt(width) for _ in range(2))
        whole = torch.zeros(2 * width, 3 * size)
        whole[:width, :size], whole[:width, size : 2 * size], whole[width:, 2 * size :] = keys, keys, values
        layers.append(
            LayerParameters(
                replace(memory, project=whole),
                torch.randn(size, width, generator=generator) / math.sqrt(size),
                torch.zeros(width),
                torch.tensor(2.0),
                torch.tensor(float(gate)),
                torch.zeros(width),
            )
        )
    return Retrofit(spec, tuple(layers))


def fresh_states(retrofit: Retrofit, rows: int = 1) -> tuple[MemoryState, ...]:
    """The memories of ``rows`` readers who have written nothing, one a layer."""
    return tuple(start(retrofit.spec.memory, layer.memory, rows) for layer in retrofit.layers)


def read_layer(parameters: LayerParameters, state: MemoryState, hidden: torch.Tensor) -> torch.Tensor:
    """What is added to the residual stream [B, T, X], in its dtype; nothing is written. ``state`` has B rows, or one,
    which all rows read."""
    rows, length, width = hidden.shape
    x = _normal(parameters, hidden)
    flat = x.reshape(1, rows * length, width) if state.rows == 1 else x
    said = layer_read(parameters.memory, state, torch.cat([flat, torch.zeros_like(flat)], dim=-1)) @ parameters.out
    asked = torch.sigmoid(x @ parameters.ask + parameters.ask_bias).unsqueeze(-1)
    return (parameters.gate * asked * said.view(rows, length, width)).to(hidden.dtype)


def write_layer(
    parameters: LayerParameters,
    state: MemoryState,
    hidden: torch.Tensor,
    following: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> MemoryState:
    """The memory after a piece of text: hidden states and the embeddings of the tokens behind them [B, T, X]. ``mask``
    [B, T] is True at what is written."""
    e = following.to(torch.float32)
    x = torch.cat([_normal(parameters, hidden), e * torch.rsqrt(e.square().mean(-1, keepdim=True) + RMS_EPS)], dim=-1)
    given = project(parameters.memory, state, x)
    kernel = delta_step if is_delta(state.spec) else memory_step
    gain = parameters.memory.gain
    return kernel(state, given.keys, given.values, None, given.gates, mask=mask, gain=gain).state


def _normal(parameters: LayerParameters, hidden: torch.Tensor) -> torch.Tensor:
    x = hidden.to(parameters.center.dtype) - parameters.center
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_EPS)
