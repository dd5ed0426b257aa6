"""Lessons as tensors for training: what the frozen base says of every text and question is computed once, and a step
runs only the layers above the first memory.

Legend: B texts, T tokens of the longest, R questions, X width, N answer tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from twoclock.errors import UnsupportedError
from twoclock.models.retrofit.data import Lesson
from twoclock.models.retrofit.hooks import decoder_layers, hidden_at, mounted_memory
from twoclock.nn.neural_memory_state import MemoryState
from twoclock.nn.retrofit import Retrofit, fresh_states, read_layer, write_layer

__all__ = ["Batch", "Question", "Told", "answer_logits", "batch_of", "check_entered", "prepare", "states_after"]

CHECK = 0.05
"""Mean total variation of next-token distributions up to which two ways through a model in bfloat16 count as one."""


@dataclass(frozen=True)
class Question:
    """One question with its answer."""

    ids: torch.Tensor
    """[t]: the question, the answer's tokens behind it."""
    hidden: torch.Tensor
    """[t - 1, X], behind the first memory's layer."""
    answer: int
    """How many tokens the answer has."""


@dataclass(frozen=True)
class Told:
    """One text with its questions."""

    hidden: tuple[torch.Tensor, ...]
    """[T - 1, X] for each layer with a memory."""
    following: torch.Tensor
    """[T - 1, X]: embeddings of the tokens behind."""
    questions: tuple[Question, ...]


@torch.no_grad()
def prepare(
    model: Any,
    tokenizer: Any,
    layers: Sequence[int],
    lessons: Sequence[Lesson],
    progress: Callable[[int], None] | None = None,
) -> list[Told]:
    """Each lesson through the base, once. ``progress`` is told how many are done."""
    found = []
    for done, one in enumerate(lessons, 1):
        ids = _ids(tokenizer, one.text)
        hidden = hidden_at(model, layers, ids[None, :-1])
        following = model.get_input_embeddings()(ids[1:].to(model.device))
        pairs = [(_ids(tokenizer, f.asked + f.number), _answer(tokenizer, f.asked, f.number)) for f in one.facts]
        padded = pad_sequence([asked[:-1] for asked, _ in pairs], batch_first=True)
        (seen,) = hidden_at(model, [layers[0]], padded)
        questions = tuple(
            Question(asked, rows[: len(asked) - 1], count) for (asked, count), rows in zip(pairs, seen, strict=True)
        )
        found.append(Told(tuple(h[0] for h in hidden), following, questions))
        if progress:
            progress(done)
    return found


def _ids(tokenizer: Any, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)


def _answer(tokenizer: Any, asked: str, answer: str) -> int:
    """The tokens that the answer adds: those of the whole behind what it shares with the question."""
    whole, alone = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (asked + answer, asked))
    shared = next(
        (i for i, (a, b) in enumerate(zip(whole, alone, strict=False)) if a != b), min(len(whole), len(alone))
    )
    return len(whole) - shared


@dataclass(frozen=True)
class Batch:
    """Texts and some of their questions, padded on the right."""

    hidden: tuple[torch.Tensor, ...]
    """[B, T, X] for each layer."""
    following: torch.Tensor
    mask: torch.Tensor
    """[B, T]."""
    owners: torch.Tensor
    """[R]: whose question it is."""
    ids: torch.Tensor
    """[R, t]."""
    asked: torch.Tensor
    """[R, t, X]."""
    rows: torch.Tensor
    """[N]: the flat places (row · t + column) that answer tokens are said from."""
    targets: torch.Tensor
    """[N]."""


def batch_of(texts: Sequence[Told], questions: Sequence[Sequence[int]]) -> Batch:
    """The texts, and of each the questions that are named."""
    chosen = [(b, told.questions[i]) for b, (told, some) in enumerate(zip(texts, questions, strict=True)) for i in some]
    asked = pad_sequence([q.hidden for _, q in chosen], batch_first=True)
    width = asked.shape[1]
    rows, targets = [], []
    for r, (_, q) in enumerate(chosen):
        first = len(q.ids) - 1 - q.answer
        rows += [r * width + first + i for i in range(q.answer)]
        targets.append(q.ids[len(q.ids) - q.answer :])
    lengths = torch.tensor([len(t.following) for t in texts])
    return Batch(
        tuple(pad_sequence([t.hidden[i] for t in texts], batch_first=True) for i in range(len(texts[0].hidden))),
        pad_sequence([t.following for t in texts], batch_first=True),
        torch.arange(int(lengths.max()))[None, :] < lengths[:, None],
        torch.tensor([b for b, _ in chosen]),
        pad_sequence([q.ids[:-1] for _, q in chosen], batch_first=True),
        asked,
        torch.tensor(rows),
        torch.cat(targets),
    )


def states_after(retrofit: Retrofit, batch: Batch) -> tuple[MemoryState, ...]:
    """The memories of B readers who have written one text each; gradients flow to the parameters."""
    fresh = fresh_states(retrofit, len(batch.mask))
    device = batch.following.device
    return tuple(
        write_layer(parameters, state.to(device), hidden, batch.following, batch.mask.to(device))
        for parameters, state, hidden in zip(retrofit.layers, fresh, batch.hidden, strict=True)
    )


def answer_logits(
    model: Any, retrofit: Retrofit | None, states: Sequence[MemoryState], batch: Batch, *, entered: bool = True
) -> torch.Tensor:
    """[N, V] before each answer token, reading ``states`` of R rows; None: without a memory. ``entered``: the model is
    entered behind the first memory's layer, with what was prepared; else it is run from its tokens."""
    head, inner = model.get_output_embeddings(), model.get_decoder()
    rows = batch.rows.to(model.device)
    if retrofit is None:
        out = inner(input_ids=batch.ids.to(model.device), use_cache=False).last_hidden_state
    elif not entered:
        with mounted_memory(model, retrofit, states):
            out = inner(input_ids=batch.ids.to(model.device), use_cache=False).last_hidden_state
    else:
        first, layers = retrofit.spec.layers[0], decoder_layers(model)
        hidden = batch.asked + read_layer(retrofit.layers[0], states[0], batch.asked)
        with _Entered(inner, layers, first), _Later(layers, retrofit, states):
            out = inner(inputs_embeds=hidden, use_cache=False).last_hidden_state
    logits: torch.Tensor = head(out.flatten(0, 1)[rows]).float()
    return logits


class _Entered:
    """While inside, the model's decoder begins behind layer ``at``."""

    def __init__(self, inner: Any, layers: torch.nn.ModuleList, at: int) -> None:
        self.inner, self.layers, self.at = inner, layers, at

    def __enter__(self) -> None:
        self.inner.layers = self.layers[self.at + 1 :]

    def __exit__(self, *error: object) -> None:
        self.inner.layers = self.layers


class _Later:
    """Hooks for the memories behind the first one."""

    def __init__(self, layers: Any, retrofit: Retrofit, states: Sequence[MemoryState]) -> None:
        self.layers, self.retrofit, self.states = layers, retrofit, states
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        parts = zip(self.retrofit.spec.layers[1:], self.retrofit.layers[1:], self.states[1:], strict=True)
        for at, parameters, state in parts:

            def read(_: Any, args: Any, output: Any, p: Any = parameters, s: Any = state) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                hidden = hidden + read_layer(p, s, hidden)
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            self.handles.append(self.layers[at].register_forward_hook(read))

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def check_entered(model: Any, retrofit: Retrofit, batch: Batch) -> bool:
    """Whether entering this model in its midst gives what running it from its tokens gives."""
    states = tuple(state.take(batch.owners) for state in states_after(retrofit, batch))
    try:
        one, other = (answer_logits(model, retrofit, states, batch, entered=way) for way in (True, False))
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, UnsupportedError):
        return False
    apart = (one.softmax(-1) - other.softmax(-1)).abs().sum(-1).mean() / 2
    return bool(apart <= CHECK)
