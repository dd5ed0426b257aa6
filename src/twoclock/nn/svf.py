"""Changes of singular values (SVF; Sun, Cetin and Tang, arXiv:2501.06252, section 3.1): W' = U diag(s ∘ z) Vᵀ for a
linear layer W = U diag(s) Vᵀ, one number a singular value.

What is kept is the offset z − 1, so that no change is a vector of zeros, changes add, and a number near 1 keeps its
small digits. Two forms give the same function: *delta*, W x + U (s ∘ (z − 1) ∘ Vᵀ x), which leaves the base's own
product as it is; *factored*, U (s ∘ z ∘ Vᵀ x), which does without it and needs all singular values. The paper's code
learns a sigmoid and rescales to a constant Σ s ∘ z; neither stands in the paper's equation, nor here.

Legend: I in, O out, R = min(I, O) or the rank that was asked for, K changes, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from twoclock.errors import ConfigError, NumericsError, unknown_name
from twoclock.nn.terms import Term

__all__ = [
    "PRECISIONS",
    "Factoring",
    "Factors",
    "SingularChange",
    "as_low_rank",
    "changed_weight",
    "delta_term",
    "factored_product",
    "factorise",
    "materialised",
    "rowwise_product",
    "singular_terms",
    "truncation_error",
]

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Factoring:
    """How weights are taken apart. What a change means follows from it."""

    rank: int = 0
    """The largest so many singular values of each matrix; 0: all of them."""
    precision: str = "float32"
    """In which U and Vᵀ are kept; the singular values are float32 always."""

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.rank, int) or self.rank < 0:
            problems.append(f"rank must be a whole number from 0 (0: every singular value); got {self.rank!r}")
        if self.precision not in PRECISIONS:
            problems.append(unknown_name("precision", str(self.precision), PRECISIONS))
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, eq=False)
class Factors:
    """U [O, R], s [R] (float32, falling), Vᵀ [R, I] of one matrix; shared by all changes of it, never written to."""

    u: torch.Tensor = field(repr=False)
    s: torch.Tensor = field(repr=False)
    vh: torch.Tensor = field(repr=False)
    error: float
    """‖W − U diag(s) Vᵀ‖ / ‖W‖ (Frobenius), as kept: what rank and precision leave out of the base."""

    @cached_property
    def is_whole(self) -> bool:
        """Whether every singular value is there, so that the factored form can stand for the base."""
        return len(self.s) == min(self.u.shape[0], self.vh.shape[1])

    @cached_property
    def ut(self) -> torch.Tensor:
        """Uᵀ [R, O], of the same memory."""
        return self.u.t()


@dataclass(frozen=True)
class SingularChange:
    """The payload of an ``svf`` delta: for each module name z − 1 [R], float32; and what it scales, by name: the
    factors are the base's own and are held apart."""

    offsets: Mapping[str, torch.Tensor] = field(repr=False)
    factoring: Factoring
    spectrum: str
    """The hash of the matrices that the offsets belong to, as they were taken apart."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """By module name, as other changes have them."""
        return self.offsets


def factorise(weight: torch.Tensor, factoring: Factoring = Factoring()) -> Factors:
    """The factors of W [O, I]. Raises NumericsError for a matrix with NaN or infinity in it."""
    w = weight.detach().float()
    if w.dim() != 2 or 0 in w.shape:
        raise ConfigError(f"a matrix has singular values, and this has the shape {tuple(weight.shape)}")
    if not bool(torch.isfinite(w).all()):
        raise NumericsError("the matrix has NaN or infinity in it, so it has no singular values")
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    r = min(factoring.rank or len(s), len(s))
    dtype = getattr(torch, factoring.precision)
    u, s, vh = u[:, :r].to(dtype).contiguous(), s[:r].contiguous(), vh[:r].to(dtype).contiguous()
    rest = torch.linalg.matrix_norm(w - (u.float() * s) @ vh.float())
    return Factors(u, s, vh, float(rest / torch.linalg.matrix_norm(w).clamp_min(torch.finfo(torch.float32).tiny)))


# --------------------------------------------------------------------------------------------------------- application


def delta_term(x: torch.Tensor, factors: Factors, offset: torch.Tensor) -> torch.Tensor:
    """What is added to W x for x [..., I]: U ((s ∘ (z − 1)) ∘ Vᵀ x). Its gradient in z − 1 needs no matrix as large as
    W: ∂/∂z_i = s_i Σ (v_i·x)(u_i·δ), with δ the gradient of the output."""
    thin = nn.functional.linear(x, factors.vh)
    return nn.functional.linear(thin * (factors.s * offset).to(thin.dtype), factors.u)


def factored_product(
    x: torch.Tensor, factors: Factors, offset: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """W' x for x [..., I] without W: U ((s ∘ z) ∘ Vᵀ x). At z = 1 it differs from W x by the factors' error and by
    rounding. Raises ConfigError for factors that are a part of W alone."""
    _require_whole(factors)
    thin = nn.functional.linear(x, factors.vh)
    return nn.functional.linear(thin * (factors.s * (1 + offset)).to(thin.dtype), factors.u, bias)


def rowwise_product(
    x: torch.Tensor, base: torch.Tensor, factors: Factors, offsets: Sequence[torch.Tensor | None], owners: torch.Tensor
) -> torch.Tensor:
    """Many changes in one product: row n of x [N, I] under ``offsets[owners[n]]``, None is the base. ``base`` [N, O] is
    W x; rows of the base are its own bits. The cost does not depend on the number of changes."""
    device = x.device
    table = torch.stack([torch.zeros_like(factors.s) if o is None else factors.s * o.to(device) for o in offsets])
    changed = torch.tensor([o is not None for o in offsets], device=device)[owners].nonzero()[:, 0]
    thin = nn.functional.linear(x[changed], factors.vh)
    term = nn.functional.linear(thin * table[owners[changed]].to(thin.dtype), factors.u)
    return base.index_add(0, changed, term.to(base.dtype))


def singular_terms(change: SingularChange, factors: Mapping[str, Factors]) -> dict[str, Term]:
    """The change as terms; ``factors`` are in each module's dtype and on its device. Gradients flow into the offsets.
    Raises ConfigError where an offset has not the length of its module's singular values."""
    parts = [(name, offset, factors[name]) for name, offset in change.offsets.items()]
    for name, offset, f in parts:
        if offset.shape != f.s.shape:
            raise ConfigError(
                f"{name} has {len(f.s)} singular values, and its change has the shape {tuple(offset.shape)}"
            )
    if not parts:
        return {}
    # All layers' numbers at once: an expert is put in place between two requests, and small operations add up.
    device = parts[0][2].s.device
    gates = torch.cat([f.s for _, _, f in parts]) * torch.cat([offset for _, offset, _ in parts]).to(device)
    split = torch.split(gates, [len(f.s) for _, _, f in parts])
    return {
        name: Term(f.vh, f.ut, gate, f.s if f.is_whole else None)
        for (name, _, f), gate in zip(parts, split, strict=True)
    }


def materialised(factors: Factors, offset: torch.Tensor) -> torch.Tensor:
    """W' − W = U diag(s ∘ (z − 1)) Vᵀ [O, I], float32."""
    return (factors.u.float() * (factors.s * offset.to(factors.s.device))) @ factors.vh.float()


def changed_weight(weight: torch.Tensor, factors: Factors, offset: torch.Tensor) -> torch.Tensor:
    """W' in the weight's own dtype: the sum in float32, rounded once. W is not touched."""
    return (weight.detach().float() + materialised(factors, offset)).to(weight.dtype)


# -------------------------------------------------------------------------------------------------------------- export


def as_low_rank(factors: Factors, offset: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(A [rank, I], B [O, rank]) with B A the best approximation of W' − W of that rank, float32: U and V are
    orthonormal, so it keeps the largest |s_i (z_i − 1)| and takes no further decomposition (Eckart and Young)."""
    d = factors.s * offset.to(factors.s.device)
    kept = d.abs().topk(min(rank, len(d))).indices
    # Half of the size on either side, so that neither is small where the other is large.
    size = d[kept].abs().sqrt()
    return size[:, None] * factors.vh.float()[kept], factors.u.float()[:, kept] * (size * d[kept].sign())


def truncation_error(factors: Factors, offset: torch.Tensor, rank: int) -> tuple[float, float]:
    """(what :func:`as_low_rank` leaves out, the whole change), both squared Frobenius norms; the relative error of
    several matrices is the root of the quotient of their sums."""
    squares = (factors.s.double() * offset.to(factors.s.device).double()).square().sort(descending=True).values
    return float(squares[rank:].sum()), float(squares.sum())


def _require_whole(factors: Factors) -> None:
    if not factors.is_whole:
        raise ConfigError(
            f"the factored form needs every singular value, and these are {len(factors.s)} of "
            f"{min(factors.u.shape[0], factors.vh.shape[1])}; use the delta form"
        )
