"""Decode-time shifts: the logits of one model moved by what two others disagree about (proxy-tuning).

    p ∝ softmax(s + Σ_k α_k (s⁺_k − s⁻_k))

s are the base's logits, s⁺_k and s⁻_k those of the expert and the anti-expert of shift k (Liu et al., arXiv:2401.08565,
equation 1; Liu et al., arXiv:2105.03023). Temperature, top-k and top-p come after the sum, as in the paper's code. A
shift may restrict what is drawn to tokens that its expert finds plausible, p⁺(v) ≥ β max p⁺ (contrastive decoding,
Li et al., arXiv:2210.15097, equation 2).

Where the paper is silent: a token that the anti-expert rules out altogether (-inf) is not shifted, as there is nothing
to compare; one that the expert rules out is ruled out; where several shifts restrict, a token must be plausible to one
of their experts, so that there always is a token; a row whose α is 0 is not restricted either.

Raw logits may be subtracted only where both sides speak of the whole vocabulary, since a constant cancels in the
softmax only if every token has it. Otherwise give log-probabilities over what each side knows (:func:`normalized`).
Legend: B rows, V vocabulary of the base, S vocabulary of a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

__all__ = [
    "Difference",
    "TokenShifts",
    "aligned",
    "alphas_at",
    "mixed",
    "normalized",
    "shifted",
    "shifted_reference",
    "token_shifts",
]

NEVER = float("-inf")


@dataclass(frozen=True, eq=False)
class Difference:
    """What the two sides of one shift say of the next token."""

    expert: torch.Tensor = field(repr=False)
    """[B, V], logits or log-probabilities."""
    anti: torch.Tensor = field(repr=False)
    """[B, V], of the same kind."""
    alpha: torch.Tensor = field(repr=False)
    """[B], 0: this row is not shifted."""
    plausible: float = 0.0
    """β; 0: no restriction."""
    covered: torch.Tensor | None = field(repr=False, default=None)
    """[V], the tokens that both sides know; None: all. What they do not know is neither shifted nor restricted."""


def alphas_at(schedules: Sequence[Sequence[float]], steps: Sequence[int], device: torch.device) -> torch.Tensor:
    """α [B] of each row at its own step, counted from 0; a schedule's last number holds on."""
    values = [schedule[min(step, len(schedule) - 1)] for schedule, step in zip(schedules, steps, strict=True)]
    return torch.tensor(values, dtype=torch.float32, device=device)


def mixed(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Σ c_i s_i for logits s_i [B, V] and weights c_i [B], float32. A row with one weight of 1 and no other gets those
    logits bit for bit; a weight of 0 takes nothing over, be it infinite."""
    if len(parts) == 1 and bool((parts[0][1] == 1.0).all()):
        return parts[0][0].float()
    total = torch.zeros_like(parts[0][0], dtype=torch.float32)
    for logits, weight in parts:
        if bool((weight != 0.0).all()):
            total.addcmul_(logits.float(), weight[:, None].to(total))
        else:
            rows = weight.nonzero()[:, 0].to(total.device)
            total[rows] += logits[rows].float() * weight[weight != 0.0][:, None].to(total)
    return total


def shifted(base: torch.Tensor, differences: Sequence[Difference]) -> torch.Tensor:
    """The module's equation: logits [B, V] float32, what is not plausible at -inf. Differentiable in ``base``."""
    total = base.float()
    for d in differences:
        total = total + d.alpha[:, None].to(total) * _gap(d)
    restricting = [d for d in differences if d.plausible > 0.0 and bool((d.alpha != 0.0).any())]
    if not restricting:
        return total
    allowed = torch.zeros_like(total, dtype=torch.bool)
    bound = torch.zeros(len(total), dtype=torch.bool, device=total.device)
    for d in restricting:
        here = (d.alpha != 0.0).to(total.device)
        found = _plausible(d)
        allowed |= found & here[:, None]
        bound |= here
    return total.masked_fill(~allowed & bound[:, None], NEVER)


def _gap(d: Difference) -> torch.Tensor:
    """s⁺ − s⁻, 0 where there is nothing to compare and in rows that are not shifted: 0 times infinity is NaN."""
    nothing = (d.anti == NEVER) | (d.alpha == 0.0).to(d.anti.device)[:, None]
    if d.covered is not None:
        nothing = nothing | ~d.covered
    return (d.expert.float() - d.anti.float()).masked_fill(nothing, 0.0)


def _plausible(d: Difference) -> torch.Tensor:
    """[B, V]: p⁺(v) ≥ β max p⁺, among the tokens that it knows; what it does not know is let through."""
    expert = d.expert.float()
    known = expert if d.covered is None else expert.masked_fill(~d.covered, NEVER)
    level = torch.log(torch.tensor(d.plausible, dtype=torch.float64)).to(known)
    found = known >= known.amax(dim=-1, keepdim=True) + level
    return found if d.covered is None else found | ~d.covered


def normalized(logits: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
    """Log-probabilities [B, S] float32 over the ``known`` [S] tokens alone; the rest at -inf. Rows of a head that stand
    for no token carry any logits: they must not take part."""
    logits = logits.float()
    if known is not None:
        logits = logits.masked_fill(~known, NEVER)
    return torch.log_softmax(logits, dim=-1)


def aligned(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """A side's values [B, S] at the base's tokens [B, V]: ``index`` [V] names the side's token, -1: it has none (0)."""
    found = values[:, index.clamp(min=0)]
    return found.masked_fill(index < 0, 0.0)


@dataclass(frozen=True, eq=False)
class TokenShifts:
    """How far shifts moved one step of each row, in nats at temperature 1."""

    before: torch.Tensor = field(repr=False)
    """[B] log-probability of the drawn token under the base."""
    after: torch.Tensor = field(repr=False)
    """[B] the same under the shifts."""
    top: torch.Tensor = field(repr=False)
    """[B] the base's own most likely token."""
    changed: torch.Tensor = field(repr=False)
    """[B] whether another token became the most likely one."""


def token_shifts(base: torch.Tensor, moved: torch.Tensor, tokens: torch.Tensor) -> TokenShifts:
    """What became of the drawn ``tokens`` [B] between the logits ``base`` and ``moved`` [B, V]."""
    at = tokens[:, None]
    before, after = (x.float().gather(1, at)[:, 0] - torch.logsumexp(x.float(), dim=-1) for x in (base, moved))
    top = base.argmax(dim=-1)
    return TokenShifts(before, after, top, top != moved.argmax(dim=-1))


def shifted_reference(base: torch.Tensor, differences: Sequence[Difference]) -> torch.Tensor:
    """:func:`shifted`, one row and one token at a time in float64."""
    rows = []
    for b, row in enumerate(base.double().tolist()):
        moved = list(row)
        allowed: set[int] | None = None
        for d in differences:
            alpha = float(d.alpha[b])
            if alpha == 0.0:
                continue
            expert, anti = d.expert[b].double().tolist(), d.anti[b].double().tolist()
            known = [v for v in range(len(row)) if d.covered is None or bool(d.covered[v])]
            for v in known:
                if anti[v] != NEVER:
                    moved[v] += alpha * (expert[v] - anti[v])
            if d.plausible > 0.0:
                best = max(expert[v] for v in known)
                floor = best + float(torch.log(torch.tensor(d.plausible, dtype=torch.float64)))
                others = {v for v in range(len(row)) if v not in set(known)}
                allowed = (allowed or set()) | {v for v in known if expert[v] >= floor} | others
        rows.append([x if allowed is None or v in allowed else NEVER for v, x in enumerate(moved)])
    return torch.tensor(rows, dtype=torch.float64)
