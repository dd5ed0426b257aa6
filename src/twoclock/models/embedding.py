"""A local model's own hidden states as an encoder of texts: memory's search without a second model.

What is read is the base: no delta is mounted, so vectors outlive every change of the slow weights. A causal model is
no sentence encoder, and paraphrases are found less often than by one that was trained for it. Two things are taken off
that say nothing of a text: the state of the first position, on which attention rests and whose size would drown the
mean (Xiao et al., 2023: attention sinks), so a start token is set before the text and left out; and the mean state of
general texts, as all states share a large common direction (Mu & Viswanath, 2018, the first step).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import numpy as np
import torch

from twoclock.errors import ConfigError, NumericsError
from twoclock.hashing import content_hash
from twoclock.memory.encoders import Vectors, require_texts, unit_rows
from twoclock.models.local import LocalPolicy

__all__ = ["PolicyEncoder", "mean_states"]


@torch.no_grad()
def mean_states(policy: LocalPolicy, text: str, *, layer: int, max_tokens: int) -> np.ndarray:
    """The mean over tokens of the base model's states after ``layer`` layers (0: the embeddings), float32 [D]; of the
    first ``max_tokens`` tokens of ``text`` as it stands, behind a start token that is left out of the mean, without a
    chat template. Zeros where there is no token. Raises NumericsError for states that are NaN or infinite."""
    model = policy.model
    # A lone surrogate is a legal str that tokenizers refuse; a token has at least one byte, so no more text is needed
    # than this, whatever the tokens.
    text = text.encode("utf-8", "replace").decode("utf-8")[: 16 * max_tokens]
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens] if text.strip() else []
    if not ids:
        return np.zeros(int(model.config.get_text_config().hidden_size), np.float32)
    tokenizer = policy.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    before = [] if start is None else [start]
    tokens = torch.tensor([before + ids], device=model.device)
    states = model.get_decoder()(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states[layer]
    mean: np.ndarray = states[0, len(before) :].float().mean(0).cpu().numpy()
    if not np.isfinite(mean).all():
        raise NumericsError(f"the states of layer {layer} of {policy.card.name} are NaN or infinite for {text[:40]!r}")
    return mean


class PolicyEncoder:
    """:func:`mean_states` minus their mean over texts of no particular kind, then length 1. An
    :class:`~twoclock.memory.encoders.Encoder`.

    ``layer`` counts from 0 (the embeddings) to the model's number of layers, default four fifths of it. ``centre`` are
    the texts whose mean is taken off, default the library's general prompts; ``()`` takes nothing off.
    """

    def __init__(
        self,
        policy: LocalPolicy,
        *,
        layer: int | None = None,
        max_tokens: int = 256,
        centre: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(policy, LocalPolicy):
            raise ConfigError(
                f"the encoder 'policy' reads the states of a local model, not of {type(policy).__name__}; use "
                "build_encoder('wordllama') or build_encoder('hashing')"
            )
        config = policy.model.config.get_text_config()
        depth = int(config.num_hidden_layers)
        self.layer = (4 * depth) // 5 if layer is None else layer
        if not 0 <= self.layer <= depth:
            raise ConfigError(f"layer is {layer}; {policy.card.name} has layers 0 to {depth}")
        if max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens}; expected at least 1")
        self.max_tokens = min(max_tokens, policy.card.context_tokens - 1)
        self.dimension = int(config.hidden_size)
        texts = _general() if centre is None else tuple(require_texts(centre))
        settings = [policy.base_hash, policy.dtype, self.layer, self.max_tokens, list(texts)]
        self.id = f"policy-1:{content_hash(settings)[:12]}:{self.dimension}"
        self._policy = policy
        self._offset = np.mean([self._states(t) for t in texts], axis=0) if texts else np.zeros(self.dimension)

    def encode(self, texts: Sequence[str]) -> Vectors:
        texts = require_texts(texts)
        rows = np.zeros((len(texts), self.dimension))
        for row, text in zip(rows, texts, strict=True):
            states = self._states(text)
            if states.any():
                row[:] = states - self._offset
        return unit_rows(rows, what=self.id)

    def _states(self, text: str) -> np.ndarray:
        return mean_states(self._policy, text, layer=self.layer, max_tokens=self.max_tokens)


def _general() -> tuple[str, ...]:
    text = resources.files("twoclock").joinpath("data/general_prompts.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())
