"""Small model files for the tests: a random Llama as a folder, as a GGUF file, and as a wheel that holds that file."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from twoclock.models.packaged import PackagedModel

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGE = ("h", "e")
WIDTH, HIDDEN, LAYERS, HEADS = 32, 64, 2, 4


def vocabulary() -> list[str]:
    """Three special tokens, one token a byte in GPT-2's spelling, and one merged pair."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [*SPECIAL, *map(chr, printable), *(chr(256 + i) for i in range(len(others))), "".join(MERGE)]


def write_folder(folder: Path, *, template: str | None = CHATML, seed: int = 0) -> Path:
    """A whole causal model folder, as save_pretrained writes it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = vocabulary()
    raw = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[MERGE]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=SPECIAL[1], eos_token=SPECIAL[2])
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def write_gguf(path: Path, *, quantised: bool = True, seed: int = 0, architecture: str = "llama") -> dict[str, Any]:
    """A small Llama as a GGUF file; returns each tensor as a reader should see it, by GGUF name."""
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny test model")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = vocabulary()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges([" ".join(MERGE)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHATML)
    rng = np.random.default_rng(seed)
    seen: dict[str, Any] = {}

    def add(name: str, *shape: int) -> None:
        values = rng.normal(0.0, 0.1, shape).astype(np.float32)
        if quantised and len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q4_1
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            seen[name] = gguf.quants.dequantize(packed, kind)
        else:
            writer.add_tensor(name, values)
            seen[name] = values

    add("token_embd.weight", len(tokens), WIDTH)
    for i in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{part}.weight", WIDTH, WIDTH)
        add(f"blk.{i}.ffn_gate.weight", HIDDEN, WIDTH)
        add(f"blk.{i}.ffn_up.weight", HIDDEN, WIDTH)
        add(f"blk.{i}.ffn_down.weight", WIDTH, HIDDEN)
        add(f"blk.{i}.attn_norm.weight", WIDTH)
        add(f"blk.{i}.ffn_norm.weight", WIDTH)
    add("output_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return seen


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_wheel(folder: Path, gguf: Path) -> tuple[Path, PackagedModel]:
    """A wheel that pip can download from ``folder``, and the pinned description of it."""
    member = f"twoclock_test_model/{gguf.name}"
    wheel = folder / "twoclock_test_model-1.0-py3-none-any.whl"
    info = "twoclock_test_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("twoclock_test_model/__init__.py", "raise RuntimeError('must not be imported')\n")
        archive.write(gguf, member)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: twoclock-test-model\nVersion: 1.0\nRequires-Dist: no-such-package\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    spec = PackagedModel(
        title="tiny",
        distribution="twoclock-test-model",
        version="1.0",
        wheel_sha256=sha256(wheel),
        member=member,
        gguf_sha256=sha256(gguf),
        gguf_bytes=gguf.stat().st_size,
        need_bytes=10_000_000,
    )
    return wheel, spec
