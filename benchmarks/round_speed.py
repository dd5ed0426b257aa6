"""Where the time of a round goes, against the machine's limits and against what people use today, in one run.

    python benchmarks/round_speed.py            # a page of figures
    python benchmarks/round_speed.py --json     # and, as the last line, one JSON object

Needs ``pip install 'twoclock[bench]'``; ``--only KEY`` (several times) for a part of it. All sides do the same work on
the same texts with every completion at its full length, in turns where that is possible. A peer is timed in bfloat16
and in float32, and the faster one counts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import ceilings, describe, median, peak_memory_of, seconds, side_by_side
from peers import generate, repaired_head, trl_rounds
from workload import (
    ITEMS,
    NEW_TOKENS,
    SAMPLES,
    SAMPLING,
    TrainBench,
    Work,
    endless,
    evidence_of,
    forget_prefixes,
    long_work,
    our_round,
    prompted,
    shared_work,
    unshared_prompts,
)

from twoclock.models.engine import Draft, Prompted, _Decoding, _Row
from twoclock.models.local import open_local
from twoclock.nn.lowrank import LowRank, mounted
from twoclock.nn.sampling import uniforms
from twoclock.slow.lora import LoraChannel
from twoclock.types import Budget, Request

SHARED_TOKENS, OWN_TOKENS, ROWS = 300, 60, 64
GROWTH = (100, 400, 800, 1600)
FOLDER = Path(__file__).parent


class Bench:
    """One model in the dtype that is ours, its peers' copies loaded when they are asked for."""

    def __init__(self, repeats: int, trl_batch: int) -> None:
        self.repeats, self.trl_batch = repeats, trl_batch
        self.policy = endless(open_local("packaged"))
        self.dtype = self.policy.model.dtype
        self.ceilings = ceilings(self.dtype)
        self.work = shared_work(self.policy, SHARED_TOKENS)
        config = self.policy.model.config
        self.body = sum(p.numel() for n, p in self.policy.model.named_parameters() if "embed" not in n)
        self.head = config.vocab_size * config.hidden_size
        self._copies: dict[str, Any] = {}

    def copy(self, dtype: str) -> Any:
        """A model of its own for the peers, so that nothing of ours is in their way."""
        if dtype not in self._copies:
            self._copies[dtype] = open_local("packaged", dtype=dtype).model
        return self._copies[dtype]

    # ------------------------------------------------------------------------------------------------------ rollouts

    def rollout_shared(self) -> dict[str, Any]:
        engine = self.policy._engine
        asked = prompted(self.work)

        def cold() -> None:
            forget_prefixes(engine)
            engine.generate("", asked, SAMPLING)

        rows = [p for p in self.work.prompts for _ in range(SAMPLES)]
        return self._against_generate({"cold": cold, "warm": lambda: engine.generate("", asked, SAMPLING)}, rows)

    def rollout_unshared(self) -> dict[str, Any]:
        prompts = unshared_prompts(self.policy, ROWS, OWN_TOKENS)
        asked = [Prompted(p, 0, (n,)) for n, p in enumerate(prompts)]
        ours = {"cold": lambda: self.policy._engine.generate("", asked, SAMPLING)}
        return self._against_generate(ours, [list(p) for p in prompts])

    def _against_generate(self, ours: dict[str, Callable[[], Any]], rows: list[Any]) -> dict[str, Any]:
        pad = self.policy.tokenizer.pad_token_id or 0
        sides: dict[str, Callable[[], Any]] = {f"ours {name}": work for name, work in ours.items()}
        for dtype in ("bfloat16", "float32"):
            model = self.copy(dtype)
            sides[f"generate {dtype}"] = lambda model=model: generate(model, rows, pad)
            sides[f"generate {dtype}, head repaired"] = lambda model=model: _repaired(model, rows, pad)
        taken = side_by_side(sides, self.repeats)
        tokens = len(rows) * NEW_TOKENS
        rates = {name: tokens / median(t) for name, t in taken.items()}
        peer = max(v for k, v in rates.items() if k.startswith("generate") and "repaired" not in k)
        repaired = max(v for k, v in rates.items() if "repaired" in k)
        return {
            "ratio": rates["ours cold"] / peer,
            "ratio_head_repaired": rates["ours cold"] / repaired,
            "tokens_per_second": rates,
            "seconds": {name: [round(s, 3) for s in t] for name, t in taken.items()},
            "rows": len(rows),
            "prompt_tokens": len(rows[0]),
            "new_tokens": NEW_TOKENS,
        }

    # --------------------------------------------------------------------------------------------------------- round

    def round_vs_trl(self) -> dict[str, Any]:
        channel = LoraChannel()
        state = channel.init(self.policy.card, 0)
        ours, generation = [], []
        for turn in range(self.repeats + 2):
            # From the second round on the change of weights is mounted, as in every round but a run's first.
            start = time.perf_counter()
            state = our_round(self.policy, self.work, channel, state, turn)
            if turn > 1:
                ours.append(time.perf_counter() - start)
                with mounted(self.policy._linears, self.policy._payload(state.delta)):
                    start = time.perf_counter()
                    forget_prefixes(self.policy._engine)
                    self.policy._engine.generate("bench", prompted(self.work), SAMPLING)
                    generation.append(time.perf_counter() - start)
        peers = {}
        for dtype in ("float32", "bfloat16"):
            loaded = open_local("packaged", dtype=dtype)
            # Its trainer freezes what it will not train, and expects to be given it trainable.
            model = loaded.model.requires_grad_(True)
            peers[dtype] = trl_rounds(model, loaded.tokenizer, self.work, 2, self.trl_batch)[1:]
            del model, loaded
        best = min(peers, key=lambda d: median([r["seconds"] for r in peers[d]]))
        theirs = median([r["seconds"] for r in peers[best]])
        return {
            "ratio": theirs / median(ours),
            "seconds_ours": median(ours),
            "of_which_generation": median(generation),
            "seconds_trl": theirs,
            "trl_dtype": best,
            "trl": peers,
            "trl_batch": self.trl_batch,
            "rollouts": ITEMS * SAMPLES,
        }

    def prompt_growth(self) -> dict[str, Any]:
        """One item, G rollouts. What the prompt's length adds to a round, over what it adds to reading the prompt once
        in each pass that has to: one prefill, and one forward and backward pass."""
        channel = LoraChannel()
        works = {n: long_work(self.policy, n) for n in GROWTH}
        states = {}
        for n, work in works.items():
            states[n] = our_round(self.policy, work, channel, channel.init(self.policy.card, 0), 0)

        def whole(n: int) -> None:
            our_round(self.policy, works[n], channel, states[n], 1)

        def once(n: int) -> None:
            self._read_once(works[n], states[n])

        sides: dict[str, Callable[[], Any]] = {}
        for n in GROWTH:
            sides[f"round {n}"] = lambda n=n: whole(n)
            sides[f"once {n}"] = lambda n=n: once(n)
        taken = {name: median(t) for name, t in side_by_side(sides, self.repeats).items()}
        rounds = [taken[f"round {n}"] for n in GROWTH]
        single = [taken[f"once {n}"] for n in GROWTH]
        return {
            "ratio_to_one_prefill": (rounds[-1] - rounds[0]) / (single[-1] - single[0]),
            "group_size": SAMPLES,
            "prompt_tokens": [len(works[n].prompts[0]) for n in GROWTH],
            "seconds_round": rounds,
            "seconds_read_once": single,
        }

    def _read_once(self, work: Work, state: Any) -> None:
        """The prompt alone: a prefill of it, and one forward and backward pass with one answer of one token."""
        leaves = {k: (a.clone().requires_grad_(), b.clone().requires_grad_()) for k, (a, b) in state.tensors.items()}
        change = LowRank(state.tensors, state.scale)
        with mounted(self.policy._linears, change):
            forget_prefixes(self.policy._engine)
            self.policy._engine.prefix("", work.prompts[0])
        (stats,) = self.policy.sequence_stats(
            [work.items[0].prompt], work.conditioning, [[[5]]], temperature=1.0, change=LowRank(leaves, state.scale)
        )
        stats.logprobs.sum().backward()

    def update_memory(self) -> dict[str, Any]:
        script = str(FOLDER / "update_memory.py")
        sides = {side: peak_memory_of(script, side) for side in ("ours", "plain")}
        grown = {side: high - before for side, (before, high) in sides.items()}
        return {
            "ratio": grown["ours"] / grown["plain"],
            "mib_ours": grown["ours"],
            "mib_plain": grown["plain"],
            "mib_peak_of_process": {side: high for side, (_, high) in sides.items()},
            "sequences": ITEMS * SAMPLES,
            "tokens": 400,
            "plain": "padded batches of one group (8 sequences), log-softmax over the vocabulary",
        }

    # ---------------------------------------------------------------------------------------------------------- decode

    def decode_ceiling(self) -> dict[str, Any]:
        """A step of 64 rows, against the time that its weights take to be copied and its operations to be done."""
        cases = {
            "unshared": [Prompted(p, 0, (n,)) for n, p in enumerate(unshared_prompts(self.policy, ROWS, OWN_TOKENS))],
            "shared": prompted(self.work),
        }
        result: dict[str, Any] = {}
        for name, asked in cases.items():
            result[name] = self._decode(asked)
        change = self._some_change()
        with mounted(self.policy._linears, change):
            result["shared, LoRA mounted"] = self._decode(cases["shared"])
        return {
            "fraction": min(result[name]["fraction"] for name in cases),
            "cases": result,
            "prefill": self._prefill_rate(),
            "update": self._update_rate(),
            "weights_mib": (self.body + self.head) * self.dtype.itemsize / 2**20,
            **self.ceilings,
        }

    def _decode(self, asked: list[Prompted]) -> dict[str, Any]:
        steps, draws, at = [], [], []
        with torch.no_grad():
            for _ in range(self.repeats):
                decoding = self._started(asked)
                slots, tokens = range(ROWS), torch.zeros(ROWS, dtype=torch.long)
                for _ in range(NEW_TOKENS - 1):
                    start = time.perf_counter()
                    tokens = decoding._draw(slots, tokens)
                    drawn = time.perf_counter()
                    decoding._step(tokens)
                    steps.append(time.perf_counter() - drawn)
                    draws.append(drawn - start)
                    at.append(sum(r.position + 1 for r in decoding.rows) / len(decoding.rows))
        step = median(steps) + median(draws)
        context = sum(at) / len(at)
        operations = ROWS * (2 * (self.body + self.head) + self._attention_flops(context))
        compute = operations / self.ceilings["matmul_gflops"] / 1e9
        copy = (self.body + self.head) * self.dtype.itemsize / self.ceilings["copy_gbps"] / 1e9
        return {
            "fraction": max(compute, copy) / step,
            "milliseconds": step * 1e3,
            "of_which_sampling": median(draws) * 1e3,
            "tokens_per_second": ROWS / step,
            "ceiling_compute_ms": compute * 1e3,
            "ceiling_copy_ms": copy * 1e3,
            "mean_context": context,
            "parts_ms": self._parts(asked),
        }

    def _attention_flops(self, context: float) -> float:
        config = self.policy.model.config
        width = config.num_attention_heads * config.head_dim
        return 4.0 * config.num_hidden_layers * width * context

    def _started(self, asked: list[Prompted]) -> _Decoding:
        rows = deque(_Row(p, Draft(), uniforms(s, NEW_TOKENS)) for p in asked for s in p.seeds)
        decoding = _Decoding(self.policy._engine, "", rows, SAMPLING, None)
        with torch.no_grad():
            decoding._admit()
        return decoding

    def _parts(self, asked: list[Prompted]) -> dict[str, float]:
        """Milliseconds of a step by what goes away when it is left out, and of the products with weights done alone."""
        from twoclock.models import lean, views

        decoder = self.policy._engine.lean
        if decoder is None:
            return {}
        whole = self._steps(asked)
        norm, attention = lean._norm, views.DecodeView.attend
        try:
            views.DecodeView.attend = lambda _, q, *__: q  # type: ignore[assignment,method-assign]
            without_attention = self._steps(asked)
            lean._norm = lambda _, x: x
            bare = self._steps(asked)
        finally:
            lean._norm, views.DecodeView.attend = norm, attention  # type: ignore[method-assign]
        products = [f for layer in decoder.layers for f in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        inputs = {f: torch.randn(ROWS, f.modules[0].in_features).to(self.dtype) for f in products}
        last = torch.randn(ROWS, self.policy.model.config.hidden_size).to(self.dtype)

        def alone() -> None:
            for f in products:
                f.product(inputs[f])
            decoder._head_product(last)

        weights = median(seconds(alone, 10 * self.repeats))
        return {
            "products with weights": weights * 1e3,
            "attention": (whole - without_attention) * 1e3,
            "norms": (without_attention - bare) * 1e3,
            "the rest": (bare - weights) * 1e3,
        }

    def _steps(self, asked: list[Prompted]) -> float:
        taken = []
        with torch.no_grad():
            for _ in range(self.repeats):
                decoding = self._started(asked)
                slots, tokens = range(ROWS), torch.zeros(ROWS, dtype=torch.long)
                for _ in range(NEW_TOKENS - 1):
                    tokens = decoding._draw(slots, tokens)
                    start = time.perf_counter()
                    decoding._step(tokens)
                    taken.append(time.perf_counter() - start)
        return median(taken)

    def _some_change(self) -> LowRank:
        g = torch.Generator().manual_seed(0)
        shapes = self.policy.linear_shapes(LoraChannel().config.targets)
        tensors = {
            n: (torch.randn(8, i, generator=g) / i, torch.randn(o, 8, generator=g)) for n, (o, i) in shapes.items()
        }
        return LowRank(tensors, 2.0)

    def _prefill_rate(self) -> dict[str, float]:
        prompts = unshared_prompts(self.policy, ROWS, OWN_TOKENS)
        asked = [Prompted(p, 0, (n,)) for n, p in enumerate(prompts)]
        taken = median(seconds(lambda: self._started(asked), self.repeats))
        tokens = ROWS * OWN_TOKENS
        operations = tokens * 2 * self.body + tokens * self._attention_flops(OWN_TOKENS / 2) + ROWS * 2 * self.head
        return self._rate(tokens, operations, taken)

    def _update_rate(self) -> dict[str, float]:
        channel = LoraChannel()
        requests = [
            Request(prompt=i.prompt, conditioning=self.work.conditioning, seeds=tuple(range(SAMPLES)))
            for i in self.work.items
        ]
        evidence = evidence_of(self.work, self.policy.sample(requests, SAMPLING))
        state = channel.init(self.policy.card, 0)
        taken = median(
            seconds(lambda: channel.propose(TrainBench(self.policy), state, evidence, Budget(), 0), self.repeats)
        )
        own = sum(len(p) - self.work.shared for p in self.work.prompts)
        tokens = self.work.shared + own + ITEMS * SAMPLES * (NEW_TOKENS - 1)
        scored = ITEMS * (1 + SAMPLES * (NEW_TOKENS - 1))
        # Forward and, for what is frozen, the backward pass to the inputs only: twice the forward operations.
        operations = tokens * 4 * self.body + scored * 4 * self.head
        operations += 3 * (tokens - self.work.shared) * self._attention_flops(self.work.shared)
        return self._rate(tokens, operations, taken)

    def _rate(self, tokens: int, operations: float, taken: float) -> dict[str, float]:
        return {
            "tokens_per_second": tokens / taken,
            "seconds": taken,
            "tokens": tokens,
            "fraction_of_matmul_rate": operations / taken / 1e9 / self.ceilings["matmul_gflops"],
        }


def _repaired(model: Any, rows: list[Any], pad: int) -> None:
    with repaired_head(model):
        generate(model, rows, pad)


KEYS = ("rollout_shared", "rollout_unshared", "round_vs_trl", "prompt_growth", "update_memory", "decode_ceiling")


def show(key: str, found: dict[str, Any]) -> str:
    """A few lines for people."""
    if key.startswith("rollout"):
        lines = [f"  {name:<34}{rate:9.0f} tokens/s" for name, rate in found["tokens_per_second"].items()]
        head = f"{found['ratio']:.1f}× generate ({found['ratio_head_repaired']:.1f}× with its head repaired)"
        return "\n".join([f"{key}: {found['rows']} rows, {found['prompt_tokens']} prompt tokens: {head}", *lines])
    if key == "round_vs_trl":
        return (
            f"{key}: {found['ratio']:.1f}× faster: {found['seconds_ours']:.2f} s a round (rollouts "
            f"{found['of_which_generation']:.2f} s), TRL {found['seconds_trl']:.1f} s in {found['trl_dtype']}"
        )
    if key == "prompt_growth":
        rows = zip(found["prompt_tokens"], found["seconds_round"], found["seconds_read_once"], strict=True)
        lines = [f"  {n:>5} tokens  round {a:6.2f} s   read once {b:6.2f} s" for n, a, b in rows]
        ratio = found["ratio_to_one_prefill"]
        return "\n".join([f"{key}: grows as {ratio:.2f} readings of the prompt (G = {found['group_size']})", *lines])
    if key == "update_memory":
        return (
            f"{key}: {found['ratio']:.2f} of the plain update's: {found['mib_ours']:.0f} MiB, "
            f"plain {found['mib_plain']:.0f} MiB"
        )
    lines = [f"{key}: {found['fraction']:.0%} of the lower ceiling at {ROWS} rows"]
    for name, case in found["cases"].items():
        parts = ", ".join(f"{k} {v:.1f} ms" for k, v in case["parts_ms"].items())
        lines.append(
            f"  {name:<22}{case['milliseconds']:6.1f} ms a step ({case['tokens_per_second']:.0f} tokens/s), sampling "
            f"{case['of_which_sampling']:.1f} ms; ceilings: operations {case['ceiling_compute_ms']:.1f} ms, weights "
            f"{case['ceiling_copy_ms']:.1f} ms; {case['fraction']:.0%}\n    {parts}"
        )
    for name in ("prefill", "update"):
        rate = found[name]
        lines.append(
            f"  {name:<22}{rate['tokens_per_second']:6.0f} tokens/s, {rate['fraction_of_matmul_rate']:.0%} of the "
            "matmul rate"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--only", action="append", choices=KEYS, help="measure this alone; may be given several times")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--trl-batch", type=int, default=8, help="TRL's per-device batch (default: 8)")
    chosen = parser.parse_args()
    bench = Bench(chosen.repeats, chosen.trl_batch)
    about = {
        **describe(),
        "dtype": str(bench.dtype).removeprefix("torch."),
        **{name: _version(name) for name in ("transformers", "trl", "peft", "twoclock")},
    }
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    print(
        f"ceilings: matmul {bench.ceilings['matmul_gflops']:.0f} Gflop/s, copy {bench.ceilings['copy_gbps']:.1f} GB/s"
    )
    found: dict[str, Any] = {}
    for key in chosen.only or KEYS:
        found[key] = getattr(bench, key)()
        print(show(key, found[key]), flush=True)
    if chosen.json:
        print(json.dumps({**found, "machine": {**about, **bench.ceilings}}))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
