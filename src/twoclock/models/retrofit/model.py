"""A frozen causal language model with a memory beside it: write texts, read while generating, save, fork, roll back.

    model = Retrofitted.open("packaged", "retrofit.safetensors")
    memory = model.write(model.start(), "The gate code of the north depot is 4821.")
    with model.reading(memory):
        model.model.generate(...)          # or a plain forward pass

A memory is a value (:class:`~twoclock.nn.soft_memory.SoftMemory`): writing gives a new one, a fork is the value itself,
and rolling back is to keep the old one. Outside :meth:`Retrofitted.reading` the model is the base, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

from twoclock.errors import ConfigError, DataError
from twoclock.models.retrofit.hooks import reading, require_fit
from twoclock.models.retrofit.writing import written
from twoclock.nn.retrofit import Retrofit
from twoclock.nn.soft_memory import SoftMemory, dump_memory, dump_retrofit, load_memory, load_retrofit
from twoclock.store.blobs import write_atomically

__all__ = ["Retrofitted", "open_retrofit", "save_retrofit", "tokens_of"]

Text = str | tuple[str, str]


class Retrofitted:
    """See the module. ``base_hash`` is the content hash of the model's weights; a retrofit for others is refused."""

    def __init__(self, model: Any, tokenizer: Any, retrofit: Retrofit, *, base_hash: str) -> None:
        require_fit(model, retrofit.spec, base_hash)
        self.model, self.tokenizer, self.retrofit, self.base_hash = model, tokenizer, retrofit, base_hash

    @classmethod
    def open(cls, source: str, retrofit: str | Path, **options: Any) -> Retrofitted:
        """A model from a source and a retrofit from a file. ``options`` are those of
        :func:`twoclock.models.sources.load_model`."""
        from twoclock.models.sources import load_model

        loaded = load_model(source, **options)
        parts = open_retrofit(Path(retrofit), loaded.base_hash)
        return cls(loaded.model, loaded.tokenizer, parts, base_hash=loaded.base_hash)

    def start(self) -> SoftMemory:
        """A memory in which nothing was written."""
        return SoftMemory.start(self.retrofit)

    def write(self, memory: SoftMemory, text: Text | Sequence[int], *, end: bool = True) -> SoftMemory:
        """The memory after a text, a (question, answer) turn, or tokens. ``end=False``: the text goes on with the next
        call; give tokens then, since a tokenizer cuts a whole text elsewhere than its pieces."""
        self._own(memory)
        if isinstance(text, str) or (isinstance(text, tuple) and len(text) == 2 and isinstance(text[0], str)):
            tokens, told = tokens_of(self.tokenizer, text)
        else:
            tokens, told = [int(t) for t in text], None
        return written(self.model, memory, tokens, told=told, end=end)

    def reading(self, memory: SoftMemory) -> AbstractContextManager[None]:
        """While inside, the model reads this memory."""
        self._own(memory)
        return reading(self.model, memory)

    def save(self, memory: SoftMemory, path: str | Path) -> None:
        """The memory alone, as safetensors, whole or not at all."""
        _save(Path(path), dump_memory(memory))

    def load(self, path: str | Path) -> SoftMemory:
        """Raises DataError for a file that is no saved memory, ConfigError for one of another base, chunk length, spec
        or retrofit."""
        return load_memory(_bytes(Path(path)), self.retrofit)

    def _own(self, memory: SoftMemory) -> None:
        if memory.retrofit != self.retrofit:
            raise ConfigError(
                f"this memory belongs to the retrofit {memory.retrofit.id[:12]}, and the model has "
                f"{self.retrofit.id[:12]}: a memory means nothing under other projections"
            )


def tokens_of(tokenizer: Any, text: Text) -> tuple[list[int], list[bool]]:
    """The tokens of a text, all to be remembered, or of a (question, answer) turn as the chat template shows it, of
    which the answer and its end are."""
    if isinstance(text, str):
        tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return tokens, [True] * len(tokens)
    question, answer = text
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    asked = list(tokenizer(shown, add_special_tokens=False)["input_ids"])
    said = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    if tokenizer.eos_token_id is not None:
        said.append(int(tokenizer.eos_token_id))
    return asked + said, [False] * len(asked) + [True] * len(said)


def save_retrofit(retrofit: Retrofit, path: str | Path) -> None:
    """As safetensors, with the spec and the base's hash, whole or not at all."""
    _save(Path(path), dump_retrofit(retrofit))


def open_retrofit(path: str | Path, base_hash: str | None = None) -> Retrofit:
    """Raises DataError for a file that is none, ConfigError for one that is for other weights than ``base_hash``."""
    return load_retrofit(_bytes(Path(path)), base_hash)


def _save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: threads and processes may save to one file at once.
    write_atomically(path, data, path.with_name(f".{path.name}.{uuid4().hex}.part"))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
