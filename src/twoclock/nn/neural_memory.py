"""The neural memory, a chunk at a time: the same function as the reference in batched matrix products.

Inside a chunk every gradient is an outer product a_iᵀ e_i at the chunk's first weights, so a layer's read of M_t
needs no weights of its own for each token:

    B_t M_t = β_t (B M_0)_t + f_t (B S_0)_t - [(B Aᵀ ⊙ G) E]_t

an attention within the chunk whose mask G holds the gates; at the end M_C = β_C M_0 + f_C S_0 - Aᵀ diag(G(C,·)) E,
and S_C likewise (the closed form of equations 13-18 of Behrouz, Zhong and Mirrokni, "Titans", arXiv:2501.00663, with
momentum and gates of every token; :mod:`twoclock.nn.neural_memory_coefficients` has β, f and G). All rows and heads
go together, all that does not depend on the weights is computed for many chunks at once, and only chunks follow one
another.

A piece may begin and end inside a chunk, in each row elsewhere; the state remembers the weights its gradients belong
to.

Legend: B rows, H heads, T tokens, D width, C chunk length, N = B·H memories, c tokens of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from twoclock.errors import ConfigError
from twoclock.nn.neural_memory_coefficients import Coefficients, coefficients, read_before
from twoclock.nn.neural_memory_inputs import MemoryStep, Tokens, checked, checked_gain
from twoclock.nn.neural_memory_layout import Frame, Layout, lay_out, runs
from twoclock.nn.neural_memory_net import KeyPass, activate, apply_network, finish, key_pass
from twoclock.nn.neural_memory_products import Ends, read_layer, write_layer
from twoclock.nn.neural_memory_spec import Gates, MemorySpec
from twoclock.nn.neural_memory_state import MemoryState

__all__ = ["memory_read", "memory_step"]

PREPARED_TOKENS = 1024
"""Tokens whose coefficients are held at once; more saves nothing, and they take C numbers a token and head."""

Weights = tuple[torch.Tensor, ...]


def memory_step(
    state: MemoryState,
    keys: torch.Tensor,
    values: torch.Tensor,
    queries: torch.Tensor | None,
    gates: Gates,
    *,
    mask: torch.Tensor | None = None,
    gain: torch.Tensor | None = None,
    telemetry: bool = False,
) -> MemoryStep:
    """Writes a piece of text into a memory and reads it on the way.

    ``keys``, ``values``, ``queries`` [B, H, T, D] (queries None: write only) and ``gates`` [B, H, T] in any float
    type; all is computed in the state's. ``mask`` [B, T] is True at tokens: what is not changes nothing, whatever it
    holds. ``gain`` [H, D] is the gain of a memory with ``spec.norm``. Any cut of a text into pieces gives what the
    whole gives. Gradients flow to everything, the given state too. Raises ConfigError for what does not fit the
    state.
    """
    with torch.autocast(state.device.type, enabled=False):
        tokens = checked(state, keys, values, queries, gates, mask, gain)
        layout = lay_out(state.position, tokens.mask, tokens.length, state.spec.chunk)
        if not layout.frames:
            return _nothing(state, tokens, telemetry)
        return _through(state, tokens, layout, telemetry)


def memory_read(state: MemoryState, queries: torch.Tensor, *, gain: torch.Tensor | None = None) -> torch.Tensor:
    """M(q) [B, H, T, D] of every query at the memory as it stands; nothing is written."""
    rows, heads, width = state.rows, state.spec.heads, state.spec.width
    if queries.ndim != 4 or (*queries.shape[:2], queries.shape[3]) != (rows, heads, width):
        raise ConfigError(f"queries are [B, H, T, D] = [{rows}, {heads}, T, {width}]; got {list(queries.shape)}")
    with torch.autocast(state.device.type, enabled=False):
        asked = queries.to(state.dtype)
        return apply_network(state.weights, asked, state.spec, checked_gain(state, gain)).to(queries.dtype)


def _nothing(state: MemoryState, tokens: Tokens, telemetry: bool) -> MemoryStep:
    """A piece without tokens: the same state, zeros where somebody reads."""
    none = tokens.k.new_zeros(tokens.k.shape[:3]) if telemetry else None
    read = None if tokens.q is None else tokens.finished(torch.zeros_like(tokens.q))
    return MemoryStep(read, state, none, none)


# --------------------------------------------------------------------------------------------------- chunk after chunk


@dataclass(frozen=True)
class _Values:
    """M, S and the open chunk's first weights, N memories deep."""

    weights: Weights
    surprise: Weights
    base: Weights


@dataclass(frozen=True)
class _Piece:
    """A frame ready for its weights: [N, c, D] of keys, values and queries, and its coefficients without n."""

    k: torch.Tensor
    v: torch.Tensor
    q: torch.Tensor | None
    at: Coefficients
    ends: Ends


def _through(state: MemoryState, tokens: Tokens, layout: Layout, telemetry: bool) -> MemoryStep:
    spec, heads = state.spec, state.spec.heads
    laid = _laid(tokens, layout)
    gain = None if tokens.gain is None else tokens.gain.expand(state.rows, *tokens.gain.shape).flatten(0, 1)
    now = _Values(_joined(state.weights), _joined(state.surprise), _joined(state.base))
    reads, losses, norms = [], [], []
    for frames in runs(layout.frames, PREPARED_TOKENS):
        for frame, piece in zip(frames, _prepared(laid, frames, spec), strict=True):
            # After the first frame M and S are our own; where the chunk closes and no gradient needs them, they go.
            reuse = frame.start > 0 and frame.closes is True and not torch.is_grad_enabled()
            now, found, read = _frame(now, piece, frame, spec, gain, telemetry, reuse)
            if read is not None:
                reads.append(read)
            if telemetry:
                assert found.norms is not None
                losses.append(found.residuals.detach().square().sum(-1) / 4)
                norms.append(found.norms)
    written = state.written + layout.counts
    after = MemoryState(
        spec,
        _by_head(now.weights, heads),
        _by_head(now.surprise, heads),
        _by_head(now.base, heads),
        state.tails,
        written,
    ).settled()
    return MemoryStep(
        read=tokens.finished(_in_place(reads, tokens, layout, heads)) if tokens.q is not None else None,
        state=after,
        loss=_in_place(losses, tokens, layout, heads) if telemetry else None,
        surprise=_in_place(norms, tokens, layout, heads) if telemetry else None,
    )


def _joined(part: Weights) -> Weights:
    """[B, H, ...] -> [N, ...]."""
    return tuple(w.flatten(0, 1) for w in part)


def _by_head(part: Weights, heads: int) -> Weights:
    """[N, ...] -> [B, H, ...]."""
    return tuple(w.view(-1, heads, *w.shape[1:]) for w in part)


def _frame(
    now: _Values,
    piece: _Piece,
    frame: Frame,
    spec: MemorySpec,
    gain: torch.Tensor | None,
    telemetry: bool,
    reuse: bool,
) -> tuple[_Values, KeyPass, torch.Tensor | None]:
    """The values after a frame, what its keys found, and what its queries read [N, c, D]."""
    start = now.weights if frame.fresh else now.base
    found = key_pass(start, piece.k, piece.v, spec, gain, want_norms=telemetry)
    read = None if piece.q is None else finish(_read(now, piece.q, found, piece.at, spec), piece.q, spec, gain)
    after = _written(now, found, piece.ends, reuse)
    return _closed(now, after, start, frame, spec.heads), found, read


def _read(now: _Values, q: torch.Tensor, found: KeyPass, at: Coefficients, spec: MemorySpec) -> torch.Tensor:
    """The last layer's output for the queries, each at its own token's weights."""
    b = q
    for n, weight in enumerate(now.weights):
        b = b if n == 0 else activate(b, spec.activation)
        surprise = now.surprise[n] if spec.momentum else None
        b = read_layer(b, found.inputs[n], found.errors[n], weight, surprise, at.beta, at.carried, at.table)
    return b


def _written(now: _Values, found: KeyPass, ends: Ends, reuse: bool) -> _Values:
    """M and S at the end of the frame; the base as it was."""
    olds = now.surprise or [None] * len(now.weights)
    pairs = [
        write_layer(a, e, weight, old, ends, reuse)
        for a, e, weight, old in zip(found.inputs, found.errors, now.weights, olds, strict=True)
    ]
    return _Values(tuple(new for new, _ in pairs), tuple(left for _, left in pairs if left is not None), now.base)


def _closed(now: _Values, after: _Values, start: Weights, frame: Frame, heads: int) -> _Values:
    """Where a chunk is full the next begins; where a row has no tokens here it keeps its values bit for bit."""
    if frame.counts is None:
        return _Values(after.weights, after.surprise, after.weights if frame.closes is True else start)
    device = start[0].device
    some = torch.tensor(frame.counts, device=device).repeat_interleave(heads)[:, None, None] > 0
    full = torch.tensor(frame.closes, device=device).repeat_interleave(heads)[:, None, None]
    base = _where(some, start, now.base)
    return _Values(
        _where(some, after.weights, now.weights),
        _where(some, after.surprise, now.surprise),
        _where(full, after.weights, base),
    )


def _where(choice: torch.Tensor, new: Weights, old: Weights) -> Weights:
    return tuple(torch.where(choice, n, o) for n, o in zip(new, old, strict=True))


# ------------------------------------------------------------------------------------------------ tokens in and out


def _laid(tokens: Tokens, layout: Layout) -> Tokens:
    """The tokens in the frames' order."""
    if layout.index is None:
        return tokens
    index = layout.index.to(tokens.k.device)

    def moved(x: torch.Tensor) -> torch.Tensor:
        flat = x if x.ndim == 4 else x.unsqueeze(-1)
        padded = torch.nn.functional.pad(flat, (0, 0, 0, 1))  # the place of no token
        places = index[:, None, :, None].expand(-1, flat.shape[1], -1, flat.shape[3])
        found = padded.gather(2, places)
        return found if x.ndim == 4 else found.squeeze(-1)

    return Tokens(
        moved(tokens.k),
        moved(tokens.v),
        None if tokens.q is None else moved(tokens.q),
        moved(tokens.rate),
        None if tokens.momentum is None else moved(tokens.momentum),
        moved(tokens.forget),
        None,
        tokens.gain,
        tokens.given,
    )


def _prepared(tokens: Tokens, frames: Sequence[Frame], spec: MemorySpec) -> list[_Piece]:
    """Frames of one width, neighbours, with all that does not depend on the memory's weights."""
    start, stop, width = frames[0].start, frames[-1].stop, frames[0].width

    def cut(x: torch.Tensor) -> torch.Tensor:
        return x[:, :, start:stop].reshape(-1, len(frames), width, *x.shape[3:])

    found = coefficients(
        cut(tokens.rate),
        None if tokens.momentum is None else cut(tokens.momentum),
        cut(tokens.forget),
        _live(frames, spec.heads, tokens.k.device),
    )
    at_read = found if spec.read == "after" else read_before(found)
    # One unbind for all frames: taking them one by one would cost a gradient of the whole length for each.
    count = len(frames)
    parts = zip(
        cut(tokens.k).unbind(1),
        cut(tokens.v).unbind(1),
        _apart(None if tokens.q is None else cut(tokens.q), count),
        at_read.beta.unsqueeze(-1).unbind(1),
        _apart(None if at_read.carried is None else at_read.carried.unsqueeze(-1), count),
        at_read.table.unbind(1),
        found.beta[..., -1, None, None].unbind(1),
        found.table[..., -1].unsqueeze(-1).unbind(1),
        _apart(None if found.carried is None else found.carried[..., -1, None, None], count),
        _apart(None if found.mu_end is None else found.mu_end[..., None, None], count),
        _apart(None if found.surprise_end is None else found.surprise_end.unsqueeze(-1), count),
        strict=True,
    )
    return [
        _Piece(k, v, q, Coefficients(beta, carried, table, None, None), (beta_end, g, f, mu, n))
        for k, v, q, beta, carried, table, beta_end, g, f, mu, n in parts
    ]


def _apart(x: torch.Tensor | None, count: int) -> Sequence[torch.Tensor | None]:
    return [None] * count if x is None else x.unbind(1)


def _live(frames: Sequence[Frame], heads: int, device: torch.device) -> torch.Tensor | None:
    """[N, n, c]: the places that hold tokens; None when all do."""
    if frames[0].counts is None:
        return None
    held = torch.tensor([f.counts for f in frames]).T.repeat_interleave(heads, 0)
    return (torch.arange(frames[0].width) < held.unsqueeze(-1)).to(device)


def _in_place(parts: Sequence[torch.Tensor], tokens: Tokens, layout: Layout, heads: int) -> torch.Tensor:
    """The frames' results [N, c, ...] at their tokens [B, H, T, ...]; 0 at what is no token."""
    flat = torch.cat(list(parts), dim=1)
    joined = flat.view(-1, heads, *flat.shape[1:])
    if layout.index is None:
        return joined
    flat = joined if joined.ndim == 4 else joined.unsqueeze(-1)
    index = layout.index.to(flat.device)[:, None, :, None].expand(-1, heads, -1, flat.shape[3])
    # One place more for what stands for no token, dropped again.
    empty = flat.new_zeros(*flat.shape[:2], tokens.length + 1, flat.shape[3])
    out = empty.scatter(2, index, flat)[:, :, : tokens.length]
    return out if joined.ndim == 4 else out.squeeze(-1)
