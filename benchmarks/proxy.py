"""Decoding under shifts, against the reference implementation's way and against the base alone, in one run.

    python benchmarks/proxy.py            # a page of figures
    python benchmarks/proxy.py --json     # and, as the last line, one JSON object

``vs_sequential``  tokens a second, ours over the sequential way's: batch 8, every answer at its full length. The
                   sequential way is that of the public code, written anew for the installed transformers: base,
                   expert and anti-expert one after the other for each token, each by its own forward pass with its
                   own cache, left padding, then the sum and the draw. It is timed in float32 and in bfloat16 and the
                   faster one counts; it gets its adapters merged into the weights, which is the faster way for it.
``overhead``       seconds under shifts over seconds of the base alone, both ours, beside what the parameters that a
                   token is multiplied with would make of it

Three pairs: ``adapters``: expert and anti-expert are two adapters of the base itself, so all three voices are rows of
one batch; ``one small model``: the base's first fifteen layers and an adapter of them; ``two small models``: its first
and its last fifteen layers. Ours is timed in the dtype that is fastest here. Seconds are of the processor (one thread),
sides in turns, the best of each, so that other work on the machine falls out. Before anything is timed, both ways must
give the same tokens, greedily, in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from machine import describe

from twoclock.hashing import content_hash
from twoclock.models.local import LocalPolicy, open_local
from twoclock.nn.lowrank import LowRank
from twoclock.types import Conditioning, Delta, Request, Sampling, Shift

BAR = 2.0
ROWS, ALPHA, RANK = 8, 0.7, 8
FIRST, LAST = slice(0, 15), slice(15, 30)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QUESTIONS = [
    f"Question {n}: which of these numbers is the largest: {', '.join(str(7 * n + 13 * k) for k in range(3 + n % 4))}?"
    for n in range(ROWS)
]


@dataclass
class Pair:
    """One shift, as we are given it and as three models whose weights stand by themselves."""

    name: str
    shift: Shift
    expert: Any
    anti: Any
    share: float
    """The parameters of expert and anti-expert that a token is multiplied with, over the base's."""


Work = Callable[[int], Any]
"""Draws so many tokens a row."""


def best(sides: dict[str, Work], repeats: int, tokens: int) -> dict[str, float]:
    """Processor seconds of each side: the best of ``repeats`` turns after a short one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, work in sides.items():
            start = time.process_time()
            work(tokens if turn else 3)
            if turn:
                taken[name].append(time.process_time() - start)
    return {name: min(times) for name, times in taken.items()}


# ------------------------------------------------------------------------------------------------------- the other way


@torch.no_grad()
def sequential(models: list[Any], prompts: list[tuple[int, ...]], alpha: float, count: int, *, greedy: bool) -> Any:
    """[B, count] tokens: three models one after the other, as the public code does it."""
    width = max(map(len, prompts))
    ids = torch.tensor([(0,) * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    caches: list[Any] = [None] * len(models)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    new = ids
    for _ in range(count):
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new.shape[1] :]
        logits = []
        for n, model in enumerate(models):
            out = model(
                input_ids=new,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=caches[n],
                use_cache=True,
                logits_to_keep=1,
            )
            caches[n] = out.past_key_values
            logits.append(out.logits[:, -1].float())
        total = logits[0] + alpha * (logits[1] - logits[2])
        if greedy:
            new = total.argmax(dim=-1, keepdim=True)
        else:
            new = torch.multinomial(total.softmax(dim=-1), 1, generator=generator)
        drawn.append(new)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.cat(drawn, dim=1)


# ---------------------------------------------------------------------------------------------------------- what is run


def adapter(policy: LocalPolicy, seed: int) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (
            torch.randn(RANK, width, generator=generator) / width**0.5,
            0.02 * torch.randn(out, RANK, generator=generator),
        )
        for name, (out, width) in policy.linear_shapes(TARGETS).items()
    }
    return Delta(content_hash([policy.base_hash, seed]), "lora", policy.base_hash, LowRank(tensors, 2.0))


def merged(policy: LocalPolicy, delta: Delta | None) -> Any:
    """A copy of the model with the change in its weights."""
    model = copy.deepcopy(policy.model)
    if delta is not None:
        for name, (a, b) in delta.payload.tensors.items():
            weight = model.get_submodule(name).weight
            weight += (delta.payload.scale * b @ a).to(weight.dtype)
    return model


def half(policy: LocalPolicy, which: slice, name: str) -> LocalPolicy:
    """A model of some of the base's layers: as fast as a trained one of that size."""
    model = copy.deepcopy(policy.model)
    model.model.layers = torch.nn.ModuleList(list(model.model.layers)[which])
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(model.model.layers)]
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    made = LocalPolicy(model, policy.tokenizer, name=name, base_hash=content_hash(["half", name]))
    if not made.shared or made._engine.lean is None:
        raise SystemExit(f"{name} is no model like the others: {made.notes}")
    return made


def multiplied(model: Any) -> int:
    """The parameters that one token is multiplied with: all but the embeddings, which are looked up."""
    head = model.get_output_embeddings().weight
    looked_up = model.get_input_embeddings().weight
    own = sum(p.numel() for p in model.parameters() if p is not head and p is not looked_up)
    return own + int(head.numel())


class Bench:
    def __init__(self, dtype: str) -> None:
        self.policy = open_local("packaged", dtype=dtype, progress=lambda text: print(text, file=sys.stderr))
        self.policy._ends = self.policy._engine.ends = frozenset()
        plain = Conditioning()
        self.prompts = [self.policy.render(question, plain) for question in QUESTIONS]

    def pairs(self, only: str | None) -> list[Pair]:
        return [make() for name, make in self._makers().items() if only in (None, name)]

    def _makers(self) -> dict[str, Callable[[], Pair]]:
        policy = self.policy
        add = policy.steering.companions.add

        def share(small: LocalPolicy) -> float:
            return 2 * multiplied(small.model) / multiplied(policy.model)

        def adapters() -> Pair:
            one, two = adapter(policy, 1), adapter(policy, 2)
            shift = Shift(expert=one, anti=two, alpha=ALPHA)
            return Pair("adapters", shift, merged(policy, one), merged(policy, two), 2.0)

        def one_small_model() -> Pair:
            small = half(policy, FIRST, "first half")
            on_small = adapter(small, 5)
            shift = Shift(expert=add(small, on_small), anti=add(small), alpha=ALPHA)
            return Pair("one small model", shift, merged(small, on_small), small.model, share(small))

        def two_small_models() -> Pair:
            small, other = half(policy, FIRST, "first half"), half(policy, LAST, "last half")
            shift = Shift(expert=add(small), anti=add(other), alpha=ALPHA)
            return Pair("two small models", shift, small.model, other.model, share(small))

        return {"adapters": adapters, "one small model": one_small_model, "two small models": two_small_models}

    def ours(self, shifts: tuple[Shift, ...], count: int, *, greedy: bool) -> list[tuple[int, ...]]:
        told = Conditioning(shifts=shifts)
        requests = [Request(prompt=q, conditioning=told, seeds=(n,)) for n, q in enumerate(QUESTIONS)]
        sampling = Sampling(max_new_tokens=count, temperature=0.0 if greedy else 1.0)
        return [row[0].tokens for row in self.policy.sample(requests, sampling)]

    def agreed(self, pair: Pair, count: int = 12) -> float:
        """The share of tokens in which both ways agree, greedily, up to the first that differs in each row."""
        mine = self.ours((pair.shift,), count, greedy=True)
        theirs = sequential([self.policy.model, pair.expert, pair.anti], self.prompts, ALPHA, count, greedy=True)
        same = 0
        for one, other in zip(mine, theirs.tolist(), strict=True):
            same += next((i for i, (x, y) in enumerate(zip(one, other, strict=True)) if x != y), count)
        return same / (count * len(mine))


@torch.no_grad()
def measure(repeats: int, tokens: int, dtype: str, only: str | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    wide = Bench("float32")
    wide_pairs = wide.pairs(only)
    agreement = {pair.name: wide.agreed(pair) for pair in wide_pairs}
    if min(agreement.values()) < 0.95:
        raise SystemExit(
            f"the two ways do not give the same tokens in float32, so nothing can be compared: {agreement}"
        )
    ours = Bench(dtype)
    other = wide if ours.policy.dtype != "float32" else Bench("bfloat16")
    peers = {bench.policy.dtype: bench for bench in (ours, other)}
    pairs = {kind: wide_pairs if bench is wide else bench.pairs(only) for kind, bench in peers.items()}
    found: dict[str, Any] = {"vs_sequential": {}, "overhead": {}, "tokens_per_s": {}}
    for index, pair in enumerate(pairs[ours.policy.dtype]):
        sides: dict[str, Work] = {
            "ours": lambda count, pair=pair: ours.ours((pair.shift,), count, greedy=False),  # type: ignore[misc]
            "base alone": lambda count: ours.ours((), count, greedy=False),
        }
        for kind, bench in peers.items():
            models = [bench.policy.model, pairs[kind][index].expert, pairs[kind][index].anti]
            sides[f"sequential, {kind}"] = lambda count, models=models, bench=bench: sequential(  # type: ignore[misc]
                models, bench.prompts, ALPHA, count, greedy=False
            )
        times = best(sides, repeats, tokens)
        theirs = min(times[name] for name in times if name.startswith("sequential"))
        found["vs_sequential"][pair.name] = theirs / times["ours"]
        over = times["ours"] / times["base alone"]
        found["overhead"][pair.name] = {"measured": over, "by parameters": 1.0 + pair.share}
        found["tokens_per_s"][pair.name] = {name: ROWS * tokens / seconds for name, seconds in times.items()}
        print(f"{pair.name}: done", file=sys.stderr)
    return {**found, "new_tokens": tokens, "dtype": ours.policy.dtype, "agreement": agreement}


def show(found: dict[str, Any]) -> str:
    lines = [f"batch {ROWS}, {found['new_tokens']} new tokens a row, one thread, ours in {found['dtype']}"]
    lines.append(f"greedy tokens in common, float32: {found['agreement']}")
    for name, ratio in found["vs_sequential"].items():
        over = found["overhead"][name]
        lines.append(f"\n{name}: {ratio:.2f} × the sequential way (bar {BAR:g})")
        lines.append(f"  {over['measured']:.2f} × the base alone; by parameters {over['by parameters']:.2f}")
        lines += [f"  {side:<22} {rate:7.1f} tokens/s" for side, rate in found["tokens_per_s"][name].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens a row")
    parser.add_argument("--dtype", default="auto", help="ours: auto (what is faster here), float32 or bfloat16")
    parser.add_argument("--only", choices=["adapters", "one small model", "two small models"])
    options = parser.parse_args()
    found = measure(options.repeats, options.tokens, options.dtype, options.only)
    print(show(found))
    if options.json:
        print(json.dumps({**found, "bar": BAR, "machine": describe()}))


if __name__ == "__main__":
    main()
