"""Merging low-rank changes into one: what experts made of LoRA are put together by, beside which exact sums stand.

Of changes Δ_k = c_k B_k A_k with weights w_k (any sign; c_k is the scale):

- ``cat``: A = [A_1; A_2; ...], B = [w_1 c_1 B_1, w_2 c_2 B_2, ...]. Exact, Σ_k w_k Δ_k, of rank Σ R_k.
- ``linear``: A = Σ_k sign(w_k) √(|w_k| c_k) A_k, B = Σ_k √(|w_k| c_k) B_k, of rank R. Not Σ_k w_k Δ_k: B A has the
  cross terms B_j A_k, whose size is that of the sum itself.
- ``ties`` (arXiv:2306.01708): of each A and B the ``density`` share of entries that are largest is kept; each place
  elects the sign of its sum over k; the entries of that sign are averaged, each times its weight as in ``linear``.

``linear`` and ``ties`` are as PEFT 0.21 does them (``add_weighted_adapter``), which merges the factors as if they were
the change. :func:`merge_error` says how far a merge is from the sum that it stands for. Each is checked against a slow
version and against PEFT in the tests. Legend: I in, O out, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from twoclock.errors import ConfigError, unknown_name
from twoclock.nn.lowrank import LowRank

__all__ = ["MERGES", "merge_error", "merged", "ties", "trimmed"]

MERGES = ("cat", "linear", "ties")


def merged(changes: Sequence[LowRank], weights: Sequence[float], how: str, *, density: float = 0.5) -> LowRank:
    """One change in the place of several, of scale 1. Raises ConfigError for another number of weights than changes,
    changes of different modules, and, but for ``cat``, of different ranks."""
    _require_fit(changes, weights, how, density)
    scaled = [w * change.scale for change, w in zip(changes, weights, strict=True)]
    roots = [math.sqrt(abs(w)) for w in scaled]
    signed = [math.copysign(root, w) for root, w in zip(roots, scaled, strict=True)]
    tensors = {}
    for name in changes[0].tensors:
        a, b = ([change.tensors[name][part] for change in changes] for part in (0, 1))
        if how == "cat":
            tensors[name] = (torch.cat(a), torch.cat([w * t for w, t in zip(scaled, b, strict=True)], dim=1))
        elif how == "linear":
            tensors[name] = (_sum(a, signed), _sum(b, roots))
        else:
            tensors[name] = (ties(a, signed, density), ties(b, roots, density))
    return LowRank(tensors, 1.0)


def _sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    return torch.stack([w * t for w, t in zip(weights, tensors, strict=True)]).sum(0)


def trimmed(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """The ``density`` share of entries that are largest in size, rounded down; the others are 0."""
    count = int(density * tensor.numel())
    if count >= tensor.numel():
        return tensor
    flat = tensor.reshape(-1)
    kept = flat.abs().topk(count).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(tensor)


def ties(tensors: Sequence[torch.Tensor], weights: Sequence[float], density: float) -> torch.Tensor:
    """Trim each, elect a sign for each place from the sum of what is left (0 elects +), and average the entries of that
    sign, each times its weight."""
    some = torch.stack([trimmed(t, density) for t in tensors])
    agree = some.sign() == torch.where(some.sum(0) >= 0, 1.0, -1.0)
    weighted = some * torch.tensor(weights, dtype=some.dtype).view(-1, *([1] * tensors[0].dim()))
    return (weighted * agree).sum(0) / agree.sum(0).clamp_min(1)


def merge_error(changes: Sequence[LowRank], weights: Sequence[float], merge: LowRank) -> float:
    """‖B A − Σ_k w_k Δ_k‖ / ‖Σ_k w_k Δ_k‖ over all modules (Frobenius); 0 is exact."""
    left = whole = 0.0
    for name, (a, b) in merge.tensors.items():
        exact = sum(
            w * change.scale * (change.tensors[name][1].double() @ change.tensors[name][0].double())
            for change, w in zip(changes, weights, strict=True)
        )
        assert isinstance(exact, torch.Tensor)
        left += float((merge.scale * (b.double() @ a.double()) - exact).square().sum())
        whole += float(exact.square().sum())
    return math.sqrt(left / whole) if whole else 0.0


def _require_fit(changes: Sequence[LowRank], weights: Sequence[float], how: str, density: float) -> None:
    problems = []
    if how not in MERGES:
        problems.append(unknown_name("way of merging", how, MERGES))
    if not changes or len(changes) != len(weights):
        problems.append(
            f"{len(changes)} changes and {len(weights)} weights: expected one weight a change, at least one"
        )
    if not all(math.isfinite(w) for w in weights):
        problems.append(f"weights = {list(weights)}: expected finite numbers")
    if not 0.0 < density <= 1.0:
        problems.append(f"density = {density}: expected a share above 0, at most 1")
    names = {tuple(change.tensors) for change in changes}
    if len(names) > 1:
        problems.append("the changes are of different modules; train them with the same targets")
    elif how != "cat" and len({tuple(len(a) for a, _ in c.tensors.values()) for c in changes}) > 1:
        problems.append(f"'{how}' takes changes of one rank; 'cat' takes any")
    if problems:
        raise ConfigError(problems)
