"""A whole world in miniature, for the laws and the loop: a random Llama, a family task it can learn, small settings.

The model writes random bytes. The task pays for an answer whose first character is printable ASCII, which a fresh model
does about one time in three: so groups have variance, gradients exist, and a run learns something in a few rounds.
"""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from twoclock.bench import Bench, grade_rollouts
from twoclock.contracts import Channel, Policy, Task
from twoclock.evaluation import EvaluationSettings
from twoclock.fast import FAST_CHANNELS, build_fast
from twoclock.seeding import child_seed
from twoclock.slow import SLOW_CHANNELS, build_slow
from twoclock.tasks import FamilyTask, SplitSizes, Verifier
from twoclock.tasks.sources import VerifiedTask
from twoclock.types import Budget, Conditioning, Evidence, Request, Sampling

SAMPLING = Sampling(max_new_tokens=5, temperature=1.0)
MEASURE = EvaluationSettings(
    heldout_items=8, drift_every=2, drift_prompts=2, drift_tokens=4, gate_prompts=2, gate_tokens=3
)
SIZES = SplitSizes(train=48, trial=40, heldout=12)

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "prompts": {"num_exemplars": [1, 2], "num_new": 3, "search_items": 8, "first_items": 4, "gold_items": 6},
    "lora": {"rank": 2, "learning_rate": 0.05, "targets": ["q_proj", "v_proj", "down_proj"]},
    "svf": {"learning_rate": 0.2, "targets": ["q_proj", "v_proj", "down_proj"]},
    "neural_memory": {"retrofit": "random", "layers": [0, 1], "width": 16, "gate": 20.0},
    "proxy": {"alphas": [0.5, 1.0, 2.0], "search_items": 8},
    "full": {"learning_rate": 0.01, "targets": ["q_proj", "down_proj", "norm"]},
    "experts": {"shots": 8, "population": 6, "iterations": 2, "check_items": 12},
}
"""Small settings by channel name; a channel that is not named here runs with its defaults."""


def channel_names() -> list[str]:
    """Every channel of both tables: a new one is tested by being listed."""
    return [*FAST_CHANNELS, *SLOW_CHANNELS]


def make_channel(name: str, **more: Any) -> Channel[Any]:
    options = {**OPTIONS.get(name, {}), **more}
    if name == "proxy" and "shifts" not in options:
        options["shifts"] = [{"name": "loud", "expert": str(tiny_adapter())}]
    if name == "experts" and "library" not in options:
        options["library"] = str(tiny_library())
    return build_slow(name, options) if name in SLOW_CHANNELS else build_fast(name, options)


@cache
def tiny_adapter(seed: int = 0, size: float = 1.5) -> Path:
    """A random LoRA of the tiny Llama, as PEFT writes it: an expert that says other things than its base."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in (0, 1):
        for part, shape in (("A", (2, 64)), ("B", (32, 2))):
            key = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_{part}.weight"
            tensors[key] = torch.randn(shape, generator=generator) * size
    folder = Path(tempfile.mkdtemp(prefix="adapter-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@cache
def tiny_library() -> Path:
    """Two random experts of the tiny Llama that begin with something printable more often than their base."""
    import torch

    from twoclock.library import keep_expert
    from twoclock.nn.svf import Factoring
    from twoclock.slow.svf import SvfState

    folder = Path(tempfile.mkdtemp(prefix="experts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = open_tiny(model_folder(folder / "model"))
    spectrum, factors = model.singular_factors(("gate_proj", "down_proj"), Factoring())
    for seed, name in ((5, "loud"), (7, "quiet")):
        generator = torch.Generator().manual_seed(seed)
        offsets = {n: 3.0 * torch.randn(len(f.s), generator=generator) for n, f in factors.items()}
        state = SvfState(0, 1, model.base_hash, spectrum, Factoring(), offsets)
        keep_expert(state, folder / "library", name=name, task=f"{name} answers", base_name="tiny")
    return folder / "library"


def model_folder(folder: Path, *, seed: int = 0) -> Path:
    """A random Llama with a byte tokenizer and room for a few exemplars, as a folder that any loader reads.

    Its weights are large, so that what it says does depend on what it reads: a fresh model's logits are all but flat.
    """
    sys.path.append(str(Path(__file__).parent / "models"))
    from model_files import write_folder
    from safetensors.torch import load_file, save_file

    write_folder(folder, seed=seed)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    weights = folder / "model.safetensors"
    larger = {n: (12.0 * t if t.dim() == 2 else t).contiguous() for n, t in load_file(weights).items()}
    save_file(larger, weights, metadata={"format": "pt"})
    return folder


def open_tiny(folder: Path, **options: Any) -> Any:
    """The folder as a local policy in float32 on one thread: the same bits whatever else the machine does."""
    from twoclock.models.local import open_local

    return open_local(str(folder), dtype="float32", device="cpu", threads=1, **options)


def printable(completions: Sequence[str]) -> list[tuple[float, str]]:
    """The verifier of the tiny tasks."""
    good = [bool(text) and " " <= text[0] <= "~" for text in completions]
    return [(1.0, "fine") if right else (0.0, "begin with a printable character") for right in good]


def tiny_task(
    name: str = "largest", *, want: str = "largest", verifier: Any = printable, timeout_s: float = 5.0
) -> Task:
    config = {"count": 2, "min_value": 10, "max_value": 99, "want": want}
    family = FamilyTask("compare", config, sizes=SIZES, seed=7, name=name, templates=[0])
    return VerifiedTask(family, Verifier(verifier, timeout_s=timeout_s))


def tiny_bench(
    policy: Policy, task: Task, *, budget: Budget | None = None, others: Conditioning | None = None
) -> Bench:
    return Bench(policy, task, others=others or Conditioning(), sampling=SAMPLING, budget=budget)


def gather(
    policy: Policy,
    task: Task,
    *,
    conditioning: Conditioning | None = None,
    round: int = 1,
    items: int = 6,
    each: int = 4,
) -> Evidence:
    """What a round sees, on the policy as it is."""
    under = conditioning or Conditioning()
    chosen = task.split("train")[round * items : (round + 1) * items]
    requests = [
        Request(
            prompt=item.prompt,
            conditioning=under.for_item(item),
            seeds=tuple(child_seed("gather", round, item.id, n) for n in range(each)),
        )
        for item in chosen
    ]
    groups = grade_rollouts(task, chosen, requests, policy.sample(requests, SAMPLING))
    return Evidence(
        round=round,
        phase=0,
        task=task.name,
        groups=groups,
        conditionings={r.conditioning.id: r.conditioning for r in requests},
        sampling=SAMPLING,
    )


def no_evidence(task: Task) -> Evidence:
    return Evidence(round=1, phase=0, task=task.name, groups=(), conditionings={}, sampling=SAMPLING)
