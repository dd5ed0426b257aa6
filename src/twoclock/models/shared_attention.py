"""Installs a view of :mod:`twoclock.models.views` in a transformers model as an attention implementation of its own.

Models that call their attention through transformers' interface (Llama, Qwen, Gemma, Mistral and their kin) need no
code of their own here; whether a model really obeys is checked once when it is loaded, against its own plain forward
pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from twoclock.errors import UnsupportedError
from twoclock.models.views import View

__all__ = ["attention_windows", "forward", "head_module", "hidden_states", "text_config", "viewing"]

IMPLEMENTATION = "twoclock_shared"

_active = threading.local()


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    view: View = _active.view
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    _active.windows[layer] = sliding_window or 0
    out = view.attend(query, key, value, layer, scale, softcap or 0.0, sliding_window or 0)
    return out.transpose(1, 2).contiguous(), None


@contextmanager
def viewing(model: nn.Module, view: View) -> Iterator[None]:
    """The model's attention follows ``view`` while inside, and its head computes only the logits that the view wants;
    outside it is what it was."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attention)
    config = text_config(model)
    before = config._attn_implementation
    _active.view, _active.windows = view, {}
    config._attn_implementation = IMPLEMENTATION
    handle = head_module(model).register_forward_pre_hook(_only(view))
    try:
        yield
    finally:
        handle.remove()
        config._attn_implementation = before
        _active.view = None


def forward(model: Any, ids: torch.Tensor, positions: torch.Tensor, view: View) -> torch.Tensor:
    """The logits [M, V] at ``view.logit_rows`` (None: at all places, in order) for ``ids`` [B, T]."""
    with viewing(model, view):
        out = model(input_ids=ids, position_ids=positions, use_cache=False)
    logits: torch.Tensor = out.logits[0]
    return logits


def hidden_states(model: Any, ids: torch.Tensor, positions: torch.Tensor, view: View) -> torch.Tensor:
    """The hidden states [M, H] that the head would turn into the logits of :func:`forward`; it is not run."""
    found: list[torch.Tensor] = []

    def divert(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        found.append(args[0][0])
        return (args[0][:, :0], *args[1:])

    with viewing(model, view):
        # Behind the hook of the view, which has picked the rows.
        handle = head_module(model).register_forward_pre_hook(divert)
        try:
            model(input_ids=ids, position_ids=positions, use_cache=False)
        finally:
            handle.remove()
    return found[0]


def _only(view: View):  # type: ignore[no-untyped-def]
    def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        # One plain matrix: a slice of [B, T, H] would be broadcast against the whole vocabulary, copying it B times.
        hidden = args[0].reshape(-1, args[0].shape[-1])
        if view.logit_rows is not None:
            hidden = hidden[view.logit_rows]
        return (hidden[None], *args[1:])

    return select


def head_module(model: Any) -> nn.Module:
    """The module that turns hidden states into logits. Raises UnsupportedError where the model has none."""
    head = model.get_output_embeddings()
    if head is None:
        raise UnsupportedError("the model does not say which module makes its logits")
    return head  # type: ignore[no-any-return]


def attention_windows() -> dict[int, int]:
    """The sliding window (0: none) of each layer that asked for attention since the last :func:`viewing` began. A layer
    that is not there computes attention by itself."""
    return dict(getattr(_active, "windows", {}))


def text_config(model: Any) -> Any:
    """The config of the language model, where a model has parts for other things too."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
