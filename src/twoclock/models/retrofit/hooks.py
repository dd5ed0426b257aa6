"""Where a memory touches a model: it is read behind chosen decoder layers, and it is written from what they say.

Both are hooks for the length of a block; outside it the model is what it was, and for a memory that is silent no hook
is set at all. Knows no architecture, only that a model has decoder layers that follow one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from twoclock.errors import ConfigError, UnsupportedError
from twoclock.nn.neural_memory_state import MemoryState
from twoclock.nn.retrofit import Retrofit, RetrofitSpec, read_layer
from twoclock.nn.soft_memory import SoftMemory

__all__ = ["Softened", "decoder_layers", "hidden_at", "memory_shape", "mounted_memory", "reading", "require_fit"]


@dataclass(frozen=True, eq=False)
class Softened:
    """A change of weights, or none, with a memory read beside it: what is mounted for one pass."""

    memory: SoftMemory
    change: Any = field(default=None, repr=False)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The layers through which the residual stream goes. Raises UnsupportedError for a model without such a list."""
    inner = model.get_decoder() if hasattr(model, "get_decoder") else model
    layers = getattr(inner, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UnsupportedError(
            f"a memory is read behind decoder layers, and {type(model).__name__} has no list 'layers'; Llama, Qwen, "
            "Mistral, Gemma and models built like them have one"
        )
    return layers


def memory_shape(model: Any) -> tuple[int, int]:
    """(width of the hidden states, number of decoder layers)."""
    return int(model.get_input_embeddings().weight.shape[1]), len(decoder_layers(model))


def require_fit(model: Any, spec: RetrofitSpec, base_hash: str) -> None:
    """Raises ConfigError where the retrofit is for another model than this."""
    width, count = memory_shape(model)
    problems = []
    if spec.base != base_hash:
        problems.append(
            f"this retrofit is for the base weights {spec.base[:12]}, and the model is {base_hash[:12]}: a memory "
            "reads hidden states, which mean nothing in another model; train a retrofit for this one"
        )
    if spec.width != width:
        problems.append(f"this retrofit is for hidden states {spec.width} wide; the model's are {width}")
    if spec.layers[-1] >= count:
        problems.append(f"this retrofit names layer {spec.layers[-1]}; the model's layers are 0 to {count - 1}")
    if problems:
        raise ConfigError(problems)


@contextmanager
def mounted_memory(model: Any, retrofit: Retrofit, states: Sequence[MemoryState]) -> Iterator[None]:
    """While inside, the model reads these states: one row, for everything, or a row for each row of the batch.
    Gradients flow to the retrofit's parameters, to the states and through the model's later layers. A closed gate sets
    no hook."""
    layers = decoder_layers(model)
    handles = []
    try:
        for at, parameters, state in zip(retrofit.spec.layers, retrofit.layers, states, strict=True):
            if parameters.gate.requires_grad or bool(parameters.gate):
                handles.append(layers[at].register_forward_hook(_Reader(parameters, state)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reading(model: Any, memory: SoftMemory) -> Iterator[None]:
    """While inside, the model reads this memory; one that is silent leaves the model untouched."""
    if memory.is_silent:
        yield
        return
    device = model.device
    retrofit = memory.retrofit
    if str(device) != "cpu":
        moved = tuple(layer.changed(lambda t: t.to(device)) for layer in retrofit.layers)
        retrofit = Retrofit(retrofit.spec, moved)
    with mounted_memory(model, retrofit, [state.to(device) for state in memory.heard]):
        yield


class _Reader:
    """The forward hook of one decoder layer."""

    def __init__(self, parameters: Any, state: MemoryState) -> None:
        self.parameters, self.state = parameters, state

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + read_layer(self.parameters, self.state, hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


# ------------------------------------------------------------------------------------------------------ what is written


class _Seen(Exception):  # noqa: N818  (no error: the pass has done what it was for)
    """The last layer that is wanted has been through: the rest of the pass is of no use."""


@torch.no_grad()
def hidden_at(
    model: Any, layers: Sequence[int], ids: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """The hidden states [B, T, X] behind each of these layers for tokens ``ids`` [B, T] of the base, which is run no
    further than it must. ``mask`` [B, T] is 1 at tokens where rows are padded on the right."""
    modules, found = decoder_layers(model), {}

    def keep(at: int, last: bool) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[at] = cast(torch.Tensor, output[0] if isinstance(output, tuple) else output)
            if last:
                raise _Seen

        return hook

    handles = [modules[at].register_forward_hook(keep(at, at == max(layers))) for at in layers]
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found[at] for at in layers)
