"""The same work by what people use today: ``transformers.generate``, TRL's ``GRPOTrainer``, and a plain update."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from workload import ITEMS, NEW_TOKENS, SAMPLES, Work, reward

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def generate(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """``transformers.generate`` on one left-padded batch, every row ``NEW_TOKENS`` long."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        out: torch.Tensor = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=pad,
        )
    if out.shape != (len(prompts), longest + NEW_TOKENS):
        raise RuntimeError(f"generate gave {tuple(out.shape)}")
    return out


@contextmanager
def repaired_head(model: Any) -> Iterator[None]:
    """Spares ``generate`` a cost that is no part of the method: at the prefill of a batch, torch multiplies a strided
    slice [B, 1, H] with the vocabulary's matrix by copying the matrix B times. A contiguous slice avoids it."""
    head: nn.Module = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def trl_rounds(model: Any, tokenizer: Any, work: Work, rounds: int, batch: int) -> list[dict[str, float]]:
    """Seconds of each of ``rounds`` rounds of ``GRPOTrainer`` (whole, and up to the reward: the generation) on this
    work: LoRA of rank 8 on the same layers, one optimizer step a round, no KL term, every completion at full length."""
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    stamps: list[tuple[str, float]] = []

    def score(completions: list[str], **_: Any) -> list[float]:
        stamps.append(("graded", time.perf_counter()))
        return [reward(i % SAMPLES) for i in range(len(completions))]

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            stamps.append(("begin", time.perf_counter()))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.append(("end", time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=ITEMS * SAMPLES // batch,
            num_generations=SAMPLES,
            max_completion_length=NEW_TOKENS,
            generation_kwargs={"min_new_tokens": NEW_TOKENS},
            temperature=1.0,
            beta=0.0,
            max_steps=rounds,
            learning_rate=3e-4,
            use_cpu=True,
            bf16=model.dtype == torch.bfloat16,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = GRPOTrainer(
            model=model,
            args=config,
            reward_funcs=score,
            train_dataset=Dataset.from_list([{"prompt": text} for text in work.texts]),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=list(LORA_TARGETS), task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        trainer.train()
    times = {name: [at for kind, at in stamps if kind == name] for name in ("begin", "graded", "end")}
    return [
        {"seconds": end - begin, "generation": graded - begin}
        for begin, graded, end in zip(times["begin"], times["graded"], times["end"], strict=True)
    ]


class PlainLora(nn.Module):
    """A linear layer and its low-rank change, as a tutorial writes it."""

    def __init__(self, base: nn.Linear, rank: int = 8, scale: float = 2.0) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = (x @ self.a.to(x.dtype).t()) @ self.b.to(x.dtype).t()
        return self.base(x) + change * self.scale


def plain_update(model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> None:
    """Gradients of the policy-gradient loss the plain way: padded batches of one group, the model's own forward pass,
    log-softmax over the whole vocabulary, one backward pass a group. LoRA layers are put in on the first call."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in LORA_TARGETS and isinstance(child, nn.Linear):
                setattr(module, name, PlainLora(child))
    for prompt, answers in zip(prompts, completions, strict=True):
        rows = [[*prompt, *a] for a in answers]
        ids = torch.tensor(rows)
        logits = model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        chosen = logprobs.gather(-1, ids[:, len(prompt) :, None])[..., 0]
        weights = torch.tensor([1.0 - 2.0 * reward(n) for n in range(len(rows))])
        (chosen.mean(dim=-1) * weights).mean().backward()
