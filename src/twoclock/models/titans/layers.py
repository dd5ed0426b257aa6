"""The layers of a block: norm, gated network, attention's projections, and a neural memory's slow parameters.

First values are functions of the config's seed and a parameter's name, so nothing here draws from a global generator;
:func:`first_values` writes them, and leaves alone what a checkpoint has filled.

Legend: B rows, T tokens, X width of the model, H heads, D width of a memory's head.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from twoclock.errors import ConfigError, NumericsError
from twoclock.models.titans.config import TitansConfig
from twoclock.nn.delta_memory import delta_step, is_delta
from twoclock.nn.neural_memory import memory_read, memory_step
from twoclock.nn.neural_memory_inputs import MemoryStep
from twoclock.nn.neural_memory_layer import MemoryParameters, init_parameters, layer_step
from twoclock.nn.neural_memory_layer import start as start_state
from twoclock.nn.neural_memory_state import MemoryState
from twoclock.seeding import child_seed

__all__ = ["ContextQuery", "GatedNetwork", "Heads", "Memory", "Norm", "Scale", "Weight", "first_values"]

Scale = float


class Norm(nn.Module):
    """x / rms(x) times a learned vector; of 0 it is 0."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return scaled.to(x.dtype) * self.weight


class Weight(nn.Linear):
    """A linear map without bias whose first values have a spread of ``scale`` / √in."""

    def __init__(self, inputs: int, outputs: int, scale: Scale = 1.0) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.scale = scale


class GatedNetwork(nn.Module):
    """W_3 (SiLU(W_1 x) ⊙ W_2 x)."""

    def __init__(self, width: int, hidden: int, scale: Scale) -> None:
        super().__init__()
        self.up = Weight(width, 2 * hidden)
        self.down = Weight(hidden, width, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return cast(torch.Tensor, self.down(nn.functional.silu(gate) * value))


class Heads(nn.Module):
    """Queries, keys and values of an attention, and the tokens that every query sees (persistent memory, section 3.3
    of the paper), which pass the same norm and projections."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.count = config.num_attention_heads
        self.width = config.hidden_size // config.num_attention_heads
        self.qkv = Weight(config.hidden_size, 3 * config.hidden_size)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, T, X] -> queries, keys, values [B, heads, T, d]."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.count, self.width).permute(2, 0, 3, 1, 4)
        return q, k, v

    def pairs(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values alone, for tokens that ask nothing: [..., T, X] -> [..., heads, T, d]."""
        width = x.shape[-1]
        found = nn.functional.linear(x, self.qkv.weight[width:])
        k, v = found.view(*x.shape[:-1], 2, self.count, self.width).movedim(-3, 0).transpose(-2, -3)
        return k, v


class ContextQuery(nn.Module):
    """The unit queries with which a segment reads the memory before it is written (equation 21)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.heads = config.memory_heads
        self.query = Weight(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, X] -> [B, H, T, D]."""
        q = nn.functional.silu(self.query(x)).view(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)
        return nn.functional.normalize(q, dim=-1, eps=1e-6)


class Memory(nn.Module):
    """The slow parameters of one neural memory, and the steps it takes with them."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.spec = spec = config.memory_spec
        self.config = config
        width, size = config.hidden_size, spec.heads * spec.width
        kinds = 3 if spec.momentum else 2
        self.project = nn.Parameter(torch.empty(width, 3 * size))
        self.taps = nn.Parameter(torch.empty(spec.conv, 3 * size)) if spec.conv > 1 else None
        self.gates = nn.Parameter(torch.empty(width, kinds * spec.heads))
        self.gates_bias = nn.Parameter(torch.empty(kinds * spec.heads))
        self.initial = nn.ParameterList(nn.Parameter(torch.empty(spec.heads, *shape)) for shape in spec.shapes)
        self.gain = nn.Parameter(torch.empty(spec.heads, spec.width)) if spec.norm else None
        self.kernel = delta_step if is_delta(spec) else memory_step

    def first(self, seed: int) -> MemoryParameters:
        """The values that the parameters begin with."""
        config = self.config
        return init_parameters(
            self.spec,
            config.hidden_size,
            seed,
            half_life=config.memory_half_life,
            momentum=config.memory_start_momentum,
            rate=config.memory_start_rate,
        )

    @property
    def values(self) -> MemoryParameters:
        """The parameters as the functions take them."""
        bias: torch.Tensor = self.gates_bias
        if not self.config.forgetting:
            # α = sigmoid(-∞) = 0 exactly, without a gradient.
            keeps = torch.arange(len(bias), device=bias.device) < len(bias) - self.spec.heads
            bias = bias.masked_fill(~keeps, float("-inf"))
        return MemoryParameters(self.project, self.taps, self.gates, bias, tuple(self.initial), self.gain)

    def begin(self, rows: int, persistent: torch.Tensor | None) -> MemoryState:
        """The state of ``rows`` new texts, which begin with the persistent tokens [P, X]."""
        state = start_state(self.spec, self.values, rows)
        if persistent is None or not len(persistent):
            return state
        return self.step(state, persistent.expand(rows, -1, -1), None).state

    def step(
        self, state: MemoryState, x: torch.Tensor, mask: torch.Tensor | None, telemetry: bool = False
    ) -> MemoryStep:
        """Writes x [B, T, X] and reads on the way."""
        try:
            return layer_step(self.values, state, x, mask=mask, kernel=self.kernel, telemetry=telemetry)
        except ConfigError as error:
            if bool(x.isfinite().all()):
                raise
            raise NumericsError(
                "a memory was given NaN or infinity: that of a layer before it has diverged, or training has; set "
                f"memory={{'clip': …}} or lower its max_rate (clip is {self.spec.clip}, max_rate {self.spec.max_rate})"
            ) from error

    def read(self, state: MemoryState, weights: tuple[torch.Tensor, ...], queries: torch.Tensor) -> torch.Tensor:
        """What these weights [B, H, in, out] say to queries [B, H, T, D]: [B, T, X]. Nothing is written."""
        found = memory_read(replace(state, weights=weights), queries, gain=self.gain)
        return found.transpose(1, 2).flatten(2)


def first_values(module: nn.Module, name: str, config: TitansConfig) -> None:
    """Fills the parameters that ``module`` itself holds. What a checkpoint has filled stays."""
    seed = child_seed("models.titans", config.init_seed, name)
    if isinstance(module, Memory):
        first = module.first(seed)
        pairs = [
            (module.project, first.project),
            (module.taps, first.taps),
            (module.gates, first.gates),
            (module.gates_bias, first.gates_bias),
            *zip(module.initial, first.initial, strict=True),
            (module.gain, first.gain),
        ]
        for parameter, value in pairs:
            if parameter is not None and value is not None:
                _fill(parameter, value)
    elif isinstance(module, Weight):
        _fill(module.weight, _normal(seed, module.weight.shape) * (module.scale / math.sqrt(module.in_features)))
    elif isinstance(module, nn.Embedding):
        _fill(module.weight, _normal(seed, module.weight.shape) / math.sqrt(module.embedding_dim))
    elif isinstance(module, Norm):
        _fill(module.weight, torch.ones(module.weight.shape, device="cpu"))
    elif isinstance(parameter := getattr(module, "persistent", None), nn.Parameter):
        _fill(parameter, _normal(seed, parameter.shape))


def _normal(seed: int, shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")


def _fill(parameter: torch.Tensor, value: torch.Tensor) -> None:
    if not getattr(parameter, "_is_hf_initialized", False):
        with torch.no_grad():
            parameter.copy_(value)
