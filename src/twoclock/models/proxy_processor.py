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
from typing import Any

import torch

from twoclock.errors import ConfigError
from twoclock.models.mounting import Change
from twoclock.models.side_cache import SideCache, head_rows
from twoclock.models.vocabularies import same_vocabulary
from twoclock.nn.proxy import Difference, normalized, shifted
from twoclock.types import Shift

__all__ = ["ProxyProcessor"]

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
                    rows = head_rows(model)
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


def _unpadded(row: Row, pad: int) -> Row:
    """Without the leading padding; at least the last token stays."""
    start = next((i for i, token in enumerate(row) if token != pad), len(row) - 1)
    return row[start:]


def _fitted(logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """With as many columns as the scores; what is added is known to nobody."""
    missing = scores.shape[-1] - logits.shape[-1]
    return logits[:, : scores.shape[-1]] if missing <= 0 else torch.nn.functional.pad(logits, (0, missing))
