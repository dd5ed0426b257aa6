"""Proxy-tuning as a drop-in for transformers' ``generate``: a logits processor with caches of its own.

    processor = ProxyProcessor(expert, anti, alpha=1.0, attention_mask=inputs["attention_mask"])
    base.generate(**inputs, logits_processor=LogitsProcessorList([processor]), do_sample=True)

Transformers reorders, crops and drops the cache of the model that generates and knows nothing of a processor's. So
nothing here counts calls: each row of a cache carries the tokens that it has read, and a call takes up those rows whose
tokens its own continue, whichever rows they are now (beams that split, rows that changed places), drops what was taken
back (assisted decoding), and reads anew what it cannot find. It is right under greedy search, sampling and beam search,
for batches with left padding and rows that have finished, and one object serves any number of calls.

Transformers runs its own processors before those that it is given (penalties, banned words, minimum lengths), so they
act on the base's logits and the shift comes after them; temperature, top-k and top-p come after the shift. What is
returned are log-probabilities, since beam search adds them up. :mod:`twoclock.models.steered` does the same for the
rollout engine, with fewer passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from twoclock.errors import ConfigError
from twoclock.models.mounting import Change, Mounting
from twoclock.models.shared_attention import head_module
from twoclock.models.vocabularies import same_vocabulary
from twoclock.nn.proxy import Difference, normalized, shifted
from twoclock.types import Shift

__all__ = ["ProxyProcessor", "SideCache"]

Row = tuple[int, ...]


class ProxyProcessor:
    """See the module. ``expert`` and ``anti`` are transformers causal language models whose token ids are those of the
    model that generates; None is that model itself, by the scores that it is given. ``expert_change`` and
    ``anti_change`` are changes of their weights (:class:`~twoclock.nn.lowrank.LowRank` and its kin).

    ``alpha`` and ``plausible``: see :class:`twoclock.types.Shift`; a schedule counts from the end of
    ``attention_mask``. Padding on the left is known from ``attention_mask`` [B, T], that of the prompts, or else taken
    to be the leading tokens ``pad_token_id``; without either, there is none. ``side_prompts`` are what the expert and
    the anti-expert read in place of the prompts. With ``attention_mask`` the processor is for those prompts alone.
    ``tokens`` is how many ids stand for a token: rows of a head beyond are not shifted. ``tokenizers``, that of the
    model that generates and that of the sides, are compared where they are given.

    Raises ConfigError for arguments that do not go together, UnsupportedError for tokenizers that differ.
    """

    def __init__(
        self,
        expert: Any,
        anti: Any,
        *,
        alpha: float | tuple[float, ...] = 1.0,
        plausible: float = 0.0,
        attention_mask: torch.Tensor | None = None,
        pad_token_id: int | None = None,
        side_prompts: Sequence[Sequence[int]] | None = None,
        expert_change: Change | None = None,
        anti_change: Change | None = None,
        tokens: int | None = None,
        tokenizers: tuple[Any, Any] | None = None,
    ) -> None:
        try:
            self.alphas = Shift(expert=None, anti=None, alpha=alpha, plausible=plausible).alphas
        except ValueError as problem:
            raise ConfigError(str(problem)) from problem
        problems = []
        if (expert is None and expert_change is not None) or (anti is None and anti_change is not None):
            problems.append("a change of weights needs the model that it changes: give the model, not None")
        if attention_mask is None and (side_prompts is not None or len(self.alphas) > 1):
            what = "a schedule of alpha" if side_prompts is None else "side_prompts"
            problems.append(f"{what} needs attention_mask, which says where the prompts end")
        if side_prompts is not None and attention_mask is not None and len(side_prompts) != len(attention_mask):
            problems.append(
                f"{len(side_prompts)} side_prompts for {len(attention_mask)} prompts: expected one a prompt"
            )
        if attention_mask is not None and attention_mask.dim() != 2:
            problems.append(f"attention_mask has {attention_mask.dim()} axes: expected [batch, tokens]")
        if problems:
            raise ConfigError(problems)
        if tokenizers is not None:
            base, side = tokenizers
            for model, name in ((expert, "the expert"), (anti, "the anti-expert")):
                if model is not None:
                    rows = _rows(model)
                    same_vocabulary(base, side, rows, rows, ("the model that generates", name))
            tokens = len(base) if tokens is None else tokens
        self.plausible = plausible
        self.tokens = tokens
        self._mask = attention_mask
        self._pad = pad_token_id
        self._prompts = None if side_prompts is None else [tuple(int(t) for t in p) for p in side_prompts]
        self._expert = None if expert is None else SideCache(expert, expert_change)
        self._anti = None if anti is None else SideCache(anti, anti_change)
        self._same = expert is anti and expert_change is anti_change

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, V] of the next token from the scores [B, V] of the model that generates."""
        alpha = self._alpha(int(input_ids.shape[1]))
        if alpha == 0.0 or self._same:
            return scores
        known = self._known(scores)
        rows = self._rows_of(input_ids)
        base = normalized(scores, known)
        expert, anti = (
            base if side is None else normalized(_fitted(side.logits(rows).to(scores.device), scores), known)
            for side in (self._expert, self._anti)
        )
        weight = torch.full((len(scores),), alpha, device=scores.device)
        moved = shifted(scores, [Difference(expert, anti, weight, self.plausible, known)])
        return torch.log_softmax(moved, dim=-1)

    def forget(self) -> None:
        """Drops the caches. Needed for their memory's sake alone."""
        for side in (self._expert, self._anti):
            if side is not None:
                side.forget()

    def _alpha(self, length: int) -> float:
        step = 0 if self._mask is None else max(0, length - int(self._mask.shape[1]))
        return self.alphas[min(step, len(self.alphas) - 1)]

    def _known(self, scores: torch.Tensor) -> torch.Tensor:
        heads = [side.rows for side in (self._expert, self._anti) if side is not None]
        count = min([int(scores.shape[-1]), *heads, *([] if self.tokens is None else [self.tokens])])
        return torch.arange(scores.shape[-1], device=scores.device) < count

    def _rows_of(self, input_ids: torch.Tensor) -> list[Row]:
        """What the sides read: each row without its padding, and with its own prompt where there is one."""
        found: list[Row] = [tuple(row) for row in input_ids.tolist()]
        if self._mask is None:
            return found if self._pad is None else [_unpadded(row, self._pad) for row in found]
        many, prompts = len(found), len(self._mask)
        width = int(self._mask.shape[1])
        if many % prompts or input_ids.shape[1] < width:
            raise ConfigError(
                f"attention_mask is of {prompts} prompts of {width} tokens, but this call has {many} rows of "
                f"{input_ids.shape[1]}; make a processor for each call of generate"
            )
        each = many // prompts  # beams and returned sequences of a prompt stand side by side
        mask = self._mask.bool().tolist()
        rows = []
        for n, row in enumerate(found):
            own = mask[n // each]
            prompt = tuple(t for t, seen in zip(row[:width], own, strict=True) if seen)
            rows.append((prompt if self._prompts is None else self._prompts[n // each]) + row[width:])
        return rows


@dataclass
class _Cached:
    """What a side has read: rows of tokens behind padding on the left, and the keys and values of its layers."""

    rows: list[Row]
    mask: torch.Tensor = field(repr=False)
    """[R, C] int64, 0 at padding."""
    cache: Any = field(repr=False)


class SideCache:
    """One model with a cache that follows tokens, not calls."""

    def __init__(self, model: Any, change: Change | None) -> None:
        self.model, self.change = model, change
        self.rows = _rows(model)
        linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        self._mount = Mounting(model, linears)
        self._cached: _Cached | None = None

    def forget(self) -> None:
        self._cached = None

    @torch.no_grad()
    def logits(self, rows: Sequence[Row]) -> torch.Tensor:
        """The logits [R, S] after the last token of each row."""
        with self._mount(self.change):
            held, self._cached = self._continued(rows), None
            return self._read_on(rows, held) if held is not None else self._read_anew(rows)

    def _continued(self, rows: Sequence[Row]) -> _Cached | None:
        """The cache's rows that these continue, in their order, cut back to what they share; None where there is no
        such cache, or where its rows would have to be cut at different places."""
        cached = self._cached
        if cached is None:
            return None
        at = {row: i for i, row in enumerate(cached.rows)}
        parents = [at.get(row[:-1], -1) for row in rows]
        if -1 not in parents:
            return _picked(cached, parents, 0)
        return self._cut_back(rows, cached)

    def _cut_back(self, rows: Sequence[Row], cached: _Cached) -> _Cached | None:
        """Where tokens were taken back or several were added: all rows by as many."""
        best = [max(range(len(cached.rows)), key=lambda i, row=row: _common(row, cached.rows[i])) for row in rows]  # type: ignore[misc]
        drop = max(
            len(cached.rows[i]) - min(_common(row, cached.rows[i]), len(row) - 1)
            for row, i in zip(rows, best, strict=True)
        )
        kept = [cached.rows[i][: len(cached.rows[i]) - drop] for i in best]
        more = {len(row) - len(some) for row, some in zip(rows, kept, strict=True)}
        if len(more) != 1 or min(map(len, kept)) < 1 or (drop and not _can_crop(cached.cache)):
            return None
        return _picked(cached, best, drop)

    def _read_on(self, rows: Sequence[Row], held: _Cached) -> torch.Tensor:
        new = len(rows[0]) - len(held.rows[0])
        ids = torch.tensor([row[-new:] for row in rows], device=self.model.device)
        mask = torch.cat([held.mask, held.mask.new_ones(len(rows), new)], dim=1)
        return self._pass(rows, ids, mask, held.cache)

    def _read_anew(self, rows: Sequence[Row]) -> torch.Tensor:
        width = max(map(len, rows))
        ids = torch.tensor([(0,) * (width - len(row)) + row for row in rows], device=self.model.device)
        real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        return self._pass(rows, ids, real, None)

    def _pass(self, rows: Sequence[Row], ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        told = {} if bool(mask.all()) else {"attention_mask": mask}
        out = self.model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, **told)
        made = getattr(out, "past_key_values", None)
        # A model without a cache, or with one that cannot follow its rows, reads everything anew each time.
        self._cached = None if not hasattr(made, "reorder_cache") else _Cached(list(rows), mask, made)
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits


def _picked(cached: _Cached, parents: Sequence[int], drop: int) -> _Cached:
    """These rows of the cache, in this order, without their last ``drop`` tokens."""
    for layer in cached.cache.layers if drop else ():
        layer.keys, layer.values = layer.keys[:, :, :-drop], layer.values[:, :, :-drop]
    if list(parents) != list(range(len(cached.rows))):
        cached.cache.reorder_cache(torch.tensor(parents, device=cached.mask.device))
    mask = cached.mask[list(parents)]
    kept = [cached.rows[i][: len(cached.rows[i]) - drop] for i in parents]
    return _Cached(kept, mask[:, : mask.shape[1] - drop], cached.cache)


def _can_crop(cache: Any) -> bool:
    """Only layers that keep every key can be cut back; those with a window or a running state cannot."""
    layers = getattr(cache, "layers", None) or ()
    return len(layers) > 0 and all(type(layer).__name__ == "DynamicLayer" for layer in layers)


def _common(one: Row, other: Row) -> int:
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])


def _unpadded(row: Row, pad: int) -> Row:
    """Without the leading padding; at least the last token stays."""
    start = next((i for i, token in enumerate(row) if token != pad), len(row) - 1)
    return row[start:]


def _fitted(logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """With as many columns as the scores; what is added is known to nobody."""
    missing = scores.shape[-1] - logits.shape[-1]
    return logits[:, : scores.shape[-1]] if missing <= 0 else torch.nn.functional.pad(logits, (0, missing))


def _rows(model: Any) -> int:
    weight: torch.Tensor = head_module(model).weight  # type: ignore[assignment]
    return int(weight.shape[0])
