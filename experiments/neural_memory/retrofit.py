"""A memory beside the packaged model: what it recalls of a text that is out of sight, and what it costs.

    python experiments/neural_memory/retrofit.py --seed 0            # trains, then tests: results/retrofit/seed0-*.json
    python experiments/neural_memory/retrofit.py --seed 0 --train    # trains only; may be killed and goes on

Trained: the memory's projections, gate and read-out at one layer, on texts of six facts each. Tested on other people's
facts: the text is written once, then only the question is in sight, with so many sentences between. Arms: ``own``,
the text's memory; ``other``, that of another text; ``zeroed``, nothing written, which is the base; ``window``, the base
with as many of the text's last tokens in sight as take up the memory's bytes; ``full``, the base with all in sight.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from twoclock.models.retrofit.data import Lesson, filler, lesson
from twoclock.models.retrofit.model import Retrofitted, open_retrofit, save_retrofit
from twoclock.models.retrofit.training import TrainSettings, train_retrofit
from twoclock.models.shared_attention import text_config
from twoclock.models.sources import load_model
from twoclock.nn.neural_memory_spec import MemorySpec
from twoclock.nn.retrofit import MEMORY, RetrofitSpec, init_retrofit
from twoclock.nn.soft_memory import SoftMemory, dump_memory
from twoclock.seeding import child_rng

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "retrofit"
LAYER, WIDTH = 20, 256
BEHIND = (0, 20, 80)
"""Sentences between the facts and the question, about 13 tokens each."""
TEXTS = 12
ARMS = ("own", "other", "zeroed", "window", "full")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def trained(loaded: Any, seed: int, settings: TrainSettings) -> tuple[Retrofitted, dict[str, Any]]:
    """The retrofitted model and its training's history; goes on where it was left."""
    spec = RetrofitSpec(
        base=loaded.base_hash,
        width=loaded.model.config.hidden_size,
        layers=(LAYER,),
        memory=MemorySpec(heads=1, width=WIDTH, **MEMORY),
    )
    name = f"retrofit-{run_name(settings)}"
    file, log = (HERE / "runs" / f"{name}.{end}" for end in ("safetensors", "json"))
    if not (file.exists() and log.exists()):
        retrofit, history = train_retrofit(
            loaded.model,
            loaded.tokenizer,
            init_retrofit(spec, seed),
            settings,
            checkpoint=HERE / "runs" / f"{name}.pt",
            progress=say,
        )
        save_retrofit(retrofit, file)
        log.write_text(json.dumps(history))
    parts = open_retrofit(file, loaded.base_hash)
    return Retrofitted(loaded.model, loaded.tokenizer, parts, base_hash=loaded.base_hash), json.loads(log.read_text())


def run_name(settings: TrainSettings) -> str:
    return f"seed{settings.seed}-steps{settings.steps}-hush{settings.hush:g}"


# ------------------------------------------------------------------------------------------------------------- testing


def tokens_of(model: Retrofitted, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def scored(
    model: Retrofitted, memory: SoftMemory | None, rows: Sequence[tuple[list[int], int]]
) -> list[dict[str, Any]]:
    """For each (tokens, how many of the last are the answer): bits of the answer, and whether greedy decoding says
    it."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    with model.reading(memory) if memory else nullcontext():
        hidden = model.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    found = []
    for row, (tokens, count) in zip(hidden, rows, strict=True):
        logits = model.model.get_output_embeddings()(row[len(tokens) - 1 - count : len(tokens) - 1]).float()
        answer = torch.tensor(tokens[len(tokens) - count :])
        bits = -logits.log_softmax(-1).gather(1, answer[:, None]).sum() / math.log(2)
        found.append({"bits": float(bits), "right": bool((logits.argmax(-1) == answer).all())})
    return found


def asked(model: Retrofitted, one: Lesson, before: Sequence[int] = ()) -> list[tuple[list[int], int]]:
    """The lesson's questions behind the tokens ``before``; an answer is its four digits."""
    return [([*before, *tokens_of(model, f.asked + f.number)], len(f.number)) for f in one.facts]


def recall(model: Retrofitted, seed: int, behind: int) -> dict[str, Any]:
    """All arms at one distance."""
    lessons = [lesson(seed, "test", i, behind=behind) for i in range(TEXTS)]
    texts = [tokens_of(model, one.text) for one in lessons]
    began = time.perf_counter()
    memories = [model.write(model.start(), tokens) for tokens in texts]
    write_s = time.perf_counter() - began
    window = max(1, memories[0].bytes // bytes_per_token(model))
    rows: dict[str, list[list[dict[str, Any]]]] = {arm: [] for arm in ARMS}
    for i, (one, tokens) in enumerate(zip(lessons, texts, strict=True)):
        plain = asked(model, one)
        rows["own"].append(scored(model, memories[i], plain))
        rows["other"].append(scored(model, memories[(i + 1) % TEXTS], plain))
        rows["zeroed"].append(scored(model, model.start(), plain))
        rows["window"].append(scored(model, None, asked(model, one, tokens[-window:])))
        if not behind:
            rows["full"].append(scored(model, None, asked(model, one, [*tokens, *tokens_of(model, "\n")])))
    result = {arm: summary(some) for arm, some in rows.items() if some}
    gained = [mean("bits", o) - mean("bits", m) for o, m in zip(rows["other"], rows["own"], strict=True)]
    return {
        "behind_sentences": behind,
        "tokens": statistics.mean(map(len, texts)),
        "window_tokens": window,
        "arms": result,
        "bits_recalled": interval([4 * math.log2(10) - mean("bits", o) for o in rows["own"]]),
        "bits_against_other": interval(gained),
        "bits_to_recall": 4 * math.log2(10),
        "write_s_per_token": write_s / sum(map(len, texts)),
    }


def inside(model: Retrofitted, seed: int) -> dict[str, Any]:
    """Facts in sight, and plain sentences: the base against the same with another text's memory read."""
    facts, plain = [], []
    for i in range(TEXTS):
        memory = model.write(model.start(), lesson(seed, "test", i).text)
        one = lesson(seed, "test", 1000 + i, facts=2, sentences=2)
        rows = asked(model, one, tokens_of(model, one.text + "\n"))
        facts.append([mean("right", scored(model, m, rows)) for m in (None, memory)])
        text = tokens_of(model, " ".join(filler(child_rng("retrofit.plain", seed, i), 6)))
        plain.append([scored(model, m, [(text, len(text) - 1)])[0]["bits"] / (len(text) - 1) for m in (None, memory)])
    return {
        "facts_in_sight": {"base": interval([a for a, _ in facts]), "memory": interval([b for _, b in facts])},
        "facts_difference": interval([b - a for a, b in facts]),
        "plain_bits_a_token": {"base": interval([a for a, _ in plain]), "memory": interval([b for _, b in plain])},
        "plain_difference": interval([b - a for a, b in plain]),
    }


def costs(model: Retrofitted, seed: int) -> dict[str, Any]:
    text = lesson(seed, "test", 0, behind=20).text
    tokens = tokens_of(model, text)
    memory = model.write(model.start(), tokens)
    path = HERE / "runs" / "memory.safetensors"
    timed = {"write_s": lambda: model.write(memory, tokens), "save_s": lambda: model.save(memory, path)}
    timed |= {"load_s": lambda: model.load(path), "fork_copy_s": lambda: [s.clone() for s in memory.states]}
    found: dict[str, Any] = {name: best(call) for name, call in timed.items()}
    return found | {
        "written_tokens": len(tokens),
        "file_bytes": len(dump_memory(memory)),
        "state_bytes": memory.bytes,
        "bytes_of_a_token_in_the_window": bytes_per_token(model),
        "parameters": model.retrofit.parameters,
        "closed_gate_is_bit_identical": closed(model, tokens),
    }


@torch.no_grad()
def closed(model: Retrofitted, tokens: Sequence[int]) -> bool:
    shut = Retrofitted(model.model, model.tokenizer, model.retrofit.closed(), base_hash=model.base_hash)
    ids = torch.tensor([list(tokens)[:64]])
    base = model.model(ids).logits
    with shut.reading(shut.write(shut.start(), tokens)):
        return torch.equal(model.model(ids).logits, base)


def bytes_per_token(model: Retrofitted) -> int:
    """Of keys and values of all layers."""
    config = text_config(model.model)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers * 2 * config.num_key_value_heads * width * model.model.dtype.itemsize)


def best(call: Any, times: int = 3) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


def mean(name: str, rows: Sequence[dict[str, Any]]) -> float:
    return statistics.mean(float(row[name]) for row in rows)


def summary(texts: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Means over texts with 95 % t intervals: questions of one text share its memory."""
    return {name: interval([mean(name, rows) for rows in texts]) for name in ("bits", "right")}


def interval(values: Sequence[float]) -> dict[str, float]:
    from scipy.stats import t

    half = 0.0
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.mean(values)
    return {"mean": round(middle, 4), "low": round(middle - half, 4), "high": round(middle + half, 4), "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lessons", type=int, default=128)
    parser.add_argument("--hush", type=float, default=1.0, help="0: answers to what was never told are not held down")
    parser.add_argument("--model", default="packaged")
    parser.add_argument("--train", action="store_true", help="train only")
    options = parser.parse_args()
    loaded = load_model(options.model, dtype="bfloat16")
    settings = TrainSettings(steps=options.steps, lessons=options.lessons, seed=options.seed, hush=options.hush)
    model, history = trained(loaded, options.seed, settings)
    if options.train:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    cells = {f"recall-behind{n}": lambda n=n: recall(model, options.seed, n) for n in BEHIND}
    cells |= {"inside": lambda: inside(model, options.seed), "costs": lambda: costs(model, options.seed)}
    told = {
        "seed": options.seed,
        "model": loaded.name,
        "base_hash": loaded.base_hash,
        "retrofit": model.retrofit.id,
        "layer": LAYER,
        "trained_steps": history["step"],
        "trained_s": round(history["seconds"], 1),
        "final_loss_nats_a_token": round(statistics.mean(x for _, x, *_ in history["losses"][-20:]), 4),
        "lessons": options.lessons,
        "command": f"python experiments/neural_memory/retrofit.py --seed {options.seed} --steps {options.steps} "
        f"--lessons {options.lessons} --hush {options.hush:g}",
    }
    for name, cell in cells.items():
        result = told | {"cell": name, "result": cell()}
        (RESULTS / f"{run_name(settings)}-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        say(f"{name}: {json.dumps(result['result'])}")


if __name__ == "__main__":
    main()
