"""Three small models that come out alike under any version of transformers, and how the reference's tokens were made.

The tokens in ``data/proxy_reference.json`` are those of the public implementation of proxy-tuning
(github.com/alisawuffles/proxy-tuning), which needs an old transformers. In an environment with Python 3.11, torch,
transformers 4.36.2, tokenizers 0.15.2, numpy 1.26.4 and accelerate 0.26.1, and with a checkout of it in ``CHECKOUT``::

    PYTHONPATH=CHECKOUT python tests/models/proxy_reference.py > tests/models/data/proxy_reference.json

This file imports nothing of ours, so that it runs there.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, PAD, COMMAND = 300, 0, "PYTHONPATH=CHECKOUT python tests/models/proxy_reference.py"
LAYERS = {"base": 3, "expert": 2, "anti": 2}
EXTRA = {"base": 0, "expert": 8, "anti": 0}
"""Tokens that a tuned model has appended: the reference cuts the expert's logits to the base's length."""


def make_model(name: str) -> Any:
    """A Llama whose weights follow from its name and theirs alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB + EXTRA[name],
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS[name],
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            seed = int.from_bytes(hashlib.sha256(f"{name} {key}".encode()).digest()[:8], "little")
            uniform = np.random.Generator(np.random.Philox(key=seed)).random(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy((1.2 * (uniform - 0.5)).astype(np.float32)))
    return model


def cases() -> list[dict[str, Any]]:
    """Batches of 1, 3 and 8 ragged prompts, different amounts, and a token that ends some rows early."""
    rng = random.Random(7)
    found = []
    for rows, alpha, ends in ((1, 1.0, 2), (3, 0.5, 2), (8, 1.0, 2), (8, 1.5, 17), (3, -0.5, 120)):
        prompts = [[rng.randrange(3, VOCAB) for _ in range(rng.randrange(1, 14))] for _ in range(rows)]
        found.append({"alpha": alpha, "eos": ends, "max_new_tokens": 48, "prompts": prompts})
    return found


def record() -> dict[str, Any]:
    import torch
    import transformers
    from modeling.dexperts import DExpertsLlama

    class Ids:
        """All that the reference asks of a tokenizer here."""

        pad_token_id = PAD
        eos_token_id = 2

    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in LAYERS:
            make_model(name).save_pretrained(str(Path(folder) / name))
        for case in cases():
            tokenizer = Ids()
            tokenizer.eos_token_id = case["eos"]
            model = DExpertsLlama(
                *(str(Path(folder) / name) for name in ("base", "expert", "anti")),
                tokenizer=tokenizer,
                alpha=case["alpha"],
                model_kwargs={},
            )
            width = max(map(len, case["prompts"]))
            ids = torch.tensor([[PAD] * (width - len(p)) + p for p in case["prompts"]])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in case["prompts"]])
            with torch.no_grad():
                out = model.generate(ids, max_new_tokens=case["max_new_tokens"], attention_mask=mask)
            results.append({**case, "tokens": out[:, width:].tolist()})
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__}
    return {"command": COMMAND, "versions": versions, "cases": results}


if __name__ == "__main__":
    json.dump(record(), sys.stdout)
    print()
