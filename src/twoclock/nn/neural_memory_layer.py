"""From a model's hidden states to a memory's tokens: projections, causal convolution, normalised keys, gates.

    (q, k, v)_t = SiLU(conv(x_t W)),   q and k divided by their length,
    θ_t = max_rate · sigmoid(·),   η_t = sigmoid(·),   α_t = sigmoid(·)   with · linear in x_t, one number a head

(Behrouz, Zhong and Mirrokni, "Titans", arXiv:2501.00663, section 4.4.) The paper leaves the gates' form and first
values, the first weights and the convolution's width open; what stands here is chosen: gates that start at stated
values, a causal convolution that starts as none, first weights 0 for a matrix and small random ones for a network.
All of these are slow parameters, no part of a state. The convolution's last inputs are part of it, so that a text may
come in pieces.

Legend: B rows, T tokens, X width of the model, H heads, D width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from twoclock.errors import ConfigError
from twoclock.nn.neural_memory import memory_read, memory_step
from twoclock.nn.neural_memory_inputs import MemoryStep, check_mask
from twoclock.nn.neural_memory_layout import packed_index
from twoclock.nn.neural_memory_spec import Gates, MemorySpec, half_life_bias
from twoclock.nn.neural_memory_state import MemoryState, init_state
from twoclock.seeding import child_seed

__all__ = ["Kernel", "MemoryParameters", "Projected", "init_parameters", "layer_read", "layer_step", "project", "start"]

LENGTH_EPS = 1e-6
"""Added to the squared length of keys and queries: a zero vector stays zero and its gradient finite."""


class Kernel(Protocol):
    """:func:`memory_step`, or the reference in its place."""

    def __call__(
        self,
        state: MemoryState,
        keys: torch.Tensor,
        values: torch.Tensor,
        queries: torch.Tensor | None,
        gates: Gates,
        *,
        mask: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        telemetry: bool = False,
    ) -> MemoryStep: ...


@dataclass(frozen=True)
class MemoryParameters:
    """The slow parameters of a memory: what training moves and reading does not."""

    project: torch.Tensor
    """[X, 3·H·D]: queries, keys, values."""
    taps: torch.Tensor | None
    """[conv, 3·H·D], the last for the token itself; None where spec.conv is 1."""
    gates: torch.Tensor
    """[X, G·H]: θ, then η where there is momentum, then α; G is 3 or 2."""
    gates_bias: torch.Tensor
    """[G·H]."""
    initial: tuple[torch.Tensor, ...]
    """W_0 of each layer [H, in, out]."""
    gain: torch.Tensor | None
    """[H, D] where spec.norm; else None."""


@dataclass(frozen=True)
class Projected:
    """A piece of text as :func:`memory_step` takes it, and the convolution's inputs to remember after it."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    gates: Gates
    tails: torch.Tensor


def init_parameters(
    spec: MemorySpec,
    width: int,
    seed: int,
    *,
    half_life: float = 4096.0,
    momentum: float = 0.1,
    rate: float | None = None,
) -> MemoryParameters:
    """First values in float32. ``width`` is X. Gates start near: half the memory forgotten in ``half_life`` tokens,
    η = ``momentum``, θ = ``rate``; None: half of spec.max_rate, but no more than the (1 - η)/C at which a matrix is
    stable even if all keys of a chunk are the same."""
    rate = min(spec.max_rate / 2, (1 - momentum * spec.momentum) / spec.chunk) if rate is None else rate
    problems = [] if width >= 1 else [f"width is that of the model's hidden states, from 1 on; got {width}"]
    if not 0 < momentum < 1:
        problems.append(f"momentum is the η that gates start at, between 0 and 1; got {momentum}")
    if not 0 < rate < spec.max_rate:
        problems.append(f"rate is the θ that gates start at, above 0 and below max_rate = {spec.max_rate}; got {rate}")
    if problems:
        raise ConfigError(problems)
    size = spec.heads * spec.width

    def normal(name: str, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(child_seed(f"nn.neural_memory.{name}", seed))
        return torch.randn(*shape, generator=generator)

    taps = None
    if spec.conv > 1:
        taps = torch.zeros(spec.conv, 3 * size)
        taps[-1] = 1.0
    kinds = [_logit(rate / spec.max_rate), *([_logit(momentum)] if spec.momentum else []), half_life_bias(half_life)]
    # A matrix that starts at 0 reads 0 until something is written; a layer norm of 0 would only magnify.
    scale = 0.0 if spec.depth == 1 and not spec.norm else 1.0
    return MemoryParameters(
        project=normal("project", width, 3 * size) / math.sqrt(width),
        taps=taps,
        gates=normal("gates", width, len(kinds) * spec.heads) * (0.1 / math.sqrt(width)),
        gates_bias=torch.tensor(kinds).repeat_interleave(spec.heads),
        initial=tuple(
            normal(f"initial.{n}", spec.heads, *shape) * (scale / math.sqrt(shape[0]))
            for n, shape in enumerate(spec.shapes)
        ),
        gain=torch.ones(spec.heads, spec.width) if spec.norm else None,
    )


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def start(spec: MemorySpec, parameters: MemoryParameters, rows: int) -> MemoryState:
    """The state of ``rows`` texts of which nothing has been read."""
    return init_state(spec, parameters.initial, rows)


def project(
    parameters: MemoryParameters, state: MemoryState, x: torch.Tensor, counts: torch.Tensor | None = None
) -> Projected:
    """Queries, keys, values [B, H, T, D] and gates of hidden states x [B, T, X].

    ``counts`` [B]: the tokens of each row where they are fewer than T; they come first, and only they are remembered.
    """
    spec, rows, length = state.spec, x.shape[0], x.shape[1]
    x = x.to(parameters.project.dtype)
    wide = (x @ parameters.project).to(state.dtype)
    mixed, tails = _convolved(wide, parameters.taps, state.tails, counts)
    q, k, v = torch.nn.functional.silu(mixed).view(rows, length, 3, spec.heads, spec.width).permute(2, 0, 3, 1, 4)
    raw = torch.sigmoid((x @ parameters.gates + parameters.gates_bias).to(state.dtype))
    rate, *momentum, forget = raw.view(rows, length, 3 if spec.momentum else 2, spec.heads).permute(2, 0, 3, 1)
    gates = Gates(rate * spec.max_rate, momentum[0] if momentum else None, forget)
    return Projected(_unit(q), _unit(k), v, gates, tails)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_EPS)


def _convolved(
    x: torch.Tensor, taps: torch.Tensor | None, tails: torch.Tensor, counts: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_j taps_j ⊙ x_{t-j} of [B, T, W] after what the tails hold, and the tails after it.

    A sum of shifted copies: token for token the same operations however the text is cut, so pieces agree to the bit.
    """
    if taps is None:
        return x, tails
    past, taps = len(taps) - 1, taps.to(x.dtype)
    whole = torch.cat([tails, x], dim=1)
    mixed = x * taps[past]
    for j in range(past):
        mixed.addcmul_(whole[:, j : j + x.shape[1]], taps[j])
    if counts is None:
        return mixed, whole[:, x.shape[1] :].clone()  # not a view, which would keep the whole piece alive
    index = counts.to(x.device)[:, None] + torch.arange(past, device=x.device)
    return mixed, whole.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def layer_step(
    parameters: MemoryParameters,
    state: MemoryState,
    x: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    telemetry: bool = False,
    kernel: Kernel = memory_step,
) -> MemoryStep:
    """Reads a piece of text x [B, T, X], writing it and asking on the way; ``read`` is [B, T, H·D] in x's dtype.

    ``mask`` [B, T] is True at tokens; padding may stand anywhere, holds anything and changes nothing. ``kernel`` may be
    :func:`twoclock.nn.neural_memory_reference.memory_reference`. Loss and surprise are [B, H, T].
    """
    _check_inputs(parameters, state, x)
    order = counts = live = None
    if mask is not None and not bool(check_mask(mask, (x.shape[0], x.shape[1])).all()):
        # Tokens to the front: the convolution must not see padding between them.
        order, counts = packed_index(mask), mask.sum(1).cpu()
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0).gather(1, order.unsqueeze(-1).expand_as(x))
        live = (torch.arange(x.shape[1]) < counts[:, None]).to(x.device)
    given = project(parameters, state, x, counts)
    found = kernel(
        state,
        given.keys,
        given.values,
        given.queries,
        given.gates,
        mask=live,
        gain=parameters.gain,
        telemetry=telemetry,
    )
    assert found.read is not None
    read = found.read.transpose(1, 2).flatten(2).to(x.dtype)
    after = replace(found.state, tails=given.tails)
    if order is None:
        return replace(found, read=read, state=after)
    back = order.argsort(1)
    by_head = back.unsqueeze(1).expand(-1, state.spec.heads, -1)
    return MemoryStep(
        read.gather(1, back.unsqueeze(-1).expand_as(read)),
        after,
        None if found.loss is None else found.loss.gather(2, by_head),
        None if found.surprise is None else found.surprise.gather(2, by_head),
    )


def layer_read(parameters: MemoryParameters, state: MemoryState, x: torch.Tensor) -> torch.Tensor:
    """What the memory as it stands says to x [B, T, X]: [B, T, H·D] in x's dtype. Nothing is written or remembered."""
    _check_inputs(parameters, state, x)
    queries = project(parameters, state, x).queries
    return memory_read(state, queries, gain=parameters.gain).transpose(1, 2).flatten(2).to(x.dtype)


def _check_inputs(parameters: MemoryParameters, state: MemoryState, x: torch.Tensor) -> None:
    spec, width = state.spec, parameters.project.shape[0]
    kinds = 3 if spec.momentum else 2
    problems = []
    if x.ndim != 3 or x.shape[0] != state.rows or x.shape[2] != width or not x.is_floating_point():
        problems.append(
            f"hidden states are floating-point [B, T, X] = [{state.rows}, T, {width}] for this state and these "
            f"parameters; got {x.dtype} {list(x.shape)}"
        )
    fits = {
        "project": (parameters.project, (width, 3 * spec.heads * spec.width)),
        "taps": (parameters.taps, (spec.conv, 3 * spec.heads * spec.width) if spec.conv > 1 else None),
        "gates": (parameters.gates, (width, kinds * spec.heads)),
        "gates_bias": (parameters.gates_bias, (kinds * spec.heads,)),
    }
    for name, (tensor, shape) in fits.items():
        found = None if tensor is None else tuple(tensor.shape)
        if found != shape:
            problems.append(f"parameters.{name} is {shape} for this state's spec; got {found}")
    if problems:
        raise ConfigError(problems)
