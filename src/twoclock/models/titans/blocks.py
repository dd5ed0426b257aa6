"""One block of each kind: from hidden states and a layer's state to hidden states and the layer's next state.

All are pre-norm with residuals, and a gated network follows each. With n = norm(x), SWA attention over the window, M
the memory written and read token by token (behind the persistent tokens, which it reads first), ⊗ a weighing of
attention by memory (below):

    lmm     x + W_O (norm(M(n)) ⊙ SiLU(W_G n))
    mag     x + W_O (SWA(n) ⊗ M(n))
    mal     x' = x + W_O (norm(M(n)) ⊙ SiLU(W_G n)), then x' + W_O' SWA(norm(x'))
    mac     of a segment s = n, with M' the memory before it: h = M'(s W_Q), y = x + W_O Attention([p ‖ h ‖ s]),
            M is written with norm(y), and y + W_O' (norm(y) ⊗ M(norm(y)))
    window, full    x + W_O SWA(n), W_O Attention(n)

(Behrouz, Zhong and Mirrokni, "Titans", arXiv:2501.00663, equations 19-31.) Where we depart from the paper or it is
silent: in ``mac`` the last read is of each token's own time, not of the segment's end, and a token sees only the reads
h of its own and earlier numbers; otherwise later tokens would be seen; its attention has a residual before the memory
(without, the memory never sees a token but through the attention's weights, and learned far less). y ⊗ m is norm(y) ⊙
(1 + norm(m)), or norm(y) ⊙ 2 sigmoid(norm(m)), both norm(y) where the memory says 0. Persistent tokens have no
position.

Legend: B rows, T tokens, X width of the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn

from twoclock.models.titans.attention import Past, past_after, segment_attention, sliding_attention
from twoclock.models.titans.cache import LayerCache
from twoclock.models.titans.config import TitansConfig
from twoclock.models.titans.layers import ContextQuery, GatedNetwork, Heads, Memory, Norm, Weight
from twoclock.nn.neural_memory_layout import Frame, lay_out
from twoclock.nn.neural_memory_state import MemoryState

__all__ = ["Block"]


class Block(nn.Module):
    """One layer. What of memory, attention and network it has is the config's ``kind`` for it."""

    def __init__(self, config: TitansConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.kind = config.kind(layer)
        width, eps = config.hidden_size, config.rms_norm_eps
        scale = (2 * config.num_hidden_layers) ** -0.5
        self.norm = Norm(width, eps)
        self.out = Weight(width, width, scale)
        self.persistent = (
            nn.Parameter(torch.empty(config.persistent_tokens, width)) if config.persistent_tokens else None
        )
        if self.kind != "lmm":
            self.heads = Heads(config)
        if self.kind in ("mac", "mag", "mal", "lmm"):
            self.memory = Memory(config)
            self.read_norm = Norm(width, eps)
        if self.kind in ("lmm", "mal"):
            self.gate = Weight(width, width)
        if self.kind in ("mac", "mag"):
            self.attention_norm = Norm(width, eps)
        if self.kind == "mal":
            self.second_norm = Norm(width, eps)
        if self.kind in ("mac", "mal"):
            self.second_out = Weight(width, width, scale)
        if self.kind == "mac":
            self.context_query = ContextQuery(config)
            self.context_norm = Norm(width, eps)
        if config.intermediate_size:
            self.network_norm = Norm(width, eps)
            self.network = GatedNetwork(width, config.intermediate_size, scale)

    def forward(self, x: torch.Tensor, cache: LayerCache, live: torch.Tensor | None) -> tuple[torch.Tensor, LayerCache]:
        """x [B, T, X], a row's tokens at its front; ``live`` [B, T] (bool) says which are tokens, None: all."""
        step = {"mac": self._context, "mag": self._gated, "mal": self._layered, "lmm": self._alone}
        x, cache = step.get(self.kind, self._attention)(x, cache, live)
        if self.config.intermediate_size:
            x = x + self.network(self.network_norm(x))
        return x, cache

    # ---------------------------------------------------------------------------------------------------- the wirings

    def _alone(self, x: torch.Tensor, cache: LayerCache, live: torch.Tensor | None) -> tuple[torch.Tensor, LayerCache]:
        n = self.norm(x)
        read, cache = self._remember(n, cache, live)
        if read is None:
            return x, cache
        return x + self.out(self.read_norm(read) * nn.functional.silu(self.gate(n))), cache

    def _gated(self, x: torch.Tensor, cache: LayerCache, live: torch.Tensor | None) -> tuple[torch.Tensor, LayerCache]:
        n = self.norm(x)
        read, cache = self._remember(n, cache, live)
        seen, cache = self._look(n, cache, live)
        return x + self.out(self._weighed(seen, read)), cache

    def _layered(
        self, x: torch.Tensor, cache: LayerCache, live: torch.Tensor | None
    ) -> tuple[torch.Tensor, LayerCache]:
        x, cache = self._alone(x, cache, live)
        seen, cache = self._look(self.second_norm(x), cache, live)
        return x + self.second_out(seen), cache

    def _attention(
        self, x: torch.Tensor, cache: LayerCache, live: torch.Tensor | None
    ) -> tuple[torch.Tensor, LayerCache]:
        seen, cache = self._look(self.norm(x), cache, live)
        return x + self.out(seen), cache

    # -------------------------------------------------------------------------------------------- memory and attention

    def _remember(
        self, n: torch.Tensor, cache: LayerCache, live: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, LayerCache]:
        """The memory's read of each token [B, T, X] (None: zeroed), and the layer's state with the memory after."""
        if self.config.memory_zeroed:
            return None, cache
        found = self.memory.step(self._begun(cache, len(n)), n, live)
        return found.read, replace(cache, memory=found.state)

    def _begun(self, cache: LayerCache, rows: int) -> MemoryState:
        if cache.memory is not None:
            return cache.memory
        persistent = None if self.persistent is None or self.kind == "mac" else self.norm(self.persistent)
        return self.memory.begin(rows, persistent)

    def _look(self, n: torch.Tensor, cache: LayerCache, live: torch.Tensor | None) -> tuple[torch.Tensor, LayerCache]:
        """Window attention (or over all that was) [B, T, X]."""
        window = None if self.kind == "full" else self.config.window
        q, k, v = self.heads(n)
        past = Past.none(k) if cache.past is None else cache.past
        seen = sliding_attention(q, k, v, past, window, self.config.rope_base, live, self._shared(self._look_norm))
        counts = None if live is None else live.sum(1).cpu()
        after = past_after(past, k, v, counts, None if window is None else window - 1)
        return seen.transpose(1, 2).flatten(2), replace(cache, past=after)

    @property
    def _look_norm(self) -> Norm:
        return self.second_norm if self.kind == "mal" else self.norm

    def _shared(self, norm: Norm) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values of the persistent tokens [heads, P, d]."""
        return None if self.persistent is None else self.heads.pairs(norm(self.persistent))

    def _weighed(self, seen: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
        """y ⊗ m."""
        y = self.attention_norm(seen)
        if read is None:
            return cast(torch.Tensor, y)
        m = self.read_norm(read)
        return cast(torch.Tensor, y * (1 + m if self.config.memory_gate == "linear" else 2 * torch.sigmoid(m)))

    # --------------------------------------------------------------------------------------------- segment by segment

    def _context(
        self, x: torch.Tensor, cache: LayerCache, live: torch.Tensor | None
    ) -> tuple[torch.Tensor, LayerCache]:
        n = self.norm(x)
        q, k, v = self.heads(n)
        if cache.past is None:
            cache = replace(cache, past=Past.none(k), context=Past.none(k))
        if cache.memory is None and not self.config.memory_zeroed:
            memory = self._begun(cache, len(x))
            cache = replace(cache, memory=memory, opened=memory.weights)
        assert cache.past is not None
        layout = lay_out(cache.past.held, live, x.shape[1], self.config.segment)
        parts: tuple[torch.Tensor, ...] = (x, n, q, k, v)
        if layout.index is not None:
            parts = tuple(_gathered(p, layout.index.to(x.device)) for p in parts)
        shared = self._shared(self.norm)
        outs = []
        for frame in layout.frames:
            cut = slice(frame.start, frame.stop)
            out, cache = self._segment(tuple(p[..., cut, :] for p in parts), cache, frame, shared)
            outs.append(out)
        if not outs:
            return x, cache
        return _scattered(torch.cat(outs, dim=1), layout.index, x.shape[1]), cache

    def _segment(
        self,
        parts: tuple[torch.Tensor, ...],
        cache: LayerCache,
        frame: Frame,
        shared: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, LayerCache]:
        """A frame's tokens, of each row those of one segment: what becomes of x [B, c, X], and the state after."""
        x, n, q, k, v = parts
        before, context, memory = cache.past, cache.context, cache.memory
        assert before is not None
        assert context is not None
        counts = None if frame.counts is None else torch.tensor(frame.counts)
        mask = None if counts is None else (torch.arange(frame.width) < counts[:, None]).to(n.device)
        told = None
        if memory is not None and not self.config.memory_zeroed:
            cache = replace(cache, opened=_opened(cache.opened, memory, before, counts))
            heard = self.memory.read(memory, cache.opened, self.context_query(n)).to(n.dtype)
            told = self.heads.pairs(self.context_norm(heard))
        seen = segment_attention(
            q, (k, v), told, before, context, self.config.segment, self.config.rope_base, mask, shared
        )
        y = x + self.out(seen.transpose(1, 2).flatten(2))
        read: torch.Tensor | None = None
        if memory is not None and told is not None:
            found = self.memory.step(memory, self.attention_norm(y), mask)
            read, memory = found.read, found.state
        out = y + self.second_out(self._weighed(y, read))
        past = _within(past_after(before, k, v, counts, None), self.config.segment)
        if told is not None:
            context = _within(past_after(context, *told, counts, None), self.config.segment)
        return out, replace(cache, memory=memory, past=past, context=context)


def _opened(
    opened: tuple[torch.Tensor, ...], memory: MemoryState, past: Past, counts: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """The weights with which each row's segment began: those of now for a row that begins one here."""
    begins = past.held == 0 if counts is None else (past.held == 0) & (counts > 0)
    if not opened or bool(begins.all()):
        return memory.weights
    if not bool(begins.any()):
        return opened
    choice = begins.to(memory.device)[:, None, None, None]
    return tuple(torch.where(choice, now, old) for now, old in zip(memory.weights, opened, strict=True))


def _within(past: Past, segment: int) -> Past:
    """Without the tokens of segments that are full."""
    held = past.held % segment
    if bool((held == past.held).all()):
        return past
    places = int(held.max())
    cut = slice(past.places - places, None)
    return Past(past.keys[:, :, cut].clone(), past.values[:, :, cut].clone(), held)


def _gathered(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x [B, .., T, W] at places [B, W'] (T is no token: 0)."""
    padded = nn.functional.pad(x, (0, 0, 0, 1))
    places = index.view(len(index), *[1] * (x.ndim - 3), -1, 1)
    return padded.gather(-2, places.expand(*x.shape[:-2], -1, x.shape[-1]))


def _scattered(x: torch.Tensor, index: torch.Tensor | None, length: int) -> torch.Tensor:
    """The inverse, of x [B, W', X]: 0 where nothing was taken from."""
    if index is None:
        return x
    empty = x.new_zeros(len(x), length + 1, x.shape[2])
    return empty.scatter(1, index.to(x.device).unsqueeze(-1).expand_as(x), x)[:, :length]
