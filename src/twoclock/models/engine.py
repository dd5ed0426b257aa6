"""The rollout engine: many rows at once, each prefix read once, finished rows dropped.

What is guaranteed: a rollout's randomness is its own (a stream keyed by its seed), and prefix states are a function of
(weights, tokens), so in exact arithmetic a rollout does not depend on what it was batched with. In float32 the tests
hold that token for token; in bf16 a matrix product may round differently with the number of rows, so two batchings may
part where two tokens are nearly as likely. The same call on the same machine gives the same bits.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from twoclock.models.shared_attention import DecodeView, OwnCache, PrefixKV, Segment, text_config, viewing
from twoclock.nn.sampling import sample_tokens, uniforms
from twoclock.types import Sampling

__all__ = ["Draft", "Engine", "Prompted"]

Finish = Callable[[list[int]], bool]


@dataclass(frozen=True)
class Prompted:
    """One prompt to be continued once for each seed. The first ``prefix`` tokens are shared with other prompts."""

    tokens: tuple[int, ...]
    prefix: int
    seeds: tuple[int, ...]


@dataclass
class Draft:
    """A rollout in the making."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = "length"
    """``stop``, ``length``, or ``error`` where the model's logits are no numbers."""


class Engine:
    """Generates with one model. Keeps the prefixes of the weights it was last asked for, up to ``prefix_tokens``."""

    def __init__(self, model: Any, ends: frozenset[int], *, max_rows: int = 64, prefix_tokens: int = 8192) -> None:
        self.model = model
        self.ends = ends
        self.max_rows = max_rows
        self.prefix_tokens = prefix_tokens
        self._layers = int(text_config(model).num_hidden_layers)
        self._prefixes: OrderedDict[tuple[str, tuple[int, ...]], PrefixKV] = OrderedDict()

    @torch.no_grad()
    def prefix(self, weights: str, tokens: tuple[int, ...]) -> PrefixKV | None:
        """The keys and values of a prefix under the weights now mounted, named ``weights``; from the cache if there.

        Always computed alone and whole, so that its bits do not depend on what was cached before.
        """
        if not tokens:
            return None
        key = (weights, tokens)
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return self._prefixes[key]
        size = len(tokens)
        cache = OwnCache(self._layers, size)
        places = torch.arange(size, device=self.model.device)[None]
        causal = torch.ones(size, size, dtype=torch.bool, device=self.model.device).tril()[None, None]
        view = DecodeView([Segment(0, 1, None)], causal, places, places)
        self._forward(torch.tensor([tokens], device=self.model.device), places, cache, view)
        made = cache.as_prefix(tokens)
        # Another version of the weights is gone for good: its prefixes would only hold memory.
        for old in [k for k in self._prefixes if k[0] not in ("", weights)]:
            del self._prefixes[old]
        self._prefixes[key] = made
        while sum(len(k[1]) for k in self._prefixes) > self.prefix_tokens and len(self._prefixes) > 1:
            self._prefixes.popitem(last=False)
        return made

    @torch.no_grad()
    def generate(
        self, weights: str, sequences: Sequence[Prompted], sampling: Sampling, stopped: Finish | None = None
    ) -> list[list[Draft]]:
        """One list of drafts a sequence, one a seed. ``stopped`` says whether the tokens so far end the text."""
        drafts = [[Draft() for _ in s.seeds] for s in sequences]
        rows = [(i, j) for i, s in enumerate(sequences) for j in range(len(s.seeds))]
        # Rows with the same prefix side by side, and prompts of like length together, so that little is padding.
        rows.sort(key=lambda r: (sequences[r[0]].tokens[: sequences[r[0]].prefix], len(sequences[r[0]].tokens), r))
        for start in range(0, len(rows), self.max_rows):
            self._wave(weights, sequences, rows[start : start + self.max_rows], drafts, sampling, stopped)
        return drafts

    def _wave(
        self,
        weights: str,
        sequences: Sequence[Prompted],
        rows: list[tuple[int, int]],
        drafts: list[list[Draft]],
        sampling: Sampling,
        stopped: Finish | None,
    ) -> None:
        device = self.model.device
        prompts = list(dict.fromkeys(i for i, _ in rows))
        prefixes = [self.prefix(weights, sequences[i].tokens[: sequences[i].prefix]) for i in prompts]
        logits, cache, pads, lengths = self._prefill([sequences[i] for i in prompts], prefixes)
        own = torch.tensor([prompts.index(i) for i, _ in rows], device=device)
        longest = cache.length
        cache = cache.take(own, longest + sampling.max_new_tokens)
        logits, pads, lengths = logits[own], pads[own], lengths[own]
        row_prefix = [prefixes[k] for k in own.tolist()]
        columns = torch.arange(cache.capacity, device=device)
        valid = columns[None, :] >= pads[:, None]
        draws = torch.from_numpy(
            np.stack([uniforms(sequences[i].seeds[j], sampling.max_new_tokens) for i, j in rows])
        ).to(device)
        live = [drafts[i][j] for i, j in rows]
        for step in range(sampling.max_new_tokens):
            tokens, logprobs = sample_tokens(
                logits, draws[:, step], sampling.temperature, sampling.top_k, sampling.top_p
            )
            going = []
            for row, (draft, token, logprob) in enumerate(zip(live, tokens.tolist(), logprobs.tolist(), strict=True)):
                if draft.finish != "length":
                    continue
                if not math.isfinite(logprob):
                    draft.finish = "error"
                    continue
                draft.tokens.append(token)
                draft.logprobs.append(logprob)
                if token in self.ends or (stopped is not None and stopped(draft.tokens)):
                    draft.finish = "stop"
                else:
                    going.append(row)
            if not going or step + 1 == sampling.max_new_tokens:
                return
            # Dropping rows copies the cache, so it waits until a quarter of the rows is done.
            if len(going) <= 0.75 * len(live):
                keep = torch.tensor(going, device=device)
                cache = cache.take(keep)
                tokens, pads, lengths, valid, draws = (x[keep] for x in (tokens, pads, lengths, valid, draws))
                live = [live[r] for r in going]
                row_prefix = [row_prefix[r] for r in going]
            at = lengths + step
            end = cache.length + 1
            key_at = (columns[None, :end] - longest) + lengths[:, None]
            view = DecodeView(_segments(row_prefix), valid[:, None, None, :end], at[:, None], key_at)
            logits = self._forward(tokens[:, None], at[:, None], cache, view)

    def _prefill(
        self, sequences: list[Prompted], prefixes: list[PrefixKV | None]
    ) -> tuple[torch.Tensor, OwnCache, torch.Tensor, torch.Tensor]:
        """Reads what each prompt adds to its prefix, left-padded so that all rows end in the same column. Returns the
        logits after the last token, the cache, the pads a row, and the length of each prompt."""
        device = self.model.device
        rest = [s.tokens[s.prefix :] for s in sequences]
        longest = max(len(r) for r in rest)
        pads = torch.tensor([longest - len(r) for r in rest], device=device)
        ids = torch.tensor([[0] * (longest - len(r)) + list(r) for r in rest], device=device)
        columns = torch.arange(longest, device=device)
        skipped = torch.tensor([s.prefix for s in sequences], device=device)
        at = (columns[None, :] - pads[:, None] + skipped[:, None]).clamp(min=0)
        mask = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()[None]
        mask = mask & (columns[None, None, :] >= pads[:, None, None])
        # A padding token sees itself: a query that sees nothing would be NaN, and NaN times weight 0 is NaN.
        mask = mask | torch.eye(longest, dtype=torch.bool, device=device)[None]
        cache = OwnCache(self._layers, longest)
        view = DecodeView(_segments(prefixes), mask[:, None], at, at)
        logits = self._forward(ids, at, cache, view)
        return logits, cache, pads, skipped + torch.tensor([len(r) for r in rest], device=device)

    def _forward(self, ids: torch.Tensor, at: torch.Tensor, cache: OwnCache, view: DecodeView) -> torch.Tensor:
        with viewing(self.model, view):
            out = self.model(input_ids=ids, position_ids=at, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.advance(ids.shape[1])
        logits: torch.Tensor = out.logits[:, -1]
        return logits


def _segments(prefixes: Sequence[PrefixKV | None]) -> list[Segment]:
    """Runs of rows with the same prefix."""
    segments: list[Segment] = []
    for row, prefix in enumerate(prefixes):
        if segments and segments[-1].prefix is prefix:
            segments[-1] = Segment(segments[-1].start, row + 1, prefix)
        else:
            segments.append(Segment(row, row + 1, prefix))
    return segments
