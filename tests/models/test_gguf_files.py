"""GGUF files: read whole or refused, and converted to the numbers that the file holds."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from model_files import write_gguf

from twoclock.errors import ModelError
from twoclock.models.gguf_files import converted_bytes, ensure_gguf, read_header
from twoclock.models.sources import load_model

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")


def test_the_header_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    header = read_header(path)
    reader = gguf.GGUFReader(str(path))
    assert header.tensor_types == {t.name: t.tensor_type.name for t in reader.tensors}
    assert header.expected_bytes == max(t.data_offset + t.n_bytes for t in reader.tensors)
    assert (header.architecture, header.name) == ("llama", "tiny test model")
    assert header.stored_dtype == "bfloat16"
    assert converted_bytes(header) > sum(t.n_elements for t in reader.tensors) * 2


@pytest.mark.parametrize("share", [0.0002, 0.01, 0.3, 0.7, 0.95, 0.999])
def test_truncated_anywhere_is_an_error_that_says_so(tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(whole[: max(8, int(len(whole) * share))])
    with pytest.raises(ModelError, match=r"short\.gguf is truncated.*get it again"):
        load_model(str(short), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache" / "models").exists()


def test_a_truncated_file_says_how_much_is_there(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    size = read_header(path).expected_bytes
    path.write_bytes(path.read_bytes()[: size - 100])
    with pytest.raises(ModelError, match=rf"it has {size - 100:,} bytes but .* need {size:,} \(100 are missing\)"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no GGUF file"),
        (b"not a model at all", "is no GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(64), "version 1; versions 2 and 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1 << 60), "truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sIQIQ", 1, b"t", 1, 32, 999, 0), "unknown type 999"),
    ],
)
def test_what_is_no_gguf_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_model(str(path), cache_dir=tmp_path)


def test_quantised_weights_are_the_dequantised_ones_rounded_once(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    expected = write_gguf(path)
    tensors = load_model(str(path), dtype="float32", cache_dir=tmp_path / "cache").model.state_dict()
    for name, where in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }.items():
        assert torch.equal(tensors[where], torch.from_numpy(expected[name]).bfloat16().float()), name


def test_an_unquantised_file_keeps_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    expected = write_gguf(path, quantised=False)
    assert read_header(path).stored_dtype == "float32"
    tensors = load_model(str(path), dtype="float32", cache_dir=tmp_path / "cache").model.state_dict()
    assert torch.equal(tensors["model.embed_tokens.weight"], torch.from_numpy(expected["token_embd.weight"]))


def test_the_conversion_is_kept_by_content_not_by_name(tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    write_gguf(first)
    said: list[str] = []
    folder = ensure_gguf(first, cache_dir=tmp_path / "cache", progress=said.append)
    assert any("converting a.gguf" in s for s in said)
    first.rename(second)
    said.clear()
    assert ensure_gguf(second, cache_dir=tmp_path / "cache", progress=said.append) == folder
    assert said == []
    write_gguf(first, seed=1)
    assert ensure_gguf(first, cache_dir=tmp_path / "cache") != folder
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_an_architecture_that_transformers_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, architecture="nosuch")
    with pytest.raises(ModelError, match=r"cannot convert .*architecture 'nosuch'"):
        load_model(str(path), cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []
