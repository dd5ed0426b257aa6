"""Changes of weights, tokenizers and requests for the tests of decoding under shifts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from tiny_models import byte_tokenizer
from twoclock.hashing import content_hash
from twoclock.nn.full import FullChange
from twoclock.nn.lowrank import LowRank
from twoclock.types import Conditioning, Delta, Request, Shift

PROMPTS = ("4 + 4 = ?", "Name a colour.", "h", "Which number is the largest: 3, 9, 5, 22, 31? Say it and stop.")


def lora(policy: Any, seed: int, *, size: float = 0.4, rank: int = 2) -> Delta:
    """A random low-rank change of every linear layer but the head, large enough to change what is said."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in policy.model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not policy.model.get_output_embeddings():
            a = torch.randn(rank, module.in_features, generator=generator) * size
            tensors[name] = (a, torch.randn(module.out_features, rank, generator=generator) * size)
    return Delta(content_hash(f"lora {seed} {size}"), "lora", policy.base_hash, LowRank(tensors, 0.5))


def full(policy: Any, seed: int, *, size: float = 0.2) -> Delta:
    """A random change of whole parameters, the head's too."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(p.shape, generator=generator) * size
        for name, p in policy.model.named_parameters()
        if p.dim() == 2
    }
    return Delta(content_hash(f"full {seed} {size}"), "full", policy.base_hash, FullChange(tensors))


def asked(
    shifts: Sequence[Shift],
    *,
    delta: Delta | None = None,
    seeds: int = 4,
    prompts: Sequence[str] = PROMPTS,
    **told: Any,
) -> list[Request]:
    told_all = Conditioning(shifts=tuple(shifts), delta=delta, **told)
    return [
        Request(prompt=p, conditioning=told_all, seeds=tuple(100 * i + n for n in range(seeds)))
        for i, p in enumerate(prompts)
    ]


def other_tokenizer(*, seed: int = 3, lost: Sequence[str] = (), extra: Sequence[str] = ()) -> Any:
    """The byte tokenizer with its ids shuffled (the special ones apart), without some tokens and with others."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    own = byte_tokenizer()
    special = [t.content for t in own.added_tokens_decoder.values() if t.special]
    rest = sorted(t for t in own.get_vocab() if t not in special and t not in lost)
    random.Random(seed).shuffle(rest)
    vocab = {token: i for i, token in enumerate([*special, *rest, *extra])}
    merges = [("h", "e")] if "he" in vocab else []
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    raw.add_special_tokens([AddedToken(t, special=True) for t in special])
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=special[1], eos_token=special[2])
    tokenizer.chat_template = own.chat_template
    return tokenizer
