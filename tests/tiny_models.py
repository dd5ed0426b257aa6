"""Random models of several architectures, a byte tokenizer, and small ready-made policies around them.

The weights are large, so that what a model says depends on what it reads, and float32, so that the shared path can be
held to the plain one token for token.
"""

from __future__ import annotations

from functools import cache
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCAB = 300
WINDOW = 7
"""Of the sliding-window models: shorter than any prompt with its template."""

SHARED = ("llama", "qwen2", "qwen3", "gemma2", "mistral")
"""Architectures whose attention goes through transformers' interface."""


@cache
def byte_tokenizer() -> Any:
    """Three special tokens, one token a byte in GPT-2's spelling, and a merged pair; 260 tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spelled = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]
    vocab = {token: index for index, token in enumerate([*SPECIAL, *spelled, "he"])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e")]))
    raw.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=SPECIAL[1], eos_token=SPECIAL[2])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(name: str, *, context: int = 512, seed: int = 0) -> Any:
    """A random causal LM of one architecture: 2 or 3 layers, width 32, grouped heads where there are groups."""
    import torch
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": context,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.35,
        "tie_word_embeddings": False,
    }
    old = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.35}
    makers = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**common)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**common)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**common)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**common, sliding_window=WINDOW)),
        # Soft caps small enough to bend the scores; layers alternate between sliding and full attention.
        "gemma2": lambda: t.Gemma2ForCausalLM(
            t.Gemma2Config(
                **{**common, "num_key_value_heads": 1},
                sliding_window=WINDOW,
                attn_logit_softcapping=1.5,
                final_logit_softcapping=4.0,
                query_pre_attn_scalar=8,
            )
        ),
        # Attention of their own: ALiBi inside the module (Bloom), and rotary without the interface (GPT-J).
        "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(**old, hidden_size=32, n_layer=2, n_head=4)),
        "gptj": lambda: t.GPTJForCausalLM(
            t.GPTJConfig(**old, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=context)
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = makers[name]()
    return model.float().eval()


def make_policy(name: str = "llama", *, context: int = 512, seed: int = 0, **options: Any) -> Any:
    """A :class:`~twoclock.models.local.LocalPolicy` around :func:`make_model`."""
    from twoclock.models.local import LocalPolicy

    model = make_model(name, context=context, seed=seed)
    return LocalPolicy(model, byte_tokenizer(), name=name, base_hash=f"base-{name}-{seed}", **options)
