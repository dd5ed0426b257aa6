"""A small batch for the tests of the policy losses."""

from __future__ import annotations

from typing import Any

import torch


def batch(seed: int = 3, rows: int = 6, width: int = 4, spread: float = 1.0) -> tuple[Any, Any, Any, Any]:
    """Log-probabilities new and old, one advantage a rollout, and a ragged mask with an empty completion."""
    g = torch.Generator().manual_seed(seed)
    new = -torch.rand(rows, width, generator=g, dtype=torch.float64)
    old = new + spread * (torch.rand(rows, width, generator=g, dtype=torch.float64) - 0.5)
    lengths = torch.tensor([width, 2, 0, 1, 3, width])[:rows]
    mask = (torch.arange(width) < lengths[:, None]).double()
    return new, old, torch.randn(rows, generator=g, dtype=torch.float64), mask
