"""Texts to unit vectors: what an encoder is, the ones that need no package, and the table of all by name.

Encoders differ in what they see. ``hashing`` needs nothing and sees shared words and spellings alone; ``wordllama`` and
``minilm`` read weights that a package ships, and see meaning (``encoders_packaged``); ``callable`` wraps any function.
A local model's own states are :class:`twoclock.models.embedding.PolicyEncoder`. Nothing here reaches the network.

Vectors of two encoders are never comparable, so an encoder has an ``id`` that follows from its weights and settings,
and whoever stores vectors stores it beside them.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from twoclock.errors import ConfigError, NumericsError, unknown_name

__all__ = [
    "ENCODERS",
    "CallableEncoder",
    "Encoder",
    "HashingEncoder",
    "Vectors",
    "build_encoder",
    "require_texts",
    "unit_rows",
]

# N texts, D dimensions.
Vectors = npt.NDArray[np.float32]

_WORD = re.compile(r"\w+")
_GRAMS = (3, 4, 5)
_LONGEST_WORD = 64
"""Character n-grams are taken of so many characters of a word: a pasted blob is one word of megabytes."""


@runtime_checkable
class Encoder(Protocol):
    """Texts to vectors of length 1, so that a dot product is a cosine."""

    @property
    def id(self) -> str:
        """Names weights and settings: equal ids give equal vectors, up to the rounding of another machine."""
        ...

    @property
    def dimension(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [N, D], one row a text in their order, of length 1; the zero row for a text with nothing in it.
        A row follows from its text alone, whatever else stands in the call. Raises ConfigError for what is no
        sequence of strings."""
        ...


def require_texts(texts: Sequence[str]) -> list[str]:
    """``texts`` as a list; ConfigError for one string, and for members that are none."""
    if isinstance(texts, str):
        raise ConfigError(f"encode takes a sequence of texts, not one string; write encode([{texts[:40]!r}])")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(f"text {index} of {len(texts)} is of type {type(text).__name__}; encode takes strings")
    return texts


def unit_rows(raw: npt.ArrayLike, *, what: str) -> Vectors:
    """``raw`` [N, D] as float32 with rows of length 1; zero rows stay zero. ``what`` names the maker in errors.

    Raises ConfigError for another shape, NumericsError for NaN or infinity.
    """
    rows = np.asarray(raw, dtype=np.float64)
    if rows.ndim != 2:
        raise ConfigError(f"{what} gave an array of shape {rows.shape}; expected [texts, dimension]")
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise NumericsError(f"{what} gave NaN or infinity for text {bad} of {len(rows)}")
    # Scaled first, as squares of very large or very small numbers leave the range of floats.
    rows = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(np.where(norms > 0.0, rows / np.where(norms > 0.0, norms, 1.0), 0.0), dtype=np.float32)


class HashingEncoder:
    """Words, pairs of words and character n-grams, hashed to signed buckets; no weights and no fitting.

    v[h(f) mod D] += sgn(f)·w·(1 + log count(f)) over the features f of a text (signed feature hashing: Weinberger et
    al., 2009). Nothing is weighted by how rare it is, as that would make a vector depend on what else is stored. It
    finds what is worded alike; of paraphrases it finds few (docs/memory-retrieval.md has the figures).
    """

    def __init__(self, dimension: int = 1024) -> None:
        if not (isinstance(dimension, int) and 16 <= dimension <= 1 << 20):
            raise ConfigError(f"dimension is {dimension!r}; a hashing encoder takes a whole number from 16 to 1048576")
        self.dimension = dimension
        self.id = f"hashing-1:{dimension}"

    def encode(self, texts: Sequence[str]) -> Vectors:
        texts = require_texts(texts)
        rows = np.zeros((len(texts), self.dimension))
        buckets: dict[str, tuple[int, float]] = {}
        for row, text in zip(rows, texts, strict=True):
            counts: dict[tuple[str, float], int] = {}
            for feature in _features(text):
                counts[feature] = counts.get(feature, 0) + 1
            for (name, weight), count in counts.items():
                if name not in buckets:
                    buckets[name] = self._bucket(name)
                index, sign = buckets[name]
                row[index] += sign * weight * (1.0 + np.log(count))
        return unit_rows(rows, what=self.id)

    def _bucket(self, feature: str) -> tuple[int, float]:
        # surrogatepass: a lone surrogate is a legal str, and must not end a search.
        value = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        return (value >> 1) % self.dimension, 1.0 if value & 1 else -1.0


def _features(text: str) -> Iterator[tuple[str, float]]:
    """(feature, weight): each word, each pair of neighbours, and the n-grams of each word between its bounds, which
    together weigh about as much as the word."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    for word in words:
        yield "w " + word, 1.0
        bounded = f"<{word[:_LONGEST_WORD]}>"
        grams = [bounded[i : i + n] for n in _GRAMS for i in range(len(bounded) - n + 1)]
        for gram in grams:
            yield "c " + gram, 1.0 / max(len(grams), 1) ** 0.5
    for one, other in itertools.pairwise(words):
        yield f"p {one} {other}", 0.5


class CallableEncoder:
    """Any function from a list of texts to [N, D] numbers, checked at every call: shape, finite, then normalised.

    ``id`` must name the function's weights and settings; two functions under one id would mix their vectors. The
    dimension is found by one call where it is not given.
    """

    def __init__(
        self, function: Callable[[list[str]], npt.ArrayLike], *, id: str, dimension: int | None = None
    ) -> None:
        if not callable(function):
            raise ConfigError(f"an encoder's function is {function!r}; expected a callable of a list of texts")
        if not id:
            raise ConfigError("a callable encoder needs an id that names its weights and settings, such as id='e5-v2'")
        self.function = function
        self.id = id if id.startswith("callable:") else f"callable:{id}"
        self.dimension = dimension if dimension is not None else self._run(["a text"]).shape[1]
        if self.dimension < 1:
            raise ConfigError(f"the encoder '{self.id}' has dimension {self.dimension}; expected at least 1")

    def encode(self, texts: Sequence[str]) -> Vectors:
        texts = require_texts(texts)
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        rows = self._run(texts)
        if rows.shape[1] != self.dimension:
            raise ConfigError(
                f"the encoder '{self.id}' gave vectors of {rows.shape[1]} numbers and has dimension {self.dimension}"
            )
        return rows

    def _run(self, texts: list[str]) -> Vectors:
        what = f"the encoder '{self.id}'"
        try:
            raw = np.asarray(self.function(list(texts)), dtype=np.float64)
        except (TypeError, ValueError) as problem:
            raise ConfigError(
                f"{what} gave no [texts, dimension] array of numbers for {len(texts)} texts: {problem}"
            ) from problem
        if raw.ndim != 2 or len(raw) != len(texts):
            raise ConfigError(
                f"{what} gave an array of shape {raw.shape} for {len(texts)} texts; expected one row each"
            )
        return unit_rows(raw, what=what)


# ------------------------------------------------------------------------------------------------------- the table


def _wordllama(**options: Any) -> Encoder:
    from twoclock.memory.encoders_packaged import WordllamaEncoder

    return WordllamaEncoder(**options)


def _minilm(**options: Any) -> Encoder:
    from twoclock.memory.encoders_packaged import MiniLMEncoder

    return MiniLMEncoder(**options)


def _policy(**options: Any) -> Encoder:
    raise ConfigError(
        "the encoder 'policy' reads a local model's own states, so it is made from the model: "
        "twoclock.models.embedding.PolicyEncoder(policy)"
    )


ENCODERS: Mapping[str, Callable[..., Encoder]] = {
    "hashing": HashingEncoder,
    "wordllama": _wordllama,
    "minilm": _minilm,
    "policy": _policy,
    "callable": CallableEncoder,
}


def build_encoder(name: str, **options: Any) -> Encoder:
    """The encoder of that name. ``hashing`` takes ``dimension``; ``wordllama`` and ``minilm`` take ``folder``, where
    their files lie if not in the installed package; ``callable`` takes ``function``, ``id`` and ``dimension``.

    Raises ConfigError for an unknown name or option, MissingExtraError where a package is not installed, ModelError
    where its files are missing or are not the ones known here.
    """
    if name not in ENCODERS:
        raise ConfigError(unknown_name("encoder", name, ENCODERS))
    try:
        return ENCODERS[name](**options)
    except TypeError as problem:
        raise ConfigError(f"the encoder '{name}' cannot be built with {sorted(options)}: {problem}") from problem
