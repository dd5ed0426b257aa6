"""Texts into memories: a text's tokens go through the base model segment by segment, and what its layers say of each
token is written with the token that follows it.

The passes over the model follow from the text alone, not from the pieces it comes in: what is in no whole segment yet
waits in the memory's tail. So pieces give the same bits as the whole.

A memory is written from the base's own hidden states, without any memory read meanwhile and without any change of
weights: what it holds follows from the base and the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from twoclock.errors import ConfigError
from twoclock.models.retrofit.hooks import hidden_at
from twoclock.nn.neural_memory_state import MemoryState
from twoclock.nn.retrofit import Retrofit, write_layer
from twoclock.nn.soft_memory import SoftMemory

__all__ = ["write_rows", "written"]


@torch.no_grad()
def written(
    model: Any, memory: SoftMemory, tokens: Sequence[int], *, told: Sequence[bool] | None = None, end: bool = True
) -> SoftMemory:
    """The memory after these tokens; the one that was given is as it was.

    ``told`` says for each token whether it is to be remembered (None: all); the others are only read. ``end``: the text
    ends here, and the next one is read from its own beginning. Raises ConfigError for what are no tokens of the model,
    NumericsError where NaN or infinity would get in.
    """
    tokens = _checked(model, tokens)
    told = [True] * len(tokens) if told is None else [bool(flag) for flag in told]
    if len(told) != len(tokens):
        raise ConfigError(f"told says for each token whether it is remembered: {len(tokens)} tokens, {len(told)} marks")
    spec = memory.retrofit.spec
    tail, marks, context = [*memory.tail, *tokens], [*memory.told, *told], memory.context
    states = memory.states
    while len(tail) > context + spec.segment:
        here = context + spec.segment
        states = _segment(model, memory.retrofit, states, tail[: here + 1], marks[: here + 1], context)
        context = min(spec.overlap, here)
        tail, marks = tail[here - context :], marks[here - context :]
    reads: tuple[MemoryState, ...] = ()
    if len(tail) > context + 1:
        reads = _segment(model, memory.retrofit, states, tail, marks, context)
    count = memory.tokens + len(tokens)
    if end:
        after = replace(memory, states=reads or states, tail=(), told=(), context=0, reads=(), tokens=count)
    else:
        after = replace(
            memory, states=states, tail=tuple(tail), told=tuple(marks), context=context, reads=reads, tokens=count
        )
    after.check_finite()
    return after


def _checked(model: Any, tokens: Sequence[int]) -> list[int]:
    plain = [int(token) for token in tokens]
    rows = model.get_input_embeddings().weight.shape[0]
    if wrong := [token for token in plain if not 0 <= token < rows]:
        raise ConfigError(f"tokens of this model are numbers from 0 to {rows - 1}; got {wrong[:5]}")
    return plain


def _segment(
    model: Any,
    retrofit: Retrofit,
    states: Sequence[MemoryState],
    tokens: Sequence[int],
    told: Sequence[bool],
    context: int,
) -> tuple[MemoryState, ...]:
    """The states after a segment: of each token but the last, from ``context`` on, with the one that follows it."""
    # Nothing to remember behind the context: the pass would change nothing.
    if not any(told[context + 1 :]):
        return tuple(states)
    ids = torch.tensor([list(tokens)], device=model.device)
    mask = torch.tensor([list(told)])[:, 1:].clone()
    mask[:, :context] = False
    return tuple(state.settled() for state in write_rows(model, retrofit, states, ids, mask))


def write_rows(
    model: Any,
    retrofit: Retrofit,
    states: Sequence[MemoryState],
    ids: torch.Tensor,
    mask: torch.Tensor,
    attended: torch.Tensor | None = None,
) -> tuple[MemoryState, ...]:
    """The states of B rows after texts ``ids`` [B, T] of one segment each. ``mask`` [B, T - 1] is True where a token is
    written with the one behind it; ``attended`` [B, T - 1] is 0 at padding on the right. Gradients flow to the
    retrofit's parameters; the base is frozen."""
    hidden = hidden_at(model, retrofit.spec.layers, ids[:, :-1], attended)
    with torch.no_grad():
        following = model.get_input_embeddings()(ids[:, 1:])
    where = retrofit.layers[0].out.device
    return tuple(
        write_layer(parameters, state, h.to(where), following.to(where), mask.to(where))
        for parameters, state, h in zip(retrofit.layers, states, hidden, strict=True)
    )
