"""Memories and tokens for the tests of the neural memory, drawn from seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from twoclock.nn.neural_memory_inputs import MemoryStep
from twoclock.nn.neural_memory_spec import Gates, MemorySpec
from twoclock.nn.neural_memory_state import MemoryState, init_state

Kernel = Callable[..., MemoryStep]

SPECS: dict[str, dict[str, Any]] = {
    "matrix": {"depth": 1},
    "network": {"depth": 2},
    "three layers": {"depth": 3},
    "residual and norm": {"depth": 2, "residual": True, "norm": True},
    "silu, no momentum": {"depth": 2, "activation": "silu", "momentum": False},
    "read before, clipped": {"depth": 2, "read": "before", "clip": 0.7},
    "matrix with everything": {"depth": 1, "residual": True, "norm": True, "read": "before", "clip": 2.0},
}


def spec_of(name: str, **changes: Any) -> MemorySpec:
    return MemorySpec(**{"heads": 2, "width": 4, "expansion": 2, "chunk": 4} | SPECS[name] | changes)


@dataclass
class Case:
    """Tokens of every kind as leaves, and the first weights."""

    spec: MemorySpec
    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor
    rate: torch.Tensor
    momentum: torch.Tensor | None
    forget: torch.Tensor
    initial: tuple[torch.Tensor, ...]
    gain: torch.Tensor | None

    def leaves(self) -> dict[str, torch.Tensor]:
        named = {n: getattr(self, n) for n in ("keys", "values", "queries", "rate", "momentum", "forget", "gain")}
        named |= {f"initial.{n}": w for n, w in enumerate(self.initial)}
        return {n: t for n, t in named.items() if t is not None}

    def state(self) -> MemoryState:
        return init_state(self.spec, self.initial, len(self.keys))

    def run(
        self, kernel: Kernel, state: MemoryState | None = None, part: slice = slice(None), **more: Any
    ) -> MemoryStep:
        gates = Gates(
            self.rate[:, :, part], None if self.momentum is None else self.momentum[:, :, part], self.forget[:, :, part]
        )
        tokens = (self.keys[:, :, part], self.values[:, :, part], self.queries[:, :, part])
        return kernel(self.state() if state is None else state, *tokens, gates, gain=self.gain, **more)


def make_case(
    spec: MemorySpec, rows: int = 2, length: int = 11, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def between(low: float, high: float) -> torch.Tensor:
        drawn = torch.rand(rows, spec.heads, length, generator=generator, dtype=torch.float64)
        return (low + (high - low) * drawn).to(dtype)

    wide = (rows, spec.heads, length, spec.width)
    unit = torch.nn.functional.normalize
    return Case(
        spec,
        unit(normal(*wide), dim=-1).to(dtype),
        normal(*wide).to(dtype),
        unit(normal(*wide), dim=-1).to(dtype),
        between(0.01, 0.1),
        between(0.05, 0.95) if spec.momentum else None,
        between(0.01, 0.3),
        tuple((normal(spec.heads, *shape) / shape[0] ** 0.5).to(dtype) for shape in spec.shapes),
        (1 + 0.2 * normal(spec.heads, spec.width)).to(dtype) if spec.norm else None,
    )


def tensors_of(state: MemoryState) -> dict[str, torch.Tensor]:
    """Every tensor of a state by name, the base also where it is not saved."""
    return state.flat() | {f"base.{n}": t for n, t in enumerate(state.base)}


def assert_same_state(a: MemoryState, b: MemoryState, atol: float = 0.0) -> None:
    """To the bit where ``atol`` is 0."""
    left, right = tensors_of(a), tensors_of(b)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], atol=atol, rtol=0.0, msg=lambda m, n=name: f"{n}: {m}")


def weighed_sum(step: MemoryStep, seed: int = 9) -> torch.Tensor:
    """A number that every read and every value of the state after moves."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [t for n, t in tensors_of(step.state).items() if n not in ("written", "tails")]
    if step.read is not None:
        tensors.append(step.read)
    parts = [(t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in tensors]
    return torch.stack(parts).sum()
